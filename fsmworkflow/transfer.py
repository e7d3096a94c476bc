"""A run as one document, with all that is its own and the runs below it: out of one store, into another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from fsmworkflow.errors import FSMWorkflowError, RunNotFound, StoreError
from fsmworkflow.records import Run, Status
from fsmworkflow.schedule import PREFIX
from fsmworkflow.store import Store
from fsmworkflow.store.rows import run_of
from fsmworkflow.store.sql import queries
from fsmworkflow.workflow import name_problem

__all__ = ["Document", "exported", "imported", "read", "written"]

FORMAT = 1
LOOKS, PAUSE = 20, 0.05
"""How often a run that moves meanwhile is read, and the seconds between."""
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


def read(text: bytes) -> Document:
    """The document that a text is. Raises StoreError for what is none, and runs nothing of it."""
    try:
        found = msgspec.json.decode(msgspec.json.format(text, indent=-1), type=Document)
        for kept in found.runs:
            run_of({**_row(kept.run), "owner": None, "flight": None})
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise StoreError(f"this is no run that fsmworkflow has exported: {error}") from error
    if problems := list(_problems(found)):
        raise StoreError(f"this is no run that can be imported: {problems[0]}")
    return found


def _problems(document: Document) -> Iterator[str]:
    if document.fsmworkflow != FORMAT:
        yield f"its format is {document.fsmworkflow}, this fsmworkflow reads {FORMAT}"
    if not document.runs:
        yield "it holds no run"
    ids: set[int] = set()
    for number, kept in enumerate(document.runs):
        run = kept.run
        yield from name_problem(run.workflow, "workflow name") + name_problem(run.key, "key")
        versions = [move.version for move in kept.moves]
        first = versions[1] if run.workflow.startswith(PREFIX) and len(versions) > 1 else 1
        if versions != [0, *range(first, run.version + 1)]:
            yield f"the history of {run.workflow}/{run.key} has gaps"
        if run.id in ids or (run.parent not in ids if number else run.parent is not None):
            yield f"{run.workflow}/{run.key} does not belong to the first run"
        ids.add(run.id)


# -- out --------------------------------------------------------------------------------------------------------------


async def exported(store: Store, workflow: str, key: str) -> Document:
    """A run with all that is its own, and the runs below it, as they are at one moment. The store keeps them.

    Raises RunNotFound, and StoreError for a store in memory or a run that does not stand still for a second.
    """
    for _ in range(LOOKS):
        rows = await _family(store, workflow, key)
        kept = [await _kept(store, row, first=number == 0) for number, row in enumerate(rows)]
        if [_moment(row) for row in await _family(store, workflow, key)] == [_moment(row) for row in rows]:
            return Document(fsmworkflow=FORMAT, runs=tuple(kept))
        await asyncio.sleep(PAUSE)
    raise StoreError(f"run {workflow}/{key} moves all the time: pause it first, or stop who drives it")


async def _family(store: Any, workflow: str, key: str) -> list[Mapping[str, Any]]:
    """The row of a run, and those of the runs below it."""
    if not hasattr(store, "_read_rows"):
        raise StoreError(f"{store.url} is in this process only: its runs are not exported")
    found: list[Mapping[str, Any]] = [dict(row) for row in await store._read_rows("load", workflow, key)]
    if not found:
        raise RunNotFound(workflow, key)
    for row in found:
        found += [dict(child) for child in await store._read_rows("run_children", row["id"])]
    return found


def _moment(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["id"], row["version"], row["posted"], row["epoch"], row["status"], row["actions"]


async def _kept(store: Any, row: Mapping[str, Any], *, first: bool) -> Kept:
    alone = dict.fromkeys(("parent", "parent_state", "parent_visit", "ordinal", "turn"), None) | {"depth": 0}
    number = row["id"]
    return Kept(
        _record(RunRow, {**row, **(alone if first else {})}),
        tuple(_record(MoveRow, one) for one in await store._read_rows("history", number)),
        tuple(_record(EventRow, one) for one in await store._read_rows("run_events", number)),
        tuple(sorted((_record(CallRow, one) for one in await store._read_rows("run_calls", number)), key=_order)),
        tuple(sorted((_record(FieldRow, one) for one in await store._read_rows("run_fields", number)), key=_order)),
    )


def _order(one: CallRow | FieldRow) -> tuple[Any, ...]:
    """The same in every store: each sorts text in its own way."""
    return (one.hash,) if isinstance(one, FieldRow) else (one.state, one.visit, one.name, one.nth)


def _record(kind: type[Record], row: Mapping[str, Any]) -> Record:
    values = {}
    for field in msgspec.structs.fields(kind):
        value = row[field.name]
        values[field.name] = value if field.type is not Text else NULL if value is None else Text(value.encode())
    return kind(**values)


# -- in ---------------------------------------------------------------------------------------------------------------


async def imported(store: Store, document: Document) -> tuple[Run, bool]:
    """Put the runs of a document into a store, in one transaction, as nobody's. Returns the first, and if it is new.

    One that is there as it stands in the document is left as it is, so that a repeat changes nothing. Raises
    StoreError, and writes nothing, where another run has one of the keys.
    """
    if not (there := await _there(store, document)):
        try:
            await _put(store, document)
        except StoreError:  # the answer to a COMMIT may have been lost, and then it is there
            if not await _there(store, document):
                raise
    first = document.runs[0].run
    run = await store.load(first.workflow, first.key)
    if run is None:
        raise RunNotFound(first.workflow, first.key)
    return run, not there


async def _there(store: Store, document: Document) -> bool:
    """Whether the first run is there already, as it is in the document. Raises StoreError for another one."""
    first = document.runs[0].run
    try:
        found = await exported(store, first.workflow, first.key)
    except RunNotFound:
        return False
    if [_alike(one) for one in found.runs] == [_alike(one) for one in document.runs]:
        return True
    raise _taken(first)


def _taken(run: RunRow) -> FSMWorkflowError:
    return StoreError(f"there is a run {run.workflow}/{run.key} already, and it is not this one: nothing was imported")


def _alike(kept: Kept) -> tuple[Any, ...]:
    run = msgspec.structs.replace(kept.run, id=0, parent=None)
    return (*(msgspec.json.encode(one) for one in (run, kept.moves, kept.events, kept.calls, kept.fields)),)


async def _put(store: Any, document: Document) -> None:
    if hasattr(store, "path"):
        await store._do(lambda db: _insert_sqlite(db, document))
    else:
        await store._do(lambda db: _insert_postgres(store, db, document))


def _insert_sqlite(db: Any, document: Document) -> None:
    sql, ids = queries("sqlite"), dict[int, int]()
    for kept in document.runs:
        found = db.execute(sql["import_run"], _values(_adopted(kept.run, ids))[1:]).fetchone()
        if found is None:
            raise _taken(kept.run)
        ids[kept.run.id] = found[0]
        for block, rows in _beside(kept):
            db.executemany(sql[block], [(found[0], *_values(row)) for row in rows])


async def _insert_postgres(store: Any, db: Any, document: Document) -> None:
    sql, ids = queries("postgres"), dict[int, int]()
    async with store._transaction(db, several=True):
        for kept in document.runs:
            found = await db.fetchval(sql["import_run"], *_values(_adopted(kept.run, ids))[1:])
            if found is None:
                raise _taken(kept.run)
            ids[kept.run.id] = found
            for block, rows in _beside(kept):
                await db.executemany(sql[block], [(found, *_values(row)) for row in rows])


def _adopted(run: RunRow, ids: Mapping[int, int]) -> RunRow:
    return run if run.parent is None else msgspec.structs.replace(run, parent=ids[run.parent])


def _beside(kept: Kept) -> Iterator[tuple[str, Sequence[msgspec.Struct]]]:
    yield "import_move", kept.moves
    yield "import_event", kept.events
    yield "import_call", kept.calls
    yield "import_field", kept.fields


def _values(row: msgspec.Struct) -> tuple[Any, ...]:
    return tuple(_row(row).values())


def _row(row: msgspec.Struct) -> dict[str, Any]:
    """A record as the columns of its table, JSON as the text that it was."""
    return {field.name: _column(field, getattr(row, field.name)) for field in msgspec.structs.fields(row)}


def _column(field: Any, value: Any) -> Any:
    if field.type is not Text:
        return value
    text = bytes(value)
    return None if text == b"null" and not field.required else text.decode()
