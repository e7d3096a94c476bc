"""Which transitions are there, and what do they enter? The transitions library's table, read out once a workflow.

The library builds and checks the machine; it never runs it. Its triggers swallow cancellation and cost 40 to 130 us
each, a look into a dict 0.3, so the guards are asked outside it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec
from transitions.extensions.nesting import HierarchicalMachine, NestedState, NestedTransition

from fsmworkflow.conditions import Guard, as_guard
from fsmworkflow.workflow import ENDS, Transition, action_name, sources_of

if TYPE_CHECKING:
    from fsmworkflow.workflow import Workflow

AUTOMATIC = "$automatic"
"""The trigger under which the automatic transitions stand in the machine's table."""


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
    """One transition out of one state: where it leads (None ends the run), what guards it, what is done afterwards."""

    trigger: str | None
    source: str
    dest: str | None
    guard: Guard | None
    action: str | None = None
    ends: bool = False


class Chart:
    """The structure of a checked workflow: its transitions by state and trigger, in the order of the document.

    `structure` is a hash of states, initial and final states, triggers, sources and destinations: not of functions.
    """

    def __init__(self, workflow: Workflow) -> None:
        machine = _build(workflow)
        self._arcs: dict[tuple[str, str], tuple[Arc, ...]] = {}
        for trigger, event in machine.events.items():
            for source, found in event.transitions.items():
                arcs = tuple(_arc(workflow.transitions[one.number], source) for one in found)
                self._arcs[source, trigger] = arcs
        self.triggers = frozenset(machine.events) - {AUTOMATIC}
        self.structure = _hash(workflow)

    def automatic(self, state: str) -> tuple[Arc, ...]:
        """The transitions that a state takes by itself, in the order in which their conditions are asked."""
        return self._arcs.get((state, AUTOMATIC), ())

    def named(self, state: str, trigger: str) -> tuple[Arc, ...]:
        """The transitions that a state takes for a trigger, in the order in which their conditions are asked."""
        return self._arcs.get((state, trigger), ())


def _build(workflow: Workflow) -> Any:
    machine = _Machine(model=None, states=list(workflow.states), initial=workflow.initial, auto_transitions=False)
    for number, t in enumerate(workflow.transitions):
        # A transition whose dest is None ends the run where it is; in the library's table it leads back there.
        dest = "=" if t.dest is None else t.dest
        triggers = [] if t.trigger is None else [t.trigger]
        if t.automatic if t.automatic is not None else t.trigger is None:
            triggers.append(AUTOMATIC)
        for trigger in triggers:
            machine.add_transition(trigger, sources_of(workflow, t), dest, number=number)
    return machine


def _arc(t: Transition, source: str) -> Arc:
    guard = None if t.conditions in (None, [], ()) else as_guard(t.conditions)
    action = None if t.after is None or t.after == ENDS else action_name(t.after)
    return Arc(t.trigger, source, t.dest, guard, action, ends=t.dest is None or t.after == ENDS)


def _hash(workflow: Workflow) -> str:
    states = [(s.name, s.kind, s.initial, s.outcome, s.ends) for s in workflow.states.values()]
    transitions = [(t.trigger, sources_of(workflow, t), t.dest, t.automatic) for t in workflow.transitions]
    return hashlib.blake2b(msgspec.json.encode((states, transitions)), digest_size=8).hexdigest()
