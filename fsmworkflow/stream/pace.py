"""Pace: how many records are in hand at a time, and several that work at them together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["Pace", "together"]


class Pace:
    """How many records are in hand at a time: as many as `most`, or as pass in `target` seconds."""

    def __init__(self, least: int, most: int, target: float) -> None:
        self.least, self.most, self.target = least, most, target
        self.many = min(most, 8 * least)

    def took(self, many: int, seconds: float) -> None:
        """So many passed in that time."""
        if many:
            fitting = int(many * self.target / max(seconds, 1e-9))
            self.many = min(self.most, max(self.least, min(fitting, 2 * self.many)))


async def together(works: list[Coroutine[Any, Any, None]]) -> None:
    """Wait for all of them; where one raises, or the waiting is cancelled, for the end of the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            if not task.cancelling():  # else it waits for its thread, from which a second time would tear it
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
