"""Stores that go away, are locked, full, read-only or no stores: a run waits and goes on, or the error is clear."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from fsmworkflow import Engine, Entry, Run
from tests.children import Child, Children
from tests.crash_child import walk_data, walk_expected
from tests.ledger import Checker, blob, glimpse
from tests.postgres_server import Server, execute
from tests.test_workers import alive_until, check, chores, dismissed

STEPS = 12
TRYING = "trying again"  # in the log of a process whose store cannot do its work


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as some:
        yield some


def walking(children: Children, url: str, steps: int = STEPS) -> Child:
    """A process in the middle of five runs."""
    child = children.start("walks", url, "--steps", steps)
    child.until(lambda: len(children.ledger.lines("end")) >= 10)
    return child


async def told_by(url: str) -> list[tuple[Run, list[Entry]]]:
    async with Engine(url) as engine:
        return [(run, await engine.history(run.workflow, run.key)) for run in await engine.list("walk")]


def nothing_was_lost(children: Children, url: str, steps: int = STEPS, *, deaths: int = 0) -> None:
    """All five runs ended as they should have, and no step was repeated, save one of each run for each death."""
    runs = asyncio.run(told_by(url))
    checker = Checker(children.ledger.lines())
    assert sorted(run.key for run, _ in runs) == ["w0", "w1", "w2", "w3", "w4"]
    faults = [f for run, hist in runs for f in checker.faults(run, hist, walk_expected(walk_data(run.key, steps)))]
    assert not faults, "\n".join(faults)
    for run, history in runs:
        name = f"{run.workflow}/{run.key}"
        began = [line for line in children.ledger.lines("begin") if line["run"] == name]
        assert len(began) - (len(history) - 1) <= deaths, f"{name} repeated steps"


def longest_silence(children: Children) -> float:
    """The longest time in seconds between two lines of the ledger."""
    at = [line["at"] for line in children.ledger.lines()]
    return max(later - earlier for earlier, later in pairwise(at))


# -- PostgreSQL goes away ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "immediate", "kill"])
def test_a_process_survives_that_postgres_is_stopped_and_started(
    private_postgres: Server, children: Children, mode: str
) -> None:
    url = private_postgres.create_database()
    child = walking(children, url)
    private_postgres.kill() if mode == "kill" else private_postgres.stop(mode)
    child.until(lambda: TRYING in child.err)
    assert child.alive()
    private_postgres.start()
    child.succeeded()
    nothing_was_lost(children, url)


def test_processes_for_which_postgres_was_away_for_longer_than_their_leases_take_nothing_from_each_other(
    private_postgres: Server, children: Children
) -> None:
    """Whoever came back first took what the others had finished and could not write yet."""
    url, many = private_postgres.create_database(), 200
    some = [children.start("work", url, "--steps", 4, "--lease", 3) for _ in range(3)]
    for child in some:
        child.line("open")
    chores(url, *(f"k{n}" for n in range(many)))
    for child in some:
        child.line("end")
    private_postgres.stop("immediate")
    time.sleep(3.5)  # that their leases end meanwhile is what is tested
    assert len(children.ledger.lines("end")) < 4 * many, "it was away after all had ended"
    private_postgres.start()
    alive_until(url, many, some)
    dismissed(some)
    check(url, children, many, deaths=0)


def test_a_process_that_dies_while_postgres_is_away_is_taken_up_afterwards(
    private_postgres: Server, children: Children
) -> None:
    url = private_postgres.create_database()
    child = walking(children, url)
    private_postgres.stop("immediate")
    child.until(lambda: TRYING in child.err)
    assert child.kill()
    private_postgres.start()
    children.start("walks", url, "--steps", STEPS).succeeded()
    nothing_was_lost(children, url, deaths=1)


@pytest.mark.parametrize("seconds", [3, pytest.param(30, marks=pytest.mark.soak)])
def test_a_process_waits_for_a_postgres_that_is_frozen(
    private_postgres: Server, children: Children, seconds: float
) -> None:
    url = private_postgres.create_database()
    child = walking(children, url)
    frozen = psutil.Process(private_postgres._process.pid)
    every = [frozen, *frozen.children(recursive=True)]
    for process in every:
        process.suspend()
    try:
        time.sleep(seconds)  # that it stands still for so long is what is tested
        assert child.alive(), child.err
    finally:
        for process in every:
            process.resume()
    child.succeeded()
    assert longest_silence(children) > seconds - 0.5, "it did not hold anything up"
    nothing_was_lost(children, url)


def test_a_process_waits_while_postgres_is_read_only(private_postgres: Server, children: Children) -> None:
    url = private_postgres.create_database()
    child = walking(children, url)
    execute(private_postgres.url, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    child.until(lambda: TRYING in child.err)
    assert "read-only" in child.err
    execute(private_postgres.url, "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")
    child.succeeded()
    nothing_was_lost(children, url)


# -- SQLite cannot write for a while ----------------------------------------------------------------------------------


def test_a_run_waits_for_a_file_that_another_process_has_locked_for_10_seconds(
    sqlite_url: str, children: Children
) -> None:
    child = walking(children, sqlite_url)
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None, timeout=20)
    other.execute("BEGIN EXCLUSIVE")
    time.sleep(10)  # longer than busy_timeout: the lock is what is tested
    assert child.alive(), child.err
    other.execute("ROLLBACK")
    other.close()
    child.succeeded()
    assert longest_silence(children) > 9, "the lock did not hold anything up"
    nothing_was_lost(children, sqlite_url)


def limit(child: Child, size: int) -> None:
    """Let a process write no file beyond `size` bytes. Works without privileges."""
    _, hard = resource.prlimit(child.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (size, hard))


def test_a_run_waits_while_its_file_may_not_grow(sqlite_url: str, children: Children) -> None:
    child = walking(children, sqlite_url)
    limit(child, 600_000)
    child.until(lambda: TRYING in child.err)
    limit(child, resource.RLIM_INFINITY)
    child.succeeded()
    nothing_was_lost(children, sqlite_url)


def test_a_process_that_dies_while_its_file_may_not_grow_is_taken_up(sqlite_url: str, children: Children) -> None:
    child = walking(children, sqlite_url)
    limit(child, 600_000)
    child.until(lambda: TRYING in child.err)
    assert child.kill()
    children.start("walks", sqlite_url, "--steps", STEPS).succeeded()
    nothing_was_lost(children, sqlite_url, deaths=1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB. Only root may mount one; for anybody else the tests with a limit above stand for it."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(path: Path) -> None:
    """Take what is left of a disk."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_run_waits_while_the_disk_is_full(small_disk: Path, children: Children) -> None:
    url = f"sqlite:///{small_disk / 'x.db'}"
    child = walking(children, url)
    filler = small_disk / "filler"
    fill(filler)
    child.until(lambda: TRYING in child.err)
    assert child.alive()
    filler.unlink()
    child.succeeded()
    nothing_was_lost(children, url)


@pytest.mark.parametrize("where", ["its end", "its middle", "all of it", "cut off"])
def test_where_the_wal_was_damaged_runs_go_on_from_what_is_there(
    sqlite_url: str, children: Children, where: str
) -> None:
    """The last commits are lost without a word; what is there is whole, and every run comes to its end."""
    child = walking(children, sqlite_url)
    assert child.kill()
    path = Path(sqlite_url.removeprefix("sqlite:///") + "-wal")
    content = path.read_bytes()
    assert len(content) > 100_000, "there was no WAL to damage"
    start = {"its end": len(content) - 20_000, "its middle": len(content) // 2, "all of it": 0, "cut off": len(content)}
    noise = bytes(n * 7 % 251 for n in range(10_000))
    for at in range(start[where], len(content), 10_000):
        content = content[:at] + noise + content[at + 10_000 :]
    path.write_bytes(content[: len(content) * 2 // 3] if where == "cut off" else content)
    lost = sum(row[0] for row in glimpse(sqlite_url).rows.values()) < len(children.ledger.lines("end"))
    assert lost, "no commit was damaged"
    children.start("walks", sqlite_url, "--steps", STEPS).succeeded()
    seen = glimpse(sqlite_url)
    assert not seen.faults()
    assert {row[1:] for row in seen.rows.values()} == {("there", "done")}
    with contextlib.closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_file_that_was_cut_is_told_and_left_as_it_is(sqlite_url: str, children: Children) -> None:
    walking(children, sqlite_url).succeeded()
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    content = path.read_bytes()[: path.stat().st_size // 3]
    path.write_bytes(content)
    child = children.start("walks", sqlite_url, "--steps", STEPS)
    assert child.ended() == 3, f"{child.out}\n{child.err}"
    assert "malformed" in child.err
    assert str(path) in child.err


# -- what is no store -------------------------------------------------------------------------------------------------


def refused(children: Children, url: str) -> str:
    """What a process that opens this is told."""
    child = children.start("open", url)
    assert child.ended() == 3, f"{child.out}\n{child.err}"
    assert "Traceback" not in child.err
    return child.err


def test_a_read_only_file_is_refused_when_it_is_opened(sqlite_url: str, children: Children) -> None:
    children.start("open", sqlite_url).succeeded()
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    path.chmod(0o444)
    said = refused(children, sqlite_url)
    assert "StoreError" in said
    assert "readonly" in said
    assert str(path) in said


def test_a_read_only_directory_is_refused_when_it_is_opened(tmp_path: Path, children: Children) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    said = refused(children, f"sqlite:///{closed / 'x.db'}")
    assert "StoreError" in said
    assert str(closed / "x.db") in said


@pytest.mark.parametrize(
    "content",
    [b"This is a letter, not a database. " * 200, b"SQLite format 3\0" + b"\xff" * 4096],
    ids=["a letter", "a header and noise"],
)
def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(
    tmp_path: Path, children: Children, content: bytes
) -> None:
    path = tmp_path / "letter.txt"
    path.write_bytes(content)
    said = refused(children, f"sqlite:///{path}")
    assert "StoreError" in said
    assert str(path) in said
    assert path.read_bytes() == content


def test_a_directory_is_refused_as_a_file(tmp_path: Path, children: Children) -> None:
    said = refused(children, f"sqlite:///{tmp_path}")
    assert "StoreError" in said
    assert str(tmp_path) in said


def test_a_server_that_is_not_there_is_told_within_a_bounded_time(tmp_path: Path, children: Children) -> None:
    said = refused(children, f"postgresql://nobody@/nothing?host={tmp_path}")
    assert "StoreUnavailable" in said


def test_64_kb_are_64_kb() -> None:
    assert len(blob("k", 0)) == 64 * 1024
