"""DBConfig: which store, from keywords, the environment and `.env`, and who has it open.

The first of these that names one decides: keywords, FSMWORKFLOW_URL, DB_* of the environment, `.env` in the working
directory, `.env` in the home directory. Where none does, it is SQLite's `fsmworkflow.db` in the working directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from fsmworkflow.errors import StoreError, log
from fsmworkflow.store import Store, open_store
from fsmworkflow.worker import Use, Worker

if TYPE_CHECKING:
    from asyncpg import Pool, Record

__all__ = ["DBConfig"]

Words = dict[str, str]
Values = Mapping[str, str | None]

URL = "FSMWORKFLOW_URL"
VARIABLES = {
    "host": ("DB_HOST",), "port": ("DB_PORT",), "database": ("DB_DATABASE", "DB_NAME"), "user": ("DB_USER",),
    "password": ("DB_PASSWORD",),
}  # fmt: skip
NAMING = ("host", "database", "user")
DEFAULTS = {"host": "localhost", "port": "5432", "database": "fsmdb"}
CLOSE_SECONDS = 1.5


class DBConfig:
    """Where runs are kept. Read once, when this is made; nothing is opened before it is used.

    `host`, `database` (or `name`) or `user` means PostgreSQL, and so does DB_HOST, DB_NAME (or DB_DATABASE) or DB_USER;
    what is then missing is looked for, value by value, in DB_* of the sources that follow, and is in the end localhost,
    port 5432 and the database "fsmdb". `url` or FSMWORKFLOW_URL names any store, and is taken whole but for the values
    that keywords replace. Further keywords go to asyncpg's pool, whose `min_size` is 0 unless given. An empty value is
    none. Raises StoreError for a URL that no store has, for a `.env` or a port that cannot be read, and for a keyword
    that asyncpg does not have.

    `url` is without the password. `pool` is asyncpg's pool while it is open, for statements of your own; always None on
    SQLite. It may be used under one `asyncio.run` after another: each event loop has a store and a pool of its own.
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        host: str | None = None,
        port: int | str | None = None,
        database: str | None = None,
        name: str | None = None,
        user: str | None = None,
        password: str | None = None,
        **pool: Any,
    ) -> None:
        given = {"host": host, "port": port, "database": database or name, "user": user, "password": password}
        keywords = {word: str(value) for word, value in given.items() if value}
        base, words, source = _read(url, keywords)
        self.host = words.get("host")
        self.port = _port(words.get("port"))
        self.database = self.name = words.get("database")
        self.user = words.get("user")
        self.password = words.get("password")
        self._place = base
        self._options: dict[str, Any] | None = None
        if base is None or _postgres(base):
            beside = {word: value for word in VARIABLES if (value := getattr(self, word)) is not None}
            self._options = {"connect": beside if keywords or base is None else {}, "pool": pool}
        self._store = _store(base, self._options)
        self.url = self._store.url
        if self.url.startswith("sqlite:"):  # its path is absolute now, and stays so in another directory
            self._place = self.url
        self._uses: dict[asyncio.AbstractEventLoop, Use] = {}
        log.info("runs are kept in %s (%s)", self.url, source)
        if self._options is None and (useless := [*keywords, *pool]):
            log.warning("%s has no use for %s: only PostgreSQL has", self.url, ", ".join(useless))

    def __repr__(self) -> str:
        return f"<DBConfig {self.url}>"

    async def __aenter__(self) -> Self:
        await self.setup()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def store(self) -> Store:
        """The store, open or not: that of the running event loop."""
        use = self._current()
        return self._store if use is None else use.store

    @property
    def pool(self) -> Pool[Record] | None:
        """asyncpg's pool while it is open, else None."""
        pool: Pool[Record] | None = getattr(self.store, "pool", None)
        return None if pool is None or pool.is_closing() else pool

    # -- opened and closed by the user -------------------------------------------------------------------------------

    async def setup(self) -> None:
        """Open the store, with its tables, and on PostgreSQL the pool: until `close()`, which alone closes them then.

        Called again it opens a pool that was closed meanwhile. Raises what the store's `open` raises.
        """
        use = self._use()
        async with use.lock:
            try:
                await use.open()
                use.kept = True
            finally:
                await use.rest()

    async def init_db(self) -> None:
        """`setup()`, and take over the unfinished runs in the first FSM-Workflow's table `workflow_states`, once each.

        That table is only read: what is there as a run, under its workflow_id as its key, is not taken again.
        """
        await self.setup()
        if self._options is None:
            return
        from fsmworkflow.store.postgres import PostgresStore

        store = self.store
        assert isinstance(store, PostgresStore)
        made = await asyncio.gather(*[store.create(run) for run in await store.legacy()])
        if taken := sum(new for _, new in made):
            log.info("%d unfinished runs of the table workflow_states were taken over into %s", taken, self.url)

    async def reset_db(self) -> None:
        """`setup()`, and delete all runs. `workflow_states` is left alone: the next `init_db()` takes it over anew."""
        await self.setup()
        await self.store.reset()

    async def close(self) -> None:
        """Close the store and the pool; where machines are at work with them, when the last of these has ended."""
        await asyncio.shield(self._use().rest_alone(None, kept=False))

    # -- used by machines --------------------------------------------------------------------------------------------

    async def acquire(self) -> Worker:
        """Open what is not open, and return the owner that all machines in this event loop share: until `release()`."""
        return await self._use().acquire()

    async def release(self) -> None:
        """Give one `acquire()` back. The last one closes, within 5 seconds, what was opened for it, not by the user.

        What cannot be closed in that time is said in the log.
        """
        await self._use().release(CLOSE_SECONDS)

    # -- one event loop after another --------------------------------------------------------------------------------

    def _current(self) -> Use | None:
        """What is in use in the running event loop; outside of any, in one that may run again."""
        with contextlib.suppress(RuntimeError):
            return self._uses.get(asyncio.get_running_loop())
        return next((use for loop, use in list(self._uses.items()) if not loop.is_closed()), None)

    def _use(self) -> Use:
        loop = asyncio.get_running_loop()
        if loop not in self._uses:
            dead = [self._uses.pop(old, None) for old in list(self._uses) if old.is_closed()]
            if any(use.opened for use in dead if use):  # nobody closed them, and nobody can any more
                del dead
                gc.collect()  # sockets close when they are collected: until then the server keeps their locks
            self._uses[loop] = Use(self._store if self.url == "memory://" else _store(self._place, self._options))
        return self._uses[loop]


# -- where the settings come from ------------------------------------------------------------------------------------


def _store(url: str | None, options: dict[str, Any] | None) -> Store:
    if options is None:
        return open_store(str(url))
    from fsmworkflow.store.postgres import PostgresStore
    from fsmworkflow.store.postgres_server import shown

    store = PostgresStore(url, **options)
    if options["connect"]:
        store.url = shown(None, options["connect"])  # keywords may have replaced what the URL says
    return store


def _read(url: str | None, keywords: Words) -> tuple[str | None, Words, str]:
    """The URL; what is known from it or beside it, where it is PostgreSQL; the source that named it, for the log."""
    found: Words = {}
    source: str | None = "the keyword url"
    if not url:
        url, found, source = _configured(keywords)
    elif _names(keywords) and not _postgres(url):
        raise StoreError(f"{', '.join(keywords)} is for PostgreSQL, and the URL is not: give one of them")
    if _names(keywords):
        source = f"keywords {', '.join(keywords)}" + (f" and {source}" if source else "")
    if url:
        return url, {**_words(url), **keywords} if _postgres(url) else {}, str(source)
    if source is None:
        return f"sqlite:///{quote(str(Path('fsmworkflow.db').absolute()))}", {}, "as nothing else is configured"
    return None, {**DEFAULTS, **found, **keywords}, source


def _configured(keywords: Words) -> tuple[str | None, Words, str | None]:
    """What the sources say beside the keywords: a URL, or else the values of DB_*; and the source that decided."""
    found: Words = {}
    source: str | None = None
    for name, values in _sources():
        url = values.get(URL)
        if url and source is None and (_postgres(url) or not _names(keywords)):
            return url, {}, f"{URL} of {name}"
        for word, variables in VARIABLES.items():
            given = [value for variable in variables if (value := values.get(variable))]
            if given and word not in found:
                found[word] = given[0]
        if source is None and _names(found):
            source = f"DB_* of {name}"
        if len({*found, *keywords}) == len(VARIABLES):
            break
    return None, found, source


def _names(words: Words) -> bool:
    return any(word in words for word in NAMING)


def _sources() -> Iterator[tuple[str, Values]]:
    yield "the environment", os.environ
    yield from _env_file(Path.cwd() / ".env")
    with contextlib.suppress(RuntimeError):  # an account may have no home
        yield from _env_file(Path.home() / ".env")


def _env_file(path: Path) -> Iterator[tuple[str, Values]]:
    if os.path.isdir(path) or not os.path.exists(path):  # a virtual environment may be called .env too
        return
    from dotenv import dotenv_values  # only a program that has such a file pays for it

    try:
        yield str(path), dotenv_values(path)
    except (OSError, UnicodeError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


def _postgres(url: str) -> bool:
    return url.startswith(("postgresql://", "postgres://"))


def _words(url: str) -> Words:
    """What a URL says of VARIABLES. Several hosts, and what else is in it, are left to asyncpg."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise StoreError("the URL of PostgreSQL cannot be read: is its password %-escaped?") from None
    query = dict(parse_qsl(parts.query))
    login, _, place = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    host, port = one.groups() if (one := re.fullmatch(r"\[?([^],]*?)\]?(?::(\d+))?", place)) else ("", "")
    found = {"host": host, "port": port, "database": parts.path[1:], "user": user, "password": password}
    also = {**query, "database": query.get("dbname", query.get("database", ""))}
    if place and not host:
        also.pop("host", None)
    return {word: value for word in VARIABLES if (value := unquote(found[word] or "") or also.get(word, ""))}


def _port(text: str | None) -> int | None:
    if text is None or "," in text:
        return None
    if not text.isdecimal():
        raise StoreError(f"{text!r} is no port: give a number")
    return int(text)
