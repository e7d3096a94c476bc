"""The store in PostgreSQL, through asyncpg: group commit, one statement for a whole batch of moves.

One connection writes and claims; nobody else has it, and where it is lost another one is opened. What reads takes one of
a pool, which is made when it is first needed, and made again where somebody closed it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import asyncpg

from fsmworkflow.codec import decode
from fsmworkflow.errors import SchemaError, StoreError, StoreUnavailable
from fsmworkflow.records import Call, Entry, Move, Owner, Run, replace
from fsmworkflow.store import rows
from fsmworkflow.store.memory import lost
from fsmworkflow.store.sql import applied, migrations, queries, refuse_foreign, statements
from fsmworkflow.store.writer import Write, Writer, patiently

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]

T = TypeVar("T")
SQL = queries("postgres")
CHUNK = 2_000
CONNECT_SECONDS, ANSWER_SECONDS, OPEN_SECONDS, CLOSE_SECONDS = 5.0, 60.0, 3.0, 5.0
POOL = {"min_size": 0, "max_size": 10}
POOL_ONLY = frozenset(
    "init_size min_size max_size max_queries max_inactive_connection_lifetime setup init reset connect "
    "connection_class record_class".split()
)  # fmt: skip

# The server may answer again: classes 08 (connection), 40 (rolled back), 53 (resources), 57 (shut down, starting) and
# 58 (system); a lock that was not to be had; a transaction that took too long; a standby in place of the primary.
PASSING = (
    asyncpg.PostgresConnectionError,
    asyncpg.TransactionRollbackError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)
UNHARMED = (asyncpg.TransactionRollbackError, asyncpg.LockNotAvailableError)
"""What leaves the connection as it was; after anything else of PASSING it is given up."""


class _Twice(Exception):
    """A run stands twice in a batch of moves, which one statement cannot make one after the other."""


BAD_ROW = (
    asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError, OverflowError, _Twice
)  # fmt: skip


class PostgresStore:
    """A PostgreSQL database, named by a URL, by `connect` (asyncpg's `host`, `port`, `database`, `user`, ...), or both.

    `pool` holds further keywords for asyncpg's pool. Those of them that are of a connection (`ssl`, `server_settings`,
    `command_timeout`, `statement_cache_size`) are also the writer's. Behind PgBouncer pass `statement_cache_size=0`: no
    prepared statement is kept then. Leases and due times are judged by the server's clock.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        connect: Mapping[str, Any] | None = None,
        pool: Mapping[str, Any] | None = None,
    ) -> None:
        self._dsn = url
        self._pooling = {k: v for k, v in (pool or {}).items() if k in POOL_ONLY}
        self._connecting = {**(connect or {}), **{k: v for k, v in (pool or {}).items() if k not in POOL_ONLY}}
        self._patience = self._connecting.get("command_timeout") or ANSWER_SECONDS
        self._in_transactions = self._connecting.get("statement_cache_size") == 0
        self.url = _shown(url, self._connecting)
        self.pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._offset = 0.0
        self._writer = Writer(self._apply)
        self._loop: asyncio.AbstractEventLoop | None = None  # where it is open
        self._write: asyncpg.Connection[asyncpg.Record] | None = None

    # -- opening and closing -------------------------------------------------------------------------------------

    async def open(self) -> None:
        if self._loop is asyncio.get_running_loop():
            return
        self._forget()
        self._writing, self._pooled = asyncio.Lock(), asyncio.Lock()
        await patiently(self._set_up, within=OPEN_SECONDS)
        self._loop = asyncio.get_running_loop()

    async def _set_up(self) -> None:
        connection = await self._connect()
        try:
            with self._saying():
                await _migrate(connection)
                await self._measured(connection.fetchval(SQL["clock"]))
        except BaseException:
            connection.terminate()
            raise
        self._write = connection

    async def _connect(self) -> asyncpg.Connection[asyncpg.Record]:
        options = {"timeout": CONNECT_SECONDS, **self._connecting, "command_timeout": self._patience}
        with self._saying():
            return await asyncpg.connect(self._dsn, **options)

    async def open_pool(self) -> asyncpg.Pool[asyncpg.Record]:
        """The pool, made where there is none, and made again where it was closed. It connects when it is used."""
        if self.pool is None or self.pool.is_closing():
            async with self._pooled:
                if self.pool is None or self.pool.is_closing():
                    self.pool = await self._make_pool()
        return self.pool

    async def _make_pool(self) -> asyncpg.Pool[asyncpg.Record]:
        options = {"timeout": CONNECT_SECONDS, **self._connecting, **POOL, **self._pooling}
        with self._saying():
            return await asyncpg.create_pool(self._dsn, **options)

    async def close(self) -> None:
        if self._loop is asyncio.get_running_loop():
            await self._writer.drain(CLOSE_SECONDS)
            connection, pool, self._write, self.pool = self._write, self.pool, None, None
            self._loop = None
            for one in (connection, pool):
                if one is not None:
                    await _closed(one)
        self._forget()

    def _forget(self) -> None:
        """Let go of what belongs to an event loop that has ended, and cannot be closed in peace any more."""
        self._loop = None
        for one in (self._write, self.pool):
            if one is not None:
                with contextlib.suppress(RuntimeError, asyncpg.InterfaceError):
                    one.terminate()
        self._write = self.pool = None

    def now(self) -> float:
        return time.time() + self._offset

    async def _measured(self, asking: Awaitable[float | None]) -> bool:
        """Take the server's time from the answer, and keep the offset while it agrees within what the answer took."""
        began, before = time.time(), time.monotonic()
        answer = await asking
        took = time.monotonic() - before
        if answer is not None and abs((offset := answer - began - took / 2) - self._offset) > took:
            self._offset = offset
        return answer is not None

    # -- the connection that writes, and those that read -----------------------------------------------------------

    @contextlib.contextmanager
    def _saying(self) -> Iterator[None]:
        """Errors of the driver as ours, with the place. A row that the server refuses is left to the caller."""
        try:
            yield
        except (asyncpg.ClientConfigurationError, asyncpg.TargetServerAttributeNotMatched) as error:
            raise StoreError(f"{self.url}: {error}") from error
        except BAD_ROW:
            raise
        except PASSING as error:
            raise StoreUnavailable(f"{self.url}: {error or 'no answer in time'} ({type(error).__name__})") from error
        except asyncpg.PostgresError as error:
            raise StoreError(f"{self.url}: {error} ({type(error).__name__})") from error
        except ValueError:  # its text may show part of a password
            raise StoreError(f"{self.url} cannot be understood: is every / @ : ? of its password a %-escape?") from None

    async def _writing_on(self, function: Callable[[Connection], Awaitable[T]]) -> T:
        """Do something on the writing connection, alone; a connection that may be broken is given up afterwards."""
        self._check()
        async with self._writing:
            if self._write is None or self._write.is_closed():
                self._write = await self._connect()
            try:
                with self._saying():
                    return await function(self._write)
            except BaseException as error:
                whole = isinstance(error.__cause__, UNHARMED) or isinstance(error, (StoreError, *BAD_ROW))
                if (isinstance(error, StoreUnavailable) or not whole) and not isinstance(error.__cause__, UNHARMED):
                    connection, self._write = self._write, None
                    connection.terminate()
                raise

    async def _do(self, function: Callable[[Connection], Awaitable[T]]) -> T:
        """One write that is no move, waited for while the server is away. A caller that is cancelled does not stop it."""

        async def attempt() -> T:
            return await self._writing_on(function)

        return await patiently(lambda: asyncio.shield(attempt()))

    async def _ask(self, function: Callable[[Connection], Awaitable[T]]) -> T:
        """A reading on a connection of the pool, so that it does not wait behind a COMMIT."""

        async def attempt() -> T:
            self._check()
            pool = await self.open_pool()
            with self._saying():
                async with pool.acquire(timeout=self._patience) as connection, self._whole(connection):
                    return await function(connection)

        return await patiently(attempt)

    def _check(self) -> None:
        if self._loop is not asyncio.get_running_loop():
            raise StoreError(f"{self.url} is not open")
