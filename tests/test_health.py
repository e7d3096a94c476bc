"""Health: live and ready mean something, and each can be lost alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import Engine, EngineClosed, StoreUnavailable, Workflow, open_store
from fsmworkflow.records import Owner
from fsmworkflow.service import serve
from fsmworkflow.testing import Clock
from tests.postgres_server import Server
from tests.stopwatch import Stopwatch
from tests.test_store import made
from tests.waiting import PATIENCE, until


def resting(name: str = "w") -> Workflow:
    flow = Workflow(name)
    flow.wait("rest", initial=True, on={"go": "end"})
    flow.final("end")
    return flow


async def test_an_engine_that_can_work_is_ok_live_and_ready(
    store_url: str, stopwatch: Stopwatch, monkeypatch: Any
) -> None:
    monkeypatch.setattr("fsmworkflow.health.LAG", 600.0)  # where the machine stands still, the loop does
    began = time.monotonic()
    async with Engine(store_url, workflows=[resting()], lease=10) as engine:
        before = engine.store.now()
        health = await engine.health()
        ended = time.monotonic()
        assert (health.ok, health.live, health.ready, health.writable, health.stopping) == (
            True,
            True,
            True,
            True,
            False,
        )
        assert health.problems == ()
        assert 0 < health.lease <= 10
        assert health.lag < 1 + stopwatch.stood(began, ended)
        assert (health.overdue, health.driving) == (None, 0)
        assert before - 1 <= health.at <= engine.store.now() + 1


async def test_a_health_that_is_asked_writes_to_the_store(store_url: str) -> None:
    async with Engine(store_url, workflows=[resting()], lease=3600) as engine:
        (before,) = await engine.store.owners()
        await asyncio.sleep(0.002)
        await engine.health()
        (after,) = await engine.store.owners()
        assert after.lease > before.lease


async def test_a_closed_engine_has_no_health(store_url: str) -> None:
    engine = Engine(store_url)
    with pytest.raises(EngineClosed):
        await engine.health()
    async with engine:
        pass
    with pytest.raises(EngineClosed):
        await engine.health()


async def test_runs_that_are_driven_are_counted_and_those_that_rest_are_not() -> None:
    gate = asyncio.Event()
    flow = resting()

    @flow.step(then="end")
    async def work(ctx: Any) -> None:
        await gate.wait()

    flow.transition("work", "rest", "work")
    async with Engine("memory://", workflows=[flow]) as engine:
        await engine.run(flow, key="a")
        assert (await engine.health()).driving == 0
        await engine.send(flow, "a", "work")
        await asyncio.sleep(0)
        assert (await engine.health()).driving == 1
        gate.set()


async def test_the_oldest_due_run_that_nobody_drives_is_told_by_its_age(store_url: str) -> None:
    async with Engine(store_url, workflows=[resting()], lease=60, poll=0.1) as engine:
        store = engine.store
        now = store.now()
        await made(store, "later", due=now + 100, owner=None)
        await made(store, "none", due=None, owner=None)
        await made(store, "held", due=now - 90, owner=engine.worker.token)
        await made(store, "elsewhere", workflow="v", due=now - 80, owner=None)
        assert (await engine.health()).overdue is None
        await made(store, "young", due=now - 3, owner=None)
        health = await engine.health()
        assert health.ok
        assert health.overdue is not None
        assert 2.5 < health.overdue < 3.5 + store.now() - now
        await made(store, "old", due=now - 600, owner="a dead one")
        health = await engine.health()
        assert health.overdue is not None
        assert 599 < health.overdue < 601 + store.now() - now
        assert (health.ok, health.live, health.ready) == (False, True, True)
        assert "nobody drives it" in health.problems[0]


async def test_a_run_whose_owner_lives_is_not_overdue(store_url: str) -> None:
    async with Engine(store_url, workflows=[resting()]) as engine:
        now = engine.store.now()
        await engine.store.enrol(Owner(token="other", machine="m", process="1", lease=now + 60, started=now))
        await made(engine.store, "a", due=now - 90, owner="other")
        assert (await engine.health()).overdue is None
        await engine.store.enrol(Owner(token="other", machine="m", process="1", lease=now - 60, started=now))
        assert (await engine.health()).overdue is not None


async def test_a_step_that_blocks_the_loop_makes_the_process_not_live_until_it_is_over(monkeypatch: Any) -> None:
    monkeypatch.setattr("fsmworkflow.health.LAG", 0.2)
    async with Engine("memory://", workflows=[resting()], poll=0.02) as engine:
        await asyncio.sleep(0.05)
        time.sleep(0.4)  # what an unlucky step does
        await asyncio.sleep(0.01)
        health = await engine.health()
        assert (health.ok, health.live, health.ready) == (False, False, True)
        assert "a step blocks it" in health.problems[0]
        end = time.monotonic() + PATIENCE
        while not (await engine.health()).ok:
            assert time.monotonic() < end
            await asyncio.sleep(0.02)


async def test_a_store_that_takes_no_writes_makes_an_engine_not_ready_but_live(monkeypatch: Any) -> None:
    async with Engine("memory://", workflows=[resting()]) as engine:

        async def refused(*_: Any) -> bool:
            raise StoreUnavailable("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(engine.store, "renew", refused)
            health = await engine.health()
        assert (health.ok, health.live, health.ready, health.writable) == (False, True, False, False)
        assert health.problems == ("the store takes no writes: the disk is full",)
        assert (await engine.health()).ok


async def test_a_server_that_is_away_is_told_within_the_time_and_its_return_too(
    private_postgres: Server, stopwatch: Stopwatch
) -> None:
    async with Engine(private_postgres.url, workflows=[resting()]) as engine:
        private_postgres.stop()
        began = time.monotonic()
        health = await engine.health(within=0.3)
        assert stopwatch.since(began) < 3
        assert (health.live, health.ready) == (True, False)
        assert health.problems == ("the store takes no writes: no answer within 0.3 s",)
        private_postgres.start()
        end = time.monotonic() + PATIENCE
        while not (await engine.health()).ready:
            assert time.monotonic() < end


async def test_a_lease_that_has_ended_makes_an_engine_not_ready(monkeypatch: Any) -> None:
    async with Engine("memory://", workflows=[resting()], lease=0.2) as engine:
        with monkeypatch.context() as patch:
            patch.setattr("fsmworkflow.lease.time.monotonic", lambda: time.perf_counter() + 1e9)
            health = await engine.health()
        assert (health.live, health.ready, health.writable) == (True, False, True)
        assert "the lease ended" in health.problems[0]


async def test_an_engine_that_is_stopping_is_not_ready() -> None:
    async with Engine("memory://", workflows=[resting()]) as engine:
        engine.worker.stopping = True
        health = await engine.health()
        assert (health.live, health.ready, health.stopping) == (True, False, True)


async def test_overdue_goes_by_the_clock_of_the_store() -> None:
    clock = Clock()
    store = open_store("memory://", clock=clock)
    async with Engine(store, workflows=[resting()], lease=9e9) as engine:
        await made(store, "a", due=clock() + 60, owner=None)
        assert (await engine.health()).overdue is None
        clock.turn("5m")
        assert (await engine.health()).overdue == 240


async def test_of_an_engine_that_is_not_open_yet_no_health_is_written(tmp_path: Path) -> None:
    """Its lease, which has not begun, would be taken for one that ended when the machine was started."""
    engine, file = Engine("memory://", workflows=[resting()]), tmp_path / "health.json"
    enrol, reached, held = engine.store.enrol, asyncio.Event(), asyncio.Event()

    async def slow(owner: Any) -> None:
        reached.set()
        await held.wait()
        await enrol(owner)

    engine.store.enrol = slow  # type: ignore[method-assign]
    serving = asyncio.create_task(serve(engine, 1, str(file), lambda *_: None))
    await reached.wait()
    await asyncio.sleep(0.2)  # in which it would have been written
    assert not file.exists()
    held.set()
    assert json.loads(await until(lambda: file.exists() and file.read_text()))["ready"] is True
    os.kill(os.getpid(), signal.SIGTERM)
    await serving
    assert not file.exists()
