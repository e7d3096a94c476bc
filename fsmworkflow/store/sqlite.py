"""The store in a SQLite file, through aiosqlite: WAL, synchronous=FULL, group commit.

One connection writes, in transactions that are one function on its thread each; another one, opened when first needed,
reads. No write is ever half made: whatever is cancelled, the function runs to its COMMIT or ROLLBACK.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import aiosqlite

from fsmworkflow.errors import Refused, SchemaError, StoreError, StoreUnavailable
from fsmworkflow.records import Owner, Run
from fsmworkflow.store import Entries, Limits, Names, Pairs, Runs, Versions, sqlite_statements
from fsmworkflow.store.lent import Lent
from fsmworkflow.store.sql import Migration, missing, statements
from fsmworkflow.store.sqlite_lent import SQLiteLent
from fsmworkflow.store.sqlite_statements import SQL
from fsmworkflow.store.verbs import Verbs
from fsmworkflow.store.writer import Done, Write, Writer, not_forked, patiently, whole

T = TypeVar("T")
PASSING = ("locked", "busy", "disk is full", "disk i/o error")
BUSY_SECONDS, OPEN_SECONDS, CLOSE_SECONDS = 5.0, 15.0, 5.0
"""Opening waits for a lock for a while, then says so: a program that starts must not hang unseen."""


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
                await patiently(lambda: self._on(connection, _set_up), within=OPEN_SECONDS)
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
            parent = os.path.dirname(self.path)
            there = os.path.isdir(parent)  # noqa: ASYNC240 (of a store that cannot be opened)
            reason = error if there else f"there is no directory {parent}: make it first"
            raise StoreError(f"cannot open {self.url}: {reason}") from error
        return connection

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
        return await patiently(lambda: self._on(connection, lambda db: sqlite_statements.transaction(db, function)))

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
        kind = Refused if sqlite_statements.refused(error) else StoreError
        return error if isinstance(error, StoreError) else kind(f"{self.url}: {error}")

    # -- writing ----------------------------------------------------------------------------------------------------

    def _start(self, batch: list[Write], done: Done) -> None:
        """Commit a batch in one hop to the connection's thread, and say so in one hop back."""
        connection, now, loop = self._check(), self._clock(), asyncio.get_running_loop()

        def commit() -> None:
            error: BaseException | None = None
            try:
                sqlite_statements.write(connection._conn, batch, now)
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

    async def read_rows(self, block: str, *values: Any) -> list[dict[str, Any]]:
        return await self._ask(lambda db: sqlite_statements.mappings(db.execute(SQL[block], values)))

    async def _read_runs(self, block: str, *values: Any) -> Runs:
        return await self._ask(lambda db: sqlite_statements.runs(db, SQL[block], values))

    async def history(self, run: Run) -> Entries:
        return await self._ask(lambda db: sqlite_statements.history(db, run))

    # -- claims and owners ------------------------------------------------------------------------------------------

    async def _claim(self, owner: str, workflows: Versions, many: int, by: float, but: Pairs, limits: Limits) -> Runs:
        values = self._wanted(workflows, many, by, but)
        if not await self._ask(lambda db: sqlite_statements.claimable(db, {**values, "many": 1}, limits)):
            return []  # whoever looks and finds nothing writes nothing, and waits for no lock
        return await self._do(lambda db: sqlite_statements.claimed(db, owner, values, limits))

    async def _oldest_due(self, workflows: Versions, by: float, but: Pairs) -> Sequence[Any]:
        values = self._wanted(workflows, 1, by, but)
        return await self._ask(lambda db: db.execute(SQL["claimable"], values).fetchall())

    def _wanted(self, workflows: Versions, many: int, by: float, but: Pairs) -> dict[str, Any]:
        """The parameters of a claim."""
        chosen = {"workflows": json.dumps(dict(workflows)), "but": json.dumps(list(but))}
        return {"by": by, "now": self._clock(), "many": many, **chosen}

    async def claim_one(
        self, owner: str, workflow: str, key: str, newest: int | None = None, limit: int | None = None
    ) -> Run | None:
        values = {"owner": owner, "now": self._clock(), "workflow": workflow, "key": key, "newest": newest}
        limits = {} if limit is None else {workflow: limit}

        def claimed(db: sqlite3.Connection) -> Runs:
            full = any(room < 1 for room in sqlite_statements.rooms(db, values, limits).values())
            return [] if full else sqlite_statements.runs(db, SQL["claim_one"], values)

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
        return await self._do(lambda db: sqlite_statements.prune(db, {**which, "ids": json.dumps(ids)}))

    async def trim(self, run: Run, before: int) -> None:
        values = {"run": run.id, "owner": run.owner, "epoch": run.epoch, "before": before}
        await self._do(lambda db: [db.execute(SQL[block], values) for block in ("trim_moves", "trim_events")])

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


def _set_up(db: sqlite3.Connection) -> None:
    """Pragmas, then the tables: what is missing is created, what is older upgraded, all in one transaction."""
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    if _missing(db):
        sqlite_statements.transaction(db, _migrate)


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
