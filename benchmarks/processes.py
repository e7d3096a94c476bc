"""Many processes on one store: three against one, what a claim costs, and how soon a run goes on after kill -9.

python benchmarks/processes.py [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fsmworkflow import Engine, Workflow, open_store  # noqa: E402
from fsmworkflow.decide import begin  # noqa: E402
from fsmworkflow.records import Owner  # noqa: E402
from fsmworkflow.store import Store  # noqa: E402

RUNS, STEPS, WAIT, AT_ONCE = 2_000, 5, 0.02, 20
DUE = 10_000


def waiting(bodies: list[str]) -> Workflow:
    """Steps that wait for 20 ms, as for an answer."""
    flow = Workflow("waiting")
    for n in range(STEPS):

        async def body(ctx: Any) -> None:
            bodies.append(ctx.idempotency_key)
            await asyncio.sleep(WAIT)

        flow.step(f"s{n}", initial=n == 0, then=f"s{n + 1}" if n < STEPS - 1 else "over")(body)
    flow.final("over")
    return flow


def endless() -> Workflow:
    flow = Workflow("endless")

    @flow.step(initial=True, then="over")
    async def stay(ctx: Any) -> None:
        print(time.perf_counter(), flush=True)
        await asyncio.sleep(60)

    flow.final("over")
    return flow


# -- in a process of its own ------------------------------------------------------------------------------------------


async def work(url: str) -> None:
    """Works from a line on its input until everything has ended; says its bodies and its CPU."""
    bodies: list[str] = []
    flow = waiting(bodies)
    async with Engine(url, workflows=[flow], poll=0.05) as engine:
        print("open", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        before = time.process_time()
        async with engine.working(concurrency=AT_ONCE):
            while await engine.list(flow, status="running", limit=1):
                await asyncio.sleep(0.02)
        print(len(bodies), len(set(bodies)), time.process_time() - before, flush=True)


async def stay(url: str) -> None:
    """Opens the store and goes on with what is there, and says when it opened."""
    print(time.perf_counter(), flush=True)
    flow = endless()
    async with Engine(url, workflows=[flow]) as engine:
        await engine.run(flow, key="k")


# -- measured from outside --------------------------------------------------------------------------------------------


def child(mode: str, url: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__)), "--child", mode, url]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


async def made(url: str, flow: Workflow, many: int) -> Store:
    """A store, open, with so many due runs that nobody holds."""
    store = open_store(url)
    await store.open()
    flow.check()
    now = store.now()
    runs = [begin(flow, f"k{n}", flow.codec.start({}), now=now - 100 + n * 1e-3) for n in range(many)]
    await asyncio.gather(*map(store.create, runs))
    return store


async def prepared(url: str) -> None:
    await (await made(url, waiting([]), RUNS)).close()


def crew(url: str, many: int) -> tuple[float, float, int]:
    """Steps a second of so many processes, CPU in microseconds of a run, and how many bodies ran twice."""
    asyncio.run(prepared(url))
    some = [child("work", url) for _ in range(many)]
    for one in some:
        assert line(one) == "open\n"
    began = time.perf_counter()
    for one in some:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    said = [line(one).split() for one in some]
    took = time.perf_counter() - began
    for one in some:
        one.communicate()
    bodies = sum(int(words[0]) for words in said)
    return RUNS * STEPS / took, sum(float(words[2]) for words in said) * 1e6 / RUNS, bodies - RUNS * STEPS


async def claims(url: str) -> tuple[int, float]:
    """How many statements a claim of 10,000 due runs is, and how long it takes."""
    store: Any = await made(url, waiting([]), DUE)
    await store.enrol(Owner(token="me", machine="", process="1/1", lease=store.now() + 60, started=store.now()))
    count: list[object] = []
    if url.startswith("sqlite"):
        await store._on(store._write, lambda db: db.set_trace_callback(count.append))
        await store.read_rows("owners")
        await store._on(store._read, lambda db: db.set_trace_callback(count.append))
    else:
        store._write.add_query_logger(count.append)
    began = time.perf_counter()
    found = await store.claim("me", {"waiting": 1}, DUE, store.now())
    took = time.perf_counter() - began
    assert len(found) == DUE
    await store.close()
    return len(count), took


def after_death(url: str) -> float:
    """From opening the store to the first step that is done again, after kill -9."""
    first = child("stay", url)
    line(first), line(first)
    first.kill()
    first.communicate()
    second = child("stay", url)
    opened, resumed = float(line(second)), float(line(second))
    second.kill()
    second.communicate()
    return resumed - opened


def tell(kind: str, urls: Any, rounds: int) -> None:
    one, three, spent, twice = [], [], [], 0
    for _ in range(rounds):
        for many, rates in ((1, one), (3, three)):
            rate, cpu, again = crew(next(urls), many)
            rates.append(rate)
            spent.append(cpu)
            twice += again
    statements, took = asyncio.run(claims(next(urls)))
    deaths = [after_death(next(urls)) for _ in range(rounds * 3)]
    median = statistics.median
    print(
        f"| {kind} | {median(one):,.0f} | {median(three):,.0f} | {median(three) / median(one):.2f} | {twice} "
        f"| {median(spent):,.0f} | {statements} | {took:.2f} | {median(deaths):.3f} | {max(deaths):.3f} |",
        flush=True,
    )


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("MODE", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        mode, url = options.child
        asyncio.run({"work": work, "stay": stay}[mode](url))
        return
    from tests.postgres_server import Server

    print(
        f"\n{RUNS} runs of {STEPS} steps that wait {WAIT * 1000:.0f} ms, {AT_ONCE} at a time in each process;", end=" "
    )
    print(f"load at the start {os.getloadavg()[0]:.1f}.\n")
    print(
        "| | one, steps/s | three, steps/s | times | bodies twice | CPU us a run | statements to claim 10,000", end=" "
    )
    print("| s | s to go on after kill -9 | longest |\n|---|" + "--:|" * 9, flush=True)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place, Server() as server:
        tell("SQLite", (f"sqlite:///{place}/{n}.db" for n in range(1_000)), options.rounds)
        tell("PostgreSQL", (server.create_database() for _ in range(1_000)), options.rounds)


if __name__ == "__main__":
    main()
