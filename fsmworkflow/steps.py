"""The rules of a step's end: it returned, or it raised."""

from __future__ import annotations

import msgspec

from fsmworkflow.case import Case
from fsmworkflow.choosing import choose, first
from fsmworkflow.codec import encode
from fsmworkflow.draft import Draft
from fsmworkflow.due import resting
from fsmworkflow.errors import NoTransition
from fsmworkflow.failures import failure
from fsmworkflow.records import Failure, Move, replace
from fsmworkflow.retry import chance
from fsmworkflow.statechart import Arc
from fsmworkflow.taking import fail, take
from fsmworkflow.undoing import not_undone, undone

__all__ = ["failed", "step_ended", "step_raised"]

HERE = Arc(None, "", None, ends=True)
"""It ends the run where it is."""


async def step_ended(case: Case) -> Move:
    """`$done`: a step has ended, or a state without a step is asked where it leads."""
    run, event = case.run, case.event
    if run.status == "compensating":
        return undone(case)
    state, draft = case.workflow.states[event.state], Draft(run)
    draft.write(case)
    if event.trigger is None and state.ends:
        return await take(case, [HERE], draft)
    try:
        arc = await choose(case, draft.fields)
    except NoTransition:
        if state.kind != "wait":
            raise
        return case.move(run)
    draft.update(case, [arc])
    return await take(case, [arc], draft)


async def step_raised(case: Case) -> Move:
    """`$error`: a step has raised. It is tried again where its retry says so, in the same visit."""
    run, event, now = case.run, case.event, case.now
    if run.status == "compensating":
        return not_undone(case)
    stay, step = run.active[event.state], case.workflow.states[event.state].step
    found = event.failure or failure(event.error or RuntimeError("unknown"), run, event.state)
    retry = None if step is None else step.retry
    if retry is None or event.error is None or not retry.again(stay.attempt, event.error):
        return await failed(case, found)
    again = now + retry.delay(stay.attempt, chance(run, stay.visit, stay.attempt))
    active = {**run.active, event.state: replace(stay, attempt=stay.attempt + 1, again=again)}
    after = case.after(active=active, error=found, deaths=0 if event.progress else run.deaths)
    return case.move(await resting(case, after))


async def failed(case: Case, found: Failure) -> Move:
    """A step has failed for good: `on_error` may lead on, with the error as the payload, and in the data as `error`."""
    workflow, error = case.workflow, case.event.error
    arcs = [arc for state in workflow.chart.outward(case.event.state) for arc in workflow.chart.failing(state)]
    arcs = [arc for arc in arcs if error is not None and isinstance(error, arc.error)]
    if not arcs:
        return fail(case, found, error)
    payload = {"type": found.type, "message": found.message, "state": found.state, "attempt": found.attempt}
    told, draft = replace(case, event=replace(case.event, payload=payload)), Draft(case.run)
    if workflow.codec.kind is None:
        draft.apply({"error": msgspec.Raw(encode(payload))})
    arc = await first(arcs, told.view(draft.fields))
    if arc is None:
        return fail(case, found, error)
    draft.update(told, [arc])
    move = await take(told, [arc], draft)
    if move.after.status == "failed":  # it has ended in a final state, and tells of the error all the same
        over = replace(move.after.undo, ends="failed")
        return replace(move, after=replace(move.after, error=found, undo=over))
    return move
