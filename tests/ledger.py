"""The ledger of the crash tests: what steps did, in the order in which they did it; and the checker that judges it.

Each line is one appended, synced write, so the order of the lines is the order of what happened over all processes and
kills. Nothing is concluded from clocks: a line tells the version of the run that its writer saw.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from fsmworkflow.records import Entry, Run

Line = dict[str, Any]


class Ledger:
    """A file of JSON lines that survives whoever writes it. Lines of several processes do not mix."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, what: str, ctx: Any = None, **more: Any) -> None:
        """One line, on the disk when this returns. A step's context tells which attempt of which visit it is."""
        line: Line = {"what": what, "pid": os.getpid(), "at": time.monotonic()}
        if ctx is not None:
            run = ctx.run
            line |= {"run": f"{run.workflow}/{run.key}", "state": ctx.state, "visit": run.visit}
            line |= {"attempt": ctx.attempt, "version": run.version, "epoch": run.epoch}
        os.write(self._file, json.dumps(line | more).encode() + b"\n")
        os.fsync(self._file)

    def size(self) -> int:
        """Its length in bytes: a measure of how far its writers have come."""
        return os.fstat(self._file).st_size

    def lines(self, what: str | None = None) -> list[Line]:
        """All lines, or those of one kind, oldest first. One that is just being written is none yet, and one in whose
        writing its process was killed is none: the next one follows its beginning."""
        whole = self.path.read_text().rpartition("\n")[0].splitlines()
        found = [json.loads(line[line.rfind('{"what": ') :]) for line in whole]
        return found if what is None else [line for line in found if line["what"] == what]

    def close(self) -> None:
        os.close(self._file)


# -- what a step leaves in its data -----------------------------------------------------------------------------------


def chained(chain: str, state: str, visit: int, attempt: int) -> str:
    """The next link of a chain over all steps that ended: one that is missing, doubled or moved changes the last."""
    return hashlib.blake2b(f"{chain} {state} {visit} {attempt}".encode(), digest_size=16).hexdigest()


def blob(key: str, turns: int) -> str:
    """64 KB of text that depends on the run and on how often it was turned."""
    seed = hashlib.blake2b(f"{key} {turns}".encode(), digest_size=32).hexdigest()
    return seed * 1024


# -- what the store holds, read without the package -------------------------------------------------------------------


class Glimpse(NamedTuple):
    """What was committed at one moment: of each run its row and its moves, and the tokens of remembered calls."""

    rows: dict[str, tuple[int, str, str]]
    moves: dict[str, list[tuple[Any, ...]]]
    tokens: list[str]

    def faults(self) -> list[str]:
        """Where a row and its history do not tell the same: an advance that was not one transaction (P4, P8)."""
        found = []
        for run, (version, state, status) in self.rows.items():
            moves = self.moves[run]
            if [move[0] for move in moves] != list(range(version + 1)):
                found.append(f"{run}: its row is at version {version}, its moves are {[move[0] for move in moves]}")
            elif moves[-1][2:4] != (state, status):
                found.append(f"{run}: its row says {(state, status)}, its last move {moves[-1][2:4]}")
        return found


ROWS = """
SELECT r.workflow || '/' || r.key, r.version, r.state, r.status,
       m.version, m.source, m.dest, m.status, m.event, m.attempt
  FROM fsm_runs r LEFT JOIN fsm_moves m ON m.run = r.id
 WHERE r.workflow || '/' || r.key LIKE {0} ORDER BY r.id, m.version
"""
CALLS = "SELECT c.result FROM fsm_calls c JOIN fsm_runs r ON r.id = c.run WHERE r.workflow || '/' || r.key LIKE {0}"


def glimpse(url: str, part: str = "") -> Glimpse:
    """What the store holds of the runs whose workflow or key holds `part`; nothing where it has no tables yet."""
    if url.startswith("sqlite:///"):
        found = _read_sqlite(url.removeprefix("sqlite:///"), f"%{part}%")
    else:
        found = asyncio.run(_read_postgres(url, f"%{part}%"))
    seen = Glimpse({}, defaultdict(list), [json.loads(text)["token"] for (text,) in found[1]])
    for run, version, state, status, *move in found[0]:
        seen.rows[run] = (version, state, status)
        if move[0] is not None:
            seen.moves[run].append(tuple(move))
    return seen


def _read_sqlite(path: str, like: str) -> tuple[list[Any], list[Any]]:
    try:
        # Read-only, so that no checkpoint is made in place of the process that comes next.
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    except sqlite3.OperationalError:
        return [], []
    try:
        moves, calls = (db.execute(sql.format("?"), (like,)).fetchall() for sql in (ROWS, CALLS))
        return moves, calls
    except sqlite3.OperationalError as error:
        if "no such table" in str(error) or "unable to open" in str(error):
            return [], []
        raise
    finally:
        db.close()


async def _read_postgres(url: str, like: str) -> tuple[list[Any], list[Any]]:
    connection = await asyncpg.connect(url)
    try:
        moves, calls = [await connection.fetch(sql.format("$1"), like) for sql in (ROWS, CALLS)]
        return [tuple(row) for row in moves], [tuple(row) for row in calls]
    except asyncpg.UndefinedTableError:
        return [], []
    finally:
        await connection.close()


# -- the checker ------------------------------------------------------------------------------------------------------


class Stay(NamedTuple):
    """One attempt as history tells it: entered at version `since`, over with the move to version `until`."""

    state: str
    visit: int
    attempt: int
    since: int
    until: int
    event: str


def stays(history: list[Entry]) -> list[Stay]:
    """The attempts of a run that is in one state at a time, in order."""
    found, visit, attempt = [], 0, 1
    for move in history[1:]:
        found.append(Stay(move.source, visit, attempt, move.version - 1, move.version, move.event))
        if move.event == "$done":
            visit, attempt = move.version, 1
        elif move.event == "$error":
            attempt += 1
    return found


class Expected(NamedTuple):
    """What a run should have come to: its attempts as (state, attempt), its actions by (source, dest), its 64 KB."""

    path: list[tuple[str, int]]
    actions: dict[tuple[str, str], str]
    blob: str
    end: str


class Checker:
    """Holds the ledger against the store. `faults()` lists every broken promise, in words."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.lines = list(lines)
        self.own: dict[str, list[tuple[int, Line]]] = defaultdict(list)
        for number, line in enumerate(self.lines):
            if "run" in line:
                self.own[line["run"]].append((number, line))
            for run, version in line.get("rows", {}).items():  # the parent looked into the store
                self.own[run].append((number, {"what": "seen", "version": version, "tokens": line["tokens"]}))

    def faults(self, run: Run, history: list[Entry], expected: Expected) -> list[str]:
        """What this run's lines, row, history and data say against the promises."""
        name = f"{run.workflow}/{run.key}"
        lines = [line for _, line in self.own[name]]
        found = [
            *_history_faults(run, history, expected),
            *_order_faults(lines, stays(history)),
            *_repeat_faults(lines),
            *_early_faults(lines, stays(history)),
            *_data_faults(run, history, expected),
            *_action_faults(lines, history, expected),
            *_call_faults(lines),
        ]
        return [f"{name}: {fault}" for fault in found]


def _history_faults(run: Run, history: list[Entry], expected: Expected) -> list[str]:
    """P8 and the right order: every move is there once, and they lead where this input leads."""
    versions = [move.version for move in history]
    if versions != list(range(run.version + 1)):
        return [f"P8: it is at version {run.version}, and history has {versions}"]
    path = [(stay.state, stay.attempt) for stay in stays(history)]
    found = [] if path == expected.path else [f"order: it went {path}, not {expected.path}"]
    if (run.state, run.status) != (expected.end, "done"):
        found.append(f"P9: it is {run.status} in {run.state}, not done in {expected.end}")
    return found


def _order_faults(lines: list[Line], there: list[Stay]) -> list[str]:
    """P1: a step begins in a state, visit and attempt that history has, and never one whose commit was there before."""
    known, found = 0, []
    real = {(stay.state, stay.visit, stay.attempt, stay.since) for stay in there}
    for line in lines:
        if line["what"] == "begin":
            if (line["state"], line["visit"], line["attempt"], line["version"]) not in real:
                found.append(f"order: history does not know of {_of(line)}")
            if line["version"] < known:
                found.append(f"P1: the commit of version {known} was in the store, and then began {_of(line)}")
        known = max(known, line["version"])
    return found


def _repeat_faults(lines: list[Line]) -> list[str]:
    """P3: in one process nothing begins twice, and it begins at most one attempt that another one had begun."""
    found = []
    lives: dict[int, list[Any]] = defaultdict(list)
    for line in lines:
        if line["what"] == "begin":
            lives[line["pid"]].append((line["state"], line["visit"], line["attempt"]))
    before: set[Any] = set()
    for pid, begun in lives.items():
        twice = [one for one, count in Counter(begun).items() if count > 1]
        again = [one for one in begun if one in before]
        if twice:
            found.append(f"P3: process {pid} began more than once: {twice}")
        elif len(again) > 1:
            found.append(f"P3: process {pid} repeated more than one attempt: {again}")
        before.update(begun)
    return found


def _early_faults(lines: list[Line], there: list[Stay]) -> list[str]:
    """P2: before the first sign of the commit that ended an attempt, its step had come to its end."""
    seen, ended = [], set()
    first: dict[int, int] = {}
    for number, line in enumerate(lines):
        seen.append(line["version"])
        first.setdefault(line["version"], number)
        if line["what"] in ("end", "fail"):
            ended.add((line["state"], line["visit"], line["attempt"], number))
    found = []
    for stay in there:
        sign = next((number for number, version in enumerate(seen) if version >= stay.until), len(lines))
        mine = (stay.state, stay.visit, stay.attempt)
        if not any(one[:3] == mine and one[3] < sign for one in ended):
            found.append(f"P2: version {stay.until} was there before the end of {mine}")
    return found


def _data_faults(run: Run, history: list[Entry], expected: Expected) -> list[str]:
    """P4: the data tell of exactly the steps whose moves are in history."""
    trail, chain = [], ""
    for stay in stays(history):
        if stay.event == "$done":
            trail.append([stay.state, stay.visit, stay.attempt])
            chain = chained(chain, *trail[-1])
    found = [] if run.data["trail"] == trail else [f"P4: its data tell of {run.data['trail']}, its history of {trail}"]
    if run.data["chain"] != chain:
        found.append("P4: the chain of its steps is not that of its history")
    if run.data["blob"] != expected.blob:
        found.append("P4: its 64 KB of text are not what the steps made of them")
    return found


def _action_faults(lines: list[Line], history: list[Entry], expected: Expected) -> list[str]:
    """An action runs after its commit, at least once, before the next step and never after the next commit."""
    found = []
    for move in history[1:]:
        name = expected.actions.get((move.source, move.dest)) if move.event == "$done" else None
        here = [n for n, line in enumerate(lines) if line["what"] == "action" and line["version"] == move.version]
        if name is None:
            found += [f"action: version {move.version} names none, and one ran"] if here else []
            continue
        begun = [
            n for n, line in enumerate(lines) if line["what"] in ("begin", "over") and line["version"] >= move.version
        ]
        later = [n for n, line in enumerate(lines) if line["version"] > move.version]
        if not here or (begun and here[0] > begun[0]):
            found.append(f"action: {name!r} of version {move.version} did not run before what came next")
        if later and here and here[-1] > later[0]:
            found.append(f"action: {name!r} of version {move.version} ran after the next commit")
        if max(Counter(lines[n]["pid"] for n in here).values(), default=0) > 1:
            found.append(f"action: {name!r} of version {move.version} ran twice in one process")
    return found


def _call_faults(lines: list[Line]) -> list[str]:
    """A call is not paid again once its result was stored, and who asks again is given that result."""
    found: list[str] = []
    owner: dict[str, tuple[str, int]] = {}
    stored: dict[str, set[str]] = defaultdict(set)
    lives: Counter[tuple[str, int]] = Counter()
    for line in lines:
        if line["what"] == "pay":
            owner[line["token"]] = (line["call"], line["times"])
            lives[line["call"], line["pid"]] += 1
            if len(stored[line["call"]]) >= line["times"] or lives[line["call"], line["pid"]] > line["times"]:
                found.append(f"call: {line['call']} was paid again in process {line['pid']}")
        for token in line.get("tokens", ()):
            if token in owner:
                stored[owner[token][0]].add(token)
    for call, tokens in stored.items():
        times = max(times for name, times in owner.values() if name == call)
        if len(tokens) > times:
            found.append(f"call: {call} had {len(tokens)} results where it was made {times} times")
    return found


def _of(line: Line) -> str:
    return f"{line['state']} (visit {line['visit']}, attempt {line['attempt']}, version {line['version']})"
