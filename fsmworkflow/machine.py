"""PersistentWorkflowStateMachine: the loop of one run. Claim, act, decide, commit, again, until it rests.

The loop never chooses a state: that is `decide`. It never writes: that is the store. An error of the store is never
the step's error.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from fsmworkflow.codec import Data
from fsmworkflow.context import Calls, WorkflowContext
from fsmworkflow.decide import DONE, ERROR, RETRY, begin, decide, failure, fit
from fsmworkflow.errors import (
    CodecError,
    DefinitionError,
    EndlessLoop,
    FSMWorkflowError,
    RunFailed,
    StepTimeout,
    StoreError,
)
from fsmworkflow.records import Active, Event, Move, Run, replace
from fsmworkflow.retry import Retry, seconds
from fsmworkflow.store import Store, open_store
from fsmworkflow.store.writer import whole
from fsmworkflow.threads import is_async
from fsmworkflow.worker import Worker
from fsmworkflow.workflow import State, Workflow, WorkflowDefinition, name_problem

__all__ = ["Drive", "PersistentWorkflowStateMachine"]

log = logging.getLogger("fsmworkflow")

LOOP = 1_000
ACTION_RETRY = Retry(attempts=3, first_delay=0.2, max_delay=2.0)


class Drive:
    """Drives one claimed run until it rests. `error` is what its step raised, where it failed here."""

    __slots__ = ("_fresh", "_idle", "error", "run", "store", "worker", "workflow")

    def __init__(self, workflow: Workflow, run: Run, worker: Worker, *, fresh: bool = False) -> None:
        self.workflow = workflow
        self.run = run
        self.worker = worker
        self.store = worker.store
        self.error: BaseException | None = None
        self._fresh = fresh  # whether the visit began here, so that it has no remembered calls yet
        self._idle: list[str] = []  # the states passed since the last step: a cycle of them never rests

    async def go(self) -> Run:
        """Drive the run until it ends, fails or rests, and return it. Raises LeaseLost where another has claimed it.

        When cancelled, or when the worker is stopping, the run is given back and may be resumed at once.
        """
        try:
            fit(self.workflow, self.run)
            if self.run.status == "failed":
                await self._move(Event(name=RETRY))
            while True:
                if self.run.actions and self.run.due is not None:
                    await self._act_after()
                if self.run.status != "running" or self.worker.stopping:
                    break
                if self.run.due is not None and self.run.due > self.store.now():
                    await self._pause(self.run.due)
                    continue
                if self.worker.lapsed:
                    await self.worker.renew()
                await self._move(await self._event(self.run.state))
        finally:
            if self.run.owner is not None:
                await self._give_up()
        return self.run

    async def _give_up(self) -> None:
        """Release a run that is still ours; where this task is being cancelled, the writer does it all the same."""
        release = asyncio.ensure_future(self.store.release(self.run))
        try:
            await asyncio.shield(release)
        except StoreError as error:
            log.warning("run %s/%s could not be given back: %s", self.run.workflow, self.run.key, error)
        self.run = replace(self.run, owner=None)

    async def _pause(self, until: float) -> None:
        """Wait for a retry, in pieces, so that a stopping worker need not wait for it."""
        await asyncio.sleep(min(until - self.store.now(), 0.25))

    async def _move(self, event: Event) -> None:
        move = await decide(self.workflow, self.run, event, now=self.store.now())
        await self.store.commit(move)
        self._fresh = move.after.active is not move.before.active or self._fresh
        self.run = move.after
        if move.error is not None:
            self.error = move.error
        _log(move)

    # -- a state ----------------------------------------------------------------------------------------------------

    async def _event(self, name: str) -> Event:
        """What happens next in this state: its step ends or fails, or it is only asked where it leads."""
        state = self.workflow.states[name]
        stay = self.run.active[name]
        if state.step is None:
            return self._passing(name)
        self._idle.clear()
        calls = Calls(
            self.store,
            self.worker.threads,
            self.run,
            name,
            stay.visit,
            fresh=self._fresh and stay.visit == self.run.version,
            limit=self.workflow.codec.limit,
        )
        event = await self._step(state, stay, calls)
        return event if calls.used else replace(event, remembered=False)

    def _passing(self, name: str) -> Event:
        self._idle.append(name)
        if len(self._idle) <= LOOP:
            return Event(name=DONE, state=name)
        first = len(self._idle) - 2 - self._idle[-2::-1].index(name)
        cycle = " -> ".join(self._idle[first:])
        error = EndlessLoop(f"{LOOP:,} moves without a step, an event or time between them: {cycle}")
        return Event(name=ERROR, state=name, error=error)

    async def _step(self, state: State, stay: Active, calls: Calls) -> Event:
        began = self.store.now()
        codec = self.workflow.codec
        data = Data(self.run.fields) if codec.kind is None else codec.decode(self.run.fields)
        ctx: WorkflowContext[Any] = WorkflowContext(data, run=self.run, state=state.name, stay=stay, calls=calls)
        try:
            trigger, data = _outcome(await self._within(state, ctx), ctx)
            changes, removed = codec.changes(data, self.run.fields)
        except StoreError:
            raise
        except Exception as error:
            return self._failed(error, state, began)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return self._failed(error, state, began)  # the step cancelled itself: nobody asked this run to stop
        return Event(name=DONE, state=state.name, trigger=trigger, changes=changes, removed=removed, began=began)

    def _failed(self, error: BaseException, state: State, began: float) -> Event:
        found = failure(error, self.run, state.name)
        return Event(name=ERROR, state=state.name, error=error, failure=found, began=began)

    async def _within(self, state: State, ctx: WorkflowContext[Any]) -> Any:
        """The step's result, within its timeout where it has one."""
        step = state.step
        assert step is not None
        assert step.execute is not None
        if step.timeout is None:
            return await self._called(state.name, step.execute, ctx)
        limit = seconds(step.timeout)
        scope = asyncio.timeout(limit)
        try:
            async with scope:
                return await self._called(state.name, step.execute, ctx)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise StepTimeout(f"state {state.name!r} took longer than {limit:g} s, and was cancelled") from error

    async def _called(self, name: str, fn: Callable[..., Any], ctx: WorkflowContext[Any]) -> Any:
        known = self.workflow.asynchronous
        direct = known.get(name)
        if direct is None:
            direct = known[name] = is_async(fn)
        return await (fn(ctx) if direct else self.worker.threads.invoke(fn, ctx))

    # -- after the commit -------------------------------------------------------------------------------------------

    async def _act_after(self) -> None:
        """Do what the last move named, at least once. The next commit strikes it off, or one of its own."""
        before = self.run
        failed: BaseException | None = None
        for action in before.actions:
            try:
                await self._act(action.name)
            except StoreError:
                raise
            except Exception as error:
                failed = error
                break
        self.run = replace(before, actions=())
        if before.status != "running":
            await self._settle(before, failed)
        elif failed is not None:
            self.run = before  # the row keeps its actions
            await self._move(Event(name=ERROR, state=before.state, failure=failure(failed, before, before.state)))
            self.error = failed

    async def _act(self, name: str) -> None:
        action = self.workflow.actions.get(name)
        if action is None:
            raise FSMWorkflowError(f"there is no action {name!r} in workflow {self.workflow.name!r} any more")
        attempt = 1
        while True:
            data = self.workflow.codec.decode(self.run.fields)
            shown = MappingProxyType(data) if isinstance(data, dict) else data
            ctx: WorkflowContext[Any] = WorkflowContext(shown, run=self.run, state=self.run.state)
            try:
                await self.worker.threads.invoke(action, ctx)
                return
            except Exception as error:
                if not ACTION_RETRY.again(attempt, error):
                    raise
            await asyncio.sleep(ACTION_RETRY.delay(attempt, 1.0))
            attempt += 1

    async def _settle(self, before: Run, failed: BaseException | None) -> None:
        """An ended run's actions are over: it is let go. What failed for good stays listed, as the row's error."""
        after = replace(self.run, owner=None, due=None)
        if failed is not None:
            # A failed run with an error is one that may go on; one that ended as failed has none.
            error = failure(failed, before, before.state) if before.status == "done" else None
            after = replace(after, actions=before.actions, error=error)
        await self.store.settle(before, after)
        self.run = after


def _outcome(result: Any, ctx: WorkflowContext[Any]) -> tuple[str | None, Any]:
    """The trigger and the data of what a step returned."""
    if result is None:
        return None, ctx.data
    if isinstance(result, str):
        return result, ctx.data
    if isinstance(result, WorkflowContext):
        return None, result.data
    if isinstance(result, tuple) and len(result) == 2:
        context, trigger = result
        if isinstance(context, WorkflowContext) and (trigger is None or isinstance(trigger, str)):
            return trigger, context.data
    raise TypeError(
        f"a step returns nothing, a trigger, its context, or (context, trigger), not a {type(result).__name__}: "
        "what is to be kept goes into ctx.data"
    )


def _log(move: Move) -> None:
    run = move.after
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%s/%s %s: %s -> %s", run.workflow, run.key, move.event.name, move.before.state, run.state)
    if run.status == "failed" and run.error is not None:
        log.warning("run %s/%s failed in state %r: %s", run.workflow, run.key, run.state, run.error.type)


class PersistentWorkflowStateMachine:
    """One run of a workflow, driven in the caller's own task.

        machine = PersistentWorkflowStateMachine(DBConfig(), definition)
        machine.steps = {"draft": WorkflowStep("draft", draft), ...}
        await machine.run_workflow()

    `db` is a DBConfig, a Store, or a URL. `definition` is a WorkflowDefinition, whose functions go into `steps`, or a
    Workflow. With a `key` it is that run, started with `data` where there is none; without, the oldest one of that
    workflow that may go on and that nobody drives, else a new one.
    """

    def __init__(self, db: Any, definition: Any, key: str | None = None, data: Any = None) -> None:
        self.definition: WorkflowDefinition | Workflow = definition
        self.steps: dict[str, Any] = {}
        self.key = key
        self.run: Run | None = None
        self._db = db if hasattr(db, "acquire") else Home.of(db)
        self._input = data

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

        Definition and functions are checked first: DefinitionError. Raises what a failing step raised; RunFailed where
        the run ended as failed. When cancelled, the run stays where it is and may be resumed.
        """
        definition = self.definition
        if self.key is not None and (problems := name_problem(self.key, "key")):
            raise DefinitionError(definition.name, problems)
        workflow = definition.check() if isinstance(definition, Workflow) else definition.build(self.steps, self)
        worker: Worker = await self._db.acquire()
        try:
            return await self._run(workflow, worker)
        finally:
            await self._db.release()

    async def _run(self, workflow: Workflow, worker: Worker) -> Run:
        while True:
            key = self.key or await _next_key(workflow, worker)
            driven = worker.driven.get((workflow.name, key))
            if driven is not None:
                await asyncio.wait([driven])
            elif (run := await self._one(workflow, worker, key)) is not None:
                return _ended(*run)

    async def _one(self, workflow: Workflow, worker: Worker, key: str) -> tuple[Run, BaseException | None] | None:
        """Drive the run of this key, and return it with what its step raised. None where another process took it."""
        done: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        worker.driven[workflow.name, key] = done  # before the first await, so that no other machine here takes it
        try:
            run, fresh = await take_up(workflow, worker, key, self._input, wait=self.key is not None)
            if run.owner is None and self.key is None:
                return None
            self.run = run
            if run.owner is None:
                return run, None
            drive = Drive(workflow, run, worker, fresh=fresh)
            try:
                self.run = await drive.go()
            finally:
                self.run = drive.run
            return self.run, drive.error
        finally:
            del worker.driven[workflow.name, key]
            done.cancel()


def _ended(run: Run, error: BaseException | None) -> Run:
    if run.status != "failed":
        return run
    raise error if error is not None else RunFailed(run)


async def _next_key(workflow: Workflow, worker: Worker) -> str:
    """The oldest run that may go on and that nobody drives, else the key of a new one."""
    await worker.reap()
    while True:
        held = [key for name, key in worker.driven if name == workflow.name]
        found = await worker.store.oldest(workflow.name, held)
        if found is None:
            return uuid.uuid4().hex
        if (workflow.name, found) not in worker.driven:  # else another machine here took it meanwhile
            return found


async def first(workflow: Workflow, store: Store, key: str, data: Any) -> Run:
    """The run as it would begin with this data. Raises CodecError where the data does not fit the workflow.

    Without data it stands for the run that is there, so that a run whose data type has required fields can be taken up.
    """
    try:
        return begin(workflow, key, workflow.codec.start(data), now=store.now())
    except CodecError:
        there = await store.load(workflow.name, key) if data is None else None
        if there is None:
            raise
        return there


async def take_up(workflow: Workflow, worker: Worker, key: str, data: Any, *, wait: bool) -> tuple[Run, bool]:
    """Start a run, or claim the one that is there. Returns it and whether it is new.

    One that is over has no owner; nor has one that a live owner drives, unless `wait` says to wait for its end.
    """
    store = worker.store
    fresh = await first(workflow, store, key, data)
    there, created = await worker.create(fresh)
    if created:
        return there, True
    while may_go_on(there):
        claimed = await worker.claim_one(workflow.name, key)
        if claimed is not None and may_go_on(claimed):
            return claimed, False
        if claimed is not None:  # it ended just before
            await store.release(claimed)
            there = claimed
        elif wait:
            await asyncio.sleep(WATCH)
            there = await store.load(workflow.name, key) or there
        else:
            break
    return replace(there, owner=None), False


WATCH = 0.1
"""Seconds between two looks at a run that another process drives."""


def may_go_on(run: Run, *, retry: bool = True) -> bool:
    """Whether driving a run can move it: it is unfinished, or, with `retry`, failed in a step and keeps its place."""
    if run.status == "failed" and run.error is not None and run.due is None:
        return retry
    return run.due is not None


class Home:
    """What the machines on one store share: it is opened for the first of them and closed after the last."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def of(cls, store: Any) -> Home:
        """The home of a store, the same for every machine that is given it; each URL is a store of its own."""
        if isinstance(store, str):
            return cls(open_store(store))
        home: Home | None = getattr(store, "_home", None)
        if home is None:
            home = store._home = cls(store)
        return home

    def _enter(self) -> None:
        """Begin anew in another event loop: what an ended one left here is of no use."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._worker: Worker | None = None
            self._users = 0
            self._opened = False
            self._lock = asyncio.Lock()

    async def acquire(self) -> Worker:
        self._enter()
        self._users += 1
        try:
            async with self._lock:
                if self._worker is None:
                    self._opened = not self._store.opened
                    await self._store.open()
                    worker = Worker(self._store)
                    await worker.open()
                    self._worker = worker
                return self._worker
        except BaseException:
            await self.release()
            raise

    async def release(self) -> None:
        self._users -= 1
        await whole(self._rest())

    async def _rest(self) -> None:
        """Close what was opened here, unless somebody uses it."""
        async with self._lock:
            if self._users:
                return
            worker, self._worker = self._worker, None
            opened, self._opened = self._opened, False
            try:
                if worker is not None:
                    await worker.close()
            finally:
                if opened:
                    await self._store.close()
