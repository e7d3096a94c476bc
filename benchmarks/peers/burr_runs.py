"""Apache Burr with its asynchronous persisters: on SQLite with WAL and synchronous=FULL, on PostgreSQL with its pool.

On SQLite all runs share one connection, as its persister is meant to be used, so that one run's commit may carry
another's row. It keeps the whole state of every step, no status row.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from burr.core import ApplicationBuilder, State, action, expr

from benchmarks.floors.rows import SQLITE_PRAGMAS
from benchmarks.jobs import Size
from benchmarks.meter import Meter


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Any]:
    """A persister with its table made."""
    if url.startswith("sqlite"):
        from burr.integrations.persisters.b_aiosqlite import AsyncSQLitePersister

        async with AsyncSQLitePersister.from_values(db_path=url.removeprefix("sqlite:///")) as persister:
            for pragma in SQLITE_PRAGMAS:
                await persister.connection.execute(pragma)
            await persister.initialize()
            yield persister
    else:
        import asyncpg
        from burr.integrations.persisters.b_asyncpg import AsyncPostgreSQLPersister

        async with asyncpg.create_pool(url) as pool:
            persister = AsyncPostgreSQLPersister(pool=pool)
            await persister.initialize()
            yield persister


@action(reads=["n"], writes=["n"])
async def count(state: State) -> State:
    """The step of all jobs."""
    return state.update(n=state["n"] + 1)


@action(reads=[], writes=[])
async def end(state: State) -> State:
    """Never run: the runs halt before it."""
    return state


async def drive(persister: Any, key: str, steps: int, chain: bool) -> None:
    """One run: a chain of `steps` actions, or one action that loops under a condition."""
    names = [f"s{number}" for number in range(steps)] if chain else ["s0"]
    ways = (
        [*zip(names, [*names[1:], "end"], strict=True)]
        if chain
        else [("s0", "s0", expr(f"n < {steps}")), ("s0", "end")]
    )
    application = await (
        ApplicationBuilder()
        .with_actions(**dict.fromkeys(names, count), end=end)
        .with_transitions(*ways)
        .with_identifiers(app_id=key, partition_key="bench")
        .with_state(n=0)
        .with_entrypoint("s0")
        .with_state_persister(persister)
        .abuild()
    )
    _, _, state = await application.arun(halt_before=["end"])
    assert state["n"] == steps


async def alone(meter: Meter, url: str, size: Size) -> None:
    """The building of the application included."""
    async with opened(url) as persister:
        meter.begin()
        await drive(persister, "only", size.steps, chain=False)
        meter.end(size.steps)


async def bulk(meter: Meter, url: str, size: Size) -> None:
    """All runs by `gather`."""
    async with opened(url) as persister:
        meter.begin()
        await asyncio.gather(*(drive(persister, f"r{n}", size.steps, chain=True) for n in range(size.runs)))
        meter.end(size.runs * size.steps)


async def cold(meter: Meter, url: str, size: Size) -> None:
    """One run of one step."""
    async with opened(url) as persister:
        await drive(persister, "cold", size.steps, chain=True)
        meter.durable()
