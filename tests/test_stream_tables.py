"""Tables as sources and sinks of a stream, in both dialects."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
import time
import types
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import Engine, Workflow
from fsmworkflow.stream import StreamError, sinks, sources, stream, tables
from tests.test_stream_crash import done, fetched


def plain() -> Workflow:
    """Every record comes to one end; one that says so is an error."""
    flow = Workflow("plain")

    @flow.step(initial=True, then="over")
    def look(ctx: Any) -> None:
        if ctx.data.get("text") == "bad":
            raise ValueError("bad")

    flow.final("over")
    return flow


def rows(url: str, many: int, *more: str) -> None:
    values = ", ".join(f"({n}, 'row {n}')" for n in range(many))
    made = "CREATE TABLE given (n BIGINT, text TEXT)"
    done(url, made, "CREATE TABLE kept (n BIGINT PRIMARY KEY, text TEXT)", f"INSERT INTO given VALUES {values}", *more)


async def kept(url: str) -> list[Any]:
    return [row["n"] for row in await fetched(url, "SELECT n FROM kept ORDER BY n")]


@pytest.mark.parametrize("many", [0, 1, 9, 10, 11, 25])
async def test_a_table_and_a_query_are_read_in_pages_by_their_key(
    durable_url: str, monkeypatch: Any, many: int
) -> None:
    monkeypatch.setattr(tables, "PAGE", 10)
    done(durable_url, "CREATE TABLE given (n BIGINT, text TEXT)")
    if many:
        done(durable_url, "INSERT INTO given VALUES " + ", ".join(f"({n}, 'row {n}')" for n in reversed(range(many))))
    for what in ("given", "SELECT n, text FROM given WHERE n >= 0;", "SELECT n, text FROM given -- all of them"):
        out: list[Any] = []
        await stream(None, plain(), sources.Rows(durable_url, what, order_by="n"), out, chunk=7)
        assert out == [{"n": n, "text": f"row {n}"} for n in range(many)]


async def test_a_table_is_gone_on_with_after_the_last_key(durable_url: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tables, "PAGE", 10)
    rows(durable_url, 30, "UPDATE given SET text = 'bad' WHERE n = 25")
    out = tmp_path / "out.jsonl"
    async with Engine(durable_url) as engine:
        source = sources.Rows(durable_url, "given", order_by="n")
        with pytest.raises(StreamError, match="record 26"):
            await stream(engine, plain(), source, out, key="k", chunk=4)
        done(durable_url, "UPDATE given SET text = 'good' WHERE n = 25")
        again = await stream(engine, plain(), sources.Rows(durable_url, "given", order_by="n"), out, key="k", chunk=4)
        assert again.resumed == 24
        assert len(out.read_text().splitlines()) == 30
        with pytest.raises(StreamError, match="this stream began with 'given'"):
            await _begun(engine, durable_url, tmp_path)


async def _begun(engine: Engine, url: str, place: Path) -> None:
    """A stream that stops, and goes on with another query."""
    done(url, "UPDATE given SET text = 'bad' WHERE n = 25")
    for what in ("given", "SELECT n, text FROM given"):
        try:
            await stream(
                engine, plain(), sources.Rows(url, what, order_by="n"), place / "two.jsonl", key="two", chunk=4
            )
        except StreamError as error:
            if "record 26" not in str(error):
                raise


@pytest.mark.parametrize(
    ("spoil", "order_by", "said"),
    [
        ("INSERT INTO given VALUES (9, 'twice')", "n", "several rows with one 'n'"),
        ("INSERT INTO given VALUES (NULL, 'none')", "n", "has rows without 'n'"),
        ("DELETE FROM kept", "nothing", "nothing"),
    ],
)
async def test_a_key_that_is_not_unique_would_lose_rows_and_is_refused(
    durable_url: str, monkeypatch: Any, spoil: str, order_by: str, said: str
) -> None:
    monkeypatch.setattr(tables, "PAGE", 10)  # so that the two rows of one key stand on two pages
    rows(durable_url, 30, spoil)
    with pytest.raises(StreamError, match=said):
        await stream(None, plain(), sources.Rows(durable_url, "given", order_by=order_by), [])


async def test_a_table_of_the_runs_own_database_is_written_in_the_transaction_of_the_move(
    durable_url: str, tmp_path: Path
) -> None:
    rows(durable_url, 30, "UPDATE given SET text = 'bad' WHERE n = 25")
    async with Engine(durable_url) as engine:
        for text in ("bad", "good"):
            done(durable_url, f"UPDATE given SET text = '{text}' WHERE n = 25")
            source = sources.Rows(durable_url, "given", order_by="n")
            try:
                await stream(engine, plain(), source, sinks.Table("kept"), key="k", chunk=4)
            except StreamError:
                assert await kept(durable_url) == list(range(24))
    assert await kept(durable_url) == list(range(30))


async def test_a_row_that_the_database_refuses_stops_the_stream_with_nothing_of_its_chunk(durable_url: str) -> None:
    rows(durable_url, 1)
    records = [{"n": n if n != 7 else 2, "text": "x"} for n in range(10)]
    async with Engine(durable_url) as engine:
        which = "record 8" if durable_url.startswith("sqlite") else "one of the records 6 to 10"
        with pytest.raises(StreamError, match=rf"(?i){which} of .* cannot be written to the table 'kept': .*unique"):
            await stream(engine, plain(), records, sinks.Table("kept"), key="k", chunk=5)
        assert await kept(durable_url) == [0, 1, 2, 3, 4]
        records[7]["n"] = 7
        await stream(engine, plain(), records, sinks.Table("kept"), key="k", chunk=5)
    assert await kept(durable_url) == list(range(10))


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("bad", [object(), 2**80])
async def test_a_value_that_a_database_does_not_have_is_named_with_its_record(
    durable_url: str, tmp_path: Path, bad: Any, own: bool
) -> None:
    rows(durable_url, 1)
    records = [{"n": n if n != 7 else bad, "text": "x"} for n in range(10)]
    table = sinks.Table("kept") if own else sinks.Table("kept", url=durable_url, key="n")
    async with Engine(durable_url) as engine:
        with pytest.raises(StreamError, match="record 8 of the list of records cannot be written to the table 'kept'"):
            await stream(engine, unseen(), records, table, key="k", chunk=5)
        assert await kept(durable_url) == [0, 1, 2, 3, 4]
        records[7]["n"] = 7
        table = sinks.Table("kept") if own else sinks.Table("kept", url=durable_url, key="n")
        await stream(engine, unseen(), records, table, key="k", chunk=5)
    assert await kept(durable_url) == list(range(10))


def unseen() -> Workflow:
    flow = Workflow("unseen")
    flow.step("look", initial=True, then="over")(lambda ctx: None)
    flow.final("over")
    return flow


async def test_a_table_of_another_database_is_written_by_its_key_so_that_twice_is_once(
    durable_url: str, tmp_path: Path
) -> None:
    rows(durable_url, 1)
    records = [{"n": n % 5, "text": f"text {n}"} for n in range(10)]
    for _ in range(2):
        await stream(None, plain(), records, sinks.Table("kept", url=durable_url, key="n"), chunk=3)
    found = await fetched(durable_url, "SELECT n, text FROM kept ORDER BY n")
    assert found == [{"n": n, "text": f"text {n + 5}"} for n in range(5)]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("nowhere", "there is no table 'nowhere'"),
        ("kept", "record 2 of .* cannot be written to the table 'kept': there is no column more"),
    ],
)
async def test_a_table_that_is_not_there_or_lacks_a_column_is_named(durable_url: str, table: str, said: str) -> None:
    rows(durable_url, 1)
    async with Engine(durable_url) as engine:
        with pytest.raises(StreamError, match=said):
            await stream(engine, plain(), [{"n": 1}, {"n": 2, "more": 2}], sinks.Table(table), key="k")
    assert await kept(durable_url) == []


async def test_a_table_within_the_move_needs_a_key_and_an_odd_name_is_quoted(durable_url: str) -> None:
    with pytest.raises(StreamError, match="give key="):
        await stream(None, plain(), [{"n": 1}], sinks.Table("kept"))
    with pytest.raises(StreamError, match="needs url= and key="):
        sinks.Table("kept", key="n")
    name = 'odd "name; --'
    done(durable_url, 'CREATE TABLE "odd ""name; --" (n BIGINT, "a ""b" TEXT)')
    async with Engine(durable_url) as engine:
        await stream(engine, plain(), [{"n": 1, 'a "b': ["list"]}], sinks.Table(name), key="k")
    out: list[Any] = []
    quoted = 'SELECT * FROM "odd ""name; --"'
    await stream(None, plain(), sources.Rows(durable_url, quoted, order_by="n"), out)
    assert out == [{"n": 1, 'a "b': '["list"]'}]


async def test_a_key_may_be_text_or_a_uuid(postgres_url: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tables, "PAGE", 2)
    ids = sorted(str(uuid.UUID(int=n**9)) for n in range(7))
    done(postgres_url, "CREATE TABLE given (id UUID PRIMARY KEY)", *(f"INSERT INTO given VALUES ('{i}')" for i in ids))
    async with Engine(postgres_url) as engine:
        source = sources.Rows(postgres_url, "given", order_by="id")
        await stream(engine, plain(), source, tmp_path / "out.jsonl", key="k", chunk=2)
    out: list[Any] = []
    await stream(None, plain(), tmp_path / "out.jsonl", out)
    assert [record["id"] for record in out] == ids


async def test_a_path_may_hold_what_means_something_in_an_address(tmp_path: Path) -> None:
    place = tmp_path / "50%20 #1?.db"
    with contextlib.closing(sqlite3.connect(place)) as db, db:
        db.execute("CREATE TABLE kept (n INTEGER PRIMARY KEY, text TEXT)")
    source = [{"n": 1, "text": "one"}]
    table = sinks.Table("kept", url=f"sqlite:///{urllib.parse.quote(str(place))}", key="n")
    await stream(None, plain(), source, table)
    with contextlib.closing(sqlite3.connect(place)) as db:
        assert db.execute("SELECT * FROM kept").fetchall() == [(1, "one")]


@pytest.mark.parametrize("journal", ["delete", "wal"])
async def test_a_stream_that_waits_for_a_locked_file_is_cancelled_at_once_and_writes_nothing_more(
    tmp_path: Path, journal: str
) -> None:
    """And whoever has it for less long than 30 s holds it up, and nothing is lost."""
    place, source = tmp_path / "other.db", [{"n": n, "text": "row"} for n in range(100)]
    with contextlib.closing(sqlite3.connect(place)) as db:
        db.execute(f"PRAGMA journal_mode = {journal}")
        db.execute("CREATE TABLE kept (n INTEGER PRIMARY KEY, text TEXT)")
        url = f"sqlite:///{place}"
        db.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(stream(None, plain(), source, sinks.Table("kept", url=url, key="n")))
        await begun("_SQLite.write")
        looped = asyncio.create_task(asyncio.sleep(0))
        waiting.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert time.monotonic() - began < 15, "it was waited for"
        await looped
        db.rollback()
        assert db.execute("SELECT count(*) FROM kept").fetchone() == (0,)
        db.execute("BEGIN IMMEDIATE")
        held = asyncio.create_task(stream(None, plain(), source, sinks.Table("kept", url=url, key="n")))
        await begun("_SQLite.write")
        db.rollback()
        assert (await held).records == 100
        assert db.execute("SELECT count(*) FROM kept").fetchone() == (100,)


async def begun(name: str) -> None:
    """Wait until a thread is in such a function."""
    while not any(name in frame.f_code.co_qualname for top in sys._current_frames().values() for frame in _up(top)):
        await asyncio.sleep(0.001)


def _up(frame: types.FrameType | None) -> Iterator[types.FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


async def test_a_connection_to_postgres_that_was_lost_is_made_again_once(
    postgres_url: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tables, "PAGE", 10)
    rows(postgres_url, 50)
    others = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )

    async def told(progress: Any) -> None:
        await asyncio.to_thread(done, postgres_url, others)

    source = sources.Rows(postgres_url, "given", order_by="n")
    sink = sinks.Table("kept", url=postgres_url, key="n")
    assert (await stream(None, plain(), source, sink, chunk=7, on_progress=told)).records == 50
    assert await kept(postgres_url) == list(range(50))


async def test_a_key_may_be_a_list_and_two_columns_of_one_name_are_refused(
    postgres_url: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tables, "PAGE", 2)
    done(postgres_url, "CREATE TABLE given (n INT, key INT[] UNIQUE)")
    done(postgres_url, *(f"INSERT INTO given VALUES ({n}, ARRAY[{n}, 1])" for n in range(7)))
    async with Engine(postgres_url) as engine:
        source = sources.Rows(postgres_url, "given", order_by="key")
        await stream(engine, plain(), source, tmp_path / "out.jsonl", key="k", chunk=2)
        out: list[Any] = []
        await stream(None, plain(), tmp_path / "out.jsonl", out)
        assert [record["n"] for record in out] == list(range(7))
        twice = sources.Rows(postgres_url, "SELECT n, key[1] AS text, key[2] AS text FROM given", order_by="n")
        with pytest.raises(StreamError, match="columns of the same name: give them others with AS"):
            await stream(None, plain(), twice, [])


async def test_a_column_may_have_a_dot_in_its_name(durable_url: str) -> None:
    """As the fields that `flatten` makes."""
    done(durable_url, 'CREATE TABLE flat ("a.id" BIGINT PRIMARY KEY, "a.city" TEXT)')
    records = [{"a.id": n, "a.city": f"city {n}"} for n in range(5)]
    async with Engine(durable_url) as engine:
        await stream(engine, plain(), records[:3], sinks.Table("flat"), key="k")
    again = [{"a.id": n, "a.city": f"city {n}"} for n in range(2, 5)]
    await stream(None, plain(), again, sinks.Table("flat", url=durable_url, key="a.id"))
    out: list[Any] = []
    await stream(None, plain(), sources.Rows(durable_url, "flat", order_by="a.id"), out)
    assert out == records
