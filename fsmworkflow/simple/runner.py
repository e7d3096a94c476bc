"""Runner: an event loop in a thread of its own, so that synchronous code may call what is async."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

__all__ = ["Runner", "synchronous"]

T = TypeVar("T")
P = ParamSpec("P")
Inner = TypeVar("Inner")

LOOK = 0.2
"""Seconds after which a waiting thread sees a signal at the latest."""


class Runner:
    """Runs coroutines in a thread that begins with the first one, and ends with `close`, or with this object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: Callable[[], Any] | None = None

    def __call__(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns. Raises what it raises; Ctrl-C cancels it. Not for its own thread."""
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("a machine is called from its own event loop: use AsyncSimpleFSM there, and await it")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._begun())
        try:
            while not concurrent.futures.wait([future], LOOK).done:  # Ctrl-C may come just before the waiting begins
                pass
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End the thread; what is still on in it is cancelled."""
        with self._lock:
            thread, end, self._thread, self._end = self._thread, self._end, None, None
        if thread is not None and end is not None:
            end()
            thread.join()

    def _begun(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._thread is None or self._loop is None or not self._thread.is_alive():  # as it is after a fork
                loop = self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_live, args=(loop,), name="fsmworkflow-simple", daemon=True)
                self._thread.start()
                self._end = weakref.finalize(self, loop.call_soon_threadsafe, loop.stop)
            return self._loop


def _live(loop: asyncio.AbstractEventLoop) -> None:
    """The life of the thread: until the loop is stopped."""
    asyncio.set_event_loop(loop)
    try:
        while _told_to_end(loop):
            pass
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _told_to_end(loop: asyncio.AbstractEventLoop) -> bool:
    """Run the loop. True where a function has raised what ends a program: whoever waits for that one is told."""
    try:
        loop.run_forever()
    except (SystemExit, KeyboardInterrupt):
        return True
    return False


class Held(Protocol[Inner]):
    """What has a runner, and the async object that it stands for."""

    runner: Runner
    machine: Inner


def synchronous(
    method: Callable[Concatenate[Inner, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Held[Inner], P], T]:
    """The same method for synchronous code: nothing is written twice."""

    @functools.wraps(method)
    def call(self: Held[Inner], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.runner(method(self.machine, *args, **kwargs))

    return call
