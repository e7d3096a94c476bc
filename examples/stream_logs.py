"""A log is sorted into what is good, what is suspicious, and what is no line of a log, however long it is.

    python stream_logs.py [access.log]

Without a log it takes this system's own, of its packages. Kill it in the middle and start it again: it goes on after
its last commit, and every line is in one of the three files once. `malformed.txt` has those lines as they were.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from fsmworkflow import Engine, Workflow, WorkflowContext, field
from fsmworkflow.stream import Progress, sinks, sources, stream

PACKAGE = re.compile(
    r"(?P<when>\S+ \S+) (?P<what>startup|status|install|upgrade|configure|trigproc|remove|purge) (?P<of>.+)"
)
ACCESS = re.compile(
    r'(?P<who>\S+) \S+ \S+ \[(?P<when>[^\]]+)\] "(?P<what>[A-Z]+) (?P<of>\S+)[^"]*" (?P<status>\d{3}) (?P<size>\d+|-).*'
)
PROBES = ("..", "/etc/passwd", "/wp-login", "/.env", "/.git", "<script", "%00")

log = Workflow("log")


@log.step(initial=True, then=[(field("what").is_none(), "malformed"), "judge"])
def parse(ctx: WorkflowContext) -> None:
    found = ACCESS.fullmatch(ctx.data["line"]) or PACKAGE.fullmatch(ctx.data["line"])
    ctx.data.update(found.groupdict() if found else {})


@log.step(then=[(field("reasons").is_empty(), "good"), "suspicious"])
def judge(ctx: WorkflowContext) -> None:
    entry = ctx.data
    ctx.data["reasons"] = [f"asks for {probe}" for probe in PROBES if probe in entry["of"]]
    if entry.get("status", "").startswith(("4", "5")):
        ctx.data["reasons"].append(f"status {entry['status']}")
    if entry["what"] in ("remove", "purge"):
        ctx.data["reasons"].append(f"{entry['what']} of {entry['of'].split()[0]}")


log.final("good", "suspicious", "malformed")


def tell(progress: Progress) -> None:
    share = "" if progress.share is None else f", {progress.share:.0%}"
    print(f"{progress.records:,} lines{share}")


async def main(path: str) -> None:
    outlets = {"good": "good.jsonl", "suspicious": "suspicious.jsonl", "malformed": sinks.Text("malformed.txt")}
    async with Engine("sqlite:///logs.db") as engine:
        done = await stream(engine, log, sources.Text(path), outlets, key=path, on_progress=tell)
    print(*(f"{state}: {done.states.get(state, 0):,}" for state in outlets), sep="\n")


if __name__ == "__main__":
    given = sys.argv[1] if len(sys.argv) > 1 else "/var/log/dpkg.log"
    if not Path(given).exists():
        sys.exit(f"there is no {given}: give a log")
    asyncio.run(main(given))
