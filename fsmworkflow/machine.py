"""PersistentWorkflowStateMachine: one run of a workflow, driven in the caller's own task."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack, nullcontext
from typing import Any, Self

import msgspec

from fsmworkflow import errors, joint
from fsmworkflow.children import awaits
from fsmworkflow.claims import SELDOM, WATCH, all_rest, first, give_up, goes_on, take_up, tell
from fsmworkflow.codec import fields_of, text_of
from fsmworkflow.decide import by_hand, decide
from fsmworkflow.definition import WorkflowDefinition
from fsmworkflow.drive import Drive
from fsmworkflow.errand import Name
from fsmworkflow.errors import log, name_problem
from fsmworkflow.hooks import Hook, Hooks
from fsmworkflow.records import Event, Run, replace
from fsmworkflow.tasks import LEFT_BEHIND
from fsmworkflow.worker import Use, Worker
from fsmworkflow.workflow import Workflow, id_of, known_event

__all__ = ["PersistentWorkflowStateMachine"]


class PersistentWorkflowStateMachine:
    """One run of a workflow, driven in the caller's own task.

        machine = PersistentWorkflowStateMachine(DBConfig(), definition)
        machine.steps = {"draft": WorkflowStep("draft", draft), ...}
        await machine.run_workflow()

    `db` is a DBConfig, a Store, or a URL. `definition` is a WorkflowDefinition, whose functions go into `steps`, or a
    Workflow. With a `key` it is that run, started with `data` where there is none; without, the oldest one of that
    workflow that may go on and that nobody drives, else a new one. `hooks` are told of moves and steps, beside the log.
    """

    def __init__(
        self, db: Any, definition: Any, key: str | None = None, data: Any = None, *, hooks: Iterable[Hook] = ()
    ) -> None:
        self.definition: WorkflowDefinition | Workflow = definition
        self.steps: dict[str, Any] = {}
        self.key = key
        self.run: Run | None = None
        self._db = db if hasattr(db, "acquire") else Use.of(db)
        self._input = data
        self._hooks = Hooks(hooks)
        self._drive: Drive | None = None
        self._snapshot: Run | None = None
        self._sending = asyncio.Lock()

    @property
    def state(self) -> str | None:
        """The state of the run as last seen here; the initial one before there is a run."""
        if self.run is not None:
            return self.run.state
        if isinstance(self.definition, Workflow):
            return self.definition.initial
        names = self.definition.steps
        return None if not names else names[0] if isinstance(names[0], str) else names[0].name

    @property
    def data(self) -> Any:
        """The data of the run as last seen here, None before there is one."""
        return None if self.run is None else self.run.data

    async def run_workflow(self) -> Run:
        """Drive the run to its end or rest, and return it. Started again after a crash or failure, it goes on there.

        Definition, functions and key are checked first: DefinitionError, InvalidKey. Raises what a failing step raised;
        RunFailed where the run ended as failed. When cancelled, the run stays where it is and may be resumed.
        """
        workflow = self._checked()
        worker: Worker = await self._db.acquire()
        try:
            return await self._run(workflow, worker)
        finally:
            await self._db.release()

    def _checked(self) -> Workflow:
        if self.key is not None and (problems := name_problem(self.key, "key")):
            raise errors.InvalidKey(problems[0])
        definition = self.definition
        return definition.check() if isinstance(definition, Workflow) else definition.build(self.steps, self)

    # -- one entity ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start the run or take it up, drive it until it rests, and hold it: for one entity that answers events.

        While it is held it goes on by itself when a time has come, or for what another process has sent. While another
        machine, here or elsewhere, holds the run of that key, this one waits. Raises what `run_workflow` does.
        """
        workflow = self._checked()
        async with AsyncExitStack() as held:
            worker: Worker = await self._db.acquire()
            held.push_async_callback(self._db.release)
            key = self.key or await _next_key(workflow, worker, {})
            while (other := worker.driven.get((workflow.name, key))) is not None:
                await asyncio.wait([other])
            held.enter_context(worker.driving((workflow.name, key)))
            if self._snapshot is not None:
                await worker.store.create(self._snapshot)
            run, fresh = await take_up(workflow, worker, key, self._input, wait=True, rest=True)
            self._drive = Drive(workflow, run, worker, fresh=fresh, retry=True, hold=True, hooks=self._hooks)
            held.push_async_callback(self._let_go)
            await self._go()
            tending = asyncio.create_task(self._tend(), name=f"fsmworkflow-tend {key}")
            held.push_async_callback(asyncio.wait, [tending])
            held.callback(tending.cancel)
            self._held = held.pop_all()
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        async with self._sending if kind is None else nullcontext():  # what goes on by itself ends its step first
            pass
        await self._held.aclose()

    async def _tend(self) -> None:
        """See to what comes while nobody sends here."""
        drive = self._driving()
        while drive.run.owner is not None:
            left = SELDOM if drive.run.due is None else drive.run.due - drive.store.now()
            await asyncio.sleep(min(SELDOM, max(WATCH, left)))
            async with self._sending:
                try:
                    if await drive.news():
                        await self._go()
                except Exception as error:  # what a step raised is on the row
                    log.warning(
                        "run %s/%s: %s while nobody sends", drive.run.workflow, drive.run.key, type(error).__name__
                    )

    async def _let_go(self) -> None:
        drive, self._drive = self._drive, None
        if drive is not None and drive.run.owner is not None:
            await drive.store.release(drive.run)

    async def send(self, event: str, payload: Any = None, *, event_id: str | None = None) -> Event:
        """Send an event, and drive the run until it rests. Returns what became of it: `.status`.

        One that no active state accepts waits in the inbox, and so does one to a run that has failed: the next
        `async with` goes on with both. Raises RunOver for a run that has ended, UnknownEvent for a name that no
        transition has, and what a step or a condition raised that failed the run for good.
        """
        drive = self._driving()
        known_event(drive.workflow, event)
        posted = Event(name=event, payload=payload, id=id_of(event_id))
        async with self._sending:
            failed = drive.run.status == "failed"  # and nobody's
            sent = None if event_id else await joint.send(drive, posted)
            if sent is None:
                sent = await drive.store.post(drive.run.workflow, drive.run.key, posted)
                drive.wake()
            if not failed:
                await self._go()
            return await drive.store.event(drive.run, posted.id) or sent

    async def _go(self) -> None:
        drive = self._driving()
        failed = drive.run.status == "failed" and drive.run.owner is not None  # it was taken up to go on
        try:
            if failed or not drive.idle or drive.run.actions or awaits(drive.run):
                await driven(drive)
        finally:
            self.run = drive.run
        if drive.error is not None and self.run.status == "failed":
            error, drive.error = drive.error, None
            raise error

    def may(self, event: str, payload: Any = None) -> bool:
        """Whether this event would now be accepted, its conditions asked. Nothing is sent. Not for async conditions."""
        drive = self._driving()
        if drive.run.over or not drive.workflow.chart.accepted(drive.run.active, event):
            return False
        decision = decide(drive.workflow, drive.run, Event(name=event, payload=payload), now=drive.store.now())
        move = by_hand(decision, TypeError, "an async condition can only be asked by an event: send it")
        return move.answer == "accepted"

    @property
    def is_final(self) -> bool:
        """Whether the run has ended for good."""
        return self.run is not None and self.run.over

    def snapshot(self) -> dict[str, Any]:
        """The run as plain values, for a place of your own; `from_snapshot` makes a machine of it again."""
        run = self._driving().run
        return {**msgspec.to_builtins(replace(run, fields={}, owner=None, id=0)), "data": text_of(run.fields).decode()}

    @classmethod
    def from_snapshot(cls, db: Any, definition: Any, snapshot: Mapping[str, Any]) -> Self:
        """A machine whose run is as it was when `snapshot()` was made, unless the store has a run of that key."""
        plain = {key: value for key, value in snapshot.items() if key != "data"}
        run: Run = msgspec.convert(plain, Run)
        machine = cls(db, definition, key=run.key)
        machine._snapshot = replace(run, fields=fields_of(snapshot["data"]), epoch=0)
        return machine

    def _driving(self) -> Drive:
        if self._drive is None:
            raise errors.EngineClosed("this machine holds no run: use it inside `async with machine:`")
        return self._drive

    # -- one run ------------------------------------------------------------------------------------------------------

    async def _run(self, workflow: Workflow, worker: Worker) -> Run:
        stuck: dict[str, errors.DefinitionChanged] = {}
        while True:
            key = self.key or await _next_key(workflow, worker, stuck)
            try:
                held = worker.driven.get((workflow.name, key))
                one = self._one(workflow, worker, key) if held is None else self._other(workflow, worker, key, held)
                if (run := await one) is not None:
                    return run
            except errors.DefinitionChanged as error:
                if self.key is not None:
                    raise
                log.error("%s", error)  # the others go on
                stuck[key] = error

    async def _one(self, workflow: Workflow, worker: Worker, key: str) -> Run | None:
        """Drive the run of this key. None where another process took it. Raises what its step raised."""
        with worker.driving((workflow.name, key)):  # before the first await, so that no other machine here takes it
            run, fresh = await take_up(workflow, worker, key, self._input, wait=self.key is not None)
            if run.owner is None:
                return None if self.key is None and workflow.concurrency is None else self._ended(run)
            hold = bool(workflow.families)
            drive = Drive(workflow, run, worker, fresh=fresh, retry=True, hold=hold, hooks=self._hooks)
            try:
                await driven(drive)
            finally:
                if drive.run.owner is not None:
                    await give_up(drive)
                self.run = drive.run
            return self._ended(drive.run, drive.error)

    async def _other(self, workflow: Workflow, worker: Worker, key: str, driven: asyncio.Future[None]) -> Run | None:
        """The run that another machine here holds, where it rests. None once that one may have let it go."""
        there = await worker.store.load(workflow.name, key)
        if there is None or driven.done() or await goes_on(there, worker.store):
            await asyncio.wait([driven], timeout=SELDOM)
            return None
        tell(there, await first(workflow, worker.store, key, self._input), self._input)
        return self._ended(there)

    def _ended(self, run: Run, error: BaseException | None = None) -> Run:
        self.run = run
        if run.status == "failed":
            raise error if error is not None else errors.RunFailed(run)
        return run


async def driven(drive: Drive) -> None:
    """Drive a run until it rests, and those below it, each in a task of its own. They are cancelled with the caller."""
    tasks: dict[Name, asyncio.Task[None]] = {}
    drives: dict[Name, Drive] = {}

    def see_to(name: Name) -> asyncio.Task[None] | None:
        if name in tasks and tasks[name].done():
            tasks.pop(name).result()
        if name not in tasks and name not in drive.worker.driven:
            tasks[name] = asyncio.create_task(_drive_child(drive, name, drives), name=f"child {name[1]}")
        return tasks.get(name)

    try:
        await drive.go()
        while drive.run.owner is not None and awaits(drive.run) and not await all_rest(drive, see_to, WATCH):
            drive.wake()
            await drive.go()
        for child in drives.values():  # the move that ended the waiting has paused or cancelled them
            child.wake()
        if tasks:
            done, _ = await asyncio.wait(tasks.values(), timeout=LEFT_BEHIND)
            await asyncio.gather(*done)
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


async def _drive_child(parent: Drive, name: Name, drives: dict[Name, Drive]) -> None:
    """Drive a run below another one until it rests, unless another process does."""
    worker, definition = parent.worker, parent.workflow.below[name[0]]
    with worker.driving(name):
        try:
            claimed = await worker.claim_one(*name, definition.version, definition.concurrency)
            if claimed is None:
                await asyncio.sleep(WATCH)
            else:
                drives[name] = Drive(definition, claimed, worker)
                await drives[name].go()
        except errors.LeaseLost as error:
            log.warning("%s", error)
        finally:
            drives.pop(name, None)
    parent.wake()  # its place is for the next one


async def _next_key(workflow: Workflow, worker: Worker, stuck: Mapping[str, errors.DefinitionChanged]) -> str:
    """The oldest run that may go on, is not stuck and driven by nobody, else the key of a new one.

    Raises DefinitionChanged where only such are left that are stuck.
    """
    await worker.reap()
    while True:
        held = [*stuck, *(key for name, key in worker.driven if name == workflow.name)]
        found = await worker.store.oldest(workflow.name, held, workflow.version)
        if found is None and stuck:
            raise next(iter(stuck.values()))
        if found is None:
            return id_of(None)
        if (workflow.name, found) not in worker.driven:  # else another machine here took it meanwhile
            return found
