"""Records as rows of a table, and rows as records: what both dialects share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from fsmworkflow.codec import REFERENCE, Fields, encode, fields_of, text_of
from fsmworkflow.codec import read_back as value_of
from fsmworkflow.conditions import Seen
from fsmworkflow.errors import StoreUnavailable
from fsmworkflow.records import COUNTED, Action, Active, Call, Child, Entry, Event, Failure, Move, Run, Undoing, replace

_encode = msgspec.json.Encoder().encode
_active = msgspec.json.Decoder(dict[str, Active]).decode
_actions = msgspec.json.Decoder(tuple[Action, ...]).decode
_undoing = msgspec.json.Decoder(Undoing).decode
_failure = msgspec.json.Decoder(Failure).decode
_any = msgspec.json.Decoder().decode
_asked = msgspec.json.Decoder(tuple[Seen, ...]).decode
_Raw = msgspec.Raw

NOTHING = Undoing()
CHILD = ("parent", "parent_state", "parent_visit", "ordinal", "depth", "turn")

Value = str | int | float | None


class Row(Protocol):
    """A row of a table, whatever the driver makes of it: its values by the names of the columns."""

    def __getitem__(self, name: str, /) -> Any: ...


def text(value: Any) -> str:
    """A record's part as JSON text."""
    return _encode(value).decode()


def stored(fields: Fields, hashes: Mapping[str, str]) -> str:
    """Data as the row holds it: a large field as a reference to its text."""
    if hashes:
        fields = {**fields, **{k: _Raw(REFERENCE + h.encode() + b'"}') for k, h in hashes.items() if k in fields}}
    return text_of(fields).decode()


def references(fields: Fields) -> dict[str, str]:
    """The fields that stand as a reference, with their hashes. A user's own key is never spelled `$field`."""
    found = {}
    for key, raw in fields.items():
        if len(view := memoryview(raw)) < 64 and (spelled := bytes(view)).startswith(REFERENCE):
            found[key] = spelled[len(REFERENCE) : -2].decode()
    return found


def _undo(run: Run) -> str | None:
    return None if run.undo == NOTHING else text(run.undo)


def advance_values(move: Move) -> tuple[Value, ...]:
    """The parameters of the block `advance`."""
    run, before, at = move.after, move.before, move.at
    return (
        run.status, run.state, text(run.active), stored(run.fields, run.hashes), run.version, run.definition,
        run.structure, before.posted, run.due, at, at, run.owner, None if run.error is None else text(run.error),
        text(run.actions) if run.actions else None, _undo(run), run.deadline, run.deaths, run.updated, run.id,
        before.version, before.owner, before.epoch,
    )  # fmt: skip


def stays_running(move: Move) -> bool:
    """Whether a move leaves alone what indexes and claims look at. A running run is due, whatever was posted to it."""
    before, after = move.before, move.after
    return (
        after.status == "running" == before.status
        and after.due == before.due
        and after.owner == before.owner
        and after.structure == before.structure
        and after.definition == before.definition
        and after.deadline == before.deadline
    )


def running_values(move: Move) -> tuple[Value, ...]:
    """The parameters of the block `advance_running`."""
    run, before = move.after, move.before
    return (
        run.state, text(run.active), stored(run.fields, run.hashes), run.version,
        None if run.error is None else text(run.error), text(run.actions) if run.actions else None, _undo(run),
        run.deaths, run.updated, run.id, before.version, before.owner, before.epoch,
    )  # fmt: skip


def move_values(move: Move) -> tuple[Value, ...]:
    """The parameters of the block `move`."""
    run, before, event = move.after, move.before, move.event
    stay = before.active.get(event.state)
    error = event.failure or (run.error if run.error is not before.error else None)
    return (
        run.id, run.version, move.at, event.began, event.name, event.trigger, before.state, run.state, run.status,
        before.attempt if stay is None else stay.attempt, before.owner, before.epoch,
        stored(move.changes, run.hashes) if move.changes else None, text(move.removed) if move.removed else None,
        text(move.asked) if move.asked else None, None if error is None else text(error),
    )  # fmt: skip


NEVER_NULL = 17
"""So many of the `step_values`, from the first, are never None."""


def step_values(move: Move) -> tuple[Value, ...]:
    """The parameters of a move whose row and history are written by one statement: each value once.

    None stands for what the row has already, and for what is like another one.
    """
    run, before, event = move.after, move.before, move.event
    stay = before.active.get(event.state)
    # Posting may have made a row due earlier than `before` knows: one that was posted to is told when it is due.
    keeps = run.owner == before.owner and run.due == before.due and not before.posted
    error = None if run.error is None else text(run.error)
    failure = text(event.failure) if event.failure else error if run.error is not before.error else None
    return (
        run.id, run.status, run.state, text(run.active), stored(run.fields, run.hashes), run.version, run.definition,
        run.structure, before.posted, keeps, move.at, run.deaths, before.owner or "", before.epoch, event.name,
        before.state, before.attempt if stay is None else stay.attempt, None if keeps else run.due,
        None if keeps else run.owner, error, text(run.actions) if run.actions else None, _undo(run),
        None if run.updated == move.at else run.updated, event.began, event.trigger,
        stored(move.changes, run.hashes) if move.changes else None, text(move.removed) if move.removed else None,
        text(move.asked) if move.asked else None, failure, run.deadline,
    )  # fmt: skip


def start_values(run: Run) -> tuple[Value, ...]:
    """The parameters of the block `move` for the making of a run, version 0."""
    return (
        run.id, 0, run.created, None, "$start", None, "", run.state, run.status, 1, run.owner, run.epoch,
        stored(run.fields, run.hashes) if run.fields else None, None, None, None,
    )  # fmt: skip


def create_values(run: Run) -> tuple[Value, ...]:
    """The parameters of the block `create`."""
    return (
        run.workflow, run.key, run.definition, run.structure, run.status, run.state, text(run.active),
        stored(run.fields, run.hashes), run.version, run.due, run.owner, run.epoch, run.input, run.created, run.updated,
        text(run.actions) if run.actions else None, run.deadline,
    )  # fmt: skip


def child_values(run: Run) -> tuple[Value, ...]:
    """The parameters of the block that makes children."""
    child = run.child
    assert child is not None
    return (*create_values(run), child.parent, child.state, child.visit, child.ordinal, child.depth)


def related(move: Move) -> bool:
    """Whether a move says something to other runs: to its children, or, as the end of a child, to its parent."""
    return bool(move.orders) or (move.after.child is not None and ends(move))


def ends(move: Move) -> bool:
    """Whether a move ends its run, as a parent counts ends."""
    status = move.after.status
    return status in COUNTED and status != move.before.status


def settle_values(before: Run, after: Run, now: float) -> tuple[Value, ...]:
    """The parameters of the block `settle`."""
    return (
        text(after.actions) if after.actions else None, after.owner, None if after.error is None else text(after.error),
        before.posted, after.due, now, after.flight, before.id, before.version, before.owner, before.epoch,
    )  # fmt: skip


def large_fields(run: Run, changes: Iterable[str]) -> list[tuple[int, str, str]]:
    """The parameters of the block `field`: the large ones among the changed fields."""
    return [(run.id, run.hashes[k], bytes(run.fields[k]).decode()) for k in changes if k in run.hashes]


def sealed(event: Event) -> Event:
    """An event whose payload is JSON text, as stores keep it. Raises CodecError for what would not come back equal."""
    if not event.id:
        raise ValueError(f"event {event.name!r} has no id: by it a repeated one is known")
    encode([event.id, event.name, event.state], "event")
    return event if event.payload is None else replace(event, payload=_Raw(encode(event.payload, "payload")))


def is_new(move: Move) -> bool:
    """Whether a move takes an event from outside that is not in the inbox yet."""
    return bool(move.event.id) and not move.event.number


def sealed_move(move: Move) -> Move:
    """A move whose event, where it is new, can be stored. Raises CodecError before anything is written."""
    return replace(move, event=sealed(move.event)) if is_new(move) else move


def drops(before: Run, after: Run) -> bool:
    """Whether what still waits in the inbox goes with this write: the run is over, and something was posted to it."""
    return before.posted > 0 and after.over


def taking_values(move: Move) -> tuple[Value, ...]:
    """The parameters of the block `advance_event` after those of the move: of an event of the inbox only the answer."""
    forget = move.forget[0] if move.forget else (None, None)
    if move.event.number:
        return None, None, None, None, None, move.answer, *forget, move.event.number
    event_id, _, *event = event_values(move.event, move.at)
    return event_id, *event, move.answer, *forget, None


def taken_values(move: Move) -> tuple[Value, ...]:
    """The parameters of the block `take`."""
    return move.answer, move.after.version, move.event.number, move.before.id


def event_values(event: Event, now: float) -> tuple[Value, ...]:
    """What both dialects store of an event that is sealed, save its run and what became of it."""
    due = now if event.due is None else event.due
    payload = None if event.payload is None else bytes(event.payload).decode()
    return event.id, event.name, payload, due, event.state or None, event.visit


def new_values(move: Move) -> tuple[Value, ...]:
    """The parameters of the block `event_taken`: a new event with what the move made of it."""
    return move.before.id, *event_values(move.event, move.at), move.answer, move.after.version, move.at


def posted(event: Event, number: int, now: float) -> Event:
    """A sealed event as it stands in the inbox from now."""
    due = now if event.due is None else event.due
    return replace(event, number=number, due=due, status="waiting", version=None)


EVENT = ("name", "id", "state", "visit", "due", "status", "version", "number")
"""What is stored of an event beside its payload."""


def opened(event: Event) -> Event:
    """A sealed event as one reads it: its payload a private copy, and nothing in it that is not stored."""
    payload = None if event.payload is None else value_of(event.payload)
    return Event(payload=payload, **{name: getattr(event, name) for name in EVENT})


def event_of(row: Row) -> Event:
    """A row of fsm_events as an Event."""
    payload = None if row["payload"] is None else value_of(row["payload"])
    same = {name: row[name] for name in ("name", "visit", "due", "status", "version")}
    return Event(payload=payload, id=row["event_id"], state=row["state"] or "", number=row["id"], **same)


RUN = (
    "workflow", "key", "id", "status", "version", "definition", "structure", "due", "owner", "epoch", "posted",
    "deadline", "input", "deaths", "flight", "created", "updated",
)  # fmt: skip
"""What stands in a row of fsm_runs as in a Run."""


def run_of(row: Row) -> Run:
    """A row of fsm_runs as a Run; references to large fields still stand in it."""
    fields = fields_of(row["data"])
    return Run(
        active=_active(row["active"]),
        fields=fields,
        hashes=references(fields) if '{"$field":"' in row["data"] else {},
        error=None if row["error"] is None else _failure(row["error"]),
        actions=() if row["actions"] is None else _actions(row["actions"]),
        undo=NOTHING if row["undo"] is None else _undoing(row["undo"]),
        child=None if row["parent"] is None else Child(*(row[name] for name in CHILD)),
        **{name: row[name] for name in RUN},
    )


def call_of(row: Row) -> Call:
    """A row of fsm_calls as a Call."""
    name, result = row["name"], row["result"].encode()
    return Call(run=row["run"], state=row["state"], visit=row["visit"], name=name, nth=row["nth"], result=result)


def wanted(runs: Iterable[Run]) -> list[tuple[int, str]]:
    """The (run, hash) of every large field that these runs refer to."""
    return [(run.id, h) for run in runs for h in run.hashes.values()]


def filled(run: Run, texts: Mapping[tuple[int, str], str]) -> Run:
    """The run with its large fields in place of the references."""
    if not run.hashes:
        return run
    try:
        large = {key: _Raw(texts[run.id, h].encode()) for key, h in run.hashes.items()}
    except KeyError:
        raise gone(run) from None
    return replace(run, fields={**run.fields, **large})


def gone(run: Run) -> StoreUnavailable:
    """What reads a run in several statements while it is deleted: read again, and it is not there."""
    return StoreUnavailable(f"run {run.workflow}/{run.key} was deleted while it was read")


def referred(changes: Iterable[str | None]) -> list[str]:
    """The hashes of the large fields that some rows of history refer to."""
    return [h for one in changes if one and '{"$field":"' in one for h in references(fields_of(one)).values()]


ENTRY = (
    "version", "event", "source", "dest", "status", "at", "began", "attempt", "owner", "epoch", "trigger", "detail",
)  # fmt: skip
"""What stands in a row of fsm_moves as in an Entry."""


def entry_of(row: Row, large: Callable[[str], Any]) -> Entry:
    """A row of fsm_moves as an Entry; `large(hash)` gives the value of a large field."""
    changes = {} if row["changes"] is None else fields_of(row["changes"])
    hashes = references(changes)
    return Entry(
        changes={k: large(hashes[k]) if k in hashes else value_of(v) for k, v in changes.items()},
        removed=() if row["removed"] is None else tuple(_any(row["removed"])),
        asked=() if row["asked"] is None else _asked(row["asked"]),
        error=None if row["error"] is None else _failure(row["error"]),
        **{name: row[name] for name in ENTRY},
    )
