"""What the tables over `decide` share: what holds of every move, and what one move changed."""

from __future__ import annotations

from typing import Any, get_args

from fsmworkflow import Event, Move, Run, Workflow
from fsmworkflow.codec import digests
from fsmworkflow.records import Status

NOW = 1_750_000_000.0
ENDED = ("done", "failed", "cancelled")


def check_move(workflow: Workflow, run: Run, event: Event, move: Move, *, now: float = NOW) -> None:
    """What holds of every move, whatever its event did."""
    after = move.after
    assert move.before is run
    assert (move.event.name, move.event.state, move.event.id) == (event.name, event.state, event.id)
    assert move.at == now
    assert isinstance(move.asked, tuple)
    assert isinstance(move.forget, tuple)
    if after is run:
        return
    assert (after.version, after.updated) == (run.version + 1, now)
    same = ("id", "key", "workflow", "created", "epoch", "posted", "input")
    assert [getattr(after, name) for name in same] == [getattr(run, name) for name in same]
    assert after.status in get_args(Status)
    assert after.deaths in (run.deaths, 0)
    assert type(after.deaths) is int
    assert isinstance(after.actions, tuple)
    assert after.definition == workflow.version
    assert after.structure == workflow.chart.structure
    folded = {key: text for key, text in run.fields.items() if key not in move.removed} | move.changes
    assert list(folded.items()) == list(after.fields.items())  # history holds what a move changed, and nothing else
    assert after.hashes == digests(after.fields)
    if after.status == "parked" or (after.status in ENDED and not (after.actions and after.over)):
        assert (after.owner, after.due) == (None, None)  # nobody has to look at it any more
    else:
        assert after.owner == run.owner


def difference(move: Move) -> dict[str, Any]:
    """The fields of the run that a move changed, by name, but for its version and when it was updated."""
    before, after = move.before, move.after
    names = [name for name in Run.__struct_fields__ if name not in ("version", "updated")]
    return {name: getattr(after, name) for name in names if getattr(after, name) != getattr(before, name)}
