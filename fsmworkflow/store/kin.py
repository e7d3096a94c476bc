"""Children in SQL: what a move says to them, and what the end of one says to its parent, in the move's own transaction.

Every statement looks at the rows as they are, so that a batch which is repeated changes nothing again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fsmworkflow.records import Move, Order
from fsmworkflow.store import Keys, rows
from fsmworkflow.store.sql import queries

if TYPE_CHECKING:
    from fsmworkflow.store.postgres_server import Connection

SQLITE, POSTGRES = queries("sqlite"), queries("postgres")


def told(orders: Iterable[Order]) -> Iterable[tuple[str, Order]]:
    """The events that orders are to the children, each with its order."""
    for order in orders:
        for name in ("$retry", "$unpause") if order.name == "$retry" else (order.name,):
            if name != "$begin":
                yield name, order


# -- SQLite: on the connection's thread, move by move ---------------------------------------------------------------


def relate_sqlite(db: sqlite3.Connection, move: Move, now: float) -> Keys:
    """All that a move does to other runs. Returns those that it made due."""
    due: Keys = []
    run, version = move.before.id, move.after.version
    if move.starts:
        _start(db, move)
    for name, order in told(move.orders):
        due += _tell(db, run, version, name, order, now)
    for order in move.orders:
        if order.name in ("$begin", "$retry"):
            due += _arm(db, run, version, order, now)
    if move.after.child is not None and rows.ends(move):
        due += _end(db, move, now)
    return due


def _start(db: sqlite3.Connection, move: Move) -> None:
    db.executemany(SQLITE["start_child"], [rows.child_values(run) for run in move.starts])
    visits = {(c.parent, c.state, c.visit) for run in move.starts if (c := run.child) is not None}
    db.executemany(SQLITE["children_begun"], list(visits))
    large = [
        (h, t, move.before.id, r.workflow, r.key) for r in move.starts for _, h, t in rows.large_fields(r, r.hashes)
    ]
    db.executemany(SQLITE["child_field"], large)


def _tell(db: sqlite3.Connection, run: int, version: int, name: str, order: Order, now: float) -> Keys:
    visit = (run, order.state, order.visit)
    if name in ("$cancel", "$pause"):
        db.execute(SQLITE["uncount"], (version, *visit))
    if name == "$cancel":
        db.execute(SQLITE["unbegun_cancelled"], (now, *visit))
        db.execute(SQLITE["cancel_unbegun"], (now, *visit))
    if name == "$retry":
        db.execute(SQLITE["children_going"], visit)
    values = {"event_id": f"{name}/{version}", "name": name, "now": now}
    values |= {"parent": run, "state": order.state, "visit": order.visit}
    db.execute(SQLITE["post_children"], values)
    return db.execute(SQLITE["children_posted"], values).fetchall()


def _arm(db: sqlite3.Connection, run: int, version: int, order: Order, now: float) -> Keys:
    """Count the children that have not ended, and give so many of them their turn as may have it."""
    visit = (run, order.state, order.visit)
    going, line, remaining, failed = db.execute(SQLITE["siblings"], visit).fetchone()
    due = not remaining or (order.first and failed > 0)
    many = 0 if due else max(order.concurrency - going, 0)
    event = (run, f"$joined/{order.state}/{version}", now, order.state, order.visit, "waiting" if due else "joining")
    if not db.execute(SQLITE["arm"], (*event, remaining, line + many, order.first, now)).rowcount:
        return []
    if due:
        return db.execute(SQLITE["told"], (run, now)).fetchall()
    return db.execute(SQLITE["turns"], (now, *visit, line, many)).fetchall()


def _end(db: sqlite3.Connection, move: Move, now: float) -> Keys:
    child = move.after.child
    assert child is not None
    had = db.execute(SQLITE["turn"], (move.after.id, move.after.version)).fetchone()
    if had is None:
        return []
    db.execute(SQLITE["count_end"], (move.after.id,))
    visit, freed = (child.parent, child.state, child.visit), had[0]
    counted = db.execute(SQLITE["count_down"], (now, move.after.status != "done", *visit, freed)).fetchone()
    if counted is None:
        return []
    status, following = counted
    if status == "waiting":
        return db.execute(SQLITE["told"], (child.parent, now)).fetchall()
    return db.execute(SQLITE["turns"], (now, *visit, following, freed)).fetchall()


# -- PostgreSQL: all moves of a batch together ----------------------------------------------------------------------


def kin_of(moves: Iterable[Move]) -> tuple[list[int], list[tuple[int, str, int]]]:
    """Which rows of others these moves write: the parents, by id, and the visits all of whose children they tell."""
    parents = [m.after.child.parent for m in moves if m.after.child is not None]
    return parents, [(m.before.id, o.state, o.visit) for m in moves for o in m.orders if o.name != "$begin"]


async def relate_postgres(connection: Connection, moves: Sequence[Move], now: float) -> dict[int, Keys]:
    """All that moves do to other runs. Returns, by run, those that each made due."""
    due: dict[int, Keys] = {}
    for parent, workflow, key, *_ in [*await _ordered(connection, moves, now), *await _ended(connection, moves, now)]:
        due.setdefault(parent, []).append((workflow, key))
    # What the end of a child made due is told to one of those that ended.
    by_child = {m.before.id: m.after.child.parent for m in moves if m.after.child is not None}
    mine = {m.before.id: due.pop(m.before.id, []) for m in moves if m.orders}
    return {run: [*mine.get(run, []), *due.pop(by_child.get(run, 0), [])] for run in [m.before.id for m in moves]}


async def _ordered(connection: Connection, moves: Sequence[Move], now: float) -> list[Any]:
    due: list[Any] = []
    if started := [run for m in moves for run in m.starts]:
        large = [(r.workflow, r.key, h, text) for r in started for _, h, text in rows.large_fields(r, r.hashes)]
        values = list(zip(*map(rows.child_values, started), strict=True))
        await connection.execute(POSTGRES["start_children"], *values, *(list(zip(*large, strict=True)) or [()] * 4))
    if said := [(m.before.id, o.state, o.visit, n, m.after.version, now) for m in moves for n, o in told(m.orders)]:
        due += await connection.fetch(POSTGRES["tell_children"], *zip(*said, strict=True))
    if counts := [(m, o) for m in moves for o in m.orders if o.name in ("$begin", "$retry")]:
        values = [
            (m.before.id, o.state, o.visit, f"$joined/{o.state}/{m.after.version}", o.concurrency, o.first, now)
            for m, o in counts
        ]
        due += await connection.fetch(POSTGRES["arm"], *zip(*values, strict=True))
    return due


async def _ended(connection: Connection, moves: Sequence[Move], now: float) -> list[Any]:
    ended = [(m.after.id, m.after.version) for m in moves if m.after.child is not None and rows.ends(m)]
    counted = await connection.fetch(POSTGRES["count_ends"], *zip(*ended, strict=True)) if ended else []
    return await connection.fetch(POSTGRES["count_down"], *zip(*counted, strict=True), now) if counted else []
