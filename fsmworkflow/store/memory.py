"""The store in dicts: the reference reading of the contract, for tests and for machines that need no disk.

It lives as long as the object. Everything between two awaits is one transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fsmworkflow.codec import decode
from fsmworkflow.errors import LeaseLost, StoreError
from fsmworkflow.records import Call, Entry, Move, Owner, Run, replace
from fsmworkflow.store import Calls, Entries, Names, Owners, Runs


class MemoryStore:
    """Keeps everything in this process. `clock` gives the time in seconds since the epoch."""

    url = "memory://"

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.opened = False
        self._clear()

    def _clear(self) -> None:
        self._runs: dict[int, Run] = {}
        self._keys: dict[tuple[str, str], int] = {}
        self._moves: dict[int, list[Entry]] = {}
        self._calls: dict[tuple[int, str, int], dict[tuple[str, int], Call]] = {}
        self._owners: dict[str, Owner] = getattr(self, "_owners", {})

    async def open(self) -> None:
        self.opened = True

    async def close(self) -> None:
        self.opened = False

    def now(self) -> float:
        return self._clock()

    # -- writing ----------------------------------------------------------------------------------------------------

    async def create(self, run: Run) -> tuple[Run, bool]:
        self._open()
        there = self._keys.get((run.workflow, run.key))
        if there is not None:
            return self._runs[there], False
        run = replace(run, id=len(self._runs) + 1)
        self._runs[run.id] = run
        self._keys[run.workflow, run.key] = run.id
        self._moves[run.id] = [_start(run)]
        return run, True

    async def commit(self, move: Move) -> None:
        self._open()
        row = self._held(move.before)
        due = move.after.due if row.posted == move.before.posted else min(row.due or move.at, move.at)
        self._runs[row.id] = replace(move.after, posted=row.posted, due=due)
        self._moves[row.id].append(_entry(move))
        for state, visit in move.forget:
            self._calls.pop((row.id, state, visit), None)

    async def settle(self, before: Run, after: Run) -> None:
        self._open()
        row = self._held(before)
        due = after.due if row.posted == before.posted else min(row.due or self._clock(), self._clock())
        self._runs[row.id] = replace(row, actions=after.actions, owner=after.owner, error=after.error, due=due)

    async def release(self, run: Run) -> None:
        self._open()
        row = self._runs.get(run.id)
        if row is not None and (row.owner, row.epoch) == (run.owner, run.epoch):
            self._runs[run.id] = replace(row, owner=None)

    async def remember(self, run: Run, call: Call) -> None:
        self._open()
        row = self._runs[run.id]
        if row.owner != run.owner or row.epoch != run.epoch:
            raise lost(run)
        self._calls.setdefault((call.run, call.state, call.visit), {}).setdefault((call.name, call.nth), call)

    def _held(self, run: Run) -> Run:
        row = self._runs.get(run.id)
        if row is None or (row.version, row.owner, row.epoch) != (run.version, run.owner, run.epoch) or not row.owner:
            raise lost(run)
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
        found = (
            run
            for run in self._runs.values()
            if run.id > after
            and (workflow is None or run.workflow == workflow)
            and (status is None or run.status == status)
            and (state is None or run.state == state)
        )
        return [run for _, run in zip(range(many), found, strict=False)]

    async def history(self, run: Run) -> Entries:
        self._open()
        return list(self._moves[run.id])

    # -- claims -----------------------------------------------------------------------------------------------------

    def _free(self, run: Run) -> bool:
        owner = None if run.owner is None else self._owners.get(run.owner)
        return owner is None or owner.lease <= self._clock()

    def _claim(self, run: Run, owner: str) -> Run:
        run = self._runs[run.id] = replace(run, owner=owner, epoch=run.epoch + 1)
        return run

    async def claim(self, owner: str, workflows: Names, many: int, by: float) -> Runs:
        self._open()
        due = [r for r in self._runs.values() if r.due is not None and r.due <= by]
        due = [r for r in due if r.workflow in workflows and self._free(r)]
        return [self._claim(run, owner) for run in sorted(due, key=lambda r: r.due or 0.0)[:many]]

    async def claim_one(self, owner: str, workflow: str, key: str) -> Run | None:
        run = await self.load(workflow, key)
        return self._claim(run, owner) if run and (run.owner == owner or self._free(run)) else None

    async def oldest(self, workflow: str, but: Names) -> str | None:
        self._open()
        for run in self._runs.values():
            may = run.status in ("running", "waiting") or (run.status == "failed" and run.error is not None)
            if run.workflow == workflow and run.key not in but and may and self._free(run):
                return run.key
        return None

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
        self._owners.pop(token, None)

    async def reset(self) -> None:
        self._clear()

    def _open(self) -> None:
        if not self.opened:
            raise StoreError(f"{self.url} is not open")


def lost(run: Run) -> LeaseLost:
    """The error of an owner that no longer owns."""
    return LeaseLost(
        f"run {run.workflow}/{run.key} was claimed by another owner since version {run.version}, epoch {run.epoch}: "
        "nothing was written, the other one goes on"
    )


def _start(run: Run) -> Entry:
    return Entry(
        version=0, event="$start", source="", dest=run.state, status=run.status, at=run.created, owner=run.owner,
        epoch=run.epoch, changes={k: decode(v) for k, v in run.fields.items()},
    )  # fmt: skip


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
        changes={k: decode(v) for k, v in move.changes.items()},
        removed=move.removed,
        asked=move.asked,
        error=after.error if after.error is not before.error else None,
        trigger=event.trigger,
    )
