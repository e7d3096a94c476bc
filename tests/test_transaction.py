"""`ctx.transaction()`: a step's own rows are written with its move, exactly once, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import aiosqlite
import asyncpg
import pytest

from fsmworkflow import (
    Engine,
    Event,
    FSMWorkflowError,
    Move,
    PersistentWorkflowStateMachine,
    Retry,
    Run,
    RunFailed,
    Store,
    TransactionError,
    Workflow,
)
from fsmworkflow.decide import begin, decide
from fsmworkflow.drive import Drive
from fsmworkflow.errors import RolledBack
from fsmworkflow.joint import take_after
from fsmworkflow.records import replace
from fsmworkflow.store import sqlite_lent
from fsmworkflow.store.lent import Lent
from fsmworkflow.store.postgres_server import SQL
from fsmworkflow.store.sql import ends_transaction
from tests.children import Children
from tests.stopwatch import Stopwatch
from tests.waiting import PATIENCE, until

QUICK = Retry(attempts=3, first_delay=0, max_delay=0)
INSERT = "INSERT INTO mine VALUES (1)"


async def asked(url: str, query: str) -> list[Any]:
    """Rows of the database, as somebody beside sees them."""
    if url.startswith("sqlite"):
        async with aiosqlite.connect(url.removeprefix("sqlite:///")) as db:
            rows = list(await (await db.execute(query)).fetchall())
            await db.commit()
            return rows
    db = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await db.fetch(query)]
    finally:
        await db.close()


async def mine(url: str) -> list[int]:
    return [row[0] for row in await asked(url, "SELECT n FROM mine ORDER BY n")]


@pytest.fixture
async def url(durable_url: str) -> str:
    """A store with a table of the user's beside its own."""
    await asked(durable_url, "CREATE TABLE mine (n bigint)")
    return durable_url


def one_step(step: Callable[..., Any], **more: Any) -> Workflow:
    flow = Workflow("flow")
    flow.step("work", initial=True, then="end", **more)(step)
    flow.final("end")
    return flow


async def run(store: str | Store, step: Callable[..., Any], **more: Any) -> Run:
    flow = one_step(step, **more)
    async with Engine(store, workflows=[flow]) as engine:
        return await engine.run(flow, key="k")


async def failing(store: str | Store, step: Callable[..., Any], **more: Any) -> BaseException | None:
    """The error with which a step's run fails."""
    with pytest.raises(RunFailed) as failed:
        await run(store, step, **more)
    return failed.value.__cause__


OPEN = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in tran%'"


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is helped by the end of the time for which SQLite's connection is lent, or PostgreSQL waits."""
    monkeypatch.setattr(sqlite_lent, "LENT_SECONDS", 600.0)
    for name in ("begin", "impatient"):
        assert "timeout = 5000" in SQL[name]
        monkeypatch.setitem(SQL, name, SQL[name].replace("timeout = 5000", "timeout = 600000"))


async def nothing_is_open(url: str) -> None:
    """Somebody else can write, and nobody is in a transaction."""
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=PATIENCE)) as db:
            db.execute("BEGIN IMMEDIATE")
    else:
        # A connection that was cut off is still in the list until its server process reads that.
        await until(lambda: none_is_open(url))


async def none_is_open(url: str) -> bool:
    return await asked(url, OPEN) == [(0,)]


# -- with the move, or not at all -----------------------------------------------------------------------------------


async def test_what_a_step_writes_is_there_with_its_move_and_not_before(url: str) -> None:
    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
        assert await mine(url) == []
        ctx.data["written"] = True

    done = await run(url, work)
    assert (done.status, done.data) == ("done", {"written": True})
    assert await mine(url) == [1]
    await nothing_is_open(url)


async def test_a_machine_commits_it_too_and_it_is_the_drivers_own_connection(url: str) -> None:
    kind = aiosqlite.Connection if url.startswith("sqlite") else asyncpg.Connection

    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            assert isinstance(db, kind)
            await db.execute(INSERT)

    await PersistentWorkflowStateMachine(url, one_step(work), key="k").run_workflow()
    assert await mine(url) == [1]


async def test_a_failed_attempt_leaves_nothing_and_the_next_one_writes_once(url: str) -> None:
    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
        if ctx.attempt < 3:
            raise OSError("not yet")

    assert (await run(url, work, retry=QUICK)).status == "done"
    assert await mine(url) == [1]


async def test_a_second_block_has_the_same_connection_and_transaction(url: str) -> None:
    async def work(ctx: Any) -> None:
        async with ctx.transaction() as first:
            await first.execute(INSERT)
            async with ctx.transaction() as second:
                assert second is first
        async with ctx.transaction() as third:
            assert third is first
            await third.execute("INSERT INTO mine VALUES (2)")

    await run(url, work)
    assert await mine(url) == [1, 2]


async def test_a_step_that_ends_late_or_is_stopped_leaves_nothing(url: str) -> None:
    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
        await asyncio.sleep(60)

    error = await failing(url, work, timeout=0.05)
    assert isinstance(error, TimeoutError)
    assert await mine(url) == []
    await nothing_is_open(url)


async def test_a_step_whose_end_leads_nowhere_leaves_nothing(url: str) -> None:
    async def work(ctx: Any) -> str:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
        return "no_such_trigger"

    await failing(url, work)
    assert await mine(url) == []
    await nothing_is_open(url)


async def test_a_cancelled_run_leaves_nothing(url: str) -> None:
    inside = asyncio.Event()

    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            inside.set()
            await asyncio.sleep(60)

    flow = one_step(work)
    async with Engine(url, workflows=[flow], grace=0.1) as engine:
        await engine.start(flow, key="k")
        await inside.wait()
        if url.startswith("postgres"):
            assert (await engine.cancel(flow, "k")).status == "cancelled"
    assert await mine(url) == []
    await nothing_is_open(url)


async def test_a_time_that_leaves_the_state_takes_it_back_before_the_move(url: str) -> None:
    for seconds in (0.2, 2, 20):
        if await left_by_time(url, seconds):  # else it came before the transaction had begun
            break
    else:
        raise AssertionError("the step never began")
    assert await mine(url) == []


async def left_by_time(url: str, seconds: float) -> bool:
    """Let a run's time come in the middle of its transaction. False where that had not begun by then."""
    inside = asyncio.Event()
    flow = Workflow(f"flow of {seconds} s")
    around = flow.state("around", initial=True, after={seconds: "late"})

    @around.step(initial=True, then="inner")
    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            inside.set()
            await asyncio.sleep(60)

    around.final("inner")
    flow.final("late")
    async with Engine(url, workflows=[flow], poll=0.05) as engine, asyncio.timeout(PATIENCE):
        assert (await engine.run(flow, key="k")).state == "late"
    return inside.is_set()


async def test_steps_of_regions_beside_it_end_while_it_is_open_and_nobody_waits_for_ever(url: str) -> None:
    """On SQLite their moves have to wait for it, and it waits for nothing but its own move."""
    flow = Workflow("flow")
    both = flow.parallel("both", initial=True, then="end")
    one, two, three = both.region("one"), both.region("two"), both.region("three")
    inside, out = asyncio.Event(), asyncio.Event()

    @one.step(initial=True, then="over")
    async def long(ctx: Any) -> None:
        async with ctx.transaction() as db:
            inside.set()
            await db.execute(INSERT)
            await asyncio.wait([asyncio.ensure_future(out.wait())], timeout=0.3)

    @two.step(initial=True, then="over")
    async def short(ctx: Any) -> None:
        await inside.wait()
        ctx.data["short"] = True

    @three.step(initial=True, then="over")
    async def next_one(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute("INSERT INTO mine VALUES (2)")

    for region in (one, two, three):
        region.final("over")
    flow.final("end")
    async with Engine(url, workflows=[flow]) as engine, asyncio.timeout(PATIENCE):
        assert (await engine.run(flow, key="k")).data == {"short": True}
    assert await mine(url) == [1, 2]


async def test_a_step_that_has_ended_beside_one_whose_transaction_comes_to_nothing_is_not_run_again(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, stopwatch: Stopwatch
) -> None:
    await asked(sqlite_url, "CREATE TABLE mine (n bigint)")
    flow, bodies = Workflow("flow"), Counter[str]()
    both = flow.parallel("both", initial=True, then="end")
    one, two = both.region("one"), both.region("two")
    inside, waited = asyncio.Event(), asyncio.Event()

    @one.step(initial=True, then="over")
    async def long(ctx: Any) -> None:
        bodies["long"] += 1
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            inside.set()
            await waited.wait()

    @two.step(initial=True, then="over")
    async def short(ctx: Any) -> None:
        bodies["short"] += 1
        await inside.wait()

    for region in (one, two):
        region.final("over")
    flow.final("end")
    commit, tried = sqlite_lent.SQLiteLent.commit, []

    async def away(self: Any, move: Any) -> Any:
        tried.append(move)
        if len(tried) == 1:
            raise RolledBack("database or disk is full")
        return await commit(self, move)

    async def noted(*of: Any) -> None:
        waited.set()
        await take_after(*of)

    monkeypatch.setattr(sqlite_lent.SQLiteLent, "commit", away)
    monkeypatch.setattr("fsmworkflow.drive.take_after", noted)
    began = time.monotonic()
    async with Engine(sqlite_url, workflows=[flow]) as engine, asyncio.timeout(PATIENCE):
        assert (await engine.run(flow, key="k")).state == "end"
    assert stopwatch.since(began) < 4
    assert waited.is_set()
    assert bodies == {"long": 2, "short": 1}
    assert await mine(sqlite_url) == [1]


async def test_an_owner_whose_run_was_claimed_writes_no_rows_either(url: str) -> None:
    epochs = []

    async def work(ctx: Any) -> None:
        epochs.append(ctx.run.epoch)
        if len(epochs) == 1:
            await asked(url, "UPDATE fsm_runs SET owner = 'a dead one', epoch = epoch + 1 RETURNING id")
        async with ctx.transaction() as db:
            await db.execute(INSERT)

    assert (await run(url, work)).status == "done"
    assert epochs == [1, 3]
    assert await mine(url) == [1]


async def test_an_undoing_has_a_transaction_too(url: str) -> None:
    async def give_back(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute("DELETE FROM mine")
            await db.execute("INSERT INTO mine VALUES (7)")

    flow = Workflow("flow")

    @flow.step(initial=True, then="pay", compensate=give_back)
    async def book(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)

    @flow.step(then="end")
    async def pay(ctx: Any) -> None:
        assert await mine(url) == [1]
        raise OSError("no money")

    flow.final("end")
    async with Engine(url, workflows=[flow]) as engine:
        with pytest.raises(RunFailed):
            await engine.run(flow, key="k")
    assert await mine(url) == [7]


async def test_what_is_emitted_goes_in_the_same_commit(url: str) -> None:
    box = Workflow("box")
    box.wait("open", initial=True, on={"paid": "closed"})
    box.final("closed")

    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            await ctx.emit(box, "b", "paid")

    flow = one_step(work)
    async with Engine(url, workflows=[flow, box]) as engine, asyncio.timeout(PATIENCE):
        await engine.run(box, key="b")
        await engine.run(flow, key="k")
        while (await engine.get(box, "b")).status != "done":
            await asyncio.sleep(0.005)
    assert await mine(url) == [1]


# -- errors inside --------------------------------------------------------------------------------------------------


async def test_a_failing_statement_is_the_steps_own_error_as_the_driver_raised_it(url: str) -> None:
    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            await db.execute("INSERT INTO no_such_table VALUES (1)")

    error = await failing(url, work)
    assert isinstance(error, sqlite3.OperationalError | asyncpg.UndefinedTableError)
    assert await mine(url) == []
    await nothing_is_open(url)


async def test_an_error_that_leaves_the_only_block_may_be_caught_and_its_rows_are_gone(url: str) -> None:
    async def work(ctx: Any) -> None:
        with contextlib.suppress(KeyError):
            async with ctx.transaction() as db:
                await db.execute(INSERT)
                raise KeyError("a")
        async with ctx.transaction() as db:
            await db.execute("INSERT INTO mine VALUES (2)")

    assert (await run(url, work)).status == "done"
    assert await mine(url) == [2]


async def test_an_error_that_takes_earlier_blocks_along_cannot_be_ignored(url: str) -> None:
    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
        with contextlib.suppress(KeyError):
            async with ctx.transaction() as db:
                raise KeyError("a")

    error = await failing(url, work)
    assert isinstance(error, TransactionError)
    assert "KeyError" in str(error)
    assert await mine(url) == []


async def test_a_failed_statement_that_is_ignored_fails_the_step_where_the_database_says_so(postgres_url: str) -> None:
    await asked(postgres_url, "CREATE TABLE mine (n bigint)")

    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            with contextlib.suppress(asyncpg.PostgresError):
                await db.execute("SELECT 1/0")

    error = await failing(postgres_url, work)
    assert isinstance(error, TransactionError)
    assert "aborted" in str(error)
    assert await mine(postgres_url) == []


async def test_savepoints_are_the_users(url: str) -> None:
    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            await db.execute("SAVEPOINT mine")
            await db.execute("INSERT INTO mine VALUES (2)")
            await db.execute("ROLLBACK TO SAVEPOINT mine")
            await db.execute("RELEASE SAVEPOINT mine")
            if hasattr(db, "transaction"):
                async with db.transaction():
                    await db.execute("INSERT INTO mine VALUES (3)")
            else:
                await db.execute("INSERT INTO mine VALUES (3)")

    await run(url, work)
    assert await mine(url) == [1, 3]


ENDS = [
    "COMMIT", "ROLLBACK", "BEGIN", "END", "  -- so\n commit", "INSERT INTO mine VALUES (5); COMMIT", "/* */COMMIT",
    "; COMMIT", "COMMIT; BEGIN",
]  # fmt: skip


@pytest.mark.parametrize("sql", ENDS)
async def test_ending_it_by_hand_is_refused_at_once_and_nothing_is_kept(url: str, sql: str) -> None:
    went_on = []

    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            await (db.executescript(sql) if url.startswith("sqlite") else db.execute(sql))
            went_on.append(True)

    error = await failing(url, work)
    assert isinstance(error, TransactionError)
    assert "savepoints" in str(error)
    assert not went_on
    assert await mine(url) == []
    await nothing_is_open(url)


async def test_every_way_of_the_driver_to_end_it_is_refused(url: str) -> None:
    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            ways = (
                [db.commit, db.rollback]
                if url.startswith("sqlite")
                else [lambda f=f: f("COMMIT") for f in (db.execute, db.fetch, db.fetchrow, db.fetchval, db.prepare)]
                + [lambda: db.executemany("COMMIT", [()]), db.reset, db.close]
            )
            for way in ways:
                with pytest.raises((TransactionError, sqlite3.DatabaseError)):
                    await way()
            await db.execute("INSERT INTO mine VALUES (2)")

    await run(url, work)
    assert await mine(url) == [1, 2]


NESTED = ["/* a /* b */ c */ COMMIT", "/* /* x */ ' */ COMMIT; INSERT INTO mine VALUES ('7')", "COMMIT AND CHAIN"]


@pytest.mark.parametrize("sql", [*NESTED, "PREPARE TRANSACTION 'mine'", "ROLLBACK AND CHAIN", "COMMIT PREPARED 'a'"])
async def test_what_only_postgres_has_to_end_it_is_refused_too(postgres_url: str, sql: str) -> None:
    await asked(postgres_url, "CREATE TABLE mine (n bigint)")

    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            await db.execute(sql)

    assert isinstance(await failing(postgres_url, work), TransactionError)
    assert await mine(postgres_url) == []
    await nothing_is_open(postgres_url)


async def test_on_sqlite_the_authorizer_that_watches_over_it_is_not_the_steps(sqlite_url: str) -> None:
    await asked(sqlite_url, "CREATE TABLE mine (n bigint)")

    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            with contextlib.suppress(TransactionError):
                await db.set_authorizer(None)
            await db.commit()

    assert isinstance(await failing(sqlite_url, work), TransactionError)
    assert await mine(sqlite_url) == []


def test_what_ends_a_transaction_is_known_from_what_only_looks_so() -> None:
    for query in (
        "commit",
        "Commit;",
        "SELECT 1; /* ; */ END",
        "ROLLBACK",
        "rollback work",
        "START  TRANSACTION",
        "ABORT",
    ):
        assert ends_transaction(query), query
    for query in (
        "ROLLBACK TO a", "rollback work to savepoint a", "SAVEPOINT begin", "INSERT INTO t VALUES ('; COMMIT')",
        "SELECT 1 -- ; commit", "SELECT E'\\'; COMMIT'", 'SELECT ";commit"', "DO $x$ BEGIN; COMMIT; END $x$",
        "SELECT CASE WHEN a THEN b END FROM t", "SELECT $1::text; SELECT ends FROM t",
        "SELECT 1 /* ; COMMIT /* ; COMMIT */ ; COMMIT */", "SELECT '/*'; SELECT '; COMMIT */'",
    ):  # fmt: skip
        assert not ends_transaction(query), query


async def test_a_statement_that_rolls_all_back_by_itself_leaves_no_way_to_go_on(sqlite_url: str) -> None:
    await asked(sqlite_url, "CREATE TABLE mine (n bigint UNIQUE)")

    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            with contextlib.suppress(sqlite3.IntegrityError):
                await db.execute("INSERT OR ROLLBACK INTO mine VALUES (1)")
            with contextlib.suppress(sqlite3.DatabaseError):
                await db.execute("INSERT INTO mine VALUES (2)")

    error = await failing(sqlite_url, work)
    assert isinstance(error, TransactionError)
    assert await mine(sqlite_url) == []


# -- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["call", "remember"])
async def test_a_remembered_call_inside_is_refused_at_once(url: str, what: str) -> None:
    made = []

    async def pays() -> None:
        made.append(1)

    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            await (ctx.remember("pays", pays) if what == "remember" else ctx.call(asked, url, "SELECT 1"))

    async with asyncio.timeout(PATIENCE):
        error = await failing(url, work)
    assert isinstance(error, TransactionError)
    assert not made
    assert await mine(url) == []


async def test_memory_says_which_stores_have_a_connection() -> None:
    async def work(ctx: Any) -> None:
        async with ctx.transaction():
            pass

    error = await failing("memory://", work)
    assert isinstance(error, TransactionError)
    assert "sqlite:///" in str(error)
    assert "postgresql://" in str(error)


async def test_sync_steps_and_what_is_no_step_are_refused(url: str) -> None:
    def work(ctx: Any) -> None:
        ctx.transaction()

    error = await failing(url, work)
    assert isinstance(error, FSMWorkflowError)
    assert "async step" in str(error)


async def test_on_sqlite_a_step_that_waits_for_the_engine_inside_is_told_at_once(sqlite_url: str) -> None:
    await asked(sqlite_url, "CREATE TABLE mine (n bigint)")
    told = []
    other = Workflow("other")
    other.wait("open", initial=True, on={"go": "end"})
    other.final("end")

    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            for verb in (
                engine.send(other, "o", "go"),
                engine.start(other),
                engine.result(other, "o"),
                engine.run(other),
            ):
                with pytest.raises(TransactionError) as error:
                    await verb
                told.append(str(error.value))

    flow = one_step(work)
    async with Engine(sqlite_url, workflows=[flow, other]) as engine, asyncio.timeout(PATIENCE):
        await engine.run(other, key="o")
        await engine.run(flow, key="k")
    assert len(told) == 4
    assert await mine(sqlite_url) == [1]


async def test_on_sqlite_one_that_takes_too_long_is_taken_back_and_the_others_go_on(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_lent, "LENT_SECONDS", 0.2)
    await asked(sqlite_url, "CREATE TABLE mine (n bigint)")
    inside, went_on = asyncio.Event(), []

    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            inside.set()  # whether or not it is late from here on
            await db.execute(INSERT)
            await asyncio.sleep(60)
            went_on.append(1)

    flow, other = one_step(work), Workflow("other")
    other.wait("open", initial=True, on={"go": "end"})
    other.final("end")
    async with Engine(sqlite_url, workflows=[flow, other]) as engine, asyncio.timeout(PATIENCE):
        await engine.start(flow, key="k")
        await inside.wait()
        await engine.start(other, key="o")  # waits for the writer
        with pytest.raises(RunFailed, match="longer than it may") as failed:
            await engine.run(flow, key="k")
        assert isinstance(failed.value.__cause__, TransactionError)
    assert not went_on
    assert await mine(sqlite_url) == []
    await nothing_is_open(sqlite_url)


@pytest.mark.parametrize("late", ["after its block", "in a statement"])
async def test_on_sqlite_a_step_that_is_late_elsewhere_fails_too(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    monkeypatch.setattr(sqlite_lent, "LENT_SECONDS", 0.1)
    await asked(sqlite_url, "CREATE TABLE mine (n bigint)")
    endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"

    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            if late == "in a statement":
                await db.execute(endless)
        await asyncio.sleep(0.3)  # longer than it may: that it ends then is what is tested

    async with asyncio.timeout(PATIENCE):
        error = await failing(sqlite_url, work)
    assert isinstance(error, TransactionError), error
    assert await mine(sqlite_url) == []
    await nothing_is_open(sqlite_url)


async def test_on_sqlite_many_at_once_take_turns_with_all_other_writes(sqlite_url: str) -> None:
    await asked(sqlite_url, "CREATE TABLE mine (n bigint)")
    plain, flow = Workflow("plain"), Workflow("flow")

    @plain.step(initial=True, then="end")
    async def nothing(ctx: Any) -> None:
        ctx.data["n"] = 1

    @flow.step(initial=True, then="end")
    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            (n,) = await (await db.execute("SELECT count(*) FROM mine")).fetchone()
            await db.execute("INSERT INTO mine VALUES (?)", (n,))

    for one in (plain, flow):
        one.final("end")
    async with Engine(sqlite_url, workflows=[flow, plain]) as engine, asyncio.timeout(PATIENCE):
        await asyncio.gather(*(engine.run(w, key=str(n)) for n in range(40) for w in (flow, plain)))
    assert await mine(sqlite_url) == list(range(40))


# -- unknown and undone commits -------------------------------------------------------------------------------------


async def test_P11_a_commit_whose_answer_is_lost_is_read_back_and_the_step_is_not_run_again(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asked(postgres_url, "CREATE TABLE mine (n bigint)")
    bodies, lost = [], []
    commit = asyncpg.transaction.Transaction.commit

    async def deaf(self: Any) -> None:
        await commit(self)
        lost.append(1)
        raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")

    async def work(ctx: Any) -> None:
        bodies.append(1)
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            monkeypatch.setattr(asyncpg.transaction.Transaction, "commit", deaf)

    assert (await run(postgres_url, work)).status == "done"
    assert (len(bodies), len(lost)) == (1, 1)
    assert await mine(postgres_url) == [1]


async def test_a_commit_that_was_not_made_runs_the_step_again_in_the_same_attempt(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asked(postgres_url, "CREATE TABLE mine (n bigint)")
    attempts, paid = [], []

    async def away(self: Any) -> None:
        monkeypatch.undo()
        raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")

    async def pay() -> int:
        paid.append(1)
        return len(paid)

    async def work(ctx: Any) -> None:
        attempts.append(ctx.attempt)
        assert await ctx.remember("pay", pay) == 1
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            if len(attempts) == 1:
                monkeypatch.setattr(asyncpg.transaction.Transaction, "commit", away)

    assert (await run(postgres_url, work)).status == "done"
    assert attempts == [1, 1]
    assert await mine(postgres_url) == [1]
    await nothing_is_open(postgres_url)


async def test_P11_a_move_that_was_made_before_is_not_made_with_other_rows(url: str) -> None:
    flow = one_step(lambda ctx: None).check()
    async with Engine(url) as engine:
        store = engine.store
        first = replace(begin(flow, "k", flow.codec.start({}), now=store.now()), owner="me", epoch=1)
        run, _ = await store.create(first)
        move = await decide(flow, run, Event(name="$done", state="work"), now=store.now())
        for number in (1, 2):
            lent = store.transaction(run)
            await lent.begin()
            await lent.connection.execute(f"INSERT INTO mine VALUES ({number})")
            await lent.commit(move)
        assert len(await store.history(run)) == 2
    assert await mine(url) == [1]
    await nothing_is_open(url)


async def test_a_serialization_failure_runs_the_step_again_in_the_same_attempt(postgres_url: str) -> None:
    await asked(postgres_url, "CREATE TABLE mine (n bigint)")
    await asked(postgres_url, INSERT)
    attempts = []

    async def work(ctx: Any) -> None:
        attempts.append(ctx.attempt)
        async with ctx.transaction() as db:
            await db.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            await db.execute("INSERT INTO mine SELECT sum(n) FROM mine")
            if len(attempts) == 1:  # another one that has read the same, and is first
                other = await asyncpg.connect(postgres_url)
                async with other.transaction(isolation="serializable"):
                    await other.execute("INSERT INTO mine SELECT sum(n) FROM mine")
                await other.close()

    assert (await run(postgres_url, work)).status == "done"
    assert attempts == [1, 1]
    assert await mine(postgres_url) == [1, 1, 2]


async def test_a_constraint_that_fails_at_the_commit_is_the_steps_error(postgres_url: str) -> None:
    await asked(postgres_url, "CREATE TABLE mine (n bigint UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    attempts = []

    async def work(ctx: Any) -> None:
        attempts.append(ctx.attempt)
        async with ctx.transaction() as db:
            await db.execute("INSERT INTO mine VALUES (1), (1)")

    assert isinstance(await failing(postgres_url, work, retry=QUICK), asyncpg.UniqueViolationError)
    assert attempts == [1, 2, 3]
    assert await mine(postgres_url) == []


async def test_a_connection_that_is_lost_inside_costs_the_run_nothing(postgres_url: str) -> None:
    await asked(postgres_url, "CREATE TABLE mine (n bigint)")
    attempts = []

    async def work(ctx: Any) -> None:
        attempts.append(ctx.attempt)
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            if len(attempts) == 1:
                await asked(postgres_url, f"SELECT pg_terminate_backend({db.get_server_pid()}, 2000)")
                await db.execute(INSERT)

    assert (await run(postgres_url, work)).status == "done"
    assert attempts == [1, 1]
    assert await mine(postgres_url) == [1]


async def test_a_connection_that_is_lost_after_the_commit_costs_the_run_nothing(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncpg says it with an error of its own kind, where the server's last word comes while it is given back."""

    async def lost(self: Any, **_: Any) -> None:
        raise asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress")

    monkeypatch.setattr(asyncpg.Connection, "reset", lost)

    async def write(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)

    await asked(postgres_url, "CREATE TABLE mine (n bigint)")
    assert (await run(postgres_url, write)).status == "done"
    assert await mine(postgres_url) == [1]
    assert "a connection could not be given back" in caplog.text


async def test_what_a_step_sets_on_the_connection_is_gone_for_the_next_one(postgres_url: str) -> None:
    seen = []

    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            seen.append((db.get_server_pid(), await db.fetchval("SHOW statement_timeout")))
            await db.execute("SET statement_timeout = '77s'")

    flow = one_step(work)
    async with Engine(postgres_url, workflows=[flow]) as engine:
        for key in "abc":
            await engine.run(flow, key=key)
    assert len({pid for pid, _ in seen}) == 1, "the pool's connection is used again"
    assert [value for _, value in seen] == ["0", "0", "0"]


async def test_how_a_step_has_values_read_is_gone_for_the_next_one(postgres_url: str) -> None:
    seen = []

    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            seen.append(await db.fetchval("SELECT '{}'::jsonb"))
            await db.set_type_codec("jsonb", schema="pg_catalog", encoder=str, decoder=lambda text: "decoded")
            seen.append(await db.fetchval("SELECT '{}'::jsonb"))

    flow = one_step(work)
    async with Engine(postgres_url, workflows=[flow]) as engine:
        for key in "ab":
            await engine.run(flow, key=key)
    assert seen == ["{}", "decoded"] * 2


async def test_a_step_whose_transactions_come_to_nothing_is_run_again_after_longer_and_longer_pauses(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    attempts: list[int] = []
    await asked(postgres_url, "CREATE TABLE mine (n bigint)")

    async def noted(drive: Drive, ends: Iterable[Any], limit: float | None) -> None:
        pauses.append(limit or 0.0)
        await asyncio.sleep(0)

    monkeypatch.setattr(Drive, "woken", noted)

    async def work(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute(INSERT)
            attempts.append(ctx.attempt)
            if len(attempts) <= 9:
                db.terminate()

    assert (await run(postgres_url, work)).status == "done"
    assert [pause for pause in pauses if pause in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0)] == [
        0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0,
    ]  # fmt: skip
    assert attempts == [1] * 10
    assert await mine(postgres_url) == [1]


# -- cancelled at every await ---------------------------------------------------------------------------------------


async def test_P12_cancelled_at_any_moment_it_is_made_whole_or_not_at_all(url: str) -> None:
    flow = one_step(lambda ctx: None).check()
    ways = set()

    async def use(lent: Lent, move: Move) -> None:
        await lent.begin()
        await lent.connection.execute(f"INSERT INTO mine VALUES ({move.before.key})")
        await lent.commit(move)

    async with Engine(url) as engine:
        store = engine.store
        for turns in range(80):
            first = replace(begin(flow, str(turns), flow.codec.start({}), now=store.now()), owner="me", epoch=1)
            made, _ = await store.create(first)
            move = await decide(flow, made, Event(name="$done", state="work"), now=store.now())
            lent = store.transaction(made)
            task = asyncio.create_task(use(lent, move))
            for _ in range(turns // 4):
                await asyncio.sleep(
                    0.0005 if turns % 2 else 0
                )  # moments of the driver's, which turns alone do not reach
            task.cancel()
            await asyncio.wait([task])
            await lent.rollback()
            await nothing_is_open(url)
            there = (len(await store.history(made)) == 2, turns in await mine(url))
            assert there in ((True, True), (False, False)), turns
            ways.add(there)
    assert len(ways) == 2, "all were made, or none"


# -- SIGKILL --------------------------------------------------------------------------------------------------------


async def test_P4_P11_of_processes_that_are_killed_inside_it_every_row_is_there_once(
    durable_url: str, tmp_path: Path
) -> None:
    await asked(durable_url, "CREATE TABLE mine (key text, n bigint)")
    steps = 12
    with Children(tmp_path) as children:
        for number in range(8):
            child = children.start("banks", durable_url, "--steps", steps)
            what = ("inside", "after")[number % 2]
            before = len(children.ledger.lines(what))
            child.until(lambda before=before, what=what: len(children.ledger.lines(what)) >= before + 3)
            assert child.kill()
        children.start("banks", durable_url, "--steps", steps).succeeded()
        tried = len(children.ledger.lines("inside"))
    rows = await asked(durable_url, "SELECT key, n FROM mine ORDER BY key, n")
    assert rows == [(f"b{key}", n) for key in range(4) for n in range(1, steps + 1)]
    assert tried > len(rows), "no kill struck in a transaction"
