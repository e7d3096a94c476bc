"""A PostgreSQL server: how it is addressed, what its errors mean, and how our tables come to be there."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import asyncpg

from fsmworkflow.errors import SchemaError, StoreError, StoreUnavailable
from fsmworkflow.store.sql import Migration, missing, queries

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]

SQL = queries("postgres")
CONNECT_SECONDS, ANSWER_SECONDS, OPEN_SECONDS, CLOSE_SECONDS, RESET_SECONDS = 3.0, 60.0, 3.0, 5.0, 3_600.0
POOL = {"min_size": 0, "max_size": 10}
READS = {"min_size": 0, "max_size": 4, "reset": lambda _: asyncio.sleep(0)}  # a reading leaves nothing to be reset
POOL_ONLY = frozenset(inspect.signature(asyncpg.create_pool).parameters) - {"dsn", "loop", "connect_kwargs"}
CONNECTION = frozenset(inspect.signature(asyncpg.connect).parameters) - {"dsn", "loop"}
# The server may answer again: classes 08 (connection), 40 (rolled back), 53 (resources), 57 (shut down, starting) and
# 58 (system); a lock that was not to be had; a transaction that took too long; a standby in place of the primary.
PASSING = (
    asyncpg.PostgresConnectionError, asyncpg.TransactionRollbackError, asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError, asyncpg.PostgresSystemError, asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError, asyncpg.TransactionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError, asyncpg.InvalidCachedStatementError, asyncpg.InterfaceError,
    asyncpg.InternalClientError, OSError,
)  # fmt: skip
UNHARMED = (asyncpg.TransactionRollbackError, asyncpg.LockNotAvailableError)
"""What leaves the connection as it was; after anything else of PASSING it is given up."""


@contextlib.contextmanager
def saying(place: str, lasting: type[StoreError] = StoreError) -> Iterator[None]:
    """Errors of the driver as ours, with the place: one that waiting does not mend is `lasting`."""
    try:
        yield
    except (asyncpg.ClientConfigurationError, asyncpg.TargetServerAttributeNotMatched) as error:
        raise StoreError(f"{place}: {error}") from error
    except PASSING as error:
        raise StoreUnavailable(f"{place}: {error!s:.500} ({type(error).__name__})") from error
    except asyncpg.PostgresError as error:  # its message alone: the detail may show a whole row
        raise lasting(f"{place}: {error.args[0]} ({type(error).__name__})") from error


def shown(url: str | None, keywords: Mapping[str, Any]) -> str:
    """The address as it may be shown: without the password, wherever it stands."""
    if url is None:
        user, host, port = keywords.get("user", ""), str(keywords.get("host", "localhost")), keywords.get("port", 5432)
        login, database = f"{quote(user, safe='')}@" if user else "", quote(keywords.get("database") or user, safe="")
        if host.startswith("/"):  # the directory of a Unix socket
            return f"postgresql://{login}/{database}?host={quote(host)}&port={port}"
        return f"postgresql://{login}{f'[{host}]' if ':' in host else host}:{port}/{database}"
    # By hand: what urlsplit makes of a password that was not escaped may show it.
    scheme, _, rest = url.partition("://")
    login, at, place = rest.rpartition("@")
    place, _, query = place.partition("?")
    shown = "&".join(word for word in query.split("&") if not word.startswith(("password=", "passfile=")))
    return f"{scheme}://{login.partition(':')[0]}{at}{place}{'?' if shown else ''}{shown}"


async def closed(one: asyncpg.Connection[asyncpg.Record] | asyncpg.Pool[asyncpg.Record]) -> None:
    """Close in peace, or after a few seconds without a word."""
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await one.close()
    except (TimeoutError, asyncpg.PostgresError, *PASSING):
        one.terminate()
    except BaseException:
        one.terminate()
        raise


@contextlib.asynccontextmanager
async def transaction(connection: Connection) -> AsyncIterator[None]:
    """A transaction, or that which is open. The server ends it where it hears nothing for five seconds.

    A client that a network or a machine took away may never be told to be gone, and would keep its rows locked.
    """
    if connection.is_in_transaction():
        yield
        return
    await connection.execute(SQL["begin"])
    try:
        yield
    except Exception:  # who is cancelled gives the connection up
        if not connection.is_closed():
            await connection.execute("ROLLBACK;")
        raise
    await connection.execute("COMMIT;")


async def migrate(connection: Connection) -> None:
    """What is missing is created, what is older upgraded, all in one transaction, one process after the other."""
    async with transaction(connection):
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
