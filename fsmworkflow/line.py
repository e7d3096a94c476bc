"""Line: what was claimed and waits to be driven, and the crews that drive it, each so many at once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

__all__ = ["CHUNK", "Crew", "Line"]

T = TypeVar("T")
Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]

CHUNK = 2_000
"""How many runs one claim takes at the most."""
AHEAD = 0.2
"""For how many seconds of work a line claims ahead: longer, and what waits here would be missed by other processes."""


class Line(Generic[T]):
    """What waits, the oldest first. Crews share it.

    Where nothing waits, one driver at a time awaits `more(line)`, which puts something in, or sets `ended`.
    """

    def __init__(self, more: Callable[[Line[T]], Awaitable[None]], drive: Callable[[T], Awaitable[None]]) -> None:
        self.waiting: deque[T] = deque()
        self.ended = False
        self.crews: set[Crew[T]] = set()
        self.drive = drive
        self.done = 0  # how many were driven since it was last asked how many are wanted
        self._more = more
        self._since = time.monotonic()
        self._filling = asyncio.Lock()

    async def filled(self) -> None:
        """Wait until something waits here, or the line has ended."""
        async with self._filling:
            if not self.waiting and not self.ended:
                await self._more(self)

    def wanted(self) -> int:
        """How many to claim: for each driver that has nothing to do, and what is done in 0.2 s at the pace of late.

        In less than that a few runs that end together would look like a pace: then as many as were done meanwhile.
        """
        now, ahead = time.monotonic(), self.done
        if (took := now - self._since) >= AHEAD:
            ahead = int(self.done / took * AHEAD)
            self.done, self._since = 0, now
        return min(CHUNK, sum(len(crew.idle) for crew in self.crews) + ahead)


class Crew(Generic[T]):
    """So many drivers of one line. `driving` is what they are at, `idle` are those that wait for something."""

    def __init__(self, line: Line[T], many: int, spawn: Spawn) -> None:
        if many < 1:
            raise ValueError(f"concurrency must be 1 or more, not {many!r}")
        self.line = line
        self.driving: set[T] = set()
        self.idle: set[asyncio.Task[Any]] = set()
        self.stopping = False
        line.crews.add(self)
        self._tasks = [spawn(self._go()) for _ in range(many)]
        self._left = many
        for task in self._tasks:  # several may end with the same error, which `over` raises once, or nobody waits for
            task.add_done_callback(lambda task: None if task.cancelled() else task.exception())

    def stop(self) -> None:
        """Take nothing more from the line. What is being driven is driven on."""
        self.stopping = True
        for task in self.idle:
            task.cancel()

    async def over(self) -> None:
        """Wait until the line has ended, or this crew was stopped, and nothing is driven here any more."""
        await asyncio.wait(self._tasks)
        for task in self._tasks:
            if not task.cancelled():
                task.result()

    async def dismiss(self, grace: float, last: float) -> None:
        """Stop, and let what is driven end for up to `grace` seconds; then cancel it, and wait for up to `last`."""
        self.stop()
        _, left = await asyncio.wait(self._tasks, timeout=grace)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=last)

    async def _go(self) -> None:
        try:
            while (item := await self._next()) is not None:
                self.driving.add(item)
                try:
                    await self.line.drive(item)
                finally:
                    self.driving.discard(item)
                    self.line.done += 1
        finally:
            self._left -= 1
            if not self._left:
                self.line.crews.discard(self)

    async def _next(self) -> T | None:
        if not (self.line.waiting or self.stopping):
            await self._idly(self.line.filled())
        return self.line.waiting.popleft() if self.line.waiting and not self.stopping else None

    async def _idly(self, filled: Coroutine[Any, Any, None]) -> None:
        """Wait as one who has nothing to do, and may be sent away at any time."""
        task = asyncio.current_task()
        assert task is not None
        self.idle.add(task)
        try:
            await filled
        except asyncio.CancelledError:
            if not self.stopping or task.uncancel() > 0:
                raise
        finally:
            self.idle.discard(task)
