"""The rules of undoing: finished visits of a run that did not end well are undone, the youngest first."""

from __future__ import annotations

from typing import Any

from fsmworkflow.case import Case
from fsmworkflow.draft import Draft
from fsmworkflow.records import Move, Run, replace
from fsmworkflow.retry import chance
from fsmworkflow.taking import over

__all__ = ["not_undone", "undone"]


def undone(case: Case) -> Move:
    """The youngest visit is undone, and what its undoing changed is written."""
    draft, undo = Draft(case.run), case.run.undo
    draft.apply(case.event.changes or {}, case.event.removed)
    after = case.after(fields=draft.fields, hashes=draft.hashes(), undo=replace(undo, left=undo.left[:-1]))
    detail = f"step {undo.left[-1].state} was undone"
    return case.move(_undo_next(after, case.now), changes=draft.changes, removed=draft.removed, detail=detail)


def not_undone(case: Case) -> Move:
    """An undoing raised: it is tried again, and in the end listed as lost."""
    run, error, undo = case.run, case.event.error, case.run.undo.left[-1]
    rest, state = run.undo.left[:-1], case.workflow.states.get(undo.state)
    if state is not None and error is not None and state.undo.again(undo.attempt, error):
        again = case.now + state.undo.delay(undo.attempt, chance(run, undo.visit, undo.attempt))
        tried = replace(undo, attempt=undo.attempt + 1, again=again)
        after = case.after(undo=replace(run.undo, left=(*rest, tried)), due=again)
        return case.move(after, error=error, detail=f"step {undo.state} was not undone at attempt {undo.attempt}")
    after = case.after(undo=replace(run.undo, left=rest, lost=(*run.undo.lost, undo)))
    return case.move(_undo_next(after, case.now), error=error, detail=f"step {undo.state} could not be undone")


def _undo_next(run: Run, now: float) -> Run:
    ends: Any = run.undo.ends or "failed"
    return replace(run, due=now) if run.undo.left else over(run, ends, now)
