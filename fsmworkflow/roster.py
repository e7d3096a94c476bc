"""Roster: what sees to the runs of one engine. It starts them, takes them up, watches them, holds those that rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import copy_context
from typing import Any, TypeVar

from fsmworkflow import joint
from fsmworkflow.children import awaits
from fsmworkflow.claims import all_rest, left_alone, loaded, may_go_on, taken
from fsmworkflow.crews import Crews
from fsmworkflow.drive import Drive
from fsmworkflow.errand import Errand, Name
from fsmworkflow.errors import EngineClosed, FSMWorkflowError, LeaseLost, log
from fsmworkflow.failures import asked_to_stop
from fsmworkflow.lookout import Lookout
from fsmworkflow.records import STEERING, Event, Post, Run, replace
from fsmworkflow.tasks import LEFT_BEHIND
from fsmworkflow.versions import of_this
from fsmworkflow.worker import CLOSE_SECONDS, Worker, first_of
from fsmworkflow.workflow import Workflow

__all__ = ["Roster"]

T = TypeVar("T")
BUSY = 0.02
"""Seconds between two looks at a run that an event is just moving."""


class Roster:
    """The runs that one engine sees to, each by its workflow and key: driven, held while they rest, or watched.

    `workflows` are those that the engine knows, which may become more; `poll` is how often it looks for what other
    processes have posted, in seconds.
    """

    def __init__(self, worker: Worker, workflows: Mapping[str, Workflow], poll: float) -> None:
        self.worker = worker
        self.store = worker.store
        self.workflows = workflows
        self.poll = poll
        self.lookout, self.crews = Lookout(self), Crews(self)
        self._looking: asyncio.Task[None] | None = None
        self.errands: dict[Name, Errand] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._seen_to: dict[asyncio.Future[Run], Errand] = {}  # by what says that it is done
        self.held: dict[Name, Drive] = {}  # runs of ours that rest
        self.busy: dict[Name, Drive] = {}  # those that an event is just moving
        self.adopted: set[asyncio.Task[Run]] = set()  # of runs that a move of another one made due

    def begin(self) -> None:
        """Look for events and times from now on."""
        self._looking = asyncio.create_task(self.lookout.look_for_ever(), name="fsmworkflow-poll")

    async def rest(self, grace: float) -> None:
        """Begin nothing new, and let running steps end for up to `grace` seconds."""
        self.worker.stopping = True
        if self._looking is not None:
            self._looking.cancel()
        driven = any(one.drive is not None for one in self.errands.values())
        if driven or self.held or self.busy or self.crews.waiting:
            await self.worker.drain()
        self.crews.stop()
        for errand in self.errands.values():
            if errand.drive is not None:
                errand.drive.stop()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=grace)

    async def end(self) -> None:
        """Stop what still goes on, and let go of everything. What does not stop within 10 s is left behind."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=LEFT_BEHIND)
            if left:
                log.warning("%d runs do not stop: their steps swallow cancellation, and are left behind", len(left))
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                # Those that wait for nothing but an event are free once this owner is struck off the list.
                resting = (self.store.release(one.run) for one in self.held.values() if one.run.due is not None)
                await asyncio.gather(self.crews.end(), *resting)
        except (FSMWorkflowError, TimeoutError) as error:
            log.warning("what was claimed and rests, or waits in line, could not be given back: %r", error)
        for errand in list(self.errands.values()):
            errand.done.cancel()
        self.held.clear()

    # -- asked for by the engine --------------------------------------------------------------------------------------

    def __contains__(self, name: Name) -> bool:
        """Whether a run is driven, watched or held here."""
        return name in self.errands or name in self.busy or name in self.held

    @property
    def driven(self) -> int:
        """How many runs are driven here now; not those that rest."""
        return sum(not one.done.done() for one in self.errands.values()) + len(self.busy)

    async def load(self, workflow: str, key: str) -> Run:
        """The run as it now is. Raises RunNotFound."""
        self.worker.check()
        return await loaded(self.store, workflow, key)

    async def send(self, name: Name, event: Event) -> Event | None:
        """Event and move in one commit, where the run rests here. None where it is to be posted."""
        drive = self.held.get(name)
        if drive is None or drive.workflow.concurrency is not None:
            return None
        del self.held[name]
        self.busy[name] = drive
        try:
            sent = await joint.send(drive, event)
        except LeaseLost:
            return None  # another owner has it: the event is posted to that one
        except BaseException:  # its sender was cancelled, and the move is perhaps made: it is taken up as it then is
            asyncio.get_running_loop().call_soon(self.adopt, name)
            raise
        finally:
            del self.busy[name]
        if not drive.idle or drive.run.actions:
            self.redrive(drive)
        elif drive.run.owner is not None:
            self.held[name] = drive
        return sent

    async def post(self, definition: Workflow, key: str, event: Event) -> Event:
        """Post an event, and see to the run that it is for, here or wherever it is driven."""
        posted = await self.store.post(definition.name, key, event)
        if posted.status == "waiting":
            await self._deliver(definition, key, posted)
        return posted

    def told(self, posts: Iterable[Post]) -> None:
        """A step of a run of ours has emitted these events, which are durable."""
        for post in posts:
            if post.workflow in self.workflows and not self.worker.stopping:
                definition = self.workflows[post.workflow]
                self.task(self._told_of(self._deliver, definition, post.key, post.event))

    async def _deliver(self, definition: Workflow, key: str, event: Event) -> None:
        """See to it that an event which was posted is looked at: here, unless another process drives its run."""
        name = (definition.name, key)
        known = self.errands.get(name)
        if name in self and not (known is not None and known.done.done()):
            self.wake(name)
            return
        run = await self.load(*name)
        if self._not_ours(definition, run) or (run.in_line and event.name not in STEERING):
            return
        if run.owner not in (None, self.worker.token) and not of_this(definition, run):
            self.task(self._told_of(self._follow, definition, key, event.id))
        if name in self.held or name in self.busy or self.errands.get(name) not in (None, known):
            self.wake(name)
        else:
            self._watch(definition, run)

    async def _follow(self, definition: Workflow, key: str, event: str) -> None:
        """Look after an event whose run is held where it may not be known, until it is taken, or the run is ours."""
        name = (definition.name, key)
        while not self.worker.stopping and name not in self.held:
            run = await self.load(*name)
            found = await self.store.event(run, event)
            if found is None or found.status != "waiting" or self._not_ours(definition, run):
                return
            if name not in self:
                self._watch(definition, run)
            await asyncio.sleep(self.poll)

    def _not_ours(self, definition: Workflow, run: Run) -> bool:
        """Whether a run is left alone here: it is of a newer version, or does not fit as it stands."""
        return left_alone(definition, run) or self.worker.stuck.get(run.id) == run.version

    def _watch(self, definition: Workflow, run: Run) -> None:
        errand = Errand(definition, run, retry=False)
        self.see_to(errand, self.watch_and_drive(errand))

    async def _told_of(self, see_to: Callable[..., Coroutine[Any, Any, None]], of: Workflow, key: str, it: Any) -> None:
        """See to an event in a task of its own: what goes wrong there is in the log."""
        try:
            await see_to(of, key, it)
        except FSMWorkflowError as error:
            log.warning("run %s/%s is not looked at here for what was posted: %s", of.name, key, error)

    def due(self, names: Iterable[Name]) -> None:
        """A move of a run of ours has made these due: children, or a parent.

        Where a crew works here, those that nobody sees to are claimed by it, so that it is never more than it may be.
        """
        for name in () if self.worker.stopping else names:
            if name in self or not self.crews.at_work:
                self.adopt(name)
            else:
                self.crews.news.set()

    def adopt(self, name: Name) -> None:
        """See to a run that is due: as it is seen to here, or by claiming it."""
        if name in self:
            self.wake(name)
        elif name[0] in self.workflows:
            stub = Run(workflow=name[0], key=name[1], active={}, fields={}, due=0.0)
            errand = Errand(self.workflows[name[0]], stub, retry=False)
            self.see_to(errand, self.watch_and_drive(errand), adopted=True)

    # -- errands ----------------------------------------------------------------------------------------------------

    async def errand(self, definition: Workflow, fresh: Run, retry: bool) -> Errand:
        """How this engine sees to a run: as it does already, as to one that rests here, or by beginning to."""
        name = (fresh.workflow, fresh.key)
        while name in self.busy:  # noqa: ASYNC110 (for the time of one commit)
            await asyncio.sleep(BUSY)
        errand = self.errands.get(name)
        if errand is not None and not errand.done.done():
            if errand.drive is not None and errand.drive.within(asyncio.current_task()):
                raise FSMWorkflowError(
                    f"a step of run {name[0]}/{name[1]} waits for its own run, which waits for the step"
                )
            return errand
        if name not in self.held:
            errand = Errand(definition, fresh, retry)
            self.see_to(errand, self._start_and_drive(errand))
            return errand
        if awaits(self.held[name].run):
            self.redrive(self.held.pop(name))
            return self.errands[name]
        errand = Errand(definition, self.held[name].run, retry)
        errand.done = asyncio.get_running_loop().create_future()
        errand.done.set_result(errand.run)
        return errand

    async def rested(self, errand: Errand) -> Run:
        """The run once it rests. Raises EngineClosed where this engine was closed before."""
        while True:
            try:
                while not errand.done.done():
                    await errand.news()
                run = errand.done.result()
            except asyncio.CancelledError as error:
                if asked_to_stop(error) or not errand.done.cancelled() or (errand.hold and not self.worker.stopping):
                    raise
                run = errand.run
            goes_on = may_go_on(run, self.store.now(), retry=False)
            if goes_on and self.worker.stopping:
                raise EngineClosed(f"the engine was closed while run {run.workflow}/{run.key} went on: resume it")
            if not goes_on or errand.hold:
                return run
            errand = await self.errand(errand.workflow, run, retry=False)  # the crew that drove it was sent away

    def task(self, life: Coroutine[Any, Any, T], over: Callable[[Any], None] | None = None) -> asyncio.Task[T]:
        """A task that closing waits for; `over` is called after it, and then lets go of it."""
        context = copy_context()  # one for both
        task = asyncio.create_task(life, context=context)
        self._tasks.add(task)
        task.add_done_callback(over or self._tasks.discard, context=context)
        return task

    def see_to(self, errand: Errand, life: Coroutine[Any, Any, Run] | None = None, *, adopted: bool = False) -> None:
        """Make a run known by workflow and key until `life` is over, or whoever drives it has set its `done`.

        With `adopted`, `resume` waits for it, too.
        """
        if life is None:
            errand.done.add_done_callback(self._over)
        else:
            errand.done = task = self.task(life, self._over)
            if adopted:
                self.adopted.add(task)
        self.errands[errand.run.workflow, errand.run.key] = self._seen_to[errand.done] = errand

    def _over(self, done: Any) -> None:
        """Who waits is woken; an error that stopped a drive is in the log, also where nobody waits for it."""
        errand = self._seen_to.pop(done)
        self._tasks.discard(done)
        self.adopted.discard(done)
        name = (errand.run.workflow, errand.run.key)
        if self.errands.get(name) is errand:
            del self.errands[name]
        errand.tell()
        error = None if done.cancelled() else done.exception()
        if error is not None and not isinstance(error, EngineClosed):  # which is no fault, and a caller is told
            log.error("run %s/%s is left where it is: %r", *name, error)

    async def _start_and_drive(self, errand: Errand) -> Run:
        at_once = errand.workflow.concurrency is None  # else it waits for its place like any other
        mine = replace(errand.run, owner=self.worker.token, epoch=1) if at_once else errand.run
        errand.run, created = await self.store.create(mine)
        created = at_once and (created or first_of(errand.run, self.worker.token))
        errand.tell()
        await asyncio.sleep(0)  # so that whoever waits is given the run as it begins
        if created and await self.drive(errand, errand.run, fresh=True):
            return errand.run
        return await self.watch_and_drive(errand)

    async def watch_and_drive(self, errand: Errand) -> Run:
        """Drive a run that is there; while a live owner does, watch it, and take over where that one ends."""
        run, workflow = errand.run, errand.workflow
        errand.retry = errand.retry and run.status == "failed"  # a failure that was waited for is its result
        late = run.due is not None and run.due > self.store.now()  # it is held until its time comes
        if run.status == "waiting" and (late or not of_this(workflow, run)):  # or waits for another thing in this one
            run, ours = await taken(self.worker, workflow, run, retry=errand.retry, rest=True, wait=False)
            if ours and await self.drive(errand, run):
                return errand.run
        while True:
            errand.run, ours = await taken(self.worker, workflow, errand.run, retry=errand.retry)
            errand.tell()
            if not ours or await self.drive(errand, errand.run):
                return errand.run
            errand.run = await self.load(run.workflow, run.key)

    def drive(self, errand: Errand, run: Run, *, fresh: bool = False) -> Coroutine[Any, Any, bool]:
        """Drive a claimed run until it rests. False where another owner has claimed it meanwhile."""
        errand.drive = Drive(errand.workflow, run, self.worker, fresh=fresh, retry=errand.retry, hold=errand.hold)
        if errand.woken:
            errand.drive.wake()
        return self._go_on(errand, errand.drive)

    async def _go_on(self, errand: Errand, drive: Drive) -> bool:
        name = (errand.run.workflow, errand.run.key)
        try:
            errand.run = await drive.go()
            while drive.run.owner is not None and not await self._rests(errand, drive):
                errand.run = await drive.go()  # an event came, or children have ended
            if drive.late and not self.worker.stopping:
                return await self._mark_late(errand, drive)
        except LeaseLost as error:
            log.warning("%s", error)
            return False
        errand.error = drive.error
        if errand.workflow.concurrency is not None:
            self.crews.news.set()  # its place is free
        if drive.run.owner is not None and not self.worker.stopping:
            self.held[name] = drive
        return True

    async def _mark_late(self, errand: Errand, drive: Drive) -> bool:
        """What was posted just as the run ended left it due: it is claimed once more to look at that."""
        run, workflow = errand.run, errand.workflow
        errand.retry, errand.error = False, drive.error
        row = await self.store.load(run.workflow, run.key)
        due = row is not None and row.due is not None  # else it was woken for what it has taken
        claimed = await self.worker.claim_one(run.workflow, run.key, workflow.version) if due else None
        if claimed is None:
            return True
        looked = await self.drive(errand, claimed)
        errand.error = errand.error or drive.error
        return looked

    async def _rests(self, errand: Errand, drive: Drive) -> bool:
        """Whether a run rests: it, and all below it. Waits while one of those can move, and sees to it that it does."""
        while drive.idle and not self.worker.stopping and not errand.apart and awaits(drive.run):
            if await all_rest(drive, self._below, self.poll):
                return True
        return drive.idle or self.worker.stopping

    def _below(self, name: Name) -> asyncio.Future[Run] | None:
        """See to a run below one that is seen to here. Returns what is done when it rests, None where it is held."""
        if name not in self:
            self.adopt(name)
        errand = self.errands.get(name)
        return None if errand is None else errand.done

    async def _again(self, errand: Errand, drive: Drive) -> Run:
        """Drive a held run on, to which something has happened."""
        if drive.workflow.concurrency is not None:  # it takes its place among all that are driven, as any other
            await self.store.release(drive.run)
            errand.drive = None
            errand.run = await self.load(drive.run.workflow, drive.run.key)
            return await self.watch_and_drive(errand)
        if not await self._go_on(errand, drive):
            return await self.watch_and_drive(errand)
        return errand.run

    def wake(self, name: Name) -> None:
        """Something was posted to a run, or a time has come for it: have it looked at, if it is ours."""
        errand = self.errands.get(name)
        drive = self.busy.get(name) if errand is None else errand.drive
        if drive is not None:
            drive.wake()
        elif errand is not None:
            errand.woken = True
        elif name in self.held:
            drive = self.held.pop(name)
            drive.wake()
            self.redrive(drive)

    def redrive(self, drive: Drive) -> None:
        errand = Errand(drive.workflow, drive.run, retry=False)
        errand.drive = drive
        self.see_to(errand, self._again(errand, drive), adopted=True)
