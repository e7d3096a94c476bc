"""Crews: what drives whatever is due, or all that is unfinished: runs are claimed for them, and wait in lines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fsmworkflow.children import awaits
from fsmworkflow.errand import Errand
from fsmworkflow.errors import EngineClosed, log
from fsmworkflow.line import CHUNK, Crew, Line
from fsmworkflow.records import Run
from fsmworkflow.tasks import LEFT_BEHIND

if TYPE_CHECKING:
    from fsmworkflow.roster import Roster

__all__ = ["Crews"]

Claimed = tuple[Errand, Errand | None]
"""A claimed run, with what drove it here before."""


class Crews:
    """The crews of one engine, and the lines before them. `news` is set when something is due of which it knows."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._worker = roster.worker
        self.news = asyncio.Event()
        self._lines: set[Line[Claimed]] = set()
        self._line: Line[Claimed] | None = None  # of all that work here
        self._rung = 0

    @property
    def at_work(self) -> bool:
        """Whether this engine drives whatever is due, beside what it was asked for."""
        return self._line is not None and bool(self._line.crews)

    @property
    def waiting(self) -> bool:
        """Whether something that was claimed waits in a line."""
        return any(line.waiting for line in self._lines)

    def stop(self) -> None:
        """Take nothing more from the lines."""
        for crew in [crew for line in self._lines for crew in line.crews]:
            crew.stop()

    async def end(self) -> None:
        """Give up what was claimed and waits."""
        await asyncio.gather(*(self._give_back(line) for line in self._lines))
        self._lines.clear()
        self._line = None

    async def resume(self, concurrency: int) -> int:
        """Drive every unfinished run that nobody drives, `concurrency` of them at once. Returns how many."""
        seen: set[int] = set()
        line: Line[Claimed] = Line(lambda line: self._claim_all(line, seen), self._drive_claimed)
        try:
            await self._crew(line, concurrency).over()
            while self._roster.adopted:
                await asyncio.wait(list(self._roster.adopted))
        finally:
            line.ended = True
        if not line.waiting:
            self._lines.discard(line)
        return len(seen)

    async def work(self, concurrency: int, grace: float) -> None:
        """Drive what is due, `concurrency` runs at once, until this engine closes; cancelled, it drains."""
        self._worker.check()
        self._line = self._line or Line(self._claim_due, self._drive_claimed)
        crew = self._crew(self._line, concurrency)
        try:
            await crew.over()
        finally:
            if not self._worker.stopping:
                await self._dismiss(crew, grace)

    def _crew(self, line: Line[Claimed], many: int) -> Crew[Claimed]:
        self._lines.add(line)
        return Crew(line, many, self._roster.task)

    async def _dismiss(self, crew: Crew[Claimed], grace: float) -> None:
        """Let a crew end its steps, and give back what it drove; where none is left, also what waits in its line."""
        for errand, _ in crew.driving:
            if errand.drive is not None:
                errand.drive.stop()
        await crew.dismiss(grace, LEFT_BEHIND)
        if not crew.line.crews:
            await self._give_back(crew.line)

    async def _give_back(self, line: Line[Claimed]) -> None:
        """Give up what was claimed and waits."""
        waiting = [errand for errand, _ in line.waiting]
        line.waiting.clear()
        await asyncio.gather(*(self._worker.store.release(errand.run) for errand in waiting))
        for errand in waiting:
            if not errand.done.done():
                errand.done.set_result(errand.run)

    async def _claim_all(self, line: Line[Claimed], seen: set[int]) -> None:
        """Claim what is unfinished, due or not; the line has ended when there is nothing new."""
        await self._worker.reap()
        claimed = await self._worker.claim(CHUNK)
        line.ended = seen.issuperset(run.id for run in claimed)
        seen.update(run.id for run in claimed)
        self._enter(line, claimed, hold=True)

    async def _claim_due(self, line: Line[Claimed]) -> None:
        """Wait until runs are due that nobody drives, and claim them. What rests again is not held."""
        while not self._worker.stopping:
            try:
                await self._worker.look(self._roster.poll)  # however busy it is
                claimed = await self._worker.claim(line.wanted(), self._worker.store.now())
            except EngineClosed:
                return
            except Exception as error:  # whatever it is, the next look must come
                log.warning("the engine could not look for runs that are due: %r", error)
                claimed = []
            self._enter(line, claimed, hold=False)
            if line.waiting:
                return
            await self._news_or_ring()

    async def _news_or_ring(self) -> None:
        """Wait until it rings for what is due, or a move here made something due, for `poll` seconds at the most."""
        rings = asyncio.ensure_future(self._roster.lookout.rings(["", self._worker.token], self._rung))
        news = asyncio.ensure_future(self.news.wait())
        try:
            await asyncio.wait([rings, news], return_when=asyncio.FIRST_COMPLETED)
            if rings.done():
                self._rung = rings.result()
        finally:
            rings.cancel()
            news.cancel()
        self.news.clear()

    def _enter(self, line: Line[Claimed], claimed: Iterable[Run], *, hold: bool) -> None:
        """All are known before the next await, so that no `run` of the same key drives one of them beside us."""
        for run in claimed:
            earlier = self._roster.errands.get((run.workflow, run.key))
            errand = Errand(self._roster.workflows[run.workflow], run, retry=False, hold=hold)
            errand.apart = True  # a place in the line is not to be kept by one that waits for others of the line
            errand.done = asyncio.get_running_loop().create_future()
            if earlier is None:
                self._roster.see_to(errand)
            line.waiting.append((errand, earlier))

    async def _drive_claimed(self, claimed: Claimed) -> None:
        errand, earlier = claimed
        name, late = (errand.run.workflow, errand.run.key), earlier is not None
        while earlier is not None:  # a `run` of this engine that has claimed it by now
            await asyncio.wait([earlier.done])
            earlier = self._roster.errands.get(name)
        if late:
            if name in self._roster:
                return  # and holds it
            self._roster.see_to(errand)
        done = errand.done
        try:
            if late:
                errand.run = await self._roster.load(*name)
                await self._roster.watch_and_drive(errand)
            else:
                await self._roster.drive(errand, errand.run)
            self._worker.pauses.pop(errand.run.id, None)
            done.set_result(errand.run)
            if name in self._roster.held and awaits(errand.run):
                self._roster.redrive(self._roster.held.pop(name))
        except Exception as error:
            done.set_exception(error)
        finally:
            done.cancel()  # only where this task is being cancelled
