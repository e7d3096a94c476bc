"""Pipe: the sink of one stream that is the source of another, in one process and without a file between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fsmworkflow.stream.sources import Records
from fsmworkflow.stream.words import Sink, Source, StreamError

__all__ = ["Pipe"]


class Pipe(Sink):
    """What one stream writes, another one reads:

        pipe = Pipe()
        await asyncio.gather(stream(None, clean, "in.jsonl", pipe), stream(None, rate, pipe.source, "out.jsonl"))

    It holds the records of one chunk at the most, so that the first stream waits where the second one is slow. It ends
    with the first stream; where one of the two stops with an error, the other one does too, with a StreamError. It has
    no key.
    """

    name = "a pipe"
    keeps = False
    awaited = True

    def __init__(self) -> None:
        self._chunks: asyncio.Queue[list[Any] | None] = asyncio.Queue(1)
        self._ended = self._left = False
        self.reader: Source | None = None

    @property
    def source(self) -> Source:
        """The other end, to be read by one stream."""
        return _Outlet(self, self._read())

    async def put(self, connection: Any, records: list[Any]) -> None:
        if not self._left:
            await self._chunks.put(records)
        if self._left:
            raise StreamError("the stream that reads from this pipe has stopped before its end")

    async def end(self) -> None:
        self._ended = True
        if not self._left:
            await self._chunks.put(None)

    def close(self) -> None:
        """The stream that writes is over, ended or not."""
        if not self._ended:
            self._ended = True
            self._empty()
            self._chunks.put_nowait([StreamError("the stream that writes to this pipe has stopped before its end")])

    def leave(self) -> None:
        """The stream that reads is over, ended or not."""
        self._left = True
        self._empty()

    def _empty(self) -> None:
        while not self._chunks.empty():
            self._chunks.get_nowait()

    async def _read(self) -> AsyncIterator[Any]:
        while (records := await self._chunks.get()) is not None:
            for record in records:
                if isinstance(record, StreamError):
                    raise record
                yield record


class _Outlet(Records):
    """The end of a pipe that is read."""

    def __init__(self, pipe: Pipe, records: AsyncIterator[Any]) -> None:
        super().__init__(records)
        self.name, self._pipe = "a pipe", pipe

    def open(self, known: dict[str, Any] | None, position: Any) -> None:
        if self._pipe.reader is not None:
            raise StreamError("a pipe is read by one stream, and another one reads from this: make a pipe for each")
        self._pipe.reader = self
        super().open(known, position)

    def close(self) -> None:
        super().close()
        if self._pipe.reader in (self, None):
            self._pipe.leave()
