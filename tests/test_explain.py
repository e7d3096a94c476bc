"""`engine.explain` says in words why a run is where it is, and what it waits for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fsmworkflow import ChildFailed, Engine, Retry, RunFailed, To, Transition, Workflow, field, payload


async def nothing(ctx: Any) -> None:
    pass


def raising(why: str) -> Callable[[Any], Awaitable[None]]:
    async def fn(ctx: Any) -> None:
        raise OSError(why)

    return fn


def trip() -> Workflow:
    flow = Workflow("trip")

    @flow.step(initial=True, then="book", compensate=nothing)
    async def plan(ctx: Any) -> None:
        ctx.data.setdefault("left", 2)

    @flow.step(then="pay", on_error={LookupError: "refused"})
    async def book(ctx: Any) -> None:
        if kind := {"full": LookupError, "ill": OSError}.get(ctx.data.get("is")):
            raise kind("no bed")

    flow.wait(
        "pay",
        on={"paid": [(payload("sum") >= field("left"), "done"), "pay"], "off": "refused"},
        after={"2d": "refused"},
    )
    flow.final("done")
    flow.final("refused", outcome="failed")
    return flow


async def told(engine: Engine, flow: Workflow, key: str) -> list[str]:
    """What is said, line by line, without times."""
    text = await engine.explain(flow, key)
    return [re.sub(r"[0-9-]{10} [0-9:]{8} UTC", "THEN", line) for line in text.splitlines()]


async def test_of_a_run_that_waits_its_events_and_timers_are_told(store_url: str) -> None:
    flow = trip()
    async with Engine(store_url, workflows=[flow]) as engine:
        await engine.run(flow, {}, key="a")
        assert await told(engine, flow, "a") == [
            "trip/a is waiting in state pay, at version 2.",
            "Last, the end of its step led from book to pay, at THEN.",
            "It accepts: paid, off.",
            "A timer of pay is due THEN, in 2 days.",
        ]


async def test_the_conditions_of_the_last_move_are_told_with_what_they_saw(store_url: str) -> None:
    flow = trip()
    async with Engine(store_url, workflows=[flow]) as engine:
        await engine.run(flow, {}, key="a")
        await engine.send(flow, "a", "paid", {"sum": 1})
        await engine.result(flow, "a")
        assert (await told(engine, flow, "a"))[1:3] == [
            "Last, the event paid left it in pay, at THEN.",
            "  asked: payload.sum >= left -> False (payload.sum = 1, left = 2)",
        ]
        await engine.send(flow, "a", "paid", {"sum": 2})
        await engine.result(flow, "a")
        assert (await told(engine, flow, "a"))[-1] == "It has ended."


async def test_of_a_run_that_is_paused_the_way_on_is_told(store_url: str) -> None:
    flow = trip()
    async with Engine(store_url, workflows=[flow]) as engine:
        await engine.run(flow, {}, key="a")
        await engine.pause(flow, "a")
        assert (await told(engine, flow, "a"))[2:4] == [
            "It is paused: unpause lets it go on.",
            "It accepts: paid, off.",
        ]


async def test_of_a_run_that_failed_the_error_and_the_way_on_are_told(store_url: str) -> None:
    flow = Workflow("plain")

    @flow.step(initial=True, then="done")
    async def work(ctx: Any) -> None:
        raise OSError("no bed")

    flow.final("done")
    async with Engine(store_url, workflows=[flow]) as engine:
        with pytest.raises(RunFailed, match=r"^plain/a failed in state 'work': OSError: no bed$"):
            await engine.run(flow, {}, key="a")
        assert await told(engine, flow, "a") == [
            "plain/a is failed in state work, at version 1.",
            "Last, an error left it in work, at THEN.",
            "Its last error, in state work, attempt 1: OSError: no bed",
            "It keeps its place: run or retry lets it go on.",
        ]


async def test_of_a_run_that_was_undone_the_undoing_is_told(store_url: str) -> None:
    flow = trip()
    async with Engine(store_url, workflows=[flow]) as engine:
        with pytest.raises(RunFailed, match=r"^trip/a failed in state 'refused', an end that counts as failed$"):
            await engine.run(flow, {"is": "full"}, key="a")
        assert await told(engine, flow, "a") == [
            "trip/a is failed in state refused, at version 3.",
            "Last, step plan was undone, at THEN.",
            "It has ended.",
        ]


async def test_what_waits_in_the_inbox_and_what_led_here_is_told(store_url: str) -> None:
    flow = trip()
    async with Engine(store_url, workflows=[flow]) as engine:
        await engine.run(flow, {}, key="a")
        for number in range(7):
            await engine.send(flow, "a", "paid", {"sum": 0}, due=4e9 + number)
        last = (await told(engine, flow, "a"))[-1]
        assert re.fullmatch(r"In its inbox: (paid \(due in [0-9,]+ days\)(, )?){5} and 2 more\.", last), last
        with pytest.raises(RunFailed):
            await engine.run(flow, {"is": "full"}, key="b")
        undone = await engine.history(flow, "b")
        assert [entry.detail for entry in undone] == [None, None, None, "step plan was undone"]
        assert repr(undone[-1]) == "<Entry 3: $done, refused -> refused, failed, step plan was undone>"


async def test_of_what_waits_in_the_inbox_is_told_for_which_visit_it_is_and_what_is_not_taken_now(
    store_url: str,
) -> None:
    flow = Workflow("door")
    flow.wait("open", initial=True, on={"shut": "locked", "again": "open"})
    flow.wait("locked", on={"free": "open"})
    flow.final("gone")
    flow.add(Transition("leave", "open", "gone"))
    async with Engine(store_url, workflows=[flow]) as engine:
        passed = (await engine.run(flow, {}, key="a")).visit
        await engine.send(flow, "a", "again")
        await engine.result(flow, "a")
        await engine.send(flow, "a", "leave", visit=passed)
        await engine.send(flow, "a", "free")
        last = (await told(engine, flow, "a"))[-1]
        assert last == f"In its inbox: leave for visit {passed} (not now), free (not now)."
        await engine.pause(flow, "a")
        await engine.send(flow, "a", "again")
        assert (await told(engine, flow, "a"))[-1].endswith(", again (not now).")


async def test_of_an_error_that_led_on_its_text_is_told(store_url: str) -> None:
    flow = Workflow("caught")

    @flow.step(initial=True, then="done", on_error={OSError: "help"})
    async def work(ctx: Any) -> None:
        raise OSError("no bed")

    flow.wait("help", on={"ok": "done"})
    flow.final("done")
    async with Engine(store_url, workflows=[flow]) as engine:
        await engine.run(flow, {}, key="a")
        assert (await told(engine, flow, "a"))[1:3] == [
            "Last, an error led from work to help, at THEN.",
            "Its last error, in state work, attempt 1: OSError: no bed",
        ]


async def test_history_has_each_error_also_what_led_on_and_what_an_undoing_raised(store_url: str) -> None:
    """Of an error that `on_error` led on from, of a child's too, and of an undoing the row keeps nothing."""
    flow, inner = Workflow("trip"), Workflow("visa")
    inner.step("ask", initial=True, then="given")(raising("no stamp"))
    inner.final("given")

    @flow.step(initial=True, then="visa", compensate=raising("no refund"), undo=Retry(attempts=2, first_delay=0))
    async def book(ctx: Any) -> None:
        pass

    flow.child("visa", inner, then="paid", on_error={ChildFailed: "pay"})
    again = Retry(attempts=2, first_delay=0)
    flow.step("pay", then="paid", retry=again, on_error={OSError: "off"})(raising("no card"))
    flow.final("paid")
    flow.final("off", outcome="failed")
    async with Engine(store_url, workflows=[flow]) as engine:
        with pytest.raises(RunFailed):
            await engine.run(flow, {}, key="a")
        moves = await engine.history(flow, "a")
        told_of = [(e.error.state, e.error.visit, e.error.attempt, e.error.message) for e in moves if e.error]
        visa = "child visa/a/visa/1/0 failed in state 'ask': OSError: no stamp"
        assert told_of == [
            ("visa", 1, 1, visa), ("pay", 2, 1, "no card"), ("pay", 2, 2, "no card"),
            ("book", 0, 1, "no refund"), ("book", 0, 2, "no refund"),
        ]  # fmt: skip
        assert (await told(engine, flow, "a"))[-1] == "Could not be undone: book (visit 0): OSError: no refund."


async def test_of_a_run_that_has_just_begun_its_start_is_told(store_url: str) -> None:
    flow = Workflow("new")
    flow.wait("open", initial=True, on={"shut": "end"})
    flow.final("end")
    async with Engine(store_url, workflows=[flow]) as engine:
        await engine.run(flow, {}, key="a")
        assert (await told(engine, flow, "a"))[1] == "Last, it was started in open, at THEN."


async def test_what_waits_for_another_state_and_the_deadline_are_told(store_url: str) -> None:
    flow = Workflow("slow", deadline="30d")
    flow.wait("open", initial=True, on={"shut": "closed"})
    flow.wait("closed", on={"lock": "end"})
    flow.final("end")
    async with Engine(store_url, workflows=[flow]) as engine:
        await engine.run(flow, {}, key="a")
        await engine.send(flow, "a", "lock")
        assert (await told(engine, flow, "a"))[2:] == [
            "It accepts: shut.",
            "Its deadline is THEN, in 30 days.",
            "In its inbox: lock (not now).",
        ]
        await engine.pause(flow, "a")
        assert (await told(engine, flow, "a"))[1] == "Last, pause left it in open, at THEN."


async def test_what_is_printed_of_events_entries_and_moves_is_short_and_has_no_data(store_url: str) -> None:
    flow = trip()
    async with Engine(store_url, workflows=[flow]) as engine:
        await engine.run(flow, {"card": "4111"}, key="a")
        sent = await engine.send(flow, "a", "paid", {"sum": 1, "card": "4111"}, event_id="\u202e" + "x" * 199)
        printed = [repr(one) for one in (sent, *await engine.history(flow, "a"))]
        assert all(len(one) < 150 and one.isprintable() and "4111" not in one for one in printed), printed


async def test_of_an_event_that_was_rejected_for_a_condition_without_answer_the_reason_is_told(store_url: str) -> None:
    flow = trip()
    async with Engine(store_url, workflows=[flow]) as engine:
        await engine.run(flow, {}, key="a")
        await engine.send(flow, "a", "paid", {"sum": "much"})
        await engine.result(flow, "a")
        last, asked = (await told(engine, flow, "a"))[1:3]
        assert last == "Last, the event paid was rejected in pay, at THEN."
        assert asked.startswith(
            "  asked: `payload.sum >= left` has no answer: operator ge does not take payload.sum"
        ), asked


async def test_what_is_printed_of_a_failure_is_short_and_has_no_traceback(store_url: str) -> None:
    flow = Workflow("plain")

    @flow.step(initial=True, then="done")
    async def work(ctx: Any) -> None:
        raise OSError("no bed\n" * 100)

    flow.final("done")
    async with Engine(store_url, workflows=[flow]) as engine:
        failure = (await engine.result(flow, (await engine.start(flow, {}, key="a")).key)).error
        assert "Traceback" in failure.traceback
        assert repr(failure).startswith("<Failure in work, attempt 1: OSError: 'no bed\\n")
        assert len(repr(failure)) < 300


async def test_the_children_of_a_state_that_has_another_name_now_are_told(durable_url: str) -> None:
    def shop(version: int, name: str) -> Workflow:
        box, flow = Workflow("box"), Workflow("shop", version=version)
        box.wait("open", initial=True, on={"close": "closed"})
        box.final("closed")
        flow.child(name, box, initial=True, then="over", on={"note": To(name, internal=True)})
        flow.final("over")
        return flow

    old, new = shop(1, "pack"), shop(2, "packing")
    new.migrate(1, to=2, states={"pack": "packing"})
    async with Engine(durable_url, workflows=[old]) as engine:
        await engine.run(old, key="a")
    async with Engine(durable_url, workflows=[new]) as engine:
        await engine.resume()
        note = await engine.send(new, "a", "note")
        while (await engine.event(new, "a", note.id)).status == "waiting":
            await asyncio.sleep(0.005)
        lines = await told(engine, new, "a")
    assert lines[0].startswith("shop/a is waiting in state packing, at version")
    assert lines[-1] == "Its child in packing has not ended: 1 waiting."
