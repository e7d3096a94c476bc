"""Ten thousand runs at once, and very many one after another, in one process: it stays small, and its loop turns."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
from typing import Any

import pytest

from fsmworkflow import Engine, Workflow
from fsmworkflow.store.writer import PART, Done, Write, Writer
from tests.children import ROOT
from tests.stopwatch import Stopwatch


def told(job: str, url: str, many: int) -> dict[str, Any]:
    """What a process of its own says of a job."""
    command = [sys.executable, str(ROOT / "tests" / "many_child.py"), job, url, str(many)]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["done"] == many
    return found


def test_10_000_runs_at_once_take_less_than_a_gigabyte_and_the_loop_turns(
    durable_url: str, stopwatch: Stopwatch
) -> None:
    found = told("at_once", durable_url, 10_000)
    assert found["rss"] < 1_000_000_000
    # The longest of the loop's turns is Python's full search for garbage, which takes 0.2 s of the CPU; no other takes
    # 50 ms. How long it takes goes by the number of objects, and by the machine: so another search is beside it.
    late = sorted(stopwatch.between(due, turned) for due, turned in found["late"])
    assert late[int(len(late) * 0.99)] < 1.0
    assert found["search"] < 0.3
    assert found["search"] < 6 * found["unit"]
    assert len(late) > 50


async def test_a_run_at_work_is_few_objects_to_pythons_search_for_garbage(durable_url: str) -> None:
    """The caller's task and the step's own coroutines among them. A run that rests is fewer still."""
    many, begun, go = 300, 0, asyncio.Event()
    flow = Workflow("flow")

    @flow.step(initial=True, then="asked")
    async def work(ctx: Any) -> None:
        nonlocal begun
        begun += 1
        await go.wait()

    flow.wait("asked", on={"go": "over"}, after={"1d": "over"})
    flow.final("over")
    async with Engine(durable_url, workflows=[flow]) as engine:
        first = asyncio.create_task(engine.run(flow, key="first"))  # with what is made once
        while not begun:
            await asyncio.sleep(0.01)
        before = tracked()
        waiting = [
            first,
            *(asyncio.create_task(engine.run(flow, {"text": "x" * 200}, key=f"k{n}")) for n in range(many)),
        ]
        while begun <= many:
            await asyncio.sleep(0.01)
        at_work = tracked() - before
        go.set()
        assert {run.status for run in await asyncio.gather(*waiting)} == {"waiting"}
        del first, waiting
        await engine.get(flow, "k1")
        at_rest = tracked() - before
    assert at_work / many < 36, at_work / many
    assert at_rest / many < 4, at_rest / many


def tracked() -> int:
    gc.collect()
    return len(gc.get_objects())


def in_turn(url: str, many: int) -> None:
    found = told("in_turn", url, many)
    early, late = found["early"], found["late"]
    assert late["rss"] < early["rss"] * 1.25 + 5_000_000
    assert late["objects"] < early["objects"] + 1_000
    for what in ("files", "threads", "tasks"):
        assert late[what] <= early[what] + 2, what


def test_after_20_000_runs_one_after_another_a_process_holds_no_more_than_before(sqlite_url: str) -> None:
    in_turn(sqlite_url, 20_000)


@pytest.mark.soak
def test_after_100_000_runs_one_after_another_a_process_holds_no_more_than_before(durable_url: str) -> None:
    in_turn(durable_url, 100_000)


async def test_a_large_batch_is_answered_over_many_turns_of_the_loop() -> None:
    """So that a timer, or a request of a web server, does not wait until ten thousand steps have gone on."""
    answered, turns = 0, []

    def start(batch: list[Write], done: Done) -> None:
        asyncio.get_running_loop().call_soon(done, None)

    def count(_: object) -> None:
        nonlocal answered
        answered += 1

    writer = Writer(start)
    futures = [writer.put("release", None) for _ in range(5 * PART + 1)]
    for future in futures:
        future.add_done_callback(count)
    while answered < len(futures):
        before = answered
        await asyncio.sleep(0)
        turns.append(answered - before)
    assert max(turns) == PART
    assert sum(turn > 0 for turn in turns) == 6
    await writer.drain()
