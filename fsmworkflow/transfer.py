"""A run as one document, with all that is its own and the runs below it: out of one store, into another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from fsmworkflow.errors import FSMWorkflowError, RunNotFound, StoreError
from fsmworkflow.exports import (
    FORMAT,
    CallRow,
    Document,
    EventRow,
    FieldRow,
    Kept,
    MoveRow,
    RunRow,
    columns,
    read,
    record,
    written,
)
from fsmworkflow.records import Run
from fsmworkflow.store import Store
from fsmworkflow.store.sql import queries

__all__ = ["Document", "exported", "imported", "read", "written"]

LOOKS, PAUSE = 20, 0.05
"""How often a run that moves meanwhile is read, and the seconds between."""

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
    if not hasattr(store, "read_rows"):
        raise StoreError(f"{store.url} is in this process only: its runs are not exported")
    found: list[Mapping[str, Any]] = [dict(row) for row in await store.read_rows("load", workflow, key)]
    if not found:
        raise RunNotFound(workflow, key)
    for row in found:
        found += [dict(child) for child in await store.read_rows("run_children", row["id"])]
    return found


def _moment(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["id"], row["version"], row["posted"], row["epoch"], row["status"], row["actions"]


async def _kept(store: Any, row: Mapping[str, Any], *, first: bool) -> Kept:
    alone = dict.fromkeys(("parent", "parent_state", "parent_visit", "ordinal", "turn"), None) | {"depth": 0}
    number = row["id"]
    return Kept(
        record(RunRow, {**row, **(alone if first else {})}),
        tuple(record(MoveRow, one) for one in await store.read_rows("history", number)),
        tuple(record(EventRow, one) for one in await store.read_rows("run_events", number)),
        tuple(sorted((record(CallRow, one) for one in await store.read_rows("run_calls", number)), key=_order)),
        tuple(sorted((record(FieldRow, one) for one in await store.read_rows("run_fields", number)), key=_order)),
    )


def _order(one: CallRow | FieldRow) -> tuple[Any, ...]:
    """The same in every store: each sorts text in its own way."""
    return (one.hash,) if isinstance(one, FieldRow) else (one.state, one.visit, one.name, one.nth)


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
    return tuple(columns(row).values())
