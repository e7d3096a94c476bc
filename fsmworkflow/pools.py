"""Pools, clients and folders: resources for `Engine(resources=...)`, each opened once, bounded, and lent to steps.

Engine(url, resources={"db": Pool(connect, max=5), "http": HttpClient(timeout=10), "files": Folder("out")})
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from fsmworkflow.errors import log
from fsmworkflow.resources import Check, Kept, Resource, ResourceError, ResourceTimeout, Shared, yes
from fsmworkflow.retry import Duration, seconds
from fsmworkflow.threads import Threads

__all__ = ["Folder", "HttpClient", "Pool", "ResourceError", "ResourceTimeout", "Shared"]


LOOKS = 4
"""How often in its idle time a pool looks for members that nobody has used for so long."""


class Pool(Resource):
    """Up to `max` things of one kind, each lent to one step at a time, such as connections.

        Pool(lambda: aiosqlite.connect("orders.db"), max=4, reset=aiosqlite.Connection.rollback)

    `make` gives an async context manager, or, awaited or not, what has an `aclose` or `close`. `min` are open from the
    start and stay; others are closed when nobody has used them for `idle` seconds. `check` is asked before each
    lending, and a member that is not well is thrown away for a new one, as is one whose block ended by an error or was
    cancelled: nobody knows what it is in the middle of. `reset(member)` is called when it is given back.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        *,
        min: int = 1,
        max: int = 10,
        wait: Duration = 30.0,
        idle: Duration = 300.0,
        check: Check | None = None,
        reset: Check | None = None,
    ) -> None:
        super().__init__(max=max, wait=wait, check=check)
        if type(min) is not int or not 0 <= min <= max:
            raise ValueError(f"min must be a whole number from 0 to max, not {min!r}")
        if not callable(make):
            raise TypeError(f"a pool is given a function that makes its members, not {make!r:.100}")
        self._make, self._reset, self.min, self._most, self.idle = make, reset, min, max, seconds(idle)
        self._free: deque[Kept] = deque()  # the youngest is lent first, so that the others grow old
        self._all: set[Kept] = set()
        self._tiring: asyncio.Task[None] | None = None

    async def _open(self) -> None:
        self._tiring = asyncio.create_task(self._tire(), name=f"fsmworkflow-{self.name}")
        for _ in range(self.min):
            self._free.append(await self._made())

    async def _made(self) -> Kept:
        while len(self._all) >= self._most:  # some of them are closing
            await asyncio.wait([kept.task for kept in self._all if kept.ended], return_when=asyncio.FIRST_COMPLETED)
        if not self.opened:  # it was closed meanwhile
            raise ResourceError(f"{self.name} is closed")
        kept = Kept(self._make, self.name)
        self._all.add(kept)
        self.many = len(self._all)
        kept.task.add_done_callback(lambda _: self._gone(kept))
        await kept.open()
        kept.since = asyncio.get_running_loop().time()
        return kept

    def _gone(self, kept: Kept) -> None:
        self._all.discard(kept)
        self.many = len(self._all)

    def _close(self) -> list[asyncio.Task[None]]:
        tiring = [] if self._tiring is None else [self._tiring]
        for task in tiring:
            task.cancel()
        self._free.clear()
        return [*tiring, *(kept.close() for kept in list(self._all))]

    async def _look(self) -> None:
        if self.many or self.min:  # else nothing is to be open only because it is asked
            await super()._look()

    async def _lent(self, stack: AsyncExitStack) -> Any:
        kept = None
        while kept is None or kept.ended:
            kept = await self._sound(self._free.pop()) if self._free else await self._made()
        stack.push_async_exit(self._back(kept))
        return kept.value

    async def _sound(self, kept: Kept) -> Kept | None:
        """A member that is well; one that is not is thrown away."""
        well = False
        try:
            well = not kept.ended and await yes(self.check, kept.value)
        except Exception as error:
            log.warning("a member of %s is thrown away: %r", self.name, error)
        finally:
            if not well:
                kept.close()
        return kept if well else None

    def _back(self, kept: Kept) -> Callable[..., Any]:
        async def back(kind: Any, error: BaseException | None, trace: Any) -> None:
            well = False
            try:
                if error is None and not kept.ended:
                    async with asyncio.timeout(self.wait):
                        well = await yes(self._reset, kept.value)
            except Exception as refused:
                log.warning("a member of %s is thrown away, as it could not be reset: %r", self.name, refused)
            finally:
                kept.since = asyncio.get_running_loop().time()
                if well and self.opened:
                    self._free.append(kept)
                else:
                    kept.close()

        return back

    async def _tire(self) -> None:
        """Close, now and then, what nobody has used for long."""
        while True:
            await asyncio.sleep(max(self.idle / LOOKS, 0.01))
            now = asyncio.get_running_loop().time()
            more = sum(not kept.ended for kept in self._all) - self.min
            while more > 0 and self._free and self._free[0].since + self.idle <= now:
                self._free.popleft().close()
                more -= 1


class HttpClient(Shared):
    """One `httpx.AsyncClient(**options)` for all steps, `max` of them at a time. Needs `fsmworkflow[http]`."""

    def __init__(
        self, *, max: int | None = 100, wait: Duration = 30.0, check: Check | None = None, **options: Any
    ) -> None:
        try:
            from httpx import AsyncClient
        except ImportError as error:
            raise ResourceError("HttpClient needs httpx: pip install 'fsmworkflow[http]'") from error
        super().__init__(lambda: AsyncClient(**options), max=max, wait=wait, check=check)


class Folder(Shared):
    """A folder that is made where it is not there, and must take files. Steps are given its Path."""

    def __init__(self, path: str | os.PathLike[str], *, max: int | None = None, wait: Duration = 30.0) -> None:
        super().__init__(self._path, max=max, wait=wait, check=self._writable)
        self._folder = Path(path).absolute()

    async def _path(self) -> Path:
        await self._writable(self._folder)
        return self._folder

    async def _writable(self, folder: Path) -> None:
        def write() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b".")

        await Threads().call(write)
