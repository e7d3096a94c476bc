"""SQLite, WAL, synchronous=FULL, group commit through aiosqlite: one hop to its thread for a whole batch."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiosqlite

from benchmarks.floors.group import Group
from benchmarks.floors.rows import SQLITE_CLAIM, SQLITE_MOVE, SQLITE_PRAGMAS, SQLITE_RUN, SQLITE_TABLES, Row, row
from benchmarks.jobs import Size
from benchmarks.meter import Meter


def write(connection: sqlite3.Connection, rows: list[Row]) -> None:
    """One transaction; runs on aiosqlite's thread."""
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(SQLITE_RUN, rows)
    connection.executemany(SQLITE_MOVE, rows)
    connection.execute("COMMIT")


class Hop:
    """What runs on aiosqlite's thread, one hop for each call."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self.connection = connection

    async def write(self, rows: list[Row]) -> None:
        """The rows, durable."""
        await self.connection._execute(write, self.connection._conn, rows)  # type: ignore[no-untyped-call]


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[aiosqlite.Connection]:
    """An open database with the floors' tables."""
    async with aiosqlite.connect(url.removeprefix("sqlite:///"), isolation_level=None) as connection:
        for pragma in SQLITE_PRAGMAS:
            await connection.execute(pragma)
        await connection.executescript(SQLITE_TABLES)
        yield connection


async def bulk(meter: Meter, url: str, size: Size) -> None:
    """All runs at once."""
    async with opened(url) as connection:
        group = Group(Hop(connection).write)
        meter.begin()
        await group.drive(size)
        meter.end(size.runs * size.steps)


alone = bulk


async def resume(meter: Meter, url: str, size: Size) -> None:
    """Claim and load all rows by one statement, then one step for each of them."""
    async with opened(url) as connection:
        await Hop(connection).write([row(run, 1) for run in range(size.runs)])
        group = Group(Hop(connection).write)
        meter.begin()
        began = time.perf_counter()
        await connection.execute_fetchall(SQLITE_CLAIM)
        meter.note("loaded", time.perf_counter() - began)
        await group.drive(size, first=2)
        meter.end(size.runs)
