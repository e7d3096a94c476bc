"""Every scenario, stopped at every write before and after it took effect, and told of every write that it failed.

A process that dies is played by a store that refuses everything from its n-th write on; the tests with real processes
are in test_crash.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest

from fsmworkflow import Engine, Store, StoreUnavailable, open_store
from fsmworkflow.decide import begin
from fsmworkflow.store import writer
from fsmworkflow.testing import Crash, CrashingStore
from tests.scenarios import SCENARIOS, SECONDS, WAYS, Ledger, Scenario, Way, by_machine, by_run, check_end, left

MOST = 60
each_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=str)


@pytest.fixture(scope="module", params=["memory", "sqlite", "postgres"])
def shared_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One store of each kind for all tests here: making a database takes longer than most of them."""
    if request.param == "postgres":
        with request.getfixturevalue("postgres").database() as url:
            yield url
    else:
        yield "memory://" if request.param == "memory" else f"sqlite:///{tmp_path_factory.mktemp('commit')}/x.db"


@pytest.fixture
async def store(shared_url: str) -> Any:
    """An open store that stays open, so that each of some hundred restarts costs milliseconds."""
    store = open_store(unhurried(shared_url))
    await store.open()
    close, store.close = store.close, _nothing  # type: ignore[method-assign]
    yield store
    await close()


async def _nothing() -> None:
    pass


def unhurried(url: str) -> str:
    """The same database without waiting for the disk: these deaths leave the machine running."""
    return f"{url}{'&' if '?' in url else '?'}synchronous_commit=off" if url.startswith("postgres") else url


async def fresh(store: Store) -> Ledger:
    await store.reset()
    return Ledger()


async def crash(store: CrashingStore, scenario: Scenario, ledger: Ledger, way: Way) -> bool:
    """Drive until the store stops. False where the scenario came to its end before."""
    ledger.dead = lambda: store.crashed
    others = asyncio.all_tasks()
    with contextlib.suppress(Crash):
        await asyncio.wait_for(way(store, scenario, ledger), SECONDS)
    assert store.crashed or store.writes < (store.at or 0)
    for task in asyncio.all_tasks() - others:  # a dead process goes on with nothing
        task.cancel()
        await asyncio.wait([task])
    ledger.dead = lambda: False
    return store.crashed


def ways(store: Store, at: int) -> Iterator[tuple[Way, Way]]:
    """Who is driving when the store stops, and who goes on: by turns, and several at once where that is cheap."""
    pairs = list(itertools.product((by_run, by_machine), WAYS))
    return iter(pairs[at % 2 :: 2] if store.url.startswith("memory") else [pairs[at % len(pairs)]])


@each_scenario
@pytest.mark.parametrize("when", ["before", "after"])
async def test_P1_P3_a_crash_at_any_write_repeats_no_completed_step_and_at_most_one_attempt(
    store: Store, scenario: Scenario, when: Literal["before", "after"]
) -> None:
    for at in range(1, MOST):
        crashed = False
        for first, then in ways(store, at):
            where = f"{scenario}, crashed {when} write {at} in {first.__name__}, resumed {then.__name__}"
            ledger = await fresh(store)
            crashing = CrashingStore(store, at=at, when=when)
            try:
                crashed |= await crash(crashing, scenario, ledger, first)
                await crashing.bury_the_dead()
                found = await left(store, scenario, ledger)
                await asyncio.wait_for(then(store, scenario, ledger), SECONDS)
                await check_end(store, scenario, ledger, found)
            except (Exception, asyncio.CancelledError) as error:
                raise AssertionError(f"{where}: {error!r}") from error
        if not crashed:
            assert at > len(scenario.visits), f"{scenario} made only {at - 1} writes"
            return
    raise AssertionError(f"{scenario} needs more than {MOST} writes")


@each_scenario
async def test_P1_P3_two_crashes_in_a_row_cost_at_most_two_repeats(store: Store, scenario: Scenario) -> None:
    for at in range(1, MOST, 2):
        ledger, found, crashed = await fresh(store), [], False
        try:
            for when in ("after", "before"):
                crashing = CrashingStore(store, at=at, when=when)
                crashed |= await crash(crashing, scenario, ledger, by_run)
                await crashing.bury_the_dead()
                found.append(await left(store, scenario, ledger))
            await asyncio.wait_for(by_run(store, scenario, ledger), SECONDS)
            await check_end(store, scenario, ledger, *found)
        except (Exception, asyncio.CancelledError) as error:
            raise AssertionError(f"{scenario}, crashed at write {at}, twice: {error!r}") from error
        if not crashed:
            return
    raise AssertionError(f"{scenario} needs more than {MOST} writes")


# -- an acknowledgement that is lost --------------------------------------------------------------------------------


class Deaf:
    """Stands before a store's writer: the `at`-th batch is committed, and then said to have failed."""

    def __init__(self, store: Any, at: int) -> None:
        self._writer = store._writer
        self._start = self._writer._start
        self._left = at
        self.struck = False
        self._writer._start = self

    def leave(self) -> None:
        self._writer._start = self._start

    def __call__(self, batch: list[Any], done: Callable[[BaseException | None], None]) -> Any:
        def deaf(error: BaseException | None) -> None:
            self._left -= 1
            if self._left == 0:
                assert error is None
                self.struck = True
                for write in batch:  # what was answered is lost with the acknowledgement
                    write.result = write.error = None
                error = StoreUnavailable("the connection was lost after COMMIT was sent")
            done(error)

        return self._start(batch, deaf)


@each_scenario
@pytest.mark.parametrize("shared_url", ["sqlite", "postgres"], indirect=True)
async def test_P11_a_write_whose_acknowledgement_is_lost_was_made_once(
    store: Any, scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FIRST_PAUSE", 0.001)
    for at in range(1, MOST):
        way = (by_run, by_machine)[at % 2]
        ledger = await fresh(store)
        deaf = Deaf(store, at)
        try:
            await asyncio.wait_for(way(store, scenario, ledger), SECONDS)
            await check_end(store, scenario, ledger)
        except (Exception, asyncio.CancelledError) as error:
            raise AssertionError(f"{scenario}, batch {at} said to have failed, {way.__name__}: {error!r}") from error
        deaf.leave()
        if not deaf.struck:
            # A step's own transaction is committed beside the writer: see test_transaction.py.
            assert at > (1 if scenario.connected else len(scenario.visits)), f"{scenario} made only {at - 1} batches"
            return
    raise AssertionError(f"{scenario} needs more than {MOST} batches")


@pytest.mark.parametrize("shared_url", ["postgres"], indirect=True)
async def test_P11_a_claim_whose_acknowledgement_is_lost_leaves_no_run_behind(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = SCENARIOS[0]
    flow = scenario.make(await fresh(store)).check()
    writing_on, struck = store._writing_on, []

    async def deaf(function: Any) -> Any:
        result = await writing_on(function)
        if isinstance(result, list) and not struck:
            struck.append(len(result))
            raise StoreUnavailable("the connection was lost after COMMIT was sent")
        return result

    async with Engine(store, workflows=[flow]) as engine:
        for number in range(3):
            fields = flow.codec.start(scenario.input)
            await store.create(begin(flow, f"run-{number}", fields, now=store.now() - 1.0))
        monkeypatch.setattr(store, "_writing_on", deaf)
        await engine.resume()
        assert struck == [3]
        assert {run.status for run in await engine.list(flow)} == {"done"}


# -- the wrapper itself ---------------------------------------------------------------------------------------------


def test_the_crashing_store_has_every_method_of_a_store() -> None:
    public = {name for name in vars(Store) if not name.startswith("_")}
    assert public - set(dir(CrashingStore)) == set()
    for name in public - {"opened"}:
        assert inspect.iscoroutinefunction(getattr(CrashingStore, name)) == (
            name not in ("now", "twin", "transaction")
        ), name
