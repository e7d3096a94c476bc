"""A stream that is killed at any moment, again and again, has every record in its sinks once, in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from fsmworkflow import Engine
from fsmworkflow.stream import sinks, stream
from fsmworkflow.stream.databases import database
from fsmworkflow.stream.packing import Unpacked, is_packed, packed
from tests.children import launched, stop
from tests.postgres_server import execute
from tests.stream_child import numbered
from tests.test_cancel import cancelled
from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
SEED = int(os.environ.get("FSMWORKFLOW_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
KILLS = 10
MANY = 60_000


def started(*words: object) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    program = [sys.executable, str(ROOT / "tests" / "stream_child.py"), *map(str, words)]
    return launched(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment())


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DB_", "FSMWORKFLOW_"))}
    return {**kept, "PYTHONPATH": str(ROOT)}


def written(path: Path, many: int) -> None:
    path.write_text("".join(f'{{"n":{n},"text":"record {n}"}}\n' for n in range(many)))


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        assert [part.name for part in sorted(path.iterdir())] == [
            f"part-{n:06d}.parquet" for n in range(len(list(path.iterdir())))
        ]
        return [row for part in sorted(path.iterdir()) for row in parquet.read_table(part).to_pylist()]
    if is_packed(path):
        with contextlib.closing(Unpacked(str(path))) as file:
            return [json.loads(line) for line in file.read(-1).splitlines()]
    return [json.loads(line) for line in path.read_text().splitlines()]


def size(paths: list[Path]) -> int:
    """How many bytes are there, in files and folders, while they are written to and cut."""
    found = 0
    for one in [*paths, *(part for path in paths for part in path.glob("*"))]:
        with contextlib.suppress(FileNotFoundError):
            found += one.stat().st_size
    return found


def killed_until_done(paths: list[Path], kills: int, many: int, *words: object) -> int:
    """Kill it while it writes, at random moments, then let it end. Returns how many records were done before."""
    chance = random.Random(SEED)
    for _ in range(kills):
        with started(*words) as process:
            for _ in range(chance.randint(1, 5)):  # what is written the second time comes after a commit
                before = size(paths)
                while size(paths) == before and process.poll() is None:
                    time.sleep(0.002)
            time.sleep(chance.random() * 0.05)
            process.kill()
            _, said = process.communicate()
            assert process.returncode in (-signal.SIGKILL, 0), said.decode()
    with started(*words) as process:
        out, said = process.communicate(timeout=2 * PATIENCE)
        assert process.returncode == 0, said.decode()
    records, resumed = map(int, out.split())
    assert records == many
    return resumed


def whole(place: Path, suffix: str, many: int) -> None:
    """Every record is there once, in the order of the source, where it belongs."""
    numbers = [n for n in range(many) if n % 1000 != 999]
    told = {state: [record["n"] for record in read(place / f"out-{state}{suffix}")] for state in ("odd", "even")}
    assert told["odd"] == [n for n in numbers if n % 7 == 0]
    assert told["even"] == [n for n in numbers if n % 7]
    errors = read(place / "out-errors.jsonl")
    assert [entry["record"]["n"] for entry in errors] == list(range(999, many, 1000))


@pytest.mark.parametrize(
    ("suffix", "workers"), [(".jsonl", 1), (".jsonl.gz", 1), (".jsonl.zst", 1), (".parquet", 1), (".jsonl", 4)]
)
def test_after_10_kills_every_record_is_in_the_files_once_and_in_order(
    durable_url: str, tmp_path: Path, suffix: str, workers: int
) -> None:
    written(tmp_path / "in.jsonl", MANY)
    paths = [tmp_path / f"out-{state}{suffix}" for state in ("odd", "even")]
    words = (durable_url, tmp_path / "in.jsonl", tmp_path / f"out{suffix}", 500, workers)
    try:
        resumed = killed_until_done(paths, KILLS, MANY, *words)
        assert resumed > 0, "no life has committed anything before it was killed"
        whole(tmp_path, suffix, MANY)
    except BaseException as error:
        error.add_note(f"FSMWORKFLOW_SEED={SEED}")
        raise


def packed_in(path: Path, records: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(records), path, row_group_size=3000)
    else:
        text = "".join(json.dumps(record) + "\n" for record in records)
        path.write_bytes(packed(str(path), text.encode()))


@pytest.mark.parametrize(("name", "parts"), [("in.jsonl.zst", 1), ("in-*.jsonl.gz", 5), ("in.parquet", 1)])
def test_after_10_kills_a_source_of_any_kind_was_read_once(
    sqlite_url: str, tmp_path: Path, name: str, parts: int
) -> None:
    records = [{"n": n, "text": f"record {n}"} for n in range(MANY)]
    for number in range(parts):
        each = MANY // parts
        packed_in(tmp_path / name.replace("*", str(number)), records[number * each : (number + 1) * each])
    paths = [tmp_path / f"out-{state}.jsonl" for state in ("odd", "even")]
    try:
        assert killed_until_done(paths, KILLS, MANY, sqlite_url, tmp_path / name, tmp_path / "out.jsonl", 500) > 0
        whole(tmp_path, ".jsonl", MANY)
    except BaseException as error:
        error.add_note(f"FSMWORKFLOW_SEED={SEED}")
        raise


def test_after_10_kills_every_record_is_there_once_where_order_is_not_kept(sqlite_url: str, tmp_path: Path) -> None:
    written(tmp_path / "in.jsonl", MANY)
    paths = [tmp_path / f"out-{state}.jsonl" for state in ("odd", "even")]
    words = (sqlite_url, tmp_path / "in.jsonl", tmp_path / "out.jsonl", 500, 4, 10, "apart")
    try:
        assert killed_until_done(paths, KILLS, MANY, *words) > 0
        numbers = sorted(record["n"] for path in paths for record in read(path))
        assert numbers == [n for n in range(MANY) if n % 1000 != 999]
        errors = read(tmp_path / "out-errors.jsonl")
        assert sorted(entry["number"] for entry in errors) == list(range(1000, MANY + 1, 1000))
    except BaseException as error:
        error.add_note(f"FSMWORKFLOW_SEED={SEED}")
        raise


def test_after_10_kills_every_record_of_a_table_is_in_the_tables_once(durable_url: str, tmp_path: Path) -> None:
    killed_between_tables(durable_url, tmp_path, KILLS, MANY, 1000)


def killed_between_tables(url: str, place: Path, kills: int, many: int, chunk: int) -> None:
    """Of the run's own database: as there is no upsert, a row written twice would be there twice."""
    done(
        url,
        "CREATE TABLE rows (n BIGINT PRIMARY KEY, text TEXT)",
        "CREATE TABLE odd (n BIGINT, text TEXT, odd BOOLEAN)",
        "CREATE TABLE even (n BIGINT, text TEXT, odd BOOLEAN)",
        "INSERT INTO rows " + NUMBERS.format(many - 1),
    )
    errors = place / "table-errors.jsonl"
    try:
        assert killed_until_done([errors], kills, many, url, "rows", place / "table", chunk) > 0
        numbers = [n for n in range(many) if n % 1000 != 999]
        assert found(url, "SELECT n FROM odd ORDER BY n") == [n for n in numbers if n % 7 == 0]
        assert found(url, "SELECT n FROM even ORDER BY n") == [n for n in numbers if n % 7]
        assert [entry["record"]["n"] for entry in read(errors)] == list(range(999, many, 1000))
    except BaseException as error:
        error.add_note(f"FSMWORKFLOW_SEED={SEED}")
        raise


NUMBERS = (
    "WITH RECURSIVE all_of_them (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM all_of_them WHERE n < {}) "
    "SELECT n, 'record ' || n FROM all_of_them"
)


def done(url: str, *statements: str) -> None:
    """Run statements in a database of either kind."""
    if not url.startswith("sqlite"):
        execute(url, *statements)
        return
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as db, db:
        for statement in statements:
            db.execute(statement)


def found(url: str, query: str) -> list[Any]:
    """The first column of what a query finds."""
    return [next(iter(row.values())) for row in asyncio.run(fetched(url, query))]


async def fetched(url: str, query: str) -> list[dict[str, Any]]:
    there = database(url)
    try:
        return await there.fetch(query, [], "a test")
    finally:
        there.close()


@pytest.mark.soak
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_after_100_kills_every_record_is_in_the_files_once(durable_url: str, tmp_path: Path, suffix: str) -> None:
    many = 200_000
    source = tmp_path / "in.jsonl"
    written(source, many)
    paths = [tmp_path / f"out-{state}{suffix}" for state in ("odd", "even")]
    assert killed_until_done(paths, 100, many, durable_url, source, tmp_path / f"out{suffix}", 100) > 0
    whole(tmp_path, suffix, many)


@pytest.mark.soak
def test_after_100_kills_every_record_of_a_table_is_in_the_tables_once(durable_url: str, tmp_path: Path) -> None:
    killed_between_tables(durable_url, tmp_path, 100, 200_000, 1000)


def test_a_process_that_was_stopped_for_longer_than_its_lease_and_its_successor_lose_and_repeat_nothing(
    durable_url: str, tmp_path: Path
) -> None:
    """Its file is locked for as long as it lives, so that nobody else writes to it; what it then writes is cut off."""
    written(tmp_path / "in.jsonl", MANY)
    paths = [tmp_path / f"out-{state}.jsonl" for state in ("odd", "even")]
    words = (durable_url, tmp_path / "in.jsonl", tmp_path / "out.jsonl", 100, 1, 0.5)
    with started(*words) as first:
        while size(paths) == 0:
            assert first.poll() is None, first.communicate()[1].decode()
            time.sleep(0.002)
        stop(first, durable_url)
        time.sleep(1.0)  # that its lease ends is what is tested
        with started(*words) as second:
            assert b"is being written to by another stream" in second.communicate(timeout=PATIENCE)[1]
        first.send_signal(signal.SIGCONT)
        assert b"LeaseLost" in first.communicate(timeout=PATIENCE)[1]
    with started(*words) as third:
        _, said = third.communicate(timeout=2 * PATIENCE)
        assert third.returncode == 0, said.decode()
    whole(tmp_path, ".jsonl", MANY)


@pytest.mark.parametrize(
    ("kind", "workers"),
    [("files", 1), ("files", 3), ("parquet", 1), ("its own tables", 3), ("tables of another database", 1)],
)
async def test_P12_a_stream_cancelled_at_any_await_goes_on_at_once_in_the_same_engine(
    durable_url: str, tmp_path: Path, kind: str, workers: int
) -> None:
    records = [{"n": n, "text": ""} for n in range(30)]
    states = ("odd", "even")

    def into(n: int) -> dict[str, Any]:
        return {
            "files": {state: str(tmp_path / f"{state}-{n}.jsonl") for state in states},
            "parquet": {state: str(tmp_path / f"{state}-{n}.parquet") for state in states},
            "its own tables": {state: sinks.Table(f"{state}_{n}") for state in states},
            "tables of another database": {state: sinks.Table(f"{state}_{n}", url=other, key="n") for state in states},
        }[kind]

    async def there(n: int, state: str) -> list[int]:
        if "tables" not in kind:
            suffix = "jsonl" if kind == "files" else "parquet"
            return [record["n"] for record in read(tmp_path / f"{state}-{n}.{suffix}")]
        url = durable_url if kind == "its own tables" else other
        return [row["n"] for row in await fetched(url, f"SELECT n FROM {state}_{n} ORDER BY n")]

    other = f"sqlite:///{tmp_path / 'other.db'}"
    async with Engine(durable_url) as engine:
        n, hit = 0, True
        while hit:
            n += 1
            columns = "n BIGINT PRIMARY KEY, text TEXT, odd BOOLEAN"
            made = [f"CREATE TABLE {state}_{n} ({columns})" for state in states if "tables" in kind]
            await asyncio.to_thread(done, durable_url if kind == "its own tables" else other, *made)
            how: Any = {"key": f"k{n}", "chunk": 7, "workers": workers}
            hit = await cancelled(stream(engine, numbered(), records, into(n), **how), n)
            ended = await stream(engine, numbered(), records, into(n), **how)
            assert ended.records == 30
            assert await there(n, "odd") == [k for k in range(30) if k % 7 == 0], f"cancelled at await {n}"
            assert await there(n, "even") == [k for k in range(30) if k % 7], f"cancelled at await {n}"
    assert n > 10


def test_a_record_that_ends_its_process_parks_the_stream_and_retry_lets_it_go_on(
    durable_url: str, tmp_path: Path
) -> None:
    written(tmp_path / "in.jsonl", 3000)
    program = [sys.executable, "-c", FATAL, durable_url, str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")]
    told = []
    for mended in ("", "", "", "", "retry"):
        ended = subprocess.run([*program, mended], env=_environment(), capture_output=True, text=True, check=False)
        told.append((ended.returncode, ended.stderr.strip().rpartition("\n")[2][:60]))
    assert [code for code, _ in told] == [9, 9, 9, 1, 0], told
    assert told[3][1].startswith("fsmworkflow.stream.words.StreamError: stream 'k' is parked")
    assert [record["n"] for record in read(tmp_path / "out.jsonl")] == list(range(3000))


FATAL = """
import asyncio, os, sys
from fsmworkflow import Engine, Workflow
from fsmworkflow.stream import retry, stream

url, source, sink, mended = sys.argv[1:]
flow = Workflow("fatal")

@flow.step(initial=True, then="over")
def look(ctx):
    if ctx.data["n"] == 2500 and not mended:
        os._exit(9)

flow.final("over")

async def main():
    async with Engine(url) as engine:
        if mended:
            await retry(engine, flow, "k")
        await stream(engine, flow, source, sink, key="k", chunk=1000)

asyncio.run(main())
"""
