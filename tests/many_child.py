"""A process with many runs, at once or one after another. Prints what it took as one line of JSON.

python many_child.py at_once URL RUNS | python many_child.py in_turn URL RUNS
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

from fsmworkflow import Engine, Workflow

PAUSE = 0.005  # seconds between two looks at what the loop has spent: of the CPU, as others use the machine, too
WAVE = 50  # runs that are there together where they come one after another

flow = Workflow("flow")


@flow.step(initial=True, then="asked")
async def fetch(ctx: Any) -> None:
    await asyncio.sleep(0.05)
    ctx.data["fetched"] = await ctx.call(answer, ctx.run.key)


flow.wait("asked", on={"go": "store"}, after={"0.05s": "store"})


@flow.step(then="over")
async def store(ctx: Any) -> None:
    await asyncio.sleep(0.05)
    ctx.data["stored"] = True


flow.final("over")


async def answer(key: str) -> str:
    return key * 10


async def lags(found: list[tuple[float, float]]) -> None:
    """When the loop's turn should have come, and when it did; not counted is what it waited for a core in between."""
    while True:
        due, waited = time.monotonic() + PAUSE, without_a_core()
        await asyncio.sleep(PAUSE)
        found.append((due, time.monotonic() - (without_a_core() - waited)))


def without_a_core() -> float:
    """For how many seconds this thread could have run, where others did; 0 where the system does not tell."""
    told = Path("/proc/thread-self/schedstat")
    return int(told.read_text().split()[1]) / 1e9 if told.exists() else 0.0


class Search:
    """How long Python's full searches for garbage take, in seconds of this thread's CPU."""

    def __init__(self) -> None:
        self.longest = self.began = 0.0
        gc.callbacks.append(self)

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self.began = time.thread_time()
        elif info["generation"] == 2:
            self.longest = max(self.longest, time.thread_time() - self.began)


async def at_once(url: str, many: int) -> dict[str, Any]:
    """All runs are there together."""
    late: list[tuple[float, float]] = []
    search = Search()
    async with Engine(url, workflows=[flow]) as engine:
        looking = asyncio.create_task(lags(late))
        starting = []
        for n in range(many):
            starting.append(asyncio.create_task(engine.run(flow, {"text": "x" * 200}, key=f"k{n}")))
            if n % WAVE == 0:
                await asyncio.sleep(0)  # so that starting them is not what makes the loop late
        runs = await asyncio.gather(*starting)
        rested = await asyncio.gather(*(engine.result(flow, run.key) for run in runs if run.status == "waiting"))
        while any(run.status == "waiting" for run in rested):
            await asyncio.sleep(0.1)
            rested = await asyncio.gather(*(engine.result(flow, run.key) for run in rested if run.status == "waiting"))
        looking.cancel()
        done = sum([len(page) for page in [await engine.list(flow, status="done", limit=many + 1)]])
    return {"done": done, "late": late, "search": search.longest, "rss": peak(), "unit": unit(many)}


async def in_turn(url: str, many: int) -> dict[str, Any]:
    """One wave after another; after a tenth, and at the end, what this process holds."""
    held: list[dict[str, int]] = []
    async with Engine(url, workflows=[flow]) as engine:
        for wave in range(many // WAVE):
            keys = [f"k{wave}-{n}" for n in range(WAVE)]
            await asyncio.gather(*(brief(engine, key) for key in keys))
            if (wave + 1) * WAVE in (many // 10, many):
                await asyncio.sleep(0.5)
                held.append(holds())
        done = len(await engine.list(short, status="done", limit=many + 1))
    return {"done": done, "early": held[0], "late": held[-1]}


short = Workflow("short")


@short.step(initial=True, then="asked")
async def begin(ctx: Any) -> None:
    ctx.data["fetched"] = await ctx.call(answer, ctx.run.key)


short.wait("asked", on={"go": "over"})
short.final("over")


async def brief(engine: Engine, key: str) -> None:
    await engine.run(short, {"text": "x" * 200}, key=key)
    await engine.send(short, key, "go")
    run = await engine.result(short, key)
    assert run.status == "done", run


def holds() -> dict[str, int]:
    gc.collect()
    return {
        "rss": int(next(x for x in open("/proc/self/status") if x.startswith("VmRSS")).split()[1]) * 1024,
        "objects": len(gc.get_objects()),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks()),
    }


def unit(many: int) -> float:
    """What a search of this machine's takes among forty objects for each run, in seconds of the CPU."""
    gc.collect()
    kept = [[{"n": n}] for n in range(20 * many)]
    began = time.thread_time()
    gc.collect()
    assert kept
    return time.thread_time() - began


def peak() -> int:
    """The most memory that it held, in bytes: getrusage would count what held the process that has started it."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024  # type: ignore[index]


if __name__ == "__main__":
    job, url, many = sys.argv[1:]
    print(json.dumps(asyncio.run({"at_once": at_once, "in_turn": in_turn}[job](url, int(many)))))
