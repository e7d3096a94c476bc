"""Case: what `decide` is asked. What does this event make of this run?"""

from __future__ import annotations

from typing import Any

import msgspec

from fsmworkflow.codec import Fields
from fsmworkflow.conditions import Seen, View
from fsmworkflow.errors import told
from fsmworkflow.records import Event, Move, Run, replace
from fsmworkflow.workflow import Workflow

__all__ = ["Case", "Look"]


class Look(msgspec.Struct, frozen=True):
    """What a guard that is a plain function is given: the data as it would be committed, the run, and the event."""

    data: Any
    run: Run
    event: Event


class Case(msgspec.Struct, frozen=True):
    """An event that meets a run at a time. `asked` takes each condition with what it saw."""

    workflow: Workflow
    run: Run
    event: Event
    now: float
    asked: list[Seen] = []

    def view(self, fields: Fields) -> View:
        """What a guard may look at, over this data."""
        data = self.workflow.codec.decode(fields)
        view = View(data, self.event.payload, Look(data, self.run, self.event), self.workflow.lenient)
        view.seen = self.asked
        return view

    def after(self, **changes: Any) -> Run:
        """The run one version later."""
        return replace(self.run, version=self.run.version + 1, updated=self.now, **changes)

    def move(self, after: Run, **what: Any) -> Move:
        """The move to `after`."""
        return Move(before=self.run, event=self.event, after=after, at=self.now, asked=tuple(self.asked), **what)

    def rejected(self, error: Exception | None = None) -> Move:
        """The event is spent, the run stays, and history has every condition with what it saw, and what went wrong."""
        if error is not None and not (self.asked and self.asked[-1].error):
            self.asked.append(Seen("the update", {}, None, f"the update raised {told(error)}"))
        return self.move(self.after(), answer="rejected")
