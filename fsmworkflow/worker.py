"""Worker: one owner of runs. It claims them, keeps its lease alive, and recognises owners that have died.

A process of this machine is known by boot, PID namespace, pid and start time, so a dead one is recognised at once. Of
another machine, of another namespace, or without /proc, nothing can be known: there its lease decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from fsmworkflow.errors import EngineClosed, FSMWorkflowError, LeaseLost, Refused, TransactionError, log
from fsmworkflow.flights import SUSPECT, Flights
from fsmworkflow.hooks import Hooks
from fsmworkflow.lease import Lease, has_died, machine_id
from fsmworkflow.records import Post, Run, replace
from fsmworkflow.resources import Resources
from fsmworkflow.store import Limits, Store, Versions, open_store
from fsmworkflow.store.lent import Lent
from fsmworkflow.store.writer import whole
from fsmworkflow.threads import Threads
from fsmworkflow.workflow import Workflow

__all__ = ["Use", "Worker"]

T = TypeVar("T")

CLOSE_SECONDS = 5.0
DEATHS = 3
"""At how many deaths of its process, in one visit, a run is parked."""
LOOK = 0.5
"""Seconds between two looks at the owners of runs that are watched."""
ASIDE, LONGEST_ASIDE = 1.0, 300.0
"""Seconds for which a run is left alone that cannot be driven: the first time, and the most; each time it is double."""
FORGOTTEN = 86_400.0
"""Seconds after the end of its lease when an owner of another machine is struck off the list."""


class Worker:
    """An owner, from `open` to `close`: a random token, a lease of `lease` seconds, and the runs that it drives.

    Without `lease` it is FSMWORKFLOW_LEASE, or 10. Raises ValueError for one that is not above zero.

    `driven` holds, by workflow and key, a future for each run that is driven or held in this process; `workflows` are
    those known by name; `told` is called with the events that steps have emitted, once they are durable; `stuck` holds,
    by id, the version of each run that does not fit its workflow, and is claimed only by key for as long as it is so.
    """

    def __init__(self, store: Store, *, lease: float | None = None, deaths: int | None = None) -> None:
        given = os.environ.get("FSMWORKFLOW_LEASE") or "10" if lease is None else lease
        self.lease = float(given) if given is lease or str(given).replace(".", "", 1).isdecimal() else math.nan
        if not self.lease > 0:
            raise ValueError(f"a lease, or FSMWORKFLOW_LEASE, must be above zero seconds, not {given!r}")
        if deaths is not None and deaths <= SUSPECT:
            raise ValueError(f"deaths must be 3 or more, as two do not tell which run was at fault, not {deaths!r}")
        self.deaths = DEATHS if deaths is None else deaths
        self.flights = Flights()
        self._buried: set[str] = set()
        self._leases: dict[str, float] = {}  # of all owners, as last read
        self._looked = 0.0
        self._pid = 0
        self.store = store
        self.token = ""
        self.stopping = False
        self.driven: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._lease: Lease | None = None
        self.workflows: dict[str, Workflow] = {}
        self.told: Callable[[Iterable[Post]], None] = lambda posts: None
        self.lent: WeakValueDictionary[tuple[int, str, int], Lent] = WeakValueDictionary()  # by run, state and visit
        self.lending: asyncio.Task[Any] | None = None  # in which a step runs for which every other write waits
        self.due: Callable[[Iterable[tuple[str, str]]], None] = lambda keys: None
        self.stuck: dict[int, int] = {}
        self.pauses: dict[int, float] = {}  # of runs that could not be driven of late, by id
        self.unreleased: list[Run] = []  # runs of ours that nobody drives, as the store did not let them go
        self.hooks = Hooks()
        self.resources = Resources()
        self._giving_back: set[asyncio.Task[None]] = set()
        self._rooms: dict[str, asyncio.Semaphore] = {}

    async def open(self) -> None:
        """Make this owner known, and renew its lease in the background for as long as its event loop runs."""
        self.token = secrets.token_hex(8)
        self._pid = os.getpid()
        self.stopping = False
        self.threads = Threads()
        self._rooms.clear()
        self._lease = Lease(self.store, self.token, self.lease)
        try:
            await self._lease.begin()
            await self.reap()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop renewing, and strike this owner off the list, so that its runs may be claimed at once."""
        if self.token:
            token, self.token = self.token, ""
            if self._pid == os.getpid():  # else it is the parent's, which goes on
                await whole(self._end(token))

    async def _end(self, token: str) -> None:
        lease, self._lease = self._lease, None
        self.threads.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if lease is not None:
                    await lease.end()
                if self._giving_back:
                    await asyncio.wait(self._giving_back)
                await self.store.bury(token)
        except TimeoutError:
            log.warning("the store cannot be told that this owner has ended: its runs are free when its lease is over")

    @contextlib.contextmanager
    def driving(self, name: tuple[str, str]) -> Iterator[None]:
        """Round what drives or holds a run in this process, so that nothing else here does."""
        done = self.driven[name] = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            del self.driven[name]
            done.cancel()

    async def hold(self, run: Run) -> None:
        """Make sure that a run is still ours, before something is done in its name. Raises LeaseLost.

        Asks the store only where the lease has lapsed, which gave others the right to claim.
        """
        if not self.lapsed or self._lease is None:
            return
        await self._lease.renew()
        row = await self.store.load(run.workflow, run.key)
        if row is None or (row.owner, row.epoch) != (run.owner, run.epoch):
            raise LeaseLost.of(run)

    async def drain(self) -> None:
        """Say that this owner is ending, so that no run is to blame if it dies meanwhile; for 5 s, if need be."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._lease is not None:
                    await self._lease.drain()
        except (FSMWorkflowError, TimeoutError) as error:
            log.warning("the store could not be told that this owner is ending: %r", error)

    async def _in_time(self) -> None:
        """Renew a lease that is late before anything is claimed, which spares others that were held up, too."""
        if self._lease is not None and self._lease.late:
            await self._lease.renew()

    @property
    def lapsed(self) -> bool:
        """Whether the lease has ended by this process's own clock, so that others may have claimed."""
        return self._lease is None or self._lease.left <= 0

    @property
    def left(self) -> float:
        """For how many seconds the lease still holds by this process's own clock; below zero since when it does not."""
        return 0.0 if self._lease is None else self._lease.left

    async def prove(self) -> None:
        """Write to the store, by renewing the lease. Raises StoreError where that cannot be done."""
        if self._lease is not None:
            await self._lease.renew()

    async def reap(self) -> bool:
        """Strike dead processes of this machine off the list of owners. True where there was one."""
        machine, now, found = machine_id(), self.store.now(), False
        owners = await self.store.owners()
        self._leases = {owner.token: owner.lease for owner in owners}
        for owner in owners:
            if owner.token not in self._buried and (has_died(owner, machine) or owner.lease + FORGOTTEN < now):
                self._buried.add(owner.token)
                await self.store.bury(owner.token)
                del self._leases[owner.token]
                found = True
        return found

    async def look(self, pause: float) -> None:
        """Reap, where that was done last so many seconds ago."""
        now = time.monotonic()
        if now >= self._looked + pause:
            self._looked = now
            await self.reap()

    async def may_claim(self, run: Run) -> bool:
        """Whether a run as it was read is worth a claim: it is free, or its owner has died or let its lease lapse.

        The owners are read twice a second at the most, however many runs are watched.
        """
        if run.owner is None or run.owner == self.token:
            return True
        await self.look(LOOK)
        return self._leases.get(run.owner, 0.0) <= self.store.now()

    async def claim(self, many: int, by: float = math.inf) -> list[Run]:
        """Make up to `many` unfinished runs of the known workflows ours that no live owner holds, oldest first.

        Only what is due by `by`, seconds since the epoch; none of a newer version of its workflow than is known, and
        none that is stuck.
        """
        self.check()
        await self._in_time()
        workflows = {name: workflow.version for name, workflow in self.workflows.items()}
        limits = {name: w.concurrency for name, w in self.workflows.items() if w.concurrency is not None}
        while True:
            try:
                return await self._taken(self._claim(workflows, many, by, limits), lambda runs: runs)
            except Refused as error:
                if not error.rows:
                    raise
                for run, version in error.rows:
                    log.error("run %d cannot be claimed: %s", run, error)
                    self.set_aside(run, version, error)

    async def _claim(self, workflows: Versions, many: int, by: float, limits: Limits) -> list[Run]:
        runs = await self.store.claim(self.token, workflows, many, by, list(self.stuck.items()), limits)
        if aside := [run for run in runs if self.stuck.get(run.id) == run.version]:  # while it was being claimed
            self.unreleased += aside
            await self.release_again()
        return [run for run in runs if run not in aside]

    def set_aside(self, run: int, version: int, error: BaseException) -> None:
        """Claim a run no more as it stands, for a while that doubles each time until it has been driven.

        To be said before it is released, so that no claim finds it meanwhile. Not of one that another owner has now.
        """
        if isinstance(error, LeaseLost) or self.stuck.get(run) == version:
            return
        pause = self.pauses.get(run, ASIDE)
        self.pauses[run] = min(pause * 2, LONGEST_ASIDE)
        self.stuck[run] = version
        asyncio.get_running_loop().call_later(pause, self.stuck.pop, run, None)

    async def release_again(self) -> None:
        """Give up what the store did not let go, if it does now."""
        for run in self.unreleased.copy():
            with contextlib.suppress(Refused):
                await self.store.release(run)
                self.unreleased = [one for one in self.unreleased if one is not run]

    async def claim_one(
        self, workflow: str, key: str, newest: int | None = None, limit: int | None = None
    ) -> Run | None:
        """Make one run ours, or None where a live owner holds it. Not for a run that this worker already drives.

        Nor is one of a newer version of the workflow than `newest` claimed, nor one where `limit` of it are driven.
        """
        self.check()
        await self._in_time()

        def claiming() -> Coroutine[Any, Any, Run | None]:
            claim = self.store.claim_one(self.token, workflow, key, newest, limit)
            return self._taken(claim, lambda run: [] if run is None else [run])

        run = await claiming()
        return await claiming() if run is None and await self.reap() else run

    def room(self, workflow: Workflow) -> contextlib.AbstractAsyncContextManager[None]:
        """Where a workflow has a limit, so many of its runs ask for their place at once."""
        if workflow.concurrency is None:
            return contextlib.nullcontext()
        return self._rooms.setdefault(workflow.name, asyncio.Semaphore(workflow.concurrency))

    async def create(self, run: Run) -> tuple[Run, bool]:
        """Start a run as ours. Returns the run that is there, and whether it is the one given."""
        alone, creating = not self._giving_back, self.store.create(replace(run, owner=self.token, epoch=1))
        there, created = await self._taken(creating, lambda there: [there[0]] if there[1] else [])
        return there, created or (alone and first_of(there, self.token))  # else it may be about to be given back

    async def _taken(self, taking: Coroutine[Any, Any, T], runs: Callable[[T], Iterable[Run]]) -> T:
        """What was taken. A caller that is cancelled meanwhile never hears of it: then it is given back."""
        task = asyncio.ensure_future(taking)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            back = asyncio.ensure_future(self._give_back(task, runs))
            self._giving_back.add(back)
            back.add_done_callback(self._giving_back.discard)
            raise

    async def _give_back(self, task: asyncio.Task[T], runs: Callable[[T], Iterable[Run]]) -> None:
        try:
            await asyncio.gather(*(self.store.release(run) for run in runs(await task)))
        except FSMWorkflowError as error:
            log.warning("what was claimed for a caller that is gone could not be given back: %s", error)

    def check(self) -> None:
        """Raise EngineClosed unless open, and in a process that was forked from the one that opened it."""
        if self.token and self._pid != os.getpid():
            raise EngineClosed(
                f"this engine belongs to process {self._pid}, from which this one was forked: open another one here"
            )
        if self.stopping and self.token:
            raise EngineClosed("the engine is closing: nothing new is begun")
        if not self.token:
            raise EngineClosed("the engine is not open: use it inside `async with Engine(...) as engine:`")

    def check_free(self) -> None:
        """As `check`, and raise TransactionError in a step whose transaction every other write waits for."""
        self.check()
        if self.lending is not None and self.lending is asyncio.current_task():
            raise TransactionError(
                "a step in a transaction on SQLite asks the engine for what waits for the end of this transaction: "
                "do it before it, in another step, or by ctx.emit"
            )


class Use:
    """What is open of a store in one event loop: `users` work with it by one owner, `kept` says that it stays open.

    A store that was open before stays open.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._begin()

    def _begin(self) -> None:
        self.worker: Worker | None = None
        self.opened = self.kept = False
        self.users = 0
        self.lock = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def of(cls, store: Any) -> Use:
        """That of a store, the same for all who are given it; each URL is a store of its own."""
        if isinstance(store, str):
            return cls(open_store(store))
        use: Use = vars(store).setdefault("_use", cls(store))
        return use

    async def open(self) -> None:
        before = self.store.opened
        await self.store.open()
        self.opened = self.opened or not before
        if open_pool := getattr(self.store, "open_pool", None):  # PostgreSQL's; where it is closed, it makes another
            await open_pool()

    async def acquire(self) -> Worker:
        """Open what is not open, and return the owner that all users share, until `release`."""
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):  # what an ended one left here is of no use
            self._begin()
        self._loop = loop
        async with self.lock:
            self.users += 1
            try:
                await self.open()
                if self.worker is None:
                    worker = Worker(self.store)
                    await worker.open()
                    self.worker = worker
                return self.worker
            except BaseException:
                self.users -= 1
                await self.rest()
                raise

    async def release(self, seconds: float | None = None) -> None:
        """Give one `acquire` back. The last one closes what was opened, each part within that time."""
        self.users = max(0, self.users - 1)
        if not self.users:
            await whole(self.rest_alone(seconds))  # to its end, also where the caller is being cancelled

    async def rest_alone(self, seconds: float | None, *, kept: bool = True) -> None:
        async with self.lock:
            self.kept = self.kept and kept
            await self.rest(seconds)

    async def rest(self, seconds: float | None = None) -> None:
        """Close what nobody uses, each part within that time."""
        if not self.users and self.worker is not None:
            worker, self.worker = self.worker, None
            await _ended(worker.close(), "the owner", seconds)
        if self.opened and not self.users and not self.kept:
            self.opened = False
            await _ended(self.store.close(), self.store.url, seconds)


async def _ended(closing: Awaitable[None], what: str, seconds: float | None) -> None:
    try:
        async with asyncio.timeout(seconds):
            await closing
    except Exception as error:
        log.warning("%s could not be closed: %r", what, error)


def first_of(run: Run, token: str) -> bool:
    """Whether a run is as its owner has just made it: which a repeat finds whose first answer was lost."""
    return (run.owner, run.epoch, run.version) == (token, 1, 0)
