"""The writer's turn in a SQLite file, which a step has for its transaction on a connection of its own."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING

import aiosqlite

from fsmworkflow.errors import RolledBack, StoreError, StoreUnavailable, TransactionError, log
from fsmworkflow.records import Move, Run
from fsmworkflow.store import Keys
from fsmworkflow.store.lent import Lent, own_end
from fsmworkflow.store.sqlite_statements import Mixed, advance_detailed, missed
from fsmworkflow.store.writer import Writer, patiently

if TYPE_CHECKING:
    from fsmworkflow.store.sqlite import SQLiteStore
LENT_SECONDS = 5.0
"""How long a step's transaction may hold up all other writes."""


class SQLiteLent(Lent):
    """The writer's turn, on a connection that is the step's alone: whatever is done to it, the writer's is as it was.

    After 5 s it is rolled back, also in the middle of a statement.
    """

    alone = True

    def __init__(self, store: SQLiteStore, writer: Writer, run: Run) -> None:
        super().__init__(run)
        self._store = store
        self._writer = writer
        self._expired = False

    async def _begin(self) -> None:
        await self._writer.borrow()
        try:
            # No statement is kept: one that was prepared before would not be asked about again.
            connection = await self._store._connect(cached_statements=0)
            try:
                await patiently(lambda: self._attempt(connection))
            except BaseException:
                await connection.close()
                raise
        except BaseException:
            self._writer.give_back()
            raise
        connection.set_authorizer = self._refuse  # type: ignore[method-assign, assignment]
        self.connection = connection
        self.until = asyncio.get_running_loop().time() + LENT_SECONDS
        self._timer = asyncio.get_running_loop().call_at(self.until, self._expire)

    async def _refuse(self, *_: object) -> None:
        """The authorizer is ours: it keeps the step from ending its transaction."""
        raise own_end(self.where)

    async def _attempt(self, connection: aiosqlite.Connection) -> None:
        self._store._check()  # a store that was closed meanwhile lends nothing
        await self._store._on(connection, _lend)

    def _expire(self) -> None:
        if not self.over:
            self._expired = True
            self.drop()

    def said(self, error: BaseException) -> BaseException:
        """A refused COMMIT, and what follows when the connection is taken away, as a TransactionError."""
        late = isinstance(error, TimeoutError) and asyncio.get_running_loop().time() >= (self.until or math.inf)
        if self._expired or late:
            return self._too_long()
        return own_end(self.where) if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_AUTH else error

    async def _commit(self, move: Move) -> Keys | None:
        self._timer.cancel()
        try:
            own = self.connection
            due: Keys | None = await own._execute(_commit_lent, own._conn, move, self._store._named)
            return due
        finally:
            await self._give_back()

    async def _rollback(self) -> None:
        self._timer.cancel()
        try:
            self.connection._conn.interrupt()
            await self.connection._execute(_take_back, self.connection._conn)
        except (sqlite3.Error, ValueError) as error:  # closed by the step, which rolled it back
            log.debug("%s: %s", self.where, error)
        finally:
            await self._give_back()

    async def _give_back(self) -> None:
        try:
            await self.connection.close()
        finally:
            self._writer.give_back()


def _lend(db: sqlite3.Connection) -> None:
    """Begin a transaction that only we end: once it has ended otherwise, by a conflict clause, nothing more is done."""

    def may(action: int, *_: object) -> int:
        allowed = action != sqlite3.SQLITE_TRANSACTION and db.in_transaction
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    db.execute("PRAGMA synchronous = FULL")
    db.execute("BEGIN IMMEDIATE")
    db.set_authorizer(may)


def _take_back(db: sqlite3.Connection) -> None:
    db.set_authorizer(None)
    if db.in_transaction:
        db.execute("ROLLBACK")


def _commit_lent(db: sqlite3.Connection, move: Move, named: Callable[[Exception], StoreError]) -> Keys | None:
    """A move, and what its step has written: both, or neither."""
    run = move.before
    db.set_authorizer(None)
    if not db.in_transaction:
        raise TransactionError(
            f"the transaction of a step of {run.workflow}/{run.key} was rolled back by one of its statements, and the "
            "step went on"
        )
    try:
        due = advance_detailed(db, move, move.at)
        db.execute("COMMIT")
        return due
    except (Mixed, sqlite3.Error) as error:
        _take_back(db)
        loser = missed(db, run)
        if loser is None:  # it was made before, with other rows
            return None
        if isinstance(error, Mixed):
            raise loser from None
        if not isinstance(passing := named(error), StoreUnavailable):
            raise  # of the step's making: a constraint that is checked at the end, a statement that is not done
        raise RolledBack(str(passing)) from error
