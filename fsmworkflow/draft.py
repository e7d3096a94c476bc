"""The data of a run as a move would leave it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from fsmworkflow.case import Case
from fsmworkflow.codec import Data, Fields, digests, encode
from fsmworkflow.conditions import Seen
from fsmworkflow.errors import CodecError, ConditionError, MergeConflict
from fsmworkflow.records import Event, Run
from fsmworkflow.statechart import Arc
from fsmworkflow.workflow import Workflow

__all__ = ["Draft", "regions"]


class Draft:
    """The data of a run as a move would leave it, and what differs from before."""

    __slots__ = ("changes", "fields", "removed", "run", "touched")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.fields = run.fields
        self.changes: Fields = {}
        self.removed: tuple[str, ...] = ()
        self.touched: list[tuple[str, tuple[str, ...]]] = []  # regions, with the keys that an event has changed in them

    def apply(self, changes: Fields, removed: tuple[str, ...] = ()) -> None:
        """Write changes. A key that is both removed and changed has moved to the end."""
        if removed:
            self.fields = {key: text for key, text in self.fields.items() if key not in removed}
            self.changes = {key: text for key, text in self.changes.items() if key not in removed}
            self.removed += tuple(key for key in removed if key in self.run.fields and key not in self.removed)
        if changes:
            self.fields = {**self.fields, **changes}
            if self.changes:
                changes = {**self.changes, **changes}
            self.changes = changes

    def write(self, case: Case) -> None:
        """What a step changed, onto the data as it now is. Raises MergeConflict for a key that moved meanwhile."""
        event = case.event
        changes, removed = event.changes or {}, event.removed
        if not changes and not removed:
            return
        if event.base is not None and (event.base is not self.run.fields or len(self.run.active) > 1):
            changes = {**changes, **self._merged(case.workflow, event, changes)}
        self.apply(changes, removed)

    def _merged(self, workflow: Workflow, event: Event, changes: Fields) -> Fields:
        """The keys that somebody else has changed too, joined by the functions of `merge=`."""
        merged: Fields = {}
        base, touched = event.base or {}, _touched_elsewhere(workflow, self.run, event.state)
        touched.update(self.run.active[event.state].touched)
        for key in (*changes, *event.removed):
            if base.get(key) == self.run.fields.get(key) and key not in touched:
                continue
            join = workflow.merge.get(key)
            if join is None or key not in changes or key not in self.run.fields:
                raise MergeConflict(
                    f"state {event.state!r} changed {key!r}, which another move had changed meanwhile: "
                    f"say how to join them, with Workflow(merge={{{key!r}: fn}})"
                )
            value = join(Data(self.run.fields)[key], Data(changes)[key])
            merged[key] = msgspec.Raw(encode(value, f"data.{key}"))
        return merged

    def merge_payload(self, case: Case) -> tuple[str, ...]:
        """Write the payload into the data, where the workflow says so. Returns the keys that differ.

        Raises ConditionError where it does not fit: whoever sent it is told in the history, and the run stays.
        """
        workflow, payload = case.workflow, case.event.payload
        if workflow.payload != "merge" or not isinstance(payload, dict):
            return ()
        data, codec = Data({**self.fields, **payload}), workflow.codec  # what it does not bring is not decoded
        try:
            return self._changed(workflow, data if codec.kind is None else codec.decode(codec.start({**data})))
        except CodecError as error:
            case.asked.append(Seen("the payload fits the data", {}, None, str(error)))
            raise ConditionError(str(error)) from error

    def _changed(self, workflow: Workflow, data: Any) -> tuple[str, ...]:
        """Take the data as it shall be. Returns the keys that differ."""
        changes, removed = workflow.codec.changes(data, self.fields)
        self.apply(changes, removed)
        return (*changes, *removed)

    def update(self, case: Case, arcs: Iterable[Arc], merged: tuple[str, ...] = ()) -> None:
        """Let the transitions change the data, in place, or by returning what it shall be; the payload was `merged`."""
        workflow = case.workflow
        for arc in arcs:
            if arc.update is not None:
                data = workflow.codec.decode(self.fields)
                new = arc.update(data, case.event)
                keys = self._changed(workflow, data if new is None else new)
                self.touched += [(region, keys) for region in regions(workflow, arc.source)]
        if merged:  # of several regions at once none has changed it alone
            common = [set(regions(workflow, arc.source)) for arc in arcs]
            self.touched += [(region, merged) for region in set.intersection(*common)]

    def hashes(self) -> dict[str, str]:
        """The hashes of the large fields: only what changed is hashed."""
        if not self.changes and not self.removed:
            return self.run.hashes
        new = digests(self.changes)
        if not self.run.hashes:
            return new
        kept = {k: h for k, h in self.run.hashes.items() if k not in self.removed and k not in self.changes}
        return {**kept, **new}


def regions(workflow: Workflow, state: str) -> list[str]:
    """The regions in which a state stands, if any."""
    if workflow.chart.flat:
        return []
    return [one for one in workflow.chart.around[state] if workflow.states[one].kind == "region"]


def _touched_elsewhere(workflow: Workflow, run: Run, state: str) -> set[str]:
    """The keys that other regions have changed in this visit of a parallel state."""
    touched: set[str] = set()
    for region in regions(workflow, state):
        for other in workflow.chart.inner[region.rpartition(".")[0]]:
            if other != region and other in run.active:
                touched.update(run.active[other].touched)
    return touched
