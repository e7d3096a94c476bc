"""What a connection to PostgreSQL is asked: the writes of a batch, each kind at once, and whole runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from fsmworkflow.codec import decode
from fsmworkflow.errors import LeaseLost, Refused, RunNotFound, RunOver, Stale, StoreUnavailable
from fsmworkflow.records import Move, Run, replace
from fsmworkflow.store import Entries, Limits, Runs, rows
from fsmworkflow.store.kin import relate_postgres
from fsmworkflow.store.postgres_server import SQL
from fsmworkflow.store.writer import Write

if TYPE_CHECKING:
    from fsmworkflow.store.postgres_server import Connection


def columns(values: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Rows as the arrays that `unnest` makes rows of again."""
    return list(zip(*values, strict=True))


def arrays(values: Sequence[Sequence[Any]], many: int) -> list[tuple[Any, ...]]:
    """Rows, or none, as so many arrays."""
    return columns(values) or [()] * many


def _packed(values: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Moves as arrays, without what says nothing: the driver takes half a microsecond for each element of an array."""
    packed: list[tuple[Any, ...]] = []
    for column in zip(*values, strict=True):
        same = column.count(column[0]) == len(column)
        if same and column[0] is None:
            column = ()
        elif same and len(packed) < rows.NEVER_NULL:
            column = column[:1]
        packed.append(column)
    return packed


async def advance(connection: Connection, writes: list[Write], now: float) -> None:
    moves: list[Move] = [write.record for write in writes]
    if len({move.before.id for move in moves}) < len(moves):
        raise Refused("a run stands twice in one batch, and one statement cannot move it twice")
    values = [rows.step_values(move) for move in moves]
    large = [v for m in moves if m.changes and m.after.hashes for v in rows.large_fields(m.after, m.changes)]
    forget = [(m.after.id, state, visit) for m in moves for state, visit in m.forget]
    events = [m for m in moves if m.event.id]
    ended = [(m.after.version, m.before.id) for m in moves if rows.drops(m.before, m.after)]
    if len(moves) == 1 and events and len(forget) < 2 and not large and not ended:
        done = await connection.execute(SQL["advance_event"], *values[0], *rows.taking_values(moves[0]))
    elif large or forget or events or ended:
        new = [rows.new_values(m) for m in events if rows.is_new(m)]
        old = [rows.taken_values(m) for m in events if not rows.is_new(m)]
        beside = [*arrays(large, 3), *arrays(forget, 3), *arrays(new, 10), *arrays(old, 4), *arrays(ended, 2)]
        done = await connection.execute(SQL["advance_with"], *_packed(values), *beside)
    elif len(values) == 1:
        done = await connection.execute(SQL["advance"], *values[0])
    else:
        done = await connection.execute(SQL["advance_many"], *_packed(values))
    if done != f"INSERT 0 {len(moves)}":
        await resolve(connection, writes)
    await _tell_others(connection, writes, now)


async def _tell_others(connection: Connection, writes: list[Write], now: float) -> None:
    """What moves that were made say to other runs."""
    if posts := [post for write in writes if write.error is None for post in write.record.posts]:
        emitted = [(*rows.event_values(post.event, now), post.workflow, post.key) for post in posts]
        await connection.execute(SQL["emit"], *columns(emitted), now)
    if related := [w for w in writes if w.error is None and w.result is not True and rows.related(w.record)]:
        due = await relate_postgres(connection, [write.record for write in related], now)
        for write in related:
            write.result = due.get(write.run.id)


async def advance_detailed(connection: Connection, writes: list[Write], now: float) -> None:
    """Moves of which history says more than of most, so that these do not pay for it."""
    await advance(connection, writes, now)
    made = [(w.record.after.id, w.record.after.version, w.record.detail) for w in writes if w.error is None]
    await connection.execute(SQL["detail"], *arrays(made, 3))


async def resolve(connection: Connection, writes: list[Write]) -> None:
    """Not every move hit its row. One that is in the history was made, now or by a COMMIT whose answer was lost."""
    mine = [(w.run.id, w.record.after.version, w.run.owner, w.run.epoch) for w in writes]
    there = {row[0] for row in await connection.fetch(SQL["moved"], *columns(mine))}
    missed = [w.run for w in writes if w.run.id not in there]
    as_it_was = [(run.id, run.version, run.owner, run.epoch) for run in missed]
    held = {row[0] for row in await connection.fetch(SQL["held"], *arrays(as_it_was, 4))}
    for write in writes:
        number = write.run.id
        write.result = number in there
        write.error = None if number in there else Stale.of(write.run) if number in held else LeaseLost.of(write.run)


async def create(connection: Connection, writes: list[Write]) -> None:
    first: dict[tuple[str, str], Write] = {}
    for write in writes:
        first.setdefault((write.record.workflow, write.record.key), write)
    made_of: list[Run] = [write.record for write in first.values()]
    large = [(r.workflow, r.key, h, text) for r in made_of for _, h, text in rows.large_fields(r, r.hashes)]
    values = columns([rows.create_values(run) for run in made_of]) + arrays(large, 4)
    made = {(w, k): number for number, w, k, _ in await connection.fetch(SQL["create"], *values)}
    for name, write in first.items():
        write.result = (replace(write.record, id=made[name]), True) if name in made else None
    others = [w for w in writes if (name := (w.record.workflow, w.record.key)) not in made or first[name] is not w]
    if others:
        await _look_up(connection, others)


async def _look_up(connection: Connection, writes: list[Write]) -> None:
    """The runs whose keys were taken."""
    names = {(write.record.workflow, write.record.key) for write in writes}
    there = {(r.workflow, r.key): r for r in await runs(connection, SQL["load_many"], *columns(list(names)))}
    for write in writes:
        run = there.get((write.record.workflow, write.record.key))
        if run is None:
            raise StoreUnavailable(f"run {write.record.workflow}/{write.record.key} was deleted while it was looked up")
        write.result = run, False


async def _settle(connection: Connection, writes: list[Write], now: float) -> None:
    values = columns([rows.settle_values(write.run, write.record, now) for write in writes])
    ended = [(w.record.version, w.run.id) for w in writes if rows.drops(w.run, w.record)]
    hit = {row[0] for row in await connection.fetch(SQL["settle"], *values, *arrays(ended, 2))}
    late = [write for write in writes if write.run.id not in hit]
    if not late:
        return
    # One that let the run go may have been made by a COMMIT whose answer was lost.
    done = columns([(w.run.id, w.run.version, w.run.epoch, w.record.owner) for w in late])
    there = {row[0] for row in await connection.fetch(SQL["settled"], *done)}
    for write in late:
        if write.record.owner == write.run.owner or write.run.id not in there:
            write.error = LeaseLost.of(write.run)


async def _release(connection: Connection, writes: list[Write], now: float) -> None:
    await connection.execute(SQL["release"], *columns([(w.run.id, w.run.owner, w.run.epoch) for w in writes]))


async def _remember(connection: Connection, writes: list[Write], now: float) -> None:
    calls = [(c.run, c.state, c.visit, c.name, c.nth, c.result.decode()) for c in (w.record for w in writes)]
    values = [(*call, w.run.owner, w.run.epoch) for call, w in zip(calls, writes, strict=True)]
    held = {row[0] for row in await connection.fetch(SQL["remember"], *columns(values))}
    for place, write in enumerate(writes, 1):
        if place not in held:
            write.error = LeaseLost.of(write.run)
    if survived := [w.run.id for w in writes if w.run.deaths and w.error is None]:
        await connection.execute(SQL["survived"], survived)


async def _post(connection: Connection, writes: list[Write], now: float) -> None:
    """Events into inboxes. Those of them that were there, or have no inbox to go to, are looked up."""
    first: dict[tuple[str, str, str], Write] = {}
    for write in writes:
        workflow, key, event = write.record
        first.setdefault((workflow, key, event.id), write)
    values = [(*rows.event_values(w.record[2], now), *w.record[:2]) for w in first.values()]
    made = {(w, k, e): number for w, k, e, number, _ in await connection.fetch(SQL["post"], *columns(values), now)}
    for name, number in made.items():
        first[name].result = rows.opened(rows.posted(first[name].record[2], number, now))
    others = [w for w in writes if (name := (*w.record[:2], w.record[2].id)) not in made or first[name] is not w]
    if others:
        await _addressed(connection, others)


async def _addressed(connection: Connection, writes: list[Write]) -> None:
    names = [(w.record[0], w.record[1], w.record[2].id) for w in writes]
    found = await connection.fetch(SQL["addressed"], *columns(names))
    there = {(row["to_workflow"], row["to_key"], row["wanted"]): row for row in found}
    for write, (workflow, key, event_id) in zip(writes, names, strict=True):
        row = there.get((workflow, key, event_id))
        if row is None:
            write.error = RunNotFound(workflow, key)
        elif row["id"] is not None:
            write.result = rows.event_of(row)
        elif row["over"]:
            write.error = RunOver(workflow, key, row["run_status"])
        else:
            raise StoreUnavailable(f"run {workflow}/{key} was made while an event was posted to it")


KINDS: dict[str, Callable[[Connection, list[Write], float], Awaitable[None]]] = {
    "call": _remember, "move": advance, "detailed": advance_detailed, "settle": _settle, "release": _release,
    "post": _post,  # last: what was decided without it is not made stale by it
}  # fmt: skip


async def runs(connection: Connection, sql: str, *values: Any) -> Runs:
    """The runs that a statement returns, whole."""
    found = [rows.run_of(row) for row in await connection.fetch(sql, *values)]
    wanted = rows.wanted(found)
    if not wanted:
        return found
    texts = await _texts(connection, wanted)
    return [rows.filled(run, texts) for run in found]


async def rooms(connection: Connection, limits: Limits) -> dict[str, int]:
    """How many runs of each workflow with a limit may be claimed before the end of this transaction."""
    await connection.execute(SQL["limits_lock"])
    return {name: most - await connection.fetchval(SQL["driven"], name) for name, most in limits.items()}


async def _texts(connection: Connection, wanted: list[tuple[int, str]]) -> dict[tuple[int, str], str]:
    found = await connection.fetch(SQL["fields"], *columns(wanted))
    return {(run, h): text for run, h, text in found}


async def history(connection: Connection, run: Run) -> Entries:
    found = await connection.fetch(SQL["history"], run.id)
    if not found:
        raise RunNotFound(run.workflow, run.key)
    wanted = {(run.id, h) for h in rows.referred(row["changes"] for row in found)}
    texts = await _texts(connection, list(wanted)) if wanted else {}
    if len(texts) < len(wanted):
        raise rows.gone(run)
    return [rows.entry_of(row, lambda h: decode(texts[run.id, h])) for row in found]
