"""Windows: some records of a source at a time, as one record, for a workflow that adds up what is in them."""

from __future__ import annotations

import time
from typing import Any

from fsmworkflow.retry import Duration, seconds
from fsmworkflow.stream.sources import source_of
from fsmworkflow.stream.words import Batch, Malformed, Source, whole_number

__all__ = ["window"]

FOREVER = 1e9
MANY = 1_000_000
"""How many records a window of a time may hold."""


def window(source: Any, *, count: int | None = None, every: Duration | None = None) -> Source:
    """A source of windows of another one, `{"records": [...]}`: of `count` records, or of what came `every` so long.

    With both, of whichever is full first. The last one may hold fewer. It can be gone on with by a key where the other
    one can. Raises ValueError where neither is given, or `count` is no whole number from 1.
    """
    if count is None and every is None:
        raise ValueError("a window is of count= records, or of what comes every= so long")
    if count is not None:
        whole_number("count", count)
    return _Windows(source_of(source), count or MANY, FOREVER if every is None else seconds(every))


class _Windows(Source):
    """`_held` is of the window that is not full, `_wrong` what was malformed meanwhile, `_read` how many bytes that is.

    `_mark` is where the last full one ended, and nothing from behind it is given before the next one is.
    """

    def __init__(self, source: Source, count: int, every: float) -> None:
        self._source, self._count, self._every = source, count, every
        self.name, self.waits = source.name, source.waits
        self._begin(None)

    def _begin(self, mark: Any) -> None:
        """Begin a window after this mark."""
        self._mark, self._until, self._read = mark, 0.0, 0
        self._held: list[Any] = []
        self._wrong: list[Any] = []

    def identity(self) -> dict[str, Any] | None:
        return self._source.identity()

    def open(self, known: dict[str, Any] | None, position: Any) -> None:
        self._source.open(known, position)
        self.size = self._source.size
        self._begin(position)

    def mark(self) -> Any:
        return self._mark

    def spare(self, paths: list[str]) -> None:
        self._source.spare(paths)

    def stop(self) -> None:
        self._source.stop()

    async def leave(self) -> None:
        await self._source.leave()

    def close(self) -> None:
        self._source.close()

    def read(self, many: int, seconds: float) -> Batch:
        found, until = Batch([]), time.monotonic() + seconds
        while len(found.records) < many and not found.ended and (now := time.monotonic()) < until:
            self._take(self._source.read(self._count - len(self._held), self._left(now, until)), found)
        return found

    async def gather(self, many: int, seconds: float) -> Batch:
        found, until = Batch([]), time.monotonic() + seconds
        while len(found.records) < many and not found.ended and (now := time.monotonic()) < until:
            self._take(await self._source.gather(self._count - len(self._held), self._left(now, until)), found)
        return found

    def _left(self, now: float, until: float) -> float:
        """How long to wait for the next records: a window begins with its first one."""
        if not self._held:
            self._until = now + self._every
        return max(0.0, min(until, self._until) - now)

    def _take(self, batch: Batch, found: Batch) -> None:
        """Add what was read; what is malformed stands before the window that it was read for."""
        wrong = [record for record in batch.records if type(record) is Malformed] if batch.bad else []
        self._held += batch.records if not wrong else [one for one in batch.records if type(one) is not Malformed]
        self._wrong += wrong
        self._read += batch.read
        found.ended = batch.ended
        full = batch.ended or time.monotonic() >= self._until or len(self._held) >= self._count
        if full or not self._held:
            found.records += [*self._wrong, {"records": self._held}] if self._held else self._wrong
            found.bad += len(self._wrong)
            found.read += self._read
            self._begin(self._source.mark())
