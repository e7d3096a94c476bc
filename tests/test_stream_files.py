"""Files as sources: in blocks of any size, and from any mark on, they give what a simple reading gives."""

from __future__ import annotations

import gzip
import json
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsmworkflow import Engine
from fsmworkflow.stream import StreamError, files, sources, stream
from fsmworkflow.stream.words import Malformed
from tests.test_stream import lines, ns, numbered, read

LIMIT = 40
QUOTES = '""'
SOON = 10.0
content = st.lists(
    st.one_of(
        st.dictionaries(st.sampled_from("ab"), st.text("xyü\u2028\r", max_size=8), max_size=2).map(
            lambda record: json.dumps(record, ensure_ascii=False).encode()
        ),
        st.sampled_from(
            [b"", b" ", b"\r", b"[]", b"nothing", b"\xff\xfe", b"x" * LIMIT, b"y" * (LIMIT + 1), b"z" * 300]
        ),
    ),
    max_size=12,
)


def simply(lines: list[bytes]) -> list[Any]:
    """What is in these lines: a record, or why it is none."""
    found: list[Any] = []
    for line in lines:
        if not line.strip(b" \r\t"):
            continue
        try:
            record = json.loads(line.decode()) if len(line) <= LIMIT else None
        except ValueError:
            record = None
        found.append(record if isinstance(record, dict) else None)
    return found


def told(records: list[Any]) -> list[Any]:
    return [None if isinstance(record, Malformed) else record for record in records]


@settings(max_examples=200, deadline=None)
@given(content, st.booleans(), st.integers(1, 64), st.integers(1, 5), st.booleans())
def test_whatever_the_blocks_each_line_is_read_once_and_any_mark_is_a_place_to_go_on_from(
    lines: list[bytes], closed: bool, block: int, many: int, packed: bool
) -> None:
    data = b"\n".join(lines) + (b"\n" if closed and lines else b"")
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK", block)
        path = Path(directory) / ("in.jsonl.gz" if packed else "in.jsonl")
        path.write_bytes(gzip.compress(data) if packed else data)
        whole, marks = [], [None]
        source = sources.JsonLines(path, limit=LIMIT)
        known = source.identity()
        source.open(None, None)
        ended, read = False, 0
        while not ended:
            batch = source.read(many, SOON)
            whole.append(told(batch.records))
            marks.append(source.mark())
            ended, read = batch.ended, read + batch.read
            assert batch.bad == sum(record is None for record in whole[-1])
        source.close()
        assert [*chain.from_iterable(whole)] == simply(lines)
        assert read == len(data)
        for number, mark in enumerate(marks):
            again = sources.JsonLines(path, limit=LIMIT)
            again.open(known, mark)
            rest: list[Any] = []
            while not (batch := again.read(many, SOON)).ended:
                rest += told(batch.records)
            again.close()
            assert rest + told(batch.records) == [*chain.from_iterable(whole[number:])]


rows = st.lists(st.lists(st.text('ab,"\n\r ü', max_size=5), min_size=2, max_size=2), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(rows, st.integers(1, 64), st.integers(1, 3))
def test_rows_over_several_lines_are_rows_and_any_mark_is_a_place_to_go_on_from(
    given_rows: list[list[str]], block: int, many: int
) -> None:
    # What ends a line within a value is one sign: a bare \r is no end of a line of a file.
    expected = [{"n": one, "t": two} for one, two in ([v.replace("\r", "") for v in row] for row in given_rows)]
    quoted = [['"' + value.replace('"', '""') + '"' for value in record.values()] for record in expected]
    text = "n,t\n" + "".join(",".join(row) + "\n" for row in quoted)
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK", block)
        path = Path(directory) / "in.csv"
        path.write_bytes(text.encode())
        source = sources.Csv(path)
        known = source.identity()
        source.open(None, None)
        whole, marks, ended = [], [None], False
        while not ended:
            batch = source.read(many, SOON)
            whole.append(batch.records)
            marks.append(source.mark())
            ended = batch.ended
        source.close()
        assert [*chain.from_iterable(whole)] == expected
        for number, mark in enumerate(marks):
            again = sources.Csv(path)
            again.open(known, mark)
            rest: list[Any] = []
            while not (batch := again.read(many, SOON)).ended:
                rest += batch.records
            again.close()
            assert rest + batch.records == [*chain.from_iterable(whole[number:])]


async def test_files_by_pattern_are_one_source_and_gone_on_with_within_one(store_url: str, tmp_path: Path) -> None:
    for number in range(4):
        text = "".join(f'{{"n": {n if n != 25 else QUOTES}}}\n' for n in range(10 * number, 10 * number + 10))
        (tmp_path / f"in-{number}.jsonl").write_text(text)
    source, out = tmp_path / "in-*.jsonl", tmp_path / "out.jsonl"
    async with Engine(store_url) as engine:
        with pytest.raises(StreamError, match="record 26"):
            await stream(engine, numbered(), sources.files(source), out, key="k", chunk=4)
        third = tmp_path / "in-2.jsonl"
        third.rename(tmp_path / "gone")
        with pytest.raises(StreamError, match=r"was at .*in-2.jsonl, which is not among the files"):
            await stream(engine, numbered(), sources.files(source), out, key="k", chunk=4)
        third.write_text((tmp_path / "gone").read_text().replace('""', "25"))
        lines(tmp_path / "in-4.jsonl", [{"n": 40}])  # which has come since
        done = await stream(engine, numbered(), sources.files(source), out, key="k", chunk=4)
    assert ns(read(out)) == list(range(41))
    assert (done.resumed, done.share) == (24, 1.0)
    with pytest.raises(StreamError, match="there is no file"):
        await stream(None, numbered(), sources.files(tmp_path / "none-*.csv"), [])
