"""P13: a run that kills its process k times in one visit is parked with its reason; its neighbours are not."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fsmworkflow import Engine, Event, Retry, Run, To, Workflow, open_store
from fsmworkflow.decide import begin, decide
from fsmworkflow.records import Owner, replace
from fsmworkflow.store import Store
from fsmworkflow.testing import CrashingStore
from tests.children import Children
from tests.ledger import glimpse
from tests.waiting import PATIENCE

TOKENS = itertools.count()


@pytest.fixture
async def store(store_url: str) -> Any:
    store = open_store(store_url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as some:
        yield some


def task(**more: Any) -> Workflow:
    """work -> rest -> over; `rest` waits for "go"."""
    flow = Workflow("task")
    flow.step("work", initial=True, then="rest", **more)(nothing)
    flow.wait("rest", on={"go": "over"})
    flow.final("over")
    return flow


async def nothing(ctx: Any) -> None:
    pass


async def made(store: Store, flow: Workflow, key: str) -> Run:
    run, _ = await store.create(begin(flow, key, flow.check().codec.start({}), now=store.now()))
    return run


async def alive(store: Store, *, draining: int = 0) -> Owner:
    """An owner that lives, and is not of a process that could be looked up."""
    lease, token = store.now() + 60, f"owner-{next(TOKENS)}"
    owner = Owner(token=token, machine="elsewhere", process="1/1", lease=lease, started=0.0, draining=draining)
    await store.enrol(owner)
    return owner


async def died_with(store: Store, run: Run, times: int, *, flying: bool = False, one: bool = True) -> Run:
    """So many owners claim the run and die, each in the middle of it."""
    for _ in range(times):
        owner = await alive(store)
        run = await claim(store, owner, run, one=one)
        if flying:
            await store.settle(run, replace(run, flight=run.epoch))
        await store.bury(owner.token)
    return run


async def claim(store: Store, owner: Owner, run: Run, *, one: bool) -> Run:
    if one:
        claimed = await store.claim_one(owner.token, run.workflow, run.key)
    else:
        (claimed,) = await store.claim(owner.token, {run.workflow: 1}, 10, float("inf"))
    assert claimed is not None
    return claimed


# -- what counts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", [True, False], ids=["claim_one", "claim"])
async def test_two_deaths_mark_a_run_and_further_ones_count_only_where_it_was_in_flight(
    store: Store, one: bool
) -> None:
    run = await made(store, task(), "a")
    assert (await died_with(store, run, 1, one=one)).deaths == 0
    assert (await died_with(store, run, 1, one=one)).deaths == 1
    assert (await died_with(store, run, 1, one=one)).deaths == 2
    assert (await died_with(store, run, 2, one=one)).deaths == 2
    assert (await died_with(store, run, 1, one=one, flying=True)).deaths == 2
    assert (await claim(store, await alive(store), run, one=one)).deaths == 3


@pytest.mark.parametrize("one", [True, False], ids=["claim_one", "claim"])
async def test_a_death_after_a_drain_began_does_not_count_however_often_the_dead_are_buried(
    store: Store, one: bool
) -> None:
    run, owner = await made(store, task(), "a"), await alive(store)
    await claim(store, owner, run, one=one)
    await store.enrol(replace(owner, draining=1))
    await store.bury(owner.token)
    await store.bury(owner.token)
    claimed = await claim(store, await alive(store), run, one=one)
    assert (claimed.deaths, claimed.epoch) == (0, 2)
    await store.bury(owner.token)
    assert owner.token not in {one.token for one in await store.owners()}


async def test_what_was_given_back_or_rested_died_of_nothing(store: Store) -> None:
    run, owner = await made(store, task(), "a"), await alive(store)
    claimed = await claim(store, owner, run, one=True)
    await store.release(claimed)
    await store.bury(owner.token)
    assert (await claim(store, await alive(store), run, one=True)).deaths == 0
    flow = task()
    async with Engine(store, workflows=[flow]) as engine:
        await engine.run(flow, key="rests")
        await store.bury(engine.worker.token)  # it is gone, and its runs rest
        again = await store.claim_one((await alive(store)).token, "task", "rests")
        assert again is not None
        assert (again.status, again.deaths) == ("waiting", 0)


async def test_nothing_is_written_where_nothing_dies(store: Store) -> None:
    counting = CrashingStore(store, at=None)
    flow = task()
    async with Engine(counting, workflows=[flow]) as engine:
        await engine.run(flow, key="a")
    assert counting.writes == 2, "the run, and one move"
    run = await store.load("task", "a")
    assert run is not None
    assert (run.deaths, run.flight) == (0, None)


# -- what becomes of it -----------------------------------------------------------------------------------------------


async def test_a_run_is_parked_with_its_reason_and_retry_lets_it_go_on(store: Store) -> None:
    flow = task()
    await died_with(store, await made(store, flow, "a"), 2)
    await died_with(store, await made(store, flow, "a"), 1, flying=True)
    async with Engine(store, workflows=[flow], poll=0.02) as engine:
        await engine.resume()
        run = await engine.get(flow, "a")
        assert (run.status, run.state, run.owner, run.due) == ("parked", "work", None, None)
        assert run.error is not None
        assert (run.error.type, run.error.code) == ("Poisoned", "poisoned")
        assert "3 processes died while run task/a was in flight in state 'work', visit 0" in run.error.message
        assert (await engine.history(flow, "a"))[-1].event == "$parked"
        told = await engine.explain(flow, "a")
        assert "the death of its processes" in told
        assert "retry lets it go on" in told
        assert (await engine.run(flow, key="a")).status == "parked", "only retry lets it go on"
        await engine.retry(flow, "a")
        run = await engine.result(flow, "a")
        assert (run.status, run.state, run.deaths, run.error) == ("waiting", "rest", 0, None)


async def test_a_run_is_parked_once_also_where_events_are_posted_to_it(store: Store) -> None:
    flow = task()
    await died_with(store, await made(store, flow, "a"), 2)
    await died_with(store, await made(store, flow, "a"), 1, flying=True)
    async with Engine(store, workflows=[flow], poll=0.02) as engine, engine.working():
        while (await engine.get(flow, "a")).status != "parked":
            await asyncio.sleep(0.01)
        await engine.send(flow, "a", "go")
        await asyncio.sleep(0.1)
        assert [entry.event for entry in await engine.history(flow, "a")] == ["$start", "$parked"]
        await engine.retry(flow, "a")
        while (await engine.get(flow, "a")).state != "over":
            await asyncio.sleep(0.01)


async def test_leaving_the_visit_clears_it(store: Store) -> None:
    flow = task()
    await died_with(store, await made(store, flow, "a"), 3)
    async with Engine(store, workflows=[flow]) as engine:
        await engine.resume()
        run = await engine.get(flow, "a")
    assert (run.state, run.deaths) == ("rest", 0)


async def test_a_remembered_call_is_progress_also_where_the_attempt_fails_then(store: Store) -> None:
    seen: list[int] = []
    flow = Workflow("task")

    @flow.step("work", initial=True, then="over", retry=Retry(attempts=2, first_delay=0.01))
    async def work(ctx: Any) -> None:
        seen.append(ctx.run.deaths)
        await ctx.call(asyncio.sleep, 0)
        row = await store.load("task", "a")
        assert row is not None
        seen.append(row.deaths)
        if ctx.attempt == 1:
            raise OSError("again")

    flow.final("over")
    await died_with(store, await made(store, flow, "a"), 3)
    async with Engine(store, workflows=[flow]) as engine:
        await engine.resume()
        assert (await engine.get(flow, "a")).state == "over"
    assert seen == [2, 0, 0, 0]


async def test_suspects_fly_one_at_a_time_and_say_so_first_beside_healthy_runs(store: Store) -> None:
    flying: set[str] = set()
    together: list[set[str]] = []
    flow = Workflow("task")

    @flow.step("work", initial=True, then="over")
    async def work(ctx: Any) -> None:
        row = await store.load("task", ctx.run.key)
        assert row is not None
        assert (row.flight == row.epoch) == (ctx.run.deaths == 2)
        flying.add(ctx.run.key)
        together.append(set(flying))
        await asyncio.sleep(0.02)
        flying.discard(ctx.run.key)

    flow.final("over")
    for n in range(4):
        await died_with(store, await made(store, flow, f"suspect-{n}"), 3)
    for n in range(4):
        await made(store, flow, f"healthy-{n}")
    async with Engine(store, workflows=[flow]) as engine:
        await engine.resume()
        assert {run.status for run in await engine.list(flow)} == {"done"}
    suspects = [[key for key in some if key.startswith("suspect")] for some in together]
    assert max(map(len, suspects)) == 1
    assert max(map(len, together)) > 1, "healthy runs went on beside the suspect"


@pytest.mark.parametrize(("first", "other", "deaths"), [("once", "suspect", 2), ("suspect", "once", 1)])
async def test_a_suspect_flies_beside_no_run_that_one_death_has_marked(
    store: Store, first: str, other: str, deaths: int
) -> None:
    """That one may be what ends processes, for which the suspect would be parked."""
    held, flying = asyncio.Event(), set[str]()
    flow = Workflow("task")

    @flow.step("work", initial=True, then="over")
    async def work(ctx: Any) -> None:
        flying.add(ctx.run.key)
        if ctx.run.key == first:
            await held.wait()

    flow.final("over")
    for key in (first, other):
        await died_with(store, await made(store, flow, key), {"once": 1, "suspect": 3}[key])
    await made(store, flow, "healthy")
    async with asyncio.timeout(PATIENCE), Engine(store, workflows=[flow], poll=0.02) as engine, engine.working():
        try:
            while (await engine.get(flow, "healthy")).status != "done" or first not in flying:
                await asyncio.sleep(0.005)
            row = await engine.get(flow, other)
            assert (row.status, row.deaths, row.flight == row.epoch) == ("running", deaths, False)
            assert flying == {first, "healthy"}
        finally:
            held.set()
        while {run.status for run in await engine.list(flow)} != {"done"}:
            await asyncio.sleep(0.005)


async def test_a_suspect_that_waits_for_its_turn_can_be_cancelled(store: Store) -> None:
    held = asyncio.Event()
    flow = Workflow("task")

    @flow.step("work", initial=True, then="over")
    async def work(ctx: Any) -> None:
        await held.wait()

    flow.final("over")
    for key in ("a", "b"):
        await died_with(store, await made(store, flow, key), 3)
    async with Engine(store, workflows=[flow], poll=0.02) as engine:
        resuming = asyncio.create_task(engine.resume())

        async def in_flight() -> list[str]:
            return [run.key for run in await engine.list(flow) if run.flight == run.epoch]

        while not (first := await in_flight()):
            await asyncio.sleep(0.005)
        (other,) = {"a", "b"} - set(first)
        assert (await engine.cancel(flow, other)).status == "cancelled"
        held.set()
        await resuming


async def test_where_the_actions_of_an_ended_run_are_at_fault_it_keeps_its_status_and_lists_them(store: Store) -> None:
    flow = Workflow("task")
    flow.step("work", initial=True, then=To("over", after=nothing))(nothing)
    flow.final("over")
    crashing = CrashingStore(store, at=3, when="before")  # the commit that strikes off what was done
    with pytest.raises(BaseException, match="crashed"):
        async with Engine(crashing, workflows=[flow]) as engine:
            await engine.run(flow, key="a")
    await crashing.bury_the_dead()
    run = await store.load("task", "a")
    assert run is not None
    assert (run.status, len(run.actions)) == ("done", 1)
    await died_with(store, run, 2)
    await died_with(store, run, 1, flying=True)
    async with Engine(store, workflows=[flow]) as engine:
        await engine.resume()
        run = await engine.get(flow, "a")
    assert (run.status, len(run.actions), run.due) == ("done", 1, None)
    assert run.error is not None
    assert run.error.code == "poisoned"


async def with_an_action_left(store: Store, done: list[str]) -> Workflow:
    """work -> rest; a run that is in `rest`, with the action of that move not done yet."""
    flow = Workflow("task")

    def act(ctx: Any) -> None:
        done.append(ctx.run.status)

    flow.step("work", initial=True, then=To("rest", after=act))(nothing)
    flow.wait("rest", on={"go": "over"})
    flow.final("over")
    crashing = CrashingStore(store, at=2, when="after")  # the move, and nothing after it
    with pytest.raises(BaseException, match="crashed"):
        async with Engine(crashing, workflows=[flow]) as engine:
            await engine.run(flow, key="a")
    await crashing.bury_the_dead()
    run = await store.load("task", "a")
    assert run is not None
    assert (run.state, len(run.actions), done) == ("rest", 1, [])
    return flow


async def test_the_actions_of_a_parked_run_are_done_when_it_goes_on_and_not_for_what_is_posted(store: Store) -> None:
    done: list[str] = []
    flow = await with_an_action_left(store, done)
    run = await made(store, flow, "a")
    await died_with(store, run, 2)
    await died_with(store, run, 1, flying=True)
    async with Engine(store, workflows=[flow], poll=0.02) as engine, engine.working():
        await look(store, "parked")
        await engine.send(flow, "a", "go")
        await look(store, "parked", due=None)
        assert done == []
        await engine.retry(flow, "a")
        assert (await look(store, "done")).actions == ()
    assert done == ["waiting"]


async def test_the_actions_of_a_run_that_is_paused_before_them_are_done_when_it_goes_on(store: Store) -> None:
    """A suspect that waits for its turn takes a pause before it has acted."""
    done: list[str] = []
    flow = await with_an_action_left(store, done)
    run = await store.claim_one("nobody", "task", "a")
    assert run is not None
    await store.commit(await decide(flow, run, Event(name="$pause"), now=store.now()))
    async with Engine(store, workflows=[flow], poll=0.02) as engine, engine.working():
        await engine.send(flow, "a", "go")
        await look(store, "paused", due=None)
        assert done == []
        await asyncio.wait_for(engine.unpause(flow, "a"), PATIENCE)
        await look(store, "done")
    assert done == ["waiting"]


def next_version(asked: list[Any]) -> Workflow:
    """`task` in its next version, with a migration that says when it is asked."""
    flow = Workflow("task", version=2)
    flow.step("job", initial=True, then="rest")(nothing)
    flow.wait("rest", on={"go": "over"})
    flow.final("over")

    @flow.migrate(1, to=2, states={"work": "job"})
    def ask(data: Any) -> None:
        asked.append(data)

    return flow


async def test_a_suspect_says_that_it_is_in_flight_before_a_migration_is_asked(store: Store) -> None:
    asked: list[Any] = []
    await died_with(store, await made(store, task(), "a"), 2)
    crashing = CrashingStore(store, at=2, when="after")  # the first is that the run is made, which is there
    with pytest.raises(BaseException, match="crashed"):
        async with Engine(crashing, workflows=[next_version(asked)]) as engine:
            await engine.run("task", key="a")
    run = await store.load("task", "a")
    assert run is not None
    assert (run.flight, run.version, asked) == (run.epoch, 0, [])


async def test_a_run_whose_migration_ends_processes_is_parked_and_asked_only_once_it_is_to_go_on(store: Store) -> None:
    asked: list[Any] = []
    await died_with(store, await made(store, task(), "a"), 2)
    await died_with(store, await made(store, task(), "a"), 1, flying=True)
    flow = next_version(asked)
    async with Engine(store, workflows=[flow], poll=0.02) as engine, engine.working():
        await look(store, "parked")
        await store.post("task", "a", Event(name="go", id="go"))
        run = await look(store, "parked", due=None)
        assert (run.state, run.definition, asked) == ("work", 1, [])
        await engine.retry(flow, "a")
        assert [(await look(store, "done")).definition, bool(asked)] == [2, True]


async def look(store: Store, status: str, **facts: Any) -> Run:
    """The row, once it is so."""
    async with asyncio.timeout(PATIENCE):
        while True:
            run = await store.load("task", "a")
            if run is not None and run.status == status and facts.items() <= msgspec.structs.asdict(run).items():
                return run
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("deaths", [0, 1, 2])
def test_two_deaths_would_park_neighbours(deaths: int) -> None:
    with pytest.raises(ValueError, match="3 or more"):
        Engine("memory://", deaths=deaths)


# -- real processes ---------------------------------------------------------------------------------------------------


def herd(url: str, keys: list[str]) -> None:
    """Runs that nobody drives yet."""

    async def make() -> None:
        flow = Workflow("herd")
        flow.step("graze", initial=True, then="rest")(nothing)
        flow.step("rest", then="home")(nothing)
        flow.final("home")
        store = open_store(url)
        await store.open()
        await asyncio.gather(*(made(store, flow, key) for key in keys))
        await store.close()

    asyncio.run(make())


def test_one_poison_run_among_99_slow_neighbours_is_parked_and_they_finish(
    durable_url: str, children: Children
) -> None:
    herd(durable_url, [f"k{n}" for n in range(50)] + ["poison"] + [f"k{n}" for n in range(50, 99)])
    began, child, deaths = time.monotonic(), None, 0
    while time.monotonic() < began + 2 * PATIENCE:
        if child is None or not child.alive():
            deaths += child is not None
            child = children.start("work", durable_url, "--steps", 100)
        rows = glimpse(durable_url, "herd/").rows
        if all(status in ("done", "parked") for _, _, status in rows.values()):
            break
        time.sleep(0.05)
    assert child is not None
    child.send(15)
    child.succeeded()
    assert {run for run, row in rows.items() if row[2] == "parked"} == {"herd/poison"}
    assert len(rows) == 100
    assert deaths == len(children.ledger.lines("death")) == 3
