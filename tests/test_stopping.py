"""How a process stops: it drains, or is forced; a forked one leaves its parent alone; and who watches only reads."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import Engine, Workflow, open_store
from fsmworkflow.decide import begin
from fsmworkflow.store import Store
from tests.stopwatch import Stopwatch
from tests.waiting import PATIENCE, loads, until

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
async def store(store_url: str) -> Any:
    store = open_store(store_url)
    await store.open()
    yield store
    await store.close()


async def unowned(store: Store, flow: Workflow, *keys: str) -> None:
    fields = flow.check().codec.start({})
    await asyncio.gather(*(store.create(begin(flow, key, fields, now=store.now())) for key in keys))


@pytest.mark.parametrize("way", ["close", "work"])
async def test_P3_a_step_is_told_that_its_process_ends_and_loses_nothing(
    store: Store, way: str, stopwatch: Stopwatch
) -> None:
    begun, rounds = asyncio.Event(), []
    flow = Workflow("patient")

    @flow.step("work", initial=True, then="over")
    async def work(ctx: Any) -> None:
        assert not ctx.stopping
        begun.set()
        while not ctx.stopping:
            await asyncio.sleep(0.005)
        rounds.append(ctx.attempt)

    @flow.step("over", then="end")
    async def over(ctx: Any) -> None:
        rounds.append(0)

    flow.final("end")
    engine = Engine(store, workflows=[flow], grace=600)
    async with engine:
        await unowned(store, flow, "a")
        working = asyncio.create_task(engine.work())
        await begun.wait()
        began = time.monotonic()
        if way == "work":
            working.cancel()
            await asyncio.wait([working])
        else:
            await engine.close()
            await working
        assert stopwatch.since(began) < 3
    await store.open()
    run = await store.load("patient", "a")
    assert run is not None
    assert (run.state, run.owner, rounds) == ("over", None, [1]), "the step ended, and the next was not begun"


async def test_a_step_in_a_thread_is_told_too(store: Store) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    flow = Workflow("patient")

    @flow.step("work", initial=True, then="over")
    def work(ctx: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        end = time.monotonic() + PATIENCE
        while not ctx.stopping and time.monotonic() < end:
            time.sleep(0.005)
        ctx.data["told"] = ctx.stopping

    flow.final("over")
    async with Engine(store, workflows=[flow]) as engine:
        await engine.start(flow, key="a")
        await begun.wait()
    await store.open()
    run = await store.load("patient", "a")
    assert run is not None
    assert (run.state, run.data["told"]) == ("over", True)


async def test_a_second_close_forces_what_the_first_one_waits_for(store: Store, stopwatch: Stopwatch) -> None:
    begun = asyncio.Event()
    flow = Workflow("stubborn")

    @flow.step("work", initial=True, then="over")
    async def work(ctx: Any) -> None:
        begun.set()
        await asyncio.sleep(600)

    flow.final("over")
    engine = await Engine(store, workflows=[flow], grace=600).__aenter__()
    await engine.start(flow, key="a")
    await begun.wait()
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0.05)
    assert not closing.done()
    began = time.monotonic()
    await engine.close(grace=0)
    await closing
    assert stopwatch.since(began) < 3
    await store.open()
    run = await store.load("stubborn", "a")
    assert run is not None
    assert (run.state, run.owner) == ("work", None)


async def test_an_owner_that_ends_says_so_only_where_it_holds_runs(store: Store) -> None:
    said: list[int] = []
    enrol = store.enrol

    async def heard(owner: Any) -> None:
        said.append(owner.draining)
        await enrol(owner)

    store.enrol = heard  # type: ignore[method-assign]
    flow = Workflow("waits")
    flow.wait("here", initial=True, on={"go": "over"})
    flow.final("over")
    async with Engine(store, workflows=[flow]):
        pass
    assert said == [0]
    async with Engine(store, workflows=[flow]) as engine:
        await engine.run(flow, key="a")
    assert said == [0, 0, 1]
    assert await store.owners() == []


# -- os.fork ----------------------------------------------------------------------------------------------------------

FORKED = """
    import asyncio, os, sys
    from fsmworkflow import Engine, EngineClosed, StoreError, Workflow

    flow = Workflow("forked")

    @flow.step(initial=True, then="second")
    async def first(ctx):
        ctx.data["parent"] = os.getpid()

    flow.wait("second", on={"go": "over"})
    flow.final("over")

    async def use(engine):
        for verb, *more in (engine.run, flow), (engine.get, flow, "a"), (engine.send, flow, "a", "go"):
            try:
                await verb(*more)
            except EngineClosed as error:
                print(error)
        for use in (lambda: engine.store.load("forked", "a"), lambda: engine.store.release(run)):
            try:
                await use()
            except StoreError as error:
                print(error)
        await engine.close()
        await engine.store.close()
        async with Engine(sys.argv[1], workflows=[flow]) as own:
            print((await own.get(flow, "a")).state)

    def forked():
        # As multiprocessing does it: the child comes to a function of its own, in an event loop of its own.
        import multiprocessing
        context = multiprocessing.get_context("fork")

        async def main():
            global run
            async with Engine(sys.argv[1], workflows=[flow], poll=0.05) as engine:
                run = await engine.run(flow, key="a")
                child = context.Process(target=lambda: asyncio.run(use(engine)))
                child.start()
                while child.is_alive():
                    await asyncio.sleep(0.02)
                assert child.exitcode == 0, child.exitcode
                await engine.send(flow, "a", "go")
                print((await engine.result(flow, "a")).state, (await engine.run(flow, key="c")).state)

        asyncio.run(main())

    forked()
"""


def test_a_forked_process_is_told_that_the_engine_is_its_parents_which_goes_on(
    durable_url: str, tmp_path: Path
) -> None:
    program = tmp_path / "forked.py"
    program.write_text(textwrap.dedent(FORKED))
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(program), durable_url],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum("this engine belongs to process" in line for line in lines) == 3
    assert sum("from which this one was forked: open another store here" in line for line in lines) == 2
    assert lines[-2:] == ["second", "over second"], "the child with an engine of its own, and the parent"


# -- watching ---------------------------------------------------------------------------------------------------------


async def test_whoever_watches_runs_that_others_drive_only_reads(sqlite_url: str) -> None:
    held = asyncio.Event()
    flow, same = Workflow("slow"), Workflow("slow")

    async def work(ctx: Any) -> None:
        await held.wait()

    for one in (flow, same):
        one.step("work", initial=True, then="over")(work)
        one.final("over")
    async with (
        Engine(sqlite_url, workflows=[flow]) as driver,
        Engine(sqlite_url, workflows=[same], lease=60) as watcher,
    ):
        store: Any = watcher.store
        keys, looked = [f"k{n}" for n in range(50)], loads(store)
        await asyncio.gather(*(driver.start(flow, key=key) for key in keys))
        watching = [asyncio.create_task(watcher.run(same, key=key)) for key in keys]
        await until(lambda: all(looked[key] > 1 for key in keys))  # each has found its run there
        wrote: list[str] = []
        await store._write.set_trace_callback(wrote.append)
        looked.clear()
        await until(lambda: all(looked[key] > 1 for key in keys))
        held.set()
        runs = await asyncio.gather(*watching)
        await store._write.set_trace_callback(None)
    assert {run.status for run in runs} == {"done"}
    assert wrote == []
