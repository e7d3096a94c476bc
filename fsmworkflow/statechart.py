"""Which transitions are there, what is left, and what is entered? The transitions library's table, read out once.

The library builds and checks the machine; it never runs it. Its triggers swallow cancellation and cost 40 to 130 us
each, a look into a dict 0.3, so the guards are asked outside it. What is left and entered follows W3C SCXML, 2015,
section 3.13 and appendix D. History states are out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from transitions.extensions.nesting import HierarchicalMachine, NestedState, NestedTransition

from fsmworkflow.conditions import Guard, as_guard
from fsmworkflow.retry import seconds
from fsmworkflow.states import ENDS, action_name, inside_of, sources_of
from fsmworkflow.workflow import State, Transition

if TYPE_CHECKING:
    from fsmworkflow.workflow import Workflow

AUTOMATIC, FAILED = "$automatic", "$failed"
"""The triggers under which transitions stand in the machine's table that have none of their own."""


class _State(NestedState):
    separator = "."  # the library's own "_" makes `create` and `create_ticket` clash


class _Arc(NestedTransition):
    def __init__(self, *args: Any, number: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.number = number


class _Machine(HierarchicalMachine):
    state_cls = _State
    transition_cls = _Arc


class Arc(msgspec.Struct, frozen=True):
    """One transition out of one state: where it leads (None ends the run), what guards it, and what it does.

    `enters` are the states that it enters, from outside inwards in document order; it leaves whatever is active below
    `domain`, the nearest state around both its ends. An internal one enters and leaves nothing. A `plain` one leads
    from one step of a flat workflow to another, and neither starts timers nor names anything to be done.
    """

    trigger: str | None
    source: str
    dest: str | None
    guard: Guard | None = None
    action: str | None = None
    ends: bool = False
    update: Callable[[Any, Any], Any] | None = None
    internal: bool = False
    error: Any = None
    domain: str = ""
    enters: tuple[str, ...] = ()
    plain: bool = False


class Chart:
    """The structure of a checked workflow: its states as a tree, and their transitions in the order of the document.

    `structure` is a hash of states, initial and final states, triggers, sources and destinations: not of functions.
    """

    def __init__(self, workflow: Workflow) -> None:
        machine = _build(workflow)
        self.inner: dict[str, tuple[str, ...]] = {}
        self._first: dict[str, tuple[str, ...]] = {}
        self.parallel = {s.name for s in workflow.states.values() if s.kind == "parallel"}
        self._read(machine.states, "")
        self.order = {name: number for number, name in enumerate(self.inner)}
        self.flat = len(self.order) == len(machine.states)
        self.around = {name: tuple(_around(name)) for name in self.order}
        self.delays = _delays(workflow)
        self._busy = {  # states that do something when they are entered or left
            s.name for s in workflow.states.values() if s.enter or s.exit or s.compensate or s.kind != "step"
        } | self.delays.keys()
        self._transitions, self._finals = workflow.transitions, workflow.finals
        self._every: dict[str, list[int]] = {}  # the transitions of "*", by trigger, and not once for each state
        for number, t in enumerate(workflow.transitions):
            for trigger in triggers(t) if t.source == "*" else ():
                self._every.setdefault(trigger, []).append(number)
        self._own = {
            (source, trigger): [one.number for one in found]
            for trigger, event in machine.events.items()
            for source, found in event.transitions.items()
        }
        self._arcs: dict[tuple[str, str], tuple[Arc, ...]] = {}  # made when first asked for, and not for all at once
        named = (trigger for t in workflow.transitions for trigger in triggers(t) if not trigger.startswith("$"))
        self.triggers = tuple(dict.fromkeys(named))
        self._listening = {s for s, trigger in self._own if not trigger.startswith("$")} | self.delays.keys()
        if any(not trigger.startswith("$") for trigger in self._every):
            self._listening |= self.order.keys() - self._finals
        steps = (s.name for s in workflow.states.values() if s.kind == "step" and self.flat)
        self.quiet = frozenset(step for step in steps if not self.listens(step))
        self.initial = self.entered((workflow.initial,))
        self.structure = _hash(workflow, self.order)

    def _read(self, states: Mapping[str, Any], prefix: str) -> None:
        for name, state in states.items():
            path = prefix + name
            held = state.initial
            first = [] if held is None else held if isinstance(held, list) else [held]
            self.inner[path] = tuple(f"{path}.{one}" for one in state.states)
            self._first[path] = tuple(f"{path}.{one}" for one in first)
            self._read(state.states, path + ".")

    def _arc(self, t: Transition, source: str) -> Arc:
        domain = "" if t.dest is None else self._common(source, t.dest)
        action = None if t.after is None or t.after == ENDS else action_name(t.after)
        ends = t.dest is None or t.after == ENDS
        plain = self.flat and not (ends or t.internal or action or t.update or {source, t.dest} & self._busy)
        guard = None if t.conditions in (None, [], ()) else as_guard(t.conditions)
        enters = () if t.dest is None or t.internal else self.entered((t.dest,), domain)
        return Arc(t.trigger, source, t.dest, guard, action, ends, t.update, t.internal, t.error, domain, enters, plain)

    def automatic(self, state: str) -> tuple[Arc, ...]:
        """The transitions that a state takes by itself, in the order in which their conditions are asked."""
        return self.named(state, AUTOMATIC)

    def named(self, state: str, trigger: str) -> tuple[Arc, ...]:
        """The transitions that a state takes for a trigger, in the order in which their conditions are asked."""
        arcs = self._arcs.get((state, trigger))
        if arcs is None:
            every = () if state in self._finals else self._every.get(trigger, ())
            numbers = sorted([*self._own.get((state, trigger), ()), *every])
            arcs = tuple(self._arc(self._transitions[number], state) for number in numbers)
            if arcs:
                self._arcs[state, trigger] = arcs
        return arcs

    def failing(self, state: str) -> tuple[Arc, ...]:
        """The transitions that a state takes when its step has failed for good."""
        return self.named(state, FAILED)

    def _common(self, source: str, dest: str) -> str:
        """The nearest state around both that is no parallel one: what is below it is left. "" is the workflow."""
        others = set(_around(dest))
        for state in _around(source):
            if state in others and state not in self.parallel:
                return state
        return ""

    def entered(self, targets: Iterable[str], domain: str = "") -> tuple[str, ...]:
        """All states that become active when these are entered from `domain`, in document order."""
        found: set[str] = set()
        for target in targets:
            for state in [target, *_around(target)]:
                if state == domain:
                    break
                found.add(state)
        todo = list(found)
        while todo:
            state = todo.pop()
            if state in self.parallel or not any(one in found for one in self.inner[state]):
                missing = [one for one in self._first[state] if one not in found]
                found.update(missing)
                todo += missing
        return tuple(sorted(found, key=self.order.__getitem__))

    def apart(self, active: Iterable[str]) -> str | None:
        """Two of these states that are never active together: what a state holds, but for a parallel one, is one."""
        active = set(active)
        for around in ("", *active):
            inner = self.inner[around] if around else [state for state in self.order if "." not in state]
            inside = [state for state in inner if state in active]
            if around not in self.parallel and len(inside) > 1:
                return " and ".join(map(repr, inside[:2]))
        return None

    def leaves(self, active: Iterable[str]) -> list[str]:
        """The active states that hold no other."""
        return [state for state in active if not self.inner[state]]

    def outward(self, state: str) -> tuple[str, ...]:
        """A state and those around it, from inside outwards."""
        return (state, *self.around[state])

    def listens(self, state: str) -> bool:
        """Whether an event or a time can come between while the step of this state runs."""
        return any(one in self._listening for one in self.outward(state))

    def accepted(self, active: Iterable[str], trigger: str) -> bool:
        """Whether an active state, or one around it, has a transition for this trigger, whatever its conditions."""
        return any(self.named(state, trigger) for state in active)

    def complete(self, state: str, active: Iterable[str], final: frozenset[str]) -> bool:
        """Whether a state that holds others has come to its end: a parallel one when each of its regions has."""
        inner = self.inner[state]
        if state in self.parallel:
            return all(self.complete(region, active, final) for region in inner)
        return any(one in final and one in active for one in inner)


def _around(state: str) -> list[str]:
    """The states around a state, from inside outwards."""
    found = []
    while state := state.rpartition(".")[0]:
        found.append(state)
    return found


def _build(workflow: Workflow) -> Any:
    machine = _Machine(model=None, states=_tree(workflow), initial=workflow.initial, auto_transitions=False)
    for number, t in enumerate(workflow.transitions):
        if t.source == "*":
            continue  # the Chart keeps those itself
        # A transition whose dest is None ends the run where it is; in the library's table it leads back there.
        for source in sources_of(workflow, t):
            for trigger in triggers(t):
                machine.add_transition(trigger, source, source if t.dest is None else t.dest, number=number)
    return machine


def _tree(workflow: Workflow) -> list[Any]:
    """The states as the library takes them: each with what it holds, and with what it enters at first."""
    inside = inside_of(workflow)

    def below(path: str) -> list[Any]:
        return [described(state) for state in inside.get(path, ())]

    def described(state: State) -> Any:
        name, inner = state.name.rpartition(".")[2], below(state.name)
        if state.kind == "parallel":
            return {"name": name, "parallel": inner}
        if not inner:
            return name
        first = next(s.name for s in inside[state.name] if s.initial)
        return {"name": name, "children": inner, "initial": first.rpartition(".")[2]}

    return below("")


def triggers(t: Transition) -> list[str]:
    if t.delay is not None:
        return [timer(t.delay)]
    if t.error is not None:
        return [FAILED]
    named = [] if t.trigger is None else [t.trigger]
    return [*named, AUTOMATIC] if (t.automatic if t.automatic is not None else t.trigger is None) else named


def timer(delay: float | str) -> str:
    """The trigger of a delay: the same for "1h" and 3600, so that its conditions are asked in one order."""
    return f"$after {seconds(delay):g}"


def _delays(workflow: Workflow) -> dict[str, tuple[tuple[str, float], ...]]:
    """The timers that each state starts when it is entered: their triggers, and after how many seconds they are due."""
    found: dict[str, dict[str, float]] = {"*": {}}
    for t in workflow.transitions:
        if t.delay is not None:
            for source in [t.source] if isinstance(t.source, str) else t.source:
                found.setdefault(source, {})[timer(t.delay)] = seconds(t.delay)
    every = found.pop("*")
    timers = {state: tuple(sorted({**every, **own}.items(), key=lambda one: one[1])) for state, own in found.items()}
    shared = tuple(sorted(every.items(), key=lambda one: one[1]))
    others = [s.name for s in workflow.states.values() if s.kind != "final" and s.name not in timers] if shared else []
    return timers | dict.fromkeys(others, shared)


def _hash(workflow: Workflow, order: Iterable[str]) -> str:
    others = {name: f" {children.workflow.name}" for name, children in workflow.families.items()}
    every = (workflow.states[name] for name in order)
    states = [(s.name, s.kind + others.get(s.name, ""), s.initial, s.outcome, s.ends) for s in every]
    transitions = [
        (
            t.trigger,
            sources_of(workflow, t),
            t.dest,
            t.automatic,
            None if t.delay is None else timer(t.delay),
            t.internal,
        )
        for t in workflow.transitions
    ]
    return hashlib.blake2b(msgspec.json.encode((states, transitions)), digest_size=8).hexdigest()
