"""The data of a run as a move would leave it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from fsmworkflow.case import Case
from fsmworkflow.codec import Data, Fields, digests, encode
from fsmworkflow.errors import MergeConflict
from fsmworkflow.records import Event, Run
from fsmworkflow.statechart import Arc
from fsmworkflow.workflow import Workflow

__all__ = ["Draft", "regions"]


class Draft:
    """The data of a run as a move would leave it, and what differs from before."""

    __slots__ = ("changes", "fields", "merged", "removed", "run", "touched")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.fields = run.fields
        self.changes: Fields = {}
        self.removed: tuple[str, ...] = ()
        self.merged: tuple[str, ...] = ()  # the keys that a payload has changed
        self.touched: list[tuple[str, tuple[str, ...]]] = []  # regions, with the keys that an event has changed in them

    def apply(self, changes: Fields, removed: tuple[str, ...]) -> None:
        """Write changes. A key that is both removed and changed has moved to the end."""
        if removed:
            self.fields = {key: text for key, text in self.fields.items() if key not in removed}
            self.changes = {key: text for key, text in self.changes.items() if key not in removed}
            self.removed += tuple(key for key in removed if key in self.run.fields and key not in self.removed)
        if changes:
            self.fields = {**self.fields, **changes}
            self.changes = {**self.changes, **changes} if self.changes else changes

    def write(self, case: Case) -> None:
        """What a step changed, onto the data as it now is. Raises MergeConflict for a key that moved meanwhile."""
        event = case.event
        changes, removed = event.changes or {}, event.removed
        if not changes and not removed:
            return
        if event.base is not None and (event.base is not self.run.fields or len(self.run.active) > 1):
            changes = {**changes, **self._merged(case.workflow, event, (*changes, *removed))}
        self.apply(changes, removed)

    def _merged(self, workflow: Workflow, event: Event, keys: Iterable[str]) -> Fields:
        """The keys that somebody else has changed too, joined by the functions of `merge=`."""
        merged: Fields = {}
        base, touched = event.base or {}, _touched_elsewhere(workflow, self.run, event.state)
        touched.update(self.run.active[event.state].touched)
        for key in keys:
            if base.get(key) == self.run.fields.get(key) and key not in touched:
                continue
            join = workflow.merge.get(key)
            if join is None or event.changes is None or key not in event.changes or key not in self.run.fields:
                raise MergeConflict(
                    f"state {event.state!r} changed {key!r}, which another move had changed meanwhile: "
                    f"say how to join them, with Workflow(merge={{{key!r}: fn}})"
                )
            value = join(Data(self.run.fields)[key], Data(event.changes)[key])
            merged[key] = msgspec.Raw(encode(value, f"data.{key}"))
        return merged

    def merge_payload(self, case: Case) -> None:
        """Write the payload into the data, where the workflow says so."""
        workflow, event = case.workflow, case.event
        if workflow.payload == "merge" and isinstance(event.payload, dict):
            data = {**Data(self.fields), **event.payload}
            kind = workflow.codec.kind
            new = data if kind is None else msgspec.convert(data, kind)
            self.merged = self._changed(workflow, new)

    def _changed(self, workflow: Workflow, data: Any) -> tuple[str, ...]:
        """Take the data as it shall be. Returns the keys that differ."""
        changes, removed = workflow.codec.changes(data, self.fields)
        self.apply(changes, removed)
        return (*changes, *removed)

    def update(self, case: Case, arcs: Iterable[Arc]) -> None:
        """Let the transitions change the data: in place, or by returning what it shall be."""
        workflow = case.workflow
        for arc in arcs:
            if arc.update is not None:
                data = workflow.codec.decode(self.fields)
                new = arc.update(data, case.event)
                keys = self._changed(workflow, data if new is None else new)
                self.touched += [(region, keys) for region in regions(workflow, arc.source)]
        if self.merged:  # of several regions at once none has changed it alone
            common = [set(regions(workflow, arc.source)) for arc in arcs]
            self.touched += [(region, self.merged) for region in set.intersection(*common)]

    def hashes(self) -> dict[str, str]:
        """The hashes of the large fields: only what changed is hashed."""
        new = digests(self.changes) if self.changes else {}
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
