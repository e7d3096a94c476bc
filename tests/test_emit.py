"""`ctx.emit`: an event to another run, in the commit of the move: with the step's end, once, or not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from fsmworkflow import (
    CodecError,
    Engine,
    Entry,
    FSMWorkflowError,
    PersistentWorkflowStateMachine,
    Retry,
    RunFailed,
    RunNotFound,
    To,
    UnknownWorkflow,
    Workflow,
    field,
)
from fsmworkflow.decide import begin
from fsmworkflow.errors import UnknownEvent
from fsmworkflow.store import Store, open_store
from fsmworkflow.store.postgres import PostgresStore
from fsmworkflow.store.sqlite import SQLiteStore
from fsmworkflow.testing import Crash, CrashingStore
from tests.waiting import PATIENCE

QUICK = Retry(attempts=3, first_delay=0, max_delay=0)


def inbox(*, ends: bool = True) -> Workflow:
    """A run that waits for `paid`, and keeps what it was told."""
    flow = Workflow("inbox", payload="merge")
    flow.wait("open", initial=True, on={"paid": "closed" if ends else "open", "never": "closed"})
    flow.final("closed")
    return flow


def sender(step: Callable[..., Any], *, retry: Retry | None = None) -> Workflow:
    flow = Workflow("sender")
    flow.step("tell", initial=True, then="end", retry=retry)(step)
    flow.final("end")
    return flow


def taken(history: list[Entry]) -> list[str]:
    return [entry.event for entry in history[1:]]


async def settled(engine: Engine, flow: Workflow, key: str) -> Any:
    async with asyncio.timeout(PATIENCE):
        while (run := await engine.get(flow, key)).status not in ("done", "failed"):
            await asyncio.sleep(0.005)
    return run


async def test_an_emitted_event_moves_the_other_run_at_once_and_carries_its_payload(store_url: str) -> None:
    box = inbox()

    async def work(ctx: Any) -> None:
        payload = {"sum": 7}
        await ctx.emit(box, "b", "paid", payload)
        payload["sum"] = 8  # what counts is what it was when it was emitted
        ctx.data["told"] = True

    flow = sender(work)
    async with Engine(store_url, workflows=[box, flow], poll=60) as engine:
        await engine.run(box, key="b")
        run = await engine.run(flow, key="s")
        assert run.data == {"told": True}
        assert (await settled(engine, box, "b")).data == {"sum": 7}
        event = await engine.event(box, "b", "sender/s/tell/0:emit:0")
        assert (event.name, event.payload, event.status) == ("paid", {"sum": 7}, "accepted")


async def test_an_attempt_that_failed_emits_nothing_and_the_next_one_emits_once(store_url: str) -> None:
    box = inbox(ends=False)

    async def work(ctx: Any) -> None:
        await ctx.emit("inbox", "b", "paid", {"n": ctx.attempt})
        if ctx.attempt < 3:
            waiting = (await engine.store.inbox(await engine.get(box, "b")))[1]
            assert waiting == []
            raise OSError("not yet")

    flow = sender(work, retry=QUICK)
    async with Engine(store_url, workflows=[box, flow]) as engine:
        await engine.run(box, key="b")
        await engine.run(flow, key="s")
        async with asyncio.timeout(PATIENCE):
            while not (await engine.get(box, "b")).version:
                await asyncio.sleep(0.005)
        assert (await engine.get(box, "b")).data == {"n": 3}
        assert taken(await engine.history(box, "b")) == ["paid"]


async def test_a_step_whose_end_leads_nowhere_emits_nothing(store_url: str) -> None:
    box = inbox()

    async def work(ctx: Any) -> str:
        await ctx.emit(box, "b", "paid")
        return "no_such_trigger"

    flow = sender(work)
    async with Engine(store_url, workflows=[box, flow]) as engine:
        await engine.run(box, key="b")
        with pytest.raises(RunFailed):
            await engine.run(flow, key="s")
        assert await engine.store.inbox(await engine.get(box, "b")) == (0, [])


async def test_what_is_wrong_is_told_where_it_is_called(store_url: str) -> None:
    box, told = inbox(), []

    async def work(ctx: Any) -> None:
        for address in (
            (box, "nobody", "paid"),
            (box, "b", "payed"),
            ("inbocks", "b", "paid"),
            (box, "b", "paid", nan),
        ):
            with pytest.raises(FSMWorkflowError) as error:
                await ctx.emit(*address)
            told.append(type(error.value))

    nan = float("nan")
    flow = sender(work)
    async with Engine(store_url, workflows=[box, flow]) as engine:
        await engine.run(box, key="b")
        await engine.run(flow, key="s")
        assert told == [RunNotFound, UnknownEvent, UnknownWorkflow, CodecError]
        assert await engine.store.inbox(await engine.get(box, "b")) == (0, [])


async def test_an_event_for_a_run_that_has_ended_is_kept_there_as_dropped(store_url: str) -> None:
    box = inbox()

    async def work(ctx: Any) -> None:
        await ctx.emit(box, "b", "paid")
        await engine.send(box, "b", "never")

    flow = sender(work)
    async with Engine(store_url, workflows=[box, flow]) as engine:
        await engine.run(box, key="b")
        assert (await engine.run(flow, key="s")).status == "done"
        assert (await engine.get(box, "b")).status == "done"
        assert (await engine.event(box, "b", "sender/s/tell/0:emit:0")).status == "dropped"


async def test_a_run_may_emit_to_itself_and_takes_it_when_it_waits(store_url: str) -> None:
    flow = Workflow("own")

    @flow.step(initial=True, then="rest")
    async def work(ctx: Any) -> None:
        await ctx.emit("own", ctx.run.key, "go", {"from": "itself"})

    flow.wait("rest", on={"go": "last"})

    @flow.step(then="end")
    async def last(ctx: Any) -> None:
        ctx.data["event"] = ctx.event.payload

    flow.final("end")
    async with Engine(store_url, workflows=[flow], poll=60) as engine:
        await engine.run(flow, key="engine")
        assert (await settled(engine, flow, "engine")).data == {"event": {"from": "itself"}}
    machine = PersistentWorkflowStateMachine(store_url, flow, key="machine")
    assert (await machine.run_workflow()).data == {"event": {"from": "itself"}}


async def test_many_runs_emit_to_one_and_to_each_other_at_once(store_url: str) -> None:
    """Senders and receivers are in the same batches, and nothing is lost, doubled or waits for the other."""
    many = 20

    def add(data: Any, event: Any) -> None:
        data["n"] += 1

    count = Workflow("count")
    last = (field("n") == many - 1, To("end", update=add))
    count.wait("open", initial=True, on={"paid": [last, To("open", update=add, internal=True)]})
    count.final("end")
    flow = Workflow("flow")

    @flow.step(initial=True, then="once")
    async def work(ctx: Any) -> None:
        after = str((int(ctx.run.key) + 1) % many)
        await ctx.emit(flow, after, "round")
        await ctx.emit(flow, after, "round")
        await ctx.emit(count, "c", "paid")

    flow.wait("once", on={"round": "twice"})
    flow.wait("twice", on={"round": "end"})
    flow.final("end")
    async with Engine(store_url, workflows=[flow, count]) as engine:
        await engine.run(count, {"n": 0}, key="c")
        for number in range(many):  # all are there before one is driven, as each looks up the next
            fields = flow.check().codec.start({})
            await engine.store.create(begin(flow, str(number), fields, now=engine.store.now()))
        await engine.resume()
        assert (await settled(engine, count, "c")).data == {"n": many}
        for number in range(many):
            run = await settled(engine, flow, str(number))
            assert (run.status, taken(await engine.history(flow, run.key))) == ("done", ["$done", "round", "round"])


async def test_an_event_for_another_engine_is_found_by_its_poll(durable_url: str) -> None:
    box = inbox()

    async def work(ctx: Any) -> None:
        await ctx.emit(box, "b", "paid")

    flow = sender(work)
    async with (
        Engine(durable_url, workflows=[box], poll=0.02) as other,
        Engine(durable_url, workflows=[flow]) as engine,
    ):
        await other.run(box, key="b")
        await engine.run(flow, key="s")
        assert (await settled(other, box, "b")).status == "done"
        assert (await other.history(box, "b"))[-1].owner == other.worker.token


def family(step: Callable[..., Any], *, begins: str = "tell") -> tuple[Workflow, Workflow]:
    """A parent that counts what its children tell it, for as long as it waits for them."""
    child, parent = Workflow("child"), Workflow("parent")
    if begins == "asleep":
        child.wait("asleep", initial=True, on={"wake": "tell"})
    child.step("tell", initial=begins == "tell", then="end")(step)
    child.final("end")

    def add(data: Any, event: Any) -> None:
        data["heard"] = [*data["heard"], event.payload]

    hears = {"told": To("all", update=add, internal=True)}
    parent.each("all", child, over="items", concurrency=4, initial=True, on=hears, then="end")
    parent.final("end")
    return parent, child


async def test_what_children_emit_in_their_last_commit_reaches_the_parent_before_it_joins(store_url: str) -> None:
    """Many end in one batch, at one time: then the number of `$joined`, that of its count, is the lowest."""

    async def tell(ctx: Any) -> None:
        await ctx.emit("parent", ctx.run.key.split("/")[0], "told", ctx.data["item"])

    parent, child = family(tell)
    async with Engine(store_url, workflows=[parent, child]) as engine:
        runs = [engine.run(parent, {"items": list(range(6)), "heard": []}, key=str(n)) for n in range(30)]
        for run in await asyncio.gather(*runs):
            assert (run.state, sorted(run.data["heard"])) == ("end", list(range(6)))
            assert taken(await engine.history(parent, run.key)) == ["$begin", *["told"] * 6, "$joined"]


async def test_that_holds_where_another_process_has_a_clock_that_is_ahead(durable_url: str) -> None:
    async def tell(ctx: Any) -> None:
        await ctx.emit("parent", "p", "told", ctx.data["item"])

    parent, child = family(tell, begins="asleep")
    flows = [parent, child]
    async with Engine(durable_url, workflows=flows) as engine:
        await engine.run(parent, {"items": [0, 1], "heard": []}, key="p")
        await engine.pause(parent, "p")
    async with Engine(ahead(durable_url, 0.8), workflows=flows) as engine:
        await engine.send(child, "p/all/0/0", "wake")
        assert (await engine.result(child, "p/all/0/0")).status == "done"
    async with Engine(durable_url, workflows=flows) as engine:
        await engine.send(child, "p/all/0/1", "wake")
        assert (await engine.result(child, "p/all/0/1")).status == "done"
        told, last = (await engine.store.inbox(await engine.get(parent, "p")))[1][-2:]
        assert (told.name, told.payload, last.name, last.due) == ("told", 0, "$joined", told.due)
        await engine.unpause(parent, "p")
        run = await settled(engine, parent, "p")
        assert (run.status, run.data["heard"]) == ("done", [1, 0])


def ahead(url: str, seconds: float) -> Store:
    """A store whose clock is that of the machine, or the server, and so much more."""
    if url.startswith("sqlite"):
        return SQLiteStore(url.removeprefix("sqlite:///"), clock=lambda: time.time() + seconds)
    store = Ahead(url)
    store.ahead = seconds
    return store


class Ahead(PostgresStore):
    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_at_any_write_emits_once(store_url: str, when: Any) -> None:
    box = inbox(ends=False)

    async def work(ctx: Any) -> None:
        await ctx.emit(box, "b", "paid")

    for at in range(1, 10):
        flow, key = sender(work), f"{when}-{at}"
        inner = open_store(store_url) if at == 1 else inner  # noqa: F821 (the same one, which memory needs)
        await inner.open()
        await inner.reset()
        async with Engine(inner, workflows=[box]) as engine:
            await engine.run(box, key="b")
        crashing = CrashingStore(inner, at=at, when=when)
        try:
            async with Engine(crashing, workflows=[flow]) as engine:
                await engine.run(flow, key=key)
        except (Crash, asyncio.CancelledError):
            pass
        await crashing.bury_the_dead()
        async with Engine(inner, workflows=[box, flow]) as engine:
            await engine.run(flow, key=key)
            await engine.resume()
            async with asyncio.timeout(PATIENCE):
                while not (await engine.get(box, "b")).version:
                    await asyncio.sleep(0.005)
            assert taken(await engine.history(box, "b")) == ["paid"]
        if not crashing.crashed:
            assert at > 2
            break
    await inner.close()


async def test_emit_belongs_to_async_steps(store_url: str) -> None:
    box = inbox()

    def work(ctx: Any) -> None:
        ctx.emit(box, "b", "paid")

    flow = sender(work)
    async with Engine(store_url, workflows=[box, flow]) as engine:
        with pytest.raises(RunFailed, match="needs an async step"):
            await engine.run(flow, key="s")
