"""`engine.explain` says in words why a run is where it is, and what it waits for."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fsmworkflow import Engine, RunFailed, Workflow, field, payload


async def nothing(ctx: Any) -> None:
    pass


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
            "A timer of pay is due THEN, in 172,800 s.",
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
            "Last, the undoing of a step left it in refused, at THEN.",
            "It has ended.",
        ]
