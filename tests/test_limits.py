"""`Workflow(concurrency=)`: no more runs of it are driven at once than that, over all processes."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fsmworkflow import DefinitionError, Engine, PersistentWorkflowStateMachine, Workflow, open_store
from fsmworkflow.decide import begin
from fsmworkflow.errors import RunOver
from fsmworkflow.records import Owner, replace
from fsmworkflow.store import Store
from fsmworkflow.store.sql import queries
from tests.waiting import until


@pytest.fixture
async def store(store_url: str) -> Any:
    store = open_store(store_url)
    await store.open()
    yield store
    await store.close()


class Gauge:
    """How many bodies run now, and did at the most. The first ones wait until so many are `together`."""

    def __init__(self, together: int = 1) -> None:
        self.now = self.most = 0
        self.together = together
        self.bodies: Counter[str] = Counter()

    async def body(self, ctx: Any) -> None:
        self.bodies[ctx.run.key] += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await until(lambda: self.most >= self.together)
        await asyncio.sleep(0.01)
        self.now -= 1


def scarce(gauge: Gauge, limit: int | None = 2, name: str = "scarce") -> Workflow:
    flow = Workflow(name, concurrency=limit)
    flow.step("use", initial=True, then="over")(gauge.body)
    flow.final("over")
    return flow


def asks(gauge: Gauge) -> Workflow:
    """Rests at once, for "go" or a short time, and then uses what is scarce."""
    flow = Workflow("asks", concurrency=2)
    flow.wait("asked", initial=True, on={"go": "use"}, after={"0.1s": "use"})
    flow.step("use", then="over")(gauge.body)
    flow.final("over")
    return flow


async def unowned(store: Store, flow: Workflow, *keys: str) -> None:
    fields = flow.check().codec.start({})
    await asyncio.gather(*(store.create(begin(flow, key, fields, now=store.now())) for key in keys))


def done(engine: Engine, flow: Workflow, many: int) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return len(await engine.list(flow, status="done", limit=1_000)) == many

    return look


async def test_two_engines_that_work_never_drive_more_together_than_the_limit(store_url: str, store: Store) -> None:
    gauge = Gauge(together=2)
    flow = scarce(gauge)
    other: Any = store if store_url.startswith("memory") else open_store(store_url)
    async with Engine(store, workflows=[flow], poll=0.02) as one, Engine(other, workflows=[flow], poll=0.02) as two:
        await unowned(store, flow, *(f"k{n}" for n in range(30)))
        async with one.working(concurrency=20), two.working(concurrency=20):
            await until(done(one, flow, 30))
    assert gauge.most == 2
    assert set(gauge.bodies.values()) == {1}


async def test_a_place_that_is_free_again_is_taken_at_once_and_not_at_the_next_look(store: Store) -> None:
    gauge = Gauge(together=2)
    flow = scarce(gauge)
    async with Engine(store, workflows=[flow], poll=3600) as engine:
        await unowned(store, flow, *(f"k{n}" for n in range(12)))
        async with engine.working(concurrency=5):
            await until(done(engine, flow, 12))
    assert gauge.most == 2
    assert set(gauge.bodies.values()) == {1}


async def test_a_run_that_waits_in_a_line_has_its_place_for_whoever_asks_that_engine(
    store: Store,
) -> None:
    gauge = Gauge(together=2)
    flow = scarce(gauge)
    async with Engine(store, workflows=[flow]) as engine, engine.working(concurrency=20):
        runs = await asyncio.gather(*(engine.run(flow, key=f"k{n}") for n in range(12)))
    assert {run.status for run in runs} == {"done"}
    assert gauge.most == 2
    assert set(gauge.bodies.values()) == {1}


@pytest.mark.parametrize("by", ["run", "machine"])
async def test_what_is_started_by_hand_waits_for_its_place(store: Store, by: str) -> None:
    gauge = Gauge(together=2)
    flow = scarce(gauge)
    async with Engine(store, workflows=[flow]) as engine:
        if by == "run":
            await asyncio.gather(*(engine.run(flow, key=f"k{n}") for n in range(12)))
        else:
            machines = [PersistentWorkflowStateMachine(store, flow, key=f"k{n}") for n in range(6)]
            machines += [PersistentWorkflowStateMachine(store, flow)]
            await asyncio.gather(*(machine.run_workflow() for machine in machines))
        assert {run.status for run in await engine.list(flow)} == {"done"}
    assert gauge.most == 2
    assert set(gauge.bodies.values()) == {1}


async def test_runs_that_rest_do_not_count_and_take_their_place_when_they_go_on(store: Store) -> None:
    gauge = Gauge()
    flow = asks(gauge)
    async with Engine(store, workflows=[flow], poll=0.02) as engine:
        runs = await asyncio.gather(*(engine.run(flow, key=f"k{n}") for n in range(8)))
        assert {run.state for run in runs} <= {"asked", "over"}
        for n in range(4):  # the others go on by time
            with contextlib.suppress(RunOver):  # where its time came first
                await engine.send(flow, f"k{n}", "go", event_id=f"go-{n}")
        await until(done(engine, flow, 8))
    assert gauge.most <= 2
    assert set(gauge.bodies.values()) == {1}


async def test_a_full_workflow_keeps_no_other_from_being_driven_and_age_decides(store: Store) -> None:
    me = Owner(token="me", machine="", process="1/1", lease=store.now() + 60, started=0.0)
    await store.enrol(me)
    few, many = scarce(Gauge()), scarce(Gauge(), None, "plenty")
    now = store.now()
    for n in range(6):
        for flow, age in ((few, 100 - n), (many, 97 - n)):
            await store.create(begin(flow, f"{n}", flow.check().codec.start({}), now=now - age))
    known, limits = {"scarce": 1, "plenty": 1}, {"scarce": 2}
    first = await store.claim("me", known, 3, now, (), limits)
    assert [(run.workflow, run.key) for run in first] == [("scarce", "0"), ("scarce", "1"), ("plenty", "0")]
    rest = await store.claim("me", known, 10, now, (), limits)
    assert [(run.workflow, run.key) for run in rest] == [("plenty", f"{n}") for n in range(1, 6)]
    assert await store.claim_one("me", "scarce", "5", None, 2) is None
    await store.release(first[0])
    again = await store.claim_one("me", "scarce", "5", None, 2)
    assert again is not None
    assert await store.claim("me", known, 10, now, (), limits) == []


async def test_claims_that_race_count_the_same_room_once(durable_url: str) -> None:
    flow = scarce(Gauge(), 3)
    stores = [open_store(durable_url) for _ in range(4)]
    for n, one in enumerate(stores):
        await one.open()
        lease = one.now() + 60
        await one.enrol(Owner(token=f"o{n}", machine="", process="1/1", lease=lease, started=0.0))
    await unowned(stores[0], flow, *(f"k{n}" for n in range(40)))
    for _ in range(5):
        found = await asyncio.gather(
            *(one.claim(f"o{n}", {"scarce": 1}, 10, one.now(), (), {"scarce": 3}) for n, one in enumerate(stores)),
            *(one.claim_one(f"o{n}", "scarce", f"k{30 + n}", None, 3) for n, one in enumerate(stores)),
        )
        claimed = [run for some in found if some is not None for run in (some if isinstance(some, list) else [some])]
        assert len(claimed) == 3
        await asyncio.gather(*(stores[0].release(run) for run in claimed))
    for one in stores:
        await one.close()


async def test_a_claim_takes_the_oldest_for_which_there_is_room(store: Store) -> None:
    """Held against the plain reading of it, for every number that may be asked for."""
    names = ("free", "wide", "narrow", "shut", "other")
    limits = {"wide": 4, "narrow": 1, "shut": 1}
    now = store.now()
    await store.enrol(Owner(token="me", machine="", process="1/1", lease=now + 60, started=now))
    flows = {name: scarce(Gauge(), limits.get(name), name).check() for name in names}
    held = begin(flows["shut"], "held", flows["shut"].codec.start({}), now=now - 100)
    await store.create(replace(held, owner="me", epoch=1))
    runs = [begin(flows[names[n * 7 % 5]], f"k{n}", {}, now=now - 50 + n * 11 % 40) for n in range(40)]
    for run in runs:
        await store.create(run)
    for many in range(1, 30):
        room = {name: limit - (name == "shut") for name, limit in limits.items()}
        expected = []
        for run in sorted(runs, key=lambda run: run.due or 0.0):
            if len(expected) < many and room.get(run.workflow, 1) > 0 and run.workflow != "other":
                room[run.workflow] = room.get(run.workflow, 1_000) - 1
                expected.append(run.key)
        known = {name: 1 for name in names if name != "other"}
        claimed = await store.claim("me", known, many, now, (), limits)
        assert [run.key for run in claimed] == expected
        await asyncio.gather(*map(store.release, claimed))


@pytest.mark.parametrize("block", ["claimable", "claimable_within", "driven", "overdue"])
async def test_what_has_ended_is_never_looked_at_by_a_claim_on_sqlite(sqlite_url: str, block: str) -> None:
    """Most runs of a store have ended: looking at what is due must go by what is due."""
    store = open_store(sqlite_url)
    await store.open()
    await store.close()
    statement = queries("sqlite")[block]
    with contextlib.closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as db:
        values = {name: "{}" if name in ("workflows", "rooms") else "[]" for name in re.findall(r":(\w+)", statement)}
        plan = db.execute(f"EXPLAIN QUERY PLAN {statement}", values or ("w", 0.0)).fetchall()
    ways = [row[3] for row in plan if "fsm_runs" in row[3]]
    assert ways
    assert all("fsm_runs_due" in way for way in ways), ways


@pytest.mark.parametrize("limit", [0, -1, 1.5, "3", True])
def test_a_limit_is_a_number_from_one(limit: Any) -> None:
    with pytest.raises(DefinitionError, match="concurrency must be a whole number from 1"):
        scarce(Gauge(), limit).check()
