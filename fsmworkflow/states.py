"""States and transitions as they were declared, and where each stands among the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from fsmworkflow.retry import Retry

if TYPE_CHECKING:
    from fsmworkflow.workflow import Workflow

__all__ = [
    "ENDS", "UNDO", "Children", "Kind", "Migration", "OnFailure", "Outcome", "State", "To", "Transition",
    "WorkflowStep", "action_name", "inside_of", "place_problems", "resolve", "sources_of",
]  # fmt: skip

Outcome = Literal["done", "failed"]
Kind = Literal["step", "wait", "choice", "final", "state", "parallel", "region", "child", "each"]
OnFailure = Literal["first", "collect"]

UNDO = Retry(attempts=5)
"""How an undoing that raises is tried again, unless the step says otherwise."""

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

    workflow: Any  # a Workflow, whose file imports this one
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


def action_name(after: str | Callable[..., Any]) -> str:
    """The name under which an action stands on the row, stable over restarts."""
    return after if isinstance(after, str) else str(getattr(after, "__qualname__", type(after).__qualname__))


def resolve(states: Iterable[str], source: str, dest: str) -> str | None:
    """The full path of a target as it was written beside `source`: there, then around it, then inside it."""
    scope = source
    while scope:
        scope = scope.rpartition(".")[0]
        path = f"{scope}.{dest}" if scope else dest
        if path in states:
            return path
    return f"{source}.{dest}" if f"{source}.{dest}" in states else None


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
