"""Tables of SQLite and PostgreSQL: their rows as a source, read by key, and as a sink, written once.

The names of tables and columns are the user's, and quoted; values are always parameters.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import pairwise
from operator import length_hint
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import msgspec

from fsmworkflow.store import open_store
from fsmworkflow.stream.files import GLANCE
from fsmworkflow.stream.words import Batch, Sink, Source, StreamError, Unwritable
from fsmworkflow.threads import Threads

__all__ = ["Rows", "Table"]

PAGE = 2000
"""How many rows one query reads."""
PLAIN = (str, int, float, bytes, type(None))
PATIENCE = 30
"""Seconds for which a file of SQLite is waited for that somebody else has locked."""
T = TypeVar("T")
Row = dict[str, Any]


class Rows(Source):
    """The rows of a table or query, each a record, in the order of `order_by`: a column that is unique and never null.

        sources.Rows("postgresql://localhost/shop", "orders", order_by="id")
        sources.Rows("sqlite:///shop.db", "SELECT id, total FROM orders WHERE paid", order_by="id")

    Each query reads the rows after the last key, so that no transaction is open in between, and goes on by key.
    A row that comes later with a key that is behind is not seen.
    """

    waits = True

    def __init__(self, url: str, rows: str, *, order_by: str) -> None:
        self._database = _database(url)
        self.name = f"{rows!r} in {self._database.shown}"
        self._order_by, self._rows = order_by, rows
        self._from = f"({rows.rstrip().rstrip(';')}\n) AS records" if re.search(r"\s", rows.strip()) else _quoted(rows)
        self._page: list[Row] = []
        self._at = 0
        self._last: Any = None
        self._over = False

    def identity(self) -> dict[str, Any] | None:
        return {"database": self._database.shown, "rows": self._rows, "order_by": self._order_by}

    def open(self, known: dict[str, Any] | None, position: Any) -> None:
        if known is not None and known != self.identity():
            raise StreamError(
                f"this stream began with {known['rows']!r} of {known['database']} by {known['order_by']}, and is given "
                f"{self.name} by {self._order_by}: give that, or another key"
            )
        self._last = position

    def mark(self) -> Any:
        return self._last

    async def gather(self, many: int, seconds: float) -> Batch:
        if self._at >= len(self._page) and not self._over:
            self._page, self._at = await self._next(), 0
        rows = self._page[self._at : self._at + many]
        self._at += len(rows)
        if rows:
            self._last = _key(rows[-1][self._order_by])
        return Batch(rows, 0, self._over and self._at >= len(self._page))

    async def _next(self) -> list[Row]:
        """The next page. One row more is read, which tells whether its key is another one."""
        key, where, given = _quoted(self._order_by), "", []
        if self._last is not None:
            where, given = f"WHERE {key} > {self._database.place(1)}", [self._last]
        else:
            await self._no_nulls(key)
        rows = await self._database.fetch(
            f"SELECT * FROM {self._from} {where} ORDER BY {key} LIMIT {PAGE + 1}", given, repr(self._rows)
        )
        if rows and self._order_by not in rows[0]:
            raise StreamError(f"{self.name} has no column {self._order_by!r} to be read by")
        if any(row[self._order_by] == other[self._order_by] for row, other in pairwise(rows)):
            raise StreamError(f"{self.name} has several rows with one {self._order_by!r}: order_by must be unique")
        self._over = len(rows) <= PAGE
        return rows[:PAGE]

    async def _no_nulls(self, key: str) -> None:
        found = await self._database.fetch(
            f"SELECT 1 AS one FROM {self._from} WHERE {key} IS NULL LIMIT 1", [], repr(self._rows)
        )
        if found:
            raise StreamError(f"{self.name} has rows without {self._order_by!r}: order_by must never be null")

    def close(self) -> None:
        self._database.close()


class Table(Sink):
    """A table, each record a row of it, by the names of its columns; what a record lacks is null.

    `columns` are those that are written, else all: leave out what the database fills in, such as a `serial` one.

    Without a `url` it is one of the run's own database, and its rows are committed with the stream's move: once. With
    one the rows are written first, and so perhaps twice: one of the same `key`, a unique column, is replaced.
    Lists and dicts are written as JSON text.
    """

    awaited = late = True

    def __init__(
        self, name: str, *, columns: Sequence[str] | None = None, url: str | None = None, key: str | None = None
    ) -> None:
        if (url is None) != (key is None):
            raise StreamError(f"table {name!r} needs url= and key= where it is of another database, else neither")
        self.table, self.key = name, key
        self.within = url is None
        self._database = None if url is None else _database(url)
        self.name = f"the table {name!r}" + ("" if self._database is None else f" in {self._database.shown}")
        self._columns = None if columns is None else tuple(columns)

    async def put(self, connection: Any, records: list[Any]) -> None:
        database = self._database or _Lent(connection)
        if self._columns is None:
            self._columns = tuple(
                [row["name"] for row in await database.fetch(database.columns, [database.named(self.table)], self.name)]
            )
        if not self._columns:
            raise StreamError(f"there is no table {self.table!r} in {database.shown}: make it first")
        rows = [self._values(place, record) for place, record in enumerate(records)]
        names = ", ".join(map(_quoted, self._columns))
        places = ", ".join(database.place(number + 1) for number in range(len(self._columns)))
        sql = f"INSERT INTO {_quoted(self.table)} ({names}) VALUES ({places})"
        left = iter(rows)
        try:
            await database.write(f"{sql}{self._instead()}", left, self.name)
        except Exception as error:
            refused = error.__cause__ or error if isinstance(error, StreamError) else error
            if (place := _refused(refused, len(rows) - length_hint(left))) is None:
                raise
            raise Unwritable(self.name, place, str(refused)) from error

    def _values(self, place: int, record: dict[str, Any]) -> tuple[Any, ...]:
        assert self._columns is not None
        if not record.keys() <= set(self._columns):
            other = ", ".join(sorted(record.keys() - set(self._columns)))
            raise Unwritable(self.name, place, f"there is no column {other}: add it, or leave it out of the record")
        return tuple([_value(record.get(name)) for name in self._columns])

    def _instead(self) -> str:
        if self.key is None:
            return ""
        assert self._columns is not None
        others = [_quoted(name) for name in self._columns if name != self.key]
        sets = ", ".join(f"{name} = excluded.{name}" for name in others)
        return f" ON CONFLICT ({_quoted(self.key)}) DO {f'UPDATE SET {sets}' if others else 'NOTHING'}"

    def close(self) -> None:
        if self._database is not None:
            self._database.close()


def _refused(error: BaseException, taken: int) -> int | None:
    """The place of the row that a database refused, -1 where it does not say; None where that is not what is wrong.

    SQLite takes one row after the other, and `taken` is how many it has; asyncpg encodes many at once.
    """
    if isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError, OverflowError)):
        return taken - 1
    found = re.search(r"element #(\d+)", str(error))
    if found is not None:
        return int(found[1])
    return -1 if str(getattr(error, "sqlstate", ""))[:2] in ("22", "23") else None  # data and integrity


def _quoted(name: str) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))


def _value(value: Any) -> Any:
    return msgspec.json.encode(value).decode() if isinstance(value, (dict, list)) else value


def _key(value: Any) -> Any:
    """A key as the cursor keeps it: asyncpg has a class of its own for a UUID."""
    return uuid.UUID(str(value)) if isinstance(value, uuid.UUID) else value


# -- the two dialects -------------------------------------------------------------------------------------------------


class _Database(Protocol):
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


def _database(url: str) -> _Database:
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
        return _quoted(table)

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


class _Lent:
    """The connection of the stream's own move, whose errors are the step's."""

    shown = "the run's database"

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._numbered = hasattr(connection, "fetchrow")  # asyncpg has it, aiosqlite has not
        self.columns = POSTGRES_COLUMNS if self._numbered else SQLITE_COLUMNS

    def place(self, number: int) -> str:
        return f"${number}" if self._numbered else "?"

    def named(self, table: str) -> str:
        return _quoted(table) if self._numbered else table

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
