"""The way of a run through its workflow, read out of its history: which arrows it took, and how often it was where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from fsmworkflow.records import DONE, ERROR, JOINED, RERUN, TIMEOUT, Entry
from fsmworkflow.statechart import AUTOMATIC, FAILED, Arc, Chart, triggers
from fsmworkflow.workflow import Workflow

__all__ = ["ANY", "Path", "path_of"]

ANY = ""
"""The source of the transitions of "*", which every state has that is not final."""


class Path(msgspec.Struct, frozen=True):
    """How often each state was entered, and each transition taken: by its source (ANY as such) and its number."""

    visits: Counter[str]
    taken: Counter[tuple[str, int]]


def path_of(workflow: Workflow, history: Sequence[Entry]) -> Path:
    """Follow a history. States that the workflow does not have (any more) are passed over."""
    follow = _Following(workflow)
    for entry in history:
        follow.move(entry)
    return Path(follow.visits, follow.taken)


class _Following:
    def __init__(self, workflow: Workflow) -> None:
        self.workflow = workflow
        self.chart: Chart = workflow.check().chart
        self.visits: Counter[str] = Counter()
        self.taken: Counter[tuple[str, int]] = Counter()
        self.numbers: dict[tuple[str, str], list[int]] = {}
        for number, t in enumerate(workflow.transitions):
            sources = [ANY] if t.source == "*" else [t.source] if isinstance(t.source, str) else t.source
            for source in sources:
                for trigger in triggers(t):
                    self.numbers.setdefault((source, trigger), []).append(number)

    def move(self, entry: Entry) -> None:
        before, after = self._active(entry.source), self._active(entry.dest)
        entered = set(after) - set(before)
        chosen: set[str] = set()
        for leaf in self.chart.leaves(before):
            for state in self.chart.outward(leaf):
                if state in chosen:
                    break
                if (found := self._arc(state, entry, set(after))) is not None:
                    number, arc = found
                    self.taken[self._source(state, number), number] += 1
                    entered.update(arc.enters)
                    chosen.add(state)
                    break
        if entry.event == RERUN and not entered:
            entered = set(self.chart.leaves(after))
        self.visits.update(entered)

    def _active(self, text: str) -> list[str]:
        """The active states of a text as history has it: its leaves, with what is around them."""
        leaves = [state for state in text.split(", ") if state in self.chart.order]
        found = {state for leaf in leaves for state in self.chart.outward(leaf)}
        return sorted(found, key=self.chart.order.__getitem__)

    def _arc(self, state: str, entry: Entry, after: set[str]) -> tuple[int, Arc] | None:
        """The transition of a state that fits a move: by its trigger, by where it leads, and by what was answered."""
        refused = {one.condition for one in entry.asked if one.answer is not True}
        for trigger in self._triggers(state, entry):
            arcs = self.chart.named(state, trigger)
            for number, arc in zip(self._numbered(state, trigger), arcs, strict=True):
                there = entry.status == "done" if arc.dest is None else {arc.dest, *arc.enters} <= after
                if there and str(arc.guard) not in refused and not (arc.internal and arc.dest not in after):
                    return number, arc
        return None

    def _triggers(self, state: str, entry: Entry) -> Iterator[str]:
        """Under which triggers the transition stands that a move of this event takes."""
        if entry.event in (DONE, JOINED):
            yield AUTOMATIC if entry.trigger is None else entry.trigger
        if entry.event in (ERROR, JOINED, TIMEOUT):
            yield FAILED
        if entry.event == TIMEOUT:
            yield from (name for name, _ in self.chart.delays.get(state, ()))
        if not entry.event.startswith("$"):
            yield entry.event

    def _numbered(self, state: str, trigger: str) -> Iterable[int]:
        every = () if state in self.workflow.finals else self.numbers.get((ANY, trigger), ())
        return sorted([*self.numbers.get((state, trigger), ()), *every])

    def _source(self, state: str, number: int) -> str:
        return ANY if self.workflow.transitions[number].source == "*" else state
