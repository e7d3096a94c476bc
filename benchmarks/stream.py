"""Streams beside plain Python loops that do the same with the same JSON library: `python benchmarks/stream.py`.

The four-stage stream of dataknobs-fsm's page on streaming: validate, enrich, categorise, output or error. Each way is a
process of its own, in turn, several rounds; the table has the medians, and the peak of memory, also of a tenth of the
records. Then steps that wait for 10 ms, with one worker and with four; and a durable batch, each record a run of two
steps.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from fsmworkflow import Engine, Workflow, field
from fsmworkflow.stream import batch, stream

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = int(os.environ.get("STREAM_ROUNDS", "3"))
MANY = int(os.environ.get("STREAM_RECORDS", "1000000"))
RUNS = 6000
Record = dict[str, Any]


def written(path: Path, many: int) -> None:
    """Records like those of an import: ten fields, one of a hundred of them bad."""
    encode = msgspec.json.Encoder().encode
    with path.open("wb") as file:
        for number in range(many):
            record = {
                "id": number, "customer": f"customer {number % 977}", "email": f"c{number % 977}@example.org",
                "amount": number % 1000 - 9.5, "currency": "EUR", "items": [{"sku": "a1", "qty": 1 + number % 3}],
                "country": ("DE", "FR", "US")[number % 3], "paid": number % 2 == 0, "note": None, "when": "2026-03-01",
            }  # fmt: skip
            file.write(encode(record) + b"\n")


# -- the stages, the same for both ------------------------------------------------------------------------------------


def validated(record: Record) -> None:
    record["valid"] = record["amount"] >= 0 and "@" in record["email"]


def enriched(record: Record) -> None:
    record["total"] = round(record["amount"] * (1.19 if record["country"] == "DE" else 1.2), 2)
    record["quantity"] = sum(item["qty"] for item in record["items"])


def categorised(record: Record) -> None:
    record["category"] = "high" if record["total"] > 500 else "medium" if record["total"] > 100 else "low"


def finished(record: Record) -> None:
    record["done"] = True


def order() -> Workflow:
    flow = Workflow("order")

    @flow.step(initial=True, then=[(field("valid").in_([True]), "enrich"), "error"])
    def validate(ctx: Any) -> None:
        validated(ctx.data)

    @flow.step(then="categorise")
    def enrich(ctx: Any) -> None:
        enriched(ctx.data)

    @flow.step(then="finish")
    def categorise(ctx: Any) -> None:
        categorised(ctx.data)

    @flow.step(then="output")
    def finish(ctx: Any) -> None:
        finished(ctx.data)

    flow.final("output", "error")
    return flow


def loops(place: Path, source: Path) -> None:
    """What somebody writes by hand."""
    decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
    with source.open("rb") as lines, (place / "good").open("wb") as good, (place / "bad").open("wb") as bad:
        for line in lines:
            record = decode(line)
            validated(record)
            if not record["valid"]:
                bad.write(encode(record) + b"\n")
                continue
            enriched(record)
            categorised(record)
            finished(record)
            good.write(encode(record) + b"\n")


async def streamed(place: Path, source: Path, mode: Any, key: str | None, chunk: int) -> None:
    sinks = {"output": str(place / "good.jsonl"), "error": str(place / "bad.jsonl")}
    async with Engine(f"sqlite:///{place / 'runs.db'}") as engine:
        await stream(engine, order(), str(source), sinks, mode=mode, key=key, chunk=chunk)


async def waiting(workers: int) -> float:
    """Seconds for 400 records through a step that waits for 10 ms."""
    flow = Workflow("waits")
    flow.step("wait", initial=True, then="over")(_wait)
    flow.final("over")
    began = time.perf_counter()
    await stream(None, flow, ({"n": n} for n in range(400)), [], workers=workers)
    return time.perf_counter() - began


async def _wait(ctx: Any) -> None:
    await asyncio.sleep(0.01)


async def run_as_batch(concurrency: int) -> float:
    """Seconds for 6,000 records, each a durable run of two steps on SQLite."""
    flow = Workflow("twice")
    flow.step("one", initial=True, then="two")(_add)
    flow.step("two", then="over")(_add)
    flow.final("over")
    with tempfile.TemporaryDirectory() as place:
        async with Engine(f"sqlite:///{place}/runs.db") as engine:
            began = time.perf_counter()
            found = await batch(
                engine, flow, [{"n": n} for n in range(RUNS)], durable=True, key="b", concurrency=concurrency
            )
            assert all(one.status == "done" for one in found)
            return time.perf_counter() - began


async def _add(ctx: Any) -> None:
    ctx.data["n"] += 1


def way(mode: Any, key: str | None, chunk: int = 10_000) -> Callable[[Path, Path], None]:
    return lambda place, source: asyncio.run(streamed(place, source, mode, key, chunk))


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "plain loops": loops,
    "direct": way("direct", None),
    "direct, key": way("direct", "k"),
    "direct, key, chunk=1000": way("direct", "k", 1000),
    "reference": way("reference", None),
    "copy": way("copy", None),
    "copy, key": way("copy", "k"),
}


def child(way: str, source: Path) -> None:
    """One measurement: seconds, processor seconds, and the peak of memory in MB."""
    with tempfile.TemporaryDirectory(dir=source.parent) as place:
        cpu, began = time.process_time(), time.perf_counter()
        WAYS[way](Path(place), source)
        past = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps([past, time.process_time() - cpu, peak]))


def measured(way: str, source: Path) -> list[float]:
    words = [sys.executable, "-m", "benchmarks.stream", way, str(source)]
    said = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT)
    found: list[float] = json.loads(said.stdout)
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        source, tenth = Path(directory) / "in.jsonl", Path(directory) / "tenth.jsonl"
        written(source, MANY)
        written(tenth, MANY // 10)
        found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
        for _ in range(ROUNDS):
            for way, rounds in found.items():
                rounds.append([*measured(way, source), measured(way, tenth)[2]])
        size = source.stat().st_size / 1e6
    print(f"{MANY:,} records, {size:.0f} MB, medians of {ROUNDS} rounds\n")
    print("| way | records/s | of plain loops | of them, by processor time | peak MB | for a tenth |")
    print("|---|---|---|---|---|---|")
    base = [median(one[place] for one in found["plain loops"]) for place in (0, 1)]
    for way, rounds in found.items():
        past, cpu, peak, less = (median(one[place] for one in rounds) for place in range(4))
        told = f"{MANY / past:,.0f} | {base[0] / past:.2f} | {base[1] / cpu:.2f} | {peak:.0f} | {less:.0f}"
        print(f"| {way} | {told} |")
    one, four = (median(asyncio.run(waiting(workers)) for _ in range(ROUNDS)) for workers in (1, 4))
    print(f"\nsteps that wait 10 ms: {400 / one:,.0f} records/s with one worker, {one / four:.2f} times that with four")
    past = {many: median(asyncio.run(run_as_batch(many)) for _ in range(ROUNDS)) for many in (50, 500)}
    told = ", ".join(f"{RUNS / taken:,.0f} a second with concurrency={many}" for many, taken in past.items())
    print(f"durable batch, runs of two steps on SQLite: {told}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
