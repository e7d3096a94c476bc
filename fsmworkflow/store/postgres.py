"""The store in PostgreSQL, through asyncpg: group commit, one statement for a whole batch of moves.

One connection writes and claims; nobody else has it, and where it is lost another one is opened. What reads takes one
of a pool, which is made when it is first needed, and made again where somebody closed it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from fsmworkflow.errors import Refused, StoreError
from fsmworkflow.records import Owner, Run
from fsmworkflow.store import Entries, Limits, Names, Pairs, Runs, Versions, rows
from fsmworkflow.store import postgres_server as server
from fsmworkflow.store.bell import Bell
from fsmworkflow.store.kin import kin_of
from fsmworkflow.store.legacy import legacy_run
from fsmworkflow.store.lent import Lent
from fsmworkflow.store.postgres_lent import Guarded, PostgresLent
from fsmworkflow.store.postgres_server import SQL
from fsmworkflow.store.postgres_statements import KINDS, arrays, create, history, resolve, rooms, runs
from fsmworkflow.store.postgres_watch import Watch
from fsmworkflow.store.verbs import Verbs
from fsmworkflow.store.writer import Write, Writer, in_task, not_forked, patiently, whole

if TYPE_CHECKING:
    from fsmworkflow.store.postgres_server import Connection

T = TypeVar("T")


class PostgresStore(Verbs):
    """A PostgreSQL database, named by a URL, by `connect` (asyncpg's `host`, `port`, `database`, `user`, ...), or both.

    `pool` holds further keywords for asyncpg's pool. Those of them that are of a connection (`ssl`, `server_settings`,
    `command_timeout`, `statement_cache_size`) are also the writer's. Behind PgBouncer pass `statement_cache_size=0`: no
    prepared statement is kept then. Leases and due times are judged by the server's clock. Raises StoreError for a
    keyword that asyncpg does not have.
    """

    def __init__(
        self, url: str | None = None, *, connect: Mapping[str, Any] | None = None, pool: Mapping[str, Any] | None = None
    ) -> None:
        if unknown := sorted({*(connect or ()), *(pool or ())} - server.POOL_ONLY - server.CONNECTION):
            raise StoreError(f"neither asyncpg's pool nor its connections have an option {', '.join(unknown)}")
        self._dsn = url
        self._pooling = {k: v for k, v in (pool or {}).items() if k in server.POOL_ONLY}
        self._connecting = {**(connect or {}), **{k: v for k, v in (pool or {}).items() if k not in server.POOL_ONLY}}
        self._patience = self._connecting.get("command_timeout") or server.ANSWER_SECONDS
        self._in_transactions = self._connecting.get("statement_cache_size") == 0
        self.url = server.shown(url, self._connecting)
        self.pool: asyncpg.Pool[asyncpg.Record] | None = None  # the user's: what steps hold cannot starve our reads
        self._reads: asyncpg.Pool[asyncpg.Record] | None = None
        self._lends: asyncpg.Pool[asyncpg.Record] | None = None  # whose connections steps have for their transactions
        self._offset = 0.0
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
                await patiently(self._set_up, within=server.OPEN_SECONDS)
                self._open = True
                self._watch.begin()

    async def _set_up(self) -> None:
        connection = await self._connect()
        try:
            with server.saying(self.url):
                await server.migrate(connection)
                await self._measured(connection.fetchval(SQL["clock"]))
        except BaseException:
            connection.terminate()
            raise
        self._write = connection

    async def _connect(self, **more: Any) -> asyncpg.Connection[asyncpg.Record]:
        options = {"timeout": server.CONNECT_SECONDS, **self._connecting, "command_timeout": self._patience, **more}
        try:
            with server.saying(self.url):
                return await asyncpg.connect(self._dsn, **options)
        except ValueError:  # its text may show a part of the password
            raise StoreError(f"{self.url} cannot be understood: / @ : ? # in a password are written as %xx") from None

    async def open_pool(self) -> asyncpg.Pool[asyncpg.Record]:
        """The pool, made where there is none, and made again where it was closed. It connects when it is used."""
        async with self._pooled:
            if self.pool is None or self.pool.is_closing():
                self.pool = await self._make_pool({**server.POOL, **self._pooling})
        return self.pool

    async def _reading(self) -> asyncpg.Pool[asyncpg.Record]:
        async with self._pooled:
            if self._reads is None:
                self._reads = await self._make_pool(server.READS)
            return self._reads

    async def _lending(self) -> asyncpg.Pool[asyncpg.Record]:
        """A pool as the user's, each of whose connections can be kept from ending its transaction."""
        async with self._pooled:
            if self._lends is None:
                own = self._pooling.get("connection_class", asyncpg.Connection)
                kind = type("Guarded", (Guarded, own), {"watch": self._watch})
                self._lends = await self._make_pool({**server.POOL, **self._pooling, "connection_class": kind})
        return self._lends

    async def _make_pool(self, keywords: Mapping[str, Any]) -> asyncpg.Pool[asyncpg.Record]:
        options = {"timeout": server.CONNECT_SECONDS, **self._connecting, **keywords}
        with server.saying(self.url):
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
        self._watch.end()
        await self._writer.drain(server.CLOSE_SECONDS)
        for one in self._given_up():
            await server.closed(one)

    def _forget(self) -> None:
        """Let go of what belongs to an event loop that has ended, and cannot be closed in peace any more."""
        self._bell, self._watch = Bell(self._connect), Watch(self._connect)
        for one in self._given_up():
            with contextlib.suppress(RuntimeError, asyncpg.InterfaceError):
                one.terminate()

    def _given_up(self) -> list[Any]:
        held = (self._write, self.pool, self._reads, self._lends)
        self._write = self.pool = self._reads = self._lends = None
        self._open = False
        return [one for one in held if one is not None]

    def twin(self) -> PostgresStore:
        return PostgresStore(self._dsn, connect={**self._connecting, "command_timeout": server.CONNECT_SECONDS})

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
                with server.saying(self.url, Refused), self._watch.asking(self._write):
                    return await function(self._write)
            except BaseException as error:
                if not isinstance(error, Refused) and not isinstance(error.__cause__, server.UNHARMED):
                    connection, self._write = self._write, None
                    connection.terminate()
                raise

    async def _do(self, function: Callable[[Connection], Awaitable[T]], *, several: bool = False) -> T:
        """What is no move, perhaps in `several` statements, once the server is there. No cancelled caller stops it."""

        async def made(connection: Connection) -> T:
            async with self._transaction(connection, several=several):
                return await function(connection)

        return await patiently(lambda: whole(self._writing_on(made)))

    async def _ask(self, function: Callable[[Connection], Awaitable[T]]) -> T:
        """A reading on a connection of the pool, so that it does not wait behind a COMMIT."""

        async def attempt() -> T:
            self._check()
            pool = await self._reading()
            with server.saying(self.url):
                async with asyncio.timeout(self._patience), pool.acquire(timeout=self._patience) as connection:
                    try:
                        with self._watch.asking(connection):
                            async with self._transaction(connection):
                                return await function(connection)
                    except (OSError, asyncio.CancelledError):  # the driver would wait as long again for its end
                        connection.terminate()
                        raise

        return await patiently(lambda: whole(attempt()))

    def _transaction(self, connection: Connection, *, several: bool = False) -> Any:
        """Round several statements. One is a transaction by itself, save where no prepared statement may be kept: there
        preparing and running it are two, and a pooler between might send them to two servers.
        """
        if several or self._in_transactions:
            return server.transaction(connection)
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
        except Refused as error:
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
                await create(connection, created)
            if several:
                held = [w.run.id for writes in kinds.values() for w in writes if w.run is not None]
                named = [w.record[:2] for w in kinds.get("post", ())] + [(p.workflow, p.key) for p in posts]
                kin = ([], []) if not related else kin_of(related)
                await connection.execute(SQL["lock"], [*held, *kin[0]], *arrays(named, 2), *arrays(kin[1], 3))
            for kind, write_all in KINDS.items():
                if kind in kinds:
                    await write_all(connection, kinds[kind], now)

    def transaction(self, run: Run) -> Lent:
        self._check()
        return PostgresLent(self, run)

    async def _outcome(self, write: Write) -> None:
        """Set the error of a move whose COMMIT may have been made, none where it was. Waits for one under way."""

        async def look(connection: Connection) -> None:
            async with server.transaction(connection):
                await connection.execute(SQL["lock"], [write.run.id], [], [], [], [], [])
                await resolve(connection, [write])

        await self._ask(look)

    # -- reading ----------------------------------------------------------------------------------------------------

    async def read_rows(self, block: str, *values: Any) -> list[asyncpg.Record]:
        return await self._ask(lambda db: db.fetch(SQL[block], *values))

    async def _read_runs(self, block: str, *values: Any) -> Runs:
        return await self._ask(lambda db: runs(db, SQL[block], *values))

    async def history(self, run: Run) -> Entries:
        return await self._ask(lambda db: history(db, run))

    async def rings(self, names: Names, heard: int, within: float) -> int:
        """Heard over a connection of its own; not where a pooler gives every transaction another one."""
        self._check()
        ringing = super().rings if self._in_transactions else self._bell.rings
        return await ringing(names, heard, within)

    # -- claims and owners ------------------------------------------------------------------------------------------

    async def _claim(self, owner: str, workflows: Versions, many: int, by: float, but: Pairs, limits: Limits) -> Runs:
        """One claim. Where an answer was lost, what the claim had made ours comes first."""
        claim, asked, now = secrets.token_hex(8), False, self.now()
        names = list(workflows)
        values = (names, many, claim, [workflows[name] for name in names], *arrays(but, 2))

        async def attempt(db: Connection) -> Runs:
            nonlocal asked
            before = await runs(db, SQL["claimed"], owner, by, claim) if asked else []
            asked = True
            if before or not limits:
                return before or await runs(db, SQL["claim"], owner, by, *values, now)
            free = await rooms(db, limits)
            return await runs(db, SQL["claim_within"], owner, by, *values, list(free), list(free.values()), now)

        return await self._do(attempt, several=bool(limits))

    async def _oldest_due(self, workflows: Versions, by: float, but: Pairs) -> Sequence[Any]:
        return await self.read_rows("claimable", by, list(workflows), list(workflows.values()), *arrays(but, 2))

    async def claim_one(
        self, owner: str, workflow: str, key: str, newest: int | None = None, limit: int | None = None
    ) -> Run | None:
        values = (owner, workflow, key, newest, self.now())

        async def attempt(db: Connection) -> Runs:
            full = limit is not None and (await rooms(db, {workflow: limit}))[workflow] < 1
            return [] if full else await runs(db, SQL["claim_one"], *values)

        found = await self._do(attempt, several=limit is not None)
        return found[0] if found else None

    async def oldest(self, workflow: str, but: Names, newest: int | None = None) -> str | None:
        key: str | None = await self._ask(lambda db: db.fetchval(SQL["oldest"], workflow, but, newest))
        return key

    async def overdue(self, workflows: Names) -> float | None:
        since: float | None = await self._ask(lambda db: db.fetchval(SQL["overdue"], workflows))
        return since

    async def prune(self, workflow: str, statuses: Names, before: float, many: int) -> int:
        """Looked for without a lock; those that are found are locked, and looked at again."""
        ids = [row["id"] for row in await self.read_rows("prunable", workflow, statuses, before, many)]

        async def go(db: Connection) -> int:
            await db.execute(SQL["prune_lock"], ids)
            gone: int = await db.fetchval(SQL["prune"], ids, statuses, before)
            return gone

        return await self._do(go, several=True) if ids else 0

    async def trim(self, run: Run, before: int) -> None:
        await self._do(lambda db: db.execute(SQL["trim"], run.id, run.owner, run.epoch, before))

    async def enrol(self, owner: Owner) -> None:
        values = (owner.token, owner.machine, owner.process, owner.lease, owner.started, owner.draining)
        await self._do(lambda db: self._measured(db.fetchval(SQL["enrol"], *values)))

    async def renew(self, token: str, lease: float) -> bool:
        return await self._do(lambda db: self._measured(db.fetchval(SQL["renew"], token, lease)))

    async def bury(self, token: str) -> None:
        await self._do(lambda db: db.execute(SQL["bury"], token))

    async def legacy(self) -> Runs:
        """What is unfinished in the table `workflow_states` and no run here yet, the oldest first, to be created.

        Empty where there is no such table, or not of that shape. A row that no run can be made of is said in the log.
        """

        async def rows_of(db: Connection) -> list[asyncpg.Record]:
            return await db.fetch(SQL["legacy_runs"]) if await db.fetchval(SQL["legacy_table"]) else []

        now = self.now()
        found = [legacy_run(row, now) for row in await self._ask(rows_of)]
        return [run for run in found if run is not None]

    async def reset(self) -> None:
        await self._do(lambda db: db.execute(SQL["reset"], timeout=server.RESET_SECONDS))
