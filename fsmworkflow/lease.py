"""Lease: what makes an owner count as alive, renewed by a thread of its own on a connection of its own.

So a step that blocks the event loop does not lose its runs. A process that stands still as a whole renews nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import weakref
from pathlib import Path

from fsmworkflow.errors import log
from fsmworkflow.records import Owner, replace
from fsmworkflow.store import Store

__all__ = ["Lease", "has_died", "machine_id", "process_id"]

END_SECONDS = 2.0
"""How long ending a lease waits for a renewal that is under way."""


def machine_id() -> str | None:
    """This boot of this machine and this PID namespace, or None where /proc does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def process_id(pid: int | None = None) -> str | None:
    """A process by its pid and start time, so that a pid used again is another process. None where it is gone."""
    pid = os.getpid() if pid is None else pid
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{pid}/{fields[19]}"


def has_died(owner: Owner, machine: str | None) -> bool:
    """Whether an owner was a process of this machine, by its `machine_id()`, and is gone."""
    pid = owner.process.partition("/")[0]
    return owner.machine == machine and pid.isdigit() and process_id(int(pid)) != owner.process


class Lease:
    """The lease of the owner `token`, of `length` seconds each time that it is renewed, from `begin` to `end`."""

    def __init__(self, store: Store, token: str, length: float) -> None:
        self.token = token
        self.length = length
        self._store = store
        self._until = 0.0
        self._draining = 0
        self._stopped = threading.Event()
        self._ended: asyncio.Future[None] | None = None  # done when the thread has ended
        self._task: asyncio.Task[None] | None = None

    @property
    def left(self) -> float:
        """For how many seconds it still holds by this process's own clock."""
        return self._until - time.monotonic()

    @property
    def late(self) -> bool:
        """Whether it should have been renewed by now: the store was away, or this process stood still."""
        return self.left < self.length / 3

    async def begin(self) -> None:
        """Make the owner known, and renew its lease for as long as this event loop runs."""
        await self._enrol(self._store)
        twin = self._store.twin()
        if twin is None:
            self._task = asyncio.create_task(self._in_task(), name="fsmworkflow-lease")
            return
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        # Weakly: an event loop that ended, and what was open in it, must be let go of as if there were no thread.
        args = (weakref.ref(self), weakref.ref(loop), twin, self._stopped, self.length / 3)
        threading.Thread(target=_renew_for_ever, args=args, name="fsmworkflow-lease", daemon=True).start()

    async def end(self) -> None:
        """Stop renewing. The owner stays known."""
        self._stopped.set()
        if self._task is not None:
            self._task.cancel()
        if self._ended is not None:
            await asyncio.wait([self._ended], timeout=END_SECONDS)

    async def drain(self) -> None:
        """Say that the owner is ending, and hold its lease for its whole length from now on."""
        self._draining = 1
        await self._enrol(self._store)

    async def renew(self) -> None:
        """Hold the lease for its whole length from now on."""
        await self._renew(self._store)

    async def _enrol(self, store: Store) -> None:
        began, now = time.monotonic(), store.now()
        machine, process, until = machine_id() or "", process_id() or str(os.getpid()), now + self.length
        known = Owner(token=self.token, machine=machine, process=process, lease=until, started=now)
        await store.enrol(replace(known, draining=self._draining))
        self._until = began + self.length

    async def _renew(self, store: Store) -> None:
        began = time.monotonic()
        if await store.renew(self.token, store.now() + self.length):
            if self.late:  # only now, as the store may have been away until it took this
                await self._spare_others(store)
            self._until = began + self.length
        elif not self._stopped.is_set():
            log.warning("this owner was taken for dead; it is made known again")
            await self._enrol(store)

    async def _spare_others(self, store: Store) -> None:
        """Owners whose lease ended since this one was renewed could perhaps not renew it either: they may do so now."""
        now = store.now()
        for owner in await store.owners():
            if owner.token != self.token and now - self.length + self.left <= owner.lease <= now:
                await store.renew(owner.token, now + self.length / 2)

    async def _in_task(self) -> None:
        while True:
            await asyncio.sleep(self.length / 3)
            await self.attempt(self._store)

    def thread_ended(self) -> None:
        """What `end` waits for."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    async def attempt(self, store: Store) -> float:
        """Renew it, or say in the log why that cannot be done now. Returns the seconds until the next attempt."""
        try:
            async with asyncio.timeout(self.length / 3):
                await store.open()
                await self._renew(store)
                return self.length / 3
        except Exception as error:  # whatever it is, the next attempt must come
            log.warning("the lease could not be renewed: %r", error)
            return self.length / 10


def _renew_for_ever(
    lease: weakref.ref[Lease],
    loop: weakref.ref[asyncio.AbstractEventLoop],
    twin: Store,
    stopped: threading.Event,
    pause: float,
) -> None:
    """The life of the thread: until it is stopped, or the event loop whose owner this is has ended."""
    with asyncio.Runner() as runner:
        while not stopped.wait(pause) and (running := loop()) is not None and not running.is_closed():
            if running.is_running() and (renewed := lease()) is not None:  # else nothing is driven there
                pause = runner.run(renewed.attempt(twin))
            running = renewed = None
        if twin.opened:
            runner.run(twin.close())
    if (running := loop()) is not None and (renewed := lease()) is not None:
        with contextlib.suppress(RuntimeError):  # it has ended meanwhile
            running.call_soon_threadsafe(renewed.thread_ended)
