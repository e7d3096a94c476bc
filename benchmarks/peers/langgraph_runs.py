"""LangGraph with its own checkpointers as they ship, and durability="sync": each step is durable before the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

from benchmarks.jobs import Size
from benchmarks.meter import Meter


class Counter(TypedDict):
    """The data of a run."""

    n: int


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Any]:
    """A checkpointer with its tables made: WAL and synchronous=FULL on SQLite, a pool of 10 on PostgreSQL."""
    if url.startswith("sqlite"):
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

        async with AsyncSqliteSaver.from_conn_string(url.removeprefix("sqlite:///")) as saver:
            await saver.setup()
            yield saver
    else:
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
        from psycopg.rows import dict_row
        from psycopg_pool import AsyncConnectionPool

        options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        async with AsyncConnectionPool(url, min_size=10, max_size=10, kwargs=options) as pool:
            saver = AsyncPostgresSaver(pool)
            await saver.setup()
            yield saver


async def count(state: Counter) -> Counter:
    """The step of all jobs."""
    return {"n": state["n"] + 1}


def looping(steps: int, saver: Any) -> Any:
    """One node that loops under a condition."""
    graph = StateGraph(Counter)
    graph.add_node("count", count)
    graph.add_edge(START, "count")
    graph.add_conditional_edges("count", lambda state: "count" if state["n"] < steps else END)
    return graph.compile(checkpointer=saver)


def chain(steps: int, saver: Any) -> Any:
    """`steps` nodes in a row."""
    graph = StateGraph(Counter)
    for number in range(steps):
        graph.add_node(f"s{number}", count)
        graph.add_edge(f"s{number - 1}" if number else START, f"s{number}")
    graph.add_edge(f"s{steps - 1}", END)
    return graph.compile(checkpointer=saver)


async def drive(graph: Any, key: str, steps: int) -> None:
    """One run to its end."""
    config = {"configurable": {"thread_id": key}, "recursion_limit": steps + 10}
    state = await graph.ainvoke({"n": 0}, config, durability="sync")
    assert state["n"] == steps


async def alone(meter: Meter, url: str, size: Size) -> None:
    """The compiled graph is there; the run is new."""
    async with opened(url) as saver:
        graph = looping(size.steps, saver)
        meter.begin()
        await drive(graph, "only", size.steps)
        meter.end(size.steps)


async def bulk(meter: Meter, url: str, size: Size) -> None:
    """All runs by `gather`."""
    async with opened(url) as saver:
        graph = chain(size.steps, saver)
        meter.begin()
        await asyncio.gather(*(drive(graph, f"r{n}", size.steps) for n in range(size.runs)))
        meter.end(size.runs * size.steps)


async def cold(meter: Meter, url: str, size: Size) -> None:
    """One run of one step."""
    async with opened(url) as saver:
        await drive(chain(size.steps, saver), "cold", size.steps)
        meter.durable()
