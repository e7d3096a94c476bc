"""Batches: what became of each record, at its place; durable ones are runs, and are given again after a crash."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import Engine, Retry, Workflow, field
from fsmworkflow.errors import CodecError, InputDiffers, InvalidKey
from fsmworkflow.stream import StreamError, batch
from tests.test_stream_crash import ROOT, _environment
from tests.waiting import PATIENCE


def sorted_out() -> Workflow:
    """Small numbers are refused, 3 is an error, and so is what has no number."""
    flow = Workflow("sorted")

    @flow.step(initial=True, then=[(field("n") > 5, "mark"), "refused"])
    def look(ctx: Any) -> None:
        if ctx.data["n"] == 3:
            raise ValueError("three")

    @flow.step(then="done")
    async def mark(ctx: Any) -> None:
        await asyncio.sleep(0)
        ctx.data["marked"] = True

    flow.final("done")
    flow.final("refused", outcome="failed")
    return flow


def numbers(many: int) -> list[dict[str, Any]]:
    return [{"n": n} for n in range(many)]


def one_by_one(many: int) -> Iterator[dict[str, Any]]:
    yield from numbers(many)


async def awaited(many: int) -> AsyncIterator[dict[str, Any]]:
    for record in numbers(many):
        await asyncio.sleep(0)
        yield record


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("concurrency", [1, 7, 50])
@pytest.mark.parametrize("given", [numbers, one_by_one, awaited])
async def test_what_became_of_each_record_stands_at_its_place(
    store_url: str, given: Any, concurrency: int, durable: bool
) -> None:
    async with Engine(store_url) as engine:
        found = await batch(engine, sorted_out(), given(20), concurrency=concurrency, durable=durable)
    assert [one.number for one in found] == list(range(20))
    assert [one.status for one in found] == ["failed"] * 6 + ["done"] * 14
    assert [one.state for one in found] == ["refused"] * 3 + ["look"] + ["refused"] * 2 + ["done"] * 14
    assert {number for number, one in enumerate(found) if one.error is not None} == {3}
    assert type(found[3].error) is ValueError
    assert [dict(one.data) for one in found] == numbers(6) + [{"n": n, "marked": True} for n in range(6, 20)]
    assert all((one.key is not None) == durable for one in found)


async def test_what_was_given_is_as_it_was() -> None:
    given = numbers(20)
    await batch(None, sorted_out(), given)
    assert given == numbers(20)


@pytest.mark.parametrize("durable", [False, True])
async def test_so_many_are_under_way_at_once_and_no_more(store_url: str, durable: bool) -> None:
    running, most, full = 0, 0, asyncio.Event()
    flow = Workflow("flow")

    @flow.step(initial=True, then="over")
    async def wait(ctx: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 5:
            full.set()
        await asyncio.wait_for(full.wait(), PATIENCE)
        for _ in range(100):  # in which more could come
            await asyncio.sleep(0)
        running -= 1

    flow.final("over")
    async with Engine(store_url) as engine:
        await batch(engine, flow, numbers(23), concurrency=5, durable=durable)
    assert most == 5


@pytest.mark.parametrize("durable", [False, True])
async def test_what_is_no_record_fails_alone(store_url: str, tmp_path: Path, durable: bool) -> None:
    flow = sorted_out()
    async with Engine(store_url) as engine:
        found = await batch(engine, flow, [{"n": 7}, [1], {"n": {1, 2}}, {"n": 8}], durable=durable)
        assert [one.status for one in found] == ["done", "failed", "failed", "done"]
        assert isinstance(found[1].error, CodecError if durable else TypeError)
        (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(b'{"n": 7}\nnothing\n{"n": 8}\n'))
        found = await batch(engine, flow, tmp_path / "in.jsonl.gz", durable=durable)
    assert [one.status for one in found] == ["done", "failed", "done"]
    assert found[1].data == "nothing"
    assert "record 2 is malformed" in str(found[1].error)


async def test_a_durable_record_may_wait_and_retry_and_has_its_status(store_url: str) -> None:
    flow, tries = Workflow("flow"), dict.fromkeys(range(4), 0)

    @flow.step(initial=True, then=[(field("n") == 2, "asked"), "over"], retry=Retry(attempts=3, first_delay=0.01))
    async def look(ctx: Any) -> None:
        tries[ctx.data["n"]] += 1
        if ctx.data["n"] == 1 and tries[1] < 3:
            raise ValueError("not yet")

    flow.wait("asked", on={"answered": "over"})
    flow.final("over")
    async with Engine(store_url) as engine:
        found = await batch(engine, flow, numbers(4), durable=True, key="b")
        assert [one.status for one in found] == ["done", "done", "waiting", "done"]
        assert tries == {0: 1, 1: 3, 2: 1, 3: 1}
        await engine.send(flow, "b/2", "answered")
        again = await batch(engine, flow, numbers(4), durable=True, key="b")
    assert [one.status for one in again] == ["done"] * 4
    assert tries == {0: 1, 1: 3, 2: 1, 3: 1}
    with pytest.raises(StreamError, match="it waits for an event"):
        await batch(None, flow, numbers(4))


async def test_another_record_under_the_same_key_fails_and_what_is_there_stays(store_url: str) -> None:
    flow = sorted_out()
    async with Engine(store_url) as engine:
        await batch(engine, flow, [{"n": 7}, {"n": 8}], durable=True, key=lambda record: f"n-{record['n']}")
        found = await batch(engine, flow, [{"n": 7}, {"n": 9}], durable=True, key=lambda r: "n-7")
        assert [one.status for one in found] == ["done", "failed"]
        assert isinstance(found[1].error, InputDiffers)
        assert (await engine.get(flow, "n-7")).data["n"] == 7


async def test_a_batch_that_is_cancelled_stops_only_the_waiting(store_url: str) -> None:
    flow, going, go = Workflow("flow"), asyncio.Event(), asyncio.Event()

    @flow.step(initial=True, then="over")
    async def wait(ctx: Any) -> None:
        going.set()
        await go.wait()

    flow.final("over")
    async with Engine(store_url) as engine:
        task = asyncio.create_task(batch(engine, flow, numbers(3), durable=True, key="b"))
        await going.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        assert (await engine.result(flow, "b/0")).status == "done"


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ({"concurrency": 0}, ValueError, "concurrency must be a whole number"),
        ({"key": "k"}, ValueError, "durable=True"),
        ({"durable": True}, StreamError, "needs an engine"),
        ({"mode": "deep"}, ValueError, "mode is"),
    ],
)
async def test_what_says_nothing_is_refused(what: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        await batch(None, sorted_out(), numbers(1), **what)


async def test_a_batch_knows_its_workflow_by_name_and_refuses_what_is_no_key() -> None:
    async with Engine("memory://", workflows=[sorted_out()]) as engine:
        for durable in (False, True):
            (one,) = await batch(engine, "sorted", [{"n": 7}], durable=durable)
            assert (one.state, one.data["marked"]) == ("done", True)
        with pytest.raises(InvalidKey, match="key 7 must be text, or a function that makes the key of a record"):
            await batch(engine, "sorted", [{"n": 7}], durable=True, key=7)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="first comes an Engine, or None, then a Workflow"):
            await batch(sorted_out(), engine, [{"n": 7}])  # type: ignore[arg-type]


async def test_an_empty_batch_is_one() -> None:
    assert await batch(None, sorted_out(), []) == []


KILLED = """
import asyncio, os, sys
from fsmworkflow import Engine, Workflow
from fsmworkflow.stream import batch

url, log, kill = sys.argv[1:]
flow = Workflow("flow")

def told(what):
    with open(log, "a") as file:
        file.write(what + "\\n")

@flow.step(initial=True, then="second")
async def first(ctx):
    told(f"first {ctx.data['n']}")

@flow.step(then="over")
async def second(ctx):
    if ctx.data["n"] == 600 and kill:
        os._exit(9)
    told(f"second {ctx.data['n']}")

flow.final("over")

async def main():
    async with Engine(url) as engine:
        found = await batch(engine, flow, [{"n": n} for n in range(1000)], durable=True, key="b")
    print(len([one for one in found if one.status == "done"]))
    for one in found:
        if one.status != "done":
            print(one.key, one.status, type(one.error).__name__)

asyncio.run(main())
"""


def test_a_durable_batch_whose_process_was_killed_is_given_again_and_repeats_what_was_in_flight(
    durable_url: str, tmp_path: Path
) -> None:
    told = tmp_path / "log"
    for kill in ("kill", ""):
        program = [sys.executable, "-c", KILLED, durable_url, str(told), kill]
        ended = subprocess.run(program, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False)
        assert ended.returncode == (9 if kill else 0), ended.stderr
        if kill:
            assert 1000 < len(told.read_text().splitlines()) < 2000
    assert ended.stdout == "1000\n"
    lines = told.read_text().splitlines()
    assert set(lines) == {f"{step} {n}" for step in ("first", "second") for n in range(1000)}
    assert len(lines) - 2000 <= 50, "more was repeated than was in flight"


def test_a_record_that_ends_its_process_is_parked_and_all_others_end(durable_url: str, tmp_path: Path) -> None:
    program = [sys.executable, "-c", KILLED, durable_url, str(tmp_path / "log"), "kill"]
    for _ in range(8):
        ended = subprocess.run(program, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False)
        if ended.returncode != 9:
            break
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "999\nb/600 parked Poisoned\n"
