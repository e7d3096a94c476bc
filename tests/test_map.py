"""`ctx.map`: one remembered call for each item, so many at a time, on every store and over crashes."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from fsmworkflow import Engine, Retry, RunFailed, Workflow, open_store
from fsmworkflow.testing import Crash, CrashingStore

paid: Counter[Any] = Counter()
now: list[int] = [0, 0]  # how many are on, and the most that were
refused: set[Any] = set()


@pytest.fixture(autouse=True)
def nothing_paid() -> None:
    paid.clear()
    refused.clear()
    now[:] = [0, 0]


async def ask(item: Any) -> str:
    paid[item] += 1
    now[0] += 1
    now[1] = max(now)
    try:
        for _ in range(3):
            await asyncio.sleep(0)
        if item in refused:
            raise OSError(f"no {item}")
        return f"answer to {item}"
    finally:
        now[0] -= 1


def sync_ask(item: Any) -> str:
    assert threading.current_thread() is not threading.main_thread()
    return f"answer to {item}"


async def cancels_itself(item: Any) -> None:
    raise asyncio.CancelledError("of its own making")


def one_step(step: Callable[..., Any], retry: Retry | None = None) -> Workflow:
    flow = Workflow("mapping")
    flow.step("work", initial=True, then="end", retry=retry)(step)
    flow.final("end")
    return flow


async def ran(url: Any, flow: Workflow, data: Any = None) -> Any:
    async with Engine(url, workflows=[flow]) as engine:
        return await engine.run(flow, data, key="k")


async def test_results_come_in_the_order_of_the_items_and_so_many_run_at_once(store_url: str) -> None:
    async def step(ctx: Any) -> None:
        ctx.data["out"] = await ctx.map(ask, range(20), concurrency=4)
        ctx.data["none"] = await ctx.map(ask, [])
        ctx.data["threads"] = await ctx.map(sync_ask, "ab")

    run = await ran(store_url, one_step(step))
    assert run.data["out"] == [f"answer to {n}" for n in range(20)]
    assert (run.data["none"], run.data["threads"]) == ([], ["answer to a", "answer to b"])
    assert now == [0, 4]


async def test_the_first_error_cancels_the_others_and_what_was_returned_is_remembered(store_url: str) -> None:
    refused.add(4)

    async def step(ctx: Any) -> None:
        if ctx.attempt == 2:
            assert now[0] == 0, "those that were on have been cancelled"
            refused.clear()
        ctx.data["out"] = await ctx.map(ask, range(12), concurrency=3)

    run = await ran(store_url, one_step(step, Retry(attempts=2, first_delay=0, on=(OSError,))))
    assert run.data["out"] == [f"answer to {n}" for n in range(12)]
    assert paid[4] == 2
    assert [paid[n] for n in range(3)] == [1, 1, 1]
    assert max(paid.values()) == 2


async def test_the_same_item_several_times_is_several_calls(store_url: str) -> None:
    async def step(ctx: Any) -> None:
        first = ctx.map(ask, ["why", "why"])
        ctx.data["out"] = [*await first, await ctx.call(ask, "why")]
        if ctx.attempt == 1:
            raise OSError("once")

    await ran(store_url, one_step(step, Retry(attempts=2, first_delay=0)))
    assert paid == {"why": 3}


async def test_after_a_crash_no_finished_call_is_made_again() -> None:
    async def step(ctx: Any) -> None:
        ctx.data["out"] = await ctx.map(ask, range(6), concurrency=2)

    for at in range(2, 8):
        store = open_store("memory://")
        await store.open()
        store.close = _nothing  # type: ignore[method-assign]
        paid.clear()
        crashing = CrashingStore(store, at=at, when="after")
        with pytest.raises(Crash):
            await ran(crashing, one_step(step))
        await crashing.bury_the_dead()
        run = await ran(store, one_step(step))
        assert run.data["out"] == [f"answer to {n}" for n in range(6)]
        assert sum(paid.values()) <= 6 + 1, "of the two that were on one was remembered"


async def _nothing() -> None:
    pass


async def test_a_step_may_catch_the_error_and_go_on(store_url: str) -> None:
    refused.add(1)

    async def step(ctx: Any) -> None:
        try:
            await ctx.map(ask, range(10), concurrency=1)
        except OSError as error:
            ctx.data["error"] = str(error)

    run = await ran(store_url, one_step(step))
    assert run.data["error"] == "no 1"
    assert paid == {0: 1, 1: 1}, "what was not begun is not missed"


async def test_a_function_that_cancels_itself_fails_the_step_and_is_not_swallowed(store_url: str) -> None:
    async def step(ctx: Any) -> None:
        ctx.data["out"] = await ctx.map(cancels_itself, [1, 2])

    with pytest.raises(RunFailed) as failed:
        await ran(store_url, one_step(step))
    assert failed.value.run.error.type == "CancelledError"


async def test_a_cancelled_step_stops_all_calls(store_url: str) -> None:
    async def step(ctx: Any) -> None:
        await ctx.map(hangs, range(5), concurrency=5)

    flow = one_step(step)
    async with Engine(store_url, workflows=[flow]) as engine:
        await engine.start(flow, key="k")
        while now[0] < 5:
            await asyncio.sleep(0.001)
        await engine.cancel(flow, "k")
        assert (await engine.result(flow, "k")).status == "cancelled"
        assert now[0] == 0


async def hangs(item: Any) -> None:
    now[0] += 1
    try:
        await asyncio.Event().wait()
    finally:
        now[0] -= 1


async def test_what_cannot_be_remembered_is_refused_at_once() -> None:
    async def no_name(ctx: Any) -> None:
        await ctx.map(lambda item: item, [1])

    async def no_text(ctx: Any) -> None:
        await ctx.map(ask, [object()])

    async def no_items(ctx: Any) -> None:
        await ctx.map(ask, 3)

    async def none_at_once(ctx: Any) -> None:
        await ctx.map(ask, [1], concurrency=0)

    async def never_awaited(ctx: Any) -> None:
        ctx.map(ask, [1, 2]).close()

    for step, kind in (
        (no_name, "TypeError"),
        (no_text, "CodecError"),
        (no_items, "TypeError"),
        (none_at_once, "ValueError"),
    ):
        with pytest.raises(RunFailed) as failed:
            await ran("memory://", one_step(step))
        assert failed.value.run.error.type == kind
    with pytest.raises(RunFailed, match=r"state 'work' of .* has not awaited what it asked for \(ask, ask\)"):
        await ran("memory://", one_step(never_awaited))
    assert not paid
