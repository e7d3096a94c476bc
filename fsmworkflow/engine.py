"""Engine: drives many runs. It opens the store, starts, resumes and watches; every verb takes `(workflow, key)`."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, get_args

from fsmworkflow.codec import encode
from fsmworkflow.decide import CANCEL, PAUSE, RERUN, RETRY, UNPAUSE
from fsmworkflow.drive import LEFT_BEHIND, STOPPING, Drive
from fsmworkflow.errors import (
    DefinitionError,
    EngineClosed,
    EngineOpen,
    EventNotFound,
    FSMWorkflowError,
    LeaseLost,
    NotAccepted,
    RunFailed,
    RunNotFound,
    RunOver,
    UnknownWorkflow,
)
from fsmworkflow.explain import explained, forked
from fsmworkflow.machine import WATCH, first, may_go_on, tell
from fsmworkflow.records import Event, Post, Run, Status, replace
from fsmworkflow.store import Entries, Runs, Store, open_store
from fsmworkflow.store.writer import whole
from fsmworkflow.worker import Worker, first_of
from fsmworkflow.workflow import Workflow, known_event, name_problem, nearest

__all__ = ["Engine"]

log = logging.getLogger("fsmworkflow")

T = TypeVar("T")

STEERED = 0.02
"""Seconds between two looks at what has become of a steering event."""

CHUNK = 2_000
"""How many runs one claim takes at the most."""


Different = Literal["log", "refuse"]


class Driving:
    """A run that this engine sees to: `started` once it is durable, `done` when it rests."""

    __slots__ = ("done", "drive", "error", "retry", "run", "started", "workflow")

    def __init__(self, workflow: Workflow, run: Run, retry: bool) -> None:
        self.workflow = workflow
        self.run = run
        self.retry = retry
        self.started: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        self.done: asyncio.Future[Run] | None = None
        self.drive: Drive | None = None
        self.error: BaseException | None = None


class Line:
    """Claimed runs that wait to be driven, each with what drove it here before; `ended` when no claim finds more."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Driving, asyncio.Future[Run] | None]] = deque()
        self.seen: set[int] = set()
        self.claiming = asyncio.Lock()
        self.ended = False


class Engine:
    """Runs of workflows on one store, driven in this process.

        async with Engine("sqlite:///articles.db", workflows=[article]) as engine:
            run = await engine.run(article, {"topic": "databases"}, key="article-1")

    `store` is a URL or a Store; one that is open already stays open. Nothing is opened before `async with`. `lease` is
    for how many seconds other machines take this engine for alive without hearing of it; `poll` how often it looks for
    events that other processes sent and for times that have come; `grace` how long leaving waits for running steps.
    """

    def __init__(
        self,
        store: str | Store,
        *,
        workflows: Iterable[Workflow] = (),
        lease: float = 10.0,
        poll: float = 0.5,
        grace: float = 10.0,
    ) -> None:
        self.store: Store = _as_store(store)
        self.grace = grace
        self._workflows: dict[str, Workflow] = {}
        self._worker = Worker(self.store, lease=lease)
        self._opened = False  # whether the store was opened here, and is to be closed here
        self._drives: dict[tuple[str, str], Driving] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._held: dict[tuple[str, str], Drive] = {}  # runs of ours that rest
        self._busy: dict[tuple[str, str], Drive] = {}  # those that an event is just moving
        self._poll = poll
        self._polling: asyncio.Task[None] | None = None
        self._worker.workflows, self._worker.told = self._workflows, self._told
        for workflow in workflows:
            self._known(workflow)

    async def __aenter__(self) -> Self:
        if self._worker.token:
            raise EngineOpen("this engine is open already: make one for each `async with`")
        for workflow in self._workflows.values():
            workflow.check()
        self._opened = not self.store.opened
        await self.store.open()
        try:
            await self._worker.open()
        except BaseException:
            await self._close_store()
            raise
        self._polling = asyncio.create_task(self._poll_for_ever(), name="fsmworkflow-poll")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(grace=self.grace if kind is None else 0.0)

    async def close(self, *, grace: float | None = None) -> None:
        """Let running steps end for up to `grace` seconds, give back what is driven, and close the store.

        While the store cannot be written to, this takes half a minute at the most, and the lease decides on its runs.
        """
        self._worker.stopping = True
        if self._polling is not None:
            self._polling.cancel()
            self._polling = None
        for driving in self._drives.values():
            if driving.drive is not None:
                driving.drive.wake()
        tasks = list(self._tasks)
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=self.grace if grace is None else grace)
        finally:
            await whole(self._end(tasks))

    async def _end(self, tasks: list[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=LEFT_BEHIND)
            if left:
                log.warning("%d runs do not stop: their steps swallow cancellation, and are left behind", len(left))
        for driving in list(self._drives.values()):
            if driving.done is not None:
                driving.done.cancel()  # it was claimed, and waits in line: closing gives it back
        self._held.clear()
        try:
            await self._worker.close()
        finally:
            await self._close_store()

    async def _close_store(self) -> None:
        if self._opened:
            self._opened = False
            await self.store.close()

    # -- verbs ------------------------------------------------------------------------------------------------------

    async def run(
        self,
        workflow: Workflow | str,
        data: Any = None,
        *,
        key: str | None = None,
        different: Different = "log",
    ) -> Run:
        """Start a run, or take up the one of that key, and wait until it ends or rests. Returns it.

        A failed run goes on where it failed; one that is over is reported. Raises RunFailed, with the step's own error
        as its cause. `different` says what follows when the run of that key was started with other data: a line in the
        log, or InputDiffers. Cancelling this call stops the waiting, not the run.
        """
        driving = await self._begin(workflow, data, key, different, retry=True)
        run = await self._rested(driving)
        if run.status == "failed":
            raise RunFailed(self._shown(run)) from driving.error
        return self._shown(run)

    async def start(
        self,
        workflow: Workflow | str,
        data: Any = None,
        *,
        key: str | None = None,
        different: Different = "log",
    ) -> Run:
        """Start a run and return it as soon as it is durable; this engine drives it while it is open.

        The run that is there wins: the same key starts nothing twice. Without a key one is made.
        """
        driving = await self._begin(workflow, data, key, different, retry=False)
        return self._shown(driving.run)

    async def result(self, workflow: Workflow | str, key: str) -> Run:
        """Wait until a run ends or rests, whoever drives it, and return it, also when it failed."""
        name = self._name(workflow)
        while True:
            driving = self._drives.get((name, key))
            if driving is not None and driving.done is not None:
                await asyncio.wait([driving.done])
            run = await self._load(name, key)
            if not may_go_on(run, self.store.now(), retry=False):
                return self._shown(run)
            if self._worker.stopping:
                raise EngineClosed(f"the engine was closed while run {name}/{key} went on: resume it")
            await asyncio.sleep(WATCH)

    async def get(self, workflow: Workflow | str, key: str) -> Run:
        """The run as it is now. Raises RunNotFound."""
        return self._shown(await self._load(self._name(workflow), key))

    async def list(
        self,
        workflow: Workflow | str | None = None,
        *,
        status: Status | None = None,
        state: str | None = None,
        after: Run | None = None,
        limit: int = 100,
    ) -> Runs:
        """Up to `limit` runs in the order of their making; give the last one as `after` for the next page.

        Raises ValueError for an unknown status.
        """
        self._worker.check()
        if status is not None and status not in get_args(Status):
            raise ValueError(f"there is no status {status!r}: {', '.join(get_args(Status))}")
        name = None if workflow is None else self._name(workflow)
        since = 0 if after is None else after.id
        found = await self.store.list(workflow=name, status=status, state=state, after=since, many=limit)
        return [self._shown(run) for run in found]

    async def history(self, workflow: Workflow | str, key: str) -> Entries:
        """Every move of a run, from its start. Raises RunNotFound."""
        return await self.store.history(await self._load(self._name(workflow), key))

    async def resume(self, *, concurrency: int = 100) -> int:
        """Drive every unfinished run of this engine's workflows that nobody drives, to its end or rest.

        `concurrency` of them at once, oldest first. Returns how many. One that fails stays failed, and stops no other.
        Cancelling this call claims no more; what was claimed is driven on.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency must be 1 or more, not {concurrency!r}")
        line = Line()
        drivers = [self._task(self._drive_in_line(line)) for _ in range(concurrency)]
        try:
            await asyncio.gather(*map(asyncio.shield, drivers))
        finally:
            line.ended = True
        return len(line.seen)

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
        epoch) delivers it later. Raises UnknownEvent, RunNotFound, RunOver, and CodecError for the payload.
        """
        self._worker.check()
        definition = self._known(workflow).check()
        known_event(definition, event)
        encode(payload, "payload", limit=definition.codec.limit)
        made = Event(name=event, payload=payload, id=event_id or uuid.uuid4().hex, visit=visit, due=due)
        if event_id is None and visit is None and due is None:
            sent = await self._send_now((definition.name, key), made)
            if sent is not None:
                return sent
        return await self._post(definition, key, made)

    async def _send_now(self, name: tuple[str, str], event: Event) -> Event | None:
        """Event and move in one commit, where the run rests here. None where it is to be posted."""
        drive = self._held.pop(name, None)
        if drive is None:
            return None
        self._busy[name] = drive
        try:
            sent = await drive.send(event)
        except LeaseLost:
            return None  # another owner has it: the event is posted to that one
        finally:
            del self._busy[name]  # and where this was cancelled, nobody here holds it any more
        if not drive.idle or drive.run.actions:
            self._redrive(drive)
        elif drive.run.owner is not None:
            self._held[name] = drive
        return sent

    async def _post(self, definition: Workflow, key: str, event: Event) -> Event:
        posted = await self.store.post(definition.name, key, event)
        if posted.status == "waiting":
            await self._deliver(definition, key, event.name)
        return posted

    async def _deliver(self, definition: Workflow, key: str, event: str) -> None:
        """See to it that an event which was posted is looked at: here, unless another process drives its run."""
        name = (definition.name, key)
        if name in self._drives or name in self._busy or name in self._held:
            self._wake(name, event)
            return
        driving = Driving(definition, await self._load(*name), retry=False)
        if name not in self._drives:
            driving.started.set_result(driving.run)
            self._see_to(driving, self._task(self._watch_and_drive(driving)))

    def _told(self, posts: Iterable[Post]) -> None:
        """A step of a run of ours has emitted these events, which are durable."""
        for post in posts:
            if post.workflow in self._workflows and not self._worker.stopping:
                self._task(self._deliver_later(post))

    async def _deliver_later(self, post: Post) -> None:
        try:
            await self._deliver(self._workflows[post.workflow], post.key, post.event.name)
        except FSMWorkflowError as error:
            log.warning("run %s/%s is not looked at here for what was emitted: %s", post.workflow, post.key, error)

    async def event(self, workflow: Workflow | str, key: str, event_id: str) -> Event:
        """What has become of an event: `.status` is accepted, rejected, waiting or dropped. Raises EventNotFound."""
        run = await self._load(self._name(workflow), key)
        found = await self.store.event(run, event_id)
        if found is None:
            raise EventNotFound(f"run {run.workflow}/{run.key} has no event with the id {event_id!r}")
        return found

    async def cancel(self, workflow: Workflow | str, key: str) -> Run:
        """Cancel a run: its steps are stopped, and what finished is undone. Raises RunOver for a run that has ended."""
        return await self._steer(workflow, key, CANCEL)

    async def pause(self, workflow: Workflow | str, key: str) -> Run:
        """Stop a run after the step that is on, until `unpause`. Its timers run on, and strike then."""
        return await self._steer(workflow, key, PAUSE)

    async def unpause(self, workflow: Workflow | str, key: str) -> Run:
        """Let a paused run go on."""
        return await self._steer(workflow, key, UNPAUSE)

    async def retry(self, workflow: Workflow | str, key: str) -> Run:
        """Let a failed or parked run go on in the same visit: same key, remembered calls kept, attempts anew.

        Raises RunOver where it has ended, or its undoing has begun.
        """
        return await self._steer(workflow, key, RETRY)

    async def rerun(self, workflow: Workflow | str, key: str, *, state: str) -> Run:
        """Let a run that is not over go on in a new visit of `state`: nothing is remembered there."""
        definition = self._known(workflow).check()
        if state not in definition.states:
            raise DefinitionError(definition.name, [f"there is no state {state!r}{nearest(state, definition.states)}"])
        return await self._steer(definition, key, RERUN, state)

    async def _steer(self, workflow: Workflow | str, key: str, name: str, payload: Any = None) -> Run:
        """Post one of the engine's own events, and wait until the run's owner has taken it."""
        self._worker.check()
        definition = self._known(workflow).check()
        event, place = Event(name=name, payload=payload, id=uuid.uuid4().hex), (definition.name, key)
        posted = await self._post(definition, key, event)
        while posted.status == "waiting" and not self._worker.stopping:
            await asyncio.sleep(STEERED)
            if place in self._drives or place in self._busy or place in self._held:
                posted = await self.event(definition, key, posted.id)
            else:  # the run was ending just then: a known event is only answered, and the run seen to
                posted = await self._post(definition, key, event)
        run = await self._load(definition.name, key)
        if posted.status == "dropped":
            raise RunOver(run.workflow, run.key, run.status)
        if posted.status == "rejected":
            raise NotAccepted(
                f"run {run.workflow}/{run.key} is {run.status}: {name.removeprefix('$')} says nothing to it"
            )
        return self._shown(run)

    async def fork(
        self, workflow: Workflow | str, key: str, *, new_key: str, at: int | None = None, data: Any = None
    ) -> Run:
        """Start a new run in the state, and with the data, that a run had at a version; `data` replaces fields of it.

        Nothing is remembered. Raises RunNotFound, and ValueError for a version that history does not have.
        """
        definition = self._known(workflow).check()
        run = await self._load(definition.name, key)
        made = forked(definition, run, await self.store.history(run), new_key, at, data, now=self.store.now())
        driving = Driving(definition, made, retry=False)
        self._see_to(driving, self._task(self._start_and_drive(driving)))
        there = await asyncio.shield(driving.started)
        tell(there, made, data=made, refuse=True)
        return self._shown(there)

    async def explain(self, workflow: Workflow | str, key: str) -> str:
        """In words: why the run is where it is, and what it waits for. Raises RunNotFound."""
        definition = self._known(workflow).check()
        run = await self._load(definition.name, key)
        return explained(definition, run, await self.store.history(run), now=self.store.now())

    # -- driving ----------------------------------------------------------------------------------------------------

    async def _begin(
        self, workflow: Workflow | str, data: Any, key: str | None, different: Different, *, retry: bool
    ) -> Driving:
        """Make sure that the run is there and that this engine sees to it. Returns once it is durable."""
        self._worker.check()
        if different not in get_args(Different):
            raise ValueError(f"different must be one of {', '.join(get_args(Different))}, not {different!r}")
        definition = self._known(workflow).check()
        if key is not None and (problems := name_problem(key, "key")):
            raise DefinitionError(definition.name, problems)
        key = key or uuid.uuid4().hex
        fresh = await first(definition, self.store, key, data)
        if data is not None and different == "refuse":
            there = await self.store.load(definition.name, key)
            if there is not None:
                tell(there, fresh, data, refuse=True)
        driving = await self._driving(definition, fresh, retry)
        there = await asyncio.shield(driving.started)
        if retry and not driving.retry and there.status == "failed" and not there.over and driving.done is not None:
            await asyncio.wait([driving.done])  # of a `start`, which lets a failed run be
            driving = await self._driving(definition, fresh, retry)
        tell(there, fresh, data, refuse=different == "refuse")
        return driving

    async def _driving(self, definition: Workflow, fresh: Run, retry: bool) -> Driving:
        """How this engine sees to a run: as it does already, as to one that rests here, or by beginning to."""
        name = (fresh.workflow, fresh.key)
        while name in self._busy:  # noqa: ASYNC110 (for the time of one commit)
            await asyncio.sleep(STEERED)
        driving = self._drives.get(name)
        if driving is not None and not (driving.done is not None and driving.done.done()):
            if driving.drive is not None and driving.drive.within(asyncio.current_task()):
                raise FSMWorkflowError(
                    f"a step of run {name[0]}/{name[1]} waits for its own run, which waits for the step"
                )
            return driving
        driving = Driving(definition, fresh, retry)
        if name in self._held:
            driving.run = self._held[name].run
            driving.started.set_result(driving.run)
            driving.done = asyncio.get_running_loop().create_future()
            driving.done.set_result(driving.run)
        else:
            self._see_to(driving, self._task(self._start_and_drive(driving)))
        return driving

    async def _rested(self, driving: Driving) -> Run:
        """The run once it rests. Raises EngineClosed where this engine was closed before."""
        assert driving.done is not None
        try:
            run = await asyncio.shield(driving.done)
        except asyncio.CancelledError:
            if not (driving.done.cancelled() and self._worker.stopping):
                raise
            run = driving.run
        if self._worker.stopping and may_go_on(run, self.store.now(), retry=False):
            raise EngineClosed(f"the engine was closed while run {run.workflow}/{run.key} went on: resume it")
        return run

    def _task(self, life: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that closing waits for."""
        task = asyncio.create_task(life)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _see_to(self, driving: Driving, done: asyncio.Future[Run]) -> None:
        """Make a run known by workflow and key until it is `done` with."""
        name = (driving.run.workflow, driving.run.key)
        driving.done = done
        self._drives[name] = driving

        def over(_: asyncio.Future[Run]) -> None:
            if self._drives.get(name) is driving:
                del self._drives[name]
            _report(driving)

        done.add_done_callback(over)

    async def _start_and_drive(self, driving: Driving) -> Run:
        try:
            mine = replace(driving.run, owner=self._worker.token, epoch=1)
            driving.run, created = await self.store.create(mine)
            created = created or first_of(driving.run, self._worker.token)
        except BaseException as error:
            driving.started.set_exception(error)
            driving.started.exception()  # whoever waits for it is told; where nobody does, the log is
            raise
        driving.started.set_result(driving.run)
        if created and await self._drive(driving, driving.run, fresh=True):
            return driving.run
        return await self._watch_and_drive(driving)

    async def _watch_and_drive(self, driving: Driving) -> Run:
        """Drive a run that is there; while a live owner does, watch it, and take over where that one ends."""
        run = driving.run
        driving.retry = driving.retry and run.status == "failed"  # a failure that was waited for is its result
        if run.status == "waiting" and run.due is not None and run.due > self.store.now() and not self._worker.stopping:
            # It is held until its time comes.
            claimed = await self._worker.claim_one(run.workflow, run.key, driving.workflow.version)
            if claimed is not None and await self._drive(driving, claimed):
                return driving.run
        while not self._worker.stopping and may_go_on(run, self.store.now(), retry=driving.retry):
            claimed = await self._worker.claim_one(run.workflow, run.key, driving.workflow.version)
            if claimed is not None:
                if await self._drive(driving, claimed):
                    break
            else:
                await asyncio.sleep(WATCH)
            run = driving.run = await self._load(run.workflow, run.key)
        return driving.run

    async def _drive(self, driving: Driving, run: Run, *, fresh: bool = False) -> bool:
        """Drive a claimed run until it rests. False where another owner has claimed it meanwhile."""
        driving.drive = Drive(driving.workflow, run, self._worker, fresh=fresh, retry=driving.retry, hold=True)
        return await self._go_on(driving, driving.drive)

    async def _go_on(self, driving: Driving, drive: Drive) -> bool:
        name = (driving.run.workflow, driving.run.key)
        try:
            driving.run = await drive.go()
            while drive.run.owner is not None and not drive.idle and not self._worker.stopping:
                driving.run = await drive.go()  # an event came while it was about to rest
        except LeaseLost as error:
            log.warning("%s", error)
            return False
        driving.error = drive.error
        if drive.run.owner is not None and not self._worker.stopping:
            self._held[name] = drive
        return True

    async def _again(self, driving: Driving, drive: Drive) -> Run:
        """Drive a held run on, to which something has happened."""
        if not await self._go_on(driving, drive):
            return await self._watch_and_drive(driving)
        return driving.run

    def _wake(self, name: tuple[str, str], event: str | None = None) -> None:
        """Something was posted to a run, or a time has come for it: have it looked at, if it is ours."""
        driving = self._drives.get(name)
        if driving is not None and driving.drive is not None:
            driving.drive.wake(event)
        elif name in self._busy:
            self._busy[name].wake(event)
        elif name in self._held:
            drive = self._held.pop(name)
            drive.wake(event)
            self._redrive(drive)

    def _redrive(self, drive: Drive) -> None:
        driving = Driving(drive.workflow, drive.run, retry=False)
        driving.started.set_result(drive.run)
        driving.drive = drive
        self._see_to(driving, self._task(self._again(driving, drive)))

    async def _poll_for_ever(self) -> None:
        """Look for what other processes have posted to runs of ours, and for timers of runs that rest here."""
        since = self.store.now()
        while True:
            await asyncio.sleep(self._poll)
            now = self.store.now()
            for name, drive in list(self._held.items()):
                if not drive.idle:
                    self._wake(name)
            if not self._held and not self._drives:
                since = now
                continue
            try:
                for name in await self.store.woken(self._worker.token, since - self._poll):
                    self._wake(name, await self._stopping(name))
                since = now
            except Exception as error:  # whatever it is, the next look must come
                log.warning("the engine could not look for events: %r", error)

    async def _stopping(self, name: tuple[str, str]) -> str | None:
        """The event that another process has sent to stop the step that is on, where there is one."""
        driving = self._drives.get(name)
        if driving is None or driving.drive is None:
            return None
        _, waiting = await self.store.inbox(driving.drive.run)
        return next((event.name for event in waiting if event.name in STOPPING), None)

    async def _drive_in_line(self, line: Line) -> None:
        """Drive one claimed run after another, and claim more when the line is empty."""
        while not self._worker.stopping:
            if not line.waiting:
                async with line.claiming:
                    if not line.waiting and not line.ended:
                        await self._claim_more(line)
                if not line.waiting:
                    return
            await self._drive_claimed(*line.waiting.popleft())

    async def _claim_more(self, line: Line) -> None:
        claimed = await self._worker.claim({w.name: w.version for w in self._workflows.values()}, CHUNK)
        line.ended = line.seen.issuperset(run.id for run in claimed)
        line.seen.update(run.id for run in claimed)
        # All are known before the next await, so that no `run` of the same key drives one of them beside us.
        for run in () if line.ended else claimed:
            earlier = self._drives.get((run.workflow, run.key))
            driving = Driving(self._workflows[run.workflow], run, retry=False)
            driving.started.set_result(run)
            self._see_to(driving, asyncio.get_running_loop().create_future())
            line.waiting.append((driving, None if earlier is None else earlier.done))

    async def _drive_claimed(self, driving: Driving, earlier: asyncio.Future[Run] | None) -> None:
        done = driving.done
        assert done is not None
        try:
            if earlier is None:
                await self._drive(driving, driving.run)
            else:  # a `run` of this engine that was about to claim it, and has by now
                await asyncio.wait([earlier])
                driving.run = await self._load(driving.run.workflow, driving.run.key)
                await self._watch_and_drive(driving)
            done.set_result(driving.run)
        except Exception as error:
            done.set_exception(error)
        finally:
            done.cancel()  # only where this task is being cancelled

    def _known(self, workflow: Workflow | str) -> Workflow:
        """The workflow of that name; one given as an object is made known."""
        if isinstance(workflow, str):
            if workflow not in self._workflows:
                raise UnknownWorkflow(workflow)
            return self._workflows[workflow]
        known = self._workflows.setdefault(workflow.name, workflow)
        if known is not workflow:
            raise DefinitionError(workflow.name, ["this engine has another workflow of that name"])
        return workflow

    def _name(self, workflow: Workflow | str) -> str:
        return workflow if isinstance(workflow, str) else workflow.name

    async def _load(self, workflow: str, key: str) -> Run:
        self._worker.check()
        run = await self.store.load(workflow, key)
        if run is None:
            raise RunNotFound(workflow, key)
        return run

    def _shown(self, run: Run) -> Run:
        """The run with its data as the workflow's own type, where it has one and the data fits it."""
        workflow = self._workflows.get(run.workflow)
        if workflow is None or workflow.codec.kind is None:
            return run
        try:
            return replace(run, typed=workflow.codec.decode(run.fields))
        except FSMWorkflowError:
            return run


def _as_store(given: Any) -> Store:
    """The store of an engine, from a URL, a Store, or a DBConfig."""
    if isinstance(given, str):
        return open_store(given)
    store = getattr(given, "store", given)  # a DBConfig holds one
    if not hasattr(store, "claim_one"):
        raise TypeError(f"an engine needs a URL, a Store or a DBConfig, not {given!r}")
    found: Store = store
    return found


def _report(driving: Driving) -> None:
    """An error that stopped a drive is in the log, also where nobody waits for it."""
    done = driving.done
    if done is not None and not done.cancelled() and (error := done.exception()) is not None:
        log.error("run %s/%s is left where it is: %r", driving.run.workflow, driving.run.key, error)
