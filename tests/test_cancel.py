"""The task is cancelled at every await, one after the other: nothing is left open, half made, held or behind."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from typing import Any, Self

import asyncpg
import pytest

from fsmworkflow import (
    ChildFailed,
    Engine,
    PersistentWorkflowStateMachine,
    Run,
    RunFailed,
    Store,
    To,
    Workflow,
    field,
    open_store,
)
from fsmworkflow.roster import Roster
from fsmworkflow.settings import DBConfig
from tests.scenarios import KEY, SCENARIOS, SECONDS, Ledger, Refused, Scenario, Way, by_machine, check_end, left
from tests.waiting import PATIENCE

MOST = 400
SETTLED = PATIENCE
"""Seconds within which what was cancelled has to have let go of everything."""

ALL = [
    "straight_line",
    "remembered_calls",
    "synchronous_steps",
    "actions_after_commits",
    "large_field",
    "retried_twice",
    "regions_at_once",
    "one_child",
    "each_of_four",
    "child_that_failed_and_was_run_again",
    "children_cancelled_by_a_time",
    "undone_in_reverse",
    "rows_of_its_own",
]


def places(*postgres: str) -> pytest.MarkDecorator:
    """The nine scenarios that wait in different ways on SQLite, where a restart is cheap, and these on PostgreSQL."""
    known = {scenario.name: scenario for scenario in SCENARIOS}
    pairs = [*(("sqlite", name) for name in ALL), *(("postgres", name) for name in postgres)]
    values = [pytest.param(store, known[name], id=f"{store}-{name}") for store, name in pairs]
    return pytest.mark.parametrize(("durable_url", "scenario"), values, indirect=["durable_url"])


class CancelledAt:
    """Awaits `coroutine`, and cancels the task it is in at the n-th place where it waits; `hit` when it got there.

    The task is cancelled while it is about to wait, so that whatever it waits for may have begun, and may be done.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], n: int) -> None:
        self._coroutine = coroutine
        self._n = n
        self.hit = False

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        given, thrown, places = None, None, 0
        while True:
            try:
                waits_for = self._coroutine.send(given) if thrown is None else self._coroutine.throw(thrown)
            except StopIteration as end:
                return end.value
            places += 1
            if places == self._n:
                self.hit = True
                task.cancel()
            given, thrown = None, None
            try:
                given = yield waits_for
            except BaseException as error:
                thrown = error


async def cancelled(coroutine: Coroutine[Any, Any, Any], n: int) -> bool:
    """Drive in a task of its own, cancelled at the n-th wait. False where it came to its end before."""
    at = CancelledAt(coroutine, n)

    async def whole() -> None:
        await at

    task = asyncio.create_task(whole())
    await asyncio.wait([task], timeout=SECONDS)
    assert task.done(), "it hangs"
    if at.hit:
        assert task.cancelled(), f"CancelledError did not pass: {task.exception()!r}"
    else:
        with contextlib.suppress(Refused, RunFailed, ChildFailed):  # where the scenario ends so
            task.result()
    return at.hit


class World:
    """A store under test, what watches it from beside, and what there was before, so that what is left behind shows.

    `url` names the store to those who are tested; `store` is another machine's, open all the while.
    """

    def __init__(self, url: str) -> None:
        self._watches = url
        self.url = url
        if url.startswith("postgres"):
            self.url += ("&" if "?" in url else "?") + "application_name=tested&synchronous_commit=off"
        self.store = open_store(url)
        self._watcher: Any = None

    async def __aenter__(self) -> Self:
        await self.store.open()
        await self.store.load("none", "none")  # so that its connections are there
        if self.url.startswith("postgres"):
            self._watcher = await asyncpg.connect(self._watches)
        self._close, self.store.close = self.store.close, _nothing  # type: ignore[method-assign]
        self._tasks, self._threads = asyncio.all_tasks(), set(threading.enumerate())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watcher is not None:
            await self._watcher.close()
        await self._close()

    async def emptied(self) -> Ledger:
        await self.store.reset()
        return Ledger()

    async def finished(self, scenario: Scenario, ledger: Ledger, way: Way = by_machine) -> None:
        """The other machine takes the run up at once, and it ends as it should."""
        found = await left(self.store, scenario, ledger)
        await asyncio.wait_for(way(self.store, scenario, ledger), SECONDS)
        await check_end(self.store, scenario, ledger, found)

    async def clean(self) -> None:
        """Nothing is left: no task, no thread, no connection, no transaction."""
        await gone(self._left)

    async def unlocked(self) -> None:
        """No transaction is open, though connections are."""
        await gone(self._transactions)

    async def _left(self) -> list[Any]:
        tasks = [t for t in asyncio.all_tasks() - self._tasks if t is not asyncio.current_task()]
        threads = [t for t in threading.enumerate() if t not in self._threads]
        return [*tasks, *threads] or (locked(self.url) if self._watcher is None else await self._sessions())

    async def _transactions(self) -> list[Any]:
        if self._watcher is None:
            return locked(self.url)
        return [s for s in await self._sessions() if str(s["state"]).startswith("idle in transaction")]

    async def _sessions(self) -> list[Any]:
        found: list[Any] = await self._watcher.fetch(
            "SELECT pid, state, query FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'tested'"
        )
        return found

    async def alive(self) -> set[str]:
        """The owners that are known."""
        return {owner.token for owner in await self.store.owners()}


async def _nothing() -> None:
    pass


@pytest.fixture
async def world(durable_url: str) -> AsyncIterator[World]:
    async with World(durable_url) as world:
        yield world


async def gone(look: Callable[[], Awaitable[list[Any]]]) -> None:
    """Wait until nothing is found any more. Fails after a moment, naming what is."""
    end = asyncio.get_running_loop().time() + SETTLED
    while found := await look():
        assert asyncio.get_running_loop().time() < end, f"left behind: {found}"
        await asyncio.sleep(0.002)


def locked(url: str) -> list[Any]:
    """What keeps another connection from writing at once."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=0, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        return [error]
    finally:
        connection.close()
    return []


async def every(what: str, attempt: Callable[[int], Awaitable[bool]], least: int) -> None:
    """Make one attempt for every place to cancel at, until there are no more."""
    for n in range(1, MOST):
        try:
            hit = await attempt(n)
        except (Exception, asyncio.CancelledError) as error:
            raise AssertionError(f"{what}, cancelled at await {n}: {error!r}") from error
        if not hit:
            assert n > least, f"{what} waited only {n - 1} times"
            return
    raise AssertionError(f"{what} waits more than {MOST} times")


# -- a machine, in the caller's own task ----------------------------------------------------------------------------


@places("remembered_calls", "actions_after_commits", "large_field", "rows_of_its_own")
async def test_P12_a_machine_cancelled_at_any_await_leaves_its_run_resumable(world: World, scenario: Scenario) -> None:
    async def attempt(n: int) -> bool:
        ledger = await world.emptied()
        machine = PersistentWorkflowStateMachine(world.url, scenario.make(ledger), KEY, scenario.input)
        hit = await cancelled(machine.run_workflow(), n)
        await world.clean()
        await world.finished(scenario, ledger)
        return hit

    await every(f"{scenario} by a machine", attempt, least=len(scenario.visits))


@places("synchronous_steps", "straight_line")
async def test_P12_a_machine_cancelled_beside_another_one_gives_its_run_back(world: World, scenario: Scenario) -> None:
    """The owner lives on where another machine uses the same DBConfig, so its end does not free the run."""

    async def attempt(n: int) -> bool:
        ledger = await world.emptied()
        config = DBConfig(url=world.url)
        worker = await config.acquire()
        try:
            machine = PersistentWorkflowStateMachine(config, scenario.make(ledger), KEY, scenario.input)
            hit = await cancelled(machine.run_workflow(), n)
            await world.unlocked()
            found = await freed(worker.store, scenario)
            assert found is None or found.owner is None, f"the run is still held, in state {found.state!r}"
            await world.finished(scenario, ledger)
        finally:
            await config.release()
        await world.clean()
        return hit

    await every(f"{scenario} by a machine beside another", attempt, least=len(scenario.visits))


@places("synchronous_steps", "straight_line")
async def test_P12_a_machine_cancelled_at_any_await_is_started_again_at_once_beside_another_one(
    world: World, scenario: Scenario
) -> None:
    """Its run may be about to be given back by the same owner, of which the next machine takes it for just made."""

    async def attempt(n: int) -> bool:
        ledger = await world.emptied()
        config = DBConfig(url=world.url)
        await config.acquire()
        try:
            machine = PersistentWorkflowStateMachine(config, scenario.make(ledger), KEY, scenario.input)
            hit = await cancelled(machine.run_workflow(), n)
            again = PersistentWorkflowStateMachine(config, scenario.make(ledger), KEY, scenario.input)
            with contextlib.suppress(Refused, RunFailed, ChildFailed):  # where the scenario ends so
                await asyncio.wait_for(again.run_workflow(), SECONDS)
            assert again.run is not None
            assert again.run.version > 0, "it has not moved"
        finally:
            await config.release()
        await world.clean()
        return hit

    await every(f"{scenario} by a machine started again", attempt, least=len(scenario.visits))


async def freed(store: Store, scenario: Scenario) -> Run | None:
    """The run as soon as nobody holds it, or as it is after a while; None where it is not even made after a moment."""
    end, turns = asyncio.get_running_loop().time() + SETTLED, 0
    while (run := await store.load(scenario.name, KEY)) is None or run.owner is not None:
        turns += 1
        if (run is None and turns == 100) or asyncio.get_running_loop().time() > end:
            return run
        await asyncio.sleep(0.002)
    return run


# -- an engine ------------------------------------------------------------------------------------------------------


@places("remembered_calls", "retried_twice", "rows_of_its_own")
async def test_P12_an_engine_whose_drive_is_cancelled_at_any_await_leaves_the_run_resumable(
    world: World, scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Roster.task

    async def attempt(n: int) -> bool:
        ledger = await world.emptied()
        flow, places = scenario.make(ledger), []

        async def cut(life: Coroutine[Any, Any, Any]) -> Any:
            if places:  # of a child
                return await life
            places.append(CancelledAt(life, n))
            return await places[0]

        monkeypatch.setattr(Roster, "task", lambda self, life, *over: task(self, cut(life), *over))
        async with Engine(world.url, workflows=[flow]) as engine:
            running = asyncio.create_task(engine.run(flow, scenario.input, key=KEY))
            await asyncio.wait([running], timeout=SECONDS)
            assert running.done(), "it hangs"
            assert running.cancelled() == places[0].hit
            await world.unlocked()
        monkeypatch.undo()
        await world.clean()
        await world.finished(scenario, ledger)
        return places[0].hit

    await every(f"{scenario} by an engine", attempt, least=len(scenario.visits))


VERBS: dict[str, Callable[[Engine, Workflow, Scenario], Coroutine[Any, Any, Any]]] = {
    "run": lambda engine, flow, scenario: engine.run(flow, scenario.input, key=KEY),
    "start": lambda engine, flow, scenario: engine.start(flow, scenario.input, key=KEY),
    "result": lambda engine, flow, scenario: engine.result(flow, KEY),
    "get": lambda engine, flow, scenario: engine.get(flow, KEY),
    "list": lambda engine, flow, scenario: engine.list(flow),
    "history": lambda engine, flow, scenario: engine.history(flow, KEY),
}
remembered = next(s for s in SCENARIOS if s.name == "remembered_calls")


@pytest.mark.parametrize("verb", VERBS)
async def test_P12_cancelling_a_verb_of_the_engine_at_any_await_stops_the_waiting_and_not_the_run(
    world: World, verb: str
) -> None:
    async def attempt(n: int) -> bool:
        ledger = await world.emptied()
        flow = remembered.make(ledger)
        async with Engine(world.url, workflows=[flow]) as engine:
            if verb not in ("run", "start"):
                await engine.start(flow, remembered.input, key=KEY)
            hit = await cancelled(VERBS[verb](engine, flow, remembered), n)
            await world.unlocked()
            run = await asyncio.wait_for(engine.run(flow, remembered.input, key=KEY), SECONDS)
            assert run.status == "done"
            await check_end(engine.store, remembered, ledger)
        await world.clean()
        return hit

    await every(verb, attempt, least=1)


def counter() -> Workflow:
    """It counts what is sent to it."""
    flow = Workflow("counter")

    def one_more(data: Any, event: Any) -> None:
        data["events"] = [*data.get("events", []), event.payload]

    flow.wait("open", initial=True, on={"add": To("open", update=one_more, internal=True), "work": "busy"})

    @flow.step(then=[(field("never").is_not_none(), "end"), "open"])
    async def busy(ctx: Any) -> None:
        ctx.data["worked"] = ctx.data.get("worked", 0) + 1

    flow.final("end")
    return flow


@pytest.mark.parametrize("event", ["add", "work"])
async def test_P12_a_send_that_is_cancelled_at_any_await_leaves_a_run_that_goes_on(world: World, event: str) -> None:
    async def attempt(n: int) -> bool:
        await world.emptied()
        flow = counter()
        async with Engine(world.url, workflows=[flow], poll=0.02) as engine:
            await engine.run(flow, key=KEY)
            hit = await cancelled(engine.send(flow, KEY, event, "first"), n)
            await world.unlocked()
            async with asyncio.timeout(SECONDS):  # by itself, without another event that wakes it
                while (await engine.get(flow, KEY)).status != "waiting":
                    await asyncio.sleep(0.002)
            await engine.send(flow, KEY, "work")
            await engine.send(flow, KEY, "add", "second")
            async with asyncio.timeout(SECONDS):
                while not (
                    (run := await engine.get(flow, KEY)).data.get("worked") and "second" in run.data.get("events", [])
                ):
                    await asyncio.sleep(0.002)
        await world.clean()
        return hit

    await every(f"send {event}", attempt, least=1)


async def test_P12_what_an_entity_is_sent_after_a_send_that_was_cancelled_is_not_lost(world: World) -> None:
    async def attempt(n: int) -> bool:
        await world.emptied()
        async with PersistentWorkflowStateMachine(world.url, counter(), key=KEY) as one:
            hit = await cancelled(one.send("add", "first"), n)
            sent = await asyncio.wait_for(one.send("add", "second"), SECONDS)
            assert sent.status == "accepted"
            assert one.data["events"] in (["first", "second"], ["second"])
        run = await world.store.load("counter", KEY)
        assert run is not None
        assert run.data["events"] in (["first", "second"], ["second"]), "it was said to be taken"
        await world.clean()
        return hit

    await every("send to an entity", attempt, least=1)


async def test_P12_cancelling_resume_at_any_await_leaves_every_run_to_the_next(world: World) -> None:
    def three() -> Workflow:
        flow = Workflow("three")

        @flow.step(initial=True, then="last")
        async def first(ctx: Any) -> None:
            await asyncio.sleep(0)

        @flow.step(then="end")
        async def last(ctx: Any) -> None:
            await asyncio.sleep(0)

        flow.final("end")
        return flow

    async def attempt(n: int) -> bool:
        await world.emptied()
        flow = three()
        async with Engine(world.url, workflows=[flow]) as engine:
            await lay_down(engine, flow, 5)
            hit = await cancelled(engine.resume(concurrency=2), n)
            await world.unlocked()
            async with Engine(world.url, workflows=[three()]) as other:  # while the first one lives on
                end = asyncio.get_running_loop().time() + SETTLED
                await asyncio.wait_for(other.resume(), SECONDS)
                while held := [(run.key, run.state) for run in await other.list("three") if run.status != "done"]:
                    assert asyncio.get_running_loop().time() < end, f"held by nobody who drives them: {held}"
                    await asyncio.sleep(0.01)
                    await asyncio.wait_for(other.resume(), SECONDS)
        await world.clean()
        return hit

    await every("resume", attempt, least=1)


async def lay_down(engine: Engine, flow: Workflow, many: int) -> None:
    """Runs that were made by a process which is no more."""
    from fsmworkflow.decide import begin

    flow.check()
    for number in range(many):
        await engine.store.create(begin(flow, f"run-{number}", {}, now=engine.store.now() - 1.0))


async def test_P12_cancelling_the_opening_of_an_engine_at_any_await_leaves_nothing_behind(world: World) -> None:
    async def attempt(n: int) -> bool:
        engine = Engine(world.url)
        hit = await cancelled(engine.__aenter__(), n)
        if not hit:
            await engine.close()
        await world.clean()
        assert await world.alive() == set(), "an owner that never was is taken for alive"
        return hit

    await every("opening", attempt, least=2)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
async def test_P12_cancelling_the_closing_of_an_engine_at_any_await_leaves_nothing_behind(
    world: World, busy: bool
) -> None:
    scenario = remembered

    async def attempt(n: int) -> bool:
        ledger = await world.emptied()
        flow = scenario.make(ledger)
        engine = Engine(world.url, workflows=[flow])
        await engine.__aenter__()
        await engine.start(flow, scenario.input, key=KEY)
        if not busy:
            await engine.result(flow, KEY)
        hit = await cancelled(engine.close(grace=0.0), n)
        await world.clean()
        await world.finished(scenario, ledger)
        return hit

    await every("closing", attempt, least=1)


# -- a store --------------------------------------------------------------------------------------------------------


async def test_P12_cancelling_the_opening_of_a_store_at_any_await_leaves_nothing_behind(world: World) -> None:
    async def attempt(n: int) -> bool:
        store = open_store(world.url)
        hit = await cancelled(store.open(), n)
        await store.close()
        await world.clean()
        return hit

    await every("opening a store", attempt, least=1)


async def test_P12_cancelling_the_closing_of_a_store_at_any_await_leaves_nothing_behind(world: World) -> None:
    async def attempt(n: int) -> bool:
        store = open_store(world.url)
        await store.open()
        await store.load("none", "none")
        hit = await cancelled(store.close(), n)
        await world.clean()
        return hit

    await every("closing a store", attempt, least=1)


async def test_P12_cancelling_a_first_reading_at_any_await_leaves_the_store_usable(world: World) -> None:
    async def attempt(n: int) -> bool:
        store = open_store(world.url)
        await store.open()
        hit = await cancelled(store.load("none", "none"), n)
        assert await asyncio.wait_for(store.load("none", "none"), SECONDS) is None
        await store.close()
        await world.clean()
        return hit

    await every("reading", attempt, least=1)
