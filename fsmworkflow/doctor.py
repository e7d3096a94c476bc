"""What may be wrong with an engine, its store and the place where they run, each with what to do about it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from fsmworkflow.records import UNFINISHED, Owner, Run
from fsmworkflow.schedule import PREFIX
from fsmworkflow.store import Store
from fsmworkflow.store.sql import queries
from fsmworkflow.stream.run import PREFIX as STREAMS
from fsmworkflow.stream.run import RETRIED
from fsmworkflow.versions import Planned
from fsmworkflow.workflow import Workflow

if TYPE_CHECKING:
    from fsmworkflow.engine import Engine

__all__ = ["Finding", "census", "examine"]

Level = Literal["ok", "warning", "error"]

NETWORK = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
    }
    | {"ocfs2", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs"}
    | {f"fuse.{kind}" for kind in ("ceph", "glusterfs", "rclone", "s3fs", "sshfs", "vmhgfs-fuse")}
)
"""File systems that do not, or may not, give all of their users the one shared memory that WAL needs."""
FIXED = {(3, 44): 6, (3, 50): 7, (3, 51): 3}
"""In which patch release of a branch the WAL-reset bug was mended; in 3.52 and later from the first one."""
CLOCK = 1.0
"""Seconds by which the clocks of this machine and the store may differ without a word."""


MANY = 1_000
"""How many parked runs are counted."""


class Finding(msgspec.Struct, frozen=True):
    """What one check saw: its name, how bad that is, what it is, and what to do (empty where nothing)."""

    check: str
    level: Level
    what: str
    todo: str = ""


class Group(NamedTuple):
    """Unfinished runs of one kind, and how many there are."""

    workflow: str
    definition: int
    structure: str
    owner: str | None
    many: int


async def examine(engine: Engine) -> list[Finding]:
    """All findings about an open engine, the good ones too. Only reads, but for the write of `engine.health()`."""
    store = engine.store
    groups = await census(store)
    found = [*await _place(store), _clocks(store.now() - time.time())]
    found += owners(await store.owners(), groups, store.now())
    found += definitions(engine.workflows, groups)
    for name in drifted(engine.workflows, groups):
        found += outlook(await engine.plan_migration(name))
    found += parked(await store.list(workflow=None, status="parked", state=None, after=0, many=MANY))
    health = await engine.health()
    problems = [Finding("health", "error", problem, "see docs/deploy.md") for problem in health.problems]
    return found + (problems or [Finding("health", "ok", "the store takes writes, and nothing waits for a driver")])


async def census(store: Store) -> list[Group]:
    """What has not ended, by workflow, version, structure and owner."""
    if hasattr(store, "read_rows"):
        return [Group(**dict(row)) for row in await store.read_rows("census")]
    runs = await store.list(workflow=None, status=None, state=None, after=0, many=1_000_000)
    unfinished = [run for run in runs if run.status in UNFINISHED]
    counted = Counter((run.workflow, run.definition, run.structure, run.owner) for run in unfinished)
    return [Group(*kind, many) for kind, many in counted.items()]


# -- where the store is -----------------------------------------------------------------------------------------------


async def _place(store: Any) -> list[Finding]:
    if hasattr(store, "open_pool"):
        return [pooler(await pooled(store), prepares=not store._in_transactions)]
    if not hasattr(store, "path"):
        return [Finding("store", "warning", f"{store.url} keeps nothing when this process ends", "fine for tests")]
    ((mode,),) = [tuple(row.values()) for row in await store.read_rows("journal_mode")]
    found = [sqlite_version(sqlite3.sqlite_version_info), file_system(store.path, _mounts())]
    if mode != "wal":
        todo = "another program has set it: open the file with fsmworkflow alone, which sets WAL again"
        found.append(Finding("journal", "warning", f"the journal mode is {mode}, not WAL", todo))
    return found


def sqlite_version(version: tuple[int, ...]) -> Finding:
    """Whether this SQLite may damage a file in WAL mode (https://sqlite.org/wal.html#walresetbug)."""
    text = ".".join(map(str, version[:3]))
    mended = version >= (3, 52) or version[2] >= FIXED.get((version[0], version[1]), 1 << 30)
    if mended:
        return Finding("sqlite", "ok", f"SQLite {text} has no known fault of its WAL")
    what = f"SQLite {text} has the WAL-reset bug: rarely, a commit beside two checkpoints is lost, or the file damaged"
    todo = (
        "use SQLite 3.51.3 or newer (3.50.7 and 3.44.6 are mended too): the one that Python's sqlite3 was linked with"
    )
    return Finding("sqlite", "warning", what, todo)


def file_system(path: str, mounts: Iterable[tuple[str, str]]) -> Finding:
    """Whether the WAL of a file can work where it lies. `mounts` are mount points with their kinds of file system."""
    place = os.path.realpath(os.path.dirname(path))
    holding = [m for m in mounts if place == m[0] or place.startswith(m[0].rstrip("/") + "/")]
    if not holding:
        return Finding("filesystem", "ok", "what file system holds the database cannot be known here")
    point, kind = max(holding, key=lambda mount: len(mount[0]))
    if kind in NETWORK:
        what = f"{path} lies on {point}, a file system of the kind {kind}: WAL needs memory shared by all who use it"
        return Finding("filesystem", "error", what, "move it to a local disk, or use PostgreSQL")
    return Finding("filesystem", "ok", f"the database lies on a local file system ({kind})")


def _mounts() -> list[tuple[str, str]]:
    """The mount points of this process, later ones last, as proc_pid_mountinfo(5) has them."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [(_plain(fields[4]), fields[fields.index("-") + 1]) for line in lines if "-" in (fields := line.split())]


def _plain(point: str) -> str:
    """A mount point without its escapes for space, tab, newline and backslash."""
    for code, sign in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, sign)
    return point


async def pooled(store: Any) -> Literal["session", "transaction"] | None:
    """What a pooler before a PostgreSQL server pools; None where none is there.

    A pooler tells each client another process number than the server's; one that pools transactions lets two
    connections in turn be answered by the same server process.
    """
    from fsmworkflow.store.postgres_server import closed, saying

    with saying(store.url):
        first, second = await store._connect(statement_cache_size=0), await store._connect(statement_cache_size=0)
        try:
            seen = [(await _backend(first), await _backend(second)) for _ in range(5)]
        finally:
            await asyncio.gather(closed(first), closed(second))
    if first.get_server_pid() == seen[0][0]:
        return None
    ones, others = zip(*seen, strict=True)
    return "transaction" if set(ones) & set(others) else "session"


async def _backend(connection: Any) -> int:
    async with connection.transaction():
        number: int = await connection.fetchval(queries("postgres")["backend"])
        return number


def pooler(mode: str | None, *, prepares: bool) -> Finding:
    """What a pooler such as PgBouncer between here and the server means."""
    if mode is None:
        return Finding("pooler", "ok", "no pooler stands between here and PostgreSQL")
    if mode == "session":
        return Finding(
            "pooler", "ok", "a pooler stands before PostgreSQL, and gives each connection a server of its own"
        )
    if not prepares:
        what = "a pooler stands before PostgreSQL that pools transactions, and no prepared statement is kept"
        return Finding("pooler", "ok", what, "nobody can be woken through it: others are heard of by polling")
    what = "a pooler stands before PostgreSQL that pools transactions: prepared statements get lost or mixed up"
    return Finding("pooler", "error", what, "pass statement_cache_size=0, or let it pool sessions")


def _clocks(ahead: float) -> Finding:
    if abs(ahead) <= CLOCK:
        return Finding("clock", "ok", f"this machine's clock and the store's differ by {abs(ahead):.3f} s")
    what = f"the store's clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    todo = "leases and timers go by the store's; times that a program computes are off by that: synchronise with NTP"
    return Finding("clock", "warning", what, todo)


# -- who drives, and what ---------------------------------------------------------------------------------------------


def owners(known: Iterable[Owner], groups: Iterable[Group], now: float) -> list[Finding]:
    """Owners whose lease has ended and that still hold runs."""
    held: Counter[str] = Counter()
    for group in groups:
        held[group.owner or ""] += group.many
    live = {owner.token for owner in known if owner.lease > now}
    stale = [owner for owner in known if owner.token not in live]
    found = []
    for owner in stale:
        if held[owner.token]:
            what = f"owner {owner.token} ({owner.process}) has not been heard of for {now - owner.lease:.0f} s"
            what += f" and holds {held[owner.token]} unfinished runs"
            found.append(Finding("owners", "warning", what, "any engine that works takes them: let one work"))
    return found or [Finding("owners", "ok", "no owner whose lease has ended holds a run")]


def parked(runs: list[Run]) -> list[Finding]:
    """Runs that wait for a person."""
    if not runs:
        return [Finding("parked", "ok", "no run is parked")]
    first = runs[0]
    reason = "" if first.error is None else f": {first.error.type}: {first.error.message:.200}"
    many = f"{len(runs)}{' or more' if len(runs) == MANY else ''}"
    what = f"{many} runs are parked, the oldest is {first.workflow}/{first.key}{reason}"
    how = RETRIED if first.workflow.startswith(STREAMS) else "engine.retry(workflow, key) lets it go on"
    return [Finding("parked", "warning", what, f"mend the cause, then {how}")]


def definitions(known: Mapping[str, Workflow], groups: Iterable[Group]) -> list[Finding]:
    """Unfinished runs of workflows that this engine does not know, or of versions newer than it has."""
    sums: Counter[tuple[str, int]] = Counter()
    for group in groups:
        sums[group.workflow, group.definition] += group.many
    found = []
    for (name, version), many in sorted(sums.items()):
        workflow = known.get(name)
        if workflow is None:
            found.append(
                Finding("workflows", "warning", f"{many} unfinished runs of workflow {name!r}", _unknown(name))
            )
        elif version > workflow.version:
            what = f"{many} unfinished runs of {name!r} are of version {version}, this engine has {workflow.version}"
            found.append(Finding("workflows", "warning", what, "they are left to newer processes: start one"))
    return found or [Finding("workflows", "ok", "this engine knows the workflow of every unfinished run")]


def drifted(known: Mapping[str, Workflow], groups: Iterable[Group]) -> list[str]:
    """The workflows with unfinished runs of an older version, or of other states and transitions of the same."""
    found = set()
    for group in groups:
        workflow = known.get(group.workflow)
        if workflow is not None and group.definition <= workflow.version:
            is_as_now = (group.definition, group.structure) == (workflow.version, workflow.check().chart.structure)
            found |= set() if is_as_now else {group.workflow}
    return sorted(found)


def outlook(plan: Iterable[Planned]) -> list[Finding]:
    """What becomes of the unfinished runs of a workflow that has changed."""
    found = []
    for one in plan:
        which = f"unfinished runs of {one.workflow!r}, version {one.version}, state {one.state!r}"
        if one.stuck:
            what = f"{one.stuck} {which}, do not go on in version {one.to}: {'; '.join(one.reasons)}"
            todo = f"declare what is gone again, or map them: @{one.workflow}.migrate({one.version}, to={one.to})"
            found.append(Finding("definitions", "error", what, todo))
        elif one.version != one.to or one.mapped:
            what = f"{one.fits + one.mapped} {which}, go on in version {one.to}"
            found.append(Finding("definitions", "ok", what))
    return found


def _unknown(name: str) -> str:
    if name.startswith(PREFIX):
        return f"it is the schedules of {name.removeprefix(PREFIX)!r}: give the engine that one, and install the extra"
    if name.startswith(STREAMS):
        return "a stream goes on when it is started again with its key"
    return "this engine does not know it: pass it in Engine(workflows=[...]), or cancel them where it is known"
