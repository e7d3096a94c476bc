"""The store in PostgreSQL, through asyncpg: group commit, one statement for a whole batch of moves.

One connection writes and claims; nobody else has it, and where it is lost another one is opened. What reads takes one
of a pool, which is made when it is first needed, and made again where somebody closed it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from fsmworkflow.codec import Codec, decode, digests
from fsmworkflow.errors import (
    CodecError,
    RolledBack,
    RunNotFound,
    RunOver,
    SchemaError,
    Stale,
    StoreError,
    StoreUnavailable,
    TransactionError,
)
from fsmworkflow.records import Active, Move, Owner, Post, Run, replace
from fsmworkflow.store import NONE, Entries, Keys, Limits, Names, Pairs, Runs, Versions, rows
from fsmworkflow.store.bell import Bell
from fsmworkflow.store.kin import kin_of, relate_postgres
from fsmworkflow.store.lent import Lent, own_end
from fsmworkflow.store.memory import lost, stale
from fsmworkflow.store.sql import Migration, ends_transaction, missing, queries
from fsmworkflow.store.verbs import Verbs
from fsmworkflow.store.writer import Write, Writer, beside, in_task, not_forked, patiently, whole

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]

log = logging.getLogger("fsmworkflow")

T = TypeVar("T")
SQL = queries("postgres")
CHUNK = 2_000
CONNECT_SECONDS, ANSWER_SECONDS, OPEN_SECONDS, CLOSE_SECONDS, RESET_SECONDS = 5.0, 60.0, 3.0, 5.0, 3_600.0
POOL = {"min_size": 0, "max_size": 10}
READS = {"min_size": 0, "max_size": 4}
POOL_ONLY = frozenset(inspect.signature(asyncpg.create_pool).parameters) - {"dsn", "loop", "connect_kwargs"}

CONNECTION = frozenset(inspect.signature(asyncpg.connect).parameters) - {"dsn", "loop"}

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


REFUSED = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.UntranslatableCharacterError,
)
"""What the server does not take, and never will."""


class _BadRow(StoreError):
    """A write that cannot be made, or a batch in which one stands: it is made in halves, so that one write fails."""


class PostgresStore(Verbs):
    """A PostgreSQL database, named by a URL, by `connect` (asyncpg's `host`, `port`, `database`, `user`, ...), or both.

    `pool` holds further keywords for asyncpg's pool. Those of them that are of a connection (`ssl`, `server_settings`,
    `command_timeout`, `statement_cache_size`) are also the writer's. Behind PgBouncer pass `statement_cache_size=0`: no
    prepared statement is kept then. Leases and due times are judged by the server's clock. Raises StoreError for a
    keyword that asyncpg does not have.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        connect: Mapping[str, Any] | None = None,
        pool: Mapping[str, Any] | None = None,
    ) -> None:
        if unknown := sorted({*(connect or ()), *(pool or ())} - POOL_ONLY - CONNECTION):
            raise StoreError(f"neither asyncpg's pool nor its connections have an option {', '.join(unknown)}")
        self._dsn = url
        self._pooling = {k: v for k, v in (pool or {}).items() if k in POOL_ONLY}
        self._connecting = {**(connect or {}), **{k: v for k, v in (pool or {}).items() if k not in POOL_ONLY}}
        self._patience = self._connecting.get("command_timeout") or ANSWER_SECONDS
        self._in_transactions = self._connecting.get("statement_cache_size") == 0
        self.url = _shown(url, self._connecting)
        self.pool: asyncpg.Pool[asyncpg.Record] | None = None  # the user's: what steps hold cannot starve our reads
        self._reads: asyncpg.Pool[asyncpg.Record] | None = None
        self._lends: asyncpg.Pool[asyncpg.Record] | None = None  # whose connections steps have for their transactions
        self._bell = Bell(self._connect)
        self._offset = 0.0
        self._writer = Writer(in_task(self._apply))
        self._writing, self._pooled = asyncio.Lock(), asyncio.Lock()
        self._write: asyncpg.Connection[asyncpg.Record] | None = None
        self._open = False
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None  # to which all of this belongs

    # -- opening and closing ----------------------------------------------------------------------------------------

    @property
    def opened(self) -> bool:
        return self._open and self._loop is not None and not self._loop.is_closed()

    async def open(self) -> None:
        if self._open:
            not_forked(self._pid, self.url)
        self._pid = os.getpid()
        if self._loop is not asyncio.get_running_loop():
            self._forget()
            self._writer = Writer(in_task(self._apply))
            self._writing, self._pooled = asyncio.Lock(), asyncio.Lock()
            self._loop = asyncio.get_running_loop()
        async with self._writing:
            if not self._open:
                await patiently(self._set_up, within=OPEN_SECONDS)
                self._open = True

    async def _set_up(self) -> None:
        connection = await self._connect()
        try:
            with _saying(self.url):
                await _migrate(connection)
                await self._measured(connection.fetchval(SQL["clock"]))
        except BaseException:
            connection.terminate()
            raise
        self._write = connection

    async def _connect(self, **more: Any) -> asyncpg.Connection[asyncpg.Record]:
        options = {"timeout": CONNECT_SECONDS, **self._connecting, "command_timeout": self._patience, **more}
        try:
            with _saying(self.url):
                return await asyncpg.connect(self._dsn, **options)
        except ValueError:  # its text may show a part of the password
            raise StoreError(f"{self.url} cannot be understood: / @ : ? # in a password are written as %xx") from None

    async def open_pool(self) -> asyncpg.Pool[asyncpg.Record]:
        """The pool, made where there is none, and made again where it was closed. It connects when it is used."""
        async with self._pooled:
            if self.pool is None or self.pool.is_closing():
                self.pool = await self._make_pool({**POOL, **self._pooling})
        return self.pool

    async def _reading(self) -> asyncpg.Pool[asyncpg.Record]:
        if self._reads is None:
            async with self._pooled:
                if self._reads is None:
                    self._reads = await self._make_pool(READS)
        return self._reads

    async def _lending(self) -> asyncpg.Pool[asyncpg.Record]:
        """A pool as the user's, each of whose connections can be kept from ending its transaction."""
        async with self._pooled:
            if self._lends is None:
                kind = type("Guarded", (Guarded, self._pooling.get("connection_class", asyncpg.Connection)), {})
                self._lends = await self._make_pool({**POOL, **self._pooling, "connection_class": kind})
        return self._lends

    async def _make_pool(self, keywords: Mapping[str, Any]) -> asyncpg.Pool[asyncpg.Record]:
        options = {"timeout": CONNECT_SECONDS, **self._connecting, **keywords}
        with _saying(self.url):
            return await asyncpg.create_pool(self._dsn, **options)

    async def close(self) -> None:
        if self._open and self._pid != os.getpid():
            return  # it is the parent's, which goes on with it
        if self._open and self._loop is asyncio.get_running_loop():
            await whole(self._close())
        else:
            self._forget()

    async def _close(self) -> None:
        self._bell.close()
        await self._writer.drain(CLOSE_SECONDS)
        held = (self._write, self.pool, self._reads, self._lends)
        self._write = self.pool = self._reads = self._lends = None
        self._open = False
        for one in held:
            if one is not None:
                await _closed(one)

    def _forget(self) -> None:
        """Let go of what belongs to an event loop that has ended, and cannot be closed in peace any more."""
        self._bell = Bell(self._connect)
        for one in (self._write, self.pool, self._reads, self._lends):
            if one is not None:
                with contextlib.suppress(RuntimeError, asyncpg.InterfaceError):
                    one.terminate()
        self._write = self.pool = self._reads = self._lends = None
        self._open = False

    def twin(self) -> PostgresStore:
        return PostgresStore(self._dsn, connect=self._connecting)

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

    # -- the connection that writes, and those that read ------------------------------------------------------------

    async def _writing_on(self, function: Callable[[Connection], Awaitable[T]]) -> T:
        """Do something on the writing connection, alone. One that may be broken is given up, and opened anew later."""
        async with self._writing:
            self._check()
            if self._write is None or self._write.is_closed():
                self._write = await self._connect()
            try:
                with _saying(self.url):
                    return await function(self._write)
            except BaseException as error:
                if not isinstance(error, _BadRow) and not isinstance(error.__cause__, UNHARMED):
                    connection, self._write = self._write, None
                    connection.terminate()
                raise

    async def _do(self, function: Callable[[Connection], Awaitable[T]]) -> T:
        """One write that is no move, waited for while the server is away. A cancelled caller does not stop it."""

        async def made(connection: Connection) -> T:
            async with self._transaction(connection):
                return await function(connection)

        return await patiently(lambda: whole(self._writing_on(made)))

    async def _ask(self, function: Callable[[Connection], Awaitable[T]]) -> T:
        """A reading on a connection of the pool, so that it does not wait behind a COMMIT."""

        async def attempt() -> T:
            self._check()
            pool = await self._reading()
            with _saying(self.url):
                async with (
                    asyncio.timeout(self._patience),
                    pool.acquire(timeout=self._patience) as connection,
                    self._transaction(connection),
                ):
                    return await function(connection)

        return await patiently(lambda: beside(attempt()))

    def _transaction(self, connection: Connection, *, several: bool = False) -> Any:
        """Round several statements. One is a transaction by itself, save where no prepared statement may be kept: there
        preparing and running it are two, and a pooler between might send them to two servers.
        """
        if several or self._in_transactions:
            return connection.transaction(isolation="read_committed")
        return contextlib.nullcontext()

    def _check(self) -> None:
        if self._open:
            not_forked(self._pid, self.url)
        if not self._open or self._loop is not asyncio.get_running_loop():
            raise StoreError(f"{self.url} is not open")

    # -- writing ----------------------------------------------------------------------------------------------------

    async def _apply(self, batch: list[Write]) -> None:
        """Commit a batch: moves of many runs by one statement, several kinds of writes in one transaction."""
        now = self.now()
        try:
            await self._writing_on(lambda connection: self._batch(connection, batch, now))
        except _BadRow as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            middle = len(batch) // 2
            await self._apply(batch[:middle])
            await self._apply(batch[middle:])

    async def _batch(self, connection: Connection, batch: list[Write], now: float) -> None:
        """The writes by their kinds, in the order in which those of one run can have been asked for."""
        kinds: dict[str, list[Write]] = {}
        for write in batch:
            write.error = None
            kinds.setdefault(write.kind, []).append(write)
        moves = (*kinds.get("move", ()), *kinds.get("detailed", ()))
        posts = [post for write in moves for post in write.record.posts]
        related = [write.record for write in moves if rows.related(write.record)]
        several = bool(posts) or bool(related) or len(kinds) > 1 or "detailed" in kinds
        several = several or (len(batch) > 1 and kinds.keys().isdisjoint(("move", "create", "post")))
        async with self._transaction(connection, several=several):
            if created := kinds.pop("create", None):
                await _create(connection, created)
            if several:
                held = [w.run.id for writes in kinds.values() for w in writes if w.run is not None]
                named = [w.record[:2] for w in kinds.get("post", ())] + [(p.workflow, p.key) for p in posts]
                kin = ([], []) if not related else kin_of(related)
                await connection.execute(SQL["lock"], [*held, *kin[0]], *_arrays(named, 2), *_arrays(kin[1], 3))
            for kind, write_all in _KINDS.items():
                if kind in kinds:
                    await write_all(connection, kinds[kind], now)

    def transaction(self, run: Run) -> Lent:
        self._check()
        return PostgresLent(self, run)

    async def _outcome(self, write: Write) -> None:
        """Set the error of a move whose COMMIT may have been made, none where it was. Waits for one under way."""

        async def look(connection: Connection) -> None:
            async with connection.transaction(isolation="read_committed"):
                await connection.execute(SQL["lock"], [write.run.id], [], [], [], [], [])
                await _resolve(connection, [write])

        await self._ask(look)

    # -- reading ----------------------------------------------------------------------------------------------------

    async def _read_rows(self, block: str, *values: Any) -> list[asyncpg.Record]:
        return await self._ask(lambda db: db.fetch(SQL[block], *values))

    async def _read_runs(self, block: str, *values: Any) -> Runs:
        return await self._ask(lambda db: _runs(db, SQL[block], *values))

    async def history(self, run: Run) -> Entries:
        return await self._ask(lambda db: _history(db, run))

    async def rings(self, names: Names, heard: int, within: float) -> int:
        """Heard over a connection of its own; not where a pooler gives every transaction another one."""
        self._check()
        ringing = super().rings if self._in_transactions else self._bell.rings
        return await ringing(names, heard, within)

    # -- claims and owners ------------------------------------------------------------------------------------------

    async def claim(
        self, owner: str, workflows: Versions, many: int, by: float, but: Pairs = (), limits: Limits = NONE
    ) -> Runs:
        """In transactions of at most 2,000 runs each, so that no row is locked for long."""
        claimed: Runs = []
        while len(claimed) < many:
            asked = min(CHUNK, many - len(claimed))
            found = await self._claim(owner, workflows, asked, by, but, limits)
            claimed += found
            if len(found) < asked:
                break
        return sorted(claimed, key=lambda run: (run.due or 0.0, run.id))

    async def _claim(self, owner: str, workflows: Versions, many: int, by: float, but: Pairs, limits: Limits) -> Runs:
        """One claim. Where an answer was lost, what the claim had made ours comes first."""
        claim, asked = secrets.token_hex(8), False
        names = list(workflows)
        values = (names, many, claim, [workflows[name] for name in names], *_arrays(but, 2))

        async def attempt(db: Connection) -> Runs:
            nonlocal asked
            before = await _runs(db, SQL["claimed"], owner, by, claim) if asked else []
            asked = True
            if before or not limits:
                return before or await _runs(db, SQL["claim"], owner, by, *values)
            async with db.transaction(isolation="read_committed"):
                rooms = await _rooms(db, limits)
                return await _runs(db, SQL["claim_within"], owner, by, *values, list(rooms), list(rooms.values()))

        return await self._do(attempt)

    async def claim_one(
        self, owner: str, workflow: str, key: str, newest: int | None = None, limit: int | None = None
    ) -> Run | None:
        async def attempt(db: Connection) -> Runs:
            if limit is None:
                return await _runs(db, SQL["claim_one"], owner, workflow, key, newest)
            async with db.transaction(isolation="read_committed"):
                full = (await _rooms(db, {workflow: limit}))[workflow] < 1
                return [] if full else await _runs(db, SQL["claim_one"], owner, workflow, key, newest)

        found = await self._do(attempt)
        return found[0] if found else None

    async def oldest(self, workflow: str, but: Names, newest: int | None = None) -> str | None:
        key: str | None = await self._ask(lambda db: db.fetchval(SQL["oldest"], workflow, but, newest))
        return key

    async def overdue(self, workflows: Names) -> float | None:
        since: float | None = await self._ask(lambda db: db.fetchval(SQL["overdue"], workflows))
        return since

    async def prune(self, workflow: str, statuses: Names, before: float, many: int) -> int:
        """Looked for without a lock; those that are found are locked, and looked at again."""
        ids = [row["id"] for row in await self._read_rows("prunable", workflow, statuses, before, many)]

        async def go(db: Connection) -> int:
            async with self._transaction(db, several=True):
                await db.execute(SQL["prune_lock"], ids)
                gone: int = await db.fetchval(SQL["prune"], ids, statuses, before)
                return gone

        return await patiently(lambda: whole(self._writing_on(go))) if ids else 0

    async def enrol(self, owner: Owner) -> None:
        values = (owner.token, owner.machine, owner.process, owner.lease, owner.started, owner.draining)
        await self._do(lambda db: self._measured(db.fetchval(SQL["enrol"], *values)))

    async def renew(self, token: str, lease: float) -> bool:
        return await self._do(lambda db: self._measured(db.fetchval(SQL["renew"], token, lease)))

    async def bury(self, token: str) -> None:
        await self._do(lambda db: db.execute(SQL["bury"], token))

    async def reset(self) -> None:
        await self._do(lambda db: db.execute(SQL["reset"], timeout=RESET_SECONDS))


class Guarded:
    """What a pooled connection is made of that steps have: while it is `guarded`, only we end its transaction."""

    guarded: str | None = None
    """Whose step has it."""

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


def _refusing(name: str, *, ends: bool = False) -> Callable[..., Any]:
    """A method of asyncpg's connection that is refused where it, or its query, would end the transaction."""
    inherited = getattr(asyncpg.Connection, name)

    @functools.wraps(inherited)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.refuse("ROLLBACK" if ends else args[0] if args else kwargs.get("query", kwargs.get("command", "")))
        return getattr(super(Guarded, self), name)(*args, **kwargs)

    return call


for _name in ("execute", "executemany", "fetch", "fetchval", "fetchrow", "fetchmany", "prepare", "cursor"):
    setattr(Guarded, _name, _refusing(_name))
for _name in ("close", "reset"):
    setattr(Guarded, _name, _refusing(_name, ends=True))


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
        with _saying(self._store.url):
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
            parents, visits = kin_of([write.record] if rows.related(write.record) else [])
            if posts or parents or visits:
                named = [(post.workflow, post.key) for post in posts]
                held = [write.run.id, *parents]
                await connection.execute(SQL["lock"], held, *_arrays(named, 2), *_arrays(visits, 3))
            write_all = _advance if write.record.detail is None else _advance_detailed
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
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._own.terminate()

    async def _give_back(self) -> None:
        """The pool resets what the step has set on the connection."""
        try:
            await self._pool.release(self.connection, timeout=CLOSE_SECONDS)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            log.warning("%s: a connection could not be given back: %r", self._store.url, error)


# -- errors and addresses ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _saying(place: str) -> Iterator[None]:
    """Errors of the driver as ours, with the place."""
    try:
        yield
    except REFUSED as error:
        raise _BadRow(f"{place}: {error} ({type(error).__name__})") from error
    except (asyncpg.ClientConfigurationError, asyncpg.TargetServerAttributeNotMatched) as error:
        raise StoreError(f"{place}: {error}") from error
    except PASSING as error:
        raise StoreUnavailable(f"{place}: {error!s:.500} ({type(error).__name__})") from error
    except asyncpg.PostgresError as error:
        raise StoreError(f"{place}: {error} ({type(error).__name__})") from error


def _shown(url: str | None, keywords: Mapping[str, Any]) -> str:
    """The address as it may be shown: without the password, wherever it stands."""
    if url is None:
        user, host, port = keywords.get("user"), keywords.get("host", "localhost"), keywords.get("port", 5432)
        return f"postgresql://{f'{user}@' if user else ''}{host}:{port}/{keywords.get('database') or user or ''}"
    # By hand: what urlsplit makes of a password that was not escaped may show it.
    scheme, _, rest = url.partition("://")
    login, at, place = rest.rpartition("@")
    place, _, query = place.partition("?")
    shown = "&".join(word for word in query.split("&") if not word.startswith(("password=", "passfile=")))
    return f"{scheme}://{login.partition(':')[0]}{at}{place}{'?' if shown else ''}{shown}"


async def _closed(one: asyncpg.Connection[asyncpg.Record] | asyncpg.Pool[asyncpg.Record]) -> None:
    """Close in peace, or after a few seconds without a word."""
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await one.close()
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        one.terminate()
    except BaseException:
        one.terminate()
        raise


# -- statements on a connection ---------------------------------------------------------------------------------------


def _columns(values: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Rows as the arrays that `unnest` makes rows of again."""
    return list(zip(*values, strict=True))


def _arrays(values: Sequence[Sequence[Any]], many: int) -> list[tuple[Any, ...]]:
    """Rows, or none, as so many arrays."""
    return _columns(values) or [()] * many


def _packed(values: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Moves as arrays, without what says nothing: the driver takes half a microsecond for each element of an array."""
    columns: list[tuple[Any, ...]] = []
    for column in zip(*values, strict=True):
        same = column.count(column[0]) == len(column)
        if same and column[0] is None:
            column = ()
        elif same and len(columns) < rows.NEVER_NULL:
            column = column[:1]
        columns.append(column)
    return columns


async def _advance(connection: Connection, writes: list[Write], now: float) -> None:
    moves: list[Move] = [write.record for write in writes]
    if len({move.before.id for move in moves}) < len(moves):
        raise _BadRow("a run stands twice in one batch, and one statement cannot move it twice")
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
        beside = [*_arrays(large, 3), *_arrays(forget, 3), *_arrays(new, 10), *_arrays(old, 4), *_arrays(ended, 2)]
        done = await connection.execute(SQL["advance_with"], *_packed(values), *beside)
    elif len(values) == 1:
        done = await connection.execute(SQL["advance"], *values[0])
    else:
        done = await connection.execute(SQL["advance_many"], *_packed(values))
    if done != f"INSERT 0 {len(moves)}":
        await _resolve(connection, writes)
    if posts := [post for write in writes if write.error is None for post in write.record.posts]:
        await connection.execute(SQL["emit"], *_columns([_emitted(post, now) for post in posts]), now)
    if related := [w for w in writes if w.error is None and w.result is not True and rows.related(w.record)]:
        due = await relate_postgres(connection, [write.record for write in related], now)
        for write in related:
            write.result = due.get(write.run.id)


def _emitted(post: Post, now: float) -> tuple[Any, ...]:
    return *rows.event_values(post.event, now), post.workflow, post.key


async def _advance_detailed(connection: Connection, writes: list[Write], now: float) -> None:
    """Moves of which history says more than of most, so that these do not pay for it."""
    await _advance(connection, writes, now)
    made = [(w.record.after.id, w.record.after.version, w.record.detail) for w in writes if w.error is None]
    await connection.execute(SQL["detail"], *_arrays(made, 3))


async def _resolve(connection: Connection, writes: list[Write]) -> None:
    """Not every move hit its row. One that is in the history was made, now or by a COMMIT whose answer was lost."""
    mine = [(w.run.id, w.record.after.version, w.run.owner, w.run.epoch) for w in writes]
    there = {row[0] for row in await connection.fetch(SQL["moved"], *_columns(mine))}
    missed = [w.run for w in writes if w.run.id not in there]
    as_it_was = [(run.id, run.version, run.owner, run.epoch) for run in missed]
    held = {row[0] for row in await connection.fetch(SQL["held"], *_arrays(as_it_was, 4))}
    for write in writes:
        number = write.run.id
        write.result = number in there
        write.error = None if number in there else stale(write.run) if number in held else lost(write.run)


async def _create(connection: Connection, writes: list[Write]) -> None:
    first: dict[tuple[str, str], Write] = {}
    for write in writes:
        first.setdefault((write.record.workflow, write.record.key), write)
    runs: list[Run] = [write.record for write in first.values()]
    large = [(r.workflow, r.key, h, text) for r in runs for _, h, text in rows.large_fields(r, r.hashes)]
    values = _columns([rows.create_values(run) for run in runs]) + _arrays(large, 4)
    made = {(w, k): number for number, w, k, _ in await connection.fetch(SQL["create"], *values)}
    for name, write in first.items():
        write.result = (replace(write.record, id=made[name]), True) if name in made else None
    others = [w for w in writes if (name := (w.record.workflow, w.record.key)) not in made or first[name] is not w]
    if others:
        await _look_up(connection, others)


async def _look_up(connection: Connection, writes: list[Write]) -> None:
    """The runs whose keys were taken."""
    names = {(write.record.workflow, write.record.key) for write in writes}
    there = {(r.workflow, r.key): r for r in await _runs(connection, SQL["load_many"], *_columns(list(names)))}
    for write in writes:
        run = there.get((write.record.workflow, write.record.key))
        if run is None:
            raise StoreUnavailable(f"run {write.record.workflow}/{write.record.key} was deleted while it was looked up")
        write.result = run, False


async def _settle(connection: Connection, writes: list[Write], now: float) -> None:
    values = _columns([rows.settle_values(write.run, write.record, now) for write in writes])
    ended = [(w.record.version, w.run.id) for w in writes if rows.drops(w.run, w.record)]
    hit = {row[0] for row in await connection.fetch(SQL["settle"], *values, *_arrays(ended, 2))}
    late = [write for write in writes if write.run.id not in hit]
    if not late:
        return
    # One that let the run go may have been made by a COMMIT whose answer was lost.
    done = _columns([(w.run.id, w.run.version, w.run.epoch, w.record.owner) for w in late])
    there = {row[0] for row in await connection.fetch(SQL["settled"], *done)}
    for write in late:
        if write.record.owner == write.run.owner or write.run.id not in there:
            write.error = lost(write.run)


async def _release(connection: Connection, writes: list[Write], now: float) -> None:
    await connection.execute(SQL["release"], *_columns([(w.run.id, w.run.owner, w.run.epoch) for w in writes]))


async def _remember(connection: Connection, writes: list[Write], now: float) -> None:
    calls = [(c.run, c.state, c.visit, c.name, c.nth, c.result.decode()) for c in (w.record for w in writes)]
    values = [(*call, w.run.owner, w.run.epoch) for call, w in zip(calls, writes, strict=True)]
    held = {row[0] for row in await connection.fetch(SQL["remember"], *_columns(values))}
    for place, write in enumerate(writes, 1):
        if place not in held:
            write.error = lost(write.run)
    if survived := [w.run.id for w in writes if w.run.deaths and w.error is None]:
        await connection.execute(SQL["survived"], survived)


async def _post(connection: Connection, writes: list[Write], now: float) -> None:
    """Events into inboxes. Those of them that were there, or have no inbox to go to, are looked up."""
    first: dict[tuple[str, str, str], Write] = {}
    for write in writes:
        workflow, key, event = write.record
        first.setdefault((workflow, key, event.id), write)
    values = [(*rows.event_values(w.record[2], now), *w.record[:2]) for w in first.values()]
    made = {(w, k, e): number for w, k, e, number, _ in await connection.fetch(SQL["post"], *_columns(values), now)}
    for name, number in made.items():
        first[name].result = rows.opened(rows.posted(first[name].record[2], number, now))
    others = [w for w in writes if (name := (*w.record[:2], w.record[2].id)) not in made or first[name] is not w]
    if others:
        await _addressed(connection, others)


async def _addressed(connection: Connection, writes: list[Write]) -> None:
    names = [(w.record[0], w.record[1], w.record[2].id) for w in writes]
    found = await connection.fetch(SQL["addressed"], *_columns(names))
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


_KINDS: dict[str, Callable[[Connection, list[Write], float], Awaitable[None]]] = {
    "call": _remember,
    "move": _advance,
    "detailed": _advance_detailed,
    "settle": _settle,
    "release": _release,
    "post": _post,  # last: what was decided without it is not made stale by it
}


async def _runs(connection: Connection, sql: str, *values: Any) -> Runs:
    """The runs that a statement returns, whole."""
    found = [rows.run_of(row) for row in await connection.fetch(sql, *values)]
    wanted = rows.wanted(found)
    if not wanted:
        return found
    texts = await _texts(connection, wanted)
    return [rows.filled(run, texts) for run in found]


async def _rooms(connection: Connection, limits: Limits) -> dict[str, int]:
    """How many runs of each workflow with a limit may be claimed before the end of this transaction."""
    await connection.execute(SQL["limits_lock"])
    return {name: most - await connection.fetchval(SQL["driven"], name) for name, most in limits.items()}


async def _texts(connection: Connection, wanted: list[tuple[int, str]]) -> dict[tuple[int, str], str]:
    found = await connection.fetch(SQL["fields"], *_columns(wanted))
    return {(run, h): text for run, h, text in found}


async def _history(connection: Connection, run: Run) -> Entries:
    found = await connection.fetch(SQL["history"], run.id)
    if not found:
        raise RunNotFound(run.workflow, run.key)
    wanted = {(run.id, h) for h in rows.referred(row["changes"] for row in found)}
    texts = await _texts(connection, list(wanted)) if wanted else {}
    if len(texts) < len(wanted):
        raise rows.gone(run)
    return [rows.entry_of(row, lambda h: decode(texts[run.id, h])) for row in found]


# -- the schema -------------------------------------------------------------------------------------------------------


async def _migrate(connection: Connection) -> None:
    """What is missing is created, what is older upgraded, all in one transaction, one process after the other."""
    async with connection.transaction(isolation="read_committed"):
        if not await _missing(connection):
            return
        await connection.execute(SQL["schema_lock"])
        todo = await _missing(connection)
        await connection.execute(SQL["migrations_table"])
        for migration in todo:
            await connection.execute(migration.sql)
            await connection.execute(SQL["migrated"], migration.version, migration.name)


async def _missing(connection: Connection) -> tuple[Migration, ...]:
    tables = {row[0] for row in await connection.fetch(SQL["tables"])}
    try:
        versions = await connection.fetch(SQL["migrations"]) if "fsm_migrations" in tables else []
    except asyncpg.UndefinedColumnError as error:
        raise SchemaError(f"the table fsm_migrations is not ours: {error}") from error
    return missing("postgres", tables, [row[0] for row in versions])


# -- the table of the first FSM-Workflow ------------------------------------------------------------------------------


async def legacy(store: PostgresStore) -> Runs:
    """What is unfinished in the table `workflow_states` and no run here yet, the oldest first, as runs to be created.

    Empty where there is no such table, or not of that shape. A row that no run can be made of is said in the log.
    """

    async def rows_of(connection: Connection) -> list[asyncpg.Record]:
        return await connection.fetch(SQL["legacy_runs"]) if await connection.fetchval(SQL["legacy_table"]) else []

    now = store.now()
    found = [_legacy_run(row, now) for row in await store._ask(rows_of)]
    return [run for run in found if run is not None]


def _legacy_run(row: asyncpg.Record, now: float) -> Run | None:
    """Its key is the row's id. It begins in the step that was begun last; the data is nested once for each resume."""
    data = json.loads(row["context"])
    while isinstance(data, dict) and list(data) == ["data"] and isinstance(data["data"], dict):
        data = data["data"]
    try:
        fields = Codec().start(data)
    except CodecError as error:
        log.error("row %s of the table workflow_states cannot be taken over: %s", row["key"], error)
        return None
    return Run(
        workflow=row["workflow"],
        key=row["key"],
        active={row["state"]: Active(0)},
        fields=fields,
        hashes=digests(fields),
        due=now,
        created=now if row["created"] is None else row["created"],
        updated=now if row["updated"] is None else row["updated"],
    )
