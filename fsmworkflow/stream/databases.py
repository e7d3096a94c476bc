"""Databases whose tables a stream reads and writes: SQLite, PostgreSQL, and the connection of its own move."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from fsmworkflow.store import open_store
from fsmworkflow.stream.files import GLANCE
from fsmworkflow.stream.words import StreamError
from fsmworkflow.threads import Threads

__all__ = ["Database", "Lent", "Row", "database", "quoted"]

PATIENCE = 30
"""Seconds for which a file of SQLite is waited for that somebody else has locked."""
T = TypeVar("T")
Row = dict[str, Any]


def quoted(*names: str) -> str:
    """Names of the user's, one within the other, as SQL has them."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


class Database(Protocol):
    """A database, connected when it is first asked. `columns` asks for those of a table."""

    shown: str
    columns: str

    def place(self, number: int) -> str:
        """How the n-th parameter is written."""

    def named(self, table: str) -> str:
        """How `columns` is told of a table."""

    async def fetch(self, sql: str, given: list[Any], what: str) -> list[Row]:
        """Rows by name. Raises StreamError with what it is for."""

    async def write(self, sql: str, rows: Iterator[tuple[Any, ...]], what: str) -> None:
        """Write all of them, or none."""

    def close(self) -> None:
        """Let go of the connection."""


SQLITE_COLUMNS = "SELECT name FROM pragma_table_info(?)"
POSTGRES_COLUMNS = (
    "SELECT attname AS name FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped "
    "ORDER BY attnum"
)


def _rows(found: list[Any], what: str) -> list[Row]:
    """Rows by name. Raises StreamError where two columns have the same one."""
    rows = [dict(row) for row in found]
    if rows and len(rows[0]) < len(found[0]):
        raise StreamError(f"{what} has columns of the same name: give them others with AS")
    return rows


def database(url: str) -> Database:
    """Raises StoreError for what is no URL of one of the two."""
    store = open_store(url)  # which reads the address, and opens nothing
    if (path := getattr(store, "path", None)) is not None:
        return _SQLite(path, store.url)
    if url.startswith("memory:"):
        raise StreamError("a table is in a database: sqlite:///path or postgresql://...")
    return _Postgres(url, store.url)


class _SQLite:
    columns = SQLITE_COLUMNS

    def __init__(self, path: str, shown: str) -> None:
        self.shown, self._path = shown, path
        self._threads, self._one, self._over = Threads(), threading.Lock(), False
        self._db: sqlite3.Connection | None = None

    def place(self, number: int) -> str:
        return "?"

    def named(self, table: str) -> str:
        return table

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            address = f"file:{quote(self._path)}?mode=rw"
            self._db = sqlite3.connect(address, uri=True, check_same_thread=False, timeout=GLANCE)
            self._db.row_factory = sqlite3.Row
        return self._db

    async def fetch(self, sql: str, given: list[Any], what: str) -> list[Row]:
        def work(db: sqlite3.Connection) -> list[Row]:
            return self._patient(lambda: _rows(db.execute(sql, given).fetchall(), what))

        return await self._said(work, what)

    async def write(self, sql: str, rows: Iterator[tuple[Any, ...]], what: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            self._patient(lambda: db.execute("BEGIN IMMEDIATE"))
            with db:
                db.execute(f"PRAGMA busy_timeout = {1000 * PATIENCE}")
                db.executemany(sql, rows)
            db.execute(f"PRAGMA busy_timeout = {int(1000 * GLANCE)}")

        await self._said(work, what)

    def _patient(self, do: Callable[[], T]) -> T:
        """Do it once nobody else has the file locked, and give up where nobody waits for it any more."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return do()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or self._over or time.monotonic() > until:
                    raise

    async def _said(self, work: Callable[[sqlite3.Connection], T], what: str) -> T:
        """Whoever is cancelled waits until it has ended, so that nothing is written afterwards."""
        self._over = False
        task = asyncio.ensure_future(self._threads.call(self._alone, work))
        try:
            return await asyncio.shield(task)
        except sqlite3.Error as error:
            raise StreamError(f"{what}: {error}") from error
        except asyncio.CancelledError:
            self._over = True
            if self._db is not None:
                self._db.interrupt()
            await asyncio.wait([task])
            task.cancelled() or task.exception()  # which nobody asks for any more
            raise

    def _alone(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._one:
            return work(self._opened())

    def close(self) -> None:
        if self._db is not None and self._one.acquire(blocking=False):  # else a thread is at it, that was left behind
            self._db.close()
            self._db = None
            self._one.release()


class _Postgres:
    columns = POSTGRES_COLUMNS

    def __init__(self, url: str, shown: str) -> None:
        self.shown, self._url = shown, url
        self._db: Any = None

    def place(self, number: int) -> str:
        return f"${number}"

    def named(self, table: str) -> str:
        return quoted(*table.split("."))

    async def _opened(self) -> Any:
        import asyncpg  # only where such a table is asked for

        if self._db is None or self._db.is_closed():
            self._db = await asyncpg.connect(self._url, timeout=30.0, statement_cache_size=0)
        return self._db

    async def fetch(self, sql: str, given: list[Any], what: str) -> list[Row]:
        return _rows(await self._said(lambda db: db.fetch(sql, *given), what), what)

    async def write(self, sql: str, rows: Iterator[tuple[Any, ...]], what: str) -> None:
        all_of_them = list(rows)
        await self._said(lambda db: db.executemany(sql, all_of_them), what)  # or none

    async def _said(self, do: Callable[[Any], Awaitable[T]], what: str) -> T:
        """Ask the database, once more where the connection was lost: what is read or replaced may be so twice."""
        import asyncpg

        lost = (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
        for left in (1, 0):
            try:
                return await do(await self._opened())
            except (asyncpg.PostgresError, *lost) as error:
                if not left or not (isinstance(error, lost) or (self._db is not None and self._db.is_closed())):
                    raise StreamError(f"{what}: {error}") from error
                self.close()
        raise AssertionError

    def close(self) -> None:
        if self._db is not None:
            self._db.terminate()
        self._db = None


class Lent:
    """The connection of the stream's own move, whose errors are the step's."""

    shown = "the run's database"

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._numbered = hasattr(connection, "fetchrow")  # asyncpg has it, aiosqlite has not
        self.columns = POSTGRES_COLUMNS if self._numbered else SQLITE_COLUMNS

    def place(self, number: int) -> str:
        return f"${number}" if self._numbered else "?"

    def named(self, table: str) -> str:
        return quoted(*table.split(".")) if self._numbered else table

    async def fetch(self, sql: str, given: list[Any], what: str) -> list[Row]:
        if self._numbered:
            return [dict(row) for row in await self._connection.fetch(sql, *given)]
        async with self._connection.execute(sql, given) as cursor:
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) async for row in cursor]

    async def write(self, sql: str, rows: Iterator[tuple[Any, ...]], what: str) -> None:
        await self._connection.executemany(sql, rows)

    def close(self) -> None:
        """It is the move's."""
