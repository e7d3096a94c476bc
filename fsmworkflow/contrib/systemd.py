"""systemd is told that an engine is ready, how it is, and that it stops; its watchdog stays quiet while the loop turns.

Plain datagrams as in sd_notify(3), without a library. Where no NOTIFY_SOCKET is set, nothing is done.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

from fsmworkflow.errors import FSMWorkflowError, log

if TYPE_CHECKING:
    from fsmworkflow.engine import Engine

__all__ = ["Systemd"]


STATUS_SECONDS = 10.0


class Systemd:
    """The service manager, for a service of Type=notify.

        async with Systemd() as systemd, engine:
            systemd.ready(engine)
            await engine.work()

    It stands around the engine, so that the watchdog is kept quiet while steps end. The pings come from the event loop
    itself, twice in WatchdogSec: a step that blocks the loop for longer has the service restarted. A store that is away
    has not, as no restart brings it back.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._pause = _pause(environ)
        self._tasks: list[asyncio.Task[None]] = []
        self._socket: socket.socket | None = None

    async def __aenter__(self) -> Self:
        if self._address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            if self._pause is not None:
                self._tasks.append(asyncio.create_task(self._ping(self._pause), name="fsmworkflow-watchdog"))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stopping()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ready(self, engine: Engine | None = None) -> None:
        """The service has started. With an engine, what it does is told from now on, as `systemctl status` shows it."""
        self.tell("READY=1")
        if engine is not None and self._socket is not None:
            self._tasks.append(asyncio.create_task(self._follow(engine), name="fsmworkflow-status"))

    def stopping(self) -> None:
        """The service begins to stop. May be said more than once."""
        self.tell("STOPPING=1", "STATUS=stopping: running steps may end")

    def tell(self, *lines: str) -> bool:
        """Send these assignments. False, with a line in the log, where that cannot be done; True without a socket."""
        if self._socket is None or self._address is None:
            return self._address is None
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:  # also where its queue is full: the next ping comes soon
            log.warning("systemd could not be told %s: %s", lines[0], error)
            return False
        return True

    async def _ping(self, pause: float) -> None:
        while True:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(pause)

    async def _follow(self, engine: Engine) -> None:
        while not engine.worker.stopping:
            try:
                health = await engine.health()
            except FSMWorkflowError:
                return  # it is closed
            if not engine.worker.stopping:
                state = "; ".join(health.problems) or "well"
                self.tell(f"STATUS={state}, {health.driving} runs are driven".replace("\n", " "))
            await asyncio.sleep(STATUS_SECONDS)


def _address(text: str) -> str | None:
    """The address of a notify socket: a path, or with @ one of Linux's abstract names. None for any other."""
    if text.startswith("@"):
        return "\0" + text[1:]
    if text and not text.startswith("/"):
        log.warning("NOTIFY_SOCKET=%s is of a kind that is not known here: systemd is told nothing", text)
    return text if text.startswith("/") else None


def _pause(environ: Mapping[str, str]) -> float | None:
    """Seconds between two pings, half of what systemd waits; None where it does not wait for this process."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    mine = not pid or pid == str(os.getpid())
    return int(usec) / 2e6 if usec.isdigit() and int(usec) > 0 and mine else None
