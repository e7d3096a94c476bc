"""Acting: run a step, an undoing or an action of the user's, and say how it ended as the event `$done` or `$error`.

A step's error is an event; an error of the store is not, and passes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from types import MappingProxyType
from typing import Any

from fsmworkflow.codec import Data, encode
from fsmworkflow.context import Calls, WorkflowContext
from fsmworkflow.errors import FSMWorkflowError, Refused, StepTimeout
from fsmworkflow.failures import asked_to_stop, failure
from fsmworkflow.hooks import Hooks
from fsmworkflow.records import DONE, ERROR, Active, Event, Run
from fsmworkflow.retry import Retry, seconds
from fsmworkflow.threads import is_async
from fsmworkflow.worker import Worker
from fsmworkflow.workflow import Workflow

__all__ = ["Acting", "act_after", "failed", "outcome"]

ACTION_RETRY = Retry(attempts=3, first_delay=0.2, max_delay=2.0)


class Acting:
    """Acts on states of one run. `undo=True` runs the compensation of a finished visit in place of a step."""

    __slots__ = ("hooks", "stopping", "worker", "workflow")

    def __init__(self, workflow: Workflow, worker: Worker, hooks: Hooks) -> None:
        self.hooks = hooks
        self.workflow = workflow
        self.worker = worker
        self.stopping = worker.stopping

    def step(
        self, run: Run, name: str, stay: Active, *, fresh: bool, event: Event | None = None
    ) -> Coroutine[Any, Any, Event]:
        """Run the step of an active state. Returns how it ended; raises only what is no error of the step."""
        step = self.workflow.states[name].step
        assert step is not None
        assert step.execute is not None
        acting = self._act(run, name, stay, step.execute, step.timeout, fresh=fresh, event=event)
        return self._told(acting, run, name, stay.attempt) if self.hooks else acting

    async def undo(self, run: Run) -> Event:
        """Undo the youngest finished visit."""
        undo = run.undo.left[-1]
        state = self.workflow.states.get(undo.state)
        if state is None or state.compensate is None:
            error = FSMWorkflowError(f"state {undo.state!r} has no compensation any more")
            return Event(name=ERROR, state=undo.state, failure=failure(error, run, undo.state))
        stay = Active(undo.visit, undo.attempt, was=undo.was)
        acting = self._act(run, undo.state, stay, state.compensate, None, fresh=False, undoing=True)
        return await (self._told(acting, run, f"{undo.state}:undo", undo.attempt) if self.hooks else acting)

    async def _told(self, acting: Coroutine[Any, Any, Event], run: Run, place: str, attempt: int) -> Event:
        """The same with hooks, which hear of it in the task in which it runs."""
        end: Event | None = None
        self.hooks.began(run, place, attempt)
        try:
            end = await acting
            return end
        finally:
            self.hooks.ended(run, place, attempt, end)

    async def _act(
        self,
        run: Run,
        name: str,
        stay: Active,
        fn: Callable[..., Any],
        timeout: float | str | None,
        *,
        fresh: bool,
        event: Event | None = None,
        undoing: bool = False,
    ) -> Event:
        workflow, store = self.workflow, self.worker.store
        codec, began = workflow.codec, store.now()
        place = f"{name}:undo" if undoing else name
        named = f"{stay.was}:undo" if stay.was and undoing else stay.was
        calls = Calls(self, workflow, run, place, stay.visit, fresh=fresh, named=named)
        data = Data(run.fields) if codec.kind is None else codec.decode(run.fields)
        ctx: WorkflowContext[Any] = WorkflowContext(
            data, run=run, state=name, stay=stay, calls=calls, event=event, undoing=undoing
        )
        try:
            within = self._called(place, fn, ctx) if timeout is None else self._within(place, fn, ctx, timeout)
            result = await within
            trigger, data = (None, ctx.data) if result is None else outcome(result, ctx)
            if trigger is not None:
                encode(trigger, "trigger")
            changes, removed = codec.changes(data, run.fields)
            calls.check()
            lent = None if calls.transaction is None else calls.transaction.ended()
        except BaseException as error:
            self.worker.resources.ended(calls)
            said = error if calls.transaction is None else await calls.transaction.failed(error)
            if not isinstance(error, (Exception, asyncio.CancelledError)) or asked_to_stop(error):
                raise
            if calls.broken is not None and not isinstance(calls.broken, Refused):
                raise calls.broken from None  # our own store's error is never the step's, whatever it made of it
            return failed(calls.broken or said, run, name, began, calls.used, calls.progress)
        return Event(
            name=DONE,
            state=name,
            trigger=None if undoing else trigger,
            changes=changes,
            removed=removed,
            base=run.fields,
            began=began,
            remembered=calls.used,
            posts=calls.posts,
            within=lent,
        )

    async def _within(self, place: str, fn: Callable[..., Any], ctx: WorkflowContext[Any], timeout: Any) -> Any:
        """The step's result, within its timeout."""
        limit = seconds(timeout)
        scope = asyncio.timeout(limit)
        try:
            async with scope:
                return await self._called(place, fn, ctx)
        except TimeoutError as error:
            if not scope.expired():
                raise
            what = "was cancelled" if self.workflow.asynchronous[place] else "its thread is left behind"
            raise StepTimeout(f"state {place!r} took longer than {limit:g} s: {what}") from error

    def _called(self, place: str, fn: Callable[..., Any], ctx: WorkflowContext[Any]) -> Awaitable[Any]:
        """An async function here, a sync one in a thread."""
        known = self.workflow.asynchronous
        direct = known.get(place)
        if direct is None:
            direct = known[place] = is_async(fn)
        awaitable: Awaitable[Any] = fn(ctx) if direct else self.worker.threads.invoke(fn, ctx)
        return awaitable


def failed(
    error: BaseException, run: Run, name: str, began: float | None, remembered: bool, progress: bool = False
) -> Event:
    """The end of a step that raised."""
    found = failure(error, run, name)
    return Event(
        name=ERROR, state=name, error=error, failure=found, began=began, remembered=remembered, progress=progress
    )


def outcome(result: Any, ctx: WorkflowContext[Any]) -> tuple[str | None, Any]:
    """The trigger and the data of what a step returned."""
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


async def act_after(workflow: Workflow, run: Run, worker: Worker) -> BaseException | None:
    """Do what the last move named, each action tried three times. Returns what failed for good, else None."""
    for action in run.actions:
        try:
            await _action(workflow, run, worker, action.name)
        except (Exception, asyncio.CancelledError) as error:
            if asked_to_stop(error):
                raise
            return error
    return None


async def _action(workflow: Workflow, run: Run, worker: Worker, name: str) -> None:
    action = workflow.actions.get(name)
    if action is None:
        raise FSMWorkflowError(f"there is no action {name!r} in workflow {workflow.name!r} any more")
    attempt = 1
    while True:
        data = workflow.codec.decode(run.fields)
        shown = MappingProxyType(data) if isinstance(data, dict) else data
        ctx: WorkflowContext[Any] = WorkflowContext(shown, run=run, state=run.state)
        try:
            await worker.threads.invoke(action, ctx)
            return
        except Exception as error:
            if not ACTION_RETRY.again(attempt, error):
                raise
        await asyncio.sleep(ACTION_RETRY.delay(attempt, 1.0))
        attempt += 1
