"""Scope: where states are declared, a method for each kind of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

from fsmworkflow.errors import cut, name_problem
from fsmworkflow.retry import Retry
from fsmworkflow.states import UNDO, Children, Kind, OnFailure, Outcome, State, To, Transition, WorkflowStep

if TYPE_CHECKING:
    from fsmworkflow.workflow import Workflow

__all__ = ["Parallel", "Scope", "Targets"]

Fn = TypeVar("Fn", bound=Callable[..., Any])
Targets = Mapping[Any, Any]

WRITTEN = {"on": "on={'event': 'state'}", "after": "after={'3d': 'state'}", "on_error": "on_error={Error: 'state'}"}
"""How a state is led on from."""


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
