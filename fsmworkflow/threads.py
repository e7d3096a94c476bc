"""Threads: sync functions of the user's, called beside the event loop, a bounded number at a time.

Daemon threads, not an executor's: those are joined at exit, so that a sync call of a minute would hold up Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

__all__ = ["Threads", "is_async"]

T = TypeVar("T")
Works = queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None]


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether calling it gives an awaitable, as far as can be told without calling it."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


class Threads:
    """At most `limit` threads at once; the next call waits for its turn. Belongs to one event loop.

    A thread that has done its work waits for more, until `close`, or the end of this object.
    """

    def __init__(self, limit: int = 64) -> None:
        self._turns = asyncio.Semaphore(limit)
        self._works: Works = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)  # counts the threads that wait for work and have not been given any

    def close(self) -> None:
        """End the threads that wait, and those at work once they have done it. Whoever calls later is given others."""
        works, self._works, self._idle = self._works, queue.SimpleQueue(), threading.Semaphore(0)
        works.put(None)

    __del__ = close

    async def invoke(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function of the user's: an async one here, a sync one in a thread."""
        result = fn(*args, **kwargs) if is_async(fn) else await self.call(fn, *args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    async def call(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call a sync function in a thread, with this task's context variables.

        When the waiting is cancelled the thread is left behind, its result is dropped, and its turn is free again.
        """

        def called() -> Iterator[T]:  # from which no StopIteration comes, which a future cannot hold: PEP 479
            yield fn(*args, **kwargs)

        async with self._turns:
            future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            if not self._idle.acquire(blocking=False):
                threading.Thread(target=_live, args=(self._works, self._idle), name="fsm step", daemon=True).start()
            self._works.put((functools.partial(contextvars.copy_context().run, next, called()), future))
            del self  # so that no error keeps threads, in whose traceback this is
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                future.add_done_callback(_drop)
                raise
            return future.result()


def _live(works: Works, idle: threading.Semaphore) -> None:
    """The life of a thread: work, and tell the event loop, until there is no more, which is told to the next thread."""
    while (work := works.get()) is not None:
        call, future = work
        try:
            told: Any = future.set_result, call()
        except BaseException as error:
            told = future.set_exception, error
        idle.release()  # before it is told: whoever hears of it may give more to this thread
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile: nobody waits any more
            future.get_loop().call_soon_threadsafe(*told)
        del work, call, future, told  # nothing is held meanwhile, nor goes round from an error by its traceback
    works.put(None)


def _drop(future: asyncio.Future[Any]) -> None:
    """A coroutine that nobody will await any more is closed: it was made by a lambda, and has not begun."""
    if future.exception() is None and inspect.iscoroutine(result := future.result()):
        result.close()
