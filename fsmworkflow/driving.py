"""Drives: what sees to the runs of one engine. It starts them, takes them up, watches them, holds those that rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import copy_context
from typing import Any, TypeVar

from fsmworkflow.children import awaits
from fsmworkflow.claims import left_alone, loaded, may_go_on, taken
from fsmworkflow.drive import LEFT_BEHIND, Drive
from fsmworkflow.errors import EngineClosed, FSMWorkflowError, LeaseLost, StoreError, log
from fsmworkflow.failures import asked_to_stop
from fsmworkflow.line import CHUNK, Crew, Line
from fsmworkflow.records import STEERING, Event, Post, Run, replace
from fsmworkflow.versions import of_this
from fsmworkflow.worker import CLOSE_SECONDS, Worker, first_of
from fsmworkflow.workflow import Workflow

__all__ = ["Drives", "Driving"]

T = TypeVar("T")
Name = tuple[str, str]
"""A run by its workflow and key."""
Claimed = tuple["Driving", "Driving | None"]
"""A claimed run, with what drove it here before."""

BUSY = 0.02
"""Seconds between two looks at a run that an event is just moving."""
FAR, SLOWEST = 5.0, 90.0
"""Seconds between two looks for events whose write took long, as they bear its begin, and how long it may take."""


class Driving:
    """A run that this engine sees to: with an id once it is durable, `done` when it rests; with `hold` it stays ours.

    `apart` says that those below it are seen to by others, and `woken` that something was posted while it was claimed;
    `waiting` are those who wait for one of the two. There are as many of it as runs at once, so it is of few objects.
    """

    done: asyncio.Future[Run]

    __slots__ = ("apart", "done", "drive", "error", "hold", "retry", "run", "waiting", "woken", "workflow")

    def __init__(self, workflow: Workflow, run: Run, retry: bool, hold: bool = True) -> None:
        self.workflow = workflow
        self.run = run
        self.retry = retry
        self.hold = hold
        self.apart = self.woken = False
        self.waiting: set[asyncio.Future[None]] = set()
        self.drive: Drive | None = None
        self.error: BaseException | None = None

    @property
    def retried(self) -> bool:
        """Whether a failed run was let go on by it already, and is not again."""
        return self.drive is not None and not self.drive.retry

    def tell(self) -> None:
        """Wake those who wait."""
        for waiting in self.waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def begun(self) -> Run:
        """Wait until it is durable, and return the run. Raises what it could not be made durable for."""
        while not (self.run.id or self.done.done()):
            await self.news()
        return self.run if self.run.id else self.done.result()

    async def news(self) -> None:
        """Wait until it is durable, or done. A caller that is cancelled leaves it alone, as with asyncio.shield."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.add(waiting)
        try:
            await waiting
        finally:
            self.waiting.discard(waiting)


FADING = 0.8
"""What is left at each look of how late the event loop once was."""


class Drives:
    """The runs that one engine sees to, each by its workflow and key: driven, held while they rest, or watched.

    `workflows` are those that the engine knows, which may become more; `poll` is how often it looks for what other
    processes have posted, in seconds.
    """

    def __init__(self, worker: Worker, workflows: Mapping[str, Workflow], poll: float) -> None:
        self.worker = worker
        self.store = worker.store
        self._workflows = workflows
        self.poll = poll
        self.lag = 0.0  # seconds by which the event loop was late of late
        self._polling: asyncio.Task[None] | None = None
        self._lines: set[Line[Claimed]] = set()
        self._line: Line[Claimed] | None = None  # of all that work here
        self._news = asyncio.Event()  # something is due of which this engine knows
        self._reaped = 0.0
        self._rung = 0
        self._drives: dict[Name, Driving] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._seen_to: dict[asyncio.Future[Run], Driving] = {}  # by what says that it is done
        self._held: dict[Name, Drive] = {}  # runs of ours that rest
        self._busy: dict[Name, Drive] = {}  # those that an event is just moving
        self._adopted: set[asyncio.Task[Run]] = set()  # of runs that a move of another one made due

    def begin(self) -> None:
        """Look for events and times from now on."""
        self._line = None
        self._polling = asyncio.create_task(self._poll_for_ever(), name="fsmworkflow-poll")

    async def rest(self, grace: float) -> None:
        """Begin nothing new, and let running steps end for up to `grace` seconds."""
        self.worker.stopping = True
        if self._polling is not None:
            self._polling.cancel()
            self._polling = None
        lines = any(line.waiting for line in self._lines)
        if self._held or self._busy or lines or any(one.drive is not None for one in self._drives.values()):
            await self.worker.drain()
        for crew in [crew for line in self._lines for crew in line.crews]:
            crew.stop()
        for driving in self._drives.values():
            if driving.drive is not None:
                driving.drive.stop()
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
                resting = (self.store.release(one.run) for one in self._held.values() if one.run.due is not None)
                await asyncio.gather(*(self._give_back(line) for line in self._lines), *resting)
        except (FSMWorkflowError, TimeoutError) as error:
            log.warning("what was claimed and rests, or waits in line, could not be given back: %r", error)
        for driving in list(self._drives.values()):
            driving.done.cancel()
        self._held.clear()
        self._lines.clear()

    # -- asked for by the engine --------------------------------------------------------------------------------------

    def __contains__(self, name: Name) -> bool:
        """Whether a run is driven, watched or held here."""
        return name in self._drives or name in self._busy or name in self._held

    def get(self, name: Name) -> Driving | None:
        """How this engine sees to a run that it drives or watches; None for any other, also for one that rests here."""
        return self._drives.get(name)

    @property
    def works(self) -> bool:
        """Whether this engine drives whatever is due, beside what it was asked for."""
        return self._line is not None and bool(self._line.crews)

    @property
    def driven(self) -> int:
        """How many runs are driven here now; not those that rest."""
        return sum(not one.done.done() for one in self._drives.values()) + len(self._busy)

    async def load(self, workflow: str, key: str) -> Run:
        """The run as it now is. Raises RunNotFound."""
        self.worker.check()
        return await loaded(self.store, workflow, key)

    async def failed(self, run: Run) -> bool:
        """Whether the run has failed by now and keeps its place, whatever is known of it here."""
        row = await self.store.load(run.workflow, run.key)
        return row is not None and row.status == "failed" and not row.over

    def start(self, definition: Workflow, run: Run, *, retry: bool) -> Driving:
        """Begin to see to a run that is to be created, or is there already."""
        driving = Driving(definition, run, retry)
        self._see_to(driving, self._start_and_drive(driving))
        return driving

    async def send(self, name: tuple[str, str], event: Event) -> Event | None:
        """Event and move in one commit, where the run rests here. None where it is to be posted."""
        drive = self._held.get(name)
        if drive is None or drive.workflow.concurrency is not None:
            return None
        del self._held[name]
        self._busy[name] = drive
        try:
            sent = await drive.send(event)
        except LeaseLost:
            return None  # another owner has it: the event is posted to that one
        except BaseException:  # its sender was cancelled, and the move is perhaps made: it is taken up as it then is
            asyncio.get_running_loop().call_soon(self._adopt, name)
            raise
        finally:
            del self._busy[name]
        if not drive.idle or drive.run.actions:
            self._redrive(drive)
        elif drive.run.owner is not None:
            self._held[name] = drive
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
            if post.workflow in self._workflows and not self.worker.stopping:
                name, definition = (post.workflow, post.key), self._workflows[post.workflow]
                self._task(self._told_of(name, self._deliver, definition, post.key, post.event))

    async def _deliver(self, definition: Workflow, key: str, event: Event) -> None:
        """See to it that an event which was posted is looked at: here, unless another process drives its run."""
        name = (definition.name, key)
        known = self._drives.get(name)
        if name in self and not (known is not None and known.done.done()):
            self._wake(name)
            return
        run = await self.load(*name)
        if self._not_ours(definition, run) or (run.in_line and event.name not in STEERING):
            return
        if run.owner not in (None, self.worker.token) and not of_this(definition, run):
            self._task(self._told_of(name, self._follow, definition, key, event.id))
        if name in self._held or name in self._busy or self._drives.get(name) not in (None, known):
            self._wake(name)
        else:
            self._watch(definition, run)

    async def _follow(self, definition: Workflow, key: str, event: str) -> None:
        """Look after an event whose run is held where it may not be known, until it is taken, or the run is ours."""
        name = (definition.name, key)
        while not self.worker.stopping and name not in self._held:
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
        driving = Driving(definition, run, retry=False)
        self._see_to(driving, self._watch_and_drive(driving))

    async def _told_of(self, name: Name, deliver: Callable[..., Coroutine[Any, Any, None]], *what: Any) -> None:
        """Deliver in a task of its own: what goes wrong there is in the log."""
        try:
            await deliver(*what)
        except FSMWorkflowError as error:
            log.warning("run %s/%s is not looked at here for what was posted: %s", *name, error)

    def due(self, names: Iterable[Name]) -> None:
        """A move of a run of ours has made these due: children, or a parent.

        Where a crew works here, those that nobody sees to are claimed by it, so that it is never more than it may be.
        """
        for name in () if self.worker.stopping else names:
            if name in self or not self.works:
                self._adopt(name)
            else:
                self._news.set()

    def _adopt(self, name: Name) -> None:
        """See to a run that is due: as it is seen to here, or by claiming it."""
        if name in self:
            self._wake(name)
        elif name[0] in self._workflows:
            stub = Run(workflow=name[0], key=name[1], active={}, fields={}, due=0.0)
            driving = Driving(self._workflows[name[0]], stub, retry=False)
            self._see_to(driving, self._watch_and_drive(driving), adopted=True)

    async def resume(self, concurrency: int) -> int:
        """Drive every unfinished run that nobody drives, `concurrency` of them at once. Returns how many."""
        seen: set[int] = set()
        line: Line[Claimed] = Line(lambda line: self._claim_all(line, seen), self._drive_claimed)
        try:
            await self._crew(line, concurrency).over()
            while self._adopted:
                await asyncio.wait(list(self._adopted))
        finally:
            line.ended = True
        if not line.waiting:
            self._lines.discard(line)
        return len(seen)

    async def work(self, concurrency: int, grace: float) -> None:
        """Drive what is due, `concurrency` runs at once, until this engine closes; cancelled, it drains."""
        self.worker.check()
        self._line = self._line or Line(self._claim_due, self._drive_claimed)
        crew = self._crew(self._line, concurrency)
        try:
            await crew.over()
        finally:
            if not self.worker.stopping:
                await self._dismiss(crew, grace)

    def _crew(self, line: Line[Claimed], many: int) -> Crew[Claimed]:
        self._lines.add(line)
        return Crew(line, many, self._task)

    async def _dismiss(self, crew: Crew[Claimed], grace: float) -> None:
        """Let a crew end its steps, and give back what it drove; where none is left, also what waits in its line."""
        for driving, _ in crew.driving:
            if driving.drive is not None:
                driving.drive.stop()
        await crew.dismiss(grace, LEFT_BEHIND)
        if not crew.line.crews:
            await self._give_back(crew.line)

    async def _give_back(self, line: Line[Claimed]) -> None:
        """Give up what was claimed and waits."""
        waiting = [driving for driving, _ in line.waiting]
        line.waiting.clear()
        await asyncio.gather(*(self.store.release(driving.run) for driving in waiting))
        for driving in waiting:
            if not driving.done.done():
                driving.done.set_result(driving.run)

    # -- driving -----------------------------------------------------------------------------------------------------

    async def driving(self, definition: Workflow, fresh: Run, retry: bool) -> Driving:
        """How this engine sees to a run: as it does already, as to one that rests here, or by beginning to."""
        name = (fresh.workflow, fresh.key)
        while name in self._busy:  # noqa: ASYNC110 (for the time of one commit)
            await asyncio.sleep(BUSY)
        driving = self._drives.get(name)
        if driving is not None and not driving.done.done():
            if driving.drive is not None and driving.drive.within(asyncio.current_task()):
                raise FSMWorkflowError(
                    f"a step of run {name[0]}/{name[1]} waits for its own run, which waits for the step"
                )
            return driving
        if name not in self._held:
            return self.start(definition, fresh, retry=retry)
        if awaits(self._held[name].run):
            self._redrive(self._held.pop(name))
            return self._drives[name]
        driving = Driving(definition, self._held[name].run, retry)
        driving.done = asyncio.get_running_loop().create_future()
        driving.done.set_result(driving.run)
        return driving

    async def rested(self, driving: Driving) -> Run:
        """The run once it rests. Raises EngineClosed where this engine was closed before."""
        while True:
            try:
                while not driving.done.done():
                    await driving.news()
                run = driving.done.result()
            except asyncio.CancelledError as error:
                if asked_to_stop(error) or not driving.done.cancelled() or (driving.hold and not self.worker.stopping):
                    raise
                run = driving.run
            goes_on = may_go_on(run, self.store.now(), retry=False)
            if goes_on and self.worker.stopping:
                raise EngineClosed(f"the engine was closed while run {run.workflow}/{run.key} went on: resume it")
            if not goes_on or driving.hold:
                return run
            driving = await self.driving(driving.workflow, run, retry=False)  # the crew that drove it was sent away

    def _task(self, life: Coroutine[Any, Any, T], over: Callable[[Any], None] | None = None) -> asyncio.Task[T]:
        """A task that closing waits for; `over` is called after it, and then lets go of it."""
        context = copy_context()  # one for both
        task = asyncio.create_task(life, context=context)
        self._tasks.add(task)
        task.add_done_callback(over or self._tasks.discard, context=context)
        return task

    def _see_to(self, driving: Driving, life: Coroutine[Any, Any, Run] | None = None, *, adopted: bool = False) -> None:
        """Make a run known by workflow and key until `life` is over, or whoever drives it has set its `done`.

        With `adopted`, `resume` waits for it, too.
        """
        if life is None:
            driving.done.add_done_callback(self._over)
        else:
            driving.done = task = self._task(life, self._over)
            if adopted:
                self._adopted.add(task)
        self._drives[driving.run.workflow, driving.run.key] = self._seen_to[driving.done] = driving

    def _over(self, done: Any) -> None:
        """Who waits is woken; an error that stopped a drive is in the log, also where nobody waits for it."""
        driving = self._seen_to.pop(done)
        self._tasks.discard(done)
        self._adopted.discard(done)
        name = (driving.run.workflow, driving.run.key)
        if self._drives.get(name) is driving:
            del self._drives[name]
        driving.tell()
        error = None if done.cancelled() else done.exception()
        if error is not None and not isinstance(error, EngineClosed):  # which is no fault, and a caller is told
            log.error("run %s/%s is left where it is: %r", *name, error)

    async def _start_and_drive(self, driving: Driving) -> Run:
        at_once = driving.workflow.concurrency is None  # else it waits for its place like any other
        mine = replace(driving.run, owner=self.worker.token, epoch=1) if at_once else driving.run
        driving.run, created = await self.store.create(mine)
        created = at_once and (created or first_of(driving.run, self.worker.token))
        driving.tell()
        await asyncio.sleep(0)  # so that whoever waits is given the run as it begins
        if created and await self._drive(driving, driving.run, fresh=True):
            return driving.run
        return await self._watch_and_drive(driving)

    async def _watch_and_drive(self, driving: Driving) -> Run:
        """Drive a run that is there; while a live owner does, watch it, and take over where that one ends."""
        run, workflow = driving.run, driving.workflow
        driving.retry = driving.retry and run.status == "failed"  # a failure that was waited for is its result
        late = run.due is not None and run.due > self.store.now()  # it is held until its time comes
        if run.status == "waiting" and (late or not of_this(workflow, run)):  # or waits for another thing in this one
            run, ours = await taken(self.worker, workflow, run, retry=driving.retry, rest=True, wait=False)
            if ours and await self._drive(driving, run):
                return driving.run
        while True:
            driving.run, ours = await taken(self.worker, workflow, driving.run, retry=driving.retry)
            driving.tell()
            if not ours or await self._drive(driving, driving.run):
                return driving.run
            driving.run = await self.load(run.workflow, run.key)

    def _drive(self, driving: Driving, run: Run, *, fresh: bool = False) -> Coroutine[Any, Any, bool]:
        """Drive a claimed run until it rests. False where another owner has claimed it meanwhile."""
        driving.drive = Drive(driving.workflow, run, self.worker, fresh=fresh, retry=driving.retry, hold=driving.hold)
        if driving.woken:
            driving.drive.wake()
        return self._go_on(driving, driving.drive)

    async def _go_on(self, driving: Driving, drive: Drive) -> bool:
        name = (driving.run.workflow, driving.run.key)
        try:
            driving.run = await drive.go()
            while drive.run.owner is not None and not await self._rests(driving, drive):
                driving.run = await drive.go()  # an event came, or children have ended
            if drive.late and not self.worker.stopping:
                return await self._mark_late(driving, drive)
        except LeaseLost as error:
            log.warning("%s", error)
            return False
        driving.error = drive.error
        if drive.run.owner is not None and not self.worker.stopping:
            self._held[name] = drive
        return True

    async def _mark_late(self, driving: Driving, drive: Drive) -> bool:
        """What was posted just as the run ended left it due: it is claimed once more to look at that."""
        run, workflow = driving.run, driving.workflow
        driving.retry, driving.error = False, drive.error
        row = await self.store.load(run.workflow, run.key)
        if row is None or row.due is None:  # it was woken for what it has taken
            return True
        claimed = await self.worker.claim_one(run.workflow, run.key, workflow.version)
        if claimed is None:
            return True
        looked = await self._drive(driving, claimed)
        driving.error = driving.error or drive.error
        return looked

    async def _rests(self, driving: Driving, drive: Drive) -> bool:
        """Whether a run rests: it, and all below it. Waits while one of those can move, and sees to it that it does."""
        while drive.idle and not self.worker.stopping and not driving.apart and awaits(drive.run):
            names = await self.store.below(drive.run)
            if not names:  # or the last of them has ended just now
                return not await drive.news()
            for name in names:
                if name not in self:
                    self._adopt(name)
            driven = (self._drives.get(name) for name in names)
            waited = [one.done for one in driven if one is not None]
            ended = [asyncio.ensure_future(asyncio.wait(waited))] if waited else []
            try:
                await drive.woken(ended, self.poll)
            finally:
                for one in ended:
                    one.cancel()
            if any(done.done() and not done.cancelled() and done.exception() for done in waited):
                await asyncio.sleep(self.poll)  # a drive has failed, and not its step: the next will hardly fare better
        return drive.idle or self.worker.stopping

    async def _again(self, driving: Driving, drive: Drive) -> Run:
        """Drive a held run on, to which something has happened."""
        if drive.workflow.concurrency is not None:  # it takes its place among all that are driven, as any other
            await self.store.release(drive.run)
            driving.drive = None
            driving.run = await self.load(drive.run.workflow, drive.run.key)
            return await self._watch_and_drive(driving)
        if not await self._go_on(driving, drive):
            return await self._watch_and_drive(driving)
        return driving.run

    def _wake(self, name: Name) -> None:
        """Something was posted to a run, or a time has come for it: have it looked at, if it is ours."""
        driving = self._drives.get(name)
        drive = self._busy.get(name) if driving is None else driving.drive
        if drive is not None:
            drive.wake()
        elif driving is not None:
            driving.woken = True
        elif name in self._held:
            drive = self._held.pop(name)
            drive.wake()
            self._redrive(drive)

    def _redrive(self, drive: Drive) -> None:
        driving = Driving(drive.workflow, drive.run, retry=False)
        driving.drive = drive
        self._see_to(driving, self._again(driving, drive), adopted=True)

    async def _poll_for_ever(self) -> None:
        """Look for what other processes have posted to runs of ours, and for timers of runs that rest here."""
        heard, since, far = 0, self.store.now(), 0.0
        while True:
            heard = await self._next_look(heard)
            now = self.store.now()
            try:
                await self.worker.release_again()
                for name, drive in list(self._held.items()):
                    if not drive.idle:
                        self._wake(name)
                if abs(now - far) >= FAR:
                    await self._wake_posted(now - SLOWEST)
                    far = now
                else:
                    await self._wake_posted(since - self.poll)
                since = now
            except Exception as error:  # whatever it is, the next look must come
                log.warning("the engine could not look for events: %r", error)

    async def _wake_posted(self, since: float) -> None:
        """Wake the runs to which something was posted since then, of which their drives do not know yet."""
        found = await self.store.woken(self.worker.token, since) if self._held or self._drives else ()
        for workflow, key, posted in found:
            name = (workflow, key)
            driving = self._drives.get(name)
            drive = self._held.get(name) if driving is None else driving.drive
            if drive is None or drive.run.posted != posted:
                self._wake(name)

    async def _next_look(self, heard: int) -> int:
        """Wait until it is time to look again, or until it has rung for a run of ours."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        if self._held or self._drives:
            rings = await self._rings([self.worker.token], heard)
        else:
            rings = heard
            await asyncio.sleep(self.poll)
        if rings == heard:
            self.lag = max(loop.time() - began - self.poll, self.lag * FADING)
        return rings

    async def _rings(self, names: list[str], heard: int) -> int:
        """How often it has rung, after `poll` seconds or when it has just rung; not sooner than after 20 ms."""
        try:
            await asyncio.sleep(min(BUSY, self.poll))
            return await self.store.rings(names, heard, self.poll - min(BUSY, self.poll))
        except StoreError:  # the store was closed
            await asyncio.sleep(self.poll)
            return heard

    def _versions(self) -> dict[str, int]:
        return {workflow.name: workflow.version for workflow in self._workflows.values()}

    async def _claim_all(self, line: Line[Claimed], seen: set[int]) -> None:
        """Claim what is unfinished, due or not; the line has ended when there is nothing new."""
        await self.worker.reap()
        claimed = await self.worker.claim(self._versions(), CHUNK)
        line.ended = seen.issuperset(run.id for run in claimed)
        seen.update(run.id for run in claimed)
        self._enter(line, claimed, hold=True)

    async def _claim_due(self, line: Line[Claimed]) -> None:
        """Wait until runs are due that nobody drives, and claim them. What rests again is not held."""
        while not self.worker.stopping:
            try:
                await self._reap_now_and_then()
                claimed = await self.worker.claim(self._versions(), line.wanted(), self.store.now())
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
        rings = asyncio.ensure_future(self._rings(["", self.worker.token], self._rung))
        news = asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait([rings, news], return_when=asyncio.FIRST_COMPLETED)
            if rings.done():
                self._rung = rings.result()
        finally:
            rings.cancel()
            news.cancel()
        self._news.clear()

    async def _reap_now_and_then(self) -> None:
        """Recovery goes on for as long as an engine works, however busy it is."""
        now = asyncio.get_running_loop().time()
        if now >= self._reaped + self.poll:
            self._reaped = now
            await self.worker.reap()

    def _enter(self, line: Line[Claimed], claimed: Iterable[Run], *, hold: bool) -> None:
        """All are known before the next await, so that no `run` of the same key drives one of them beside us."""
        for run in claimed:
            earlier = self._drives.get((run.workflow, run.key))
            driving = Driving(self._workflows[run.workflow], run, retry=False, hold=hold)
            driving.apart = True  # a place in the line is not to be kept by one that waits for others of the line
            driving.done = asyncio.get_running_loop().create_future()
            if earlier is None:
                self._see_to(driving)
            line.waiting.append((driving, earlier))

    async def _drive_claimed(self, claimed: Claimed) -> None:
        driving, earlier = claimed
        name, late = (driving.run.workflow, driving.run.key), earlier is not None
        while earlier is not None:  # a `run` of this engine that has claimed it by now
            await asyncio.wait([earlier.done])
            earlier = self._drives.get(name)
        if late:
            if name in self:
                return  # and holds it
            self._see_to(driving)
        done = driving.done
        try:
            if late:
                driving.run = await self.load(*name)
                await self._watch_and_drive(driving)
            else:
                await self._drive(driving, driving.run)
            self.worker.pauses.pop(driving.run.id, None)
            done.set_result(driving.run)
            if name in self._held and awaits(driving.run):
                self._redrive(self._held.pop(name))
        except Exception as error:
            done.set_exception(error)
        finally:
            done.cancel()  # only where this task is being cancelled
