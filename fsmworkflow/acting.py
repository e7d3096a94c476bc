"""Acting: run a step or an undoing of the user's, and say how it ended as the event `$done` or `$error`.

A step's error is an event; an error of the store is not, and passes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from fsmworkflow.calls import Calls
from fsmworkflow.codec import Data, encode
from fsmworkflow.context import WorkflowContext
from fsmworkflow.errors import FSMWorkflowError, Refused, StepTimeout
from fsmworkflow.failures import asked_to_stop, failure
from fsmworkflow.hooks import Hooks
from fsmworkflow.records import DONE, ERROR, Active, Event, Run
from fsmworkflow.retry import seconds
from fsmworkflow.threads import is_async

if TYPE_CHECKING:
    from fsmworkflow.drive import Drive
    from fsmworkflow.workflow import State

__all__ = ["act", "failed", "outcome", "undo", "within"]


def act(
    drive: Drive, run: Run, name: str, stay: Active, *, fresh: bool, event: Event | None
) -> Coroutine[Any, Any, Event]:
    """Run the step of an active state. Returns how it ended; raises only what is no error of the step."""
    acting = _acted(drive, run, drive.workflow.states[name], stay, fresh=fresh, event=event, undoing=False)
    return _told(drive.hooks, acting, run, name, stay.attempt) if drive.hooks else acting


async def undo(drive: Drive, run: Run) -> Event:
    """Undo the youngest finished visit."""
    undo = run.undo.left[-1]
    state = drive.workflow.states.get(undo.state)
    if state is None or state.compensate is None:
        error = FSMWorkflowError(f"state {undo.state!r} has no compensation any more")
        return Event(name=ERROR, state=undo.state, failure=failure(error, run, undo.state))
    stay = Active(undo.visit, undo.attempt, was=undo.was)
    acting = _acted(drive, run, state, stay, fresh=False, event=None, undoing=True)
    return await (_told(drive.hooks, acting, run, f"{undo.state}:undo", undo.attempt) if drive.hooks else acting)


async def _told(hooks: Hooks, acting: Coroutine[Any, Any, Event], run: Run, place: str, attempt: int) -> Event:
    """The same with hooks, which hear of it in the task in which it runs."""
    end: Event | None = None
    hooks.tell("step_began", run, place, attempt)
    try:
        end = await acting
        return end
    finally:
        hooks.tell("step_ended", run, place, attempt, end)


async def _acted(
    drive: Drive, run: Run, state: State, stay: Active, *, fresh: bool, event: Event | None, undoing: bool
) -> Event:
    name, step, began = state.name, state.step, drive.store.now()
    fn, timeout = (state.compensate, None) if undoing or step is None else (step.execute, step.timeout)
    assert fn is not None
    place = f"{name}:undo" if undoing else name
    named = f"{stay.was}:undo" if stay.was and undoing else stay.was
    calls = Calls(drive, run, place, stay.visit, fresh=fresh, named=named)
    data = Data(run.fields) if drive.workflow.codec.kind is None else drive.workflow.codec.decode(run.fields)
    ctx: WorkflowContext[Any] = WorkflowContext(
        data, run=run, state=name, stay=stay, calls=calls, event=event, undoing=undoing
    )
    try:
        asked = _called(drive, place, fn, ctx)
        result = await (asked if timeout is None else within(timeout, place, asked, drive.workflow.asynchronous[place]))
        trigger, data = (None, ctx.data) if result is None else outcome(result, ctx)
        return _returned(calls, name, began, trigger, data)
    except BaseException as error:
        return await _raised(error, calls, name, began)


def _returned(calls: Calls, name: str, began: float, trigger: str | None, data: Any) -> Event:
    """How a step ended that returned. Raises what is wrong with what it leaves."""
    if trigger is not None:
        encode(trigger, "trigger")
    changes, removed = calls.drive.workflow.codec.changes(data, calls.run.fields)
    calls.check()
    lent = None if calls.transaction is None else calls.transaction.ended()
    return Event(
        name=DONE,
        state=name,
        trigger=trigger if calls.state == name else None,  # an undoing leads nowhere
        changes=changes,
        removed=removed,
        base=calls.run.fields,
        began=began,
        remembered=calls.used,
        posts=calls.posts,
        within=lent,
    )


async def _raised(error: BaseException, calls: Calls, name: str, began: float) -> Event:
    """How a step ended that raised. Raises what is no error of the step's."""
    calls.drive.worker.resources.ended(calls)
    said = error if calls.transaction is None else await calls.transaction.failed(error)
    if not isinstance(error, (Exception, asyncio.CancelledError)) or asked_to_stop(error):
        raise error
    if calls.broken is not None and not isinstance(calls.broken, Refused):
        raise calls.broken from None  # our own store's error is never the step's, whatever it made of it
    return failed(calls.broken or said, calls.run, name, began, calls.used, calls.progress)


async def within(timeout: Any, place: str, result: Awaitable[Any], asynchronous: bool) -> Any:
    """The result of a step, within its timeout. Raises StepTimeout, which says what becomes of one that is late."""
    scope = asyncio.timeout(limit := seconds(timeout))
    try:
        async with scope:
            return await result
    except TimeoutError as error:
        if not scope.expired():
            raise
        what = "was cancelled" if asynchronous else "its thread is left behind"
        raise StepTimeout(f"state {place!r} took longer than {limit:g} s: {what}") from error


def _called(drive: Drive, place: str, fn: Callable[..., Any], ctx: WorkflowContext[Any]) -> Any:
    """An async function here, a sync one in a thread."""
    known = drive.workflow.asynchronous
    direct = known.get(place)
    if direct is None:
        direct = known[place] = is_async(fn)
    return fn(ctx) if direct else drive.worker.threads.invoke(fn, ctx)


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
