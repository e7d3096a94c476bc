"""The rules of undoing: finished visits of a run that did not end well are undone, the youngest first."""

from __future__ import annotations

from typing import Any

from fsmworkflow.draft import Draft
from fsmworkflow.records import Event, Move, Run, Undoing, replace
from fsmworkflow.retry import chance
from fsmworkflow.workflow import Workflow

__all__ = ["not_undone", "undone"]


async def undone(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """The youngest visit is undone, and what its undoing changed is written."""
    draft = Draft(run)
    draft.apply(event.changes or {}, event.removed)
    after = replace(run, fields=draft.fields, hashes=draft.hashes(), version=run.version + 1, updated=now)
    after = _undo_next(after, replace(run.undo, left=run.undo.left[:-1]), now)
    return Move(before=run, event=event, after=after, at=now, changes=draft.changes, removed=draft.removed)


def not_undone(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """An undoing raised: it is tried again, and in the end listed as lost."""
    undo, version = run.undo.left[-1], run.version + 1
    after = replace(run, version=version, updated=now)
    state = workflow.states.get(undo.state)
    if state is not None and event.error is not None and state.undo.again(undo.attempt, event.error):
        again = now + state.undo.delay(undo.attempt, chance(run, undo.visit, undo.attempt))
        tried = replace(undo, attempt=undo.attempt + 1, again=again)
        after = replace(after, undo=replace(run.undo, left=(*run.undo.left[:-1], tried)), due=again)
    else:
        lost = replace(run.undo, left=run.undo.left[:-1], lost=(*run.undo.lost, undo))
        after = _undo_next(after, lost, now)
    return Move(before=run, event=event, after=after, at=now, error=event.error)


def _undo_next(run: Run, undo: Undoing, now: float) -> Run:
    if undo.left:
        return replace(run, undo=undo, due=now)
    ends: Any = undo.ends or "failed"
    if run.actions:
        return replace(run, undo=undo, status=ends, due=now)
    return replace(run, undo=undo, status=ends, due=None, owner=None)
