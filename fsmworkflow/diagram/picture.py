"""What a picture of a workflow shows, before it is spelled for a program that draws: states in states, and arrows."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from fsmworkflow.conditions import Operand, as_guard
from fsmworkflow.diagram.path import ANY, Path, path_of
from fsmworkflow.records import STUCK, Entry, Run
from fsmworkflow.statechart import Chart
from fsmworkflow.states import ENDS, action_name, sources_of
from fsmworkflow.workflow import State, Transition, Workflow

__all__ = ["END", "Arrow", "Node", "Picture", "picture"]

END = "."
"""What arrows lead to that end the run. No state has such a name."""
WIDE, LONG = 26, 160
"""After so many characters a label goes on in the next line, and after so many it is cut."""

Place = Literal["", "visited", "current", "failed"]


class Node(msgspec.Struct, frozen=True):
    """A state: its path, its name and lines of text, those that it holds, and where the run is or was."""

    path: str
    name: str
    kind: str
    lines: tuple[str, ...] = ()
    place: Place = ""
    inner: tuple[Node, ...] = ()
    initial: bool = False

    def all(self) -> Iterator[Node]:
        """This one and all in it, from outside inwards."""
        yield self
        for one in self.inner:
            yield from one.all()


class Arrow(msgspec.Struct, frozen=True):
    """All ways from one state to another, a line each, and how often the run went there."""

    source: str
    dest: str
    lines: tuple[str, ...] = ()
    taken: int = 0


class Picture(msgspec.Struct, frozen=True):
    """A workflow's name, what is said of the run, and what is drawn. Names and lines are the user's text as it is."""

    name: str
    nodes: tuple[Node, ...]
    arrows: tuple[Arrow, ...]
    facts: tuple[str, ...] = ()

    def all(self) -> Iterator[Node]:
        """Every node, in the order of the document."""
        for node in self.nodes:
            yield from node.all()


def picture(workflow: Workflow, run: Run | None = None, history: Sequence[Entry] = ()) -> Picture:
    """The picture of a workflow, and of a run's way through it. Raises DefinitionError where it is not well formed."""
    chart = workflow.check().chart
    inside: dict[str, list[State]] = {}
    for state in workflow.states.values():
        inside.setdefault(state.name.rpartition(".")[0], []).append(state)
    path = path_of(workflow, history)
    drawn = _Drawing(workflow, chart, inside, run, path)
    facts = () if run is None else tuple(_facts(workflow, run))
    return Picture(workflow.name, drawn.nodes(), tuple(drawn.arrows), facts)


class _Drawing:
    """What one picture is made of."""

    def __init__(
        self, workflow: Workflow, chart: Chart, inside: Mapping[str, list[State]], run: Run | None, path: Path
    ) -> None:
        self.workflow, self.chart, self.inside, self.run, self.path = workflow, chart, inside, run, path
        self.active = {} if run is None else run.active
        self.arrows: list[Arrow] = []
        self.stays: dict[str, list[Transition]] = {}
        for t in filter(lambda one: one.internal, workflow.transitions):
            for source in sources_of(workflow, t):
                self.stays.setdefault(source, []).append(t)
        self.inwards: dict[str, list[Arrow]] = {}  # into the state that they come from: told in its label
        for arrow in self._ways():
            inwards = arrow.dest != END and arrow.dest.startswith(f"{arrow.source}.")
            (self.inwards.setdefault(arrow.source, []) if inwards else self.arrows).append(arrow)

    def nodes(self) -> tuple[Node, ...]:
        return tuple(self._node(state) for state in self.inside.get("", ()))

    def _node(self, state: State) -> Node:
        return Node(
            path=state.name,
            name=state.name.rpartition(".")[2],
            kind=state.kind,
            lines=tuple(line for text in self._said(state) for line in _folded(text)),
            place=self._place(state.name),
            inner=tuple(self._node(one) for one in self.inside.get(state.name, ())),
            initial=state.initial,
        )

    def _place(self, name: str) -> Place:
        if name in self.active:
            return "failed" if self.run is not None and self.run.status in STUCK else "current"
        return "visited" if self.path.visits[name] else ""

    def _said(self, state: State) -> Iterator[str]:
        yield from _does(state)
        for t in self.stays.get(state.name, ()):
            yield f"{_label(t, closes=False)} (stays)"
        for arrow in self.inwards.get(state.name, ()):
            yield f"{' '.join(arrow.lines)} → {arrow.dest.removeprefix(f'{state.name}.')}"
        if (visits := self.path.visits[state.name]) > 1:
            yield f"{visits:,} visits"
        if (stay := self.active.get(state.name)) is not None:
            if stay.attempt > 1:
                yield f"attempt {stay.attempt}"
            if stay.again is not None:
                yield f"next attempt {_clock(stay.again)}"
            if stay.timers:
                yield f"next timer {_clock(min(stay.timers.values()))}"

    def _ways(self) -> Iterator[Arrow]:
        """The ways between two states as one arrow: several beside each other hide each other's labels."""
        drawn: dict[tuple[str, str], list[tuple[str, int]]] = {}
        closing = _closing(self.workflow)
        for number, t in enumerate(self.workflow.transitions):
            if t.internal:
                continue
            text = _label(t, closes=number in closing)
            for source in [ANY] if t.source == "*" else sources_of(self.workflow, t):
                taken = self.path.taken[source, number]
                drawn.setdefault((source, END if t.dest is None else t.dest), []).append((text, taken))
        for state in self.workflow.states.values():
            if state.ends or (state.kind == "final" and "." not in state.name):
                drawn.setdefault((state.name, END), []).append(("", 0))
        for (source, dest), ways in drawn.items():
            if len(ways) > 1:  # beside other words none would be read as theirs
                ways = [(text or "(at the end)", taken) for text, taken in ways]
            told = [f"{text}{_times(taken)}".strip() for text, taken in ways]
            lines = tuple(line for text in dict.fromkeys(told) if text for line in _folded(text))
            yield Arrow(source, dest, lines, sum(taken for _, taken in ways))


def _does(state: State) -> Iterator[str]:
    """What a state says of itself beside its name."""
    if (step := state.step) is not None:
        if step.retry is not None:
            yield "retried for ever" if step.retry.attempts is None else f"up to {step.retry.attempts} attempts"
        if step.timeout is not None:
            yield f"within {_span(step.timeout)}"
    if (children := state.children) is not None:
        over = children.over.text if isinstance(children.over, Operand) else children.over
        over = action_name(over) if callable(over) else over
        yield f"runs {children.workflow.name}" + ("" if over is None else f" for each of {over}")
    if state.compensate is not None:
        yield f"undone by {action_name(state.compensate)}"
    for what, action in (("entry", state.enter), ("exit", state.exit)):
        if action is not None:
            yield f"{what} / {action_name(action)}"
    if state.outcome == "failed":
        yield "as failed"


def _label(t: Transition, *, closes: bool) -> str:
    """Trigger, condition in brackets, and what is done, as UML 2.5.1, 14.2.4, writes them."""
    parts = [] if t.trigger is None else [t.trigger]
    parts += [] if t.delay is None else [f"after {_span(t.delay)}"]
    parts += [] if t.error is None else [f"on {getattr(t.error, '__name__', t.error)}"]
    if t.conditions not in (None, [], ()):
        parts.append(f"[{as_guard(t.conditions)}]")
    elif closes:
        parts.append("[else]")
    done = [action_name(one) for one in (t.update, t.after) if one is not None and one != ENDS]
    done += ["end"] if t.after == ENDS else []
    return " ".join(parts + ([f"/ {', '.join(done)}"] if done else []))


def _closing(workflow: Workflow) -> set[int]:
    """The transitions that are taken when the conditions of those before them do not hold."""
    found, guarded = set(), set()
    for number, t in enumerate(workflow.transitions):
        where = (str(t.source), t.trigger, None if t.delay is None else str(t.delay), t.error)
        if t.conditions not in (None, [], ()):
            guarded.add(where)
        elif where in guarded:
            found.add(number)
    return found


def _times(taken: int) -> str:
    return "" if not taken else " ✓" if taken == 1 else f" ✓ {taken:,} times"


def _folded(text: str) -> list[str]:
    """Lines of a label. A long text is cut: it is a label, and the definition has the rest."""
    return textwrap.wrap(text if len(text) <= LONG else text[: LONG - 1] + "…", WIDE) or [text]


def _span(duration: Any) -> str:
    return duration if isinstance(duration, str) else f"{duration:g} s" if isinstance(duration, float | int) else (
        f"{duration.total_seconds():g} s"
    )  # fmt: skip


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _facts(workflow: Workflow, run: Run) -> Iterable[str]:
    """What is said of a run beside the picture."""
    yield f"{run.status} in {run.state}, version {run.version}"
    if gone := [state for state in run.active if state not in workflow.states]:
        yield f"this version of the workflow has no state {', '.join(gone)}"
    if run.error is not None:
        yield f"{run.error.type} in {run.error.state}, attempt {run.error.attempt}: {run.error.message:.500}"
    times = [(due, state) for state, stay in run.active.items() for due in stay.timers.values()]
    times += [(stay.again, state) for state, stay in run.active.items() if stay.again is not None]
    times += [] if run.deadline is None else [(run.deadline, "the deadline")]
    if times and not run.over:
        due, whose = min(times)
        yield f"next timer: {whose}, {_clock(due)}"
