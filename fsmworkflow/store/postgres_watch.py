"""Watch: notices that an answer of PostgreSQL will never come, long before a statement's own time is over.

A network that swallows what is sent tells nobody. So whoever has waited for two seconds is asked about, on another
connection: where the server is not at work on it, the connection is given up, and what waited is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from fsmworkflow.store.postgres_server import SQL

SECONDS = 2.0


class Watch:
    """Ends connections on which somebody waits in vain, from `begin` to `end`; `connect` opens one to ask on."""

    def __init__(self, connect: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self._connect = connect
        self._asked: dict[Any, float] = {}
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.create_task(self._look_now_and_then(), name="fsmworkflow-watch")

    def end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    @contextlib.contextmanager
    def asking(self, connection: Any) -> Iterator[None]:
        """Round what waits for answers on a connection, all of the time."""
        self._asked[connection] = time.monotonic()
        try:
            yield
        finally:
            self._asked.pop(connection, None)

    async def _look_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(SECONDS / 2)
            late = [(one, since) for one, since in self._asked.items() if time.monotonic() - since > SECONDS]
            with contextlib.suppress(Exception):  # whatever it is, nothing is known, and this is only the quicker way
                for one in await self._lost(late) if late else ():
                    one.terminate()

    async def _lost(self, late: list[tuple[Any, float]]) -> list[Any]:
        """Those of the connections on which no answer will come, and somebody still waits for it."""
        pids = [one.get_server_pid() for one, _ in late]
        asking = await self._connect(timeout=SECONDS, command_timeout=SECONDS)
        try:
            lost = await asking.fetchval(SQL["lost"], asking.get_server_pid(), pids)
        finally:
            asking.terminate()
        gone = [each for each, pid in zip(late, pids, strict=True) if pid in lost]
        return [one for one, since in gone if self._asked.get(one) == since]
