"""Points: places in the engine at which a process is told to die, each with a name, so that a test reaches them all."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

from fsmworkflow.store import postgres_server
from fsmworkflow.store.postgres import PostgresStore
from fsmworkflow.store.sqlite import SQLiteStore
from fsmworkflow.store.verbs import Verbs
from fsmworkflow.store.writer import Writer
from tests.ledger import Ledger

Here = Callable[[], None]

LINES = {"step begin": "begin", "step end": "end", "action": "action"}
"""What a step or an action writes to the ledger just before it dies."""
STATEMENTS = {"BEGIN": ("BEGIN",), "write": ("UPDATE", "INSERT", "WITH"), "COMMIT": ("COMMIT",)}
"""Statements of a transaction: SQLite's die before they are executed."""
POINTS = ("claim", "claimed", *LINES, *STATEMENTS, "acknowledgement")
LEAVING = ("release", "released")
"""Where a run is given back, which is when a process ends."""


def die_at(point: str, nth: int) -> None:
    """From now on this process ends by SIGKILL when it comes to a point for the `nth` time."""
    left = nth

    def here() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if point in LINES:
        _after_line(LINES[point], here)
    elif point in STATEMENTS:
        _at_statement_of_sqlite(STATEMENTS[point], here)
        _within_transaction_of_postgres(point, here)
    elif point == "acknowledgement":
        _before(Writer, "_over", here)
    elif point in LEAVING:
        for verb in ("release", "settle"):
            _round(Verbs, verb, here, before=point == "release")
    else:
        for kind, verb in ((Verbs, "claim"), (SQLiteStore, "claim_one"), (PostgresStore, "claim_one")):
            _round(kind, verb, here, before=point == "claim")


def _after_line(what: str, here: Here) -> None:
    write = Ledger.write

    def written(self: Ledger, said: str, ctx: Any = None, **more: Any) -> None:
        write(self, said, ctx, **more)
        if said == what:
            here()

    Ledger.write = written  # type: ignore[method-assign]


def _before(kind: type, name: str, here: Here) -> None:
    method = getattr(kind, name)

    @wraps(method)
    def first(self: Any, batch: Any, error: BaseException | None) -> None:
        if error is None:
            here()
        method(self, batch, error)

    setattr(kind, name, first)


def _round(kind: type, name: str, here: Here, *, before: bool) -> None:
    """Before a verb of the store is asked for, or after it has been done; a claim, to a run."""
    method = getattr(kind, name)

    @wraps(method)
    async def verb(*words: Any, **more: Any) -> Any:
        if before:
            here()
        found = await method(*words, **more)
        if not before and (found or "claim" not in name):
            here()
        return found

    setattr(kind, name, verb)


def _at_statement_of_sqlite(beginnings: tuple[str, ...], here: Here) -> None:
    connect = SQLiteStore._connect

    async def traced(self: SQLiteStore) -> Any:
        connection = await connect(self)
        await connection.set_trace_callback(lambda text: here() if text.lstrip().startswith(beginnings) else None)
        return connection

    SQLiteStore._connect = traced  # type: ignore[method-assign]


def _within_transaction_of_postgres(point: str, here: Here) -> None:
    """After BEGIN, with a batch of writes on its way, and before COMMIT is sent. A batch may be one statement alone."""
    if point == "write":
        attempt = Writer._attempt

        def attempted(self: Writer, batch: Any) -> None:
            attempt(self, batch)
            if getattr(self._start, "__qualname__", "").startswith("in_task"):
                asyncio.get_running_loop().call_soon(here)

        Writer._attempt = attempted  # type: ignore[method-assign]
        return
    transaction = postgres_server.transaction

    @asynccontextmanager
    async def watched(connection: Any, *words: Any, **more: Any) -> Any:
        async with transaction(connection, *words, **more) as within:
            if point == "BEGIN":
                here()
            yield within
            if point == "COMMIT":
                here()

    postgres_server.transaction = watched  # type: ignore[assignment]
