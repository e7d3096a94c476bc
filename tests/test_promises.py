"""One test for each promise that can be shown in a few lines, named after it. P11 is in test_every_commit.py, P12 in
test_cancel.py, and what holds against real processes in test_crash.py.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import math
import sqlite3
import subprocess
import sys
import threading
import uuid
from decimal import Decimal
from itertools import pairwise
from statistics import median
from typing import Any

import pytest

from fsmworkflow import Engine, InputDiffers, LeaseLost, Run, RunFailed, Store, StoreError, Workflow
from fsmworkflow import open_store as store_of
from fsmworkflow.decide import begin, decide
from fsmworkflow.lease import machine_id, process_id
from fsmworkflow.records import Call, Event, Move, Owner, replace
from fsmworkflow.testing import Clock
from fsmworkflow.worker import Worker
from tests.children import launched
from tests.waiting import PATIENCE, until


class World:
    """What the steps of `three_steps` have done; the second one can be held up."""

    def __init__(self, *, held: bool = False) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        if not held:
            self.go_on.set()


def three_steps(world: World) -> Workflow:
    flow = Workflow("three_steps")

    async def body(ctx: Any) -> None:
        world.begun.append(ctx.state)
        if ctx.state == "second":
            world.reached.set()
            await world.go_on.wait()
        ctx.data[ctx.state] = True
        world.ended.append(ctx.state)

    flow.step("first", initial=True, then="second")(body)
    flow.step("second", then="third")(body)
    flow.step("third", then="end")(body)
    flow.final("end")
    return flow.check()


async def owner(store: Store, token: str, **changed: Any) -> str:
    """Make an owner known: of another machine, alive for a minute unless told otherwise."""
    now = store.now()
    made = Owner(token=token, machine="elsewhere", process="1/1", lease=now + 60.0, started=now)
    await store.enrol(replace(made, **changed))
    return token


@pytest.fixture
async def store(store_url: str) -> Any:
    store = store_of(store_url)
    await store.open()
    close = store.close
    yield store
    await close()


async def started(store: Store, token: str | None, key: str = "one") -> Run:
    """A run that an owner holds in its first state, or nobody."""
    fresh = begin(three_steps(World()), key, {}, now=store.now())
    run, _ = await store.create(replace(fresh, owner=token, epoch=1 if token else 0))
    return run


async def first_move(run: Run, store: Store) -> Move:
    done = Event(name="$done", state="first", changes={}, began=store.now())
    return await decide(three_steps(World()), run, done, now=store.now())


async def test_a_failed_run_that_is_run_again_at_once_goes_on() -> None:
    """The first call is answered in the turn of the loop in which its drive ends, and is not known as ended yet."""
    flow, failed = Workflow("hasty"), []

    @flow.step(initial=True, then="end")
    async def try_it(ctx: Any) -> None:
        await asyncio.sleep(0)
        if not failed:
            failed.append(True)
            raise OSError("the first time")

    flow.final("end")
    async with Engine("memory://", workflows=[flow]) as engine:
        with pytest.raises(RunFailed):
            await engine.run(flow, key="one")
        assert (await engine.run(flow, key="one")).status == "done"


# -- P1 to P4 -------------------------------------------------------------------------------------------------------


async def test_P1_no_completed_step_runs_again(durable_url: str) -> None:
    world = World(held=True)
    async with Engine(durable_url, workflows=[flow := three_steps(world)]) as engine:
        await engine.start(flow, key="one")
        await world.reached.wait()
        await engine.close(grace=0.0)
    world.go_on.set()
    for _ in range(3):  # also not where it is asked for again
        async with Engine(durable_url, workflows=[flow := three_steps(world)]) as engine:
            run = await engine.run(flow, key="one")
            assert run.status == "done"
    assert world.begun == ["first", "second", "second", "third"]
    assert world.ended == ["first", "second", "third"]


async def test_P2_no_advance_is_committed_before_the_body_has_come_to_its_end(store_url: str) -> None:
    world = World(held=True)
    async with Engine(store_url, workflows=[flow := three_steps(world)]) as engine:
        await engine.start(flow, key="one")
        await world.reached.wait()
        run = await engine.get(flow, "one")
        assert (run.state, run.version, dict(run.data)) == ("second", 1, {"first": True})
        assert [entry.dest for entry in await engine.history(flow, "one")] == ["first", "second"]
        world.go_on.set()
        run = await engine.result(flow, "one")
    assert (run.state, run.version) == ("end", 3)


async def test_P3_a_graceful_stop_repeats_no_step(durable_url: str) -> None:
    world = World(held=True)
    async with Engine(durable_url, workflows=[flow := three_steps(world)]) as engine:
        await engine.start(flow, key="one")
        await world.reached.wait()
        asyncio.get_running_loop().call_later(0.05, world.go_on.set)
    assert world.ended == ["first", "second"], "the step that was running has ended, and no other one was begun"
    async with Engine(durable_url, workflows=[flow := three_steps(world)]) as engine:
        await asyncio.wait_for(engine.resume(), PATIENCE)
    assert world.begun == ["first", "second", "third"]


async def test_P4_an_advance_whose_history_cannot_be_written_is_not_made_at_all(durable_url: str) -> None:
    world = World()
    async with Engine(durable_url, workflows=[flow := three_steps(world)]) as engine:
        run = await started(engine.store, None)
        in_the_way = f"({run.id}, 2, 0, 'made by hand', '', '', 'running', 1, 0)"
        columns = "(run, version, at, event, source, dest, status, attempt, epoch)"
        by_hand(durable_url, f"INSERT INTO fsm_moves {columns} VALUES {in_the_way}")
        with pytest.raises(StoreError):
            await engine.run(flow, key="one")
        run = await engine.get(flow, "one")
        assert (run.state, run.version, run.status, dict(run.data)) == ("second", 1, "running", {"first": True})
        by_hand(durable_url, "DELETE FROM fsm_moves WHERE version = 2")
        run = await engine.run(flow, key="one")
    assert (run.state, run.version) == ("end", 3)
    assert world.ended == ["first", "second", "second", "third"]


def by_hand(url: str, statement: str) -> None:
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        connection.execute(statement)
        connection.close()
    else:
        subprocess.run([sys.executable, "-c", _BY_HAND, url, statement], check=True)


_BY_HAND = "import sys; from tests.postgres_server import execute; execute(sys.argv[1], sys.argv[2])"


# -- P5 and P6: claims ----------------------------------------------------------------------------------------------


async def test_P5_an_owner_whose_run_another_has_claimed_writes_nothing(store: Store) -> None:
    run = await started(store, await owner(store, "a"))
    await store.bury("a")
    mine = await store.claim_one(await owner(store, "b"), run.workflow, run.key)
    assert mine is not None
    assert (mine.owner, mine.epoch) == ("b", 2)
    call = Call(run=run.id, state="first", visit=0, name="f", nth=0, result=b"1")
    with pytest.raises(LeaseLost):
        await store.commit(await first_move(run, store))
    with pytest.raises(LeaseLost):
        await store.settle(run, replace(run, owner=None, due=None))
    with pytest.raises(LeaseLost):
        await store.remember(run, call)
    await store.release(run)
    assert await store.load(run.workflow, run.key) == mine
    assert [entry.version for entry in await store.history(run)] == [0]
    assert await store.recall(run, "first", 0) == []


async def test_P5_a_lapsed_lease_does_not_by_itself_refuse_a_write(store: Store) -> None:
    run = await started(store, await owner(store, "a", lease=store.now() - 30.0))
    await store.commit(await first_move(run, store))
    found = await store.load(run.workflow, run.key)
    assert found is not None
    assert (found.state, found.version) == ("second", 1)


@pytest.mark.parametrize("by", ["claim", "claim_one"])
async def test_P5_who_comes_back_first_to_a_store_that_was_away_takes_no_run_of_those_who_come_later(
    store: Store, by: str
) -> None:
    flow = Workflow("w")
    flow.step("a", initial=True, then="b")(lambda ctx: None)
    flow.final("b")
    one, two = Worker(store, lease=60), Worker(store, lease=60)
    for worker in (one, two):
        worker.workflows = {"w": flow.check()}
        await worker.open()
    run, _ = await one.create(begin(flow, "k", flow.codec.start({}), now=store.now()))

    async def claimed() -> list[Run]:
        return await two.claim(10) if by == "claim" else [r for r in [await two.claim_one("w", "k")] if r is not None]

    await store.renew(one.token, store.now() - 10)  # in the middle of 50 s in which neither could renew its lease
    two._lease._until -= 50  # type: ignore[union-attr]
    assert await claimed() == []
    assert not two._lease.late  # type: ignore[union-attr]
    await one._lease.renew()  # type: ignore[union-attr]
    await store.commit(await decide(flow, run, Event(name="$done", state="a"), now=store.now()))
    other, _ = await one.create(begin(flow, "k2", flow.codec.start({}), now=store.now()))
    await store.renew(one.token, store.now() - 10)  # while the other one could: this one stands still
    assert [found.key for found in await two.claim(10)] == [other.key]
    await one.close()
    await two.close()


async def test_P5_an_engine_that_lost_its_run_leaves_it_to_the_other_one(durable_url: str) -> None:
    world, other = World(held=True), World()
    async with Engine(durable_url, workflows=[flow := three_steps(world)]) as engine:
        running = asyncio.create_task(engine.run(flow, key="one"))
        await world.reached.wait()
        async with Engine(durable_url, workflows=[same := three_steps(other)]) as second:
            for known in await second.store.owners():
                if known.token != second.worker.token:
                    await second.store.bury(known.token)  # as if it were taken for dead
            run = await second.run(same, key="one")
            assert (run.status, other.ended) == ("done", ["second", "third"])
        world.go_on.set()
        assert (await running).version == 3
        assert world.begun == ["first", "second"], "it goes on with nothing"
        assert [entry.epoch for entry in await engine.history(flow, "one")] == [1, 1, 2, 2]


async def test_P6_a_run_has_one_live_owner(store: Store) -> None:
    run = await started(store, await owner(store, "a"))
    b = await owner(store, "b")
    assert await store.claim_one(b, run.workflow, run.key) is None
    assert await store.claim(b, {run.workflow: 1}, 10, math.inf) == []
    await owner(store, "a", lease=store.now() - 0.001)
    claimed = await store.claim(b, {run.workflow: 1}, 10, math.inf)
    assert [(one.owner, one.epoch) for one in claimed] == [("b", 2)]
    assert await store.claim_one("a", run.workflow, run.key) is None


async def test_P6_only_one_of_many_claims_at_once_gets_a_run(store: Store) -> None:
    run = await started(store, None)
    tokens = [await owner(store, f"owner-{number}") for number in range(10)]
    claimed = await asyncio.gather(*(store.claim_one(token, run.workflow, run.key) for token in tokens))
    assert sum(one is not None for one in claimed) == 1


async def test_P6_a_dead_process_of_this_machine_is_recognised_at_once(store: Store) -> None:
    with launched([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        process = process_id(other.pid)
        assert process is not None
        its = await owner(store, "a", machine=machine_id(), process=process, lease=store.now() + 1e6)
        run = await started(store, its)
        async with Engine(_kept(store), workflows=[flow := three_steps(World())]) as engine:
            assert await engine.worker.claim_one(run.workflow, run.key) is None, "it lives"
            other.communicate()
            done = await asyncio.wait_for(engine.run(flow, key="one"), PATIENCE)
    assert done.status == "done"


def _kept(store: Store) -> Store:
    """The store, which an engine that ends leaves open."""

    async def nothing() -> None:
        pass

    store.close = nothing  # type: ignore[method-assign]
    return store


async def test_P6_a_process_of_another_machine_is_given_up_when_its_lease_ends() -> None:
    clock = Clock()
    store = store_of("memory://", clock=clock)
    await store.open()
    run = await started(store, await owner(store, "a", lease=clock() + 10.0))
    async with Engine(store, workflows=[three_steps(World())], lease=1000.0) as engine:
        clock.turn(9.9)
        assert await engine.resume() == 0
        clock.turn(0.1)
        assert await engine.resume() == 1
        assert (await engine.get(run.workflow, run.key)).status == "done"


async def test_P6_a_step_that_blocks_the_event_loop_does_not_lose_its_run(durable_url: str) -> None:
    lease, tries, ends = 2.0, list[Run | None](), list[float]()
    flow = Workflow("blocking")

    @flow.step(initial=True, then="end")
    async def block(ctx: Any) -> None:
        other = threading.Thread(target=lambda: asyncio.run(claiming(durable_url, lease, tries, ends)))
        other.start()
        other.join()  # nothing else happens in this event loop, for two leases

    flow.final("end")
    async with Engine(durable_url, workflows=[flow], lease=lease) as engine:
        run = await engine.run(flow, key="one")
    assert (run.status, run.epoch) == ("done", 1)
    assert len(tries) >= 7
    assert set(tries) == {None}, "nobody could claim it meanwhile"
    assert median(later - earlier for earlier, later in pairwise(ends)) < lease / 2, "it is renewed long before it ends"


async def claiming(url: str, length: float, tries: list[Run | None], ends: list[float]) -> None:
    """Try to claim the run `one` as an owner of another machine would, whenever its owner's lease has got another end.

    For two leases: of a machine that stands still, no claim comes when the lease would have to be renewed.
    """
    store = store_of(url)
    await store.open()

    async def renewed() -> bool:
        (end,) = [one.lease for one in await store.owners() if one.token != token]
        if ends and end == ends[-1]:
            return False
        ends.append(end)
        return True

    try:
        token = await owner(store, "other")
        while len(tries) < 7 or ends[-1] < ends[0] + 2 * length:  # it is renewed three times in one
            await until(renewed)
            tries.append(await store.claim_one(token, "blocking", "one"))
    finally:
        await store.close()


# -- P7 and P8 ------------------------------------------------------------------------------------------------------


async def test_P7_a_start_with_the_same_key_starts_nothing_twice(
    durable_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    async with (
        Engine(durable_url, workflows=[one := three_steps(world)]) as first,
        Engine(durable_url, workflows=[two := three_steps(world)]) as second,
    ):
        asked = [
            engine.run(flow, {"n": 1}, key="one") for engine, flow in ((first, one), (second, two)) for _ in "12345"
        ]
        runs = await asyncio.wait_for(asyncio.gather(*asked), PATIENCE)
        assert {run.id for run in runs} == {runs[0].id}
        assert world.begun == ["first", "second", "third"]
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert (await first.start(one, {"n": 2}, key="one")).data["n"] == 1, "the run that is there wins"
        assert "different input" in caplog.text
        with pytest.raises(InputDiffers):
            await first.start(one, {"n": 2}, key="one", different="refuse")


async def test_P8_history_is_only_added_to_and_has_no_gap(store_url: str) -> None:
    flow, closed = Workflow("shop"), [True]

    @flow.step(initial=True, then="pay")
    async def order(ctx: Any) -> None:
        ctx.data["order"] = 7

    @flow.step(then="paid")
    async def pay(ctx: Any) -> None:
        if closed[0]:
            raise OSError("closed")

    flow.final("paid")
    async with Engine(store_url, workflows=[flow]) as engine:
        with pytest.raises(RunFailed):
            await engine.run(flow, key="one")
        before = await engine.history(flow, "one")
        closed[0] = False
        await engine.run(flow, key="one")
        after = await engine.history(flow, "one")
        assert after[: len(before)] == before
        assert [(e.version, e.event, e.source, e.dest, e.status) for e in after] == [
            (0, "$start", "", "order", "running"),
            (1, "$done", "order", "pay", "running"),
            (2, "$error", "pay", "pay", "failed"),
            (3, "$retry", "pay", "pay", "running"),
            (4, "$done", "pay", "paid", "done"),
        ]


async def test_P8_done_is_final(store_url: str) -> None:
    world = World()
    async with Engine(store_url, workflows=[flow := three_steps(world)]) as engine:
        done = await engine.run(flow, key="one")
        assert await engine.run(flow, key="one") == done
        assert await engine.resume() == 0
        assert await engine.get(flow, "one") == done
        claimed = await engine.store.claim_one(await owner(engine.store, "b"), "three_steps", "one")
        if claimed is not None:
            assert replace(claimed, owner=None, epoch=done.epoch) == done
    assert world.begun == ["first", "second", "third"]


# -- P10: data; more of it in test_codec.py -----------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "zebra": {"z": 1, "a": [True, False, None, 1, 1.0, -0.0, 0.0, 1e308, 5e-324, 2**70, -(2**63)]},
    "text": 'é \U0001f600 \u2028 \x7f " \\ / $field {"$field":"x"}',
    "$tag": {"$datetime": "my own", "$$": {"$": 1}},
    "empty": [{}, [], "", {"": ""}],
    "times": [
        dt.datetime(2024, 2, 29, 12, 0, 0, 1, tzinfo=dt.timezone(dt.timedelta(hours=-3, minutes=-30))),
        dt.datetime(2024, 10, 27, 2, 30, fold=1),
        dt.date(1, 1, 1),
        dt.time(23, 59, 59, 999999),
        dt.timedelta(days=-1, microseconds=1),
    ],
    "others": [uuid.UUID(int=1), Decimal("1.10"), Decimal("-0"), b"\x00\xff"],
    "large": ["x" * 100] * 100,
    "apple": 0,
}


async def test_P10_a_value_comes_back_equal_with_type_order_and_sign(store_url: str) -> None:
    flow = Workflow("values")

    @flow.step(initial=True, then="end")
    async def keep(ctx: Any) -> None:
        assert exact(dict(ctx.data)) == exact(VALUES)
        ctx.data["again"] = VALUES
        ctx.data["remembered"] = await ctx.call(given, 1)

    flow.final("end")
    async with Engine(store_url, workflows=[flow]) as engine:
        await engine.run(flow, VALUES, key="one")
        data = dict((await engine.get(flow, "one")).data)
        assert exact(data) == exact({**VALUES, "again": VALUES, "remembered": VALUES})
        (start, end) = await engine.history(flow, "one")
        assert exact(start.changes) == exact(VALUES)
        assert exact(end.changes) == exact({"again": VALUES, "remembered": VALUES})


async def given(number: int) -> dict[str, Any]:
    return VALUES


def exact(value: Any) -> Any:
    """A value in which 1, 1.0 and True differ, 0.0 and -0.0, and dicts in another order."""
    if isinstance(value, dict):
        return "dict", [(key, exact(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return "list", [exact(inner) for inner in value]
    return type(value).__name__, repr(value)
