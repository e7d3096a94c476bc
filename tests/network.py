"""A network between a process and PostgreSQL that the test can break: a TCP proxy in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Self
from urllib.parse import urlsplit

from tests.postgres_server import dial
from tests.waiting import PATIENCE

CHUNK = 65_536
LINGER = 600.0


class Network:
    """From `with` to its end, `url` is the same database as `server`, over TCP and through here.

    `passed` counts the bytes that went through, `swallowed` those that did not, `broken` the connections that were cut.
    """

    def __init__(self, server: str) -> None:
        self.server = server
        self.passed = self.swallowed = self.broken = 0
        self._delay = 0.0
        self._hole = False
        self._cutting = 0
        self._roads: set[Road] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._listening = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result(PATIENCE)
        port = self._listening.sockets[0].getsockname()[1]
        parts = urlsplit(self.server)
        user = parts.netloc.rpartition("@")[0] or "postgres"
        self.url = f"postgresql://{user}@127.0.0.1:{port}{parts.path}?sslmode=disable"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def reset(self) -> bool:
        """Every connection there is gets a TCP reset; new ones pass. False where there is none."""
        before = self.broken
        self._do(self._abort)
        return self.broken > before

    def _abort(self) -> None:
        for road in list(self._roads):
            self.broken += 1
            road.abort()

    def cut(self, many: int = 1) -> None:
        """The next so many answers of the server come by half, and then their connection is gone."""
        self._cutting = many

    def delay(self, seconds: float) -> None:
        """What goes either way takes so much longer from now on."""
        self._delay = seconds

    def swallow(self) -> None:
        """A black hole: what is sent is taken and never arrives, nobody is told, and new connections hear nothing."""
        self._hole = True

    def heal(self) -> None:
        """New connections pass. What went into the black hole is lost, and its connections stay dumb for ever."""
        self._hole = False
        self._delay = 0.0

    def _do(self, what: Callable[[], None]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (what(), done.set()))
        assert done.wait(10)

    async def _end(self) -> None:
        self._listening.close()
        for road in list(self._roads):
            road.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        road = Road(writer)
        self._roads.add(road)
        with contextlib.suppress(
            OSError, asyncio.CancelledError
        ):  # streams report a task that was cancelled as a failure
            try:
                if self._hole:
                    road.dumb = True
                    await self._drink(reader)
                    return
                answers, questions = await dial(self.server)
                road.ends.append(questions)
                ways = [self._carry(road, reader, questions), self._carry(road, answers, writer, cuts=True)]
                _, left = await asyncio.wait(map(asyncio.ensure_future, ways), return_when=asyncio.FIRST_COMPLETED)
                for task in left:
                    task.cancel()
            finally:
                self._roads.discard(road)
                road.close()

    async def _carry(
        self, road: Road, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, cuts: bool = False
    ) -> None:
        while data := await source.read(CHUNK):
            if self._hole or road.dumb:
                road.dumb = True
                self.swallowed += len(data)
                continue
            if self._delay:
                await asyncio.sleep(self._delay)
            if cuts and self._cutting:
                self._cutting -= 1
                self.broken += 1
                target.write(data[: len(data) // 2])
                await target.drain()
                return
            self.passed += len(data)
            target.write(data)
            await target.drain()
        if road.dumb:
            await asyncio.sleep(LINGER)  # even that an end has gone is not heard at the other one

    async def _drink(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(CHUNK):
            self.swallowed += len(data)


class Road:
    """One connection of a client's, and that to the server behind it. One that is `dumb` carries nothing any more."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.ends = [writer]
        self.dumb = False

    def abort(self) -> None:
        for end in self.ends:
            end.transport.abort()  # unsent bytes are dropped, and the other end reads a reset or its end

    def close(self) -> None:
        for end in self.ends:
            end.close()
