"""What is done on the thread of a connection to SQLite: batches of writes, each one transaction, and whole runs."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fsmworkflow.codec import decode
from fsmworkflow.errors import LeaseLost, Refused, RunNotFound, RunOver, Stale, StoreError
from fsmworkflow.records import Event, Move, Post, Run, replace
from fsmworkflow.store import Entries, Keys, Limits, Runs, rows
from fsmworkflow.store.kin import relate_sqlite
from fsmworkflow.store.sql import queries
from fsmworkflow.store.writer import Write

T = TypeVar("T")
SQL = queries("sqlite")
REFUSED = (
    sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError,
    OverflowError, ValueError,
)  # fmt: skip


def refused(error: BaseException) -> bool:
    """Whether it is for what was to be written that SQLite does not take it, so that it never will."""
    return isinstance(error, REFUSED) or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR


class Mixed(Exception):
    """A row of the batch was not hit: it is rolled back and made row by row."""


def transaction(db: sqlite3.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    """BEGIN IMMEDIATE, because a deferred one that reads and then writes fails at once where another writes."""
    db.execute("BEGIN IMMEDIATE")
    try:
        result = function(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return result


def write(db: sqlite3.Connection, batch: Sequence[Write], now: float) -> None:
    """A batch whole, or, where a row of it was not hit or not taken, write by write."""
    try:
        transaction(db, lambda db: _batch(db, batch, now))
    except Exception as error:
        if not (isinstance(error, Mixed) or refused(error)):
            raise
        _singly(db, batch, now)


def _batch(db: sqlite3.Connection, batch: Sequence[Write], now: float) -> None:
    """All writes of a batch, those of one kind together. Raises Mixed where a row was not hit."""
    moves: list[Move] = []
    posts: list[Write] = []
    for write in batch:
        write.error = None  # of an attempt before
        if write.kind == "move":
            moves.append(write.record)
        elif write.kind == "post":
            posts.append(write)
        else:
            _SINGLE[write.kind](db, write, now)
            if write.error is not None:
                raise Mixed
    if moves and (due := _advance(db, moves, now)):
        for write in batch:
            if write.kind == "move":
                write.result = due.get(write.run.id)
    for write in posts:  # after the moves: what was decided without it is not made stale by it
        _single_post(db, write, now)


def _advance(db: sqlite3.Connection, moves: list[Move], now: float) -> dict[int, Keys]:
    """The moves, with all that is written beside them. Returns, by run, the other runs that each made due."""
    if events := [m for m in moves if m.event.id]:
        _take(db, events)
    known = [m for m in moves if not rows.is_new(m)] if events else moves
    running = [rows.running_values(m) for m in known if rows.stays_running(m)]
    others = [rows.advance_values(m) for m in known if not rows.stays_running(m)] if len(running) < len(known) else []
    _each(db, "advance_running", running)
    _each(db, "advance", others)
    if ended := [(m.after.version, m.before.id) for m in moves if rows.drops(m.before, m.after)]:
        db.executemany(SQL["drop"], ended)
    db.executemany(SQL["move"], [rows.move_values(m) for m in moves])
    if large := [v for m in moves if m.changes and m.after.hashes for v in rows.large_fields(m.after, m.changes)]:
        db.executemany(SQL["field"], large)
    if forget := [(m.after.id, state, visit) for m in moves for state, visit in m.forget]:
        db.executemany(SQL["forget"], forget)
    for move in [m for m in moves if m.posts]:  # after all of the batch: what was decided without it is not made stale
        for post in move.posts:
            _emit(db, post, move.at)
    related = [m for m in moves if m.orders or m.after.child is not None]
    # What is left is left before any end is counted: such a count is no more.
    return {m.before.id: relate_sqlite(db, m, now) for m in sorted(related, key=lambda m: not m.orders)}


def _take(db: sqlite3.Connection, moves: list[Move]) -> None:
    """Mark events of the inbox; new ones are inserted, and their runs moved."""
    new = [m for m in moves if rows.is_new(m)]
    _each(db, "take", [rows.taken_values(m) for m in moves if not rows.is_new(m)])
    _each(db, "advance_new", [(*rows.advance_values(m), m.event.id) for m in new])
    _each(db, "event_taken", [rows.new_values(m) for m in new])


def _emit(db: sqlite3.Connection, post: Post, now: float) -> None:
    """Put an event into an inbox, once; where its run has ended it is kept as dropped."""
    row = db.execute(SQL["addressed"], (post.workflow, post.key)).fetchone()
    if row is None or _event(db, SQL["event"], (row[0], post.event.id)) is not None:
        return
    run, _, over = row
    values = rows.event_values(post.event, now)
    db.execute(SQL["event_taken"], (run, *values, "dropped" if over else "waiting", None, now))
    if not over:
        db.execute(SQL["posted"], (run, now, post.event.name))


def _each(db: sqlite3.Connection, block: str, values: Sequence[Sequence[Any]]) -> None:
    """One statement for each. Raises Mixed where one of them hit no row."""
    if values and db.executemany(SQL[block], values).rowcount != len(values):
        raise Mixed


def _singly(db: sqlite3.Connection, batch: Sequence[Write], now: float) -> None:
    """Each write in a transaction of its own, so that one bad row fails one run."""
    for write in batch:
        write.error = None
        try:
            transaction(db, lambda db, write=write: _SINGLE[write.kind](db, write, now))  # type: ignore[misc]
        except Mixed:
            write.error = missed(db, write.run)
        except Exception as error:
            if not refused(error):
                raise
            write.error = Refused(f"SQLite: {error}")


def advance_detailed(db: sqlite3.Connection, move: Move, now: float) -> Keys | None:
    """A move of which history may say more than of most, so that these do not pay for it."""
    due = _advance(db, [move], now).get(move.before.id)
    if move.detail is not None:
        db.execute(SQL["detail"], (move.detail, move.after.id, move.after.version))
    return due


def _single_move(db: sqlite3.Connection, write: Write, now: float) -> None:
    write.result = advance_detailed(db, write.record, now)


def missed(db: sqlite3.Connection, before: Run) -> StoreError | None:
    """Why a move was not made. One that is in the history was, by a COMMIT whose answer was lost."""
    if db.execute(SQL["moved"], (before.id, before.version + 1, before.owner, before.epoch)).fetchone():
        return None
    mine = (before.id, before.version, before.epoch, before.owner)
    return Stale.of(before) if db.execute(SQL["settled"], mine).fetchone() and before.owner else LeaseLost.of(before)


def _single_create(db: sqlite3.Connection, write: Write, now: float) -> None:
    run: Run = write.record
    row = db.execute(SQL["create"], rows.create_values(run)).fetchone()
    if row is None:
        write.result = runs(db, SQL["load"], (run.workflow, run.key))[0], False
        return
    run = replace(run, id=row[0])
    db.execute(SQL["move"], rows.start_values(run))
    db.executemany(SQL["field"], rows.large_fields(run, run.hashes))
    write.result = run, True


def _single_settle(db: sqlite3.Connection, write: Write, now: float) -> None:
    before, after = write.run, write.record
    if db.execute(SQL["settle"], rows.settle_values(before, after, now)).rowcount != 1:
        done = (after.id, after.version, after.epoch, after.owner)
        if after.owner == before.owner or db.execute(SQL["settled"], done).fetchone() is None:
            write.error = LeaseLost.of(before)
    elif rows.drops(before, after):
        db.execute(SQL["drop"], (after.version, before.id))


def _single_release(db: sqlite3.Connection, write: Write, now: float) -> None:
    db.execute(SQL["release"], (write.run.id, write.run.owner, write.run.epoch))


def _single_call(db: sqlite3.Connection, write: Write, now: float) -> None:
    call, run = write.record, write.run
    mine = (run.id, run.owner, run.epoch)
    values = (call.run, call.state, call.visit, call.name, call.nth, call.result.decode(), *mine)
    if db.execute(SQL["remember"], values).rowcount != 1 and db.execute(SQL["owned"], mine).fetchone() is None:
        write.error = LeaseLost.of(run)
    elif run.deaths:
        db.execute(SQL["survived"], mine)


def _single_post(db: sqlite3.Connection, write: Write, now: float) -> None:
    workflow, key, event = write.record
    row = db.execute(SQL["addressed"], (workflow, key)).fetchone()
    if row is None:
        write.error = RunNotFound(workflow, key)
        return
    run, status, over = row
    write.result = _event(db, SQL["event"], (run, event.id))
    if write.result is not None:
        return
    if over:
        write.error = RunOver(workflow, key, status)
        return
    (number,) = db.execute(SQL["post"], (*rows.event_values(event, now), run, now)).fetchone()
    event = rows.posted(event, number, now)
    db.execute(SQL["posted"], (run, event.due, event.name))
    write.result = rows.opened(event)


_SINGLE: dict[str, Callable[[sqlite3.Connection, Write, float], None]] = {
    "move": _single_move, "create": _single_create, "settle": _single_settle, "release": _single_release,
    "call": _single_call, "post": _single_post, "detailed": _single_move,
}  # fmt: skip


def mappings(cursor: sqlite3.Cursor) -> list[dict[str, Any]]:
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def runs(db: sqlite3.Connection, sql: str, values: Sequence[Any] | Mapping[str, Any]) -> Runs:
    """The runs that a statement returns, whole."""
    found = [rows.run_of(row) for row in mappings(db.execute(sql, values))]
    wanted = rows.wanted(found)
    if not wanted:
        return found
    texts = {(run, h): text for run, h, text in db.execute(SQL["fields"], (json.dumps(wanted),))}
    return [rows.filled(run, texts) for run in found]


def rooms(db: sqlite3.Connection, values: Mapping[str, Any], limits: Limits) -> dict[str, int]:
    """How many runs of each workflow with a limit may be claimed. Only one transaction at a time counts and claims."""
    driven = SQL["driven"]
    return {name: most - db.execute(driven, (name, values["now"])).fetchone()[0] for name, most in limits.items()}


def claimable(db: sqlite3.Connection, values: Mapping[str, Any], limits: Limits) -> list[int]:
    if limits:
        values = {**values, "rooms": json.dumps(rooms(db, values, limits))}
    return [row[0] for row in db.execute(SQL["claimable_within" if limits else "claimable"], values)]


def claimed(db: sqlite3.Connection, owner: str, values: Mapping[str, Any], limits: Limits) -> Runs:
    ids = claimable(db, values, limits)
    return runs(db, SQL["claim"], (owner, json.dumps(ids), values["now"]))


def _event(db: sqlite3.Connection, sql: str, values: tuple[int, int | str]) -> Event | None:
    found = mappings(db.execute(sql, values))
    return rows.event_of(found[0]) if found else None


def prune(db: sqlite3.Connection, which: Mapping[str, Any]) -> int:
    gone = [row[0] for row in db.execute(SQL["prune"], which).fetchall()]
    for block in ("prune_moves", "prune_events", "prune_calls", "prune_fields"):
        db.execute(SQL[block], (json.dumps(gone),))
    return len(gone)


def history(db: sqlite3.Connection, run: Run) -> Entries:
    def large(name: str) -> Any:
        found = db.execute(SQL["fields"], (json.dumps([[run.id, name]]),)).fetchone()
        if found is None:
            raise rows.gone(run)
        return decode(found[2])

    found = [rows.entry_of(row, large) for row in mappings(db.execute(SQL["history"], (run.id,)))]
    if not found:
        raise RunNotFound(run.workflow, run.key)
    return found
