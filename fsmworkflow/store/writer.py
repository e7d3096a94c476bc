"""Group commit: one writer takes all waiting writes, commits them in one transaction, and says how each went.

There is no waiting window and no largest batch: while one batch is on its way to the disk, the next one gathers. The
writer owns the batch, so a cancelled caller cancels only its own future.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

from fsmworkflow.errors import StoreUnavailable

T = TypeVar("T")
Kind = Literal["create", "move", "settle", "release", "call"]
Apply = Callable[[list["Write"]], Awaitable[None]]

log = logging.getLogger("fsmworkflow")

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0


class Write:
    """One write that waits for its commit. `apply` sets `result` or `error`; the writer hands them to the caller."""

    __slots__ = ("error", "future", "kind", "record", "result", "run")

    def __init__(self, kind: Kind, record: Any, run: Any, future: asyncio.Future[Any]) -> None:
        self.kind = kind
        self.record = record
        self.run = run
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None


class Writer:
    """Gathers writes and hands them to `apply` in batches, one at a time.

    `apply` commits a batch whole and sets each write's result or error. Where it raises StoreUnavailable the whole
    batch is tried again, with pauses of 0.05 to 2 seconds, for as long as it takes; any other error is every caller's.
    """

    def __init__(self, apply: Apply) -> None:
        self._apply = apply
        self._waiting: list[Write] = []
        self._task: asyncio.Task[None] | None = None
        self._late = False

    def put(self, kind: Kind, record: Any, run: Any = None) -> asyncio.Future[Any]:
        """Queue a write. The future is done when it is durable, or has failed."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(Write(kind, record, run, future))
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="fsmworkflow-writer")
        return future

    async def drain(self, seconds: float | None = None) -> None:
        """Wait until nothing is waiting, for up to `seconds`: what then still waits fails with StoreUnavailable."""
        while self._task is not None:
            done, _ = await asyncio.wait([self._task], timeout=seconds)
            if not done:
                self._late = True
                self._task.cancel()

    async def _work(self) -> None:
        batch: list[Write] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await self._commit(batch)
                _answer(batch)
        finally:
            late, self._task, self._late = self._late, None, False
            batch, self._waiting = [*batch, *self._waiting], []
            for write in batch:  # some are left only where the loop is being torn down, or `drain` gave them up
                if not late:
                    write.future.cancel()
                elif not write.future.done():
                    write.future.set_exception(StoreUnavailable("the store was closed before this could be written"))

    async def _commit(self, batch: list[Write]) -> None:
        try:
            await patiently(lambda: self._apply(batch))
        except Exception as error:
            for write in batch:
                write.error = error


def _answer(batch: list[Write]) -> None:
    for write in batch:
        if not write.future.done():
            if write.error is None:
                write.future.set_result(write.result)
            else:
                write.future.set_exception(write.error)


async def patiently(attempt: Callable[[], Awaitable[T]], *, within: float = math.inf) -> T:
    """What `attempt` returns, tried again for as long as it raises StoreUnavailable, with a warning in the log.

    After `within` seconds its StoreUnavailable is raised.
    """
    pause, end = FIRST_PAUSE, time.monotonic() + within
    while True:
        try:
            return await attempt()
        except StoreUnavailable as error:
            if time.monotonic() + pause > end:
                raise
            log.warning("the store cannot do its work, trying again in %.2g s: %s", pause, error)
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)
