"""The doctor sees what is wrong with a store and where it lies, says what to do, and sees nothing where nothing is."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from fsmworkflow import Engine, Workflow, open_store
from fsmworkflow.doctor import Finding, examine, file_system, pooled, pooler, sqlite_version
from fsmworkflow.records import Active, Failure, Owner
from fsmworkflow.store.postgres import PostgresStore
from tests.children import launched
from tests.test_store import made, moved
from tests.tools import program
from tests.waiting import until_now


def resting(version: int = 1, *, more: bool = False) -> Workflow:
    flow = Workflow("w", version=version)
    flow.wait("rest", initial=True, on={"go": "end", "on": "rest"} if more else {"go": "end"})
    flow.final("end")
    return flow


def bad(found: list[Finding]) -> dict[str, Finding]:
    """What is not ok, but for the SQLite of the machine that runs the tests."""
    return {one.check: one for one in found if one.level != "ok" and one.check != "sqlite"}


async def test_an_engine_with_which_nothing_is_wrong(store_url: str) -> None:
    async with Engine(store_url, workflows=[resting()]) as engine:
        await engine.start("w", key="a")
        found = await examine(engine)
    assert set(bad(found)) == ({"store"} if store_url == "memory://" else set())
    assert len({one.check for one in found}) == len(found)


@pytest.mark.parametrize(
    ("version", "mended"),
    [
        ((3, 7, 0), False), ((3, 40, 1), False), ((3, 44, 5), False), ((3, 44, 6), True), ((3, 45, 9), False),
        ((3, 50, 6), False), ((3, 50, 7), True), ((3, 51, 2), False), ((3, 51, 3), True), ((3, 53, 0), True),
        ((4, 0, 0), True),
    ],
)  # fmt: skip
def test_a_sqlite_with_the_wal_reset_bug_is_told_with_the_versions_that_are_mended(
    version: tuple[int, ...], mended: bool
) -> None:
    found = sqlite_version(version)
    assert found.level == ("ok" if mended else "warning")
    assert mended or "3.51.3" in found.todo


@pytest.mark.parametrize(
    ("path", "level", "kind"),
    [
        ("/data/x.db", "ok", "ext4"), ("/mnt/share/x.db", "error", "nfs4"), ("/mnt/share/local/x.db", "ok", "xfs"),
        ("/mnt/shared/x.db", "ok", "ext4"), ("/with space/x.db", "error", "cifs"),
    ],
)  # fmt: skip
def test_a_file_on_a_network_file_system_is_an_error(path: str, level: str, kind: str) -> None:
    mounts = [("/", "ext4"), ("/mnt/share", "nfs4"), ("/mnt/share/local", "xfs"), ("/with space", "cifs")]
    found = file_system(path, mounts)
    assert found.level == level
    assert kind in found.what


def test_where_no_mounts_are_known_nothing_is_claimed() -> None:
    assert "cannot be known" in file_system("/data/x.db", []).what


async def test_the_mounts_of_this_machine_are_read_with_their_escapes(sqlite_url: str, monkeypatch: Any) -> None:
    told = Path("/proc/self/mountinfo").read_text() if os.path.exists("/proc/self/mountinfo") else ""
    here = os.path.realpath(os.path.dirname(sqlite_url.removeprefix("sqlite:///")))
    told += f"99 1 0:99 / {here} rw - nfs4 server:/share rw\n98 1 0:98 / /a\\040b rw shared:1 - tmpfs t rw\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: told)
    async with Engine(sqlite_url, workflows=[resting()]) as engine:
        monkeypatch.setattr("fsmworkflow.lease.machine_id", lambda: None)
        found = bad(await examine(engine))
    assert found["filesystem"].level == "error"


async def test_a_journal_that_is_no_wal_is_told(sqlite_url: str) -> None:
    store = open_store(sqlite_url)
    await store.open()
    await store.close()
    async with Engine(sqlite_url, workflows=[resting()]) as engine:
        found = bad(await examine(engine))
        assert found == {}
        read = engine.store.read_rows  # type: ignore[attr-defined]

        async def other(block: str, *values: Any) -> Any:
            return [{"journal_mode": "delete"}] if block == "journal_mode" else await read(block, *values)

        engine.store.read_rows = other  # type: ignore[attr-defined]
        assert "journal mode is delete" in bad(await examine(engine))["journal"].what


async def test_a_clock_that_is_off_is_told(postgres_url: str, monkeypatch: Any) -> None:
    async with Engine(postgres_url, workflows=[resting()], lease=3600) as engine:
        clock = time.time
        monkeypatch.setattr("fsmworkflow.doctor.time.time", lambda: clock() + 3600)
        engine.store._offset = 0.0  # type: ignore[attr-defined]
        monkeypatch.setattr(engine.store, "now", lambda: clock())
        found = bad(await examine(engine))["clock"]
    assert (found.level, "3600.0 s behind" in found.what) == ("warning", True)


async def test_owners_whose_lease_has_ended_and_that_hold_runs_are_told(store_url: str) -> None:
    async with Engine(store_url, workflows=[resting()]) as engine:
        store, now = engine.store, engine.store.now()
        structure = resting().check().chart.structure
        await store.enrol(Owner(token="idle", machine="m", process="7/1", lease=now - 60, started=now))
        await store.enrol(Owner(token="stale", machine="m", process="8/1", lease=now - 60, started=now))
        assert "owners" not in bad(await examine(engine))
        for key, owner in (("a", "stale"), ("b", "stale"), ("c", "buried"), ("d", engine.worker.token)):
            await made(store, key, owner=owner, structure=structure, due=None, status="waiting")
        (told,) = [one.what for one in await examine(engine) if one.check == "owners" and one.level == "warning"]
    assert "stale (8/1)" in told
    assert "holds 2 unfinished runs" in told


async def test_what_rests_after_its_engine_was_closed_is_nothing_to_tell(store_url: str) -> None:
    store = open_store(store_url)
    await store.open()
    async with Engine(store, workflows=[resting()]) as engine:
        await engine.run("w", key="a")
    async with Engine(store, workflows=[resting()]) as engine:
        assert bad(await examine(engine)).keys() <= {"store"}
    await store.close()


async def test_runs_that_are_parked_are_told_with_the_reason_of_the_oldest(store_url: str) -> None:
    async with Engine(store_url, workflows=[resting()]) as engine:
        for key in ("a", "b"):
            run = await made(engine.store, key)
            error = Failure(type="OSError", message="no paper")
            await engine.store.commit(moved(run, status="parked", due=None, owner=None, error=error))
        found = bad(await examine(engine))["parked"]
    assert found.what == "2 runs are parked, the oldest is w/a: OSError: no paper"
    assert "engine.retry" in found.todo


async def test_of_a_stream_that_is_parked_it_is_told_what_lets_it_go_on(store_url: str) -> None:
    async with Engine(store_url) as engine:
        run = await made(engine.store, "a", workflow="$stream:w")
        await engine.store.commit(moved(run, status="parked", due=None, owner=None))
        found = bad(await examine(engine))["parked"]
    assert "`retry(engine, workflow, key)` of fsmworkflow.stream, or `fsmworkflow retry`" in found.todo


async def test_runs_that_no_workflow_fits_are_told_by_name_and_version(store_url: str) -> None:
    async with Engine(store_url, workflows=[resting(2)]) as engine:
        store = engine.store
        parts: dict[str, Any] = {"status": "waiting", "due": None, "owner": None, "active": {"rest": Active(0)}}
        fits = resting(2).check().chart.structure
        await made(store, "a", structure=fits, definition=2, **parts)
        assert bad(await examine(engine)).keys() <= {"store"}
        await made(store, "c", structure=fits, definition=3, **parts)
        await made(store, "e", workflow="gone", **parts)
        await made(store, "f", workflow="$schedule:gone", **parts)
        await made(store, "h", workflow="$stream:w", **parts)
        await made(store, "g", workflow="over", **{**parts, "status": "done"})
        found = [one for one in await examine(engine) if one.check == "workflows"]
    assert {one.level for one in found} == {"warning"}
    text = "\n".join(f"{one.what}: {one.todo}" for one in found)
    for part in (
        "of version 3, this engine has 2: they are left to newer processes",
        "workflow 'gone': this engine does not know it",
        "it is the schedules of 'gone'",
        "workflow '$stream:w': a stream goes on when it is started again with its key",
    ):
        assert part in text
    assert len(found) == 4


async def test_runs_of_a_definition_that_changed_go_on_or_are_told_to_be_stuck_with_the_reason(store_url: str) -> None:
    async with Engine(store_url, workflows=[resting()]) as engine:
        await engine.run("w", key="a")
    async with Engine(store_url, workflows=[resting(2)]) as engine:
        store = engine.store
        parts: dict[str, Any] = {"status": "waiting", "due": None, "owner": None, "structure": "other"}
        await made(store, "fits", definition=1, active={"rest": Active(0)}, **parts)
        found = [one for one in await examine(engine) if one.check == "definitions"]
        assert {one.level for one in found} == {"ok"}
        await made(store, "stuck", definition=1, active={"gone": Active(0)}, **parts)
        (told,) = [one for one in await examine(engine) if one.level == "error"]
    assert (told.check, "state 'gone'" in told.what) == ("definitions", True)
    assert "@w.migrate(1, to=2)" in told.todo


async def test_a_run_that_nobody_drives_is_told_by_health(store_url: str) -> None:
    async with Engine(store_url, workflows=[resting()], lease=10) as engine:
        await made(engine.store, "a", due=engine.store.now() - 90, owner=None)
        assert "nobody drives it" in bad(await examine(engine))["health"].what


# -- poolers ----------------------------------------------------------------------------------------------------------


PORT = 6432  # of a socket in a directory of its own


@contextlib.contextmanager
def bouncer(url: str, mode: str) -> Iterator[str]:
    """The URL of the same database through a PgBouncer that pools sessions or transactions."""
    directory = Path(tempfile.mkdtemp(prefix="fsm-pgb-"))
    parts = urlsplit(url)
    directory.joinpath("users").write_text('"postgres" ""\n')
    directory.joinpath("ini").write_text(
        f"[databases]\n* = host={parse_qs(parts.query)['host'][0]} user=postgres\n[pgbouncer]\nlisten_addr=\n"
        f"listen_port={PORT}\nunix_socket_dir={directory}\nauth_type=any\nauth_file={directory}/users\npool_mode={mode}\n"
        f"default_pool_size=5\nlogfile={directory}/log\nignore_startup_parameters=extra_float_digits\n"
    )
    as_nobody = ["-u", "nobody"] if os.getuid() == 0 else []
    if as_nobody:
        for path in (directory, *directory.iterdir()):
            shutil.chown(path, "nobody")
    command, nowhere = [program("pgbouncer"), *as_nobody, str(directory / "ini")], subprocess.DEVNULL
    try:
        with launched(command, stdout=nowhere, stderr=nowhere) as process:
            until_now(lambda: process.poll() is not None or (directory / f".s.PGSQL.{PORT}").exists())
            yield f"postgresql://postgres@{parts.path}?host={directory}&port={PORT}"
    finally:
        shutil.rmtree(directory)


async def test_without_a_pooler_none_is_seen(postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    assert await pooled(store) is None


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_what_pgbouncer_pools_is_seen_through_it(postgres_url: str, mode: str) -> None:
    with bouncer(postgres_url, mode) as url:
        assert await pooled(PostgresStore(url)) == mode


async def test_an_engine_behind_a_pooler_of_transactions_is_well_without_prepared_statements(postgres_url: str) -> None:
    with bouncer(postgres_url, "transaction") as url:
        store = PostgresStore(url, pool={"statement_cache_size": 0})
        async with Engine(store, workflows=[resting()]) as engine:
            await engine.start("w", key="a")
            assert bad(await examine(engine)) == {}


def test_a_pooler_of_transactions_with_prepared_statements_is_an_error() -> None:
    found = pooler("transaction", prepares=True)
    assert found.level == "error"
    assert "statement_cache_size=0" in found.todo
    assert {pooler(mode, prepares=True).level for mode in (None, "session")} == {"ok"}


def test_the_sqlite_of_this_machine_is_judged_by_its_own_version() -> None:
    assert sqlite3.sqlite_version in sqlite_version(sqlite3.sqlite_version_info).what
