"""PostgreSQL through asyncpg, one statement and so one commit a step: the floor of the ratios."""

from __future__ import annotations

import asyncio
import json

import asyncpg

from benchmarks.floors.rows import POSTGRES_STEP, POSTGRES_TABLES, row
from benchmarks.jobs import Size, records
from benchmarks.meter import Meter

CONNECTIONS = 10
"""The pool of asyncpg as it comes; more did not help on two cores."""


async def alone(meter: Meter, url: str, size: Size) -> None:
    """One prepared statement on one connection."""
    connection = await asyncpg.connect(url)
    await connection.execute(POSTGRES_TABLES)
    statement = await connection.prepare(POSTGRES_STEP)
    meter.begin()
    for number in range(1, size.steps + 1):
        await statement.fetch(*row(1, number))
    meter.end(size.steps)
    await connection.close()


events = alone


async def bulk(meter: Meter, url: str, size: Size) -> None:
    """All runs at once over a pool; each step is a commit of its own."""
    async with asyncpg.create_pool(url, min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
        await pool.execute(POSTGRES_TABLES)

        async def one(run: int) -> None:
            for number in range(1, size.steps + 1):
                await pool.execute(POSTGRES_STEP, *row(run, number))

        meter.begin()
        await asyncio.gather(*(one(run) for run in range(size.runs)))
        meter.end(size.runs * size.steps)


async def large(meter: Meter, url: str, size: Size) -> None:
    """What a hand-written status column does: read the row, json.loads, change a counter, json.dumps, UPDATE."""
    connection = await asyncpg.connect(url)
    await connection.execute(POSTGRES_TABLES)
    await connection.execute(POSTGRES_STEP, *row(1, 1, json.dumps({"n": 0, "records": records()})))
    meter.begin()
    for _ in range(size.steps):
        data = json.loads(await connection.fetchval("SELECT data FROM runs WHERE id = 1"))
        data["n"] += 1
        data["records"][data["n"]]["score"] = data["n"]
        await connection.execute("UPDATE runs SET data = $1, version = version + 1 WHERE id = 1", json.dumps(data))
    meter.end(size.steps)
    await connection.close()


touched = large


async def cold(meter: Meter, url: str, size: Size) -> None:
    """Connect, create the tables, commit one step."""
    connection = await asyncpg.connect(url)
    await connection.execute(POSTGRES_TABLES)
    await connection.execute(POSTGRES_STEP, *row(1, size.steps))
    meter.durable()
    await connection.close()
