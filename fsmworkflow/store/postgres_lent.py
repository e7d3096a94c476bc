"""A connection to PostgreSQL that a step has for its transaction, which nobody but we can end."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import asyncpg

from fsmworkflow.errors import RolledBack, Stale, TransactionError, log
from fsmworkflow.records import Move, Run
from fsmworkflow.store import Keys, rows
from fsmworkflow.store.kin import kin_of
from fsmworkflow.store.lent import Lent, own_end
from fsmworkflow.store.postgres_server import CLOSE_SECONDS, PASSING, SQL, UNHARMED, saying
from fsmworkflow.store.postgres_statements import advance, advance_detailed, arrays
from fsmworkflow.store.sql import ends_transaction
from fsmworkflow.store.writer import Write, patiently

if TYPE_CHECKING:
    from fsmworkflow.store.postgres import PostgresStore
    from fsmworkflow.store.postgres_watch import Watch


class Guarded:
    """What a pooled connection is made of that steps have: while it is `guarded`, only we end its transaction."""

    guarded: str | None = None
    """Whose step has it."""
    watch: Watch
    """Which ends it where somebody waits for an answer in vain."""
    coding = False
    """Whether a step has set how values are read and written, which the pool does not reset."""

    def guard(self, where: str | None) -> Any:
        """Guard it, or no more. Returns the connection itself, which is there when the pool's proxy has let it go."""
        self.guarded = where
        return self

    def refuse(self, query: str = "") -> None:
        """Raise TransactionError for what would end the transaction, and for anything that comes after its end."""
        if self.guarded is None or self.is_closed():  # type: ignore[attr-defined]
            return
        if ends_transaction(query) or not self.is_in_transaction():  # type: ignore[attr-defined]
            raise own_end(self.guarded)


def _asking(name: str) -> Callable[..., Any]:
    """A method that sends a query, watched; refused where that would end the transaction."""
    inherited = getattr(asyncpg.Connection, name)

    @functools.wraps(inherited)
    async def call(self: Any, query: str, *args: Any, **kwargs: Any) -> Any:
        self.refuse(query)
        with self.watch.asking(self):
            return await getattr(super(Guarded, self), name)(query, *args, **kwargs)

    return call


def _refusing(name: str, *, ends: bool = False, codes: bool = False) -> Callable[..., Any]:
    """A method of asyncpg's connection that is refused where it, or its query, would end the transaction."""
    inherited = getattr(asyncpg.Connection, name)

    @functools.wraps(inherited)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if codes:
            self.coding = self.coding or self.guarded is not None
        else:
            self.refuse("ROLLBACK" if ends else args[0] if args else kwargs.get("query", kwargs.get("command", "")))
        return getattr(super(Guarded, self), name)(*args, **kwargs)

    return call


for _name in ("execute", "fetch", "fetchval", "fetchrow"):
    setattr(Guarded, _name, _asking(_name))
for _name in ("executemany", "fetchmany", "prepare", "cursor"):
    setattr(Guarded, _name, _refusing(_name))
for _name in ("close", "reset"):
    setattr(Guarded, _name, _refusing(_name, ends=True))
for _name in ("set_type_codec", "set_builtin_type_codec", "reset_type_codec"):
    setattr(Guarded, _name, _refusing(_name, codes=True))


class PostgresLent(Lent):
    """A connection of its own, in READ COMMITTED unless the step's first statement sets another level."""

    def __init__(self, store: PostgresStore, run: Run) -> None:
        super().__init__(run)
        self._store = store
        self._gone = False  # whether the connection was lost before it was rolled back

    async def _begin(self) -> None:
        await patiently(self._attempt)

    async def _attempt(self) -> None:
        self._store._check()
        with saying(self._store.url):
            self._pool = await self._store._lending()
            connection = await self._pool.acquire(timeout=self._store._patience)
            try:
                self._transaction = connection.transaction(isolation="read_committed")
                await self._transaction.start()
            except BaseException:
                connection.terminate()
                await self._pool.release(connection)
                raise
        self._own = connection.guard(self.where)  # type: ignore[attr-defined]
        self.connection = connection

    @property
    def lost(self) -> RolledBack | None:
        return None if not self._gone else RolledBack(f"{self._store.url}: the connection of its transaction was lost")

    async def _commit(self, move: Move) -> Keys | None:
        write = Write("move", move, move.before, asyncio.get_running_loop().create_future())
        try:
            try:
                await self._written(write)
            except PASSING as error:
                raise self._passing(error) from error
            if write.error is not None:
                raise write.error
            made_before = write.result is True  # with other rows
            await (self._undone() if made_before else self._committed(write))
            return write.result if isinstance(write.result, list) else None
        except BaseException:
            await self._undone()
            raise
        finally:
            await self._give_back()

    async def _written(self, write: Write) -> None:
        """The statements of the move, in the step's own transaction."""
        connection, posts = self._own, write.record.posts
        connection.guard(None)
        if not connection.is_closed() and not connection.is_in_transaction():
            raise own_end(self.where)
        try:
            await connection.execute(SQL["impatient"])
            parents, visits = kin_of([write.record] if rows.related(write.record) else [])
            if posts or parents or visits:
                named = [(post.workflow, post.key) for post in posts]
                held = [write.run.id, *parents]
                await connection.execute(SQL["lock"], held, *arrays(named, 2), *arrays(visits, 3))
            write_all = advance if write.record.detail is None else advance_detailed
            await write_all(connection, [write], self._store.now())
        except asyncpg.PostgresError as error:
            if isinstance(error, PASSING):
                raise
            raise TransactionError(
                f"the transaction of a step of {self.where} cannot take the step's move after what the step did in it: "
                f"{error} ({type(error).__name__})"
            ) from error

    def _passing(self, error: BaseException) -> Exception:
        """What stopped the move before its COMMIT, so that nothing was written."""
        if isinstance(error, asyncpg.InterfaceError) and not self._own.is_closed():
            return TransactionError(f"the transaction of a step of {self.where} is still in use by it: {error}")
        return RolledBack(f"{self._store.url}: {error!s:.500} ({type(error).__name__})")

    async def _committed(self, write: Write) -> None:
        """COMMIT. Where its answer is lost, history says whether it was made."""
        try:
            await self._transaction.commit()
        except UNHARMED as error:
            raise self._passing(error) from error
        except PASSING as error:
            self._own.terminate()  # so that what was not made by now never is
            await self._store._outcome(write)
            if write.error is not None:
                raise (self._passing(error) if isinstance(write.error, Stale) else write.error) from error

    async def _rollback(self) -> None:
        self._gone = self._own.is_closed()
        self._own.guard(None)
        await self._undone()
        await self._give_back()

    async def _undone(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if not self._own.is_closed() and self._own.is_in_transaction():
                    await self._transaction.rollback()
        except (asyncpg.PostgresError, *PASSING):
            self._own.terminate()

    async def _give_back(self) -> None:
        """The pool resets what the step has set on the connection; what it cannot reset is closed."""
        if self._own.coding:
            self._own.terminate()
        try:
            await self._pool.release(self.connection, timeout=CLOSE_SECONDS)
        except (asyncpg.PostgresError, *PASSING) as error:
            log.warning("%s: a connection could not be given back: %r", self._store.url, error)
