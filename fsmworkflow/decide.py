"""What does an event do to a run? `decide` answers with a Move, and does nothing: it awaits only the user's guards.

Every rule of the machine is one function an event, all in one table. Time comes in as `now`; chance is a hash of run
and attempt.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fsmworkflow import records, steering
from fsmworkflow.beginning import begin
from fsmworkflow.case import Case
from fsmworkflow.children import children_begin, children_joined, with_children
from fsmworkflow.choosing import first, pick
from fsmworkflow.draft import Draft
from fsmworkflow.due import resting
from fsmworkflow.errors import DeadlineExceeded, NotAccepted
from fsmworkflow.failures import OWN, asked_to_stop, failure
from fsmworkflow.records import OPEN, Event, Move, Run, replace
from fsmworkflow.steps import step_ended, step_raised
from fsmworkflow.taking import fail, spent, take
from fsmworkflow.workflow import Workflow

__all__ = ["begin", "by_hand", "decide"]

T = TypeVar("T")


async def decide(workflow: Workflow, run: Run, event: Event, *, now: float) -> Move:
    """The move that `event` makes of `run`. Nothing is changed, and nothing awaited but guards.

    What a guard raises, and what leads nowhere, is no error here: it is a move that fails the run. Where nothing moves,
    `move.after is move.before`. Raises NotAccepted for an event that no active state accepts.
    """
    case = Case(workflow.check(), run, event, now)
    rule = _RULES.get(event.name) or _accepted(case)
    try:
        move = await rule(case)
    except OWN as error:
        if asked_to_stop(error):
            raise
        move = fail(case, failure(error, run, event.state or run.state), error)
    if event.posts and move.error is None:
        move = replace(move, posts=event.posts)
    if workflow.families or any(stay.children is not None for stay in run.active.values()):
        return with_children(workflow, move, now)
    return move


def by_hand(work: Coroutine[Any, Any, T], kind: type[Exception], what: str) -> T:
    """What a coroutine comes to that awaits nothing. Raises an error of that kind, which says `what`, where it does."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise kind(what)


def _accepted(case: Case) -> Callable[[Case], Awaitable[Move]]:
    """The rule of an event from outside. Raises NotAccepted."""
    workflow, run, name = case.workflow, case.run, case.event.name
    if run.status not in OPEN or not workflow.chart.accepted(run.active, name):
        one, accepts = f"{run.workflow}/{run.key}".rstrip("/"), ", ".join(workflow.accepts(run)) or "nothing"
        raise NotAccepted(f"{one} in state {run.state!r} takes {accepts}, and not {name!r}")
    return _event


async def _event(case: Case) -> Move:
    """One event moves every region that accepts it, inner states before outer ones, in document order, in one move."""
    draft = Draft(case.run)
    try:
        merged = draft.merge_payload(case)
        arcs = await pick(case, draft.fields)
        if arcs:
            draft.update(case, arcs, merged)
    except Exception as error:  # what somebody sends stops no run: history has what could not be answered, and why
        return case.rejected(error)
    return await take(case, arcs, draft) if arcs else case.rejected()


async def _timeout(case: Case) -> Move:
    """A delay of a state has come, or the deadline of the run."""
    run, event = case.run, case.event
    if not event.state:
        error = DeadlineExceeded(f"{run.workflow}/{run.key} had not ended by its deadline")
        return fail(case, failure(error, run, run.state), error, deadline=None)
    draft = Draft(run)
    arc = await first(case.workflow.chart.named(event.state, str(event.trigger)), case.view(draft.fields))
    if arc is not None:
        draft.update(case, [arc])
        return await take(case, [arc], draft)
    after = await resting(case, case.after(active=spent(case)))
    return case.move(after, answer="rejected")


_RULES: dict[str, Callable[[Case], Awaitable[Move]]] = {
    records.DONE: step_ended,
    records.ERROR: step_raised,
    records.TIMEOUT: _timeout,
    records.CANCEL: steering.cancel,
    records.RETRY: steering.retry,
    records.RERUN: steering.rerun,
    records.PAUSE: steering.pause,
    records.UNPAUSE: steering.unpause,
    records.PARKED: steering.park,
    records.BEGIN: children_begin,
    records.JOINED: children_joined,
}
