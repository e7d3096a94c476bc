"""Tables of SQLite and PostgreSQL: their rows as a source, read by key, and as a sink, written once.

The names of tables and columns are the user's, and quoted; values are always parameters.
"""

from __future__ import annotations

import re
import sqlite3
import uuid
from collections.abc import Sequence
from itertools import pairwise
from operator import length_hint
from typing import Any

import msgspec

from fsmworkflow.stream.databases import Lent, Row, database, quoted
from fsmworkflow.stream.words import Batch, Sink, Source, StreamError, Unwritable

__all__ = ["Rows", "Table"]

PAGE = 2000
"""How many rows one query reads."""


class Rows(Source):
    """The rows of a table or query, each a record, in the order of `order_by`: a column that is unique and never null.

        sources.Rows("postgresql://localhost/shop", "orders", order_by="id")
        sources.Rows("sqlite:///shop.db", "SELECT id, total FROM orders WHERE paid", order_by="id")

    Each query reads the rows after the last key, so that no transaction is open in between, and goes on by key.
    A row that comes later with a key that is behind is not seen.
    """

    waits = True

    def __init__(self, url: str, rows: str, *, order_by: str) -> None:
        self._database = database(url)
        self.name = f"{rows!r} in {self._database.shown}"
        self._order_by, self._rows = order_by, rows
        self._from = (
            f"({rows.rstrip().rstrip(';')}\n) AS records"
            if re.search(r"\s", rows.strip())
            else quoted(*rows.split("."))
        )
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
        key, where, given = quoted(self._order_by), "", []
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
        self._database = None if url is None else database(url)
        self.name = f"the table {name!r}" + ("" if self._database is None else f" in {self._database.shown}")
        self._columns = None if columns is None else tuple(columns)

    async def put(self, connection: Any, records: list[Any]) -> None:
        database = self._database or Lent(connection)
        if self._columns is None:
            self._columns = tuple(
                [row["name"] for row in await database.fetch(database.columns, [database.named(self.table)], self.name)]
            )
        if not self._columns:
            raise StreamError(f"there is no table {self.table!r} in {database.shown}: make it first")
        rows = [self._values(place, record) for place, record in enumerate(records)]
        names = ", ".join(map(quoted, self._columns))
        places = ", ".join(database.place(number + 1) for number in range(len(self._columns)))
        sql = f"INSERT INTO {quoted(*self.table.split('.'))} ({names}) VALUES ({places})"
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
        others = [quoted(name) for name in self._columns if name != self.key]
        sets = ", ".join(f"{name} = excluded.{name}" for name in others)
        return f" ON CONFLICT ({quoted(self.key)}) DO {f'UPDATE SET {sets}' if others else 'NOTHING'}"

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


def _value(value: Any) -> Any:
    return msgspec.json.encode(value).decode() if isinstance(value, (dict, list)) else value


def _key(value: Any) -> Any:
    """A key as the cursor keeps it: asyncpg has a class of its own for a UUID."""
    return uuid.UUID(str(value)) if isinstance(value, uuid.UUID) else value
