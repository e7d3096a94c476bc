"""Threads: sync functions of the user's, called beside the event loop, a bounded number at a time.

Daemon threads, not an executor's: those are joined at exit, so that a sync call of a minute would hold up Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Threads", "is_async"]

T = TypeVar("T")


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether calling it gives an awaitable, as far as can be told without calling it."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


class Threads:
    """At most `limit` threads at once; the next call waits for its turn. Belongs to one event loop."""

    def __init__(self, limit: int = 64) -> None:
        self._turns = asyncio.Semaphore(limit)

    async def invoke(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function of the user's: an async one here, a sync one in a thread."""
        result = fn(*args, **kwargs) if is_async(fn) else await self.call(fn, *args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    async def call(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call a sync function in a thread, with this task's context variables.

        When the waiting is cancelled the thread is left behind, its result is dropped, and its turn is free again.
        """
        async with self._turns:
            return await _in_thread(fn, args, kwargs)


async def _in_thread(fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    called = functools.partial(contextvars.copy_context().run, fn, *args, **kwargs)

    def answer(result: Any, error: BaseException | None) -> None:
        if future.done():
            _drop(result)
        elif error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        end = _outcome(fn, called)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile: nobody waits any more
            loop.call_soon_threadsafe(answer, *end)

    threading.Thread(target=work, name=f"step {getattr(fn, '__name__', 'step')}", daemon=True).start()
    try:
        return await future
    except asyncio.CancelledError:
        if future.done() and not future.cancelled() and future.exception() is None:
            _drop(future.result())
        raise


def _outcome(fn: Callable[..., Any], called: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """What a function returned, or raised, once it is `called`."""
    try:
        return called(), None
    except StopIteration as error:  # which a future cannot hold
        failed = RuntimeError(f"{getattr(fn, '__qualname__', fn)} raised StopIteration")
        failed.__cause__ = error
        return None, failed
    except BaseException as error:
        return None, error


def _drop(result: Any) -> None:
    """A coroutine that nobody will await any more is closed: it was made by a lambda, and has not begun."""
    if inspect.iscoroutine(result):
        result.close()
