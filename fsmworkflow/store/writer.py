"""Group commit: one writer takes all waiting writes, commits them in one transaction, and says how each went.

There is no waiting window and no largest batch: while one batch is on its way to the disk, the next one gathers. The
writer owns the batch, so a cancelled caller cancels only its own future.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, TypeVar

from fsmworkflow.errors import StoreError, StoreUnavailable, log

T = TypeVar("T")
Kind = Literal["create", "move", "settle", "release", "call", "post", "detailed"]
Apply = Callable[[list["Write"]], Coroutine[Any, Any, None]]
Done = Callable[[BaseException | None], None]
Start = Callable[[list["Write"], Done], Callable[[], object] | None]

FIRST_PAUSE, LONGEST_PAUSE, PART = 0.05, 2.0, 500


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
    """Gathers writes and hands them to `start` in batches, one at a time.

    `start(batch, done)` commits a batch, sets each write's result or error, and has `done(None)` called in the loop;
    with StoreUnavailable the whole batch is tried again, with pauses of 0.05 to 2 seconds, for as long as it takes; any
    other error is every caller's. What it returns, if anything, gives the attempt up.
    """

    def __init__(self, start: Start) -> None:
        self._start = start
        self._waiting: list[Write] = []
        self._lenders: deque[tuple[list[Write], asyncio.Future[None]]] = deque()
        self._batch: list[Write] = []
        self._busy = False
        self._pause = FIRST_PAUSE
        self._give_up: Callable[[], object] | None = None
        self._idle: asyncio.Future[None] | None = None

    def put(self, kind: Kind, record: Any, run: Any = None) -> asyncio.Future[Any]:
        """Queue a write. The future is done when it is durable, or has failed."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(Write(kind, record, run, future))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._flush)  # not at once: what is put in this turn of the loop rides along
        return future

    async def borrow(self) -> None:
        """Wait for a turn of one's own, in which nothing is written until `give_back`: after all that was put before.

        Not to be cancelled: nobody would give it back.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lenders.append((self._waiting, turn))
        self._waiting = []
        if not self._busy:
            self._busy = True
            self._flush()
        await turn

    def give_back(self) -> None:
        """The turn that was borrowed is over."""
        self._flush()

    async def drain(self, seconds: float | None = None) -> None:
        """Wait until nothing is waiting, for up to `seconds`: what then still waits fails with StoreUnavailable."""
        if not self._busy:
            return
        if self._idle is None:
            self._idle = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait([self._idle], timeout=seconds)
        if not done:
            earlier = [write for writes, _ in self._lenders for write in writes]
            left, self._batch, self._waiting = [*self._batch, *earlier, *self._waiting], [], []
            turns, self._lenders = [turn for _, turn in self._lenders], deque()
            for turn in turns:
                turn.set_exception(StoreUnavailable("the store was closed before its turn came"))
            if self._give_up is not None:
                self._give_up()
            _answer(left, StoreUnavailable("the store was closed before this could be written"))

    def _flush(self) -> None:
        if self._lenders:
            self._batch, turn = self._lenders[0]
            if not self._batch:
                self._lenders.popleft()
                turn.set_result(None)
                return
            self._lenders[0] = [], turn
            self._attempt(self._batch)
            return
        if self._waiting:
            self._batch, self._waiting = self._waiting, []
            self._attempt(self._batch)
            return
        self._busy = False
        if self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    def _attempt(self, batch: list[Write]) -> None:
        if batch is not self._batch:  # it was answered when the store was closed
            self._flush()
            return
        try:
            self._give_up = self._start(batch, lambda error: self._over(batch, error))
        except Exception as error:
            self._over(batch, error)

    def _over(self, batch: list[Write], error: BaseException | None) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(error, StoreUnavailable) and self._batch is batch:
            log.warning("the store cannot do its work, trying again in %.2g s: %s", self._pause, error)
            loop.call_later(self._pause, self._attempt, batch)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            return
        self._pause = FIRST_PAUSE
        _answer(batch[:PART], error)
        del batch[:PART]  # what was answered is kept by nobody
        # The rest in another turn of the loop, so that no timer waits for ten thousand steps; and what comes next after
        # those that were just answered, so that what they put rides along.
        loop.call_soon(self._over, batch, error) if batch else loop.call_soon(self._flush)


def in_task(apply: Apply) -> Start:
    """A `start` for a Writer from a coroutine function that commits a batch: a task for each attempt."""

    def start(batch: list[Write], done: Done) -> Callable[[], object]:
        async def attempt() -> None:
            error: BaseException | None = None
            try:
                await apply(batch)
            except (Exception, asyncio.CancelledError) as failed:
                error = failed
            done(error)  # here, and not in a callback: that would be another turn of the loop for every step

        def broken_off(task: asyncio.Task[None]) -> None:
            """It was cancelled before it began, or the program is ending: those who wait must hear of it."""
            if error := asyncio.CancelledError() if task.cancelled() else task.exception():
                done(error)

        task = asyncio.create_task(attempt(), name="fsmworkflow-writer")
        task.add_done_callback(broken_off)
        return task.cancel

    return start


def _answer(batch: list[Write], error: BaseException | None) -> None:
    for write in [one for one in batch if not one.future.done()]:
        if (failed := error or write.error) is None:
            write.future.set_result(write.result)
        elif isinstance(failed, asyncio.CancelledError):
            write.future.cancel()  # the loop is being torn down
        else:
            write.future.set_exception(failed)


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


def not_forked(pid: int, url: str) -> None:
    """Raise StoreError in a process that was forked from the one, `pid`, which opened the store."""
    if pid != os.getpid():
        raise StoreError(f"{url} was opened in process {pid}, from which this one was forked: open another store here")


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """What `work` comes to. A cancelled caller stops only its waiting: a driver that is cut off in the middle leaks.

    The work goes on to its end, and nobody asks any more how that was.
    """
    return await asyncio.shield(begun(work))


def begun(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Work that goes on where its caller is cancelled; then nobody asks how it ended."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda task: None if task.cancelled() else task.exception())
    return task
