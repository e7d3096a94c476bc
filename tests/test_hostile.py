"""What nobody meant: values, errors, owners, clocks and definitions at their worst, each with what holds then."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import enum
import logging
import resource
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import aiosqlite
import asyncpg
import msgspec
import pytest

import fsmworkflow.store.sqlite_statements
from fsmworkflow import (
    CodecError,
    DBConfig,
    DefinitionChanged,
    DefinitionError,
    Engine,
    EngineClosed,
    Event,
    LeaseLost,
    PersistentWorkflowStateMachine,
    Refused,
    Retry,
    Run,
    RunFailed,
    Store,
    StoreError,
    To,
    Transition,
    Workflow,
    WorkflowContext,
    WorkflowDefinition,
    field,
    open_store,
)
from fsmworkflow.decide import begin
from fsmworkflow.store.memory import MemoryStore
from fsmworkflow.store.sqlite import SQLiteStore
from fsmworkflow.testing import Clock
from fsmworkflow.threads import is_async
from tests.stopwatch import Stopwatch
from tests.waiting import PATIENCE, loads, until

Body = Callable[[WorkflowContext], Awaitable[Any]]


class Anything(msgspec.Struct):
    """Data of a type that lets anything in."""

    x: Any = None


class Camel(msgspec.Struct, rename="camel"):
    user_name: str = "nobody"


class Colour(enum.StrEnum):
    RED = "red"


async def nothing(ctx: WorkflowContext) -> None:
    """A step that does nothing."""


def one_step(body: Body, name: str = "flow", **options: Any) -> Workflow:
    workflow = Workflow(name, **options)
    workflow.step("only", initial=True, then="end")(body)
    workflow.final("end")
    return workflow.check()


@pytest.fixture
def two_seconds() -> Iterator[None]:
    """The test is ended after two seconds, also in the middle of what never awaits."""

    def late(*_: object) -> None:
        raise AssertionError("it takes longer than two seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 2.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
async def both(store_url: str) -> Any:
    """Two stores on one place, as two processes have them; of the one in memory twice the same."""
    first = open_store(store_url)
    second = first if store_url == "memory://" else open_store(store_url)
    await first.open()
    await second.open()
    yield first, second
    await second.close()
    await first.close()


# -- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [{"$field": "x"}, {"$datetime": "soon"}, {"$bytes": "-"}, {"$$date": 1}], ids=str)
async def test_typed_data_that_looks_like_the_stores_own_spelling_is_data(store_url: str, value: Any) -> None:
    workflow, other = one_step(nothing, data=Anything), one_step(nothing, "other")
    async with Engine(store_url, workflows=[workflow, other]) as engine:
        await engine.store.create(begin(other, "neighbour", {}, now=engine.store.now()))
        started = begin(workflow, "k", workflow.codec.start(Anything(value)), now=engine.store.now())
        await engine.store.create(started)
        assert await engine.resume() == 2
        assert (await engine.get(workflow, "k")).data == Anything(value)
        assert [list(entry.changes) for entry in await engine.history(workflow, "k")] == [["x"], []]


@pytest.mark.parametrize("value", [Decimal("NaN"), Decimal("sNaN"), float("nan")], ids=repr)
def test_what_is_not_equal_to_itself_is_refused(value: Any) -> None:
    with pytest.raises(CodecError, match=r"data\.v"):
        Workflow("flow").codec.start({"v": value})


@pytest.mark.parametrize("value", [Decimal("NaN"), Colour.RED, (1, 2), {1}, dt.date(2024, 2, 29)], ids=repr)
def test_typed_data_of_any_kind_comes_back_equal_or_is_refused(value: Any) -> None:
    codec = one_step(nothing, data=Anything).codec
    with contextlib.suppress(CodecError):
        assert codec.decode(codec.start(Anything(value))).x == value


def test_a_renamed_field_is_given_as_it_is_written() -> None:
    codec = one_step(nothing, data=Camel).codec
    assert codec.decode(codec.start({"userName": "bob"})) == Camel(user_name="bob")
    with pytest.raises(CodecError, match=r"data\.user_name.*would be lost"):
        codec.start({"user_name": "bob"})


def test_a_coroutine_in_the_data_asks_for_its_await() -> None:
    late = nothing(MagicMock())
    with pytest.raises(CodecError, match=r"data\.answer: nothing\(\) .*`await` missing"):
        Workflow("flow").codec.start({"answer": late})
    late.close()


@pytest.mark.parametrize("version", [[1], "1", 0, 1.5, True, None], ids=repr)
def test_a_version_that_no_store_takes_is_named(version: Any) -> None:
    with pytest.raises(DefinitionError, match="version"):
        one_step(nothing, version=version)


def test_a_mock_is_a_plain_function(two_seconds: None) -> None:
    assert is_async(MagicMock()) is False


# -- one bad write --------------------------------------------------------------------------------------------------


async def returns_no_text(ctx: WorkflowContext) -> str | None:
    return "\ud800" if ctx.data["i"] == 1 else None


async def remembers_under_no_text(ctx: WorkflowContext) -> None:
    async def one() -> int:
        return 1

    await ctx.remember("\ud800" if ctx.data["i"] == 1 else "name", one)


async def leaves_no_text(ctx: WorkflowContext) -> None:
    ctx.data["\ud800" if ctx.data["i"] == 1 else "name"] = "\0" if ctx.data["i"] == 1 else ""


@pytest.mark.parametrize("body", [returns_no_text, remembers_under_no_text, leaves_no_text])
async def test_what_cannot_be_stored_fails_its_own_run_only(store_url: str, body: Body) -> None:
    workflow = one_step(body)
    async with Engine(store_url, workflows=[workflow]) as engine:
        runs = [engine.run(workflow, {"i": i}, key=f"k{i}") for i in range(3)]
        found = await asyncio.gather(*runs, return_exceptions=True)
    assert [type(one) for one in found] == [Run, RunFailed, Run]


async def test_whatever_is_raised_while_writing_is_told_to_those_who_wait(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = one_step(nothing)
    async with Engine(sqlite_url, workflows=[workflow]) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(fsmworkflow.store.sqlite_statements, "write", lambda *_: {}["unforeseen"])
            with pytest.raises(KeyError, match="unforeseen"):
                await asyncio.wait_for(engine.run(workflow, key="k"), PATIENCE)
        assert (await engine.run(workflow, key="k")).status == "done"


# -- owners and clocks ----------------------------------------------------------------------------------------------


async def lapse(engine: Engine) -> None:
    """What a process finds that was stopped for longer than its lease."""
    engine.worker._lease._until = 0.0
    await engine.store.renew(engine.worker.token, 0.0)


async def test_an_owner_that_lapsed_between_two_attempts_leaves_the_next_one_to_the_other(
    both: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies: list[int] = []
    taken, renew = asyncio.Event(), both[0].renew

    async def body(ctx: WorkflowContext) -> None:
        bodies.append(ctx.run.epoch)
        if ctx.attempt == 1:
            await lapse(one)
            monkeypatch.setattr(both[0], "renew", late)
            raise OSError
        taken.set()
        await asyncio.sleep(0.5)

    async def late(token: str, until: float) -> bool:
        if token == one.worker.token:
            await taken.wait()
        return await renew(token, until)

    workflow = Workflow("flow")
    retry = Retry(first_delay=0.3, jitter=False)
    workflow.step("only", initial=True, then="end", retry=retry)(body)
    workflow.final("end")
    async with Engine(both[0], workflows=[workflow]) as one:
        running = asyncio.create_task(one.run(workflow, key="k"))
        while not bodies or one.roster.errands.get(("flow", "k")).drive.run.version < 1:  # type: ignore[union-attr]
            await asyncio.sleep(0.005)
        async with Engine(both[1], workflows=[workflow]) as two:
            assert (await two.run(workflow, key="k")).status == "done"
        assert (await running).status == "done"
    assert bodies == [1, 2]


async def test_an_owner_that_lapsed_does_no_action_of_a_run_that_is_anothers(both: tuple[Store, Store]) -> None:
    acted: list[int] = []
    at_the_end = asyncio.Event()

    async def act(ctx: WorkflowContext) -> None:
        acted.append(ctx.run.epoch)

    async def body(ctx: WorkflowContext) -> None:
        if ctx.run.epoch == 1:
            await at_the_end.wait()

    workflow = Workflow("flow")
    workflow.step("only", initial=True, then=To("end", after=act))(body)
    workflow.final("end")
    async with Engine(both[0], workflows=[workflow]) as one:
        running = asyncio.create_task(one.run(workflow, key="k"))
        while ("flow", "k") not in one.roster or one.roster.errands.get(("flow", "k")).drive is None:
            await asyncio.sleep(0.005)
        await lapse(one)
        async with Engine(both[1], workflows=[workflow]) as two:
            await two.run(workflow, key="k")
        at_the_end.set()
        assert (await running).status == "done"
    assert acted == [2]


async def test_a_clock_that_is_set_back_stops_no_run() -> None:
    clock = Clock()

    async def sets_back(ctx: WorkflowContext) -> None:
        clock.time -= 600

    workflow = Workflow("flow")
    workflow.step("one", initial=True, then="two")(sets_back)
    workflow.step("two", then="end")(nothing)
    workflow.final("end")
    async with Engine(MemoryStore(clock=clock), workflows=[workflow], grace=0) as engine:
        assert (await asyncio.wait_for(engine.run(workflow, key="k"), PATIENCE)).status == "done"


# -- callers of one run ---------------------------------------------------------------------------------------------


async def test_those_who_waited_for_a_run_get_its_failure_and_do_not_try_it_again(durable_url: str) -> None:
    began: list[int] = []

    async def fails(ctx: WorkflowContext) -> None:
        began.append(1)
        await go.wait()
        raise ValueError

    workflow, go = one_step(fails), asyncio.Event()
    engines = [Engine(durable_url, workflows=[workflow]) for _ in range(3)]
    async with engines[0], engines[1], engines[2]:
        first = asyncio.create_task(engines[0].run(workflow, key="k"))
        while not began:
            await asyncio.sleep(0.005)
        looked = [loads(engine.store) for engine in engines[1:]]
        others = [asyncio.create_task(engine.run(workflow, key="k")) for engine in engines[1:]]
        await until(lambda: all(one["k"] > 1 for one in looked))
        go.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
    assert [type(one) for one in found] == [RunFailed] * 3
    assert len(began) == 1


async def test_run_takes_a_failed_run_up_also_beside_a_start(store_url: str) -> None:
    began: list[int] = []

    async def fails_once(ctx: WorkflowContext) -> None:
        began.append(1)
        if len(began) == 1:
            raise ValueError

    workflow = one_step(fails_once)
    async with Engine(store_url, workflows=[workflow]) as engine:
        with pytest.raises(RunFailed):
            await engine.run(workflow, key="k")
        _, run = await asyncio.gather(engine.start(workflow, key="k"), engine.run(workflow, key="k"))
    assert run.status == "done"


async def test_run_drives_a_run_that_was_refused_to_another_caller_at_the_same_time(store_url: str) -> None:
    workflow = one_step(nothing)
    async with Engine(store_url, workflows=[workflow]) as engine:
        await engine.store.create(begin(workflow, "k", workflow.codec.start({"x": 1}), now=0.0))
        _, run = await asyncio.gather(
            engine.run(workflow, {"x": 2}, key="k", different="refuse"),
            engine.run(workflow, {"x": 1}, key="k"),
            return_exceptions=True,
        )
        assert isinstance(run, Run)
        assert run.status == "done"


@pytest.mark.parametrize("grace", [0.0, 2.0])
async def test_run_says_that_the_engine_was_closed_before_the_run_rested(store_url: str, grace: float) -> None:
    begun = asyncio.Event()

    async def slow(ctx: WorkflowContext) -> None:
        begun.set()
        await asyncio.sleep(0.3)

    workflow = Workflow("flow")
    workflow.step("one", initial=True, then="two")(slow)
    workflow.step("two", then="end")(slow)
    workflow.final("end")
    engine = Engine(store_url, workflows=[workflow])
    await engine.__aenter__()
    running = asyncio.create_task(engine.run(workflow, key="k"))
    await begun.wait()
    await engine.close(grace=grace)
    with pytest.raises(EngineClosed):
        await running


async def test_a_machine_says_that_the_run_which_it_takes_up_was_started_with_other_data(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    store, failing = open_store(store_url), [True]

    async def fails_once(ctx: WorkflowContext) -> None:
        if failing.pop() if failing else False:
            raise OSError

    workflow = one_step(fails_once)
    await store.open()
    try:
        with pytest.raises(OSError):
            await PersistentWorkflowStateMachine(store, workflow, data={"topic": "birds"}).run_workflow()
        with caplog.at_level(logging.WARNING, "fsmworkflow"):
            caplog.clear()
            run = await PersistentWorkflowStateMachine(store, workflow, data={"topic": "trees"}).run_workflow()
    finally:
        await store.close()
    assert run.data == {"topic": "birds"}
    assert f"run flow/{run.key} was started with a different input" in caplog.text


# -- errors of the user's own ---------------------------------------------------------------------------------------


async def test_an_action_that_was_on_when_its_caller_stopped_is_done_by_the_next_machine(durable_url: str) -> None:
    done: list[str] = []
    acting = asyncio.Event()

    class Machine(PersistentWorkflowStateMachine):
        async def notify(self, ctx: WorkflowContext) -> None:
            if not acting.is_set():
                acting.set()
                await asyncio.sleep(60)
            done.append(ctx.run.key)

    async def only(ctx: WorkflowContext) -> str:
        return "ended"

    def machine() -> Machine:
        made = Machine(
            durable_url, WorkflowDefinition("flow", ["only"], [Transition("ended", "only", None, after="notify")])
        )
        made.steps = {"only": only}
        return made

    first = machine()
    running = asyncio.create_task(first.run_workflow())
    await acting.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    run = await machine().run_workflow()
    assert first.run is not None
    assert (run.key, run.status, done) == (first.run.key, "done", [first.run.key])


@pytest.mark.parametrize("where", ["step", "action", "guard"])
async def test_a_cancellation_that_is_the_users_own_fails_the_run_and_stops_nobody(store_url: str, where: str) -> None:
    async def cancelled(ctx: WorkflowContext) -> bool:
        raise asyncio.CancelledError

    workflow = Workflow("flow")
    leads = {"step": "end", "action": To("end", after=cancelled), "guard": [(cancelled, "end"), "end"]}
    workflow.step("only", initial=True, then=leads[where])(cancelled if where == "step" else nothing)
    workflow.final("end")
    async with Engine(store_url, workflows=[workflow]) as engine:
        await engine.store.create(begin(workflow.check(), "k", {}, now=engine.store.now()))
        assert await engine.resume() == 1
        run = await engine.get(workflow, "k")
    assert run.error is not None
    assert run.error.type == "CancelledError"
    assert run.status == ("done" if where == "action" else "failed")


@pytest.mark.parametrize("error", [LeaseLost("another engine's"), StoreError("another database")], ids=repr)
async def test_an_error_of_another_store_is_the_steps_own(store_url: str, error: Exception) -> None:
    began: list[int] = []

    async def fails(ctx: WorkflowContext) -> None:
        began.append(1)
        raise error

    workflow = one_step(fails)
    async with Engine(store_url, workflows=[workflow]) as engine:
        with pytest.raises(RunFailed) as failed:
            await asyncio.wait_for(engine.run(workflow, key="k"), PATIENCE)
    assert failed.value.__cause__ is error
    assert len(began) == 1


# -- definitions ----------------------------------------------------------------------------------------------------


def within_two_seconds(check: Callable[[], object], stopwatch: Stopwatch) -> None:
    """P14: two seconds and 300 MB."""
    held, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    check()
    assert stopwatch.since(began) < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < 300 * 1024  # kilobytes


async def test_a_chain_of_choices_that_never_comes_to_rest_fails_the_run(store_url: str) -> None:
    workflow = Workflow("flow")
    for i in range(1_200):
        workflow.choice(f"c{i}", f"c{i + 1}" if i < 1_199 else "end", initial=i == 0)
    workflow.final("end")
    async with Engine(store_url, workflows=[workflow]) as engine:
        with pytest.raises(RunFailed, match="1,000 moves"):
            await engine.run(workflow, key="k")


def long_chain() -> Workflow:
    workflow = Workflow("flow")
    for i in range(2_000):
        workflow.step(f"s{i}", initial=i == 0, then=f"s{i + 1}" if i < 1_999 else "end")(nothing)
    workflow.final("end")
    return workflow


def test_three_hundred_transitions_out_of_two_thousand_states_are_checked(stopwatch: Stopwatch) -> None:
    workflow = long_chain()
    for i in range(300):
        workflow.transition(f"t{i}", "*", f"s{i}")
    within_two_seconds(workflow.check, stopwatch)
    assert [arc.dest for arc in workflow.chart.named("s1999", "t7")] == ["s7"]
    assert workflow.chart.named("end", "t7") == ()


def test_three_hundred_timers_of_two_thousand_states_are_checked(stopwatch: Stopwatch) -> None:
    workflow = long_chain()
    for i in range(300):
        workflow.add(Transition(source="*", dest="s0", delay=60 + i))
    within_two_seconds(workflow.check, stopwatch)
    assert len(workflow.chart.delays["s1999"]) == 300


async def test_what_leads_out_of_every_state_stands_in_order_with_what_leads_out_of_one(store_url: str) -> None:
    workflow = Workflow("flow")
    workflow.wait("a", initial=True, on={"other": "b"})
    workflow.wait("b")
    workflow.add(Transition("go", "*", "first", conditions=field("n") == 1))
    workflow.add(Transition("go", "a", "own", conditions=field("n") == 2))
    workflow.add(Transition("go", "*", "last"))
    workflow.final("first", "own", "last")
    async with Engine(store_url, workflows=[workflow]) as engine:
        ends = []
        for n in (1, 2, 3):
            await engine.start(workflow, {"n": n}, key=f"k{n}")
            await engine.send(workflow, f"k{n}", "go")
            ends.append((await engine.result(workflow, f"k{n}")).state)
    assert ends == ["first", "own", "last"]


def test_a_thousand_unknown_states_with_long_names_are_told(stopwatch: Stopwatch) -> None:
    workflow = Workflow("flow")
    for i in range(199):
        targets = [(field("x") == j, f"x{i}_{j}" * 20) for j in range(5)]
        workflow.choice(f"s{i}" * 40, targets, initial=i == 0)

    def check() -> None:
        with pytest.raises(DefinitionError) as refused:
            workflow.check()
        assert len(refused.value.problems) >= 995

    within_two_seconds(check, stopwatch)


@pytest.mark.parametrize("negated", [False, True])
def test_conditions_that_are_nested_too_deeply_are_refused(negated: bool) -> None:
    guard: Any = field("a") == 1
    for _ in range(300):
        guard = ~((guard & (field("b") == 1)) | (field("c") == 1)) if negated else (guard & nothing) | (field("c") == 1)
    workflow = Workflow("flow")
    workflow.choice("a", [(guard, "end"), "end"], initial=True)
    workflow.final("end")
    with pytest.raises(DefinitionError, match="levels deep, and 100 are allowed"):
        workflow.check()


async def test_conditions_that_are_nested_as_deeply_as_they_may_are_asked(store_url: str) -> None:
    guard: Any = field("a") == 1
    for _ in range(49):
        guard = (guard & (field("b") == 1)) | (field("c") == 1)
    assert guard.depth == 99
    workflow = Workflow("flow")
    workflow.choice("a", [(guard, "deep"), "end"], initial=True)
    workflow.final("deep", "end")
    async with Engine(store_url, workflows=[workflow]) as engine:
        assert (await engine.run(workflow, {"a": 1, "b": 1, "c": 2}, key="k")).state == "deep"
        assert (await engine.run(workflow, {"a": 2, "b": 1, "c": 2}, key="k2")).state == "end"


def test_lists_of_conditions_that_are_nested_too_deeply_are_refused() -> None:
    nested: Any = [field("a") == 1]
    for _ in range(5_000):
        nested = [nested]
    workflow = Workflow("flow")
    workflow.choice("a", [(nested, "end"), "end"], initial=True)
    workflow.final("end")
    with pytest.raises(DefinitionError, match="nested too deeply"):
        workflow.check()


async def test_a_run_whose_state_is_gone_says_what_to_do_and_is_left_alone(store_url: str) -> None:
    store, before, after = open_store(store_url), Workflow("flow"), Workflow("flow")
    before.wait("reading", initial=True, on={"go": "end"})
    after.wait("approval", initial=True, on={"go": "end"})
    before.final("end")
    after.final("end")
    await store.open()
    async with Engine(store, workflows=[before]) as engine:
        run = await engine.run(before, key="k")
    async with Engine(store, workflows=[after]) as engine:
        await engine.store.post("flow", "k", Event(name="go", id="one"))
        with pytest.raises(DefinitionChanged, match=r"'reading'.*declare it again"):
            await engine.run(after, key="k")
        with pytest.raises(DefinitionChanged, match=r"'reading'.*declare it again"):
            await engine.fork(after, "k", new_key="other")
        assert (await engine.get(after, "k")).version == run.version
    await store.close()


# -- places ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a%2520b.db", "a%3Fb.db", "100%25.db", "a b.db"])
async def test_the_url_of_a_store_opens_the_same_store(tmp_path: Path, name: str) -> None:
    store = open_store(f"sqlite:///{tmp_path}/{name}")
    again = open_store(store.url)
    assert again.url == store.url
    workflow = one_step(nothing)
    async with Engine(store, workflows=[workflow]) as engine:
        await engine.run(workflow, key="k")
    async with Engine(DBConfig(url=store.url), workflows=[workflow]) as engine:
        assert (await engine.get(workflow, "k")).status == "done"
    assert isinstance(store, SQLiteStore)
    assert [path.name for path in tmp_path.iterdir()] == [Path(store.path).name]


@pytest.mark.parametrize("path", ["/tmp/a\0b.db", "/tmp/a%00b.db", "~nobody-of-this-name/x.db", ":memory:", ""])
def test_a_path_that_no_file_can_have_is_refused_at_once(path: str) -> None:
    with pytest.raises(StoreError, match="is not the path of a SQLite file"):
        open_store(f"sqlite:///{path}")


async def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "of" / "none"
    with pytest.raises(StoreError, match=f"there is no directory {missing}"):
        await open_store(f"sqlite:///{missing}/x.db").open()


async def test_closing_a_locked_file_comes_to_an_end(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsmworkflow.store.sqlite, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(fsmworkflow.store.sqlite, "CLOSE_SECONDS", 0.3)
    monkeypatch.setattr("fsmworkflow.worker.CLOSE_SECONDS", 0.3)
    workflow = one_step(nothing)
    engine = Engine(sqlite_url, workflows=[workflow], grace=0.1)
    await engine.__aenter__()
    other = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    starting = asyncio.create_task(engine.start(workflow, key="k"))
    await asyncio.sleep(0.1)
    await asyncio.wait_for(engine.close(), PATIENCE)
    other.close()
    (found,) = await asyncio.gather(starting, return_exceptions=True)
    assert isinstance(found, (StoreError, asyncio.CancelledError))
    async with Engine(sqlite_url, workflows=[workflow]) as engine:
        assert (await engine.run(workflow, key="k")).status == "done"


async def test_an_engine_leaves_a_store_open_that_was_given_to_it_open(store_url: str) -> None:
    store, workflow = open_store(store_url), one_step(nothing)
    await store.open()
    async with Engine(store, workflows=[workflow]) as engine:
        await engine.run(workflow, key="k")
    assert store.opened
    assert (await store.load("flow", "k")) is not None
    await store.close()
    async with Engine(store, workflows=[workflow]):
        pass
    assert not store.opened


def test_a_run_is_shown_in_a_line(store_url: str) -> None:
    run = begin(one_step(nothing), "k", {}, now=0.0)
    assert repr(run) == "<Run flow/k: running in 'only', version 0>"


# -- a database that does not take a row -----------------------------------------------------------------------------


async def refuse_words(url: str, word: str) -> None:
    """A database whose table does not take a run with this word in its data."""
    if url.startswith("sqlite"):
        async with aiosqlite.connect(url.removeprefix("sqlite:///")) as db:
            for what in ("UPDATE", "INSERT"):
                await db.execute(
                    f"CREATE TRIGGER no_{what} BEFORE {what} ON fsm_runs WHEN NEW.data LIKE '%{word}%' "
                    "BEGIN SELECT RAISE(ABORT, 'not such a word'); END"
                )
            await db.commit()
    else:
        db = await asyncpg.connect(url)
        await db.execute(f"ALTER TABLE fsm_runs ADD CONSTRAINT words CHECK (data NOT LIKE '%{word}%')")
        await db.close()


@pytest.mark.parametrize("url", ["sqlite_url", "postgres_url"])
async def test_a_row_that_the_database_refuses_fails_its_run_once_and_its_neighbours_go_on(
    url: str, request: pytest.FixtureRequest
) -> None:
    url, begun = request.getfixturevalue(url), Counter[str]()
    flow = Workflow("words")

    @flow.step(initial=True, then="more")
    async def first(ctx: Any) -> None:
        begun[ctx.run.key] += 1
        ctx.data["word"] = "bad" if ctx.run.key == "k3" else "good"

    @flow.step(then="end", retry=Retry(attempts=3, first_delay=0.01))
    async def more(ctx: Any) -> None:
        ctx.data["more"] = True

    flow.final("end")
    async with Engine(url, workflows=[flow]) as engine:
        await refuse_words(url, "bad")
        runs = await asyncio.gather(*(engine.run(flow, {}, key=f"k{n}") for n in range(6)), return_exceptions=True)
        refused = runs.pop(3)
        assert isinstance(refused, RunFailed)
        assert isinstance(refused.__cause__, Refused)
        assert (refused.run.error.type, refused.run.error.state) == ("Refused", "first")
        assert {run.status for run in runs} == {"done"}
        assert begun == Counter({f"k{n}": 1 for n in range(6)})
        with pytest.raises(Refused):
            await engine.run(flow, {"word": "bad"}, key="never")
        with pytest.raises(RunFailed):
            await engine.run(flow, {}, key="k3")  # it keeps its place
        assert begun["k3"] == 2


@pytest.mark.parametrize("url", ["sqlite_url", "postgres_url"])
async def test_a_child_that_the_database_refuses_counts_as_failed(url: str, request: pytest.FixtureRequest) -> None:
    url, begun = request.getfixturevalue(url), Counter[int]()
    flow = Workflow("word")

    @flow.step(initial=True, then="end")
    async def say(ctx: Any) -> None:
        begun[ctx.data["index"]] += 1
        ctx.data["word"] = "bad" if ctx.data["index"] == 1 else "good"

    flow.final("end")
    family = Workflow("family")
    family.each("all", flow, over=field("items"), initial=True, then="end", on_failure="collect", into="ends")
    family.final("end")
    async with Engine(url, workflows=[family]) as engine:
        await refuse_words(url, '"bad"')
        run = await asyncio.wait_for(engine.run(family, {"items": [1, 2, 3]}, key="k"), PATIENCE)
        assert [one["status"] for one in run.data["ends"]] == ["done", "failed", "done"]
        assert begun == Counter([0, 1, 2])
