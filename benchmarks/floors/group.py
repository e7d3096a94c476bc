"""Group commit and nothing else: whoever waits when the writer is free goes into the next transaction together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from benchmarks.floors.rows import Row, row
from benchmarks.jobs import Size


class Group:
    """Gathers rows and gives them to `write` in batches, one batch at a time, without a waiting window."""

    def __init__(self, write: Callable[[list[Row]], Awaitable[object]]) -> None:
        self.write = write
        self.waiting: list[tuple[Row, asyncio.Future[None]]] = []
        self.wake = asyncio.Event()
        self.writer = asyncio.create_task(self._write())

    async def commit(self, values: Row) -> None:
        """Returns when the row is durable."""
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((values, future))
        self.wake.set()
        await future

    async def _write(self) -> None:
        while await self.wake.wait():
            self.wake.clear()
            batch, self.waiting = self.waiting, []
            await self.write([values for values, _ in batch])
            for _, future in batch:
                future.set_result(None)

    async def drive(self, size: Size, first: int = 1) -> None:
        """All runs at once, each one step after another, the `first` step being counted from 1."""

        async def one(run: int) -> None:
            for number in range(first, first + size.steps):
                await self.commit(row(run, number))

        await asyncio.gather(*(one(run) for run in range(size.runs)))
