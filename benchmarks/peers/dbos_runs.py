"""DBOS as it ships, on its SQLite and on PostgreSQL: a workflow whose steps are recorded one after another."""

from __future__ import annotations

import asyncio

from dbos import DBOS, DBOSConfig, SetWorkflowID

from benchmarks.jobs import Size
from benchmarks.meter import Meter


@DBOS.step()
async def count(n: int) -> int:
    """The step of all jobs."""
    return n + 1


@DBOS.workflow()
async def drive(steps: int) -> int:
    """One run."""
    n = 0
    while n < steps:
        n = await count(n)
    return n


def launch(url: str) -> None:
    """Starts DBOS on the database, its tables made."""
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": url.replace("postgresql://", "postgresql+psycopg://"),
        "run_admin_server": False,
        "log_level": "ERROR",
    }
    DBOS(config=config)
    DBOS.launch()


async def run(key: str, steps: int) -> None:
    """One run to its end."""
    with SetWorkflowID(key):
        assert await drive(steps) == steps


async def bulk(meter: Meter, url: str, size: Size) -> None:
    """All runs by `gather`."""
    launch(url)
    meter.begin()
    await asyncio.gather(*(run(f"r{n}", size.steps) for n in range(size.runs)))
    meter.end(size.runs * size.steps)
    DBOS.destroy()


alone = bulk


async def cold(meter: Meter, url: str, size: Size) -> None:
    """One run of one step."""
    launch(url)
    await run("cold", size.steps)
    meter.durable()
    DBOS.destroy()
