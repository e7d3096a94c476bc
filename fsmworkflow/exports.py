"""A run as a document: its records, as people read them in JSON, and what must hold of one that somebody brings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from fsmworkflow.errors import StoreError, name_problem
from fsmworkflow.records import Status
from fsmworkflow.schedule import PREFIX
from fsmworkflow.store.rows import entry_of, event_of, referred, run_of

__all__ = [
    "CallRow",
    "Document",
    "EventRow",
    "FieldRow",
    "Kept",
    "MoveRow",
    "RunRow",
    "columns",
    "read",
    "record",
    "written",
]

FORMAT = 1
LIMIT = 64_000_000
"""So many bytes of a document are read."""
WHOLE, LATEST = 2**53, 253_402_300_800.0
"""Whole numbers are below the first, and times before the year 10000."""
ANSWERS = ("waiting", "joining", "accepted", "rejected", "dropped")
NULL = msgspec.Raw(b"null")

Text = msgspec.Raw
"""A column that holds JSON text: written into the document as what it says, and read back as the same text."""
Record = TypeVar("Record", bound=msgspec.Struct)


class RunRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of fsm_runs, but for who drives it. `id` and `parent` are ids in this document."""

    id: int
    workflow: str
    key: str
    definition: int
    structure: str
    status: Status
    state: str
    active: Text
    data: Text
    version: int
    due: float | None
    epoch: int
    posted: int
    error: Text = NULL
    actions: Text = NULL
    undo: Text = NULL
    input: str
    parent: int | None
    parent_state: str | None
    parent_visit: int | None
    ordinal: int | None
    joining: Text = NULL
    deadline: float | None
    deaths: int
    created: float
    updated: float
    turn: int | None
    depth: int


class MoveRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of fsm_moves."""

    version: int
    at: float
    began: float | None
    event: str
    trigger: str | None
    source: str
    dest: str
    status: Status
    attempt: int
    owner: str | None
    epoch: int
    changes: Text = NULL
    removed: Text = NULL
    asked: Text = NULL
    error: Text = NULL
    detail: str | None


class EventRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of fsm_events; their order is that of their posting."""

    event_id: str
    name: str
    payload: Text = NULL
    due: float
    state: str | None
    visit: int | None
    status: str
    version: int | None
    remaining: int | None
    created: float
    next: int | None
    first: int | None


class CallRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of fsm_calls: a remembered result."""

    state: str
    visit: int
    name: str
    nth: int
    result: Text


class FieldRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of fsm_fields: a large field's text, to which rows and moves refer by its hash."""

    hash: str
    text: Text


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run with its moves, events, remembered calls and large fields."""

    run: RunRow
    moves: tuple[MoveRow, ...]
    events: tuple[EventRow, ...] = ()
    calls: tuple[CallRow, ...] = ()
    fields: tuple[FieldRow, ...] = ()


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run and those below it, parents first. `fsmworkflow` is the version of this format."""

    fsmworkflow: int
    runs: tuple[Kept, ...]


def written(document: Document) -> bytes:
    """The document as JSON, for people to read too."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def read(text: bytes, *, limit: int = LIMIT) -> Document:
    """The document that a text is. Raises StoreError for what is none, and runs nothing of it."""
    if len(text) > limit:
        raise StoreError(f"this is no run that can be imported: it has more than {limit:,} bytes")
    try:
        found = msgspec.json.decode(msgspec.json.format(text, indent=-1), type=Document)
        problem = next(_problems(found), None)
    except (msgspec.MsgspecError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError) as error:
        raise StoreError(f"this is no run that fsmworkflow has exported: {error}"[:400]) from error
    if problem is not None:
        raise StoreError(f"this is no run that can be imported: {problem}")
    return found


def _problems(document: Document) -> Iterator[str]:
    if document.fsmworkflow != FORMAT:
        yield f"its format is {document.fsmworkflow}, this fsmworkflow reads {FORMAT}"
    if not document.runs:
        yield "it holds no run"
    depths: dict[int, int] = {}
    for number, kept in enumerate(document.runs):
        run, name = kept.run, f"{kept.run.workflow:.200}/{kept.run.key:.200}"
        yield from name_problem(run.workflow, "workflow name") + name_problem(run.key, "key")
        for row in (run, *kept.moves, *kept.events, *kept.calls):
            yield from _beyond(row, name)
        yield from _unsound(kept, name)
        whose = (run.parent, run.parent_state, run.parent_visit, run.ordinal)
        child = number > 0 and None not in whose and depths.get(run.parent or 0) == run.depth - 1
        if run.id in depths or not (child if number else whose == (None,) * 4 and run.depth == 0):
            yield f"{name} does not belong to the first run"
        depths[run.id] = run.depth


def _beyond(row: msgspec.Struct, run: str) -> Iterator[str]:
    """The values of a row that no store keeps, or that would be none after some moves."""
    for name in row.__struct_fields__:
        value = getattr(row, name)
        if isinstance(value, int) and not 0 <= value < WHOLE:
            yield f"{name} of {run} is no number that can be kept"
        elif isinstance(value, float) and not -LATEST < value < LATEST:
            yield f"{name} of {run} is no time: {value:.3g}"
        elif isinstance(value, str) and "\0" in value:
            yield f"{name} of {run} holds NUL"


def _unsound(kept: Kept, name: str) -> Iterator[str]:
    """What a run, its history and its events say that cannot be, once each of them is read as a store reads it."""
    run, large = kept.run, {field.hash: bytes(field.text) for field in kept.fields}
    made = run_of({**columns(run), "owner": None, "flight": None})
    if not made.active or made.state != run.state:
        yield f"the state of {name} is not where its active states are"
    if any(not 0 <= stay.visit <= run.version for stay in made.active.values()):
        yield f"a visit of {name} is none of its versions"
    if any(hashlib.blake2b(text, digest_size=16).hexdigest() != told for told, text in large.items()):
        yield f"a large field of {name} is not that of its hash"
    if not {*made.hashes.values(), *referred(columns(move)["changes"] for move in kept.moves)} <= large.keys():
        yield f"a large field of {name} is missing"
    versions = [move.version for move in kept.moves]
    first = versions[1] if run.workflow.startswith(PREFIX) and len(versions) > 1 else 1
    if versions != [0, *range(first, run.version + 1)]:
        yield f"the history of {name} has gaps"
    made.to_dict()
    for move in kept.moves:
        entry_of(columns(move), large.get)
    for event in kept.events:
        event_of({**columns(event), "id": 0})
        if event.status not in ANSWERS:
            yield f"an event of {name} has no answer {event.status[:100]!r}"
    if len({event.event_id for event in kept.events}) < len(kept.events):
        yield f"two events of {name} have one id"


def record(kind: type[Record], row: Mapping[str, Any]) -> Record:
    """A row of a store as a record."""
    values = {}
    for field in msgspec.structs.fields(kind):
        value = row[field.name]
        values[field.name] = value if field.type is not Text else NULL if value is None else Text(value.encode())
    return kind(**values)


def columns(row: msgspec.Struct) -> dict[str, Any]:
    """A record as the columns of its table, JSON as the text that it was."""
    return {field.name: _column(field, getattr(row, field.name)) for field in msgspec.structs.fields(row)}


def _column(field: Any, value: Any) -> Any:
    if field.type is not Text:
        return value
    text = bytes(value)
    return None if text == b"null" and not field.required else text.decode()
