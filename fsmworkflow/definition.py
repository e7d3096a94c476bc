"""WorkflowDefinition: a workflow as data, in the vocabulary of the first FSM-Workflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from fsmworkflow.errors import nearest
from fsmworkflow.states import ENDS, State, Transition, WorkflowStep, place_problems
from fsmworkflow.workflow import Workflow

__all__ = ["WorkflowDefinition"]


class WorkflowDefinition:
    """A workflow as data, in the vocabulary of the first FSM-Workflow: steps by name, and the transitions between them.

    The first of `steps` is initial. Each entry is a step whose function the machine is given. All transitions that name
    their source are automatic; one with source "*" is taken only by a returned trigger. The last entry, and one without
    transitions, ends the run when it returns no trigger. Conditions about a missing field or another kind are False.
    """

    def __init__(
        self,
        name: str,
        steps: Sequence[str | WorkflowStep],
        transitions: Sequence[Transition] = (),
        *,
        data: Any = None,
    ) -> None:
        self.name = name
        self.steps = list(steps)
        self.transitions = list(transitions)
        self.data = data

    def __repr__(self) -> str:
        return f"<WorkflowDefinition {self.name!r}: {len(self.steps)} steps, {len(self.transitions)} transitions>"

    def build(self, steps: Mapping[str, Any], methods: object = None) -> Workflow:
        """The Workflow with these functions: `{name: WorkflowStep or function}`, actions being methods of `methods`.

        Raises DefinitionError, which lists every problem with its place.
        """
        workflow = Workflow(self.name, data=self.data)
        workflow.lenient = True
        own = {s.name: s for s in self.steps if isinstance(s, WorkflowStep)}
        names = [s.name if isinstance(s, WorkflowStep) else s for s in self.steps]
        led = self._sources()
        for number, name in enumerate(names):
            given = steps.get(name, own.get(name))
            step = replace(given, name=name) if isinstance(given, WorkflowStep) else WorkflowStep(name, given)
            ends = number == len(names) - 1 or name not in led
            workflow.add(State(name=name, kind="step", step=step, initial=number == 0, ends=ends))
        strangers = {name: nearest(name, names) for name in steps if name not in names}
        said = "is given a function, but is not in steps"
        workflow._problems += [f"step {name!r} {said}{hint}" for name, hint in strangers.items()]
        for transition in self.transitions:
            workflow.add(replace(transition, automatic=transition.source != "*"))
            _bind(workflow, transition, methods)
        return workflow.check()

    def _sources(self) -> set[str]:
        """The states with a transition of their own: "*" is everyone's, and leads nowhere by itself."""
        led: set[str] = set()
        for transition in self.transitions:
            if transition.source != "*" and not place_problems(transition):
                led.update([transition.source] if isinstance(transition.source, str) else transition.source)
        return led


def _bind(workflow: Workflow, transition: Transition, methods: object) -> None:
    """Find the method that an action names. Anything may be a method: it is looked up when the workflow is checked."""
    if isinstance(transition.after, str) and transition.after != ENDS:
        method = getattr(methods, transition.after, None)
        if callable(method):
            workflow.actions[transition.after] = method
