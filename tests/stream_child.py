"""The program that crash tests of streams kill: `stream_child.py URL SOURCE SINK [CHUNK [WORKERS [LEASE [apart]]]]`.

The source is a file, a pattern of files, or "rows" for the table of that name in the run's database; the sink is a
file, or "table" for the tables `odd` and `even` there.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from fsmworkflow import Engine, Workflow, field
from fsmworkflow.stream import sinks, sources, stream


def numbered() -> Workflow:
    """Every seventh record is odd, and goes elsewhere; every thousandth is an error."""
    flow = Workflow("numbered")

    @flow.step(initial=True, then=[(field("odd") == True, "odd"), "even"])  # noqa: E712 (a condition)
    def look(ctx: Any) -> None:
        if ctx.data["n"] % 1000 == 999:
            raise ValueError("a thousandth")
        ctx.data["odd"] = ctx.data["n"] % 7 == 0

    flow.final("odd", "even")
    return flow


async def main(
    url: str, source: str, sink: str, chunk: str = "500", workers: str = "1", lease: str = "10", order: str = ""
) -> None:
    place, dot, suffix = sink.partition(".")
    given: Any = sources.Rows(url, "rows", order_by="n") if source == "rows" else source
    given = sources.files(source) if "*" in source else given
    ways: dict[str, Any] = {state: f"{place}-{state}{dot}{suffix}" for state in ("odd", "even")}
    if Path(sink).name == "table":
        ways = {state: sinks.Table(state) for state in ways}
    errors = f"{place}-errors.jsonl"
    async with Engine(url, deaths=1_000_000, lease=float(lease)) as engine:  # what is often killed here is not at fault
        done = await stream(
            engine, numbered(), given, ways, errors=errors, key="k", chunk=int(chunk), workers=int(workers),
            ordered=order != "apart",
        )  # fmt: skip
    print(done.records, done.resumed, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
