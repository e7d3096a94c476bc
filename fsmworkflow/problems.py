"""What is wrong with a workflow: every problem, with its place. Asked once, when it is checked."""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import accumulate
from typing import Any, cast, get_args

from fsmworkflow import states as words
from fsmworkflow.conditions import Guard, Operand, as_guard, uncallable
from fsmworkflow.errors import cut, name_problem, nearest
from fsmworkflow.records import ENDED
from fsmworkflow.retry import Retry, seconds
from fsmworkflow.states import Children, Migration, OnFailure, Outcome, State, Transition
from fsmworkflow.versions import names, steps_from
from fsmworkflow.workflow import Workflow

__all__ = ["Paths", "place_of", "problems_of"]

COMPOSITE = frozenset({"state", "parallel", "region"})
MIGRATIONS, EVERYWHERE = 1_000, 4_000_000
"""The most migrations, and the most that "*" may stand for: states times transitions, where a delay counts for four."""
HINTS = 100
"""How many problems are told with a hint at the nearest name: looking for one takes a millisecond at the worst."""
ANY = "*"
"""The place in the graph from which the transitions of "*" lead: every state that is not final leads there."""


def problems_of(workflow: Workflow) -> list[str]:
    """Every problem of a workflow, each with its place. Paths are followed only where all else is right."""
    problems = name_problem(workflow.name, "workflow name") + _duration(workflow.deadline, "deadline")
    for status, span in workflow.keep.items():
        problems += _duration(span, f"keep {status!r}")
        problems += _one_of("keep:", status, sorted(ENDED))
    if workflow.concurrency is not None and _whole("", workflow.concurrency):
        problems.append(f"concurrency must be a whole number from 1, not {workflow.concurrency!r}")
    problems += _whole("version", workflow.version)
    merge: dict[str, Any] = workflow.merge
    problems += [f"merge {key!r}: {fn!r} is no function" for key, fn in merge.items() if not callable(fn)]
    for state in workflow.states.values():
        problems += name_problem(state.name, "state name")
        problems += _state_problems(state)
    problems += _initial_problems(workflow)
    for t in workflow.transitions:
        problems += _transition_problems(workflow, t, workflow.states if len(problems) < HINTS else ())
    if len(workflow.states) * sum(4 if t.delay else 1 for t in workflow.transitions if t.source == "*") > EVERYWHERE:
        problems.append(f"{len(workflow.states):,} states are too many for so many transitions out of '*'")
    problems += _action_problems(workflow) + _migration_problems(workflow)
    if problems or workflow._problems:
        return list(dict.fromkeys(problems))
    return Paths(workflow).problems()


def _initial_problems(workflow: Workflow) -> list[str]:
    """Every scope but a parallel state has one initial state; a parallel state has regions, and enters them all."""
    problems = []
    inside = words.inside_of(workflow)
    for state in workflow.states.values():
        if state.kind in COMPOSITE:
            inside.setdefault(state.name, [])
    for path, inner in inside.items():
        where = f" in {path!r}" if path else ""
        if path and path not in workflow.states:
            # A name with a dot in it was refused already where it was declared.
            found = [f"state {s.name!r} stands in {path!r}, which is no state" for s in inner]
            problems += [] if workflow._problems else found
        elif path and not inner:
            problems.append(f"state {path!r} has no state or region in it: one that only waits is made by wait()")
        elif not path or workflow.states[path].kind != "parallel":
            problems += _first_problems(path, where, [s for s in inner if s.initial])
    return problems


def _first_problems(path: str, where: str, first: list[State]) -> list[str]:
    if len(first) > 1:
        return [f"two initial states{where}: {', '.join(repr(s.name) for s in first)}"]
    if not first:
        return [f"no state is initial{where}: give one of them initial=True"]
    if first[0].kind == "final" and path:
        return [f"state {first[0].name!r} is initial and final: {path!r} would do nothing"]
    return []


def _whole(what: str, value: Any) -> list[str]:
    return [] if type(value) is int and value >= 1 else [f"{what} {value!r} must be a whole number from 1"]


def _one_of(what: str, value: Any, known: Iterable[str]) -> list[str]:
    return [] if value in known else [f"{what} {value!r} must be one of {', '.join(known)}"]


def _duration(value: Any, where: str) -> list[str]:
    try:
        return [] if value is None or seconds(value) > 0 else [f"{where}: {value!r} must be above zero"]
    except (ValueError, TypeError) as error:
        return [f"{where}: {error}"]


def _state_problems(state: State) -> list[str]:
    where, step = f"state {state.name!r}", state.step
    if problems := _one_of(f"{where}: its outcome", state.outcome, get_args(Outcome)):
        return problems
    if state.children is not None:
        problems += [f"{where}: {problem}" for problem in _children_problems(state.children)]
    for what in ("enter", "exit", "compensate"):
        if (fn := getattr(state, what)) is not None:
            problems += _function_problems(f"{where}, {what}", fn)
    if step is None:
        return problems
    problems += _function_problems(where, step.execute) + _duration(step.timeout, f"{where}, timeout")
    retries: list[tuple[str, Any]] = [("retry", step.retry), ("undo", state.undo)]  # they may come from a file
    for what, retry in retries:
        if retry is not None:
            found = retry.problems() if isinstance(retry, Retry) else [f"write Retry(attempts=3), not {cut(retry)}"]
            problems += [f"{where}, {what}: {problem}" for problem in found]
    return problems


def _children_problems(children: Children) -> list[str]:
    """What is wrong with what a state says of its children. All of it may come from a file."""
    other, over = children.workflow, children.over
    fn, many = cast(Any, children.data), cast(Any, children.concurrency)
    problems = [] if isinstance(other, Workflow) else [f"{cut(other)} is no Workflow, whose runs could be its children"]
    if children.into is not None:
        problems += name_problem(children.into, "into, a field,")
    problems += _whole("concurrency", many) + _one_of("on_failure", children.on_failure, get_args(OnFailure))
    if isinstance(over, Operand) and over.of == "payload":
        problems.append("over must look into the data, not into the payload")
    elif over is not None and not isinstance(over, (str, Operand)):
        problems += _plain_problems("over", over, 1)
    return problems + ([] if fn is None else _plain_problems("data", fn, 1 if over is None else 3))


def _plain_problems(what: str, fn: Any, many: int) -> list[str]:
    """What keeps a function from being called inside the decision, with so many arguments."""
    if not callable(fn):
        return [f"{what} {cut(fn)} is no function" + (", field or path" if what == "over" else "")]
    if inspect.iscoroutinefunction(fn):
        return [f"{what}: its function is async, and a decision awaits nothing: read what it needs in a step before"]
    why = uncallable(fn, many)
    return [f"{what}: its function must take {'data' if many == 1 else 'data, item, index'}: {why}"] if why else []


def _function_problems(where: str, function: Any, given: str = "the context") -> list[str]:
    if not callable(function):
        return [f"{where} has no function: give its step one"]
    if inspect.isclass(function):
        return [f"{where}: its function is a class"]
    why = uncallable(function)
    return [f"{where}: its function cannot be called with one argument, {given}: {why}"] if why else []


def _action_problems(workflow: Workflow) -> list[str]:
    """Two actions of one name would be taken for each other, as the row holds only the name."""
    known = dict(workflow.actions)
    named = [(place_of(t), t.after) for t in workflow.transitions]
    named += [(f"state {s.name!r}", hook) for s in workflow.states.values() for hook in (s.enter, s.exit)]
    return [
        f"{where}: there is another action {words.action_name(action)!r}: give one of them a name of its own, with def"
        for where, action in named
        if callable(action) and known.setdefault(words.action_name(action), action) != action
    ]


def place_of(t: Transition) -> str:
    """A transition in messages: what takes it, and out of which state."""
    by = repr(t.trigger or "then")
    if t.delay is not None:
        by = f"after {t.delay!r}"
    elif t.error is not None:
        by = f"on_error {getattr(t.error, '__name__', t.error)}"
    return f"transition {by} of {t.source!r}"


def _migration_problems(workflow: Workflow) -> list[str]:
    """Each leads to a newer version, one from each, and to states that are there once all that follow are done."""
    many = len(workflow.migrations)
    problems = [] if many <= MIGRATIONS else [f"{many:,} migrations, and {MIGRATIONS:,} are allowed"]
    met: set[Any] = set()
    for one in workflow.migrations:
        where = _leading(one)
        if type(one.version) is not int or type(one.to) is not int or not 1 <= one.version < one.to:
            problems.append(f"{where}: it must lead from a version, 1 or more, to a newer one")
            continue
        if one.to > workflow.version:
            problems.append(f"{where}: this workflow is of version {workflow.version}")
        if one.version in met:
            problems.append(f"{where}: there is another one from version {one.version}")
        met.add(one.version)
        if one.data is not None:
            problems += _function_problems(where, one.data, "the data")
            problems += [f"{where}: its function is async"] if inspect.iscoroutinefunction(one.data) else []
    return problems or [
        f"{_leading(m)}, {found}" for m in workflow.migrations for found in _mapping_problems(workflow, m)
    ]


def _leading(one: Migration) -> str:
    return f"migration from {one.version!r} to {one.to!r}"


def _mapping_problems(workflow: Workflow, one: Migration) -> Iterable[str]:
    later = steps_from(workflow, one.to)
    for old, new in one.states.items():
        found = [name for name in names(str(new), later) if name in workflow.states]
        if not found:
            yield f"{old!r}: there is no state {new!r}{nearest(str(new), workflow.states)}"
        elif "." not in found[0] and workflow.states[found[0]].kind == "final":
            yield f"{old!r}: {found[0]!r} is final, and a run ends by an event, not by being migrated"


def _transition_problems(workflow: Workflow, t: Transition, near: Iterable[str]) -> list[str]:
    problems = words.place_problems(t)
    if not problems:
        problems += _end_problems(workflow, t, near) + _way_problems(t)
        if isinstance(t.after, str) and t.after != words.ENDS and t.after not in workflow.actions:
            problems.append(f"there is no action {t.after!r}: give a function, or a method of the machine")
        problems += _guard_problems(t.conditions, workflow.lenient)
    return [f"{place_of(t)}: {p}" for p in problems]


def _end_problems(workflow: Workflow, t: Transition, near: Iterable[str]) -> list[str]:
    problems, states = [], workflow.states
    sources = [t.source] if isinstance(t.source, str) else list(t.source)
    for name in sources:
        if name != "*" and name not in states:
            problems.append(f"there is no state {name!r}{nearest(name, near)}")
        elif name != "*" and states[name].kind == "final":
            problems.append(f"{name!r} is final, nothing leads out of it")
        elif name != "*" and states[name].kind == "region":
            problems.append(f"{name!r} is a region: transitions belong to the states in it, or to the one around it")
    if t.dest is not None and not problems and (dest := words.resolve(states, sources[0], t.dest)) is None:
        problems.append(f"there is no state {t.dest!r}{nearest(t.dest, near)}")
    elif t.dest is not None and not problems and states[dest or ""].kind == "region":
        problems.append(f"{t.dest!r} is a region: lead to the parallel state, or to a state in the region")
    if t.internal and t.dest != t.source:
        problems.append("it is internal, so it cannot lead elsewhere")
    return problems


def _way_problems(t: Transition) -> list[str]:
    problems = []
    trigger: Any = t.trigger
    if trigger is not None:
        problems += name_problem(trigger, "trigger")
        if isinstance(trigger, str) and trigger.startswith("$"):
            problems.append(f"trigger {t.trigger!r} begins with $, which is the engine's own")
    if t.delay is not None:
        try:
            seconds(t.delay)
        except (ValueError, TypeError) as error:
            problems.append(f"delay: {error}")
    kind, update = cast(Any, t.error), cast(Any, t.update)  # they may come from a file
    if kind is not None and not (isinstance(kind, type) and issubclass(kind, BaseException)):
        problems.append(f"{kind!r} is no exception class")
    if sum(way is not None for way in (t.trigger, t.delay, kind)) > 1:
        problems.append("a trigger, a delay and an error each need a transition of their own")
    if update is not None and not callable(update):
        problems.append(f"update {update!r} is no function")
    return problems


def _guard_problems(conditions: Any, lenient: bool) -> list[str]:
    try:
        guard: Guard | None = as_guard(conditions) if conditions not in (None, [], ()) else None
    except (TypeError, ValueError) as error:
        return [str(error)]
    except RecursionError:
        return ["its conditions are lists nested too deeply"]
    return [] if guard is None else guard.problems(lenient)


class Paths:
    """Which states can be reached, and from which an end can be."""

    def __init__(self, workflow: Workflow) -> None:
        self.workflow = workflow
        self.states = workflow.states
        self.finals = {state.name for state in workflow.states.values() if state.kind == "final"}
        self.ends = [s.name for s in self.states.values() if s.ends or (s.kind == "final" and "." not in s.name)]
        self.inside = words.inside_of(workflow)
        self.arcs: dict[str, list[tuple[Transition, str | None]]] = {name: [] for name in workflow.states}
        self.arcs[ANY] = []
        for t in workflow.transitions:
            for source in [ANY] if t.source == "*" else words.sources_of(workflow, t):
                self.arcs[source].append((t, None if t.dest is None else words.resolve(self.states, source, t.dest)))

    def problems(self) -> list[str]:
        reached = self._reached()
        return [f"state {name!r} cannot be reached" for name in self.states if name not in reached] + [
            f"state {name!r} leads to no end: lead it to a final state, by then=, on=, after= or dest=None"
            for name in self.endless(self._answering() if self.workflow.endless else ())
        ]

    def _held(self, path: str) -> list[str]:
        """What a state that is entered enters in itself at first."""
        inner = self.inside.get(path, ())
        return [one.name for one in inner if one.initial or self.states[path].kind == "parallel"]

    def _reached(self) -> set[str]:
        met: set[tuple[str, str]] = set()
        regions = Counter(name.rpartition(".")[0] for name, state in self.states.items() if state.kind == "region")
        todo = [(self.workflow.initial, "entered")]
        while todo:
            if (node := todo.pop()) not in met:
                met.add(node)
                todo += self._follow(*node, regions)
        return {name for name, how in met if how == "active"}

    def _follow(self, name: str, how: str, regions: Counter[str]) -> Iterable[tuple[str, str]]:
        """What follows when a state is entered with what it holds at first, is active, or has come to its end.

        Each once: `regions` are those of each parallel state that have not come to their end.
        """
        around = name.rpartition(".")[0]
        leads = how == "active" and (name == ANY or self.states[name].kind not in COMPOSITE)
        if how == "entered":
            yield from [(name, "active"), *((inner, "entered") for inner in self._held(name))]
        elif how == "active":
            if name not in self.finals:
                yield ANY, "active"
            if around:
                yield from [(around, "done")] if name in self.finals else ()
                yield around, "entered" if self.states[around].kind == "parallel" else "active"
        elif self.states[name].kind == "region":
            regions[around] -= 1
            yield from [] if regions[around] else [(around, "done")]
        for t, dest in self.arcs[name]:
            if dest is not None and (leads or (how == "done" if _by_itself(t) else how == "active")):
                yield dest, "entered"

    def endless(self, but: Iterable[str] = ()) -> list[str]:
        """The states from which neither an end can be reached nor one of these."""
        ending = self._ending([*self.ends, *but])
        return [name for name in self.states if name not in ending and self.states[name].kind not in COMPOSITE]

    def _answering(self) -> list[str]:
        """The states that wait for an event, of their own or of what is around them, which is as good as an end."""
        moved = {name for name, arcs in self.arcs.items() if any(t.trigger is not None for t, _ in arcs)}
        waits = [name for name, state in self.states.items() if state.kind == "wait"]
        return [name for name in waits if not moved.isdisjoint((ANY, *accumulate(name.split("."), "{}.{}".format)))]

    def _ending(self, todo: list[Any]) -> set[Any]:
        """The states from which one of these can be reached, or the end of what is around them.

        Beside each state there stand in the graph what it takes for those in it, and what its completion takes.
        """
        back: dict[Any, list[Any]] = defaultdict(list)
        for name, arcs in self.arcs.items():
            around = name.rpartition(".")[0]
            for t, dest in arcs:
                taken = [name, (name, "done" if _by_itself(t) else "on")]
                todo += taken if dest is None or t.after == words.ENDS else []
                back[dest] += taken
            back[around, "on"] += [name, (name, "on")]
            if name in self.finals or (around and self.states[around].kind == "parallel"):
                back[around, "done"].append(name if name in self.finals else (name, "done"))
            if "." in name or name not in self.finals:  # what is final within another state is left with it
                back[ANY].append(name)
            for inner in self._held(name):
                back[inner].append(name)
        ending: set[Any] = set()
        while todo:
            name = todo.pop()
            if name not in ending:
                ending.add(name)
                todo += back.get(name, [])
        return ending


def _by_itself(t: Transition) -> bool:
    return t.trigger is None and t.delay is None and t.error is None
