"""The rules of a step's end: it returned, or it raised."""

from __future__ import annotations

import msgspec

from fsmworkflow.choosing import choose, view_of
from fsmworkflow.codec import encode
from fsmworkflow.conditions import Seen
from fsmworkflow.draft import Draft
from fsmworkflow.due import resting
from fsmworkflow.errors import NoTransition
from fsmworkflow.failures import OWN, asked_to_stop, failure
from fsmworkflow.records import Event, Failure, Move, Run, replace
from fsmworkflow.retry import chance
from fsmworkflow.statechart import Arc
from fsmworkflow.taking import fail, take
from fsmworkflow.undoing import not_undone, undone
from fsmworkflow.workflow import Workflow

__all__ = ["failed", "step_ended", "step_raised"]


async def step_ended(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """`$done`: a step has ended, or a state without a step is asked where it leads."""
    if run.status == "compensating":
        return await undone(workflow, run, event, now)
    state = workflow.states[event.state]
    draft = Draft(run)
    asked: list[Seen] = []
    try:
        draft.write(workflow, event)
        if event.trigger is None and state.ends:
            arc = Arc(None, state.name, None, ends=True)
        else:
            arc = await choose(workflow, run, event, draft.fields, asked)
            draft.update(workflow, event, [arc])
    except NoTransition as error:
        if state.kind == "wait":
            return Move(before=run, event=event, after=run, at=now, asked=tuple(asked))
        return fail(workflow, run, event, now, failure(error, run, event.state), error, asked)
    except OWN as error:
        if asked_to_stop(error):
            raise
        return fail(workflow, run, event, now, failure(error, run, event.state), error, asked)
    return await take(workflow, run, event, now, [arc], draft, asked)


async def step_raised(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """`$error`: a step has raised. It is tried again where its retry says so, in the same visit."""
    if run.status == "compensating":
        return not_undone(workflow, run, event, now)
    stay, step = run.active[event.state], workflow.states[event.state].step
    found = event.failure or failure(event.error or RuntimeError("unknown"), run, event.state)
    retry = None if step is None else step.retry
    if retry is None or event.error is None or not retry.again(stay.attempt, event.error):
        return await failed(workflow, run, event, now, found)
    again = now + retry.delay(stay.attempt, chance(run, stay.visit, stay.attempt))
    active = {**run.active, event.state: replace(stay, attempt=stay.attempt + 1, again=again)}
    after = replace(run, active=active, status="running", version=run.version + 1, error=found, updated=now)
    if event.progress:
        after = replace(after, deaths=0)
    return Move(before=run, event=event, after=await resting(workflow, after, now), at=now)


async def failed(workflow: Workflow, run: Run, event: Event, now: float, found: Failure) -> Move:
    """A step has failed for good: `on_error` may lead on, with the error as the payload, and in the data as `error`."""
    arcs = [arc for state in workflow.chart.outward(event.state) for arc in workflow.chart.failing(state)]
    arcs = [arc for arc in arcs if event.error is not None and isinstance(event.error, arc.error)]
    if not arcs:
        return fail(workflow, run, event, now, found, event.error)
    payload = {"type": found.type, "message": found.message, "state": found.state, "attempt": found.attempt}
    told = replace(event, payload=payload)
    draft, asked = Draft(run), list[Seen]()
    try:
        if workflow.codec.kind is None:
            draft.apply({"error": msgspec.Raw(encode(payload))}, ())
        view = view_of(workflow, run, told, draft.fields, asked)
        for arc in arcs:
            if arc.guard is None or await arc.guard.ask(view):
                draft.update(workflow, told, [arc])
                move = await take(workflow, run, told, now, [arc], draft, asked)
                if move.after.status == "failed":  # it has ended in a final state, and tells of the error all the same
                    over = replace(move.after.undo, ends="failed")
                    return replace(move, after=replace(move.after, error=found, undo=over))
                return move
    except OWN as error:
        if asked_to_stop(error):
            raise
        return fail(workflow, run, event, now, failure(error, run, event.state), error, asked)
    return fail(workflow, run, event, now, found, event.error, asked)
