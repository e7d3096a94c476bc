"""PostgreSQL through asyncpg, group commit: one prepared statement over `unnest` for a whole batch."""

from __future__ import annotations

import time

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement

from benchmarks.floors.group import Group
from benchmarks.floors.rows import POSTGRES_CLAIM, POSTGRES_STEP, POSTGRES_STEPS, POSTGRES_TABLES, Row, row
from benchmarks.jobs import Size
from benchmarks.meter import Meter


class Writer:
    """One connection with a prepared statement for a batch of one and another for any other."""

    def __init__(self, connection: asyncpg.Connection, one: PreparedStatement, many: PreparedStatement) -> None:
        self.connection, self.one, self.many = connection, one, many

    @classmethod
    async def open(cls, url: str) -> Writer:
        """A connection with the floors' tables made."""
        connection = await asyncpg.connect(url)
        await connection.execute(POSTGRES_TABLES)
        return cls(connection, await connection.prepare(POSTGRES_STEP), await connection.prepare(POSTGRES_STEPS))

    async def write(self, rows: list[Row]) -> None:
        """One statement, which is one transaction."""
        if len(rows) == 1:
            await self.one.fetch(*rows[0])
        else:
            await self.many.fetch(*map(list, zip(*rows, strict=True)))


async def bulk(meter: Meter, url: str, size: Size) -> None:
    """All runs at once."""
    writer = await Writer.open(url)
    group = Group(writer.write)
    meter.begin()
    await group.drive(size)
    meter.end(size.runs * size.steps)
    await writer.connection.close()


alone = bulk


async def resume(meter: Meter, url: str, size: Size) -> None:
    """Claim and load all rows by one statement, then one step for each of them."""
    writer = await Writer.open(url)
    await writer.write([row(run, 1) for run in range(size.runs)])
    meter.begin()
    began = time.perf_counter()
    await writer.connection.fetch(POSTGRES_CLAIM)
    meter.note("loaded", time.perf_counter() - began)
    await Group(writer.write).drive(size, first=2)
    meter.end(size.runs)
    await writer.connection.close()
