"""Engine: drives many runs. It opens the store, starts, resumes and watches; every verb takes `(workflow, key)`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from fsmworkflow import errors
from fsmworkflow.claims import WATCH, first, goes_on, patience, tell
from fsmworkflow.codec import encode
from fsmworkflow.errand import Errand
from fsmworkflow.errors import log, name_problem
from fsmworkflow.explain import forked
from fsmworkflow.hooks import Hook, Hooks
from fsmworkflow.records import Event, Run
from fsmworkflow.register import Register
from fsmworkflow.resources import Resources
from fsmworkflow.retry import seconds
from fsmworkflow.roster import Roster
from fsmworkflow.store import Store, open_store
from fsmworkflow.store.writer import whole
from fsmworkflow.worker import Worker
from fsmworkflow.workflow import Workflow, id_of, known_event

if TYPE_CHECKING:
    from fsmworkflow.health import Health
    from fsmworkflow.schedule import Missed, Overlap, Schedule

__all__ = ["Engine"]

PRUNED, PRUNE_PAUSE, PRUNE_EVERY = 100, 0.05, 600.0
"""How many runs one transaction deletes, the seconds until the next one, and the seconds between two looks."""

Different = Literal["log", "refuse"]
Schedules = list["Schedule"]


class Engine(Register):
    """Runs of workflows on one store, driven in this process.

        async with Engine("sqlite:///articles.db", workflows=[article]) as engine:
            run = await engine.run(article, {"topic": "databases"}, key="article-1")

    `store` is a URL or a Store; one that is open already stays open. Nothing is opened before `async with`. `lease` is
    for how many seconds other machines take this engine for alive without hearing of it (FSMWORKFLOW_LEASE, else 10);
    `poll` how often it looks for events that other processes sent and for times that have come; `grace` how long
    leaving waits for running steps; `deaths` (3 or more) how many processes a run may end, in one visit of its state,
    before it is parked. `hooks` are told of moves and steps, beside the log. `resources` are opened with the engine,
    in this order, and lent to steps by `ctx.use(name)`: pools, clients, any async context manager.
    """

    def __init__(
        self,
        store: str | Store,
        *,
        workflows: Iterable[Workflow] = (),
        lease: float | None = None,
        poll: float = 0.5,
        grace: float = 10.0,
        deaths: int = 3,
        hooks: Iterable[Hook] = (),
        resources: Mapping[str, Any] | None = None,
    ) -> None:
        self.store: Store = _as_store(store)
        self.grace = grace
        self.workflows: dict[str, Workflow] = {}
        self.worker = Worker(self.store, lease=lease, deaths=deaths)
        self.worker.hooks = Hooks(hooks)
        self.resources = self.worker.resources = Resources(resources)
        self._opened = False  # whether the store was opened here, and is to be closed here
        self.roster = Roster(self.worker, self.workflows, poll)
        self.worker.workflows = self.workflows
        self.worker.told, self.worker.due = self.roster.told, self.roster.due
        for workflow in workflows:
            self.known(workflow)

    async def __aenter__(self) -> Self:
        if self.worker.token:
            raise errors.EngineOpen("this engine is open already: make one for each `async with`")
        for workflow in list(self.workflows.values()):
            self.known(workflow.check())  # with its children's, which may have been declared since
        for workflow in list(self.workflows.values()):
            self._with_schedules(workflow)
        self._opened = not self.store.opened
        await self.store.open()
        try:
            await self.worker.open()
            await self.resources.open()
        except BaseException:
            await whole(self._end())
            raise
        self.roster.begin()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.close(grace=self.grace if kind is None else 0.0)

    async def close(self, *, grace: float | None = None) -> None:
        """Let running steps end for up to `grace` seconds, give back what is driven, and close the store.

        While the store cannot be written to, this takes half a minute at the most, and the lease decides on its runs.
        """
        try:
            await self.roster.rest(self.grace if grace is None else grace)
        finally:
            await whole(self._end())

    async def _end(self) -> None:
        await self.roster.end()
        try:
            await self.worker.close()
        finally:
            await self.resources.close()
            if self._opened:
                self._opened = False
                await self.store.close()

    # -- verbs ------------------------------------------------------------------------------------------------------

    async def run(
        self, workflow: Workflow | str, data: Any = None, *, key: str | None = None, different: Different = "log"
    ) -> Run:
        """Start a run, or take up the one of that key, and wait until it ends or rests. Returns it.

        A failed run goes on where it failed; one that is over is reported. Raises RunFailed, with the step's own error
        as its cause. `different` says what follows when the run of that key was started with other data: a line in the
        log, or InputDiffers. Cancelling this call stops the waiting, not the run.
        """
        errand = await self._begin(workflow, data, key, different, retry=True)
        run = await self.roster.rested(errand)
        if run.status == "failed":
            raise errors.RunFailed(self.shown(run)) from errand.error
        return self.shown(run)

    async def start(
        self, workflow: Workflow | str, data: Any = None, *, key: str | None = None, different: Different = "log"
    ) -> Run:
        """Start a run and return it as soon as it is durable; this engine drives it while it is open.

        The run that is there wins: the same key starts nothing twice. Without a key one is made.
        """
        errand = await self._begin(workflow, data, key, different, retry=False)
        return self.shown(errand.run)

    async def result(self, workflow: Workflow | str, key: str) -> Run:
        """Wait until a run ends or rests, whoever drives it, and return it, also when it failed.

        It does not drive it. Where nobody does for longer than a lease, the log says so once.
        """
        self.worker.check_free()
        name, pause, late = self._name(workflow), WATCH, self.worker.lease
        while True:
            errand = self.roster.errands.get((name, key))
            if errand is not None:
                await asyncio.wait([errand.done])
            run = await self.roster.load(name, key)
            if not await goes_on(run, self.store, retry=False):
                return self.shown(run)
            if self.worker.stopping:
                raise errors.EngineClosed(f"the engine was closed while run {name}/{key} went on: resume it")
            if run.due is not None and run.due + late < self.store.now() and await self.worker.may_claim(run):
                late = float("inf")
                log.warning("run %s/%s is due, and nobody drives it: resume() does, or an engine that works", name, key)
            pause = await patience(pause)

    async def resume(self, *, concurrency: int = 100) -> int:
        """Drive every unfinished run of this engine's workflows that nobody drives, to its end or rest.

        `concurrency` of them at once, oldest first. Returns how many. One that fails stays failed, and stops no other.
        Cancelling this call claims no more; what was claimed is driven on.
        """
        return await self.roster.crews.resume(concurrency)

    async def work(self, *, concurrency: int = 100) -> None:
        """Drive whatever is due of this engine's workflows, `concurrency` runs at once, until the engine is closed.

        Any number of processes may work on one store: each run is driven by one of them, those of a process that has
        died are taken up by the others. What rests is let go of, for whoever is free when it is due again. When
        cancelled it drains: nothing more is claimed, running steps end within the engine's `grace`, and the runs are
        given back. Several calls add up.
        """
        pruning = asyncio.create_task(self._prune_for_ever(), name="fsmworkflow-prune")
        try:
            await self.roster.crews.work(concurrency, self.grace)
        finally:
            pruning.cancel()

    @asynccontextmanager
    async def working(self, *, concurrency: int = 100) -> AsyncIterator[Self]:
        """As `work`, beside what is done inside `async with engine.working():`, as in a web server's lifespan.

        Leaving drains. Raises what ended the work early.
        """
        self.worker.check()
        task = asyncio.create_task(self.work(concurrency=concurrency), name="fsmworkflow-work")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()

    # -- events and steering ----------------------------------------------------------------------------------------

    async def send(
        self,
        workflow: Workflow | str,
        key: str,
        event: str,
        payload: Any = None,
        *,
        event_id: str | None = None,
        visit: int | None = None,
        due: float | None = None,
    ) -> Event:
        """Send an event to a run, from any process. Durable when it returns; the Event says what became of it so far.

        What no active state accepts waits. `event_id` makes repeats of one event one; a known one is answered as it now
        is. With `visit` (of the run as the sender saw it) it is good for that visit only; `due` (seconds since the
        epoch) delivers it later. Raises UnknownEvent, RunNotFound, RunOver, and CodecError for the payload,
        or for an `event_id` that is not text of 1 to 200 characters.
        """
        self.worker.check_free()
        definition = self.known(workflow).check()
        known_event(definition, event)
        encode(payload, "payload", limit=definition.codec.limit)
        made = Event(name=event, payload=payload, id=id_of(event_id), visit=visit, due=due)
        if event_id is None and visit is None and due is None:
            sent = await self.roster.send((definition.name, key), made)
            if sent is not None:
                return sent
        return await self.roster.post(definition, key, made)

    async def fork(
        self, workflow: Workflow | str, key: str, *, new_key: str, at: int | None = None, data: Any = None
    ) -> Run:
        """Start a new run in the state, and with the data, that a run had at a version; `data` replaces fields of it.

        Nothing is remembered. Raises RunNotFound, and ValueError for a version that history does not have.
        """
        definition = self.known(workflow).check()
        run = await self.roster.load(definition.name, key)
        made = forked(definition, run, await self.store.history(run), new_key, at, data, now=self.store.now())
        errand = await self.roster.errand(definition, made, retry=False)
        there = await errand.begun()
        tell(there, made, data=made, refuse=True)
        return self.shown(there)

    # -- upkeep -----------------------------------------------------------------------------------------------------

    async def health(self, *, within: float = 2.0) -> Health:
        """How this engine is: `ok`, and apart `live` (its loop turns) and `ready` (its store and its lease are there).

        Makes a real write, and waits for the store for `within` seconds at the most. Raises EngineClosed.
        """
        from fsmworkflow.health import seen

        if not self.worker.token:
            self.worker.check()
        return await seen(self, within)

    async def prune(self) -> int:
        """Delete the runs that have ended longer ago than their workflows keep them, with all that is theirs.

        In small transactions with pauses between, oldest first. Returns how many went. A run stays while children of
        it, or its parent, have not ended. A stream goes as runs of its workflow do. Engines that work do this by
        themselves now and then.
        """
        self.worker.check()
        gone = 0
        for workflow in list(self.workflows.values()):
            for status, kept in workflow.keep.items():
                for name in (workflow.name, f"$stream:{workflow.name}"):
                    while some := await self.store.prune(name, [status], self.store.now() - seconds(kept), PRUNED):
                        gone += some
                        if self.worker.stopping:
                            return gone
                        await asyncio.sleep(PRUNE_PAUSE)
        return gone

    async def _prune_for_ever(self) -> None:
        """For engines that work: beside their loop, and not all of them at the same moment."""
        while True:
            await asyncio.sleep(PRUNE_EVERY * (0.5 + random.random()))
            try:
                await self.prune()
            except errors.FSMWorkflowError as error:
                log.warning("what is kept no longer could not be deleted: %s", error)

    # -- schedules --------------------------------------------------------------------------------------------------

    async def schedule(
        self,
        name: str,
        workflow: Workflow | str,
        *,
        cron: str,
        timezone: str = "UTC",
        data: Any = None,
        missed: Missed = "one",
        overlap: Overlap = "skip",
    ) -> Schedule:
        """Start a run of the workflow with this data at each tick, under the key `name/tick`, once over all processes.

        The tick is in ISO 8601 with its offset: "nightly/2026-03-01T03:00:00+01:00". Durable when it returns, and
        driven by any engine that knows the workflow and works. Given again it changes nothing; with other words it
        changes the schedule, from now on, and says so in the log. `missed` is what follows when ticks came while nobody
        worked, or it was paused: one run for the last of them, none, or all; `overlap="skip"` passes over a tick while
        the run before goes on. Raises ValueError for words that mean nothing, CodecError for data that does not fit.
        """
        from fsmworkflow.schedule import put  # only who uses a calendar pays for it

        self.worker.check()
        spec = {"cron": cron, "timezone": timezone, "data": data, "missed": missed, "overlap": overlap}
        return await put(self, self.known(workflow).check(), name, spec)

    async def unschedule(self, name: str) -> None:
        """End the schedule of that name; what it has started goes on. Raises ScheduleNotFound."""
        from fsmworkflow.schedule import REMOVED

        found = [schedule for schedule in await self.schedules() if schedule.name == name]
        if not found:
            raise errors.ScheduleNotFound(f"the workflows of this engine have no schedule {name!r}")
        for schedule in found:
            await self.rerun(*schedule.address, state=REMOVED)

    async def schedules(self) -> Schedules:
        """The schedules of this engine's workflows, by name."""
        from fsmworkflow.schedule import listed

        self.worker.check()
        return await listed(self)

    def _with_schedules(self, workflow: Workflow) -> None:
        """Know the schedules of a workflow, to drive those that there are; without the extra they are left alone."""
        if find_spec("cronsim") is not None:
            from fsmworkflow.schedule import built_in

            built_in(self, workflow)

    # -- driving ----------------------------------------------------------------------------------------------------

    async def _begin(
        self, workflow: Workflow | str, data: Any, key: str | None, different: Different, *, retry: bool
    ) -> Errand:
        """Make sure that the run is there and that this engine sees to it. Returns once it is durable."""
        self.worker.check_free()
        if different not in get_args(Different):
            raise ValueError(f"different must be one of {', '.join(get_args(Different))}, not {different!r}")
        definition = self.known(workflow).check()
        if key is not None and (problems := name_problem(key, "key")):
            raise errors.InvalidKey(problems[0])
        key = key or id_of(None)
        fresh = await first(definition, self.store, key, data)
        if data is not None and different == "refuse" and (found := await self.store.load(definition.name, key)):
            tell(found, fresh, data, refuse=True)
        while True:
            before = self.roster.errands.get((definition.name, key))
            errand = await self.roster.errand(definition, fresh, retry)
            there = await errand.begun()
            done = not errand.retry or (errand is before and errand.drive is not None and not errand.drive.retry)
            row = await self.store.load(definition.name, key) if retry and done else None
            if row is None or row.status != "failed" or row.over:
                break
            await asyncio.wait([errand.done])  # it is about to end, or lets a failed run be, as a `start` does
        tell(there, fresh, data, refuse=different == "refuse")
        return errand


def _as_store(given: Any) -> Store:
    """The store of an engine, from a URL, a Store, or a DBConfig."""
    store: Store = open_store(given) if isinstance(given, str) else getattr(given, "store", given)  # as of a DBConfig
    if not hasattr(store, "claim_one"):
        raise TypeError(f"an engine needs a URL, a Store or a DBConfig, not {given!r}")
    return store
