"""Files as sources: in blocks of any size, and from any mark on, they give what a simple reading gives."""

from __future__ import annotations

import asyncio
import json
import tempfile
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsmworkflow import Engine, Workflow
from fsmworkflow.stream import StreamError, files, sinks, sources, stream
from fsmworkflow.stream.packing import packed
from fsmworkflow.stream.words import Malformed
from tests.test_stream import kept, lines, ns, numbered, read

LIMIT = 40
QUOTES = '""'
SOON = 10.0


def everything() -> Workflow:
    """All that comes, as it comes."""
    flow = Workflow("everything")
    flow.step("pass", initial=True, then="out")(lambda ctx: None)
    flow.final("out")
    return flow


content = st.lists(
    st.one_of(
        st.dictionaries(st.sampled_from("ab"), st.text("xyü\u2028\r", max_size=8), max_size=2).map(
            lambda record: json.dumps(record, ensure_ascii=False).encode()
        ),
        st.sampled_from(
            [
                b"",
                b" ",
                b"\r",
                b"[]",
                b"nothing",
                b"{} {}",
                b'{"a":',
                b"1}",
                b"\xff\xfe",
                b"x" * LIMIT,
                b"y" * (LIMIT + 1),
                b"z" * 300,
            ]
        ),
        st.sampled_from([b'{"a":1} {"b":2}', b'{"a":1}{"b":2}\r', b'{"a":', b'1}{"b":2}', b'{"a":[{},\r', b"{}]}{}"]),
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
@given(content, st.booleans(), st.integers(1, 64), st.integers(1, 5), st.sampled_from(["", ".gz", ".zst"]))
def test_whatever_the_blocks_each_line_is_read_once_and_any_mark_is_a_place_to_go_on_from(
    lines: list[bytes], closed: bool, block: int, many: int, suffix: str
) -> None:
    data = b"\n".join(lines) + (b"\n" if closed and lines else b"")
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK", block)
        path = Path(directory) / f"in.jsonl{suffix}"
        path.write_bytes(packed(str(path), data) if suffix else data)
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


def test_a_file_of_rows_that_ends_with_a_line_over_the_limit_is_gone_on_with(tmp_path: Path) -> None:
    """Its end is read with the names of its columns, before it is begun in the middle."""
    path = tmp_path / "in.csv"
    path.write_text("n,t\n1,a\n2,b\n3," + "c" * 100)
    source = sources.Csv(path, limit=50)
    known = source.identity()
    source.open(None, None)
    assert source.read(1, SOON).records == [{"n": "1", "t": "a"}]
    mark = source.mark()
    source.close()
    source.open(known, mark)
    batch = source.read(5, SOON)
    source.close()
    assert batch.records[0] == {"n": "2", "t": "b"}
    assert [type(record) for record in batch.records[1:]] == [Malformed]


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
            assert to_the_end(again, many) == [*chain.from_iterable(whole[number:])]


def to_the_end(source: Any, many: int) -> list[Any]:
    """All records that an open source still has, read so many at a time; then it is closed."""
    found: list[Any] = []
    while not (batch := source.read(many, SOON)).ended:
        found += batch.records
    source.close()
    return [*found, *batch.records]


@pytest.mark.parametrize("many", [1, 9])
def test_a_value_in_quotes_that_the_file_ends_within_is_malformed(tmp_path: Path, many: int) -> None:
    path = tmp_path / "in.csv"
    path.write_text('n,t\n1,one\n2,"two\nthree\n')
    source = sources.Csv(path)
    source.open(None, None)
    whole, cut = to_the_end(source, many)
    assert whole == {"n": "1", "t": "one"}
    assert (cut.text, cut.why) == ('2,"two\nthree', "the file ends within a value in quotes")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: sources.Csv(path, dialect="exel"), "unknown dialect: a dialect is one of excel, "),
        (lambda path: sources.Csv(path, sep=";"), "'sep' is an invalid keyword argument"),
        (lambda path: sinks.Csv(path, delimiter=";;"), "1-character string"),
    ],
)
def test_what_csv_does_not_know_is_said_where_it_is_given(tmp_path: Path, make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(tmp_path / "in.csv")


async def test_a_first_row_in_another_encoding_names_the_file_and_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes("Größe\nü\n".encode("latin-1"))
    said = r"in\.csv has no first row that names its columns: .*sources\.Csv\(path, encoding="
    with pytest.raises(StreamError, match=said) as told:
        await stream(None, everything(), tmp_path / "in.csv", [])
    assert isinstance(told.value.__cause__, UnicodeDecodeError)
    out: list[Any] = []
    await stream(None, everything(), sources.Csv(tmp_path / "in.csv", encoding="latin-1"), out)
    assert out == [{"Größe": "ü"}]


async def test_a_list_or_dict_in_csv_is_json(tmp_path: Path) -> None:
    record = {"a": {"x": [True, None]}, "b": ["ü"], "c": None, "d": 1.5}
    await stream(None, everything(), [record, {**record, "a": 7}], tmp_path / "out.csv")
    rows: list[Any] = []
    await stream(None, everything(), tmp_path / "out.csv", rows)
    assert [json.loads(rows[0][name]) for name in "ab"] == [{"x": [True, None]}, ["ü"]]
    assert [(row["c"], row["d"]) for row in rows] == [("", "1.5")] * 2
    assert rows[1]["a"] == "7"


async def test_tab_separated_values_are_known_by_their_name(tmp_path: Path) -> None:
    records = [{"a": "one, two", "b": "three\tfour"}, {"a": "", "b": "ü"}]
    await stream(None, everything(), records, tmp_path / "out.tsv.gz")
    again: list[Any] = []
    await stream(None, everything(), tmp_path / "out.tsv.gz", again)
    assert again == records


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


async def test_a_folder_that_grows_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", [{"n": n} for n in range(10)])
    out: list[Any] = []
    flow = Workflow("flow")

    @flow.step(initial=True, then="over")
    def look(ctx: Any) -> None:
        if ctx.data["n"] in (5, 15):
            at = ctx.data["n"] + 5
            lines(tmp_path / f"b{at}.jsonl", [{"n": n} for n in range(at, at + 10)])
            lines(tmp_path / f"A{at}.jsonl", [{"n": -1}])  # before what is read: it is not seen

    flow.final("over")
    await stream(None, flow, sources.files(tmp_path / "*.jsonl"), out, chunk=3)
    assert ns(out) == list(range(30))


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
async def test_the_share_that_is_done_grows_to_the_whole_and_says_what_time_is_left(
    tmp_path: Path, suffix: str
) -> None:
    path, told = tmp_path / f"in.{suffix}", []
    _padded(path, range(100_000))
    await stream(None, numbered(), path, [], chunk=20_000, on_progress=told.append)
    _grows(told)


@pytest.mark.parametrize("suffixes", [["jsonl"], ["jsonl.gz"], ["jsonl.zst", "jsonl.gz", "jsonl"]])
async def test_the_share_of_files_is_that_of_all_of_them(tmp_path: Path, suffixes: list[str]) -> None:
    for number, suffix in enumerate(suffixes * 6):
        _padded(tmp_path / f"in-{number:02}.{suffix}", range(10_000 * number, 10_000 * (number + 1)))
    told: list[Any] = []
    await stream(None, numbered(), sources.files(tmp_path / "*"), [], chunk=5_000, on_progress=told.append)
    _grows(told)


@pytest.mark.parametrize("name", ["in.xml", "in.xml.gz"])
async def test_the_share_of_xml_is_that_of_its_bytes(tmp_path: Path, name: str) -> None:
    text = "<all>" + "".join(f'<one n="{n}" pad="{hash(str(n))}"/>' for n in range(20_000)) + "</all>"
    (tmp_path / name).write_bytes(packed(name, text.encode()) if name.endswith(".gz") else text.encode())
    told: list[Any] = []
    await stream(None, numbered(), sources.Xml(tmp_path / name, "one"), [], chunk=4_000, on_progress=told.append)
    _grows(told)


def _padded(path: Path, numbers: range) -> None:
    text = "".join(f'{{"n": {n}, "pad": "{hash(str(n))}"}}\n' for n in numbers).encode()
    path.write_bytes(packed(str(path), text) if path.suffix != ".jsonl" else text)


def _grows(told: list[Any]) -> None:
    shares = [one.share for one in told]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[2] < shares[-1] == 1.0
    assert told[0].left > 0


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "csv", "csv.zst", "txt"])
async def test_a_file_of_nothing_has_no_records(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"in.{suffix}").touch()
    done = await stream(None, numbered(), tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}")
    assert (done.records, done.ended) == (0, True)


@pytest.mark.parametrize(("name", "text"), [("in.jsonl", '{"n": 1}\n{"n": 2}\n'), ("in.csv", "n\n1\n2\n")])
async def test_a_mark_of_byte_order_at_the_beginning_is_no_part_of_the_first_record(
    store_url: str, tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
    async with Engine(store_url) as engine:
        done = await stream(engine, numbered(), tmp_path / name, tmp_path / "out.jsonl", key="k", chunk=1)
    assert ns(read(tmp_path / "out.jsonl")) == [1, 2]
    assert name == "in.csv" or done.read == (tmp_path / name).stat().st_size


async def test_two_records_on_a_line_are_malformed_whatever_lines_are_empty_or_half(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('\n{"n": 1} {"n": 2}\n{"n": 3}{"n": 4}\n{"n":\n5}\n{"n": 6}\n')
    out, wrong = [], []
    done = await stream(None, numbered(), tmp_path / "in.jsonl", out, errors=wrong)
    assert (ns(out), done.malformed) == ([6], 4)
    assert [entry["text"] for entry in wrong] == ['{"n": 1} {"n": 2}', '{"n": 3}{"n": 4}', '{"n":', "5}"]


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv.gz", "out.parquet"])
@pytest.mark.parametrize("link", [False, True])
async def test_a_stream_does_not_read_what_it_writes(tmp_path: Path, name: str, link: bool) -> None:
    """It would go round for ever."""
    place, kind = tmp_path / "all", name.partition(".")[2]
    place.mkdir()
    lines(place / "in.jsonl", ({"n": n, "even": n % 2 == 0} for n in range(300)))
    if kind != "jsonl":
        await stream(None, numbered(), place / "in.jsonl", place / f"in.{kind}")
    out = place / name
    if link:
        (tmp_path / "elsewhere").symlink_to(place, target_is_directory=True)
        out = tmp_path / "elsewhere" / name
    pattern = place / "**" / ("*.parquet" if kind == "parquet" else f"*.{kind}")
    with pytest.raises(StreamError, match="is written by this stream, and is among the files"):
        await stream(None, numbered(), sources.files(pattern), out, chunk=10)


XML = """<?xml version="1.0" encoding="latin-1"?>
<shop><about>not <b>this</b></about>
  <order id="1"><item sku="a">ink</item><item sku="b"/><to>Ann \u00fc &amp; Bob</to><none/></order>
  <group><order id="2">bare</order></group>
  <order id="3"><order id="inner"/></order>
</shop>"""


@pytest.mark.parametrize("block", [1, 7, 2**16])
@pytest.mark.parametrize("name", ["in.xml", "in.xml.gz", "in.xml.zst"])
async def test_elements_of_a_name_are_records(tmp_path: Path, monkeypatch: Any, name: str, block: int) -> None:
    monkeypatch.setattr("fsmworkflow.stream.xml.BLOCK", block)
    data = XML.encode("latin-1")
    (tmp_path / name).write_bytes(data if name.endswith("xml") else packed(name, data))
    out: list[Any] = []
    done = await stream(None, kept(), sources.Xml(tmp_path / name, "order"), out, chunk=2)
    assert out == [
        {"id": "1", "item": [{"sku": "a", "#text": "ink"}, {"sku": "b"}], "to": "Ann \u00fc & Bob", "none": ""},
        {"id": "2", "#text": "bare"},
        {"id": "3", "order": {"id": "inner"}},
    ]
    assert done.read == len(data)


BOMB = "<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;'>]><x><order>&b;</order></x>"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "has a DOCTYPE"),
        ("<x><order></x>", "mismatched tag"),
        ("<x><order/>", "no element found"),
        ("<x><order>" + "y" * 200_000 + "</order></x>", "an element .* over the limit of 1,000 bytes"),
        ("<x><!--" + "y" * 200_000 + "--></x>", "a tag or comment .* over the limit of 1,000 bytes"),
        ("<x><order>" + "<a>" * 2000 + "</a>" * 2000 + "</order></x>", "over 1,000 deep"),
        ("<x>" * 100_000, "over 1,000 deep"),
        ("", "no element found"),
    ],
)
async def test_xml_that_is_not_well_formed_or_expands_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "in.xml").write_text(text)
    with pytest.raises(StreamError, match=said):
        await stream(None, kept(), sources.Xml(tmp_path / "in.xml", "order", limit=1000), [])


async def test_xml_cannot_be_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "in.xml").write_text(XML)
    async with Engine("memory://") as engine:
        with pytest.raises(StreamError, match="cannot be read again from where a crash left it"):
            await stream(engine, kept(), sources.Xml(tmp_path / "in.xml", "order"), tmp_path / "out.jsonl", key="k")


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8).map(str.strip)
inner = st.dictionaries(
    st.sampled_from(["a", "b", "ü", "c-d.e"]), texts | st.lists(texts, min_size=2, max_size=3), max_size=3
)
elements = st.lists(
    st.dictionaries(st.sampled_from("xyz"), texts | st.lists(texts, min_size=2, max_size=3) | inner, min_size=1),
    max_size=4,
)


@settings(max_examples=100, deadline=None)
@given(elements, st.sampled_from(["", ".gz", ".zst"]), st.integers(1, 3))
def test_what_is_written_as_xml_is_read_as_it_was(records: list[Any], suffix: str, chunk: int) -> None:
    async def there_and_back(path: str) -> list[Any]:
        again: list[Any] = []
        await stream(None, everything(), records, sinks.Xml(path, "one", root="all"), chunk=chunk)
        await stream(None, everything(), sources.Xml(path, "one"), again)
        return again

    with tempfile.TemporaryDirectory() as directory:
        again = asyncio.run(there_and_back(f"{directory}/out.xml{suffix}"))
    assert again == [{name: value or "" for name, value in record.items()} for record in records]


async def test_xml_is_well_formed_and_says_what_there_is_no_text_for(tmp_path: Path) -> None:
    record = {
        "n": 7,
        "ok": True,
        "at": date(2026, 1, 2),
        "none": None,
        "of": {"#text": "a & <b>\r", "kind": "x"},
        "no": [],
    }
    await stream(None, everything(), [record] * 2, sinks.Xml(tmp_path / "out.xml", "one"))
    root = ElementTree.parse(tmp_path / "out.xml").getroot()
    assert (root.tag, [one.tag for one in root]) == ("records", ["one", "one"])
    assert [(field.tag, field.text) for field in root[0]] == [
        ("n", "7"), ("ok", "true"), ("at", "2026-01-02"), ("of", "a & <b>\r"),
    ]  # fmt: skip
    await stream(None, everything(), [], sinks.Xml(tmp_path / "none.xml", "one"))
    assert list(ElementTree.parse(tmp_path / "none.xml").getroot()) == []


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"a b": 1}, "'a b' cannot be the name of an element"),
        ({"a/": 1}, "'a/' cannot be the name"),
        ({"n:a": 1}, "'n:a' cannot be the name"),
        ({"": 1}, "'' cannot be the name"),
        ({"a": "\x00"}, r"XML has no sign for '\\x00'"),
        ({"a": [[1]]}, "a list in a list has no element of its own"),
        ({"a": object()}, "Encoding objects of type object is unsupported"),
    ],
)
async def test_a_record_that_xml_cannot_hold_is_named(tmp_path: Path, record: Any, said: str) -> None:
    with pytest.raises(StreamError, match=f"record 2 of the list of records cannot be written to .*: {said}"):
        await stream(None, everything(), [{"a": 1}, record], sinks.Xml(tmp_path / "out.xml", "one"), mode="direct")


async def test_an_xml_file_has_an_end_and_so_no_key(tmp_path: Path) -> None:
    async with Engine("memory://") as engine:
        with pytest.raises(StreamError, match=r"out\.xml cannot be cut back"):
            await stream(engine, everything(), [{"n": 1}], sinks.Xml(tmp_path / "out.xml", "one"), key="k")
    with pytest.raises(ValueError, match="'one two' cannot be the name of an element"):
        sinks.Xml(tmp_path / "out.xml", "one two")


async def test_a_file_without_the_element_that_is_asked_for_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in.xml").write_text("<orders><order/></orders>")
    assert (await stream(None, everything(), sources.Xml(tmp_path / "in.xml", "order"), [])).records == 1
    assert caplog.messages == []
    assert (await stream(None, everything(), sources.Xml(tmp_path / "in.xml", "odrer"), [])).records == 0
    assert "in.xml has no element 'odrer': its root is 'orders'" in caplog.text
