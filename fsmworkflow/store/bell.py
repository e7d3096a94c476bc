"""Bell: hears what other processes ring through the database, so that nobody has to wait for the next look.

Polling stays the truth. A ring may be lost with its connection: then another one is opened, and everybody looks once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fsmworkflow.errors import log

__all__ = ["CHANNEL", "Bell"]

CHANNEL = "fsmworkflow"
"""Where statements ring; in `queries.sql` it stands as it is. What they say is an owner, or nothing: whoever works."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0


class Bell:
    """Listens on a connection of its own, from the first `rings` to `close`; `connect` opens one."""

    def __init__(self, connect: Callable[[], Awaitable[Any]]) -> None:
        self._connect = connect
        self._counts: Counter[str] = Counter()
        self._opened = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self._task: asyncio.Task[None] | None = None

    async def rings(self, names: Iterable[str], heard: int, within: float) -> int:
        """How often it has rung for these names, as soon as that is not `heard`, or after `within` seconds."""
        if self._task is None:
            self._task = asyncio.create_task(self._listen(), name="fsmworkflow-bell")
        loop = asyncio.get_running_loop()
        end, wanted = loop.time() + within, list(names)
        while (count := self._count(wanted)) == heard and (left := end - loop.time()) > 0:
            future = loop.create_future()
            self._waiting.add(future)
            try:
                await asyncio.wait([future], timeout=left)
            finally:
                self._waiting.discard(future)
        return count

    def close(self) -> None:
        """Hear no more."""
        task, self._task = self._task, None
        if task is not None and not task.get_loop().is_closed():
            task.cancel()

    def _count(self, names: Iterable[str]) -> int:
        return self._opened + sum(self._counts[name] for name in names)

    def _heard(self, *said: Any) -> None:
        self._counts[said[-1]] += 1
        self._wake()

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def _listen(self) -> None:
        pause = FIRST_PAUSE
        while True:
            opened = self._opened
            try:
                await self._listen_once()
            except Exception as error:  # whatever it is: without a bell there is still the next look
                log.info("the store is not listened to for now, only looked at: %r", error)
            pause = FIRST_PAUSE if self._opened > opened else min(2 * pause, LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def _listen_once(self) -> None:
        connection = await self._connect()
        broken = asyncio.get_running_loop().create_future()
        try:
            connection.add_termination_listener(lambda _: None if broken.done() else broken.set_result(None))
            await connection.add_listener(CHANNEL, self._heard)
            self._opened += 1  # what rang before is not known: everybody looks
            self._wake()
            await broken
        finally:
            connection.terminate()
