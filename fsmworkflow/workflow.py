"""Workflow: the definition of a state machine. Its states, each with perhaps a step, and its transitions.

Written with decorators, or as data with WorkflowDefinition. Checked once, then immutable.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import msgspec

from fsmworkflow.codec import LIMIT, Codec
from fsmworkflow.conditions import Guard, as_guard
from fsmworkflow.errors import DefinitionError
from fsmworkflow.retry import Retry, seconds

if TYPE_CHECKING:
    from fsmworkflow.statechart import Chart

__all__ = ["State", "To", "Transition", "Workflow", "WorkflowDefinition", "WorkflowStep"]

Fn = TypeVar("Fn", bound=Callable[..., Any])
Outcome = Literal["done", "failed"]
Kind = Literal["step", "choice", "final"]

ENDS = "mark_completed"
"""The action name of the first FSM-Workflow that ends the run where the transition leads."""


class WorkflowStep(msgspec.Struct, frozen=True):
    """What a state does: a function, sync (run in a thread) or async, that is given the context.

    It may return nothing, the trigger to take, the context, or (context, trigger). `retry` says what follows an error;
    `timeout` (seconds, or text as "5m") how long one attempt may take before StepTimeout.
    """

    name: str
    execute: Callable[..., Any] | None = None
    retry: Retry | None = None
    timeout: float | str | None = None


class Transition(msgspec.Struct, frozen=True):
    """A way from one or several states to another: by its trigger where it has one, else by itself when a step ends.

    `source="*"` stands for every state. `dest=None` ends the run where it is, as done. `after` is an action, run after
    the commit, at least once: `fn(ctx)` with read-only data, or in a WorkflowDefinition the name of a machine's method;
    "mark_completed" ends the run at `dest`. `automatic=True` takes one with a trigger also unnamed.
    """

    trigger: str | None = None
    source: str | Sequence[str] = "*"
    dest: str | None = None
    conditions: Any = None
    after: str | Callable[..., Any] | None = None
    automatic: bool | None = None


class To(msgspec.Struct, frozen=True):
    """A target with more to say than its name: what to do `after` the commit that enters it."""

    state: str | None
    after: str | Callable[..., Any] | None = None


class State(msgspec.Struct, frozen=True, kw_only=True):
    """One state as it was declared. `ends` is a step that ends the run when it returns no trigger."""

    name: str
    kind: Kind
    step: WorkflowStep | None = None
    initial: bool = False
    outcome: Outcome = "done"
    ends: bool = False


class Workflow:
    """A state machine and what its states do.

        article = Workflow("article")

        @article.step(initial=True, then="published")
        async def draft(ctx): ...

        article.final("published")

    `data` is the type of the run's data (a dataclass, msgspec.Struct, TypedDict or pydantic model), else a plain dict;
    `limit` the largest JSON text of it, in bytes; `merge` how two changes of one key become one, `{key: fn(old, new)}`.
    """

    def __init__(
        self,
        name: str,
        *,
        data: Any = None,
        version: int = 1,
        merge: Mapping[str, Callable[[Any, Any], Any]] | None = None,
        limit: int = LIMIT,
    ) -> None:
        self.name = name
        self.version = version
        self.merge = dict(merge or {})
        self._problems: list[str] = []
        self.codec = self._codec(data, limit)
        self.states: dict[str, State] = {}
        self.transitions: list[Transition] = []
        self.lenient = False
        self.actions: dict[str, Callable[..., Any]] = {}
        self.asynchronous: dict[str, bool] = {}  # which steps are coroutine functions, as they are met
        self._checked = False

    def __repr__(self) -> str:
        return f"<Workflow {self.name!r}: {len(self.states)} states, {len(self.transitions)} transitions>"

    def _codec(self, data: Any, limit: int) -> Codec:
        try:
            return Codec(data, limit=limit)
        except (TypeError, NameError) as error:  # a name in an annotation may be unknown
            self._problems.append(f"data: {error}")
            return Codec(limit=limit)

    # -- declaring --------------------------------------------------------------------------------------------------

    def step(
        self,
        name: str | None = None,
        *,
        initial: bool = False,
        then: Any = None,
        retry: Retry | None = None,
        timeout: float | str | None = None,
    ) -> Callable[[Fn], Fn]:
        """Declare a state that does something: the decorated function, whose name it takes unless `name` is given.

        `then` is where it leads when it ends: a state, or a list of `(condition, state)` of which the first that
        holds is taken, closed, where wanted, by a plain state.
        """

        def declare(fn: Fn) -> Fn:
            state = name or str(getattr(fn, "__name__", ""))
            self.add(State(name=state, kind="step", step=WorkflowStep(state, fn, retry, timeout), initial=initial))
            self._lead(state, then)
            return fn

        return declare

    def choice(self, name: str, then: Any, *, initial: bool = False) -> None:
        """Declare a state that only chooses where to go on. Where no condition holds, the run fails."""
        self.add(State(name=name, kind="choice", initial=initial))
        self._lead(name, then)

    def final(self, *names: str, outcome: Outcome = "done") -> None:
        """Declare states in which the run ends: as done, or with `outcome="failed"` as a business failure."""
        for name in names:
            self.add(State(name=name, kind="final", outcome=outcome))

    def add(self, *parts: State | Transition) -> None:
        """Add states and transitions that were made apart."""
        if self._checked:
            raise DefinitionError(self.name, ["it was checked, and is immutable since"])
        for part in parts:
            if isinstance(part, Transition):
                self.transitions.append(part)
            elif part.name in self.states:
                self._problems.append(f"state {part.name!r} is declared twice")
            else:
                self.states[part.name] = part

    def transition(
        self, trigger: str, source: str | Sequence[str], dest: str | None, conditions: Any = None, after: Any = None
    ) -> None:
        """Declare a transition that is taken when a step of `source` returns `trigger`."""
        self.add(Transition(trigger, source, dest, conditions, after))

    def _lead(self, source: str, then: Any) -> None:
        for guard, to in self._targets(source, then):
            self.add(Transition(None, source, to.state, guard, to.after))

    def _targets(self, source: str, then: Any) -> Iterable[tuple[Any, To]]:
        entries = then if isinstance(then, list) else [] if then is None else [then]
        for number, entry in enumerate(entries):
            guard, target = entry if isinstance(entry, tuple) and len(entry) == 2 else (None, entry)
            if guard is None and number < len(entries) - 1:
                self._problems.append(f"state {source!r}, then: what follows {entry!r} can never be taken")
            if isinstance(target, (str, To)):
                yield guard, target if isinstance(target, To) else To(target)
            else:
                self._problems.append(f"state {source!r}, then: {entry!r} is not a state or (condition, state)")

    # -- checked ----------------------------------------------------------------------------------------------------

    def check(self) -> Workflow:
        """Check the whole once, and make it immutable. Raises DefinitionError, which lists every problem."""
        if not self._checked:
            problems = [*self._problems, *_problems(self)]
            if problems:
                raise DefinitionError(self.name, problems)
            self._checked = True
            self.actions.update(_actions(self))
            _ = self.chart
        return self

    @cached_property
    def chart(self) -> Chart:
        """The table of transitions, read out once. Only of a workflow that was checked."""
        from fsmworkflow.statechart import Chart  # imports transitions, which a program without a run need not pay for

        return Chart(self)

    @cached_property
    def initial(self) -> str:
        """The state in which every run begins."""
        return next(state.name for state in self.states.values() if state.initial)


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
        led = self._sources(names)
        for number, name in enumerate(names):
            step = _as_step(name, steps.get(name, own.get(name)))
            ends = number == len(names) - 1 or name not in led
            workflow.add(State(name=name, kind="step", step=step, initial=number == 0, ends=ends))
        for name in steps:
            if name not in names:
                workflow._problems.append(
                    f"step {name!r} is given a function, but is not in steps{nearest(name, names)}"
                )
        for transition in self.transitions:
            workflow.add(msgspec.structs.replace(transition, automatic=transition.source != "*"))
            _bind(workflow, transition, methods)
        return workflow.check()

    def _sources(self, names: list[str]) -> set[str]:
        """The states with a transition of their own: "*" is everyone's, and leads nowhere by itself."""
        led: set[str] = set()
        for transition in self.transitions:
            if transition.source != "*" and not _place_problems(transition):
                led.update([transition.source] if isinstance(transition.source, str) else transition.source)
        return led


def _as_step(name: str, given: Any) -> WorkflowStep:
    if isinstance(given, WorkflowStep):
        return msgspec.structs.replace(given, name=name)
    return WorkflowStep(name, given)


def _bind(workflow: Workflow, transition: Transition, methods: object) -> None:
    """Find the method that an action names. Anything may be a method: it is looked up when the workflow is checked."""
    if isinstance(transition.after, str) and transition.after != ENDS:
        method = getattr(methods, transition.after, None)
        if callable(method):
            workflow.actions[transition.after] = method


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for messages: the known name nearest to an unknown one, or nothing."""
    names = list(names)
    if len(name) > 200 or len(names) > 200:  # so that a thousand mistakes are told in a bearable time
        return ""
    found = difflib.get_close_matches(name, names, 1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def action_name(after: str | Callable[..., Any]) -> str:
    """The name under which an action stands on the row, stable over restarts."""
    return after if isinstance(after, str) else str(getattr(after, "__qualname__", type(after).__qualname__))


def _actions(workflow: Workflow) -> dict[str, Callable[..., Any]]:
    return {action_name(t.after): t.after for t in workflow.transitions if callable(t.after)}


# -- the check ------------------------------------------------------------------------------------------------------


def name_problem(name: Any, what: str, *, dots: bool = True) -> list[str]:
    """What is wrong with a name of a workflow, state, trigger or key: nothing, or one sentence."""
    if not name or not isinstance(name, str):
        return [f"{what} {name!r} must be text that is not empty"]
    if len(name) > 200:
        return [f"{what} {name[:30]!r}... is {len(name)} characters long; 200 are allowed"]
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in name):
        return [f"{what} {name!r} holds control characters"]
    if not dots and "." in name:
        return [f"{what} {name!r} holds a dot, which separates nested states"]
    return []


def _problems(workflow: Workflow) -> list[str]:
    problems = name_problem(workflow.name, "workflow name")
    for state in workflow.states.values():
        problems += name_problem(state.name, "state name", dots=False) + _state_problems(state)
    initial = [s.name for s in workflow.states.values() if s.initial]
    if len(initial) != 1:
        problems.append(f"two initial states: {', '.join(map(repr, initial))}" if initial else "no state is initial")
    unknown = [p for t in workflow.transitions for p in _transition_problems(workflow, t)]
    unknown += _action_problems(workflow)
    if problems or unknown:
        return problems + unknown
    return _path_problems(workflow)


def _state_problems(state: State) -> list[str]:
    where, step = f"state {state.name!r}", state.step
    if state.outcome not in get_args(Outcome):
        return [f"{where}: its outcome {state.outcome!r} must be one of {', '.join(get_args(Outcome))}"]
    if step is None:
        return []
    problems = _function_problems(where, step.execute)
    if step.timeout is not None:
        try:
            if seconds(step.timeout) <= 0:
                problems.append(f"{where}: its timeout {step.timeout!r} must be above zero")
        except (ValueError, TypeError) as error:
            problems.append(f"{where}, timeout: {error}")
    retry: Any = step.retry  # it may come from a file
    if retry is not None:
        found = retry.problems() if isinstance(retry, Retry) else [f"{retry!r} is no Retry"]
        problems += [f"{where}, retry: {problem}" for problem in found]
    return problems


def _function_problems(where: str, function: Any) -> list[str]:
    if not callable(function):
        return [f"{where} has no function: give its step one"]
    if inspect.isclass(function):
        return [f"{where}: its function is a class"]
    try:
        inspect.signature(function).bind(None)
    except ValueError:  # written in C, without a signature to read
        return []
    except TypeError as error:
        return [f"{where}: its function cannot be called with one argument, the context: {error}"]
    return []


def _action_problems(workflow: Workflow) -> list[str]:
    """Two actions of one name would be taken for each other, as the row holds only the name."""
    known = dict(workflow.actions)
    return [
        f"transition {t.trigger or 'then'!r} of {t.source!r}: there is another action {action_name(t.after)!r}: "
        "give one of them a name of its own, with def"
        for t in workflow.transitions
        if callable(t.after) and known.setdefault(action_name(t.after), t.after) != t.after
    ]


def _place_problems(t: Transition) -> list[str]:
    problems = []
    sources: Any = [t.source] if isinstance(t.source, str) else t.source
    if not isinstance(sources, (list, tuple)) or not sources or not all(isinstance(s, str) for s in sources):
        problems.append(f"its source {t.source!r} must be a state, several in a list, or '*'")
    elif "*" in sources and len(sources) > 1:
        problems.append("its source '*' stands for every state, so no other stands beside it")
    dest: Any = t.dest
    if dest is not None and not isinstance(dest, str):
        problems.append(f"its dest {dest!r} must be one state, or None")
    return problems


def _transition_problems(workflow: Workflow, t: Transition) -> list[str]:
    where = f"transition {t.trigger or 'then'!r} of {t.source!r}"
    problems = _place_problems(t)
    if problems:
        return [f"{where}: {p}" for p in problems]
    sources = [t.source] if isinstance(t.source, str) else list(t.source)
    for name in dict.fromkeys([*(s for s in sources if s != "*"), *([] if t.dest is None else [t.dest])]):
        if name not in workflow.states:
            problems.append(f"{where}: there is no state {name!r}{nearest(name, workflow.states)}")
        elif name in sources and workflow.states[name].kind == "final":
            problems.append(f"{where}: {name!r} is final, nothing leads out of it")
    trigger: Any = t.trigger
    if trigger is not None:
        problems += [f"{where}: {p}" for p in name_problem(trigger, "trigger")]
        if isinstance(trigger, str) and trigger.startswith("$"):
            problems.append(f"{where}: trigger {t.trigger!r} begins with $, which is the engine's own")
    if isinstance(t.after, str) and t.after != ENDS and t.after not in workflow.actions:
        problems.append(f"{where}: there is no action {t.after!r}: give a function, or a method of the machine")
    return problems + [f"{where}: {p}" for p in _guard_problems(t.conditions, workflow.lenient)]


def _guard_problems(conditions: Any, lenient: bool) -> list[str]:
    try:
        guard: Guard | None = as_guard(conditions) if conditions not in (None, [], ()) else None
    except (TypeError, ValueError) as error:
        return [str(error)]
    return [] if guard is None else guard.problems(lenient)


def _path_problems(workflow: Workflow) -> list[str]:
    """States that cannot be reached, and states from which no end can be reached."""
    ahead: dict[str, set[str]] = {name: set() for name in workflow.states}
    ends = {s.name for s in workflow.states.values() if s.kind == "final" or s.ends}
    for t in workflow.transitions:
        for source in sources_of(workflow, t):
            if t.dest is None or t.after == ENDS:
                ends.add(source)
            if t.dest is not None:
                ahead[source].add(t.dest)
    reached = _closure({workflow.initial}, ahead)
    back: dict[str, set[str]] = {name: set() for name in workflow.states}
    for source, dests in ahead.items():
        for dest in dests:
            back[dest].add(source)
    ending = _closure(ends, back)
    return [f"state {name!r} cannot be reached" for name in workflow.states if name not in reached] + [
        f"state {name!r} leads to no end: add a final state, or dest=None"
        for name in workflow.states
        if name not in ending
    ]


def sources_of(workflow: Workflow, t: Transition) -> list[str]:
    """The states that a transition leads out of: "*" stands for all that are not final."""
    if t.source == "*":
        return [s.name for s in workflow.states.values() if s.kind != "final"]
    return [t.source] if isinstance(t.source, str) else list(t.source)


def _closure(start: set[str], edges: Mapping[str, set[str]]) -> set[str]:
    seen, todo = set(start), list(start)
    while todo:
        for name in edges[todo.pop()] - seen:
            seen.add(name)
            todo.append(name)
    return seen
