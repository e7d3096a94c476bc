"""DBConfig: which store, from keywords, the environment and `.env`, and who has it open.

The first of these that names one decides: keywords, FSMWORKFLOW_URL, DB_* of the environment, `.env` in the working
directory, `.env` in the home directory. Where none does, it is the SQLite file `fsmworkflow.db` in the working directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import re
import threading
from collections.abc import Awaitable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from fsmworkflow.errors import StoreError
from fsmworkflow.store import Store, open_store
from fsmworkflow.worker import Worker

if TYPE_CHECKING:
    from asyncpg import Pool

__all__ = ["DBConfig"]

log = logging.getLogger("fsmworkflow")

Words = dict[str, str]

URL = "FSMWORKFLOW_URL"
VARIABLES = {
    "host": ("DB_HOST",),
    "port": ("DB_PORT",),
    "database": ("DB_DATABASE", "DB_NAME"),
    "user": ("DB_USER",),
    "password": ("DB_PASSWORD",),
}
NAMING = ("host", "database", "user")
DEFAULTS = {"host": "localhost", "port": "5432", "database": "fsmdb"}
CLOSE_SECONDS = 1.5


class DBConfig:
    """Where runs are kept. Read once, when this is made; nothing is opened before it is used.

    `host`, `database` (or `name`) or `user` means PostgreSQL, and so does DB_HOST, DB_NAME (or DB_DATABASE) or DB_USER;
    what is then missing is looked for, value by value, in DB_* of the sources that follow, and is in the end localhost,
    port 5432 and the database "fsmdb". `url` or FSMWORKFLOW_URL names any store, and is taken whole but for the values
    that keywords replace. Further keywords go to asyncpg's pool, whose `min_size` is 0 unless given. Empty means not given.

    `url` is without the password. `pool` is asyncpg's pool while it is open, for statements of your own; always None on
    SQLite. A DBConfig may be used under one `asyncio.run` after another: each event loop has a pool of its own.

    Raises StoreError for a URL that no store has, and for a `.env` or a port that cannot be read.
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
        self._dsn, words, source = _read(url, keywords)
        self.host = words.get("host")
        self.port = _port(words.get("port"))
        self.database = self.name = words.get("database")
        self.user = words.get("user")
        self.password = words.get("password")
        self._pool_keywords = pool
        self._store: Store = open_store(self._dsn)
        self.url = _spelled({k: v for k, v in words.items() if "password" not in k}) if words else self._store.url
        self._uses: dict[asyncio.AbstractEventLoop, _Use] = {}
        self._changing = threading.Lock()
        log.info("runs are kept in %s (%s)", self.url, source)
        if ignored := ", ".join([] if words else [*keywords, *pool]):
            log.warning("%s has no use for %s: that is PostgreSQL's", self.url, ignored)

    def __repr__(self) -> str:
        return f"<DBConfig {self.url}>"

    async def __aenter__(self) -> Self:
        await self.setup()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def store(self) -> Store:
        """The store of the running event loop, open or not."""
        use = self._current()
        return self._store if use is None else use.store

    @property
    def pool(self) -> Pool | None:
        """asyncpg's pool while it is open, else None."""
        use = self._current()
        return None if use is None or use.pool is None or use.pool.is_closing() else use.pool

    @pool.setter
    def pool(self, pool: Pool | None) -> None:
        if pool is not None or self._current() is not None:
            self._use().pool = pool

    # -- opened and closed by the user -------------------------------------------------------------------------------

    async def setup(self) -> None:
        """Open the store, its tables created or upgraded, and on PostgreSQL the pool: until `close()`, and only until then.

        May be called again, also to open a pool anew that was closed. Raises what the store's `open` raises.
        """
        use = self._use()
        async with use.lock:
            try:
                await use.open(self._dsn, self._pool_keywords)
                use.kept = True
            finally:
                await use.rest()

    async def init_db(self) -> None:
        """`setup()`, and take over what the first FSM-Workflow left unfinished in its table `workflow_states`, once.

        That table is only read. A run that is there under its workflow_id is not taken again; the log says how many were.
        """
        await self.setup()
        store = self.store
        legacy = getattr(store, "legacy", None)
        if legacy is not None:
            made = await asyncio.gather(*[store.create(run) for run in await legacy()])
            if taken := sum(new for _, new in made):
                log.info("%d unfinished runs of the table workflow_states were taken over into %s", taken, self.url)

    async def reset_db(self) -> None:
        """`setup()`, and delete all runs. The first FSM-Workflow's table is left alone: `init_db()` takes it over anew."""
        await self.setup()
        await self.store.reset()

    async def close(self) -> None:
        """Close the store and the pool. Where machines are at work here, that is done when the last of them has ended."""
        use = self._use()
        async with use.lock:
            use.kept = False
        await use.rest_whole(None)

    # -- used by machines --------------------------------------------------------------------------------------------

    async def acquire(self) -> Worker:
        """Open what is not open, and return the owner that all machines in this event loop share. Then call `release()`."""
        use = self._use()
        async with use.lock:
            use.users += 1
            try:
                return await use.work(self._dsn, self._pool_keywords)
            except BaseException:
                use.users -= 1
                await use.rest()
                raise

    async def release(self) -> None:
        """Give one `acquire()` back. The last one closes what it opened, within 5 seconds, and not what the user opened."""
        use = self._use()
        use.users = max(0, use.users - 1)
        if not use.users:
            await use.rest_whole(CLOSE_SECONDS)

    # -- one event loop after another --------------------------------------------------------------------------------

    def _current(self) -> _Use | None:
        """What is in use in the running event loop; outside of any, in the only one that there is."""
        try:
            return self._uses.get(asyncio.get_running_loop())
        except RuntimeError:
            alive = [use for loop, use in list(self._uses.items()) if not loop.is_closed()]
            return alive[0] if len(alive) == 1 else None

    def _use(self) -> _Use:
        loop = asyncio.get_running_loop()
        use = self._uses.get(loop)
        if use is None:
            with self._changing:
                self._forget_the_dead()
                use = self._uses[loop] = _Use(self._free_store())
        return use

    def _forget_the_dead(self) -> None:
        left = False
        for loop in [loop for loop in self._uses if loop.is_closed()]:
            use = self._uses.pop(loop)
            if use.opened:  # nobody closed it, and nobody can any more
                left = True
                if use.store is self._store and not self._in_memory:
                    self._store = open_store(self._dsn)
            del use
        if left:
            gc.collect()  # sockets close when they are collected, and until then the server keeps their locks

    def _free_store(self) -> Store:
        taken = any(use.store is self._store for use in self._uses.values())
        return open_store(self._dsn) if taken and not self._in_memory else self._store

    @property
    def _in_memory(self) -> bool:
        return self._dsn.startswith("memory:")


class _Use:
    """What is open in one event loop: store, pool and owner; how many machines use it, and whether the user keeps it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.pool: Pool | None = None
        self.worker: Worker | None = None
        self.opened = False
        self.kept = False
        self.users = 0
        self.lock = asyncio.Lock()

    async def open(self, dsn: str, keywords: Mapping[str, Any]) -> None:
        if not self.opened:
            await self.store.open()
            self.opened = True
        if _postgres(dsn) and (self.pool is None or self.pool.is_closing()):
            from fsmworkflow.store.postgres import open_pool

            self.pool = await open_pool(dsn, keywords)

    async def work(self, dsn: str, keywords: Mapping[str, Any]) -> Worker:
        await self.open(dsn, keywords)
        if self.worker is None:
            worker = Worker(self.store)
            await worker.open()
            self.worker = worker
        return self.worker

    async def rest_whole(self, seconds: float | None) -> None:
        """`rest`, alone and to its end: a caller that is cancelled meanwhile leaves nothing half closed."""

        async def alone() -> None:
            async with self.lock:
                await self.rest(seconds)

        await asyncio.shield(alone())

    async def rest(self, seconds: float | None = None) -> None:
        """Close what nobody uses, waiting up to `seconds` for each part. What cannot be closed is said in the log."""
        if self.users:
            return
        worker, self.worker = self.worker, None
        if worker is not None:
            await _ended(worker.close(), "the owner", seconds)
        if self.kept:
            return
        pool, self.pool = self.pool, None
        if pool is not None and not pool.is_closing():
            await _ended(pool.close(), "the pool", seconds)
        if self.opened:
            self.opened = False
            await _ended(self.store.close(), self.store.url, seconds)


async def _ended(closing: Awaitable[None], what: str, seconds: float | None) -> None:
    try:
        async with asyncio.timeout(seconds):
            await closing
    except Exception as error:
        log.warning("%s could not be closed: %s", what, error or type(error).__name__)


# -- where the settings come from ----------------------------------------------------------------------------------------


def _read(url: str | None, keywords: Words) -> tuple[str, Words, str]:
    """The whole URL, its words where it is PostgreSQL's (else none), and the source that named it, for the log."""
    found: Words = {}
    source: str | None = "the keyword url"
    if not url:
        url, found, source = _configured(_names(keywords))
    elif _names(keywords) and not _postgres(url):
        raise StoreError(f"the keywords {', '.join(keywords)} are PostgreSQL's, and the keyword url is not: give one of them")
    if _names(keywords):
        source = f"keywords ({', '.join(keywords)})" + (f" and {source}" if source else "")
    if url:
        words = {**_words(url), **keywords} if _postgres(url) else {}
        return _spelled(words) if words and keywords else url, words, str(source)
    if source is None:
        return f"sqlite:///{quote(str(Path('fsmworkflow.db').absolute()))}", {}, "default: nothing else is configured"
    words = {**DEFAULTS, **found, **keywords}
    return _spelled(words), words, source


def _configured(named: bool) -> tuple[str | None, Words, str | None]:
    """The URL, or else the values of DB_*, and the source that decided. Where keywords named PostgreSQL, no other URL."""
    found: Words = {}
    source: str | None = None
    for name, values in _sources():
        url = values.get(URL)
        if url and source is None and (not named or _postgres(url)):
            return url, {}, f"{URL} of {name}"
        for word, variables in VARIABLES.items():
            if word not in found and (given := [v for variable in variables if (v := values.get(variable))]):
                found[word] = given[0]
        if source is None and _names(found):
            source = f"DB_* of {name}"
    return None, found, source


def _names(words: Words) -> bool:
    return any(word in words for word in NAMING)


def _sources() -> Iterator[tuple[str, Mapping[str, str | None]]]:
    yield "the environment", os.environ
    yield from _env_file(Path.cwd() / ".env")
    with contextlib.suppress(RuntimeError):  # an account without a home
        yield from _env_file(Path.home() / ".env")


def _env_file(path: Path) -> Iterator[tuple[str, Mapping[str, str | None]]]:
    if os.path.isdir(path) or not os.path.exists(path):  # a virtual environment may be called .env too
        return
    from dotenv import dotenv_values  # only a program that has such a file pays for it

    try:
        yield str(path), dotenv_values(path)
    except (OSError, UnicodeError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


# -- PostgreSQL's URLs ---------------------------------------------------------------------------------------------------


def _postgres(url: str) -> bool:
    return url.startswith(("postgresql://", "postgres://"))


def _words(url: str) -> Words:
    """A URL of PostgreSQL taken apart: the words of VARIABLES that are in it, and its other parameters."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise StoreError("the URL of PostgreSQL cannot be read: %-escape what is special in its user and password") from None
    words = dict(parse_qsl(parts.query))
    words["database"] = unquote(parts.path[1:]) or words.pop("dbname", words.get("database", ""))
    login, _, place = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    one = re.fullmatch(r"\[?([^],]*?)\]?(?::(\d+))?", place)  # else several hosts, each with its port
    host, port = one.groups() if one else (place, None)
    found = {"host": host, "port": port, "user": user, "password": password}
    return {k: v for k, v in {**words, **{k: unquote(v) for k, v in found.items() if v}}.items() if v}


def _spelled(words: Words) -> str:
    """The URL of these words. A directory, that of a Unix socket, is a parameter; so is a port without a host."""
    query = {k: v for k, v in words.items() if k not in VARIABLES}
    host, port = words.get("host", ""), words.get("port", "")
    if not host or host.startswith("/"):
        query.update({k: v for k, v in (("host", host), ("port", port)) if v})
        place = ""
    else:
        place = f"[{host}]" if ":" in host and "," not in host else quote(host, safe=":,[]")
        place += f":{port}" if port else ""
    login = quote(words.get("user", ""), safe="") + (f":{quote(p, safe='')}" if (p := words.get("password")) else "")
    database = quote(words.get("database", ""), safe="")
    parameters = f"?{urlencode(query, quote_via=quote)}" if query else ""
    return f"postgresql://{login}{'@' if login else ''}{place}/{database}{parameters}"


def _port(text: str | None) -> int | None:
    if text is None or "," in text:
        return None
    if not text.isdecimal():
        raise StoreError(f"{text!r} is no port: give a number")
    return int(text)
