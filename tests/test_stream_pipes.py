"""Streams that are chained without a file between, and windows over a stream's records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import Engine, Workflow
from fsmworkflow.stream import Malformed, Pipe, StreamError, sources, stream, window
from fsmworkflow.stream.words import Batch
from tests.test_stream import lines, ns, numbered, read
from tests.waiting import PATIENCE


def doubled() -> Workflow:
    flow = Workflow("doubled")
    flow.step("double", initial=True, then="over")(lambda ctx: ctx.data.update(n=2 * ctx.data["n"]))
    flow.final("over")
    return flow


def summed() -> Workflow:
    """Adds up what is in a window."""
    flow = Workflow("summed")

    @flow.step(initial=True, then="over")
    def add(ctx: Any) -> None:
        records = ctx.data.pop("records")
        ctx.data.update(n=sum(record["n"] for record in records), many=len(records))

    flow.final("over")
    return flow


async def test_one_streams_outlet_is_the_next_ones_source() -> None:
    pipe, other, out = Pipe(), [], []
    source = ({"n": n} for n in range(1000))
    await asyncio.gather(
        stream(None, numbered(), source, {"good": pipe, "bad": other}, chunk=30),
        stream(None, doubled(), pipe.source, out, chunk=17),
    )
    assert (ns(out), ns(other)) == (list(range(0, 2000, 4)), list(range(1, 1000, 2)))


async def test_the_first_stream_waits_where_the_second_one_is_slow() -> None:
    pipe, begun, go = Pipe(), [], asyncio.Event()
    flow = Workflow("slow")

    @flow.step(initial=True, then="over")
    async def slow(ctx: Any) -> None:
        await go.wait()

    flow.final("over")

    def counted() -> Any:
        for n in range(1000):
            begun.append(n)
            yield {"n": n}

    first = asyncio.create_task(stream(None, doubled(), counted(), pipe, chunk=10))
    second = asyncio.create_task(stream(None, flow, pipe.source, []))
    before = -1
    while before != len(begun):  # until nothing moves any more
        before = len(begun)
        for _ in range(100):
            await asyncio.sleep(0.001)
    assert before <= 50
    go.set()
    assert (await first).records == (await second).records == 1000


async def test_a_pipe_is_read_by_one_stream_and_who_comes_too_late_disturbs_it_not() -> None:
    pipe, out = Pipe(), []
    source = ({"n": n} for n in range(1000))
    writes = asyncio.create_task(stream(None, numbered(), source, {"good": pipe, "bad": None}, chunk=30))
    reads = asyncio.create_task(stream(None, doubled(), pipe.source, out, chunk=17))
    await asyncio.sleep(0)
    while pipe.reader is None:
        await asyncio.sleep(0)
    with pytest.raises(StreamError, match="a pipe is read by one stream"):
        await asyncio.wait_for(stream(None, doubled(), pipe.source, []), PATIENCE)
    await asyncio.gather(writes, reads)
    assert ns(out) == list(range(0, 2000, 4))


async def test_where_the_first_stream_stops_the_second_one_does_not_take_it_for_the_end() -> None:
    pipe = Pipe()
    told = await asyncio.gather(
        stream(None, numbered(), [{"n": 1}, {"n": "x"}], pipe, chunk=1),
        stream(None, doubled(), pipe.source, []),
        return_exceptions=True,
    )
    assert all(isinstance(one, StreamError) for one in told), told
    assert "has stopped before its end" in str(told[1])


async def test_where_the_second_stream_stops_the_first_one_does_not_wait_for_it_for_ever() -> None:
    pipe = Pipe()
    flow = Workflow("strict")

    @flow.step(initial=True, then="over")
    def refuse(ctx: Any) -> None:
        raise ValueError("never")

    flow.final("over")
    async with asyncio.timeout(PATIENCE):
        told = await asyncio.gather(
            stream(None, doubled(), ({"n": n} for n in range(1000)), pipe, chunk=1),
            stream(None, flow, pipe.source, []),
            return_exceptions=True,
        )
    assert all(isinstance(one, StreamError) for one in told), told
    assert "that reads from this pipe has stopped" in str(told[0])


@pytest.mark.parametrize("refused", [0, 1])
async def test_where_one_of_the_two_is_refused_the_other_one_does_not_wait_for_it_for_ever(refused: int) -> None:
    pipe = Pipe()
    every = ["1s", "1s"]
    every[refused] = "0s"
    async with asyncio.timeout(PATIENCE):
        told = await asyncio.gather(
            stream(None, doubled(), ({"n": n} for n in range(1000)), pipe, chunk=1, every=every[0]),
            stream(None, doubled(), pipe.source, [], every=every[1]),
            return_exceptions=True,
        )
    assert isinstance(told[refused], ValueError)
    assert "has stopped before its end" in str(told[1 - refused])


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_window_holds_so_many_records_and_the_last_one_the_rest(tmp_path: Path, workers: int) -> None:
    source, out = lines(tmp_path / "in.jsonl", ({"n": n} for n in range(25))), []
    await stream(None, summed(), window(source, count=10), out, chunk=2, workers=workers)
    assert [(record["many"], record["n"]) for record in out] == [(10, 45), (10, 145), (5, 110)]


async def test_a_window_of_a_time_holds_what_came_in_it() -> None:
    for seconds in (0.5, 10):  # the machine may stand still between the first two
        if (found := await windows_of(seconds)) == [(2, 3), (1, 3)]:
            break
        assert found == [(1, 1), (1, 2), (1, 3)]
    else:
        raise AssertionError("the second never came in the time of the first")


async def windows_of(seconds: float) -> list[tuple[int, int]]:
    more = asyncio.Event()
    out: list[Any] = []

    async def slow() -> AsyncIterator[dict[str, int]]:
        yield {"n": 1}
        yield {"n": 2}
        await more.wait()
        yield {"n": 3}

    await stream(None, summed(), window(slow(), every=seconds), out, every="10ms", on_progress=lambda _: more.set())
    return [(record["many"], record["n"]) for record in out]


async def test_what_is_malformed_stands_beside_the_windows(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"n": 1}\nno json\n{"n": 2}\n{"n": 3}\n')
    out, wrong = [], []
    done = await stream(None, summed(), window(tmp_path / "in.jsonl", count=2), out, errors=wrong)
    assert [record["n"] for record in out] == [3, 3]
    assert (done.malformed, wrong[0]["text"]) == (1, "no json")


class Halting(sources.JsonLines):
    """Gives one record at a time, and nothing more after so many."""

    left = 0

    def read(self, many: int, seconds: float) -> Batch:
        self.left -= 1
        return super().read(1, seconds) if self.left >= 0 else Batch([])


@pytest.mark.parametrize("left", range(9))
def test_what_stands_in_a_window_that_is_not_full_is_given_with_it_and_not_before(tmp_path: Path, left: int) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"n": 1}\nno json\n{"n": 2}\n{"n": 3}\nnor this\n{"n": 4}\nnor that\n{"n": 5}\n')
    halting = Halting(path)
    source, whole = window(halting, count=3), window(path, count=3)
    known = source.identity()
    source.open(None, None)
    halting.left = left
    given = source.read(10, 0.01)
    mark = source.mark()
    source.close()
    whole.open(known, mark)
    rest = whole.read(10, PATIENCE)
    whole.close()
    told = [one.text if isinstance(one, Malformed) else ns(one["records"]) for one in given.records + rest.records]
    assert told == ["no json", [1, 2, 3], "nor this", "nor that", [4, 5]]
    assert (given.bad + rest.bad, given.read + rest.read) == (3, path.stat().st_size)


async def test_windows_are_gone_on_with_after_the_last_full_one(store_url: str, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines(source, [{"n": n if n != 55 else ""} for n in range(100)])
    async with Engine(store_url) as engine:
        with pytest.raises(StreamError, match="record 6 "):
            await stream(engine, summed(), window(source, count=10), out, key="k", chunk=2)
        lines(source, [{"n": n} for n in range(100)])
        done = await stream(engine, summed(), window(source, count=10), out, key="k", chunk=2)
    assert done.resumed == 4
    assert [record["n"] for record in read(out)] == [sum(range(at, at + 10)) for at in range(0, 100, 10)]


@pytest.mark.parametrize("what", [{}, {"count": 0}, {"count": 1.5}])
def test_a_window_of_nothing_is_refused(what: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="count"):
        window([], **what)
