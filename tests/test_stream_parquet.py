"""Parquet as a source and a sink: real files, of all types, gone on with at any row; another schema is named."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from fsmworkflow import Engine, Workflow
from fsmworkflow.stream import StreamError, sinks, sources, stream


def kept(*bad: int) -> Workflow:
    """Every record comes to one end, but these."""
    flow = Workflow("kept")

    @flow.step(initial=True, then="over")
    def look(ctx: Any) -> None:
        if ctx.data["n"] in bad:
            raise ValueError("bad")

    flow.final("over")
    return flow


def rows(many: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "n": n, "text": f"ü {n}", "share": n / 3, "yes": n % 2 == 0, "none": None if n % 5 else n, "raw": b"\0\xff",
            "when": dt.datetime(2026, 3, 1, 12, n % 60, tzinfo=dt.UTC), "day": dt.date(2026, 3, 1),
            "price": decimal.Decimal("1.50"), "items": [{"sku": "a", "qty": n}], "empty": [] if n % 2 else [1],
        }
        for n in range(first, first + many)
    ]  # fmt: skip


def written(path: Path, records: list[Any], **how: Any) -> Path:
    parquet.write_table(pa.Table.from_pylist(records), path, **how)
    return path


def folder(path: Path, parts: int, each: int) -> Path:
    path.mkdir()
    for number in range(parts):
        written(path / f"{number}.parquet", rows(each, number * each), row_group_size=7)
    return path


async def test_every_type_of_value_goes_through_and_comes_back_equal(tmp_path: Path) -> None:
    source, out = written(tmp_path / "in.parquet", rows(100)), []
    done = await stream(None, kept(), source, tmp_path / "out.parquet", chunk=30)
    await stream(None, kept(), tmp_path / "out.parquet", out)
    assert out == rows(100)
    assert (done.share, done.read) == (1.0, source.stat().st_size)
    assert sorted(os.listdir(tmp_path / "out.parquet")) == [f"part-{n:06d}.parquet" for n in range(4)]
    assert parquet.read_table(tmp_path / "out.parquet").to_pylist() == rows(100)


async def test_columns_may_be_chosen_and_one_that_is_not_there_is_named(tmp_path: Path) -> None:
    source, out = written(tmp_path / "in.parquet", rows(3)), []
    await stream(None, kept(), sources.Parquet(source, columns=["n", "items"]), out)
    assert out == [{"n": n, "items": [{"sku": "a", "qty": n}]} for n in range(3)]
    with pytest.raises(StreamError, match="has no column more, other"):
        await stream(None, kept(), sources.Parquet(source, columns=["n", "other", "more"]), [])


@pytest.mark.parametrize("many", [1, 7, 10])
def test_any_row_of_any_file_is_a_place_to_go_on_from(tmp_path: Path, many: int) -> None:
    path = folder(tmp_path / "in.parquet", 3, 20)
    source = sources.Parquet(path)
    known = source.identity()
    source.open(None, None)
    whole: list[Any] = []
    marks, ended, read = [(0, None)], False, 0
    while not ended:
        batch = source.read(many, 10.0)
        whole += batch.records
        ended, read = batch.ended, read + batch.read
        marks.append((len(whole), source.mark()))
    source.close()
    assert whole == rows(60)
    assert read == sum(part.stat().st_size for part in path.iterdir())
    for at, mark in marks:
        again = sources.Parquet(path)
        again.open(known, mark)
        rest: list[Any] = []
        while not (batch := again.read(many, 10.0)).ended:
            rest += batch.records
        again.close()
        assert rest + batch.records == rows(60)[at:]


def _another_schema(path: Path) -> None:
    written(path / "2.parquet", [{"n": "text", "other": 1.5}])


def _other_rows(path: Path) -> None:
    written(path / "1.parquet", rows(20, 1000), row_group_size=7)


def _cut_off(path: Path) -> None:
    os.truncate(path / "2.parquet", 300)


def _spoilt(path: Path) -> None:
    data = bytearray((path / "2.parquet").read_bytes())
    data[4:400] = b"\xff" * 396
    (path / "2.parquet").write_bytes(data)


SPOILT = {
    "another schema": (_another_schema, r"2.parquet has another schema than the first file .*n: int64 and string"),
    "another file": (_other_rows, r"1.parquet is not the one that this stream began with"),
    "a file that is cut off": (_cut_off, "2.parquet cannot be read"),
    "a file that is spoilt": (_spoilt, "2.parquet cannot be read"),
    "no file": (lambda path: (path / "1.parquet").unlink(), "this stream was at .*1.parquet, which is not among"),
    "another first file": (
        lambda path: written(path / "0.parquet", [{"n": 1}]),
        "first file of .* has another schema than when this stream began",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
async def test_what_is_wrong_with_a_file_is_said_nothing_is_lost_and_once_it_is_put_back_it_goes_on(
    store_url: str, tmp_path: Path, what: str
) -> None:
    path, out = folder(tmp_path / "in.parquet", 3, 20), tmp_path / "out.jsonl"
    spoil, said = SPOILT[what]
    async with Engine(store_url) as engine:
        with pytest.raises(StreamError, match="record 29"):
            await stream(engine, kept(28), path, out, key="k", chunk=5)
        whole = {part: part.read_bytes() for part in path.iterdir()}
        spoil(path)
        with pytest.raises(StreamError, match=said):
            await stream(engine, kept(), path, out, key="k", chunk=5)
        for part, data in whole.items():
            part.write_bytes(data)
        done = await stream(engine, kept(), path, out, key="k", chunk=5)
    found: list[Any] = []
    await stream(None, kept(), out, found)
    assert [one["n"] for one in found] == list(range(60))
    assert done.resumed >= 25


async def test_the_order_of_columns_is_no_other_schema_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    path, out = folder(tmp_path / "in.parquet", 1, 3), []
    written(path / "1.parquet", [dict(reversed(one.items())) for one in rows(3, 3)])
    await stream(None, kept(), path, out)
    assert out == rows(6)
    twice = pa.table([[1], [2]], names=["n", "n"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(StreamError, match="has columns of the same name: n, n"):
        await stream(None, kept(), tmp_path / "twice.parquet", [])


async def test_a_folder_that_grows_is_read_to_its_end_by_the_next_life(store_url: str, tmp_path: Path) -> None:
    path, out = folder(tmp_path / "in.parquet", 2, 20), tmp_path / "out.parquet"
    async with Engine(store_url) as engine:
        with pytest.raises(StreamError, match="record 39"):
            await stream(engine, kept(38), path, out, key="k", chunk=5)
        written(path / "2.parquet", rows(20, 40))
        await stream(engine, kept(), path, out, key="k", chunk=5)
    assert parquet.read_table(out).to_pylist() == rows(60)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"n": 25, "text": 7}, "record 26 of .* n: int64, text: string"),
        ({"n": 25.5, "text": "x"}, "record 26 of .*: n is not as its column has it, which is int64"),
        ({"n": 25, "text": b"x"}, "record 26 of .*: text is not as its column has it, which is string"),
        ({"n": 25, "text": "x", "more": 1, "again": 2}, "record 26 of .*there is no column again, more"),
    ],
)
async def test_a_record_of_another_schema_is_named_and_nothing_of_its_commit_is_there(
    store_url: str, tmp_path: Path, bad: dict[str, Any], said: str
) -> None:
    records: list[Any] = [{"n": n, "text": "x"} for n in range(40)]
    out = tmp_path / "out.parquet"
    async with Engine(store_url) as engine:
        with pytest.raises(StreamError, match=said):
            await stream(engine, kept(), [*records[:25], bad, *records[26:]], out, key="k", chunk=10)
        assert len(list(out.iterdir())) == 2
        await stream(engine, kept(), records, out, key="k", chunk=10)
    assert parquet.read_table(out).to_pylist() == records


async def test_a_column_without_a_value_has_no_type_and_a_schema_gives_it_one(tmp_path: Path) -> None:
    records = [{"n": n, "note": None, "tags": [], "more": {}} for n in range(3)]
    with pytest.raises(StreamError, match="cannot tell the type of note, tags, more"):
        await stream(None, kept(), records, tmp_path / "one.parquet")
    assert os.listdir(tmp_path / "one.parquet") == []
    schema = pa.schema([("n", pa.int32()), ("note", pa.string()), ("tags", pa.list_(pa.string()))])
    for record in records:
        del record["more"]
    await stream(None, kept(), records, sinks.Parquet(tmp_path / "one.parquet", schema=schema))
    table = parquet.read_table(tmp_path / "one.parquet")
    assert (table.to_pylist(), table.schema.remove_metadata()) == (records, schema)


async def test_what_is_nested_is_not_cut_off_and_what_lacks_there_is_none(tmp_path: Path) -> None:
    out, records = tmp_path / "out.parquet", [{"n": 0, "at": {"x": 1, "y": [2]}}, {"n": 1, "at": {"x": 3}}]
    await stream(None, kept(), records, out, chunk=1)
    assert parquet.read_table(out).to_pylist()[1] == {"n": 1, "at": {"x": 3, "y": None}}
    for number, bad in enumerate(({"x": 1.5}, {"x": 1, "z": 2}, {"x": 1, "y": [1.5]})):
        with pytest.raises(StreamError, match=r"record 2 of .*: at is not as its column has it"):
            await stream(None, kept(), [records[0], {"n": 1, "at": bad}], tmp_path / f"{number}.parquet", chunk=1)
    schema = pa.schema([("n", pa.float32()), ("at", pa.map_(pa.string(), pa.int64()))])
    there = [{"n": 0.1, "at": {"x": 1}}, {"n": float("nan"), "at": {}}]
    flow = Workflow("flow")
    flow.step("look", initial=True, then="over")(lambda ctx: None)
    flow.final("over")
    await stream(None, flow, there, sinks.Parquet(tmp_path / "map.parquet", schema=schema))
    assert parquet.read_table(tmp_path / "map.parquet").column("at").to_pylist() == [[("x", 1)], []]


def _foreign(path: Path) -> None:
    (path / "mine.txt").write_text("mine")


def _other_part(path: Path) -> None:
    written(path / "part-000001.parquet", [{"n": 99, "text": "x"}])


CHANGES = {
    "a file of somebody's": (_foreign, "holds mine.txt, which is not of this stream"),
    "another part": (_other_part, "somebody else has changed the sink"),
    "a part less": (lambda path: (path / "part-000000.parquet").unlink(), "somebody else has changed the sink"),
    "a part too many": (
        lambda path: written(path / "part-000007.parquet", [{"n": 1}]),
        "holds part-000007.parquet, which is not of this stream",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_folder_that_somebody_else_has_changed_is_refused_and_left(
    store_url: str, tmp_path: Path, change: str
) -> None:
    records, out = [{"n": n, "text": "x"} for n in range(40)], tmp_path / "out.parquet"
    spoil, said = CHANGES[change]
    async with Engine(store_url) as engine:
        with pytest.raises(StreamError, match="record 26"):
            await stream(engine, kept(25), records, out, key="k", chunk=10)
        whole = {part.name: part.read_bytes() for part in out.iterdir()}
        spoil(out)
        spoilt = {part.name: part.read_bytes() for part in out.iterdir()}
        with pytest.raises(StreamError, match=said):
            await stream(engine, kept(), records, out, key="k", chunk=10)
        assert {part.name: part.read_bytes() for part in out.iterdir()} == spoilt
        for name in spoilt.keys() - whole.keys():
            (out / name).unlink()
        for name, data in whole.items():
            (out / name).write_bytes(data)
        (out / "part-000002.parquet").write_bytes(b"half of one, as a crash leaves it")
        await stream(engine, kept(), records, out, key="k", chunk=10)
    assert parquet.read_table(out).to_pylist() == records


async def test_two_streams_do_not_write_to_one_folder(tmp_path: Path) -> None:
    out, begun, go = tmp_path / "out.parquet", asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[dict[str, int]]:
        begun.set()
        await go.wait()
        yield {"n": 1}

    first = asyncio.create_task(stream(None, kept(), slow(), out))
    await begun.wait()
    with pytest.raises(StreamError, match="is being written to by another stream"):
        await stream(None, kept(), [{"n": 2}], out)
    go.set()
    await first
    assert parquet.read_table(out).to_pylist() == [{"n": 1}]


async def test_a_folder_that_is_not_empty_is_refused_at_first(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    await stream(None, kept(), [{"n": 1}], out)
    with pytest.raises(StreamError, match=r"holds part-000000.parquet, which is not of this stream"):
        await stream(None, kept(), [{"n": 1}], out)
    with pytest.raises(StreamError, match="cannot be opened"):
        await stream(None, kept(), [{"n": 1}], written(tmp_path / "file.parquet", [{"n": 1}]))


async def test_a_full_disk_stops_it_and_with_room_again_it_goes_on(store_url: str, tmp_path: Path) -> None:
    records, out = [{"n": n} for n in range(40)], tmp_path / "out.parquet"

    def full(descriptor: int) -> None:
        if len(os.listdir(out)) == 2:
            raise OSError(28, "No space left on device")

    async with Engine(store_url) as engine:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fsmworkflow.stream.parquet.os.fsync", full)
            with pytest.raises(StreamError, match="No space left on device"):
                await stream(engine, kept(), records, out, key="k", chunk=10)
        done = await stream(engine, kept(), records, out, key="k", chunk=10)
    assert done.resumed == 10
    assert parquet.read_table(out).to_pylist() == records


ZSTD = "compression" if sys.version_info >= (3, 14) else "backports"


@pytest.mark.parametrize(
    ("missing", "name", "extra"), [("pyarrow", "in.parquet", "parquet"), (ZSTD, "in.jsonl.zst", "zstd")]
)
async def test_without_the_extra_the_error_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, name: str, extra: str
) -> None:
    (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, missing, None)
    for source, sink in ((tmp_path / name, []), ([{"n": 1}], tmp_path / f"out-{name}")):
        with pytest.raises(StreamError, match=rf"pip install 'fsmworkflow\[{extra}\]'"):
            await stream(None, kept(), source, sink)
