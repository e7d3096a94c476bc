"""What does an event do to a run? `decide` answers with a Move, and does nothing: it awaits only the user's guards.

Every rule of the machine is one function an event, all in one table. Time comes in as `now`; chance is a hash of run
and attempt.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fsmworkflow import steering
from fsmworkflow.beginning import begin
from fsmworkflow.children import children_begin, children_joined, with_children
from fsmworkflow.choosing import pick, view_of
from fsmworkflow.conditions import Seen
from fsmworkflow.draft import Draft
from fsmworkflow.due import resting
from fsmworkflow.errors import ConditionError, DeadlineExceeded, NotAccepted
from fsmworkflow.failures import OWN, asked_to_stop, failure
from fsmworkflow.records import (
    BEGIN,
    CANCEL,
    DONE,
    ERROR,
    JOINED,
    PARKED,
    PAUSE,
    RERUN,
    RETRY,
    TIMEOUT,
    UNPAUSE,
    Event,
    Move,
    Run,
    replace,
)
from fsmworkflow.steps import step_ended, step_raised
from fsmworkflow.taking import active_after, fail, rejected, take
from fsmworkflow.workflow import Workflow

__all__ = ["begin", "decide"]


async def decide(workflow: Workflow, run: Run, event: Event, *, now: float) -> Move:
    """The move that `event` makes of `run`. Nothing is changed, and nothing awaited but guards.

    What a guard raises, and what leads nowhere, is no error here: it is a move that fails the run. Where nothing moves,
    `move.after is move.before`. Raises NotAccepted for an event that no active state accepts.
    """
    move = await _RULES.get(event.name, _event)(workflow.check(), run, event, now)
    if event.posts and move.error is None:
        move = replace(move, posts=event.posts)
    return with_children(workflow, move, now) if workflow.families else move


async def _event(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """One event moves every region that accepts it, inner states before outer ones, in document order, in one move."""
    chart = workflow.chart
    if run.status not in ("running", "waiting") or not chart.accepted(run.active, event.name):
        accepts = ", ".join(workflow.accepts(run)) or "nothing"
        raise NotAccepted(f"{run.workflow}/{run.key} in state {run.state!r} does not accept {event.name!r}: {accepts}")
    draft = Draft(run)
    asked: list[Seen] = []
    try:
        draft.merge_payload(workflow, event)
        arcs = await pick(workflow, run, event, draft.fields, asked)
        if not arcs:
            return rejected(run, event, now, asked)
        draft.update(workflow, event, arcs)
    except ConditionError:  # what somebody sends stops no run: history has what could not be answered, and why
        return rejected(run, event, now, asked)
    except OWN as error:
        if asked_to_stop(error):
            raise
        return fail(workflow, run, event, now, failure(error, run, run.state), error, asked)
    return await take(workflow, run, event, now, arcs, draft, asked)


async def _timeout(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """A delay of a state has come, or the deadline of the run."""
    if not event.state:
        error = DeadlineExceeded(f"{run.workflow}/{run.key} had not ended by its deadline")
        return fail(workflow, replace(run, deadline=None), event, now, failure(error, run, run.state), error)
    draft, asked = Draft(run), list[Seen]()
    try:
        view = view_of(workflow, run, event, draft.fields, asked)
        for arc in workflow.chart.named(event.state, event.trigger or ""):
            if arc.guard is None or await arc.guard.ask(view):
                draft.update(workflow, event, [arc])
                return await take(workflow, run, event, now, [arc], draft, asked)
    except OWN as error:
        if asked_to_stop(error):
            raise
        return fail(workflow, run, event, now, failure(error, run, event.state), error, asked)
    spent = active_after(workflow, run, event, [], [], draft, run.version, now)
    move = rejected(replace(run, active=spent), event, now, asked)
    return replace(move, before=run, after=await resting(workflow, move.after, now))


_RULES: dict[str, Callable[[Workflow, Run, Event, float], Awaitable[Move]]] = {
    DONE: step_ended,
    ERROR: step_raised,
    TIMEOUT: _timeout,
    CANCEL: steering.cancel,
    RETRY: steering.retry,
    RERUN: steering.rerun,
    PAUSE: steering.pause,
    UNPAUSE: steering.unpause,
    PARKED: steering.park,
    BEGIN: children_begin,
    JOINED: children_joined,
}
