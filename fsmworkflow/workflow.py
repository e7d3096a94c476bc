"""Workflow: the definition of a state machine. Its states, each with perhaps a step, and its transitions.

Written with decorators, or as data with WorkflowDefinition. Checked once, then immutable.
"""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import msgspec

from fsmworkflow.codec import LIMIT, Codec
from fsmworkflow.conditions import cut
from fsmworkflow.errors import CodecError, DefinitionError, UnknownEvent
from fsmworkflow.records import ENDED
from fsmworkflow.retry import Retry

if TYPE_CHECKING:
    from pathlib import Path

    from fsmworkflow.records import Run
    from fsmworkflow.statechart import Chart

__all__ = ["State", "To", "Transition", "Workflow", "WorkflowDefinition", "WorkflowStep"]

Fn = TypeVar("Fn", bound=Callable[..., Any])
Outcome = Literal["done", "failed"]
Kind = Literal["step", "wait", "choice", "final", "state", "parallel", "region", "child", "each"]
OnFailure = Literal["first", "collect"]
Targets = Mapping[Any, Any]

UNDO = Retry(attempts=5)
"""How an undoing that raises is tried again, unless the step says otherwise."""

ENDS = "mark_completed"
"""The action name of the first FSM-Workflow that ends the run where the transition leads."""

WRITTEN = {"on": "on={'event': 'state'}", "after": "after={'3d': 'state'}", "on_error": "on_error={Error: 'state'}"}
"""How a state is led on from."""

COMPARED = 100_000
"""No name is sought that is near to an unknown one where the product of their lengths is above this: it takes long."""


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
    "mark_completed" ends the run at `dest`. `automatic=True` takes one with a trigger also unnamed. `delay` (seconds,
    or text as "24h") takes it when the source has been active for that long. `error` takes it when the step has failed
    for good with an error of that class, or, of a state without a step, an action done on the way there.
    `update(data, event)` changes the data in the same commit; `internal=True` does only that, and stays in the visit.
    """

    trigger: str | None = None
    source: str | Sequence[str] = "*"
    dest: str | None = None
    conditions: Any = None
    after: str | Callable[..., Any] | None = None
    automatic: bool | None = None
    delay: float | str | None = None
    update: Callable[[Any, Any], Any] | None = None
    internal: bool = False
    error: Any = None


class To(msgspec.Struct, frozen=True):
    """A target with more to say than its name: how it changes the data, and what is done `after` its commit.

    `update(data, event)` is a plain function that changes `data`, or returns what it shall be, in the same commit.
    `internal=True` stays in the state and its visit, so that its timers run on.
    """

    state: str | None
    update: Callable[[Any, Any], Any] | None = None
    internal: bool = False
    after: str | Callable[..., Any] | None = None


class Migration(msgspec.Struct, frozen=True):
    """How runs of one version become runs of a newer one: states by their new names, and a function of plain data."""

    version: int
    to: int
    states: Mapping[str, str] = {}
    data: Callable[[Any], Any] | None = None


class Children(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of another workflow that a state makes when it is entered: one, or one for each item of `over`."""

    workflow: Workflow
    data: Callable[..., Any] | None = None
    into: str | None = None
    over: Any = None
    concurrency: int = 1
    on_failure: OnFailure = "first"


class State(msgspec.Struct, frozen=True, kw_only=True):
    """One state as it was declared, by its dotted path. `ends` is a step that ends the run when it returns no trigger.

    `enter` and `exit` are actions, run after the commit that entered or left it. `compensate` undoes the step of a
    finished visit when the run fails for good, each time with the `undo` retry. `children` are the runs that it waits
    for.
    """

    name: str
    kind: Kind
    step: WorkflowStep | None = None
    initial: bool = False
    outcome: Outcome = "done"
    ends: bool = False
    enter: Callable[..., Any] | None = None
    exit: Callable[..., Any] | None = None
    compensate: Callable[..., Any] | None = None
    undo: Retry = UNDO
    children: Children | None = None


class Scope:
    """Where states are declared: a workflow, a state that holds others, or a region of a parallel state.

    Targets are looked up from where they are written outward: first beside the state, then around it. What all
    declarations share: `on` maps events to targets, `after` delays ("30m", "P3D", seconds) to targets, `then` is where
    it leads by itself, and a target is a state, a `To`, or a list of `(condition, state)` of which the first that holds
    is taken, closed, where wanted, by a plain state. `enter` and `exit` are actions, run after the commit.
    """

    def __init__(self, workflow: Workflow, path: str) -> None:
        self.workflow = workflow
        self.path = path

    @overload
    def step(self, name: Fn, /) -> Fn: ...

    @overload
    def step(
        self,
        name: str | None = None,
        *,
        initial: bool = False,
        then: Any = None,
        on: Targets | None = None,
        after: Targets | None = None,
        on_error: Targets | None = None,
        retry: Retry | None = None,
        timeout: float | str | None = None,
        compensate: Callable[..., Any] | None = None,
        undo: Retry = UNDO,
        enter: Callable[..., Any] | None = None,
        exit: Callable[..., Any] | None = None,
    ) -> Callable[[Fn], Fn]: ...

    def step(
        self,
        name: Any = None,
        *,
        initial: bool = False,
        then: Any = None,
        on: Targets | None = None,
        after: Targets | None = None,
        on_error: Targets | None = None,
        retry: Retry | None = None,
        timeout: float | str | None = None,
        compensate: Callable[..., Any] | None = None,
        undo: Retry = UNDO,
        enter: Callable[..., Any] | None = None,
        exit: Callable[..., Any] | None = None,
    ) -> Any:
        """Declare a state that does something: the decorated function, whose name it takes unless `name` is given.

        An event of `on` that comes while the step runs is decided at once, and cancels it where it leads out.
        `on_error` maps error classes to targets, taken when the step has failed for good.
        """

        def declare(fn: Fn) -> Fn:
            simple = name or str(getattr(fn, "__name__", ""))
            step = WorkflowStep(simple, fn, retry, timeout)
            hooks = {"enter": enter, "exit": exit, "compensate": compensate, "undo": undo}
            self._declare(simple, "step", initial, step=step, **hooks)
            self._lead(simple, then=then, on=on, after=after, on_error=on_error)
            return fn

        if callable(name):  # written without parentheses
            function, name = name, None
            return declare(function)
        return declare

    def wait(
        self,
        name: str,
        *,
        initial: bool = False,
        on: Targets | None = None,
        after: Targets | None = None,
        then: Any = None,
        enter: Callable[..., Any] | None = None,
        exit: Callable[..., Any] | None = None,
    ) -> None:
        """Declare a state that waits for an event or a time. `then` is asked on entry and after each move."""
        self._declare(name, "wait", initial, enter=enter, exit=exit)
        self._lead(name, then=then, on=on, after=after)

    def child(
        self,
        name: str,
        workflow: Workflow,
        *,
        data: Callable[[Any], Any] | None = None,
        into: str | None = None,
        initial: bool = False,
        then: Any = None,
        on: Targets | None = None,
        after: Targets | None = None,
        on_error: Targets | None = None,
        enter: Callable[..., Any] | None = None,
        exit: Callable[..., Any] | None = None,
    ) -> None:
        """Declare a state that runs another workflow, and waits for its end. It may be this workflow itself.

        `data(data)` gives its input from the run's data, else that is its input. What it ends with is written to the
        field `into`. Its key is `parent key/state/visit/0`. Where it fails, is cancelled or parked, `on_error` leads on
        with a ChildFailed, else the run fails; retried, it retries the child. Leaving the state cancels the child, and
        nobody waits for its undoing.
        """
        children = Children(workflow=workflow, data=data, into=into)
        self._declare(name, "child", initial, children=children, enter=enter, exit=exit)
        self._lead(name, then=then, on=on, after=after, on_error=on_error)

    def each(
        self,
        name: str,
        workflow: Workflow,
        *,
        over: Any,
        data: Callable[[Any, Any, int], Any] | None = None,
        into: str | None = None,
        concurrency: int = 8,
        on_failure: OnFailure = "first",
        initial: bool = False,
        then: Any = None,
        on: Targets | None = None,
        after: Targets | None = None,
        on_error: Targets | None = None,
        enter: Callable[..., Any] | None = None,
        exit: Callable[..., Any] | None = None,
    ) -> None:
        """Declare a state that runs another workflow for each item of a list, `concurrency` at a time, and joins them.

        `over` is `field("images")`, its path, or `fn(data)`. `data(data, item, index)` gives each its input, else that
        is `{"item": item, "index": index}`. Their final data are written to the field `into`, in the items' order.
        The first failure leads on as in `child`, and stops the rest: they are cancelled where the state is left, and
        keep their place where the run fails. With `on_failure="collect"` all come to their end, and `into` is a list of
        `{"status": "done", "data": ...}` and `{"status": "failed", "error": {"type": ..., "message": ...}}`. All are
        made when the state is entered; their delays and deadline run from then on.
        """
        children = Children(
            workflow=workflow, data=data, into=into, over=over, concurrency=concurrency, on_failure=on_failure
        )
        self._declare(name, "each", initial, children=children, enter=enter, exit=exit)
        self._lead(name, then=then, on=on, after=after, on_error=on_error)

    def choice(self, name: str, then: Any, *, initial: bool = False) -> None:
        """Declare a state that only chooses where to go on. Where no condition holds, the run fails."""
        self._declare(name, "choice", initial)
        self._lead(name, then=then)

    def final(self, *names: str, outcome: Outcome = "done") -> None:
        """Declare states in which the run, or the state around them, ends: as done, or as a business failure."""
        for name in names:
            self._declare(name, "final", False, outcome=outcome)

    def state(
        self,
        name: str,
        *,
        initial: bool = False,
        on: Targets | None = None,
        after: Targets | None = None,
        then: Any = None,
        enter: Callable[..., Any] | None = None,
        exit: Callable[..., Any] | None = None,
    ) -> Scope:
        """Declare a state that holds others, in what is returned. Its transitions apply inside it.

        `then` is where it leads when one of its final states is entered.
        """
        return self._inner(name, "state", initial, on, after, then, enter, exit)

    def parallel(
        self,
        name: str,
        *,
        initial: bool = False,
        on: Targets | None = None,
        after: Targets | None = None,
        then: Any = None,
        enter: Callable[..., Any] | None = None,
        exit: Callable[..., Any] | None = None,
    ) -> Parallel:
        """Declare a state whose regions are active together. `then` is where it leads when all are in a final state."""
        inner = self._inner(name, "parallel", initial, on, after, then, enter, exit)
        return Parallel(self.workflow, inner.path)

    def _inner(
        self, name: str, kind: Kind, initial: bool, on: Any, after: Any, then: Any, enter: Any, exit: Any
    ) -> Scope:
        self._declare(name, kind, initial, enter=enter, exit=exit)
        self._lead(name, then=then, on=on, after=after)
        return Scope(self.workflow, self._full(name))

    def _full(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def _declare(self, name: str, kind: Kind, initial: bool, **parts: Any) -> None:
        workflow = self.workflow
        workflow._problems += name_problem(name, "state name", dots=False)
        workflow.add(State(name=self._full(str(name)), kind=kind, initial=initial, **parts))

    def _lead(self, name: str, *, then: Any, on: Any = None, after: Any = None, on_error: Any = None) -> None:
        source = self._full(str(name))
        ways: list[tuple[str, dict[str, Any], Any]] = [("then", {}, then)]
        for what, named, given in (("on", "trigger", on), ("after", "delay", after), ("on_error", "error", on_error)):
            if isinstance(given, Mapping):
                ways += [(f"{what} {key!r}", {named: key}, to) for key, to in given.items()]
            elif given is not None:
                told = f"state {source!r}, {what}: write {WRITTEN[what]}, not {what}={cut(given)}"
                self.workflow._problems.append(told)
        for place, by, targets in ways:
            for guard, to in self._targets(f"state {source!r}, {place}", targets):
                dest = source if to.internal else to.state
                self.workflow.add(
                    Transition(source=source, dest=dest, conditions=guard, after=to.after, update=to.update,
                               internal=to.internal, **by)
                )  # fmt: skip

    def _targets(self, place: str, targets: Any) -> Iterable[tuple[Any, To]]:
        entries = targets if isinstance(targets, list) else [] if targets is None else [targets]
        for number, entry in enumerate(entries):
            guard, target = entry if isinstance(entry, tuple) and len(entry) == 2 else (None, entry)
            if guard is None and number < len(entries) - 1:
                self.workflow._problems.append(f"{place}: what follows {entry!r} can never be taken")
            if isinstance(target, (str, To)):
                yield guard, target if isinstance(target, To) else To(target)
            else:
                self.workflow._problems.append(f"{place}: {cut(entry)} is not a state or (condition, state)")


class Parallel:
    """A parallel state: declare its regions, and in each of them states of its own."""

    def __init__(self, workflow: Workflow, path: str) -> None:
        self.workflow = workflow
        self.path = path

    def region(self, name: str) -> Scope:
        """Declare a region; it is done when one of its final states is entered."""
        scope = Scope(self.workflow, f"{self.path}.{name}")
        self.workflow._problems += name_problem(name, "region name", dots=False)
        self.workflow.add(State(name=scope.path, kind="region"))
        return scope


class Workflow(Scope):
    """A state machine and what its states do.

        article = Workflow("article")

        @article.step(initial=True, then="published")
        async def draft(ctx): ...

        article.final("published")

    `data` is the type of the run's data (a dataclass, msgspec.Struct, TypedDict or pydantic model), else a plain dict;
    `limit` the largest JSON text of it, in bytes; `merge` how two changes of one key become one, `{key: fn(old, new)}`.
    `payload="merge"` writes the payload of every event that is taken into the data. `deadline` (seconds, or text as
    "2d") fails the run that has not ended by then. `on_failure="park"` parks a run before its undoing begins. `keep`
    ("30d", or {"done": "30d", "failed": "90d"}) is how long a run is kept after its end; else it is for ever.
    `concurrency` is how many runs of it may be driven at once, over all processes; those that rest do not count.
    `endless=True` is for what only answers events, as a door: no end need be reached from a state that waits for one.
    """

    def __init__(
        self,
        name: str,
        *,
        data: Any = None,
        version: int = 1,
        merge: Mapping[str, Callable[[Any, Any], Any]] | None = None,
        payload: Literal["merge"] | None = None,
        deadline: float | str | None = None,
        on_failure: Literal["park"] | None = None,
        keep: float | str | Mapping[str, float | str] | None = None,
        concurrency: int | None = None,
        limit: int = LIMIT,
        endless: bool = False,
    ) -> None:
        super().__init__(self, "")
        self.name = name
        self.version = version
        self.merge = dict(merge or {})
        self.payload = payload
        self.deadline = deadline
        self.on_failure = on_failure
        self.keep = _kept(keep)
        self.concurrency = concurrency
        self.endless = endless
        self._problems: list[str] = []
        self.codec = self._codec(data, limit)
        self.states: dict[str, State] = {}
        self.transitions: list[Transition] = []
        self.migrations: list[Migration] = []
        self.lenient = False
        self.actions: dict[str, Callable[..., Any]] = {}
        self.code: dict[str, Any] = {}  # by the names that a definition gave it
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

    def add(self, *parts: State | Transition) -> None:
        """Add states and transitions that were made apart. A state's name is its dotted path."""
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
        """Declare a transition that is taken when the event `trigger` comes, or a step of `source` returns it."""
        self.add(Transition(trigger, source, dest, conditions, after))

    def migrate(
        self,
        version: int,
        *,
        to: int,
        states: Mapping[str, str] | None = None,
        data: Callable[[Any], Any] | None = None,
    ) -> Callable[[Fn], Fn]:
        """Say how runs of an older version become runs of a newer one; between versions of which none is said, as is.

        `states` maps dotted paths: what is in a state goes with it, and so do the visit, its attempts, timers and
        remembered calls. `data`, or the function that this decorates, is given the data as a plain dict, and changes it
        or returns what it shall be. It must do nothing else: it is called whenever such a run is looked at, and what it
        made is written with the run's next move.
        """
        if self._checked:
            raise DefinitionError(self.name, ["it was checked, and is immutable since"])
        self.migrations.append(Migration(version, to, dict(states or {}), data))

        def declare(fn: Fn) -> Fn:
            place = next(i for i, one in enumerate(self.migrations) if (one.version, one.to) == (version, to))
            self.migrations[place] = msgspec.structs.replace(self.migrations[place], data=fn)
            return fn

        return declare

    @classmethod
    def load(cls, path: str | Path, *, functions: Targets | None = None, modules: Iterable[str] = ()) -> Workflow:
        """The workflow that a file describes, in YAML (`.yaml`, `.yml`) or JSON (`.json`), checked. See docs/files.md.

        Code is named in the file, never written: `functions` are functions and classes by their names, and
        `package.module:name` is looked up in those `modules` alone that are named here. Raises DefinitionError, which
        lists the problems, each with file, line, column and path; OSError; FSMWorkflowError where PyYAML is missing.
        """
        from fsmworkflow.config import Source, built  # as below: a program without files need not pay for it

        return built(Source.of_file(path), functions, modules)

    @classmethod
    def from_dict(cls, config: Targets, *, functions: Targets | None = None, modules: Iterable[str] = ()) -> Workflow:
        """The workflow that plain values describe, checked: see `load`. Raises DefinitionError, with paths."""
        from fsmworkflow.config import Source, built

        return built(Source.of(config), functions, modules)

    @classmethod
    def from_transitions(
        cls,
        states: Any,
        transitions: Any,
        *,
        initial: Any,
        auto_transitions: bool = True,
        name: str = "machine",
        functions: Targets | None = None,
    ) -> Workflow:
        """The workflow of a machine of the transitions library, from the `states` and `transitions` that it is given.

        Mapped: names, Enums, State objects and mappings with name, on_enter, on_exit, on_final, final, initial,
        children or states, parallel, transitions, remap, timeout with a trigger in on_timeout, tags, which say nothing;
        trigger, source (also a list and "*"), dest (also "=" and None, which is internal), conditions, unless, after.
        Names of nested states have _ between them, as there. Functions are given the context, `after` and on_enter run
        after the commit. `auto_transitions=False` leaves out the triggers `to_<state>`; then a state that nothing leads
        out of ends the run. A parent entered without a child is its child `_`. Refused by name: before, prepare,
        ignore_invalid_triggers, and an on_final of what holds others. Raises DefinitionError.
        """
        from fsmworkflow.config import Source, built, translated

        definition, named = translated(name, states, transitions, initial, functions or {}, auto_transitions)
        return built(Source.of(definition), named, ())

    def to_dict(self) -> dict[str, Any]:
        """The whole as plain values, code by names, of which `from_dict` makes the same workflow again.

        Raises DefinitionError where the check fails, or where a condition has no plain form.
        """
        from fsmworkflow.config import written

        return written(self)[0]

    def check(self) -> Workflow:
        """Check the whole once, and make it immutable. Raises DefinitionError, which lists every problem."""
        if not self._checked:
            from fsmworkflow.problems import problems_of  # which asks this file for its words

            unchecked = [workflow for workflow in self.family if not workflow._checked]
            for workflow in unchecked:
                if problems := [*workflow._problems, *problems_of(workflow)]:
                    raise DefinitionError(workflow.name, problems)
            for workflow in unchecked:
                workflow._close()
        return self

    @property
    def family(self) -> list[Workflow]:
        """This workflow and those of its children, and of theirs, of which it may be one itself."""
        found, todo = {id(self): self}, [self]
        while todo:
            new = {id(other): other for other in todo.pop().others if id(other) not in found}
            found |= new
            todo += new.values()
        return list(found.values())

    def _close(self) -> None:
        """It is well formed, and immutable from now on."""
        if not self._checked:
            self.transitions = [resolved(self, t) for t in self.transitions]
            self._checked = True
            self.actions.update(_actions(self))
            _ = self.chart

    @cached_property
    def families(self) -> dict[str, Children]:
        """The states that make runs of other workflows and wait for them."""
        return {s.name: s.children for s in self.states.values() if s.children is not None}

    @property
    def others(self) -> list[Workflow]:
        """The workflows of its children."""
        made: list[Any] = [state.children.workflow for state in self.states.values() if state.children is not None]
        return [workflow for workflow in made if isinstance(workflow, Workflow)]

    @cached_property
    def below(self) -> dict[str, Workflow]:
        """The workflows of its children and of theirs, on every level, by their names."""
        return {other.name: other for workflow in self.family for other in workflow.others}

    @cached_property
    def chart(self) -> Chart:
        """The table of transitions, read out once. Only of a workflow that was checked."""
        from fsmworkflow.statechart import Chart  # imports transitions, which a program without a run need not pay for

        return Chart(self)

    @cached_property
    def finals(self) -> frozenset[str]:
        """The final states, on every level."""
        return frozenset(state.name for state in self.states.values() if state.kind == "final")

    @cached_property
    def initial(self) -> str:
        """The state in which every run begins."""
        return next(s.name for s in self.states.values() if s.initial and "." not in s.name)

    def at(self, state: str | Iterable[str], data: Any = None, *, key: str = "", since: float | None = None) -> Run:
        """See `Run.at`."""
        from fsmworkflow.beginning import bare  # which asks this file for its words

        self.check()
        known = isinstance(state, str) and state in self.states
        leaves = [str(state)] if known else state.split(", ") if isinstance(state, str) else list(state)
        gone = [f"there is no state {leaf!r}{nearest(leaf, self.states)}" for leaf in leaves if leaf not in self.states]
        apart = None if gone or not leaves else self.chart.apart(self.chart.entered(leaves))
        if gone or apart or not leaves:
            raise DefinitionError(self.name, gone or [f"{apart} are never active together" if apart else "no state"])
        return bare(self, leaves, self.codec.start(data), key, since)

    def accepts(self, run: Run) -> list[str]:
        """The events that the run's active states accept, whatever their conditions, in the order of the document."""
        chart = self.check().chart
        return [t for t in chart.triggers if any(chart.named(state, t) for state in run.active)]


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
            if transition.source != "*" and not place_problems(transition):
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


def _kept(keep: Any) -> dict[str, Any]:
    """How long runs of each status are kept, those of one that is not named for ever."""
    return dict(keep) if isinstance(keep, Mapping) else {} if keep is None else dict.fromkeys(sorted(ENDED), keep)


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for messages: the known name nearest to an unknown one, or nothing."""
    names = list(names)
    if len(name) * sum(map(len, names)) > COMPARED:
        return ""
    found = difflib.get_close_matches(name, names, 1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def known_event(workflow: Workflow, event: str) -> None:
    """Raise UnknownEvent unless a transition of the workflow has this trigger."""
    triggers = workflow.check().chart.triggers
    if event not in triggers:
        raise UnknownEvent(f"workflow {workflow.name!r} has no event {event!r}{nearest(str(event), triggers)}")


def action_name(after: str | Callable[..., Any]) -> str:
    """The name under which an action stands on the row, stable over restarts."""
    return after if isinstance(after, str) else str(getattr(after, "__qualname__", type(after).__qualname__))


def _actions(workflow: Workflow) -> dict[str, Callable[..., Any]]:
    hooks = [hook for state in workflow.states.values() for hook in (state.enter, state.exit)]
    return {action_name(a): a for a in [*(t.after for t in workflow.transitions), *hooks] if callable(a)}


def resolve(states: Iterable[str], source: str, dest: str) -> str | None:
    """The full path of a target as it was written beside `source`: there, then around it, then inside it."""
    scope = source
    while scope:
        scope = scope.rpartition(".")[0]
        path = f"{scope}.{dest}" if scope else dest
        if path in states:
            return path
    return f"{source}.{dest}" if f"{source}.{dest}" in states else None


def resolved(workflow: Workflow, t: Transition) -> Transition:
    """The transition with the full path of its target."""
    source = t.source if isinstance(t.source, str) else t.source[0]
    return t if t.dest is None else msgspec.structs.replace(t, dest=resolve(workflow.states, source, t.dest))


def inside_of(workflow: Workflow) -> dict[str, list[State]]:
    """The states by what holds them, in their order: those of the workflow itself under ""."""
    inside: dict[str, list[State]] = {"": []}
    for state in workflow.states.values():
        inside.setdefault(str(state.name).rpartition(".")[0], []).append(state)
    return inside


def sources_of(workflow: Workflow, t: Transition) -> list[str]:
    """The states that a transition leads out of: "*" stands for all that are not final."""
    if t.source == "*":
        return [s.name for s in workflow.states.values() if s.kind != "final"]
    return [t.source] if isinstance(t.source, str) else list(t.source)


def id_of(event_id: str | None) -> str:
    """The id of an event: the one that is given, else a new one. Raises CodecError for one that cannot be kept."""
    if event_id is None:
        return uuid.uuid4().hex
    if problems := name_problem(event_id, "the id"):
        raise CodecError("event_id", problems[0])
    return event_id


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


def place_problems(t: Transition) -> list[str]:
    """What is wrong with the kinds of a transition's source and dest."""
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
