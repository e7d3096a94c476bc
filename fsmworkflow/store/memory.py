"""The store in dicts: the reference reading of the contract, for tests and for machines that need no disk.

It lives as long as the object. Everything between two awaits is one transaction.
"""

from __future__ import annotations

import asyncio

from fsmworkflow import records
from fsmworkflow.codec import read_back
from fsmworkflow.errors import LeaseLost, RunNotFound, RunOver, Stale, TransactionError
from fsmworkflow.flights import SUSPECT
from fsmworkflow.records import Call, Entry, Event, Move, Owner, Post, Run, replace, sooner
from fsmworkflow.store import NONE, Calls, Entries, Events, Keys, Limits, Names, Owners, Pairs, Runs, Versions, Woken
from fsmworkflow.store.lent import Lent
from fsmworkflow.store.memory_kin import Kin
from fsmworkflow.store.rows import drops, is_new, opened, related, sealed, sealed_move


class MemoryStore(Kin):
    """Keeps everything in this process. `clock` gives the time in seconds since the epoch."""

    async def open(self) -> None:
        self.opened = True

    async def close(self) -> None:
        self.opened = False

    def twin(self) -> None:
        return None

    def now(self) -> float:
        return self._clock()

    # -- writing ----------------------------------------------------------------------------------------------------

    async def create(self, run: Run) -> tuple[Run, bool]:
        self._open()
        there = self._keys.get((run.workflow, run.key))
        if there is not None:
            return self._runs[there], False
        return self._make(run), True

    async def commit(self, move: Move) -> Keys | None:
        self._open()
        move = sealed_move(move)
        row = self._held(move.before)
        due = move.after.due if row.posted == move.before.posted else sooner(row.due, move.at)
        posted = self._taken(row, move) if move.event.id else row.posted
        entry = _entry(move)
        self._runs[row.id] = replace(move.after, posted=posted, due=due, later=None, child=row.child)
        self._drop(move.before, move.after)
        self._moves[row.id].append(entry)
        for state, visit in move.forget:
            self._calls.pop((row.id, state, visit), None)
        for post in move.posts:
            self._emit(post, move.at)
        return self._related(move) if related(move) else None

    def transaction(self, run: Run) -> Lent:
        raise TransactionError(
            f"a step of {run.workflow}/{run.key} asks for a transaction, and {self.url} has no connection to give: "
            "ctx.transaction() is for runs in sqlite:///file.db and postgresql://..."
        )

    async def settle(self, before: Run, after: Run) -> None:
        self._open()
        row = self._held(before)
        due = after.due if row.posted == before.posted else sooner(row.due, self._clock())
        self._runs[row.id] = replace(
            row, actions=after.actions, owner=after.owner, error=after.error, due=due, flight=after.flight
        )
        self._drop(before, after)

    async def release(self, run: Run) -> None:
        self._open()
        row = self._runs.get(run.id)
        if row is not None and (row.owner, row.epoch) == (run.owner, run.epoch):
            self._runs[run.id] = replace(row, owner=None)

    async def remember(self, run: Run, call: Call) -> None:
        self._open()
        row = self._runs[run.id]
        if row.owner != run.owner or row.epoch != run.epoch:
            raise LeaseLost.of(run)
        if row.deaths:
            self._runs[run.id] = replace(row, deaths=0)
        self._calls.setdefault((call.run, call.state, call.visit), {}).setdefault((call.name, call.nth), call)

    async def post(self, workflow: str, key: str, event: Event) -> Event:
        self._open()
        event = sealed(event)
        row = await self.load(workflow, key)
        if row is None:
            raise RunNotFound(workflow, key)
        known = self._events.get(row.id, {}).get(event.id)
        if known is None:
            if row.over:
                raise RunOver(workflow, key, row.status)
            known = self._insert(row, event, self._clock())
            self._posted(row, known)
        return opened(known)

    def _emit(self, post: Post, now: float) -> None:
        """Put an event into an inbox, where its run has not ended, and once."""
        row = self._runs.get(self._keys.get((post.workflow, post.key), 0))
        if row is None or post.event.id in self._events.get(row.id, {}):
            return
        event = self._insert(row, post.event, now)
        if row.over:
            self._events[row.id][event.id] = replace(event, status="dropped")
        else:
            self._posted(row, event)

    def _taken(self, row: Run, move: Move) -> int:
        """Mark or insert the event of a move. Returns how many were ever posted. Raises Stale."""
        known, new = self._events.get(row.id, {}).get(move.event.id), is_new(move)
        if new and known is None and row.posted == move.before.posted:
            known = self._insert(row, move.event, move.at)
        elif new or known is None or known.status != "waiting":
            raise Stale.of(row)
        self._events[row.id][known.id] = replace(known, status=move.answer, version=move.after.version)
        return row.posted + new

    def _drop(self, before: Run, after: Run) -> None:
        if drops(before, after):
            for event in self._waiting(before):
                self._events[before.id][event.id] = replace(event, status="dropped", version=after.version)

    def _held(self, run: Run) -> Run:
        row = self._runs.get(run.id)
        if row is None or (row.version, row.owner, row.epoch) != (run.version, run.owner, run.epoch) or not row.owner:
            raise LeaseLost.of(run)
        return row

    # -- reading ----------------------------------------------------------------------------------------------------

    async def recall(self, run: Run, state: str, visit: int) -> Calls:
        self._open()
        return list(self._calls.get((run.id, state, visit), {}).values())

    async def load(self, workflow: str, key: str) -> Run | None:
        self._open()
        there = self._keys.get((workflow, key))
        return None if there is None else self._runs[there]

    async def list(self, *, workflow: str | None, status: str | None, state: str | None, after: int, many: int) -> Runs:
        self._open()
        asked = {"workflow": workflow, "status": status, "state": state}
        wanted = {name: value for name, value in asked.items() if value is not None}
        later = (run for run in self._runs.values() if run.id > after)
        found = (run for run in later if all(getattr(run, name) == value for name, value in wanted.items()))
        return [run for _, run in zip(range(many), found, strict=False)]

    async def history(self, run: Run) -> Entries:
        self._open()
        if run.id not in self._moves:
            raise RunNotFound(run.workflow, run.key)
        return list(self._moves[run.id])

    async def inbox(self, run: Run) -> tuple[int, Events]:
        self._open()
        row = self._runs.get(run.id)
        if row is None:
            raise RunNotFound(run.workflow, run.key)
        return row.posted, [opened(e) for e in sorted(self._waiting(run), key=lambda e: (e.due, e.number))]

    async def event(self, run: Run, event_id: str) -> Event | None:
        self._open()
        event = self._events.get(run.id, {}).get(event_id)
        return None if event is None else opened(event)

    async def taken(self, run: Run, version: int) -> Event | None:
        self._open()
        events = self._events.get(run.id, {}).values()
        return next((opened(e) for e in events if e.version == version and e.status == "accepted"), None)

    async def woken(self, owner: str, since: float) -> Woken:
        self._open()
        mine = [run for run in self._runs.values() if run.owner == owner]
        new = (run for run in mine if any(self._created[e.number - 1] >= since for e in self._waiting(run)))
        return [(run.workflow, run.key, run.posted) for run in new]

    async def rings(self, names: Names, heard: int, within: float) -> int:
        await asyncio.sleep(within)
        return heard

    # -- claims -----------------------------------------------------------------------------------------------------

    def _free(self, run: Run) -> bool:
        owner = None if run.owner is None else self._owners.get(run.owner)
        return owner is None or owner.lease <= self._clock()

    def _claim(self, run: Run, owner: str) -> Run:
        deaths = run.deaths + self._died_with(run, owner)
        run = self._runs[run.id] = replace(run, owner=owner, epoch=run.epoch + 1, deaths=deaths)
        return run

    def _died_with(self, run: Run, owner: str) -> bool:
        """Whether a run's last owner died, and not while it was ending, with this run in flight."""
        dead = None if run.owner in (None, owner) else self._owners.get(run.owner or "")
        draining = dead is not None and dead.draining
        flew = run.due is not None and run.due <= self._clock() and (run.deaths < SUSPECT or run.flight == run.epoch)
        return run.owner not in (None, owner) and not draining and flew

    async def claim(
        self, owner: str, workflows: Versions, many: int, by: float, but: Pairs = (), limits: Limits = NONE
    ) -> Runs:
        self._open()
        due = [r for r in self._runs.values() if r.due is not None and r.due <= by]
        due = [r for r in due if r.definition <= workflows.get(r.workflow, 0) and self._free(r)]
        due = [r for r in due if (r.id, r.version) not in but]
        rooms = {name: most - self._driven(name) for name, most in limits.items()}
        chosen: Runs = []
        for run in sorted(due, key=lambda r: r.due or 0.0):
            if len(chosen) < many and rooms.get(run.workflow, 1) > 0:
                chosen.append(run)
                if run.workflow in rooms:
                    rooms[run.workflow] -= 1
        return [self._claim(run, owner) for run in chosen]

    def _driven(self, workflow: str) -> int:
        """How many runs of a workflow live owners hold, those that rest not counted."""
        live = [r for r in self._runs.values() if r.workflow == workflow and r.due is not None and not self._free(r)]
        return sum(r.status in records.MOVING or (r.due or 0.0) <= self._clock() for r in live)

    async def claim_one(
        self, owner: str, workflow: str, key: str, newest: int | None = None, limit: int | None = None
    ) -> Run | None:
        run = await self.load(workflow, key)
        may = run is not None and not _newer(run, newest) and (run.owner == owner or self._free(run))
        if run is not None and run.in_line:
            may = may and run.due is not None and run.due <= self._clock()
        if run is None or not may or (limit is not None and self._driven(workflow) >= limit):
            return None
        return self._claim(run, owner)

    async def oldest(self, workflow: str, but: Names, newest: int | None = None) -> str | None:
        self._open()
        for run in self._runs.values():
            if run.child is not None:
                continue
            due = run.due is not None and run.due <= self._clock()
            goes_on = run.status == "running" or (run.status == "failed" and not run.over) or self._live.get(run.id)
            may = (due or goes_on) and run.workflow == workflow and run.key not in but
            if may and self._free(run) and not _newer(run, newest):
                return run.key
        return None

    async def overdue(self, workflows: Names) -> float | None:
        self._open()
        due = [r.due for r in self._runs.values() if r.due is not None and r.workflow in workflows and self._free(r)]
        return min((time for time in due if time <= self._clock()), default=None)

    async def prune(self, workflow: str, statuses: Names, before: float, many: int) -> int:
        self._open()
        found = [r for r in self._runs.values() if r.workflow == workflow and r.status in statuses]
        found = [r for r in found if r.updated < before and r.due is None and r.owner is None]
        roots = [r for r in found if (above := self._runs.get(r.parent or 0)) is None or above.over]
        families = (self._family(run) for run in roots)
        going = [f for f in families if not any(r.status in records.UNFINISHED or r.owner is not None for r in f)]
        gone = {run.id: run for family in going[:many] for run in family}
        for run in gone.values():
            del self._runs[run.id], self._keys[run.workflow, run.key], self._moves[run.id]
            self._events.pop(run.id, None)
            self._live.pop(run.id, None)
        self._calls = {place: calls for place, calls in self._calls.items() if place[0] not in gone}
        for visit, family in list(self._children.items()):
            self._children[visit] = [number for number in family if number not in gone]
        return len(gone)

    async def trim(self, run: Run, before: int) -> None:
        self._open()
        row = self._runs.get(run.id)
        if row is not None and (row.owner, row.epoch) == (run.owner, run.epoch):
            self._moves[run.id] = [one for one in self._moves[run.id] if not 0 < one.version < before]
            events = self._events.get(run.id, {})
            for event in [e for e in events.values() if e.version is not None and e.version < before]:
                del events[event.id]

    def _family(self, run: Run) -> Runs:
        below = [r for r in self._runs.values() if r.parent == run.id]
        return [run, *(r for child in below for r in self._family(child))]

    # -- owners -----------------------------------------------------------------------------------------------------

    async def enrol(self, owner: Owner) -> None:
        self._open()
        self._owners[owner.token] = owner

    async def renew(self, token: str, lease: float) -> bool:
        self._open()
        owner = self._owners.get(token)
        if owner is not None:
            self._owners[token] = replace(owner, lease=lease)
        return owner is not None

    async def owners(self) -> Owners:
        return list(self._owners.values())

    async def bury(self, token: str) -> None:
        owner = self._owners.pop(token, None)
        held = any(r.owner == token and r.due is not None for r in self._runs.values())
        if owner is not None and owner.draining and held:
            self._owners[token] = replace(owner, lease=min(owner.lease, self._clock()))

    async def reset(self) -> None:
        self._clear()


def _newer(run: Run, newest: int | None) -> bool:
    return newest is not None and run.definition > newest


def _entry(move: Move) -> Entry:
    before, after, event = move.before, move.after, move.event
    stay = before.active.get(event.state)
    return Entry(
        version=after.version,
        event=event.name,
        source=before.state,
        dest=after.state,
        status=after.status,
        at=move.at,
        began=event.began,
        attempt=before.attempt if stay is None else stay.attempt,
        owner=before.owner,
        epoch=before.epoch,
        changes={k: read_back(v) for k, v in move.changes.items()},
        removed=move.removed,
        asked=move.asked,
        error=event.failure or (after.error if after.error is not before.error else None),
        trigger=event.trigger,
        detail=move.detail,
    )
