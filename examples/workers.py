"""Three processes work on one store, and one is killed in the middle: the others take up what it was at.

python workers.py [URL]      sqlite:///workers.db without one; any number of machines can share a postgresql:// one
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from fsmworkflow import Engine, Workflow, WorkflowContext

RUNS, AT_ONCE = 30, 3
BEGUN = Path("begun.txt")

parcel = Workflow("parcel")


async def handle(ctx: WorkflowContext) -> None:
    """What a step does here: it takes a while, and leaves a line when it begins."""
    with BEGUN.open("a") as file:
        file.write(f"{os.getpid()} {ctx.idempotency_key}\n")
    await asyncio.sleep(0.1)
    ctx.data[f"{ctx.state} by"] = os.getpid()


parcel.step("pack", initial=True, then="label")(handle)
parcel.step("label", then="send")(handle)
parcel.step("send", then="sent")(handle)
parcel.final("sent")


async def work(url: str) -> None:
    """One of the three: it drives whatever is due, three runs at once, until everything is sent."""
    async with Engine(url, workflows=[parcel], poll=0.1) as engine, engine.working(concurrency=AT_ONCE):
        while await engine.list(parcel, status="running", limit=1):
            await asyncio.sleep(0.1)


async def main(url: str) -> None:
    async with Engine(url, workflows=[parcel]) as engine:
        for n in range(RUNS):
            await engine.start(parcel, key=f"parcel-{n}")
    # Closing lets the steps end that are on, and hands the runs over to whoever works.
    workers = [subprocess.Popen([sys.executable, __file__, url, "work"]) for _ in range(3)]
    while not any(line.startswith(f"{workers[0].pid} ") for line in BEGUN.read_text().splitlines()):
        await asyncio.sleep(0.01)
    workers[0].kill()  # as the kernel would when memory is short: nothing is told to anybody
    print("killed one of three in the middle of a step")
    for worker in workers:
        worker.wait()
    async with Engine(url, workflows=[parcel]) as engine:
        sent = await engine.list(parcel, status="done")
        print(f"{len(sent)} of {RUNS} are sent, by {len({run.data['send by'] for run in sent})} processes")
    again = sum(times - 1 for times in Counter(line.split()[1] for line in BEGUN.read_text().splitlines()).values())
    print(f"{again} steps were begun twice, of {AT_ONCE} at the most that it was at")


if __name__ == "__main__":
    url, *job = sys.argv[1:] or ["sqlite:///workers.db"]
    asyncio.run(work(url) if job else main(url))
