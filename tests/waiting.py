"""How a test waits for what must come: as long as the slowest machine may take, and no longer than it does take."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

PATIENCE = 60.0
"""Seconds, and no promise: what must not be brought by a lease or a look has both of them set far beyond."""


async def until(what: Callable[[], Any]) -> Any:
    """What `what()`, or what it awaits, comes to, as soon as that is true."""
    end = time.monotonic() + PATIENCE
    while True:
        found = what()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < end, "it does not come"
        await asyncio.sleep(0.005)


def loads(store: Any) -> Counter[str]:
    """How often each key of a store is looked for from now on: whoever watches a run looks again and again."""
    looked, load = Counter[str](), store.load

    async def noted(workflow: str, key: str) -> Any:
        looked[key] += 1
        return await load(workflow, key)

    store.load = noted
    return looked


def until_now(what: Callable[[], Any]) -> Any:
    """The same where no event loop runs."""
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.02)
    return found
