"""What tests of workflows need: a store that crashes at the n-th write, and a clock that tests turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal, ParamSpec, TypeVar

from fsmworkflow.records import Call, Event, Move, Owner, Run
from fsmworkflow.retry import Duration, seconds
from fsmworkflow.store import (
    NONE,
    Calls,
    Entries,
    Events,
    Keys,
    Limits,
    Names,
    Owners,
    Pairs,
    Runs,
    Store,
    Versions,
    Woken,
)
from fsmworkflow.store.lent import Lent

__all__ = ["Clock", "Crash", "CrashingStore"]

P = ParamSpec("P")
T = TypeVar("T")


class Crash(BaseException):
    """The process is taken to have died here. No `except Exception` catches it, as none survives SIGKILL."""


class Clock:
    """A clock that tests turn, for `MemoryStore(clock=clock)` and `SQLiteStore(path, clock=clock)`.

    Called, it gives the time in seconds since the epoch. It stands still but for `turn`.
    """

    def __init__(self, now: float = 1_750_000_000.0) -> None:
        self.time = now

    def __call__(self) -> float:
        return self.time

    def turn(self, by: Duration) -> float:
        """Move the clock on, by seconds or by a duration such as "3d", and return the time that it now is."""
        self.time += seconds(by)
        return self.time


class CrashingStore:
    """A Store that stops at its `at`-th write, counted from 1: before the write took effect, or after it did.

        store = CrashingStore(MemoryStore(), at=3, when="after")
        with pytest.raises(Crash):
            async with Engine(store, workflows=[article]) as engine:
                await engine.run(article, key="article-1")
        await store.bury_the_dead()
        async with Engine(store.inner, workflows=[article]) as engine:  # the restarted process
            run = await engine.run(article, key="article-1")

    Writes are create, commit (of a step's transaction too), settle, release, remember and post. The one that stops
    raises Crash in whoever drives; from then on everything but `close` does. `writes` counts what was asked for;
    `crashed` says whether it has stopped.
    With `at=None` it never stops, and only counts.
    """

    def __init__(self, store: Store, *, at: int | None, when: Literal["before", "after"] = "before") -> None:
        if when not in ("before", "after"):
            raise ValueError(f"when must be 'before' or 'after', not {when!r}")
        self.inner = store
        self.url = store.url
        self.at = at
        self.when = when
        self.writes = 0
        self.crashed = False

    async def bury_the_dead(self) -> None:
        """Open the inner store, and strike all owners off its list, as a restarted process does with dead ones.

        A test's own process lives on, so that nobody else would take its engine for dead before the end of its lease.
        """
        await self.inner.open()
        for owner in await self.inner.owners():
            await self.inner.bury(owner.token)

    def _alive(self) -> None:
        if self.crashed:
            raise Crash(f"{self.url} crashed at write {self.at}")

    async def _write(self, method: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        self._alive()
        self.writes += 1
        stops = self.writes == self.at
        if stops and self.when == "before":
            self.crashed = True
        self._alive()
        try:
            result = await method(*args, **kwargs)
        finally:
            self.crashed |= stops  # also where whoever asked for it has been cancelled meanwhile
        self._alive()
        return result

    async def _other(self, method: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        self._alive()
        return await method(*args, **kwargs)

    # -- writes -----------------------------------------------------------------------------------------------------

    async def create(self, run: Run) -> tuple[Run, bool]:
        return await self._write(self.inner.create, run)

    async def commit(self, move: Move) -> Keys | None:
        return await self._write(self.inner.commit, move)

    def transaction(self, run: Run) -> Lent:
        self._alive()
        lent = self.inner.transaction(run)
        commit = lent.commit

        async def counted(move: Move) -> None:
            await self._write(commit, move)

        lent.commit = counted  # type: ignore[method-assign]
        return lent

    async def settle(self, before: Run, after: Run) -> None:
        await self._write(self.inner.settle, before, after)

    async def release(self, run: Run) -> None:
        await self._write(self.inner.release, run)

    async def remember(self, run: Run, call: Call) -> None:
        await self._write(self.inner.remember, run, call)

    async def post(self, workflow: str, key: str, event: Event) -> Event:
        return await self._write(self.inner.post, workflow, key, event)

    # -- everything else --------------------------------------------------------------------------------------------

    def twin(self) -> None:
        return None

    @property
    def opened(self) -> bool:
        return self.inner.opened

    async def open(self) -> None:
        await self._other(self.inner.open)

    async def close(self) -> None:
        await self.inner.close()

    def now(self) -> float:
        return self.inner.now()

    async def rings(self, names: Names, heard: int, within: float) -> int:
        return await self._other(self.inner.rings, names, heard, within)

    async def recall(self, run: Run, state: str, visit: int) -> Calls:
        return await self._other(self.inner.recall, run, state, visit)

    async def load(self, workflow: str, key: str) -> Run | None:
        return await self._other(self.inner.load, workflow, key)

    async def claim(
        self, owner: str, workflows: Versions, many: int, by: float, but: Pairs = (), limits: Limits = NONE
    ) -> Runs:
        return await self._other(self.inner.claim, owner, workflows, many, by, but, limits)

    async def claim_one(
        self, owner: str, workflow: str, key: str, newest: int | None = None, limit: int | None = None
    ) -> Run | None:
        return await self._other(self.inner.claim_one, owner, workflow, key, newest, limit)

    async def oldest(self, workflow: str, but: Names, newest: int | None = None) -> str | None:
        return await self._other(self.inner.oldest, workflow, but, newest)

    async def overdue(self, workflows: Names) -> float | None:
        return await self._other(self.inner.overdue, workflows)

    async def prune(self, workflow: str, statuses: Names, before: float, many: int) -> int:
        return await self._other(self.inner.prune, workflow, statuses, before, many)

    async def trim(self, run: Run, before: int) -> None:
        await self._write(self.inner.trim, run, before)

    async def list(self, **which: Any) -> Runs:
        return await self._other(self.inner.list, **which)

    async def history(self, run: Run) -> Entries:
        return await self._other(self.inner.history, run)

    async def inbox(self, run: Run) -> tuple[int, Events]:
        return await self._other(self.inner.inbox, run)

    async def event(self, run: Run, event_id: str) -> Event | None:
        return await self._other(self.inner.event, run, event_id)

    async def taken(self, run: Run, version: int) -> Event | None:
        return await self._other(self.inner.taken, run, version)

    async def woken(self, owner: str, since: float) -> Woken:
        return await self._other(self.inner.woken, owner, since)

    async def children(self, run: Run, state: str, visit: int) -> Runs:
        return await self._other(self.inner.children, run, state, visit)

    async def below(self, run: Run) -> Keys:
        return await self._other(self.inner.below, run)

    async def enrol(self, owner: Owner) -> None:
        await self._other(self.inner.enrol, owner)

    async def renew(self, token: str, lease: float) -> bool:
        return await self._other(self.inner.renew, token, lease)

    async def owners(self) -> Owners:
        return await self._other(self.inner.owners)

    async def bury(self, token: str) -> None:
        await self._other(self.inner.bury, token)

    async def reset(self) -> None:
        await self._other(self.inner.reset)
