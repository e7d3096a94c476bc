"""What the stores in SQL do alike: writes go to the writer, and what is read comes as rows of a named statement."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from fsmworkflow.errors import Refused, RunNotFound
from fsmworkflow.records import Call, Event, Move, Owner, Run
from fsmworkflow.store import NONE, Calls, Events, Keys, Limits, Names, Owners, Pairs, Runs, Versions, Woken, rows
from fsmworkflow.store.writer import Kind, Writer

CHUNK = 2_000
SOON = 60.0
"""Seconds that no reading takes."""


class Verbs(Protocol):
    """The verbs of a store that has a writer, and two ways to read: as rows, and as whole runs."""

    _writer: Writer

    def _check(self) -> object:
        """Raise StoreError unless open."""

    def now(self) -> float:
        """See Store."""

    async def read_rows(self, block: str, *values: Any) -> list[Any]:
        """The rows that a named statement returns, each a `rows.Row`."""

    async def _read_runs(self, block: str, *values: Any) -> Runs:
        """The runs that a named statement returns, with their large fields."""

    # -- writing ----------------------------------------------------------------------------------------------------

    def _put(self, kind: Kind, record: Any, run: Run | None = None) -> asyncio.Future[Any]:
        self._check()
        return self._writer.put(kind, record, run)

    async def create(self, run: Run) -> tuple[Run, bool]:
        there: tuple[Run, bool] = await self._put("create", run)
        return there

    async def commit(self, move: Move) -> Keys | None:
        kind: Kind = "move" if move.detail is None else "detailed"
        due = await self._put(kind, rows.sealed_move(move) if move.event.id else move, move.before)
        return due if isinstance(due, list) else None  # a repeat says only that it was made before

    async def settle(self, before: Run, after: Run) -> None:
        await self._put("settle", after, before)

    async def release(self, run: Run) -> None:
        await self._put("release", run, run)

    async def remember(self, run: Run, call: Call) -> None:
        await self._put("call", call, run)

    async def post(self, workflow: str, key: str, event: Event) -> Event:
        there: Event = await self._put("post", (workflow, key, rows.sealed(event)))
        return there

    # -- claims -----------------------------------------------------------------------------------------------------

    async def claim(
        self, owner: str, workflows: Versions, many: int, by: float, but: Pairs = (), limits: Limits = NONE
    ) -> Runs:
        """In transactions of 2,000 runs each, so that no row is locked for long; of fewer where one is refused."""
        claimed: Runs = []
        most = CHUNK
        while most and len(claimed) < many:
            asked = min(most, many - len(claimed))
            try:
                found = await self._claim(owner, workflows, asked, by, but, limits)
            except Refused as error:
                if not claimed and asked == 1:
                    error.rows = [(row[0], row[1]) for row in await self._oldest_due(workflows, by, but)]
                    raise
                most = asked // 2
            else:
                claimed += found
                most = most if len(found) == asked else 0
        return sorted(claimed, key=lambda run: (run.due or 0.0, run.id))

    async def _claim(self, owner: str, workflows: Versions, many: int, by: float, but: Pairs, limits: Limits) -> Runs:
        """As `claim`, in one transaction."""

    async def _oldest_due(self, workflows: Versions, by: float, but: Pairs) -> Sequence[Any]:
        """The id and version of the run that such a claim would take first, if there is one."""

    # -- reading ----------------------------------------------------------------------------------------------------

    async def recall(self, run: Run, state: str, visit: int) -> Calls:
        return [rows.call_of(row) for row in await self.read_rows("recall", run.id, state, visit)]

    async def load(self, workflow: str, key: str) -> Run | None:
        return next(iter(await self._read_runs("load", workflow, key)), None)

    async def list(self, *, workflow: str | None, status: str | None, state: str | None, after: int, many: int) -> Runs:
        return await self._read_runs("list", workflow, status, state, after, many)

    async def inbox(self, run: Run) -> tuple[int, Events]:
        found = await self.read_rows("inbox", run.id)
        if not found:
            raise RunNotFound(run.workflow, run.key)
        return found[0]["posted"], [rows.event_of(row) for row in found if row["id"] is not None]

    async def event(self, run: Run, event_id: str) -> Event | None:
        return next(map(rows.event_of, await self.read_rows("event", run.id, event_id)), None)

    async def taken(self, run: Run, version: int) -> Event | None:
        return next(map(rows.event_of, await self.read_rows("taken", run.id, version)), None)

    async def woken(self, owner: str, since: float) -> Woken:
        found = await self.read_rows("woken", since, owner)
        return [(row["workflow"], row["key"], row["posted"]) for row in found]

    async def rings(self, names: Names, heard: int, within: float) -> int:
        await asyncio.sleep(within)
        return heard

    async def children(self, run: Run, state: str, visit: int) -> Runs:
        return await self._read_runs("children", run.id, state, visit)

    async def below(self, run: Run) -> Keys:
        found = await self.read_rows("below", run.id, self.now() + SOON)
        now = self.now()  # by now: what became due while it was read would be missed, and all would seem to rest
        return [(row["workflow"], row["key"]) for row in found if row["busy"] or row["due"] <= now]

    async def owners(self) -> Owners:
        return [Owner(**dict(row)) for row in await self.read_rows("owners")]
