"""What a store weighs, by table and by workflow, and giving back the room of what was deleted."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from fsmworkflow.errors import StoreError
from fsmworkflow.store import Store
from fsmworkflow.store.sql import queries, statements

__all__ = ["Size", "TableSize", "WorkflowSize", "size", "vacuum"]


class TableSize(msgspec.Struct, frozen=True):
    """One table: its rows, and its bytes on disk with its indexes, None where this SQLite cannot tell them."""

    name: str
    rows: int
    bytes: int | None


class WorkflowSize(msgspec.Struct, frozen=True):
    """The runs of one workflow, how many of them have not ended, and the bytes of text that they hold."""

    name: str
    runs: int
    unfinished: int
    bytes: int


class Size(msgspec.Struct, frozen=True):
    """What a store weighs. `bytes` is its tables on PostgreSQL, on SQLite the file with its WAL."""

    bytes: int
    tables: tuple[TableSize, ...]
    workflows: tuple[WorkflowSize, ...]


async def size(store: Store) -> Size:
    """Rows and bytes of an open store. Reads every row once. Raises StoreError for a store that is in memory."""
    sql = _in_sql(store)
    rows = {row["name"]: row["many"] for row in await sql.read_rows("rows")}
    try:
        found = {row["name"]: int(row["bytes"]) for row in await sql.read_rows("bytes")}
    except StoreError as error:
        if "dbstat" not in str(error):
            raise
        found = {}
    weights = [
        WorkflowSize(row["workflow"], row["runs"], row["unfinished"], int(row["bytes"]))
        for row in await sql.read_rows("weights")
    ]
    path = getattr(store, "path", None)
    whole = sum(found.values()) if path is None else _file_bytes(path)
    return Size(whole, tuple(TableSize(name, many, found.get(name)) for name, many in rows.items()), tuple(weights))


async def vacuum(store: Store) -> None:
    """Give back the room of what was deleted, and bring the statistics up to date.

    On SQLite the file is written anew: other writers wait meanwhile, and as much free disk is needed as it is large. On
    PostgreSQL nobody waits, and the room is kept for new rows. Raises StoreUnavailable where others hold the file.
    """
    sql = _in_sql(store)
    if hasattr(store, "path"):
        todo = statements(queries("sqlite")["vacuum"])
        await sql._on(sql._check(), lambda db: [db.execute(one).fetchall() for one in todo])
    else:
        await _vacuum_tables(sql)


async def _vacuum_tables(store: Any) -> None:
    """On a connection of its own, as none of this may stand in a transaction."""
    from fsmworkflow.store.postgres_server import RESET_SECONDS, closed, saying

    connection = await store._connect()
    try:
        with saying(store.url):
            for one in statements(queries("postgres")["vacuum"]):
                await connection.execute(one, timeout=RESET_SECONDS)
    finally:
        await closed(connection)


def _in_sql(store: Store) -> Any:
    if not hasattr(store, "read_rows"):
        raise StoreError(f"{store.url} is in this process only: it has no size, and nothing to give back")
    return store


def _file_bytes(path: str) -> int:
    files = [path, f"{path}-wal", f"{path}-shm"]
    return sum(os.path.getsize(file) for file in files if os.path.exists(file))
