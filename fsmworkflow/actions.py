"""Actions: what the last move named is done after its commit, at least once, before the next step or event."""

from __future__ import annotations

import asyncio
from itertools import count
from types import MappingProxyType
from typing import TYPE_CHECKING

from fsmworkflow.context import WorkflowContext
from fsmworkflow.errors import FSMWorkflowError, log
from fsmworkflow.failures import asked_to_stop, failure
from fsmworkflow.records import Run, replace
from fsmworkflow.retry import Retry

if TYPE_CHECKING:
    from fsmworkflow.drive import Drive

__all__ = ["act_after", "settle_ended"]

ACTION_RETRY = Retry(attempts=3, first_delay=0.2, max_delay=2.0)


async def act_after(drive: Drive) -> None:
    """Do what the last move named. The next commit strikes it off, or one of its own."""
    before = drive.run
    await drive.worker.hold(before)
    error = await _failed(drive)
    if error is not None and before.status == "compensating":
        # What is to be undone comes first: they are tried again at its end, and then listed.
        drive.acts -= {before.status}
        log.error("an action of run %s/%s failed while it is undone: %r", before.workflow, before.key, error)
    elif before.over:
        await settle_ended(drive, error)
    elif error is None:
        drive.run = replace(before, actions=())
    else:  # a state with a step has on_error, and retries, for that
        step = drive.workflow.states[next(reversed(before.active))].step
        await drive.fail(error, error if step is None else None)


async def settle_ended(drive: Drive, error: BaseException | None) -> None:
    """The actions of a run that has ended are done, or stay listed with what failed them."""
    before = drive.run
    after = replace(before, actions=(), owner=None, due=None)
    if error is not None:
        # A failed run with an error is one that may go on; one that ended as failed has none.
        found = failure(error, before, before.state) if before.status == "done" else None
        after = replace(after, actions=before.actions, error=found)
    await drive.store.settle(before, after)
    drive.run = after


async def _failed(drive: Drive) -> BaseException | None:
    """Do each action, which is tried three times. Returns what failed for good, else None."""
    for action in drive.run.actions:
        try:
            await _act(drive, drive.run, action.name)
        except (Exception, asyncio.CancelledError) as error:
            if asked_to_stop(error):
                raise
            return error
    return None


async def _act(drive: Drive, run: Run, name: str) -> None:
    workflow = drive.workflow
    action = workflow.actions.get(name)
    if action is None:
        raise FSMWorkflowError(f"there is no action {name!r} in workflow {workflow.name!r} any more")
    for attempt in count(1):
        data = workflow.codec.decode(run.fields)
        shown = MappingProxyType(data) if isinstance(data, dict) else data
        try:
            await drive.worker.threads.invoke(action, WorkflowContext(shown, run=run, state=run.state))
            return
        except Exception as error:
            if not ACTION_RETRY.again(attempt, error):
                raise
        await asyncio.sleep(ACTION_RETRY.delay(attempt, 1.0))
