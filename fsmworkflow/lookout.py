"""Lookout: what other processes post to the runs of an engine, and the times that come for those that rest there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fsmworkflow.errors import StoreError, log

if TYPE_CHECKING:
    from fsmworkflow.roster import Roster

__all__ = ["Lookout"]

SHORTEST = 0.02
"""Seconds between two looks, however often it rings."""
FAR, SLOWEST = 5.0, 90.0
"""Seconds between two looks for events whose write took long, as they bear its begin, and how long it may take."""
FADING = 0.8
"""What is left at each look of how late the event loop once was."""


class Lookout:
    """Looks every `roster.poll` seconds, or when it rings. `lag` is by how much the event loop was late of late."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self.lag = 0.0

    async def look_for_ever(self) -> None:
        """Wake the runs that rest here and are due, and those that others have posted to."""
        roster, store = self._roster, self._roster.store
        heard, since, far = 0, store.now(), 0.0
        while True:
            heard = await self._next_look(heard)
            now = store.now()
            try:
                await roster.worker.release_again()
                for name, drive in list(roster.held.items()):
                    if not drive.idle:
                        roster.wake(name)
                looks_far = abs(now - far) >= FAR
                await self._wake_posted(now - SLOWEST if looks_far else since - roster.poll)
                since, far = now, now if looks_far else far
            except Exception as error:  # whatever it is, the next look must come
                log.warning("the engine could not look for events: %r", error)

    async def _wake_posted(self, since: float) -> None:
        """Wake the runs to which something was posted since then, of which their drives do not know yet."""
        roster = self._roster
        found = await roster.store.woken(roster.worker.token, since) if roster.held or roster.errands else ()
        for workflow, key, posted in found:
            name = (workflow, key)
            errand = roster.errands.get(name)
            drive = roster.held.get(name) if errand is None else errand.drive
            if drive is None or drive.run.posted != posted:
                roster.wake(name)

    async def _next_look(self, heard: int) -> int:
        """Wait until it is time to look again, or until it has rung for a run of ours."""
        loop, roster = asyncio.get_running_loop(), self._roster
        began, rings = loop.time(), heard
        if roster.held or roster.errands:
            rings = await self.rings([roster.worker.token], heard)
        else:
            await asyncio.sleep(roster.poll)
        if rings == heard:
            self.lag = max(loop.time() - began - roster.poll, self.lag * FADING)
        return rings

    async def rings(self, names: list[str], heard: int) -> int:
        """How often it has rung, after `poll` seconds or when it has just rung; not sooner than after 20 ms."""
        poll = self._roster.poll
        try:
            await asyncio.sleep(min(SHORTEST, poll))
            return await self._roster.store.rings(names, heard, poll - min(SHORTEST, poll))
        except StoreError:  # the store was closed
            await asyncio.sleep(poll)
            return heard
