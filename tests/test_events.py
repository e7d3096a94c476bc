"""Events, timers and steering as a user meets them, on every store: from here, from elsewhere, and over crashes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import (
    Engine,
    Event,
    PersistentWorkflowStateMachine,
    Retry,
    RunFailed,
    RunNotFound,
    RunOver,
    To,
    Workflow,
    open_store,
)
from fsmworkflow.conditions import field, payload
from fsmworkflow.errors import (
    CodecError,
    EventNotFound,
    InputDiffers,
    InvalidKey,
    NotAccepted,
    UnknownEvent,
    UnknownState,
)
from fsmworkflow.store import Store
from fsmworkflow.store.memory import MemoryStore
from fsmworkflow.testing import Clock, Crash, CrashingStore
from tests.children import launched
from tests.waiting import PATIENCE, until

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
async def store(store_url: str) -> Any:
    """An open store that both engines of a test share where it lives in memory."""
    store = open_store(store_url)
    await store.open()
    yield store
    await store.close()


def engine(store: Store, *workflows: Workflow, poll: float = 0.03) -> Engine:
    return Engine(store, workflows=workflows, poll=poll)


async def in_state(engine: Engine, workflow: Workflow, key: str, state: str) -> Any:
    async def look() -> Any:
        run = await engine.get(workflow, key)
        return run if run.state == state else None

    return await until(look)


def article(**after: Any) -> Workflow:
    """draft -> review (a person) -> publish, which keeps the event that led there -> published."""
    flow = Workflow("article")

    @flow.step(initial=True, then="review")
    async def draft(ctx: Any) -> None:
        ctx.data["drafts"] = ctx.data.get("drafts", 0) + 1

    on = {"approved": "publish", "rejected": "draft", "maybe": [(payload("stars") > 3, "publish")]}
    flow.wait("review", on=on, after=after.get("after"))

    @flow.step(then="published")
    async def publish(ctx: Any) -> None:
        ctx.data["event"] = [ctx.event.name, ctx.event.payload]

    flow.final("published", "expired")
    flow.transition("expire", "review", "expired")
    return flow.check()


def counter() -> Workflow:
    def add(data: Any, event: Any) -> None:
        data["n"] += event.payload

    flow = Workflow("counter")
    flow.wait("open", initial=True, on={"add": To("open", update=add, internal=True), "close": "closed"})
    flow.final("closed")
    return flow.check()


# -- waiting and sending --------------------------------------------------------------------------------------------


async def test_a_run_waits_until_an_event_comes_and_its_step_sees_it(store: Store) -> None:
    flow = article()
    async with engine(store, flow) as one:
        run = await one.run(flow, {}, key="a")
        assert (run.state, run.status) == ("review", "waiting")
        sent = await one.send(flow, "a", "approved", {"by": "ann"})
        assert (sent.status, sent.version) == ("accepted", 2)
        run = await one.result(flow, "a")
        assert (run.state, run.data["event"]) == ("published", ["approved", {"by": "ann"}])
        assert [entry.event for entry in await one.history(flow, "a")] == ["$start", "$done", "approved", "$done"]


async def test_another_engine_sends_and_the_owner_takes_it(store: Store) -> None:
    flow = article()
    async with engine(store, flow) as one, engine(store, flow) as two:
        await one.run(flow, {}, key="a")
        sent = await two.send(flow, "a", "approved", 7, event_id="e")
        assert sent.status in ("waiting", "accepted")
        run = await two.result(flow, "a")
        assert run.data["event"] == ["approved", 7]
        assert (await two.event(flow, "a", "e")).status == "accepted"
        assert {entry.owner for entry in await two.history(flow, "a")} == {one.worker.token}


async def test_who_only_sends_and_closes_says_nothing_of_the_run_in_the_log(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    flow = article()
    async with engine(store, flow) as one:
        await one.run(flow, {}, key="a")
        async with engine(store, flow) as two:
            for _ in range(3):
                await two.send(flow, "a", "expire", visit=99)  # is never accepted, so the sender keeps looking
                await asyncio.sleep(0)
        assert [record.message for record in caplog.records if record.levelname != "INFO"] == []


async def test_a_double_click_is_one_event_also_when_the_run_has_ended(store: Store) -> None:
    flow = article()
    async with engine(store, flow) as one:
        await one.run(flow, {}, key="a")
        clicks = [one.send(flow, "a", "approved", event_id="click") for _ in range(5)]
        await asyncio.gather(*clicks)
        assert (await one.result(flow, "a")).state == "published"
        assert (await one.send(flow, "a", "approved", event_id="click")).status == "accepted"
        assert sum(entry.event == "approved" for entry in await one.history(flow, "a")) == 1


async def test_what_is_not_yet_accepted_waits_and_what_never_was_is_dropped(store: Store) -> None:
    flow = Workflow("f")
    flow.wait("a", initial=True, on={"go": "b"})
    flow.wait("b", on={"later": "end", "never": "b"})
    flow.wait("c", on={"far": "end"})
    flow.transition("c", "b", "c")
    flow.final("end")
    async with engine(store, flow) as one:
        await one.run(flow, {}, key="a")
        assert (await one.send(flow, "a", "far", event_id="far")).status == "waiting"
        assert (await one.send(flow, "a", "later", event_id="later")).status == "waiting"
        assert (await one.event(flow, "a", "later")).status == "waiting"
        await one.send(flow, "a", "go")
        assert (await in_state(one, flow, "a", "end")).status == "done"
        assert [(await one.event(flow, "a", id)).status for id in ("later", "far")] == ["accepted", "dropped"]


@pytest.mark.parametrize("paused", [False, True])
async def test_a_run_elsewhere_rests_again_once_it_has_been_looked_at_for_an_event_that_it_does_not_accept(
    store: Store, paused: bool
) -> None:
    flow = Workflow("flow")
    flow.wait("one", initial=True, on={"go": "two"})
    flow.wait("two", on={"end": "over"})
    flow.final("over")
    async with engine(store, flow) as owner, engine(store, flow) as other:
        await owner.run(flow, {}, key="a")
        if paused:
            await owner.pause(flow, "a")
        for _ in range(2):
            await other.send(flow, "a", "end")
            run = await asyncio.wait_for(other.result(flow, "a"), PATIENCE)  # `end` waits: nothing will move the run
            assert (run.state, run.due) == ("one", None)
        if not paused:
            await other.send(flow, "a", "go")
            assert (await in_state(other, flow, "a", "over")).status == "done"


async def test_an_event_that_no_condition_lets_through_is_rejected_and_the_run_stays(store: Store) -> None:
    flow = article()
    async with engine(store, flow) as one:
        await one.run(flow, {}, key="a")
        assert (await one.send(flow, "a", "maybe", {"stars": 2})).status == "rejected"
        last = (await one.history(flow, "a"))[-1]
        assert (last.event, last.source, last.dest) == ("maybe", "review", "review")
        assert [seen["answer"] if isinstance(seen, dict) else seen.answer for seen in last.asked] == [False]
        assert (await one.send(flow, "a", "maybe", {"stars": 4})).status == "accepted"


async def test_an_event_bound_to_a_visit_is_good_for_that_visit_only(store: Store) -> None:
    flow = article()
    async with engine(store, flow) as one:
        seen = await one.run(flow, {}, key="a")
        await one.send(flow, "a", "rejected")
        run = await until(lambda: waiting_again(one, flow, seen.visit))
        await one.send(flow, "a", "approved", "old", visit=seen.visit, event_id="old")
        await asyncio.sleep(0.05)
        assert (await one.get(flow, "a")).state == "review"
        await one.send(flow, "a", "approved", "new", visit=run.visit)
        assert (await in_state(one, flow, "a", "published")).data["event"] == ["approved", "new"]
        assert (await one.event(flow, "a", "old")).status == "dropped"


async def waiting_again(engine: Engine, flow: Workflow, visit: int) -> Any:
    run = await engine.get(flow, "a")
    return run if run.state == "review" and run.visit != visit else None


async def test_an_event_may_be_due_later_sent_by_the_owner_or_by_another(store: Store) -> None:
    flow = article()
    async with engine(store, flow) as one:
        for key in ("a", "b"):
            await one.run(flow, {}, key=key)
        began = store.now()
        await one.send(flow, "a", "approved", due=began + 0.15)
        assert (await one.get(flow, "a")).state == "review"
        assert (await in_state(one, flow, "a", "published")).updated >= began + 0.15
    async with engine(store, flow) as two:  # which has not been asked for this run
        await two.send(flow, "b", "approved", due=store.now() + 0.1)
        assert (await in_state(two, flow, "b", "published")).status == "done"


async def test_events_that_cannot_be_meant_are_refused_by_name(store: Store) -> None:
    flow = article()
    async with engine(store, flow) as one:
        with pytest.raises(RunNotFound):
            await one.send(flow, "nobody", "approved")
        await one.run(flow, {}, key="a")
        with pytest.raises(UnknownEvent, match="approved"):
            await one.send(flow, "a", "aproved")
        with pytest.raises(UnknownEvent):
            await one.send(flow, "a", "$cancel")
        with pytest.raises(EventNotFound):
            await one.event(flow, "a", "none")
        await one.send(flow, "a", "expire")
        with pytest.raises(RunOver, match="done"):
            await one.send(flow, "a", "approved")


# -- running steps --------------------------------------------------------------------------------------------------


def interruptible(seen: list[str], go: asyncio.Event) -> Workflow:
    flow = Workflow("long")

    @flow.step(
        initial=True,
        then="end",
        on={
            "stop": [(payload("really") == True, "stopped")],  # noqa: E712
            "note": To("work", internal=True, update=lambda data, event: data.update(note=event.payload)),
        },
    )
    async def work(ctx: Any) -> None:
        seen.append("begin")
        try:
            await go.wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        seen.append("end")
        ctx.data["worked"] = True

    flow.final("end", "stopped")
    return flow.check()


async def test_an_event_that_leads_out_of_a_running_step_ends_it_first(store: Store) -> None:
    seen: list[str] = []
    flow = interruptible(seen, asyncio.Event())
    async with engine(store, flow) as one:
        await one.start(flow, {"n": 1}, key="a")
        await until(lambda: began(seen))
        await one.send(flow, "a", "stop", {"really": True})
        run = await one.result(flow, "a")
        assert (run.state, dict(run.data)) == ("stopped", {"n": 1})
        assert seen == ["begin", "cancelled"]


async def taken(engine: Engine, flow: Workflow, event_id: str) -> bool:
    return (await engine.event(flow, "a", event_id)).status != "waiting"


async def began(seen: list[str]) -> bool:
    return bool(seen)


async def test_a_step_goes_on_under_events_that_are_rejected_or_internal(store: Store) -> None:
    seen: list[str] = []
    flow = interruptible(seen, go := asyncio.Event())
    async with engine(store, flow) as one:
        await one.start(flow, {"n": 1}, key="a")
        await until(lambda: began(seen))
        await one.send(flow, "a", "stop", {"really": False}, event_id="no")
        await one.send(flow, "a", "note", "hello", event_id="yes")
        await until(lambda: taken(one, flow, "no"))
        await until(lambda: taken(one, flow, "yes"))
        go.set()
        run = await one.result(flow, "a")
        assert (run.state, dict(run.data)) == ("end", {"n": 1, "note": "hello", "worked": True})
        assert seen == ["begin", "end"]
        assert (await one.event(flow, "a", "no")).status == "rejected"


async def test_the_steps_of_regions_run_at_once_and_both_ends_count(store: Store) -> None:
    flow = Workflow("f")
    both = flow.parallel("both", initial=True, then="end")
    met = asyncio.Barrier(2)
    for name in ("one", "two"):
        region = both.region(name)

        async def work(ctx: Any) -> None:
            await asyncio.wait_for(met.wait(), PATIENCE)
            ctx.data[ctx.state] = 1

        region.step("s", initial=True, then="f")(work)
        region.final("f")
    flow.final("end")
    async with engine(store, flow) as one:
        run = await one.run(flow, {}, key="a")
        assert (run.state, dict(run.data)) == ("end", {"both.one.s": 1, "both.two.s": 1})


async def test_a_hand_that_leads_to_another_step_stops_the_one_that_is_on_and_no_later_one(store: Store) -> None:
    flow, begun, on = Workflow("hands"), list[str](), asyncio.Event()

    @flow.step(initial=True, then="end")
    async def first(ctx: Any) -> None:
        begun.append("first")
        await asyncio.sleep(60)

    @flow.step(then="end")
    async def second(ctx: Any) -> None:
        begun.append("second")
        await on.wait()

    flow.wait("other", on={"nothing": "second"})
    flow.transition("never", "first", "other")
    flow.final("end")
    async with engine(store, flow, poll=0.01) as one:
        await one.start(flow, {}, key="a")
        await until(lambda: asyncio.sleep(0, begun == ["first"]))
        for _ in range(3):
            await one.send(flow, "a", "nothing")  # which waits, so that there is something to look at
        await one.rerun(flow, "a", state="second")
        for _ in range(20):
            one.roster.wake(("hands", "a"))  # one that comes late stops nothing
            await asyncio.sleep(0.002)
        assert begun == ["first", "second"]
        on.set()
        assert (await one.result(flow, "a")).status == "done"
        assert begun == ["first", "second"]


async def test_run_goes_on_with_a_run_that_has_just_failed_and_is_not_let_go_of_yet(store: Store) -> None:
    flow, bodies, failed, known = Workflow("fails once"), 0, asyncio.Event(), asyncio.Event()

    @flow.step(initial=True, then="end")
    async def work(ctx: Any) -> None:
        nonlocal bodies
        bodies += 1
        if bodies == 1:
            raise OSError("not yet")

    flow.final("end")

    class LateAnswer(CrashingStore):
        async def commit(self, move: Any) -> Any:
            due = await super().commit(move)
            if move.after.status == "failed":
                failed.set()
                await known.wait()
            return due

    async with Engine(LateAnswer(store, at=None), workflows=[flow], poll=0.03) as one:
        await one.start(flow, {}, key="a")
        await failed.wait()
        assert (await one.get(flow, "a")).status == "failed"
        again = asyncio.create_task(one.run(flow, key="a"))
        await asyncio.sleep(0.02)
        known.set()
        assert (await again).status == "done"
        assert bodies == 2


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_cancel_stops_a_running_step_from_here_and_from_elsewhere(store: Store, elsewhere: bool) -> None:
    seen: list[str] = []
    flow = Workflow("f")

    @flow.step(initial=True, then="end")
    async def work(ctx: Any) -> None:
        seen.append("begin")
        await asyncio.sleep(30)

    flow.final("end")
    async with engine(store, flow) as one, engine(store, flow) as two:
        await one.start(flow, {}, key="a")
        await until(lambda: began(seen))
        run = await asyncio.wait_for((two if elsewhere else one).cancel(flow, "a"), PATIENCE)
        assert (run.status, run.state, seen) == ("cancelled", "work", ["begin"])
        with pytest.raises(RunOver, match="cancelled"):
            await one.cancel(flow, "a")


async def test_what_says_nothing_to_a_running_step_does_not_stop_it(store: Store) -> None:
    seen: list[str] = []
    flow = Workflow("f")

    @flow.step(initial=True, then="next")
    async def work(ctx: Any) -> None:
        seen.append("begin")
        await asyncio.sleep(0.1)
        seen.append("end")

    flow.wait("next", on={"go": "end"})
    flow.final("end")
    async with engine(store, flow) as one:
        await one.start(flow, {}, key="a")
        await until(lambda: began(seen))
        with pytest.raises(NotAccepted):
            await one.retry(flow, "a")
        await one.start(flow, {}, key="b")
        await until(lambda: twice(seen))
        run = await one.pause(flow, "b")
        assert (run.status, run.state, seen) == ("paused", "next", ["begin", "end"] * 2)
        await one.send(flow, "b", "go")
        await asyncio.sleep(0.03)
        assert (await one.get(flow, "b")).state == "next"
        await one.unpause(flow, "b")
        await in_state(one, flow, "b", "end")


async def twice(seen: list[str]) -> bool:
    return seen.count("begin") == 2


# -- many at once ---------------------------------------------------------------------------------------------------


async def test_a_hundred_events_at_once_are_each_taken_once(store: Store) -> None:
    flow = counter()
    async with engine(store, flow) as one, engine(store, flow) as two:
        await one.run(flow, {"n": 0}, key="a")
        sent = [(one, two)[n % 10 == 0].send(flow, "a", "add", 1) for n in range(100)]
        await asyncio.gather(*sent)
        run = await until(lambda: hundred(one, flow))
        assert run.version == 100
        assert Counter(e.event for e in await one.history(flow, "a")) == {"$start": 1, "add": 100}


async def hundred(engine: Engine, flow: Workflow) -> Any:
    run = await engine.get(flow, "a")
    return run if run.data["n"] == 100 else None


# -- time -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["run", "resume"])
async def test_a_timer_survives_closing_and_strikes_late_rather_than_never(store: Store, by: str) -> None:
    for seconds in (0.15, 2, 20):
        if await struck_late(store, article(after={seconds: "expired"}), f"{seconds}", by):  # else it came before
            break
    else:
        raise AssertionError("it was never closed before its time")


async def struck_late(store: Store, flow: Workflow, key: str, by: str) -> bool:
    async with engine(store, flow) as one:
        await one.run(flow, {}, key=key)
    async with engine(store, flow) as two:
        closed = (await two.get(flow, key)).state == "review"
        due = (await two.get(flow, key)).due
        await until(lambda: due is None or two.store.now() > due)
        assert not closed or (await two.get(flow, key)).state == "review", "nobody drives it yet"
        await (two.run(flow, {}, key=key) if by == "run" else two.resume())
        assert (await in_state(two, flow, key, "expired")).status == "done"
    return closed


async def test_days_pass_by_the_stores_own_clock() -> None:
    clock = Clock()
    flow = article(after={"3d": "expired"})
    async with engine(MemoryStore(clock=clock), flow, poll=0.01) as one:
        await one.run(flow, {}, key="a")
        clock.turn("2d")
        await asyncio.sleep(0.05)
        assert (await one.get(flow, "a")).state == "review"
        clock.turn("1d")
        await in_state(one, flow, "a", "expired")


# -- one entity -----------------------------------------------------------------------------------------------------


def order() -> Workflow:
    def take(data: Any, event: Any) -> None:
        data["left"] -= event.payload["qty"]

    flow = Workflow("order")
    fill = [(payload("qty") <= field("left"), To("open", update=take, internal=True))]
    flow.wait("open", initial=True, on={"fill": fill, "close": [(field("left") == 0, "closed")]})
    flow.final("closed")
    return flow.check()


async def test_an_entity_answers_events_one_after_the_other_and_says_what_it_may(store: Store) -> None:
    flow = order()
    async with PersistentWorkflowStateMachine(store, flow, key="o", data={"left": 10}) as machine:
        assert (machine.state, machine.may("close"), machine.may("fill", {"qty": 1})) == ("open", False, True)
        sent = await asyncio.gather(*(machine.send("fill", {"qty": 1}) for _ in range(10)))
        assert {event.status for event in sent} == {"accepted"}
        assert (dict(machine.data), machine.may("close"), machine.is_final) == ({"left": 0}, True, False)
        kept = machine.snapshot()
        assert (await machine.send("close")).status == "accepted"
        assert (machine.state, machine.is_final, machine.may("fill", {"qty": 1})) == ("closed", True, False)
    restored = PersistentWorkflowStateMachine.from_snapshot("memory://", flow, kept)
    async with restored as machine:
        assert (machine.state, dict(machine.data)) == ("open", {"left": 0})
        await machine.send("close")
        assert machine.is_final


async def test_P6_entities_of_one_key_hold_its_run_one_after_the_other(store: Store) -> None:
    bodies, sent = 0, []
    flow = Workflow("entity")

    @flow.step(initial=True, then="open")
    async def begin(ctx: Any) -> None:
        nonlocal bodies
        bodies += 1
        await asyncio.sleep(0.02)

    flow.wait("open", on={"add": To("open", update=lambda data, event: data.update(n=data.get("n", 0) + 1)),
                          "close": "closed"})  # fmt: skip
    flow.final("closed")

    async def hold() -> None:
        async with PersistentWorkflowStateMachine(store, flow, key="o") as machine:
            sent.append(await machine.send("add"))
            await asyncio.sleep(0.02)
            sent.append(await machine.send("add"))

    await asyncio.gather(*(hold() for _ in range(4)))
    assert bodies == 1
    assert {event.status for event in sent} == {"accepted"}
    assert len({event.version for event in sent}) == 8
    async with PersistentWorkflowStateMachine(store, flow, key="o") as machine:
        assert machine.data["n"] == 8


async def test_a_run_that_an_entity_holds_is_reported_as_it_rests_and_waited_for_while_it_goes_on(store: Store) -> None:
    flow, go = Workflow("entity"), asyncio.Event()
    flow.wait("open", initial=True, on={"work": "busy"})

    @flow.step("busy", then="over")
    async def busy(ctx: Any) -> None:
        await go.wait()

    flow.final("over")
    other = PersistentWorkflowStateMachine(store, flow, key="o", data={"n": 1})
    async with PersistentWorkflowStateMachine(store, flow, key="o") as entity:
        assert (await other.run_workflow()).state == "open"
        sending = asyncio.create_task(entity.send("work"))
        while entity._driving().run.state != "busy":
            await asyncio.sleep(0.005)
        waiting = asyncio.create_task(other.run_workflow())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        go.set()
        assert (await sending).status == "accepted"
        assert (await waiting).state == "over"
        assert entity.is_final


async def test_entities_without_a_key_that_begin_at_once_hold_a_run_each(store: Store) -> None:
    flow = Workflow("entity")
    flow.wait("open", initial=True, on={"close": "closed"})
    flow.final("closed")
    machines = [PersistentWorkflowStateMachine(store, flow) for _ in range(4)]
    async with contextlib.AsyncExitStack() as held:
        await asyncio.gather(*(held.enter_async_context(machine) for machine in machines))
        assert len({machine._driving().run.key for machine in machines}) == 4


@pytest.mark.parametrize("key", ["a\nb", 7, "x" * 201])
async def test_the_key_of_an_entity_is_checked(key: Any) -> None:
    with pytest.raises(InvalidKey):
        async with PersistentWorkflowStateMachine("memory://", order(), key=key):
            pass


async def test_an_entity_keeps_no_event_but_the_one_that_led_into_its_visit(store: Store) -> None:
    flow = order()
    async with PersistentWorkflowStateMachine(store, flow, key="o", data={"left": 10}) as machine:
        for _ in range(10):
            await machine.send("fill", {"qty": 1})
        assert machine._driving().entered_by == {}


async def test_what_is_sent_to_an_entity_that_has_failed_waits_until_it_is_taken_up_again(store: Store) -> None:
    works = False
    order = Workflow("order")
    order.wait("open", initial=True, on={"pay": "paying"})

    @order.step("paying", then="paid")
    async def paying(ctx: Any) -> None:
        if not works:
            raise TypeError("no bank")

    order.wait("paid", on={"fill": "filled"})
    order.final("filled")
    async with PersistentWorkflowStateMachine(store, order, key="a") as entity:
        with pytest.raises(TypeError):
            await entity.send("pay")
        assert (await entity.send("fill", {"qty": 100}, event_id="good")).status == "waiting"
        assert (entity.state, entity.is_final) == ("paying", False)
    works = True
    async with PersistentWorkflowStateMachine(store, order, key="a") as entity:
        assert (entity.state, entity.is_final) == ("filled", True)


async def test_the_time_of_an_entity_strikes_while_nobody_sends(store: Store) -> None:
    flow = article(after={"0.05s": "expired"})
    async with PersistentWorkflowStateMachine(store, flow, key="o", data={}) as machine:
        await until(lambda: asyncio.sleep(0, machine.state == "expired"))
        assert machine.is_final


async def test_what_another_process_sends_to_an_entity_is_taken_while_nobody_sends_here(store: Store) -> None:
    flow = article()
    async with PersistentWorkflowStateMachine(store, flow, key="o", data={}) as machine:
        await store.post("article", "o", Event(name="approved", id="e"))
        await until(lambda: asyncio.sleep(0, machine.is_final))


async def test_a_step_that_fails_while_nobody_sends_leaves_the_entity_failed_and_the_next_life_goes_on(
    store: Store,
) -> None:
    works = asyncio.Event()
    flow = Workflow("order")
    flow.wait("open", initial=True, on={"close": "closing"})

    @flow.step("closing", then="closed")
    async def closing(ctx: Any) -> None:
        if not works.is_set():
            raise OSError("no paper")

    flow.final("closed")
    async with PersistentWorkflowStateMachine(store, flow, key="o", data={}) as machine:
        await store.post("order", "o", Event(name="close", id="e"))
        await until(lambda: asyncio.sleep(0, machine.run is not None and machine.run.status == "failed"))
        assert machine.state == "closing"
    works.set()
    async with PersistentWorkflowStateMachine(store, flow, key="o") as machine:
        assert machine.is_final


async def test_an_entity_that_is_left_lets_the_step_end_that_its_time_has_begun(store: Store) -> None:
    began, ended = asyncio.Event(), []
    flow = Workflow("order")
    flow.wait("open", initial=True, after={"0.05s": "closing"})

    @flow.step("closing", then="closed")
    async def closing(ctx: Any) -> None:
        began.set()
        await asyncio.sleep(0.05)
        ended.append(ctx.attempt)

    flow.final("closed")
    async with PersistentWorkflowStateMachine(store, flow, key="o", data={}) as machine:
        await began.wait()
    assert (machine.is_final, ended) == (True, [1])


async def test_an_entity_taken_up_again_lets_a_time_that_has_come_go_first(store: Store) -> None:
    for seconds in (0.05, 2, 20):
        flow = article(after={seconds: "expired"})
        async with PersistentWorkflowStateMachine(store, flow, key=f"{seconds}", data={}) as machine:
            if machine.state == "expired":  # it came before anybody could send
                continue
            time.sleep(seconds + 0.03)  # so that nobody sees it before
            sent = await machine.send("approved")
            assert (machine.state, sent.status) == ("expired", "dropped")
            break
    else:
        raise AssertionError("its time always came first")


# -- over crashes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_event_is_kept_over_a_crash_at_any_write_and_its_step_sees_it_again(store: Store, when: Any) -> None:
    for at in range(1, 20):
        flow = article()
        await store.reset()
        crashing = CrashingStore(store, at=at, when=when)
        sent = False
        try:
            async with engine(crashing, flow) as one:  # type: ignore[arg-type]
                await one.run(flow, {}, key="a")
                await one.send(flow, "a", "approved", {"by": "ann"}, event_id="e")
                sent = True
                await asyncio.wait_for(one.result(flow, "a"), PATIENCE)
        except BaseException:
            if not crashing.crashed:
                raise
        crashed = crashing.crashed
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            if crashed and task.get_name().startswith(("Task", "step", "fsmworkflow")):
                task.cancel()
        await crashing.bury_the_dead()
        async with engine(store, flow) as two:
            await two.resume()
            await two.run(flow, {}, key="a")
            if not sent:
                await two.send(flow, "a", "approved", {"by": "ann"}, event_id="e")
            run = await in_state(two, flow, "a", "published")
            assert (run.data["event"], run.data["drafts"]) == (["approved", {"by": "ann"}], 1)
            assert sum(entry.event == "approved" for entry in await two.history(flow, "a")) == 1
        if not crashed:
            assert at > 4
            return
    raise AssertionError("it never ends without a crash")


async def test_undoing_goes_on_after_a_graceful_stop(store: Store) -> None:
    undone, go = list[str](), asyncio.Event()
    flow = Workflow("trip")

    async def book(ctx: Any) -> None:
        if ctx.state == "pay":
            raise ValueError("no money")

    async def unbook(ctx: Any) -> None:
        undone.append(ctx.state)
        await go.wait()

    flow.step("flight", initial=True, then="hotel", compensate=unbook)(book)
    flow.step("hotel", then="pay", compensate=unbook)(book)
    flow.step("pay", then="paid")(book)
    flow.final("paid")
    async with engine(store, flow) as one:
        await one.start(flow, {}, key="a")
        await until(lambda: began(undone))
        asyncio.get_running_loop().call_soon(go.set)  # by then the engine is told to close
    assert undone == ["hotel"]
    async with engine(store, flow) as two:
        assert await two.resume() == 1
        run = await two.get(flow, "a")
        assert (run.status, run.over, undone) == ("failed", True, ["hotel", "flight"])
        with pytest.raises(RunFailed):
            await two.run(flow, {}, key="a")
        with pytest.raises(RunOver):
            await two.retry(flow, "a")


async def test_a_run_that_has_ended_is_not_forked_where_nothing_goes_on(store: Store) -> None:
    flow = article()
    async with engine(store, flow) as one:
        await one.run(flow, {}, key="a")
        await one.send(flow, "a", "expire")
        assert (await one.fork(flow, "a", new_key="b", at=1)).state == "review"
        with pytest.raises(ValueError, match="expired"):
            await one.fork(flow, "a", new_key="c")


async def test_P6_forks_to_one_key_make_one_run_and_run_its_body_once(store: Store) -> None:
    bodies, go = 0, asyncio.Event()
    flow = Workflow("forked")

    @flow.step(initial=True, then="over")
    async def first(ctx: Any) -> None:
        nonlocal bodies
        bodies += 1
        await go.wait()

    flow.final("over")
    async with engine(store, flow) as one:
        go.set()
        await one.run(flow, {"n": 1}, key="a")
        go.clear()
        bodies = 0
        forks = await asyncio.gather(*(one.fork(flow, "a", new_key="b", at=0) for _ in range(3)))
        assert {run.id for run in forks} == {(await one.fork(flow, "a", new_key="b", at=0)).id}
        with pytest.raises(InputDiffers):
            await one.fork(flow, "a", new_key="b", at=0, data={"n": 2})
        go.set()
        assert (await one.result(flow, "b")).status == "done"
        assert [entry.version for entry in await one.history(flow, "b")] == [0, 1]
    assert bodies == 1


CHILD = """
import asyncio, sys
from fsmworkflow import Engine
from tests.test_events import article

async def main():
    flow = article()
    async with Engine(sys.argv[1], workflows=[flow], poll=60.0) as engine:
        await engine.run(flow, {}, key="a")
        engine.roster.wake = lambda *_: None
        await engine.send(flow, "a", "approved", {"by": "ann"}, event_id="e")
        print("sent", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_P1_P3_an_event_is_there_when_its_sender_is_killed_before_the_move(
    durable_url: str, tmp_path: Path
) -> None:
    program = tmp_path / "child.py"
    program.write_text(textwrap.dedent(CHILD))
    command, pipe = [sys.executable, str(program), durable_url], subprocess.PIPE
    with launched(command, stdout=pipe, env={"PYTHONPATH": str(ROOT)}, text=True) as process:
        assert await asyncio.to_thread(process.stdout.readline) == "sent\n"
    assert process.returncode == -signal.SIGKILL
    flow = article()
    async with Engine(durable_url, workflows=[flow]) as one:
        assert (await one.event(flow, "a", "e")).status == "waiting"
        await one.resume()
        run = await one.get(flow, "a")
        assert (run.state, run.data["event"], run.data["drafts"]) == ("published", ["approved", {"by": "ann"}], 1)


# -- too late -------------------------------------------------------------------------------------------------------


def ending(inside: Callable[[], Awaitable[Any]]) -> Workflow:
    """Its step ends the run, and something is posted to it while it does."""
    flow = Workflow("ending")

    @flow.step(initial=True, then=[(field("waits").is_none(), "end"), "rest"])
    async def last(ctx: Any) -> None:
        await inside()

    flow.wait("rest", on={"note": "end"})
    flow.final("end")
    return flow


async def test_an_event_posted_just_as_its_run_ends_is_dropped_at_once_without_a_move(store: Store) -> None:
    async def inside() -> None:
        await one.send(flow, "a", "note", event_id="late")

    flow = ending(inside)
    async with engine(store, flow, poll=60) as one:
        run = await one.run(flow, key="a")
        assert run.status == "done"
        assert (await one.event(flow, "a", "late")).status == "dropped"
        run = await one.get(flow, "a")
        assert (run.version, run.due, run.owner) == (1, None, None), "nobody has to look at it any more"
        assert len(await one.history(flow, "a")) == 2


async def test_an_event_that_another_engine_posts_as_the_run_ends_is_dropped_too(store: Store) -> None:
    async def inside() -> None:
        await two.send(flow, "a", "note", event_id="late")

    flow = ending(inside)
    async with engine(store, flow, poll=60) as one, engine(store, flow, poll=60) as two:
        await one.run(flow, key="a")

        async def dropped() -> bool:
            return (await one.event(flow, "a", "late")).status == "dropped"

        await until(dropped)
        assert (await one.get(flow, "a")).version == 1


@pytest.mark.parametrize("moment", range(12))
async def test_whenever_an_event_is_posted_to_an_ending_run_it_does_not_stay(store: Store, moment: int) -> None:
    async def inside() -> None:
        pass

    flow = ending(inside)
    async with engine(store, flow, poll=60) as one:
        await one.start(flow, key="a")
        for _ in range(moment * 2):
            await asyncio.sleep(0)
        try:
            await one.send(flow, "a", "note", event_id="late")
        except RunOver:
            return

        async def settled() -> bool:
            run = await one.get(flow, "a")
            return run.status == "done" and (await one.event(flow, "a", "late")).status == "dropped" and run.due is None

        await until(settled)


# -- what a model of the rules has found -----------------------------------------------------------------------------


def held_step(seen: list[str], go: asyncio.Event, **how: Any) -> Workflow:
    """work, until `go` is set, and then an error -> end."""
    flow = Workflow("held")

    @flow.step(initial=True, then="end", **how)
    async def work(ctx: Any) -> None:
        seen.append("begin")
        await go.wait()
        raise OSError("no paper")

    flow.final("end")
    return flow.check()


async def test_who_pauses_a_run_whose_step_then_fails_is_told(store: Store) -> None:
    seen, go = list[str](), asyncio.Event()
    flow = held_step(seen, go, on={"note": To("work", internal=True)})
    async with engine(store, flow) as one:
        await one.start(flow, {}, key="a")
        await until(lambda: began(seen))
        pausing = asyncio.create_task(one.pause(flow, "a"))
        await until(lambda: posted_to(store))
        go.set()
        with pytest.raises(NotAccepted, match="failed"):
            await asyncio.wait_for(pausing, PATIENCE)
        assert [entry.event for entry in await one.history(flow, "a")] == ["$start", "$error", "$pause"]


async def posted_to(store: Store, many: int = 1) -> bool:
    run = await store.load("held", "a")
    return run is not None and run.posted >= many


async def test_a_step_that_fails_while_an_event_comes_is_not_tried_again_for_it(store: Store) -> None:
    seen, go = list[str](), asyncio.Event()
    flow = Workflow("held")
    flow.wait("rest", on={"go": "end"})

    @flow.step(initial=True, then="rest")
    async def work(ctx: Any) -> None:
        seen.append("begin")
        await go.wait()
        raise OSError("no paper")

    flow.final("end")
    async with engine(store, flow) as one:
        await one.start(flow, {}, key="a")
        await until(lambda: began(seen))
        await one.send(flow, "a", "go")
        go.set()
        assert (await one.result(flow, "a")).status == "failed"
        await asyncio.sleep(0.1)
        assert seen == ["begin"]


async def test_a_failed_run_goes_on_also_where_an_event_for_it_is_due_later(store: Store) -> None:
    seen, go = list[str](), asyncio.Event()
    go.set()
    flow = held_step(seen, go, on={"stop": "end"})
    async with engine(store, flow) as one:
        with pytest.raises(RunFailed):
            await one.run(flow, {}, key="a")
        await one.send(flow, "a", "stop", due=store.now() + 1000)
        with pytest.raises(RunFailed):
            await one.run(flow, key="a")
        assert seen == ["begin", "begin"]


@pytest.mark.parametrize("listens", [False, True])
async def test_a_pause_that_is_taken_back_while_the_step_is_on_stops_nothing(store: Store, listens: bool) -> None:
    seen, go, flow = list[str](), asyncio.Event(), Workflow("held")

    @flow.step(initial=True, then="polish", on={"stop": "end"} if listens else None)
    async def work(ctx: Any) -> None:
        seen.append("begin")
        await go.wait()

    @flow.step(then="end")
    async def polish(ctx: Any) -> None:
        pass

    flow.final("end")
    async with engine(store, flow) as one:
        await one.start(flow, {}, key="a")
        await until(lambda: began(seen))
        hands = [asyncio.create_task(one.pause(flow, "a"))]
        await until(lambda: posted_to(store))
        hands += [asyncio.create_task(one.unpause(flow, "a"))]
        await until(lambda: posted_to(store, 2))
        go.set()
        await asyncio.wait_for(asyncio.gather(*hands), PATIENCE)
        assert (await asyncio.wait_for(one.result(flow, "a"), PATIENCE)).status == "done"
        told = [entry.event for entry in await one.history(flow, "a")]
        assert told == ["$start", "$done", "$pause", "$unpause", "$done"]


async def test_an_older_event_goes_before_a_timer_after_a_pause() -> None:
    clock = Clock()
    flow = article(after={"10s": "expired"})
    async with engine(MemoryStore(clock=clock), flow, poll=0.01) as one:
        await one.run(flow, {}, key="a")
        await one.pause(flow, "a")
        await one.send(flow, "a", "approved")
        clock.turn(20)
        await one.unpause(flow, "a")
        await in_state(one, flow, "a", "published")


async def test_an_event_that_waited_for_a_state_is_taken_after_a_crash_as_it_is_entered(
    store: Store,
) -> None:
    seen, go = list[str](), asyncio.Event()
    flow = Workflow("held")

    @flow.step(initial=True, then="rest")
    async def work(ctx: Any) -> None:
        seen.append("begin")
        await go.wait()

    flow.wait("rest", on={"go": "end"})
    flow.final("end")
    crashing = CrashingStore(store, at=None, when="after")
    with contextlib.suppress(Crash):
        async with engine(crashing, flow) as one:  # type: ignore[arg-type]
            await one.start(flow, {}, key="a")
            await one.send(flow, "a", "go")
            await one.close(grace=0)
    await crashing.bury_the_dead()
    crashing, seen[:] = CrashingStore(store, at=1, when="after"), []
    two = engine(crashing, flow)  # type: ignore[arg-type]
    await two.__aenter__()
    resuming = asyncio.create_task(two.resume())
    await until(lambda: began(seen))
    go.set()
    with contextlib.suppress(Crash):
        await resuming
    with contextlib.suppress(Crash):
        await two.close(grace=0)
    await crashing.bury_the_dead()
    assert (await store.load("held", "a")).state == "rest"  # type: ignore[union-attr]
    async with engine(store, flow) as three:
        await three.resume()
        assert (await in_state(three, flow, "a", "end")).status == "done"


async def test_a_run_that_an_error_led_into_a_final_state_is_over(store: Store) -> None:
    seen, go = list[str](), asyncio.Event()
    go.set()
    flow = Workflow("held")

    @flow.step(initial=True, then="end", on_error={OSError: "refused"})
    async def work(ctx: Any) -> None:
        seen.append("begin")
        raise OSError("no paper")

    flow.final("end")
    flow.final("refused", outcome="failed")
    async with engine(store, flow) as one:
        for _ in range(2):
            with pytest.raises(RunFailed, match="no paper"):
                await one.run(flow, {}, key="a")
        assert (await one.get(flow, "a")).over
        assert seen == ["begin"]
        with pytest.raises(RunOver):
            await one.retry(flow, "a")


async def test_between_two_attempts_of_an_undoing_a_hand_is_refused_at_once() -> None:
    flow, undone = Workflow("trip"), list[str]()

    async def book(ctx: Any) -> None:
        if ctx.state == "pay":
            raise ValueError("no money")

    async def unbook(ctx: Any) -> None:
        undone.append(ctx.state)
        raise OSError("no line")

    flow.step("flight", initial=True, then="pay", compensate=unbook, undo=Retry(first_delay=1000, max_delay=1000))(book)
    flow.step("pay", then="paid")(book)
    flow.final("paid")
    async with engine(MemoryStore(clock=Clock()), flow) as one:
        await one.start(flow, {}, key="a")
        await until(lambda: began(undone))
        with pytest.raises(NotAccepted, match="compensating"):
            await asyncio.wait_for(one.retry(flow, "a"), PATIENCE)


async def test_a_run_is_not_let_go_on_in_a_state_that_ends_it(store: Store) -> None:
    flow = article()
    async with engine(store, flow) as one:
        await one.run(flow, {}, key="a")
        with pytest.raises(UnknownState, match="state 'published' of workflow 'article' ends the run"):
            await one.rerun(flow, "a", state="published")
        with pytest.raises(UnknownState, match=r"no state 'publis' \(did you mean 'publish'\?\)"):
            await one.rerun(flow, "a", state="publis")


async def test_why_a_run_is_not_retried_whose_undoing_has_begun_is_told(store: Store) -> None:
    flow, undoing = Workflow("trip"), asyncio.Event()

    async def undo(ctx: Any) -> None:
        await undoing.wait()

    @flow.step(initial=True, then="pay", compensate=undo)
    async def book(ctx: Any) -> None:
        pass

    @flow.step(then="end")
    async def pay(ctx: Any) -> None:
        raise OSError("no money")

    flow.final("end")
    async with engine(store, flow) as one:
        await one.start(flow, {}, key="a")

        async def status() -> bool:
            return (await one.get(flow, "a")).status == "compensating"

        await until(status)
        asked = asyncio.create_task(one.retry(flow, "a"))
        await asyncio.sleep(0)
        undoing.set()
        with pytest.raises((NotAccepted, RunOver), match="what it had done is"):
            await asked
        assert (await one.result(flow, "a")).over
        with pytest.raises(RunOver, match="is failed: what it had done is undone, so nothing can go on in it"):
            await one.retry(flow, "a")
        assert [entry.detail for entry in await one.history(flow, "a")][-1] == "step book was undone"


@pytest.mark.parametrize("event_id", ["", "x" * 201, 5, True, b"x", "a\0b"])
async def test_an_event_id_that_cannot_be_kept_is_refused_alike_on_every_store(store: Store, event_id: Any) -> None:
    flow = Workflow("flow")
    flow.wait("open", initial=True, on={"close": "end"})
    flow.final("end")
    async with Engine(store, workflows=[flow]) as engine:
        await engine.run(flow, key="a")
        with pytest.raises(CodecError, match="event_id"):
            await engine.send(flow, "a", "close", event_id=event_id)
        assert (await engine.get(flow, "a")).version == 0
