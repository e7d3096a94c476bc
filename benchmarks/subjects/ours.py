"""fsmworkflow on both stores: a counter that loops under a condition, and a chain of states for many runs at once."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from benchmarks.jobs import Size, records
from benchmarks.meter import Meter
from fsmworkflow import Engine, Event, Run, To, Workflow, WorkflowContext, field, payload
from fsmworkflow.store.sqlite import SQLiteStore


def looping(steps: int, meter: Meter | None = None) -> Workflow:
    """One state with a step that counts to `steps`, under one condition; `meter` begins when the first step does."""
    workflow = Workflow("looping")

    @workflow.step(initial=True, then=[(field("n") < steps, "count"), "end"])
    async def count(ctx: WorkflowContext[Any]) -> None:
        if meter and ctx.data["n"] == 0:
            meter.begin()
        ctx.data["n"] += 1

    workflow.final("end")
    return workflow


def chain(steps: int) -> Workflow:
    """`steps` states in a row, each with a step that changes one field."""
    workflow = Workflow("chain")

    async def count(ctx: WorkflowContext[Any]) -> None:
        ctx.data["n"] += 1

    for number in range(1, steps + 1):
        then = f"s{number + 1}" if number < steps else "end"
        workflow.step(f"s{number}", initial=number == 1, then=then)(count)
    workflow.final("end")
    return workflow


async def alone(meter: Meter, url: str, size: Size) -> None:
    """From the call of `run` on; the start of the run is a commit of its own that is not counted as a step."""
    workflow = looping(size.steps)
    async with Engine(url, workflows=[workflow]) as engine:
        meter.begin()
        run = await engine.run(workflow, {"n": 0}, key="only")
        meter.end(size.steps)
        assert (run.status, run.data["n"]) == ("done", size.steps), run


async def bulk(meter: Meter, url: str, size: Size) -> None:
    """All runs by `gather` of `run`, their starts included in the time."""
    workflow = chain(size.steps)
    async with Engine(url, workflows=[workflow]) as engine:
        meter.begin()
        runs = await asyncio.gather(*(engine.run(workflow, {"n": 0}, key=f"r{n}") for n in range(size.runs)))
        meter.end(size.runs * size.steps)
        assert all((run.status, run.data["n"]) == ("done", size.steps) for run in runs)


async def started(meter: Meter, url: str, size: Size) -> None:
    """All runs by `start`, then `resume` until all have ended."""
    workflow = chain(size.steps)
    async with Engine(url, workflows=[workflow]) as engine:
        meter.begin()
        await asyncio.gather(*(engine.start(workflow, {"n": 0}, key=f"r{n}") for n in range(size.runs)))
        await engine.resume(concurrency=size.runs)
        runs = await asyncio.gather(*(engine.result(workflow, f"r{n}") for n in range(size.runs)))
        meter.end(size.runs * size.steps)
        assert all((run.status, run.data["n"]) == ("done", size.steps) for run in runs)


def held(go_on: bool, began: list[float]) -> Workflow:
    """Two states; the second is never left by a process that is to die in it, and else tells when it is first begun."""
    workflow = Workflow("held")

    @workflow.step(initial=True, then="last")
    async def first(ctx: WorkflowContext[Any]) -> None:
        ctx.data["n"] += 1

    @workflow.step(then="end")
    async def last(ctx: WorkflowContext[Any]) -> None:
        began.append(time.perf_counter())
        if not go_on:
            await asyncio.Event().wait()
        ctx.data["n"] += 1

    workflow.final("end")
    return workflow


async def unfinished(meter: Meter, url: str, size: Size) -> None:
    """Make the runs that `resume` finds: this process ends at once when all of them are in their last step."""
    began: list[float] = []
    workflow = held(False, began)
    async with Engine(url, workflows=[workflow]) as engine:
        for first in range(0, size.runs, 1_000):
            chunk = range(first, min(first + 1_000, size.runs))
            await asyncio.gather(*(engine.start(workflow, {"n": 0}, key=f"r{n}") for n in chunk))
        while len(began) < size.runs:
            await asyncio.sleep(0.05)
        os._exit(0)


async def resume(meter: Meter, url: str, size: Size) -> None:
    """Loaded: the time of all claims, which load what they claim. Finished: from the call of `resume` to its return."""
    began: list[float] = []
    workflow = held(True, began)
    async with Engine(url, workflows=[workflow]) as engine:
        loading = timed_claims(engine)
        meter.begin()
        called = time.perf_counter()
        await engine.resume()
        finished = time.perf_counter()
        meter.end(size.runs)
        assert len(began) == size.runs, f"{len(began)} of {size.runs} runs were resumed"
        meter.note("loaded", sum(loading))
        meter.note("finished", finished - called)


def timed_claims(engine: Engine) -> list[float]:
    """Seconds of each claim that the engine makes of its store from now on."""
    spent: list[float] = []
    claim = engine.store.claim

    async def timed(*args: Any, **options: Any) -> list[Run]:
        began = time.perf_counter()
        try:
            return await claim(*args, **options)
        finally:
            spent.append(time.perf_counter() - began)

    engine.store.claim = timed  # type: ignore[method-assign]
    return spent


async def large(meter: Meter, url: str, size: Size) -> None:
    """From the first step's first line on: the start, which encodes the whole once, is not measured."""
    workflow = looping(size.steps, meter)
    async with Engine(url, workflows=[workflow]) as engine:
        run = await engine.run(workflow, {"n": 0, "records": records()}, key="large")
        meter.end(size.steps)
        assert run.data["n"] == size.steps


async def touched(meter: Meter, url: str, size: Size) -> None:
    """As `large`, but each step changes one of the records."""
    workflow = Workflow("touched")

    @workflow.step(initial=True, then=[(field("n") < size.steps, "change"), "end"])
    async def change(ctx: WorkflowContext[Any]) -> None:
        if ctx.data["n"] == 0:
            meter.begin()
        ctx.data["n"] += 1
        ctx.data["records"][ctx.data["n"]]["score"] = ctx.data["n"]

    workflow.final("end")
    async with Engine(url, workflows=[workflow]) as engine:
        run = await engine.run(workflow, {"n": 0, "records": records()}, key="touched")
        meter.end(size.steps)
        assert run.data["records"][size.steps]["score"] == size.steps


def take(data: Any, event: Event) -> None:
    """What an event brings is added."""
    data["n"] += event.payload["qty"]


def answering() -> Workflow:
    """A state that takes events under one condition, and stays."""
    workflow = Workflow("answering")
    fill = [(payload("qty") > 0, To("open", update=take, internal=True))]
    workflow.wait("open", initial=True, on={"fill": fill, "close": "closed"})
    workflow.final("closed")
    return workflow


async def events(meter: Meter, url: str, size: Size) -> None:
    """Of a workflow that is declared in Python."""
    await answered(meter, url, size, answering())


async def answered(meter: Meter, url: str, size: Size, workflow: Workflow) -> None:
    """The sender does not wait for the moves; that all were made is looked at when the time is taken."""
    async with Engine(url, workflows=[workflow]) as engine:
        await engine.run(workflow, {"n": 0}, key="only")
        meter.begin()
        for _ in range(size.steps):
            await engine.send(workflow, "only", "fill", {"qty": 1})
        meter.end(size.steps)
        await engine.send(workflow, "only", "close")
        run = await engine.result(workflow, "only")
        assert (run.status, run.data["n"]) == ("done", size.steps), run


async def timers(meter: Meter, url: str, size: Size) -> None:
    """All runs wait for the same second of a clock that stands still until it is turned."""
    workflow = Workflow("waiting")
    workflow.wait("asleep", initial=True, after={"1h": "awake"})
    workflow.final("awake")
    turned = [0.0]
    began = time.time()
    store = SQLiteStore(url.removeprefix("sqlite:///"), clock=lambda: began + turned[0])
    async with Engine(store, workflows=[workflow], lease=86_400.0) as engine:
        await asyncio.gather(*(engine.run(workflow, {}, key=f"r{n}") for n in range(size.runs)))
        meter.begin()
        turned[0] = 3_600.0
        struck = time.perf_counter()
        while await engine.list(workflow, status="waiting", limit=1):
            await asyncio.sleep(0.02)
        meter.end(size.runs)
        meter.note("fired", time.perf_counter() - struck)


async def cold(meter: Meter, url: str, size: Size) -> None:
    """Define, open, start, and be in the second step: the first is then durable."""
    workflow = Workflow("cold")

    @workflow.step(initial=True, then="second")
    async def first(ctx: WorkflowContext[Any]) -> None:
        ctx.data["n"] = size.steps

    @workflow.step(then="end")
    async def second(ctx: WorkflowContext[Any]) -> None:
        meter.durable()

    workflow.final("end")
    async with Engine(url, workflows=[workflow]) as engine:
        await engine.run(workflow, {}, key="cold")
