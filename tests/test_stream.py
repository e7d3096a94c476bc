"""Streams: every record comes to its sink once and in order; what cannot be gone on with is refused in clear words."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import gc
import gzip
import io
import json
import os
import random
import resource
import select
import sys
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import Engine, RunOver, UnknownWorkflow, Workflow, field
from fsmworkflow.stream import Progress, StreamError, retry, sinks, sources, stream
from fsmworkflow.stream.packing import packed
from tests.waiting import PATIENCE


def numbered() -> Workflow:
    """Even numbers are good, odd ones are not, and what is no number is an error."""
    flow = Workflow("numbered")

    @flow.step(initial=True, then=[(field("even") == True, "good"), "bad"])  # noqa: E712 (a condition)
    def look(ctx: Any) -> None:
        ctx.data["even"] = int(ctx.data["n"]) % 2 == 0

    flow.final("good", "bad")
    return flow


def kept() -> Workflow:
    """Leaves records as they are."""
    flow = Workflow("kept")
    flow.step("look", initial=True, then="over")(lambda ctx: None)
    flow.final("over")
    return flow


def unpacked(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def lines(path: Path, records: Any) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in unpacked(path).splitlines()]


def ns(records: list[Any]) -> list[int]:
    return [int(record["n"]) for record in records]


# -- where records come from, and go ----------------------------------------------------------------------------------


def _csv(path: Path, many: int) -> Any:
    path.with_suffix(".csv").write_text("n,text\n" + "".join(f'{n},"a ""{n}""\nand, more"\n' for n in range(many)))
    return path.with_suffix(".csv")


def _generated(path: Path, many: int) -> Any:
    return ({"n": n} for n in range(many))


def _awaited(path: Path, many: int) -> Any:
    async def records() -> AsyncIterator[dict[str, int]]:
        for n in range(many):
            await asyncio.sleep(0)
            yield {"n": n}

    return records()


SOURCES = {
    "json lines": lambda path, many: lines(path.with_suffix(".jsonl"), ({"n": n} for n in range(many))),
    "gzip": lambda path, many: lines(path.with_suffix(".jsonl.gz"), ({"n": n} for n in range(many))),
    "csv": _csv,
    "list": lambda path, many: [{"n": n} for n in range(many)],
    "generator": _generated,
    "async generator": _awaited,
}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("kind", SOURCES)
async def test_every_record_of_a_source_comes_to_the_sink_of_its_final_state_in_order(
    tmp_path: Path, kind: str, workers: int
) -> None:
    good: list[Any] = []
    bad: list[Any] = []
    source = SOURCES[kind](tmp_path / "in", 500)
    done = await stream(None, numbered(), source, {"good": good, "bad": bad}, chunk=70, workers=workers)
    assert (ns(good), ns(bad)) == (list(range(0, 500, 2)), list(range(1, 500, 2)))
    assert (done.records, done.states, done.ended, done.share) == (500, {"good": 250, "bad": 250}, True, 1.0)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv", ".csv.gz", ".csv.zst", ".parquet"])
async def test_what_a_sink_holds_is_a_source(tmp_path: Path, suffix: str) -> None:
    there, again = tmp_path / f"one{suffix}", []
    await stream(None, numbered(), [{"n": n} for n in range(300)], there, chunk=70)
    await stream(None, numbered(), there, again)
    assert ns(again) == list(range(300))


async def test_lines_of_text_are_records_and_records_become_lines(tmp_path: Path) -> None:
    (tmp_path / "in.log").write_bytes("eins\r\n\nzwei ü\ndrei".encode())
    flow = Workflow("lines")
    flow.step("upper", initial=True, then="over")(lambda ctx: ctx.data.update(line=ctx.data["line"].upper()))
    flow.final("over")
    done = await stream(None, flow, tmp_path / "in.log", tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text() == "EINS\nZWEI Ü\nDREI\n"
    assert (done.records, done.read) == (3, (tmp_path / "in.log").stat().st_size)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-8-sig", "utf-16"])
async def test_a_file_has_the_mark_of_its_encoding_once(tmp_path: Path, encoding: str, suffix: str) -> None:
    rows, texts = tmp_path / f"out.csv{suffix}", tmp_path / f"out.txt{suffix}"
    given = [{"n": n, "line": f"{n} ü"} for n in range(9)]
    for sink in (sinks.Csv(rows, encoding=encoding), sinks.Text(texts, encoding=encoding)):
        await stream(None, kept(), given, sink, chunk=2)
    text = "".join(f"{n} ü\n" for n in range(9))
    assert unpacked(texts).decode(encoding) == text
    assert unpacked(rows).decode(encoding) == "n,line\r\n" + "".join(f"{n},{n} ü\r\n" for n in range(9))


async def test_a_text_of_several_lines_is_no_line(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match=r"record 2 of .* cannot be written to .*: its line has several lines"):
        await stream(None, kept(), [{"line": "one"}, {"line": "two\nthree"}], tmp_path / "out.txt")


def test_an_encoding_whose_lines_end_otherwise_is_refused(tmp_path: Path) -> None:
    for kind in (sources.Text, sources.Csv):
        with pytest.raises(ValueError, match="utf-16 do not end with the byte 10"):
            kind(tmp_path / "in.txt", encoding="utf-16")


async def test_one_path_for_several_states_is_one_sink_in_the_order_of_the_source(tmp_path: Path) -> None:
    out = str(tmp_path / "out.jsonl")
    await stream(None, numbered(), [{"n": n} for n in range(100)], {"good": out, "bad": out}, chunk=7)
    assert ns(read(tmp_path / "out.jsonl")) == list(range(100))


async def test_two_names_of_one_file_are_one_sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link.jsonl").symlink_to("out.jsonl")
    records = [{"n": n} for n in range(4)] + [{"n": "x"}]
    await stream(None, numbered(), records, {"good": "out.jsonl", "bad": tmp_path / "out.jsonl"}, errors="link.jsonl")
    assert [record.get("n", record.get("number")) for record in read(Path("out.jsonl"))] == [0, 1, 2, 3, 5]


async def test_a_workflow_may_be_given_by_its_name_where_the_engine_knows_it(store_url: str, tmp_path: Path) -> None:
    async with Engine(store_url, workflows=[numbered()]) as engine:
        done = await stream(engine, "numbered", [{"n": 1}], tmp_path / "out.jsonl", key="k")
        assert done.states == {"bad": 1}
        with pytest.raises(UnknownWorkflow, match="numbred"):
            await stream(engine, "numbred", [{"n": 1}], [])
        with pytest.raises(RunOver):
            await retry(engine, "numbered", "k")
        for given in ((numbered(), engine), (None, "numbered"), (store_url, numbered())):
            with pytest.raises(TypeError, match="first comes an Engine, or None, then a Workflow: not"):
                await stream(*given, [{"n": 1}], [])  # type: ignore[arg-type]


async def test_standard_input_and_output_are_json_lines(tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    with lines(tmp_path / "in.jsonl", ({"n": n} for n in range(10))).open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        await stream(None, numbered(), "-", {"good": "-", "bad": None})
    assert ns([json.loads(line) for line in capfd.readouterr().out.splitlines()]) == [0, 2, 4, 6, 8]


async def test_what_a_slow_source_gives_is_passed_on_after_every_so_long(tmp_path: Path) -> None:
    seen: list[int] = []
    more = asyncio.Event()

    async def slow() -> AsyncIterator[dict[str, int]]:
        yield {"n": 1}
        await more.wait()
        yield {"n": 2}

    def told(progress: Progress) -> None:
        seen.append(progress.records)
        more.set()

    await stream(None, numbered(), slow(), [], every="20ms", on_progress=told)
    assert seen[0] == 1
    assert seen[-1] == 2


async def test_what_comes_through_a_pipe_is_read_also_where_the_program_has_many_files(tmp_path: Path) -> None:
    path, out = tmp_path / "in.jsonl", []
    os.mkfifo(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2000)), hard))
    many = [os.dup(0) for _ in range(1100)]
    try:
        writing = asyncio.create_task(asyncio.to_thread(path.write_text, '{"n": 1}\n'))
        await stream(None, numbered(), path, out)
        await writing
    finally:
        for one in many:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert ns(out) == [1]


@pytest.mark.parametrize("stopped", ["failed", "cancelled"])
async def test_an_async_generator_of_a_stream_that_stops_may_be_closed_by_whoever_made_it(stopped: str) -> None:
    ended: list[str] = []
    waits = asyncio.Event()

    async def slow() -> AsyncIterator[dict[str, Any]]:
        try:
            yield {"n": "no number" if stopped == "failed" else 1}
            waits.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append("ended")

    async def use() -> None:
        async with contextlib.aclosing(slow()) as records:
            await stream(None, numbered(), records, [], every="20ms")

    task = asyncio.create_task(use())
    if stopped == "cancelled":
        await asyncio.wait_for(waits.wait(), PATIENCE)
        task.cancel()
    with pytest.raises(StreamError if stopped == "failed" else asyncio.CancelledError):
        await asyncio.wait_for(task, PATIENCE)
    assert ended == ["ended"]


@pytest.mark.parametrize(
    ("source", "one", "two"),
    [
        (sources.JsonLines, b'{"n":1}\n', b'{"n":2}\n'),
        (sources.Csv, b"n,t\n1,a\n", b"2,b\n"),
    ],
)
async def test_what_comes_slowly_through_a_pipe_is_passed_on_after_every_so_long(
    monkeypatch: Any, source: Any, one: bytes, two: bytes
) -> None:
    ours, theirs = os.pipe()
    seen: list[int] = []

    def told(progress: Progress) -> None:
        seen.append(progress.records)
        if len(seen) == 1:
            os.write(theirs, two)
            os.close(theirs)

    with io.TextIOWrapper(io.BufferedReader(io.FileIO(ours))) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        os.write(theirs, one)
        await stream(None, numbered(), source("-"), [], every="20ms", on_progress=told)
    assert (seen[0], seen[-1]) == (1, 2)


async def test_where_order_is_not_kept_a_slow_record_holds_up_no_other_and_each_is_there_once(
    store_url: str, tmp_path: Path
) -> None:
    flow, passed, go = Workflow("flow"), [0], asyncio.Event()

    @flow.step(initial=True, then="over")
    async def wait(ctx: Any) -> None:
        passed[0] += 1
        if ctx.data["n"] == 3:
            await go.wait()
        elif passed[0] == 500:
            go.set()
        await asyncio.sleep(0)

    flow.final("over")
    source, out = lines(tmp_path / "in.jsonl", ({"n": n} for n in range(1000))), tmp_path / "out.jsonl"
    async with Engine(store_url) as engine:
        given = {"key": "k", "chunk": 600, "every": "1h", "workers": 4, "ordered": False}
        done = await asyncio.wait_for(stream(engine, flow, source, out, **given), 60)
    found = ns(read(out))
    assert found.index(3) > 100, "it was waited for"
    assert sorted(found[:600]) == list(range(600)), "what was committed is no beginning of the source"
    assert sorted(found) == list(range(1000))
    assert (done.records, done.chunks) == (1000, 2)


@pytest.mark.parametrize("workers", [1, 4])
async def test_without_order_sync_steps_errors_and_ends_are_counted_as_with_it(tmp_path: Path, workers: int) -> None:
    (tmp_path / "in.jsonl").write_text(MIXED * 500)
    out: list[Any] = []
    wrong: list[Any] = []
    how = {"workers": workers, "ordered": False, "chunk": 700}
    done = await stream(None, numbered(), tmp_path / "in.jsonl", out, errors=wrong, **how)
    assert (done.records, done.errors, done.malformed, len(out)) == (3000, 1000, 1000, 1000)
    assert sorted(entry["number"] for entry in wrong) == [6 * n + more for n in range(500) for more in (2, 3, 4, 6)]
    assert done.read == (tmp_path / "in.jsonl").stat().st_size
    with pytest.raises(StreamError, match=r"record \d+ of .* is malformed"):
        await stream(None, numbered(), tmp_path / "in.jsonl", [], **how)


# -- what goes wrong with a record ------------------------------------------------------------------------------------


MIXED = '{"n": 0}\nno json\n{"n": "x"}\n[1]\n{"n": 1}\n\n{"m": 1}\n'


@pytest.mark.parametrize("workers", [1, 3])
async def test_what_fails_and_what_is_malformed_is_kept_apart_and_counted(tmp_path: Path, workers: int) -> None:
    (tmp_path / "in.jsonl").write_text(MIXED)
    wrong, out = tmp_path / "wrong.jsonl", []
    done = await stream(None, numbered(), tmp_path / "in.jsonl", out, errors=wrong, workers=workers)
    assert (ns(out), done.errors, done.malformed, done.records) == ([0, 1], 2, 2, 6)
    assert done.kinds == {"ValueError": 1, "KeyError": 1}
    entries = read(wrong)
    assert [entry["number"] for entry in entries] == [2, 3, 4, 6]
    assert entries[0] == {"number": 2, "error": entries[0]["error"], "text": "no json"}
    assert (entries[1]["record"], entries[1]["error"]["state"]) == ({"n": "x"}, "look")
    again: list[Any] = []
    mended = Workflow("mended")
    mended.step("look", initial=True, then="over")(lambda ctx: None)
    mended.final("over")
    done = await stream(None, mended, sources.Errors(wrong), again, errors=[])
    assert again == [{"n": "x"}, {"m": 1}]
    assert done.malformed == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("no json", "record 2 of .* is malformed"),
        ('{"n": "x"}', "record 2 of .* failed in state 'look': ValueError"),
    ],
)
async def test_without_errors_it_stops_at_the_first_and_goes_on_from_there_once_it_is_mended(
    store_url: str, tmp_path: Path, line: str, said: str
) -> None:
    place, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    place.write_text('{"n": 0}\n' + line.ljust(20) + '\n{"n": 2}\n')
    async with Engine(store_url) as engine:
        with pytest.raises(StreamError, match=said):
            await stream(engine, numbered(), place, out, key="k", chunk=1)
        assert ns(read(out)) == [0]
        place.write_text(place.read_text().replace(line.ljust(20), '{"n": 1}'.ljust(20)))
        done = await stream(engine, numbered(), place, out, key="k", chunk=1)
    assert ns(read(out)) == [0, 1, 2]
    assert (done.records, done.resumed) == (3, 1)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("kind", ["json lines", "csv", "list"])
@pytest.mark.parametrize("wrong", ["first", "second"])
async def test_what_failed_is_kept_as_it_was_given_whatever_its_step_had_changed(
    tmp_path: Path, kind: str, workers: int, wrong: str
) -> None:
    flow = Workflow("flow")

    @flow.step(initial=True, then="second")
    def first(ctx: Any) -> None:
        ctx.data["more"] = ctx.data.pop("n")
        if wrong == "first":
            raise ValueError("first")

    @flow.step(then="over")
    def second(ctx: Any) -> None:
        ctx.data.clear()
        raise ValueError("second")

    flow.final("over")
    errors: list[Any] = []
    source = SOURCES[kind](tmp_path / "in", 300)
    await stream(None, flow, source, [], errors=errors, workers=workers)
    assert [(entry["number"], int(entry["record"]["n"])) for entry in errors] == [(n + 1, n) for n in range(300)]
    assert {entry["error"]["state"] for entry in errors} == {wrong}


UNWRITABLE = {
    "in.jsonl": lambda path: sinks.JsonLines(path),
    "in.csv": lambda path: sinks.Csv(path, names=["n", "even"]),
    "in.txt": lambda path: sinks.Text(path, field="n"),
    "in.parquet": lambda path: sinks.Parquet(path),
}


@pytest.mark.parametrize("name", UNWRITABLE)
async def test_a_record_that_a_sink_cannot_write_is_named_and_once_it_is_mended_it_goes_on(
    store_url: str, tmp_path: Path, name: str
) -> None:
    """The 60th of the odd ones, the 119th of all."""
    flow, mended = Workflow("flow"), [False]
    spoilt = {"in.jsonl": object(), "in.csv": None, "in.txt": None, "in.parquet": "text"}[name]

    @flow.step(initial=True, then=[(field("even").in_([True]), "even"), "odd"])
    def look(ctx: Any) -> None:
        ctx.data["even"] = ctx.data["n"] % 2 == 1
        if ctx.data["n"] == 118 and not mended[0]:
            ctx.data["n"] = spoilt
            ctx.data["more"] = 1
            if name == "in.txt":
                del ctx.data["n"]

    flow.final("even", "odd")
    out, source = tmp_path / name, [{"n": n} for n in range(300)]
    async with Engine(store_url) as engine:
        for _ in range(2):
            given = {"even": None, "odd": UNWRITABLE[name](out)}
            with pytest.raises(StreamError, match="record 119 of the list of records cannot be written to"):
                await stream(engine, flow, source, given, key="k", chunk=50)
        mended[0] = True
        done = await stream(engine, flow, source, {"even": None, "odd": UNWRITABLE[name](out)}, key="k", chunk=50)
    assert done.resumed == 100
    found: list[Any] = []
    again = Workflow("again")
    again.step("look", initial=True, then="over")(lambda ctx: None)
    again.final("over")
    await stream(None, again, out, found)
    assert [int(one.get("n", one.get("line"))) for one in found] == list(range(0, 300, 2))


async def test_above_the_limit_it_stops(tmp_path: Path) -> None:
    records = [{"n": n if n % 3 else "x"} for n in range(90)]
    assert (await stream(None, numbered(), records, [], errors=[], limit=0.34)).errors == 30
    with pytest.raises(StreamError, match=r"of 45 records went wrong, which is above the limit of 25%"):
        await stream(None, numbered(), records, [], errors=[], limit=0.25, chunk=45)
    with pytest.raises(StreamError, match=r"above the limit of 0\.01%"):
        await stream(None, numbered(), records, [], errors=[], limit=0.0001)


# -- with a key -------------------------------------------------------------------------------------------------------


async def test_a_stream_that_has_ended_is_reported_and_writes_nothing(store_url: str, tmp_path: Path) -> None:
    source, out = lines(tmp_path / "in.jsonl", ({"n": n} for n in range(100))), tmp_path / "out.jsonl"
    seen: list[int] = []
    async with Engine(store_url) as engine:
        done = await stream(
            engine, numbered(), source, out, key="k", chunk=30, on_progress=lambda p: seen.append(p.records)
        )
        out.unlink()
        again = await stream(engine, numbered(), source, out, key="k")
    assert not out.exists()
    assert seen == [30, 60, 90, 100]
    assert (again.records, again.states, again.chunks) == (done.records, done.states, 4)
    assert (done.resumed, again.resumed, again.rate) == (0, 100, 0.0)


@pytest.mark.parametrize("kind", ["json lines", "gzip", "csv"])
async def test_a_chunk_that_is_the_last_is_known_to_be_so(tmp_path: Path, kind: str) -> None:
    seen: list[tuple[int, bool]] = []
    source = SOURCES[kind](tmp_path / "in", 100)
    done = await stream(None, numbered(), source, [], chunk=50, on_progress=lambda p: seen.append((p.records, p.ended)))
    assert (seen, done.chunks) == ([(50, False), (100, True)], 2)


async def test_a_stream_that_has_ended_says_so_where_it_is_given_another_source(
    store_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, other = (lines(tmp_path / f"{name}.jsonl", [{"n": 1}]) for name in ("in", "other"))
    async with Engine(store_url) as engine:
        await stream(engine, numbered(), source, tmp_path / "out.jsonl", key="k")
        await stream(engine, numbered(), source, tmp_path / "out.jsonl", key="k")
        assert caplog.messages == []
        await stream(engine, numbered(), other, tmp_path / "out.jsonl", key="k")
        assert "nothing was read of" in caplog.text
        assert f"path {source}, now {other}" in caplog.text
        caplog.clear()
        lines(source, [{"n": 1}, {"n": 2}])
        await stream(engine, numbered(), source, tmp_path / "out.jsonl", key="k")
        assert "size 9, now 18" in caplog.text


async def test_a_chunk_is_one_move_of_a_run_that_everybody_can_see(store_url: str, tmp_path: Path) -> None:
    source = lines(tmp_path / "in.jsonl", ({"n": n} for n in range(100)))
    async with Engine(store_url) as engine:
        await stream(engine, numbered(), source, tmp_path / "out.jsonl", key="k", chunk=30)
        (run,) = await engine.list()
        history = await engine.store.history(run)
    assert (run.workflow, run.key, run.data["records"]) == ("$stream:numbered", "k", 100)
    assert [entry.changes["records"] for entry in history if "records" in entry.changes] == [0, 30, 60, 90, 100]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv"])
async def test_what_a_crash_left_in_a_sink_is_cut_off(store_url: str, tmp_path: Path, suffix: str) -> None:
    place, out = tmp_path / "in.jsonl", tmp_path / f"out{suffix}"
    lines(place, [*({"n": n} for n in range(50)), {"n": ""}])
    async with Engine(store_url) as engine:
        with pytest.raises(StreamError, match="record 51"):
            await stream(engine, numbered(), place, out, key="k", chunk=20)
        with out.open("ab") as file:
            file.write(b"half a line that nobody has commi")
        lines(place, [*({"n": n} for n in range(50)), {"n": 50}])
        done = await stream(engine, numbered(), place, out, key="k", chunk=20)
    found: list[Any] = []
    await stream(None, numbered(), out, found)
    assert ns(found) == list(range(51))
    assert done.resumed == 40


async def _stopped(engine: Engine, place: Path, out: Path) -> None:
    """A stream of 100 records that has committed 40 of them."""
    lines(place, [{"n": n if n != 55 else ""} for n in range(100)])
    with pytest.raises(StreamError, match="record 56"):
        await stream(engine, numbered(), place, out, key="k", chunk=20)


def _longer(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(b"#" + data[1:])


CHANGES = {
    "another sink": (
        "out.jsonl",
        lambda path: path.write_bytes(b"x" * path.stat().st_size),
        "somebody else has changed",
    ),
    "a shorter sink": ("out.jsonl", lambda path: os.truncate(path, 100), "somebody else has changed"),
    "no sink": ("out.jsonl", Path.unlink, "somebody else has changed"),
    "a shorter source": ("in.jsonl", lambda path: os.truncate(path, 500), "it has 500 bytes, and had"),
    "another source": (
        "in.jsonl",
        lambda path: lines(path, [{"n": n} for n in range(1000, 1300)]),
        "the first or the last are others",
    ),
    "no source": ("in.jsonl", Path.unlink, "cannot be read"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_somebody_else_has_changed_between_two_lives_is_refused_and_once_put_back_gone_on_with(
    store_url: str, tmp_path: Path, change: str
) -> None:
    name, spoil, said = CHANGES[change]
    source, out, path = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / name
    async with Engine(store_url) as engine:
        await _stopped(engine, source, out)
        kept = path.read_bytes()
        spoil(path)
        spoilt = path.read_bytes() if path.exists() else b""
        with pytest.raises(StreamError, match=said):
            await stream(engine, numbered(), source, out, key="k", chunk=20, errors=None)
        assert (path.read_bytes() if path.exists() else b"") == spoilt, "what is not ours was changed"
        path.write_bytes(kept)
        lines(source, [{"n": n} for n in range(100)])
        await stream(engine, numbered(), source, out, key="k", chunk=20)
    assert ns(read(out)) == list(range(100))


async def test_a_source_that_has_grown_is_gone_on_with(store_url: str, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    async with Engine(store_url) as engine:
        await _stopped(engine, source, out)
        lines(source, [{"n": n} for n in range(150)])
        await stream(engine, numbered(), source, out, key="k")
    assert ns(read(out)) == list(range(150))


async def test_a_first_start_refuses_a_file_that_is_not_empty_and_leaves_it(store_url: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine\n")
    async with Engine(store_url) as engine:
        for key in (None, "k"):
            with pytest.raises(StreamError, match="holds 5 bytes already"):
                await stream(engine, numbered(), [{"n": 1}], out, key=key)
        assert out.read_text() == "mine\n"
        out.unlink()
        await stream(engine, numbered(), [{"n": 1}], out, key="k")
    assert ns(read(out)) == [1]


def _counted() -> Iterator[dict[str, int]]:
    yield {"n": 1}


@pytest.mark.parametrize(
    ("source", "sink", "said"),
    [
        (_counted, "out.jsonl", "the generator of records cannot be read again"),
        (lambda: "-", "out.jsonl", "standard input cannot be read again"),
        (lambda: [{"n": 1}], "-", "standard output cannot be cut back"),
        (lambda: [{"n": 1}], [], "a list cannot be cut back"),
    ],
)
async def test_what_cannot_be_gone_on_with_is_refused_with_a_key(
    tmp_path: Path, monkeypatch: Any, source: Any, sink: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    async with Engine("memory://") as engine:
        with pytest.raises(StreamError, match=said):
            await stream(engine, numbered(), source(), sink, key="k")
        assert await engine.list() == []


async def test_two_streams_do_not_write_to_one_file(tmp_path: Path) -> None:
    out, begun, go = tmp_path / "out.jsonl", asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[dict[str, int]]:
        begun.set()
        await go.wait()
        yield {"n": 1}

    first = asyncio.create_task(stream(None, numbered(), slow(), out))
    await begun.wait()
    with pytest.raises(StreamError, match="is being written to by another stream"):
        await stream(None, numbered(), [{"n": 2}], out)
    go.set()
    await first
    assert ns(read(out)) == [1]


async def test_a_second_call_with_the_key_waits_and_reports_what_the_first_one_did(
    store_url: str, tmp_path: Path
) -> None:
    source, out = lines(tmp_path / "in.jsonl", ({"n": n} for n in range(1000))), tmp_path / "out.jsonl"
    async with Engine(store_url) as engine:
        both = (stream(engine, numbered(), source, out, key="k", chunk=10) for _ in range(2))
        first, second = await asyncio.gather(*both)
    assert (first.records, second.records) == (1000, 1000)
    assert ns(read(out)) == list(range(1000))


async def test_a_stream_that_is_cancelled_goes_on_after_its_last_commit(store_url: str, tmp_path: Path) -> None:
    source, out = lines(tmp_path / "in.jsonl", ({"n": n} for n in range(3000))), tmp_path / "out.jsonl"
    tasks: list[asyncio.Task[Progress]] = []
    async with Engine(store_url) as engine:
        for many in (300, 900, 1700):

            def told(progress: Progress, many: int = many) -> None:
                if progress.records >= many:
                    tasks[-1].cancel()

            tasks.append(
                asyncio.create_task(stream(engine, numbered(), source, out, key="k", chunk=100, on_progress=told))
            )
            with pytest.raises(asyncio.CancelledError):
                await tasks[-1]
        done = await stream(engine, numbered(), source, out, key="k")
    assert done.resumed >= 1700
    assert ns(read(out)) == list(range(3000))


@pytest.mark.parametrize(("workers", "ordered"), [(1, True), (4, True), (4, False)])
async def test_a_stream_that_is_cancelled_within_a_chunk_has_ended_and_says_nothing_of_it_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int, ordered: bool
) -> None:
    flow, begun, loop, under_way = Workflow("flow"), asyncio.Event(), asyncio.get_running_loop(), []

    @flow.step(initial=True, then="over")
    def look(ctx: Any) -> None:
        under_way.append(1)
        loop.call_soon_threadsafe(begun.set)
        time.sleep(0.001)
        under_way.pop()

    flow.final("over")
    endless = ({"n": n} for n in count())
    how: Any = {"chunk": 10**9, "every": "1h", "workers": workers, "ordered": ordered}
    task = asyncio.create_task(stream(None, flow, endless, tmp_path / "out.jsonl", **how))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert under_way == []
    del task
    gc.collect()  # what nobody has asked a task for is told then
    assert caplog.text == ""


async def stops_at_once(task: asyncio.Task[Any]) -> None:
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 60)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv", "in.txt", "in.jsonl.gz", "in.jsonl.zst"])
@pytest.mark.parametrize("written", [False, True])
async def test_a_stream_that_waits_at_a_silent_pipe_is_cancelled_at_once(
    tmp_path: Path, name: str, written: bool
) -> None:
    """Whether or not somebody has opened its other end."""
    os.mkfifo(tmp_path / name)
    task = asyncio.create_task(stream(None, numbered(), tmp_path / name, [], every="1h"))
    while len(asyncio.all_tasks()) < 3:  # until its thread is at the pipe
        await asyncio.sleep(0.01)
    other = os.open(tmp_path / name, os.O_RDWR) if written else -1
    await stops_at_once(task)
    if written:
        os.close(other)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
async def test_what_comes_through_a_named_pipe_is_read_to_its_end(tmp_path: Path, suffix: str) -> None:
    path, out = tmp_path / f"in{suffix}", []
    os.mkfifo(path)
    text = "".join(f'{{"n": {n}}}\n' for n in range(50_000)).encode()

    def write() -> None:
        path.write_bytes(packed(str(path), text) if suffix != ".jsonl" else text)

    writing = asyncio.create_task(asyncio.to_thread(write))
    await stream(None, numbered(), path, out, every="20ms")
    await writing
    assert ns(out) == list(range(50_000))


@pytest.mark.parametrize("opened", [False, True])
async def test_a_stream_into_a_pipe_that_nobody_reads_is_cancelled_at_once(tmp_path: Path, opened: bool) -> None:
    path = tmp_path / "out.jsonl"
    os.mkfifo(path)
    other = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if opened else -1

    endless = ({"n": n, "pad": "x" * 1000} for n in count())
    task = asyncio.create_task(stream(None, numbered(), endless, path, chunk=1000))
    while len(asyncio.all_tasks()) < 3 or (opened and not _readable(other)):  # until its thread is at the pipe
        await asyncio.sleep(0.01)
    await stops_at_once(task)
    if opened:
        os.close(other)


def _readable(descriptor: int) -> list[int]:
    return select.select([descriptor], [], [], 0)[0]


async def test_whoever_reads_from_a_named_pipe_is_given_all_of_it_and_may_leave(tmp_path: Path) -> None:
    path, many = tmp_path / "out.jsonl", 20_000
    os.mkfifo(path)
    reading = asyncio.create_task(asyncio.to_thread(path.read_bytes))
    await stream(None, numbered(), [{"n": n} for n in range(many)], path)
    assert [json.loads(line)["n"] for line in (await reading).splitlines()] == list(range(many))

    def leave() -> None:
        with path.open("rb") as file:
            file.read(10)

    leaving = asyncio.create_task(asyncio.to_thread(leave))
    with pytest.raises(StreamError, match="Broken pipe"):
        await stream(None, numbered(), ({"n": n} for n in count()), path, chunk=1000)
    await leaving


# -- hard input, full disks, memory -----------------------------------------------------------------------------------


async def test_a_line_of_50_mb_is_malformed_and_the_rest_goes_on(tmp_path: Path) -> None:
    source, wrong, out = tmp_path / "in.jsonl", [], []
    with source.open("wb") as file:
        file.write(b'{"n": 0}\n{"n": "' + b"x" * 50 * 2**20 + b'"}\n{"n": 2}\n')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = await stream(None, numbered(), source, out, errors=wrong)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert (ns(out), done.malformed, done.read) == ([0, 2], 1, source.stat().st_size)
    assert "over the limit of 16,777,216" in wrong[0]["error"]["message"]
    assert grown < 120_000, f"{grown} KB for a line that is not kept"


async def test_a_last_line_over_the_limit_and_one_of_exactly_the_limit(tmp_path: Path) -> None:
    text = '{"n": 1}'
    (tmp_path / "in.jsonl").write_text(f"{text}\n{text} ")
    wrong, out = [], []
    done = await stream(None, numbered(), sources.JsonLines(tmp_path / "in.jsonl", limit=len(text)), out, errors=wrong)
    assert (len(out), len(wrong), done.read) == (1, 1, 2 * len(text) + 2)


@pytest.mark.parametrize("mode", ["copy", "reference", "direct"])
@pytest.mark.parametrize("depth", [200, 900, 5000, 100_000])
async def test_a_record_nested_beyond_reason_is_one_that_went_wrong_and_the_rest_goes_on(
    tmp_path: Path, mode: Any, depth: int
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    deep = '{"n": 1, "deep": ' + "[" * depth + "]" * depth + "}"
    source.write_text('{"n": 0}\n' + deep + '\n{"n": 2}\n')
    wrong: list[Any] = []
    done = await stream(None, numbered(), source, out, errors=wrong, mode=mode)
    assert done.records == 3
    assert [n for n in ns(read(out)) if n != 1] == [0, 2]
    assert done.errors + done.malformed + sum(done.states.values()) == 3


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize("error", [ValueError("x" * 10**6), ValueError("\ud800\0"), Mute()])
async def test_what_an_error_says_is_kept_in_reason_and_never_in_the_way(tmp_path: Path, error: Exception) -> None:
    flow = Workflow("flow")

    @flow.step(initial=True, then="over")
    def fail(ctx: Any) -> None:
        raise error

    flow.final("over")
    wrong = tmp_path / "wrong.jsonl"
    await stream(None, flow, [{"n": 1}], [], errors=wrong)
    (entry,) = read(wrong)
    assert entry["error"]["type"] == type(error).__name__
    assert len(entry["error"]["message"]) <= 20_010
    with pytest.raises(StreamError, match="record 1") as told:
        await stream(None, flow, [{"n": 1}], [])
    assert len(str(told.value)) < 2000


async def test_another_encoding_is_malformed_and_named(tmp_path: Path) -> None:
    for name, text in (("in.jsonl", '{"n": 1, "t": "ü"}\n'), ("in.csv", "n,t\n1,ü\n"), ("in.txt", "ü\n")):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        wrong: list[Any] = []
        done = await stream(None, numbered(), tmp_path / name, [], errors=wrong)
        assert done.malformed == 1
        assert "utf-8" in wrong[0]["error"]["message"].lower()
    out: list[Any] = []
    await stream(None, numbered(), sources.Csv(tmp_path / "in.csv", encoding="latin-1"), out)
    assert out[0]["t"] == "ü"


@pytest.mark.parametrize("first", [b"na\xefve,t\n", b'"' + b"x" * 200_000 + b'",t\n'])
async def test_a_first_row_that_cannot_be_read_is_named(tmp_path: Path, first: bytes) -> None:
    (tmp_path / "in.csv").write_bytes(first + b"1,2\n")
    with pytest.raises(StreamError, match=r"in.csv has no first row that names its columns"):
        await stream(None, numbered(), tmp_path / "in.csv", [])


async def test_a_value_that_a_dialect_cannot_write_is_named_with_its_record(tmp_path: Path) -> None:
    sink = sinks.Csv(tmp_path / "out.csv", quoting=csv.QUOTE_NONE)
    with pytest.raises(StreamError, match=r"record 2 of the list of records cannot be written to .* need to escape"):
        await stream(None, numbered(), [{"n": 1, "t": "a"}, {"n": 2, "t": "a,b"}], sink)


async def test_a_row_with_more_or_fewer_values_is_malformed(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("n,t\n1,a\n2\n3,b,c\n\n4,d\n")
    wrong, out = [], []
    done = await stream(None, numbered(), tmp_path / "in.csv", out, errors=wrong)
    assert (ns(out), done.malformed) == ([1, 4], 2)
    assert wrong[0]["error"]["message"] == "it has 1 values, and there are 2 columns"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("spoil", [lambda data: data[:-2000], lambda data: data[:-2000] + b"junk" * 500])
async def test_a_packed_file_that_is_cut_off_or_spoilt_is_an_error_and_what_came_before_is_kept(
    store_url: str, tmp_path: Path, suffix: str, spoil: Any
) -> None:
    source, out = tmp_path / f"in.jsonl{suffix}", tmp_path / "out.jsonl"
    parts = (f'{{"n": {n}, "pad": "{random.random()}"}}\n' for n in range(30_000))
    whole = [packed(str(source), "".join(part for part in islice(parts, 3000)).encode()) for _ in range(10)]
    source.write_bytes(spoil(b"".join(whole)))
    async with Engine(store_url) as engine:
        with pytest.raises(StreamError, match="cannot be read after byte"):
            await stream(engine, numbered(), source, out, key="k", chunk=1000)
    found = ns(read(out))
    assert found == list(range(len(found)))
    assert len(found) > 1000


async def test_a_source_that_is_cut_off_while_it_is_read_is_no_end(tmp_path: Path) -> None:
    source = lines(tmp_path / "in.jsonl", ({"n": n, "pad": "x" * 100} for n in range(10_000)))

    def told(progress: Progress) -> None:
        os.truncate(source, 1000)

    with pytest.raises(StreamError, match="was cut off while it was read"):
        await stream(None, numbered(), source, [], chunk=100, on_progress=told)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.rename(path.with_name("old.jsonl"))])
async def test_a_sink_that_is_moved_away_while_it_is_written_to_is_no_place_for_records(
    store_url: str, tmp_path: Path, spoil: Any
) -> None:
    source, out = lines(tmp_path / "in.jsonl", ({"n": n} for n in range(300))), tmp_path / "out.jsonl"
    kept: list[bytes] = []

    def told(progress: Progress) -> None:
        if progress.records == 100:
            kept.append(out.read_bytes())
            spoil(out)

    async with Engine(store_url) as engine:
        with pytest.raises(StreamError, match=r"out\.jsonl was moved or deleted while it was written to"):
            await stream(engine, numbered(), source, out, key="k", chunk=50, on_progress=told)
        out.write_bytes(kept[0])
        done = await stream(engine, numbered(), source, out, key="k", chunk=50)
    assert done.resumed == 100
    assert ns(read(out)) == list(range(300))


async def test_a_full_disk_stops_it_and_with_room_again_it_goes_on(store_url: str, tmp_path: Path) -> None:
    source, out = lines(tmp_path / "in.jsonl", ({"n": n} for n in range(5000))), tmp_path / "out.jsonl"
    real, room = os.write, 40_000

    def write(descriptor: int, data: Any) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(28, "No space left on device")
        room -= (some := real(descriptor, bytes(data)[:room]))
        return some

    async with Engine(store_url) as engine:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fsmworkflow.stream.sinks.os.write", write)
            with pytest.raises(StreamError, match="No space left on device"):
                await stream(engine, numbered(), source, out, key="k", chunk=500)
        done = await stream(engine, numbered(), source, out, key="k", chunk=500)
    assert ns(read(out)) == list(range(5000))
    assert 0 < done.resumed < 5000


class Slow(sinks.Into):
    """It takes longer for a record than the source does for a hundred."""

    def __init__(self, awaited: bool) -> None:
        super().__init__([])
        self.awaited = awaited

    def write(self, records: list[Any]) -> None:
        time.sleep(len(records) * 1e-4)

    async def put(self, connection: Any, records: list[Any]) -> None:
        await asyncio.sleep(len(records) * 1e-4)


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize(("workers", "ordered"), [(1, True), (4, True), (4, False)])
async def test_the_reader_waits_for_a_sink_that_is_slow_and_nothing_is_held_of_what_has_passed(
    workers: int, ordered: bool, awaited: bool
) -> None:
    """No more than a chunk is ahead of what was told, and as many records are alive."""
    read, most, alive = 0, 0, weakref.WeakSet[Any]()

    class Text(str):
        __slots__ = ("__weakref__",)

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal read
        for read in range(1, 6_001):
            record = {"n": read, "text": Text(read)}
            alive.add(record["text"])
            yield record

    def told(progress: Progress) -> None:
        nonlocal most
        most = max(most, read - progress.records, len(alive) - 500)

    how = {"chunk": 500, "every": "1h", "workers": workers, "ordered": ordered}
    done = await stream(None, numbered(), counted(), Slow(awaited), on_progress=told, **how)
    assert done.records == 6000
    assert most <= 500


async def test_four_workers_on_steps_that_wait_are_nearly_four_times_one() -> None:
    flow = Workflow("waits")

    @flow.step(initial=True, then="over")
    async def wait(ctx: Any) -> None:
        running.append(ctx.data["n"])
        most.append(len(running))
        await asyncio.sleep(0.001)
        running.remove(ctx.data["n"])

    flow.final("over")
    for workers in (1, 4):
        running: list[int] = []
        most: list[int] = []
        out: list[Any] = []
        await stream(None, flow, [{"n": n} for n in range(200)], out, workers=workers)
        assert ns(out) == list(range(200))
        assert max(most) == workers


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"sink": {"good": []}}, "there is none for bad"),
        ({"sink": {"good": [], "bad": [], "ugly": []}}, "no record ends in ugly"),
        ({"sink": "out.dat"}, "does not say what is in it"),
        ({"sink": 7}, "7 is no sink"),
        ({"source": "in.dat"}, "does not say what is in it"),
        ({"source": _counted}, "is no source: call it, and give what it returns"),
        ({"source": 7}, "7 is no source: give a path, a Source, or records"),
        ({"source": {"n": 1}}, "is no source"),
        ({"source": "not there.jsonl"}, "No such file"),
        ({"key": "k"}, "needs an engine"),
    ],
)
async def test_what_is_wrong_with_the_call_is_said_before_anything_is_done(
    what: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {"source": [{"n": 1}], "sink": [], **what}
    given["sink"] = "never.jsonl" if "key" in what else given["sink"]
    with pytest.raises(StreamError, match=said):
        await stream(None, numbered(), **given)
    assert not Path("never.jsonl").exists()


@pytest.mark.parametrize("what", [{"chunk": 0}, {"workers": 0}, {"limit": 2}, {"mode": "deep"}, {"every": 0}])
async def test_numbers_that_say_nothing_are_refused(what: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(what))):
        await stream(None, numbered(), [{"n": 1}], [], **what)


@pytest.mark.parametrize("instead", [None, io.StringIO('{"n": 1}')])
async def test_what_stands_in_the_place_of_standard_input_and_output_is_no_file(monkeypatch: Any, instead: Any) -> None:
    monkeypatch.setattr(sys, "stdin", instead)
    with pytest.raises(StreamError, match="standard input of this program is no file"):
        await stream(None, numbered(), "-", [])
    monkeypatch.setattr(sys, "stdout", instead)
    with pytest.raises(StreamError, match="standard output of this program is no file"):
        await stream(None, numbered(), [{"n": 1}], "-")


@pytest.mark.parametrize("mode", ["copy", "reference"])
async def test_sets_and_tuples_of_a_record_are_a_steps_own_too(mode: Any) -> None:
    flow = Workflow("flow")

    @flow.step(initial=True, then="over")
    def change(ctx: Any) -> None:
        ctx.data["set"].add(2)
        ctx.data["tuple"][0].append(2)
        ctx.data["bytes"].append(2)

    flow.final("over")
    record: Any = {"set": {1}, "tuple": ([1], "x"), "bytes": bytearray([1])}
    out: list[Any] = []
    await stream(None, flow, [record], out, mode=mode)
    assert record == {"set": {1}, "tuple": ([1], "x"), "bytes": bytearray([1])}
    assert out == [{"set": {1, 2}, "tuple": ([1, 2], "x"), "bytes": bytearray([1, 2])}]
