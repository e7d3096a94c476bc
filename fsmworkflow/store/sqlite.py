"""The store in a SQLite file, through aiosqlite: WAL, synchronous=FULL, group commit.

One connection writes, in transactions that are one function on its thread each; another one, opened when first needed,
reads. No write is ever half made: whatever is cancelled, the function runs to its COMMIT or ROLLBACK.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import aiosqlite

from fsmworkflow.codec import decode
from fsmworkflow.errors import (
    RolledBack,
    RunNotFound,
    RunOver,
    SchemaError,
    StoreError,
    StoreUnavailable,
    TransactionError,
)
from fsmworkflow.records import Event, Move, Owner, Post, Run, replace
from fsmworkflow.store import NONE, Entries, Keys, Limits, Names, Pairs, Runs, Versions, rows
from fsmworkflow.store.kin import relate_sqlite
from fsmworkflow.store.lent import Lent, own_end
from fsmworkflow.store.memory import lost, stale
from fsmworkflow.store.sql import Migration, missing, queries, statements
from fsmworkflow.store.verbs import Verbs
from fsmworkflow.store.writer import Done, Write, Writer, not_forked, patiently, whole

log = logging.getLogger("fsmworkflow")

T = TypeVar("T")
SQL = queries("sqlite")
BUSY_SECONDS, OPEN_SECONDS, CLOSE_SECONDS = 5.0, 15.0, 5.0
LENT_SECONDS = 5.0
"""How long a step's transaction may hold up all other writes."""
PASSING = ("locked", "busy", "disk is full", "disk i/o error")


REFUSED = (
    sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError,
    OverflowError, ValueError,
)  # fmt: skip
"""What SQLite does not take of a write, and never will."""


class _Mixed(Exception):
    """A row of the batch was not hit: it is rolled back and made row by row."""


class SQLiteStore(Verbs):
    """A SQLite file, made where there is none. `~` and %-escapes in its path are understood.

    Its clock is this machine's. Not for network file systems, on which WAL does not work.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Callable[[], float] = time.time) -> None:
        text = os.fspath(path)
        plain = unquote(text)
        if not text or text.startswith((":memory:", "file:")) or "?" in text or "\0" in plain:
            raise StoreError(f"{text!r} is not the path of a SQLite file; for a store in memory use memory://")
        try:
            self.path = str(Path(plain).expanduser().absolute())
        except RuntimeError as error:
            raise StoreError(f"{text!r} is not the path of a SQLite file: {error}") from error
        self.url = "sqlite:///" + self.path.replace("%", "%25").replace("?", "%3F")
        self._clock = clock
        self._writer = Writer(self._start)
        self._write: aiosqlite.Connection | None = None
        self._pid = 0
        self._read: aiosqlite.Connection | None = None
        self._lock = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None  # to which the lock belongs

    # -- opening and closing ----------------------------------------------------------------------------------------

    async def open(self) -> None:
        async with self._alone():
            if self._write is not None:
                not_forked(self._pid, self.url)
                return
            connection = await self._connect()
            self._writer = Writer(self._start)  # one that was left in the middle by an event loop that ended is no use
            try:
                await _for_a_while(lambda: self._on(connection, _set_up))
            except BaseException:
                await whole(connection.close())
                raise
            self._write, self._pid = connection, os.getpid()

    @property
    def opened(self) -> bool:
        return self._write is not None

    async def _connect(self, **options: Any) -> aiosqlite.Connection:
        connection = aiosqlite.connect(self.path, isolation_level=None, timeout=BUSY_SECONDS, **options)
        connection._thread.daemon = True  # a program that forgets to close must still be able to exit
        try:
            await connection
        except sqlite3.Error as error:
            connection._thread.join(1.0)  # it is just ending, and must have answered before the event loop is closed
            raise StoreError(f"cannot open {self.url}: {self._without_directory() or error}") from error
        return connection

    def _without_directory(self) -> str | None:
        parent = os.path.dirname(self.path)
        return None if os.path.isdir(parent) else f"there is no directory {parent}: make it first"

    def _alone(self) -> asyncio.Lock:
        """The lock for opening and closing connections, of the running event loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._lock = loop, asyncio.Lock()
        return self._lock

    async def close(self) -> None:
        if self._pid == os.getpid():  # else it is the parent's, which goes on with it
            await whole(self._close())

    async def _close(self) -> None:
        async with self._alone():
            await self._writer.drain(CLOSE_SECONDS)
            connections, self._write, self._read = (self._write, self._read), None, None
            for connection in connections:
                if connection is not None:
                    await connection.close()

    def twin(self) -> SQLiteStore:
        return SQLiteStore(self.url.removeprefix("sqlite:///"), clock=self._clock)

    def now(self) -> float:
        return self._clock()

    def _check(self) -> aiosqlite.Connection:
        if self._write is None:
            raise StoreError(f"{self.url} is not open")
        not_forked(self._pid, self.url)
        return self._write

    async def _do(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """One transaction on the writing connection, waited for as long as the file is locked or the disk full."""
        connection = self._check()
        return await patiently(lambda: self._on(connection, lambda db: _transaction(db, function)))

    async def _ask(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """A reading on a connection of its own, so that it does not wait behind a COMMIT."""
        self._check()
        connection = self._read or await self._reader()
        return await patiently(lambda: self._on(connection, function))

    async def _reader(self) -> aiosqlite.Connection:
        async with self._alone():
            self._check()  # it may have been closed meanwhile
            self._read = self._read or await self._connect()
            return self._read

    async def _on(self, connection: aiosqlite.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function on the connection's thread: one hop for a transaction, where the public calls take four."""
        try:
            return await connection._execute(function, connection._conn)  # type: ignore[no-any-return, no-untyped-call]
        except (sqlite3.Error, ValueError) as error:
            raise self._named(error) from error

    def _named(self, error: Exception) -> StoreError:
        """An error of SQLite's as ours, with the file: one that may pass, or one that will not."""
        text = str(error).lower()
        if isinstance(error, sqlite3.OperationalError) and any(word in text for word in PASSING):
            return StoreUnavailable(f"{self.url}: {error}")
        return error if isinstance(error, StoreError) else StoreError(f"{self.url}: {error}")

    # -- writing ----------------------------------------------------------------------------------------------------

    def _start(self, batch: list[Write], done: Done) -> None:
        """Commit a batch in one hop to the connection's thread, and say so in one hop back."""
        connection, now, loop = self._check(), self._clock(), asyncio.get_running_loop()

        def commit() -> None:
            error: BaseException | None = None
            try:
                _write(connection._conn, batch, now)
            except (sqlite3.Error, ValueError) as failed:  # ValueError: the connection was closed meanwhile
                error = self._named(failed)
            except BaseException as failed:  # whatever it is, those who wait must hear of it
                error = failed
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile: nobody waits any more
                loop.call_soon_threadsafe(done, error)

        connection._tx.put_nowait((None, commit))

    def transaction(self, run: Run) -> Lent:
        self._check()
        return SQLiteLent(self, self._writer, run)

    # -- reading ----------------------------------------------------------------------------------------------------

    async def _read_rows(self, block: str, *values: Any) -> list[dict[str, Any]]:
        return await self._ask(lambda db: _mappings(db.execute(SQL[block], values)))

    async def _read_runs(self, block: str, *values: Any) -> Runs:
        return await self._ask(lambda db: _runs(db, SQL[block], values))

    async def history(self, run: Run) -> Entries:
        return await self._ask(lambda db: _history(db, run))

    # -- claims and owners ------------------------------------------------------------------------------------------

    async def claim(
        self, owner: str, workflows: Versions, many: int, by: float, but: Pairs = (), limits: Limits = NONE
    ) -> Runs:
        values: dict[str, Any] = {"by": by, "now": self._clock(), "many": many}
        values |= {"workflows": json.dumps(dict(workflows)), "but": json.dumps(list(but))}
        if not await self._ask(lambda db: _claimable(db, {**values, "many": 1}, limits)):
            return []  # whoever looks and finds nothing writes nothing, and waits for no lock
        found = await self._do(lambda db: _claimed(db, owner, values, limits))
        return sorted(found, key=lambda run: (run.due or 0.0, run.id))

    async def claim_one(
        self, owner: str, workflow: str, key: str, newest: int | None = None, limit: int | None = None
    ) -> Run | None:
        values = {"owner": owner, "now": self._clock(), "workflow": workflow, "key": key, "newest": newest}
        limits = {} if limit is None else {workflow: limit}

        def claimed(db: sqlite3.Connection) -> Runs:
            full = any(room < 1 for room in _rooms(db, values, limits).values())
            return [] if full else _runs(db, SQL["claim_one"], values)

        found = await self._do(claimed)
        return found[0] if found else None

    async def oldest(self, workflow: str, but: Names, newest: int | None = None) -> str | None:
        values = {"workflow": workflow, "now": self._clock(), "but": json.dumps(but), "newest": newest}
        row = await self._ask(lambda db: db.execute(SQL["oldest"], values).fetchone())
        return None if row is None else str(row[0])

    async def overdue(self, workflows: Names) -> float | None:
        values = {"now": self._clock(), "workflows": json.dumps(workflows)}
        row = await self._ask(lambda db: db.execute(SQL["overdue"], values).fetchone())
        return None if row is None else float(row[0])

    async def prune(self, workflow: str, statuses: Names, before: float, many: int) -> int:
        """Looked for on the connection that reads, so that writers wait only for what there is to delete."""
        which = {"workflow": workflow, "statuses": json.dumps(statuses), "before": before, "many": many}
        ids = [row[0] for row in await self._ask(lambda db: db.execute(SQL["prunable"], which).fetchall())]
        if not ids:
            return 0
        return await self._do(lambda db: _prune(db, {**which, "ids": json.dumps(ids)}))

    async def enrol(self, owner: Owner) -> None:
        values = (owner.token, owner.machine, owner.process, owner.lease, owner.started, owner.draining)
        await self._do(lambda db: db.execute(SQL["enrol"], values))

    async def renew(self, token: str, lease: float) -> bool:
        return await self._do(lambda db: db.execute(SQL["renew"], (lease, token)).rowcount == 1)

    async def bury(self, token: str) -> None:
        def buried(db: sqlite3.Connection) -> None:
            if not db.execute(SQL["bury"], (token,)).rowcount:
                db.execute(SQL["end_lease"], (self._clock(), token))

        await self._do(buried)

    async def reset(self) -> None:
        await self._do(lambda db: [db.execute(one) for one in statements(SQL["reset"])])


class SQLiteLent(Lent):
    """The writer's turn, on a connection that is the step's alone: whatever is done to it, the writer's is as it was.

    After 5 s it is rolled back, also in the middle of a statement.
    """

    alone = True

    def __init__(self, store: SQLiteStore, writer: Writer, run: Run) -> None:
        super().__init__(run)
        self._store = store
        self._writer = writer
        self._expired = False

    async def _begin(self) -> None:
        await self._writer.borrow()
        try:
            # No statement is kept: one that was prepared before would not be asked about again.
            connection = await self._store._connect(cached_statements=0)
            try:
                await patiently(lambda: self._attempt(connection))
            except BaseException:
                await connection.close()
                raise
        except BaseException:
            self._writer.give_back()
            raise
        self.connection = connection
        self.until = asyncio.get_running_loop().time() + LENT_SECONDS
        self._timer = asyncio.get_running_loop().call_at(self.until, self._expire)

    async def _attempt(self, connection: aiosqlite.Connection) -> None:
        self._store._check()  # a store that was closed meanwhile lends nothing
        await self._store._on(connection, _lend)

    def _expire(self) -> None:
        if not self.over:
            self._expired = True
            self.drop()

    def said(self, error: BaseException) -> BaseException:
        """A refused COMMIT, and what follows when the connection is taken away, as a TransactionError."""
        late = isinstance(error, TimeoutError) and asyncio.get_running_loop().time() >= (self.until or math.inf)
        if self._expired or late:
            return self._too_long()
        return own_end(self.where) if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_AUTH else error

    async def _commit(self, move: Move) -> Keys | None:
        self._timer.cancel()
        try:
            own = self.connection
            due: Keys | None = await own._execute(_commit_lent, own._conn, move, self._store._named)
            return due
        finally:
            await self._give_back()

    async def _rollback(self) -> None:
        self._timer.cancel()
        try:
            self.connection._conn.interrupt()
            await self.connection._execute(_take_back, self.connection._conn)
        except (sqlite3.Error, ValueError) as error:  # closed by the step, which rolled it back
            log.debug("%s: %s", self.where, error)
        finally:
            await self._give_back()

    async def _give_back(self) -> None:
        try:
            await self.connection.close()
        finally:
            self._writer.give_back()


# -- on the connection's thread -------------------------------------------------------------------------------------


async def _for_a_while(attempt: Callable[[], Awaitable[T]]) -> T:
    """Opening waits for a lock for a while, then says so: a program that starts must not hang unseen."""
    end = time.monotonic() + OPEN_SECONDS
    while True:
        try:
            return await attempt()
        except StoreUnavailable:
            if time.monotonic() > end:
                raise
        await asyncio.sleep(0.05)


def _transaction(db: sqlite3.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    """BEGIN IMMEDIATE, because a deferred one that reads and then writes fails at once where another writes."""
    db.execute("BEGIN IMMEDIATE")
    try:
        result = function(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return result


def _lend(db: sqlite3.Connection) -> None:
    """Begin a transaction that only we end: once it has ended otherwise, by a conflict clause, nothing more is done."""

    def may(action: int, *_: object) -> int:
        allowed = action != sqlite3.SQLITE_TRANSACTION and db.in_transaction
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    db.execute("PRAGMA synchronous = FULL")
    db.execute("BEGIN IMMEDIATE")
    db.set_authorizer(may)


def _take_back(db: sqlite3.Connection) -> None:
    db.set_authorizer(None)
    if db.in_transaction:
        db.execute("ROLLBACK")


def _commit_lent(db: sqlite3.Connection, move: Move, named: Callable[[Exception], StoreError]) -> Keys | None:
    """A move, and what its step has written: both, or neither."""
    run = move.before
    db.set_authorizer(None)
    if not db.in_transaction:
        raise TransactionError(
            f"the transaction of a step of {run.workflow}/{run.key} was rolled back by one of its statements, and the "
            "step went on"
        )
    try:
        due = _advance_detailed(db, move, move.at)
        db.execute("COMMIT")
        return due
    except (_Mixed, sqlite3.Error) as error:
        _take_back(db)
        missed = _missed(db, run)
        if missed is None:  # it was made before, with other rows
            return None
        if isinstance(error, _Mixed):
            raise missed from None
        if not isinstance(passing := named(error), StoreUnavailable):
            raise  # of the step's making: a constraint that is checked at the end, a statement that is not done
        raise RolledBack(str(passing)) from error


def _write(db: sqlite3.Connection, batch: Sequence[Write], now: float) -> None:
    """A batch whole, or, where a row of it was not hit or not taken, write by write."""
    try:
        _transaction(db, lambda db: _batch(db, batch, now))
    except (_Mixed, *REFUSED):
        _singly(db, batch, now)


def _batch(db: sqlite3.Connection, batch: Sequence[Write], now: float) -> None:
    """All writes of a batch, those of one kind together. Raises _Mixed where a row was not hit."""
    moves: list[Move] = []
    posts: list[Write] = []
    for write in batch:
        if write.kind == "move":
            moves.append(write.record)
        elif write.kind == "post":
            posts.append(write)
        else:
            write.error = None
            _SINGLE[write.kind](db, write, now)
            if write.error is not None:
                raise _Mixed
    if moves and (due := _advance(db, moves, now)):
        for write in batch:
            if write.kind == "move":
                write.result = due.get(write.run.id)
    for write in posts:  # after the moves: what was decided without it is not made stale by it
        write.error = None
        _single_post(db, write, now)


def _advance(db: sqlite3.Connection, moves: list[Move], now: float) -> dict[int, Keys]:
    """The moves, with all that is written beside them. Returns, by run, the other runs that each made due."""
    if events := [m for m in moves if m.event.id]:
        _take(db, events)
    known = [m for m in moves if not rows.is_new(m)] if events else moves
    running = [rows.running_values(m) for m in known if rows.stays_running(m)]
    others = [rows.advance_values(m) for m in known if not rows.stays_running(m)] if len(running) < len(known) else []
    _each(db, "advance_running", running)
    _each(db, "advance", others)
    if ended := [(m.after.version, m.before.id) for m in moves if rows.drops(m.before, m.after)]:
        db.executemany(SQL["drop"], ended)
    db.executemany(SQL["move"], [rows.move_values(m) for m in moves])
    if large := [v for m in moves if m.changes and m.after.hashes for v in rows.large_fields(m.after, m.changes)]:
        db.executemany(SQL["field"], large)
    if forget := [(m.after.id, state, visit) for m in moves for state, visit in m.forget]:
        db.executemany(SQL["forget"], forget)
    for move in [m for m in moves if m.posts]:  # after all of the batch: what was decided without it is not made stale
        for post in move.posts:
            _emit(db, post, move.at)
    related = [m for m in moves if m.orders or m.after.child is not None]
    # What is left is left before any end is counted: such a count is no more.
    return {m.before.id: relate_sqlite(db, m, now) for m in sorted(related, key=lambda m: not m.orders)}


def _take(db: sqlite3.Connection, moves: list[Move]) -> None:
    """Mark events of the inbox; new ones are inserted, and their runs moved."""
    new = [m for m in moves if rows.is_new(m)]
    _each(db, "take", [rows.taken_values(m) for m in moves if not rows.is_new(m)])
    _each(db, "advance_new", [(*rows.advance_values(m), m.event.id) for m in new])
    _each(db, "event_taken", [rows.new_values(m) for m in new])


def _emit(db: sqlite3.Connection, post: Post, now: float) -> None:
    """Put an event into an inbox, once; where its run has ended it is kept as dropped."""
    row = db.execute(SQL["addressed"], (post.workflow, post.key)).fetchone()
    if row is None or _event(db, SQL["event"], (row[0], post.event.id)) is not None:
        return
    run, _, over = row
    values = rows.event_values(post.event, now)
    db.execute(SQL["event_taken"], (run, *values, "dropped" if over else "waiting", None, now))
    if not over:
        db.execute(SQL["posted"], (run, now, post.event.name))


def _each(db: sqlite3.Connection, block: str, values: Sequence[Sequence[Any]]) -> None:
    """One statement for each. Raises _Mixed where one of them hit no row."""
    if values and db.executemany(SQL[block], values).rowcount != len(values):
        raise _Mixed


def _singly(db: sqlite3.Connection, batch: Sequence[Write], now: float) -> None:
    """Each write in a transaction of its own, so that one bad row fails one run."""
    for write in batch:
        write.error = None
        try:
            _transaction(db, lambda db, write=write: _SINGLE[write.kind](db, write, now))  # type: ignore[misc]
        except _Mixed:
            write.error = _missed(db, write.run)
        except REFUSED as error:
            write.error = StoreError(f"SQLite: {error}")


def _single_move(db: sqlite3.Connection, write: Write, now: float) -> None:
    write.result = _advance(db, [write.record], now).get(write.run.id)


def _advance_detailed(db: sqlite3.Connection, move: Move, now: float) -> Keys | None:
    """A move of which history may say more than of most, so that these do not pay for it."""
    due = _advance(db, [move], now).get(move.before.id)
    if move.detail is not None:
        db.execute(SQL["detail"], (move.detail, move.after.id, move.after.version))
    return due


def _single_detailed(db: sqlite3.Connection, write: Write, now: float) -> None:
    write.result = _advance_detailed(db, write.record, now)


def _missed(db: sqlite3.Connection, before: Run) -> StoreError | None:
    """Why a move was not made. One that is in the history was, by a COMMIT whose answer was lost."""
    if db.execute(SQL["moved"], (before.id, before.version + 1, before.owner, before.epoch)).fetchone():
        return None
    mine = (before.id, before.version, before.epoch, before.owner)
    return stale(before) if db.execute(SQL["settled"], mine).fetchone() and before.owner else lost(before)


def _single_create(db: sqlite3.Connection, write: Write, now: float) -> None:
    run: Run = write.record
    row = db.execute(SQL["create"], rows.create_values(run)).fetchone()
    if row is None:
        write.result = _runs(db, SQL["load"], (run.workflow, run.key))[0], False
        return
    run = replace(run, id=row[0])
    db.execute(SQL["move"], rows.start_values(run))
    db.executemany(SQL["field"], rows.large_fields(run, run.hashes))
    write.result = run, True


def _single_settle(db: sqlite3.Connection, write: Write, now: float) -> None:
    before, after = write.run, write.record
    if db.execute(SQL["settle"], rows.settle_values(before, after, now)).rowcount != 1:
        done = (after.id, after.version, after.epoch, after.owner)
        if after.owner == before.owner or db.execute(SQL["settled"], done).fetchone() is None:
            write.error = lost(before)
    elif rows.drops(before, after):
        db.execute(SQL["drop"], (after.version, before.id))


def _single_release(db: sqlite3.Connection, write: Write, now: float) -> None:
    db.execute(SQL["release"], (write.run.id, write.run.owner, write.run.epoch))


def _single_call(db: sqlite3.Connection, write: Write, now: float) -> None:
    call, run = write.record, write.run
    mine = (run.id, run.owner, run.epoch)
    values = (call.run, call.state, call.visit, call.name, call.nth, call.result.decode(), *mine)
    if db.execute(SQL["remember"], values).rowcount != 1 and db.execute(SQL["owned"], mine).fetchone() is None:
        write.error = lost(run)
    elif run.deaths:
        db.execute(SQL["survived"], mine)


def _single_post(db: sqlite3.Connection, write: Write, now: float) -> None:
    workflow, key, event = write.record
    row = db.execute(SQL["addressed"], (workflow, key)).fetchone()
    if row is None:
        write.error = RunNotFound(workflow, key)
        return
    run, status, over = row
    write.result = _event(db, SQL["event"], (run, event.id))
    if write.result is not None:
        return
    if over:
        write.error = RunOver(workflow, key, status)
        return
    (number,) = db.execute(SQL["post"], (*rows.event_values(event, now), run, now)).fetchone()
    event = rows.posted(event, number, now)
    db.execute(SQL["posted"], (run, event.due, event.name))
    write.result = rows.opened(event)


_SINGLE: dict[str, Callable[[sqlite3.Connection, Write, float], None]] = {
    "move": _single_move,
    "create": _single_create,
    "settle": _single_settle,
    "release": _single_release,
    "call": _single_call,
    "post": _single_post,
    "detailed": _single_detailed,
}


def _mappings(cursor: sqlite3.Cursor) -> list[dict[str, Any]]:
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _runs(db: sqlite3.Connection, sql: str, values: Sequence[Any] | Mapping[str, Any]) -> Runs:
    """The runs that a statement returns, whole."""
    found = [rows.run_of(row) for row in _mappings(db.execute(sql, values))]
    wanted = rows.wanted(found)
    if not wanted:
        return found
    texts = {(run, h): text for run, h, text in db.execute(SQL["fields"], (json.dumps(wanted),))}
    return [rows.filled(run, texts) for run in found]


def _rooms(db: sqlite3.Connection, values: Mapping[str, Any], limits: Limits) -> dict[str, int]:
    """How many runs of each workflow with a limit may be claimed. Only one transaction at a time counts and claims."""
    driven = SQL["driven"]
    return {name: most - db.execute(driven, (name, values["now"])).fetchone()[0] for name, most in limits.items()}


def _claimable(db: sqlite3.Connection, values: Mapping[str, Any], limits: Limits) -> list[int]:
    if limits:
        values = {**values, "rooms": json.dumps(_rooms(db, values, limits))}
    return [row[0] for row in db.execute(SQL["claimable_within" if limits else "claimable"], values)]


def _claimed(db: sqlite3.Connection, owner: str, values: Mapping[str, Any], limits: Limits) -> Runs:
    ids = _claimable(db, values, limits)
    return _runs(db, SQL["claim"], (owner, json.dumps(ids), values["now"]))


def _event(db: sqlite3.Connection, sql: str, values: tuple[int, int | str]) -> Event | None:
    found = _mappings(db.execute(sql, values))
    return rows.event_of(found[0]) if found else None


def _prune(db: sqlite3.Connection, which: Mapping[str, Any]) -> int:
    gone = [row[0] for row in db.execute(SQL["prune"], which).fetchall()]
    for block in ("prune_moves", "prune_events", "prune_calls", "prune_fields"):
        db.execute(SQL[block], (json.dumps(gone),))
    return len(gone)


def _history(db: sqlite3.Connection, run: Run) -> Entries:
    def large(name: str) -> Any:
        found = db.execute(SQL["fields"], (json.dumps([[run.id, name]]),)).fetchone()
        if found is None:
            raise rows.gone(run)
        return decode(found[2])

    found = [rows.entry_of(row, large) for row in _mappings(db.execute(SQL["history"], (run.id,)))]
    if not found:
        raise RunNotFound(run.workflow, run.key)
    return found


# -- the schema -----------------------------------------------------------------------------------------------------


def _set_up(db: sqlite3.Connection) -> None:
    """Pragmas, then the tables: what is missing is created, what is older upgraded, all in one transaction."""
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    if _missing(db):
        _transaction(db, _migrate)


def _missing(db: sqlite3.Connection) -> tuple[Migration, ...]:
    tables = {row[0] for row in db.execute(SQL["tables"])}
    try:
        versions = [row[0] for row in db.execute(SQL["migrations"])] if "fsm_migrations" in tables else []
    except sqlite3.OperationalError as error:
        raise SchemaError(f"the table fsm_migrations is not ours: {error}") from error
    return missing("sqlite", tables, versions)


def _migrate(db: sqlite3.Connection) -> None:
    todo = _missing(db)
    db.execute(SQL["migrations_table"])
    for migration in todo:
        for statement in statements(migration.sql):
            db.execute(statement)
        db.execute(SQL["migrated"], (migration.version, migration.name, time.time()))
