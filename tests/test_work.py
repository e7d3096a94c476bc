"""Many processes on one store: whatever is due is driven by one of them, so many runs at once, and let go of again."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from fsmworkflow import Engine, EngineClosed, Run, Workflow, open_store
from fsmworkflow.decide import begin
from fsmworkflow.line import Line
from fsmworkflow.store import Store
from tests.stopwatch import Stopwatch
from tests.waiting import PATIENCE, until


@pytest.fixture
async def store(store_url: str) -> Any:
    """An open store that all engines of a test share where it lives in memory."""
    store = open_store(store_url)
    await store.open()
    yield store
    await store.close()


def engine(store: Store, *workflows: Workflow, **more: Any) -> Engine:
    return Engine(store, workflows=workflows, poll=0.02, **more)


async def unowned(store: Store, workflow: Workflow, *keys: str) -> None:
    """Runs that nobody drives, as a process leaves them that has died, or a schedule makes them."""
    fields = workflow.check().codec.start({})
    made = [begin(workflow, key, fields, now=store.now()) for key in keys]
    await asyncio.gather(*map(store.create, made))


class Gauge:
    """Counts the bodies that run: how often each, and how many at once at the most."""

    def __init__(self) -> None:
        self.bodies: Counter[str] = Counter()
        self.now = self.most = 0

    async def body(self, ctx: Any, seconds: float = 0.003) -> None:
        self.bodies[f"{ctx.state} {ctx.run.key}"] += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(seconds)
        self.now -= 1


def errand(gauge: Gauge) -> Workflow:
    """go -> wait (for "back", or a short time) -> home -> over."""
    flow = Workflow("errand")

    @flow.step(initial=True, then="away")
    async def go(ctx: Any) -> None:
        await gauge.body(ctx)

    flow.wait("away", on={"back": "home", "wait": "nap"})
    flow.wait("nap", after={"0.05s": "home"})

    @flow.step(then="over")
    async def home(ctx: Any) -> None:
        await gauge.body(ctx)

    flow.final("over")
    return flow


def relay(gauge: Gauge, held: asyncio.Event | None = None) -> Workflow:
    """first -> second -> over. The first step takes until `held` is set, where it is given."""
    flow = Workflow("relay")

    @flow.step(initial=True, then="second")
    async def first(ctx: Any) -> None:
        await gauge.body(ctx)
        if held is not None:
            await held.wait()

    @flow.step(then="over")
    async def second(ctx: Any) -> None:
        await gauge.body(ctx)

    flow.final("over")
    return flow


async def statuses(engine: Engine, workflow: Workflow) -> Counter[str]:
    return Counter(run.status for run in await engine.list(workflow, limit=10_000))


async def all_over(engine: Engine, workflow: Workflow, many: int) -> bool:
    return await statuses(engine, workflow) == {"done": many}


async def test_what_becomes_due_is_driven_by_start_event_and_timer(store: Store) -> None:
    gauge = Gauge()
    flow = errand(gauge)
    async with engine(store, flow) as sender, engine(store, flow) as worker, worker.working(concurrency=3):
        await unowned(store, flow, "a", "b")

        async def away() -> bool:
            return [run.state for run in await sender.list(flow)] == ["away", "away"]

        await until(away)
        await sender.send(flow, "a", "back")
        await sender.send(flow, "b", "wait")
        await until(lambda: all_over(sender, flow, 2))
    assert gauge.bodies == {"go a": 1, "go b": 1, "home a": 1, "home b": 1}


async def test_what_rests_is_let_go_of_and_any_process_takes_it_up(store: Store) -> None:
    flow = errand(Gauge())
    async with engine(store, flow) as one:
        async with one.working():
            await unowned(store, flow, "a")

            async def rests() -> Run | None:
                run = await one.get(flow, "a")
                return run if (run.state, run.owner) == ("away", None) else None

            run = await until(rests)
        async with engine(store, flow) as two:
            assert (await two.send(flow, "a", "back")).status in ("accepted", "waiting")
            assert (await two.result(flow, "a")).state == "over"
        history = await one.history(flow, "a")
    assert run.due is None
    assert history[-1].owner != history[1].owner


async def test_no_more_are_driven_at_once_than_was_asked_for_and_two_loops_add_up(store: Store) -> None:
    gauge = Gauge()
    flow = relay(gauge)
    keys = [f"k{n}" for n in range(60)]
    async with engine(store, flow) as one:
        await unowned(store, flow, *keys[:30])
        async with one.working(concurrency=4):
            await until(lambda: all_over(one, flow, 30))
        assert gauge.most == 4
        await unowned(store, flow, *keys[30:])
        async with one.working(concurrency=4), one.working(concurrency=3):
            await until(lambda: all_over(one, flow, 60))
    assert gauge.most == 7
    assert gauge.bodies == Counter(f"{state} {key}" for state in ("first", "second") for key in keys)


async def test_two_engines_share_what_is_due_and_run_every_body_once(store: Store) -> None:
    gauge = Gauge()
    flow = relay(gauge)
    keys = [f"k{n}" for n in range(100)]
    async with engine(store, flow) as one, engine(store, flow) as two:
        await unowned(store, flow, *keys)
        async with one.working(concurrency=5), two.working(concurrency=5):
            await until(lambda: all_over(one, flow, 100))
        owners = {(await one.history(flow, key))[-1].owner for key in keys}
    assert gauge.bodies == Counter(f"{state} {key}" for state in ("first", "second") for key in keys)
    assert len(owners) == 2


async def test_the_oldest_are_driven_first(store: Store) -> None:
    order: list[str] = []
    flow = Workflow("queue")

    @flow.step(initial=True, then="over")
    async def take(ctx: Any) -> None:
        order.append(ctx.run.key)

    flow.final("over")
    fields = flow.check().codec.start({})
    async with engine(store, flow) as one:
        now = store.now()
        for n in (3, 1, 4, 0, 2):
            await store.create(begin(flow, f"k{n}", fields, now=now - 10 + n))
        async with one.working(concurrency=1):
            await until(lambda: all_over(one, flow, 5))
    assert order == ["k0", "k1", "k2", "k3", "k4"]


async def test_leaving_drains_the_step_ends_and_the_run_is_given_back_before_the_next(store: Store) -> None:
    gauge, held = Gauge(), asyncio.Event()
    flow = relay(gauge, held)
    async with engine(store, flow) as one:
        work = asyncio.create_task(one.work(concurrency=2))
        await unowned(store, flow, "a", "b", "c")

        async def two_begun() -> bool:
            return gauge.now == 0 and sum(gauge.bodies.values()) == 2

        await until(two_begun)
        work.cancel()
        asyncio.get_running_loop().call_later(0.05, held.set)
        with pytest.raises(asyncio.CancelledError):
            await work
        runs = await one.list(flow)
        assert Counter((run.state, run.owner) for run in runs) == {("second", None): 2, ("first", None): 1}
        assert all(run.due is not None for run in runs)
        async with one.working():
            await until(lambda: all_over(one, flow, 3))
    assert gauge.bodies == Counter(f"{state} {key}" for state in ("first", "second") for key in "abc")


async def test_a_step_that_outlasts_the_grace_is_cancelled_and_its_run_given_back(store: Store) -> None:
    flow = relay(Gauge(), asyncio.Event())
    async with engine(store, flow, grace=0.05) as one:
        await unowned(store, flow, "a")
        async with one.working():

            async def owned() -> bool:
                return (await one.get(flow, "a")).owner is not None

            await until(owned)
        run = await one.get(flow, "a")
    assert (run.state, run.version, run.owner) == ("first", 0, None)


async def test_who_waits_for_a_run_whose_driver_was_sent_away_is_not_cancelled_and_sees_its_end(store: Store) -> None:
    gauge, stuck = Gauge(), asyncio.Event()
    flow = relay(gauge, stuck)
    async with engine(store, flow, grace=0.05) as one:
        await unowned(store, flow, "a")
        async with one.working():

            async def begun() -> bool:
                return gauge.bodies["first a"] == 1

            await until(begun)
            waiting = asyncio.create_task(one.run(flow, key="a"))
            await asyncio.sleep(0)
        stuck.set()
        assert (await waiting).status == "done"
    assert gauge.bodies == {"first a": 2, "second a": 1}


async def test_work_ends_when_the_engine_closes_at_once_where_nothing_is_driven(
    store: Store, stopwatch: Stopwatch
) -> None:
    one = Engine(store, workflows=[relay(Gauge())], poll=3_600)
    await one.__aenter__()
    work = asyncio.create_task(one.work(concurrency=50))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await one.close()
    await asyncio.wait_for(work, PATIENCE)
    assert stopwatch.since(began) < 1
    with pytest.raises(EngineClosed):
        await one.work()


async def test_closing_gives_back_what_was_claimed_and_waits_in_line(store: Store) -> None:
    gauge, held = Gauge(), asyncio.Event()
    flow = relay(gauge, held)
    async with engine(store, flow) as one:
        await unowned(store, flow, *(f"k{n}" for n in range(30)))
        resuming = asyncio.create_task(one.resume(concurrency=2))

        async def begun() -> bool:
            return sum(gauge.bodies.values()) == 2

        await until(begun)
        asyncio.get_running_loop().call_soon(held.set)
    await resuming
    async with engine(store, flow) as two:
        owners = Counter(run.owner for run in await two.list(flow))
        assert owners == {None: 30}


async def test_run_and_work_of_one_engine_drive_a_run_once_and_run_sees_its_end(store: Store) -> None:
    gauge = Gauge()
    flow = relay(gauge)
    keys = [f"k{n}" for n in range(20)]
    async with engine(store, flow) as one:
        await unowned(store, flow, *keys)
        async with one.working(concurrency=3):
            runs = await asyncio.gather(*(one.run(flow, key=key) for key in keys))
    assert {run.status for run in runs} == {"done"}
    assert gauge.bodies == Counter(f"{state} {key}" for state in ("first", "second") for key in keys)


async def test_a_run_whose_drive_fails_is_set_aside_and_stops_no_other(store: Store) -> None:
    gauge = Gauge()
    flow, other = relay(gauge), Workflow("relay")
    other.step("gone", initial=True, then="over")(lambda ctx: None)
    other.final("over")
    async with engine(store, flow) as one:
        await unowned(store, other, "odd")
        await unowned(store, flow, "even")
        claims = 0
        claim = store.claim

        async def counted(*args: Any) -> Any:
            nonlocal claims
            claims += bool(found := await claim(*args))
            return found

        store.claim = counted  # type: ignore[method-assign]
        async with one.working():

            async def done() -> bool:
                return (await one.get(flow, "even")).status == "done"

            await until(done)
            await asyncio.sleep(0.1)  # for several looks
        assert (await one.get(flow, "odd")).status == "running"
        assert claims <= 2


async def test_recovery_goes_on_while_an_engine_works(store: Store) -> None:
    gauge = Gauge()
    flow = relay(gauge)
    async with engine(store, flow) as one, one.working():
        two = engine(store, flow, lease=0.2)
        await two.__aenter__()
        two.worker._lease._stopped.set()  # it stands still, and renews nothing
        if two.worker._lease._task is not None:
            two.worker._lease._task.cancel()
        fields = flow.check().codec.start({})
        left = begin(flow, "left", fields, now=store.now())
        await two.worker.create(left)
        await until(lambda: all_over(one, flow, 1))
        await two.close()
    assert gauge.bodies == {"first left": 1, "second left": 1}


# -- what it costs ----------------------------------------------------------------------------------------------------


async def test_2000_due_runs_are_claimed_in_few_statements(store: Store) -> None:
    flow = Workflow("quick")
    flow.step("only", initial=True, then="over")(lambda ctx: None)
    flow.final("over")
    async with engine(store, flow) as one:
        await unowned(store, flow, *(f"k{n}" for n in range(2_000)))
        claims, claim = [], store.claim

        async def counted(*args: Any) -> Any:
            found = await claim(*args)
            claims.append(len(found))
            return found

        store.claim = counted  # type: ignore[method-assign]
        async with one.working(concurrency=100):
            await until(lambda: all_over(one, flow, 2_000))
    taken = [many for many in claims if many]
    assert sum(taken) == 2_000
    assert len(taken) <= 20, taken


async def test_an_idle_engine_only_reads_and_seldom(sqlite_url: str) -> None:
    store: Any = open_store(sqlite_url)
    flow = relay(Gauge())
    async with Engine(store, workflows=[flow], lease=60, poll=0.1) as one, one.working(concurrency=50):
        seen: list[str] = []
        await store._write.set_trace_callback(seen.append)
        await one.list()  # opens the connection that reads
        read: list[str] = []
        await store._read.set_trace_callback(read.append)
        began = time.monotonic()
        await until(lambda: len(read) >= 20)
        took = time.monotonic() - began
        await store._write.set_trace_callback(None)
        await store._read.set_trace_callback(None)
    assert seen == []
    assert took > 0.55, read  # three statements and a half each tenth of a second


def test_an_idle_look_waits_for_no_lock(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsmworkflow.store.sqlite.BUSY_SECONDS", 3_600.0)

    async def look() -> list[Run]:
        store = open_store(sqlite_url)
        await store.open()
        other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            return await asyncio.wait_for(store.claim("me", {"w": 1}, 10, float("inf")), PATIENCE)
        finally:
            other.close()
            await store.close()

    assert asyncio.run(look()) == []


def test_a_few_runs_that_end_together_are_no_pace_at_which_to_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one process claims in one go what all others could do meanwhile."""
    now = 100.0
    monkeypatch.setattr("fsmworkflow.line.time", SimpleNamespace(monotonic=lambda: now))

    async def nothing(_: Any) -> None:
        raise AssertionError("nobody drives here")

    line: Line[int] = Line(nothing, nothing)
    now, line.done = 100.01, 15
    assert line.wanted() == 15
    now, line.done = 100.4, 81
    assert line.wanted() == 40  # what is done in 0.2 s
    now, line.done = 100.5, 3
    assert line.wanted() == 3
