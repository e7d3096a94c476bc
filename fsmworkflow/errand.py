"""Errand: what an engine sees to for one run, from its start or claim until it rests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fsmworkflow.records import Run
from fsmworkflow.workflow import Workflow

if TYPE_CHECKING:
    from fsmworkflow.drive import Drive

__all__ = ["Errand", "Name"]

Name = tuple[str, str]
"""A run by its workflow and key."""


class Errand:
    """A run that this engine sees to: with an id once it is durable, `done` when it rests; with `hold` it stays ours.

    `apart` says that those below it are seen to by others, and `woken` that something was posted while it was claimed;
    `waiting` are those who wait for one of the two. There are as many of it as runs at once, so it is of few objects.
    """

    done: asyncio.Future[Run]

    __slots__ = ("apart", "done", "drive", "error", "hold", "retry", "run", "waiting", "woken", "workflow")

    def __init__(self, workflow: Workflow, run: Run, retry: bool, hold: bool = True) -> None:
        self.workflow = workflow
        self.run = run
        self.retry = retry
        self.hold = hold
        self.apart = self.woken = False
        self.waiting: set[asyncio.Future[None]] = set()
        self.drive: Drive | None = None
        self.error: BaseException | None = None

    def tell(self) -> None:
        """Wake those who wait."""
        for waiting in self.waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def begun(self) -> Run:
        """Wait until it is durable, and return the run. Raises what it could not be made durable for."""
        while not (self.run.id or self.done.done()):
            await self.news()
        return self.run if self.run.id else self.done.result()

    async def news(self) -> None:
        """Wait until it is durable, or done. A caller that is cancelled leaves it alone, as with asyncio.shield."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.add(waiting)
        try:
            await waiting
        finally:
            self.waiting.discard(waiting)
