"""Workflow: the definition of a state machine. Its states, each with perhaps a step, and its transitions.

Written with decorators, as data with WorkflowDefinition, or read from a file. Checked once, then immutable.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from fsmworkflow.codec import LIMIT, Codec
from fsmworkflow.errors import CodecError, DefinitionError, UnknownEvent, name_problem, nearest
from fsmworkflow.records import ENDED
from fsmworkflow.scope import Scope, Targets
from fsmworkflow.states import Children, Migration, State, To, Transition, WorkflowStep, action_name, resolve

if TYPE_CHECKING:
    from pathlib import Path

    from fsmworkflow.records import Run
    from fsmworkflow.statechart import Chart

__all__ = ["State", "To", "Transition", "Workflow", "WorkflowStep", "id_of", "known_event"]

Fn = TypeVar("Fn", bound=Callable[..., Any])


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
        made = [state.children for state in self.states.values()]
        return [one.workflow for one in made if one is not None and isinstance(one.workflow, Workflow)]

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


def _kept(keep: Any) -> dict[str, Any]:
    """How long runs of each status are kept, those of one that is not named for ever."""
    return dict(keep) if isinstance(keep, Mapping) else {} if keep is None else dict.fromkeys(sorted(ENDED), keep)


def known_event(workflow: Workflow, event: str) -> None:
    """Raise UnknownEvent unless a transition of the workflow has this trigger."""
    triggers = workflow.check().chart.triggers
    if event not in triggers:
        raise UnknownEvent(f"workflow {workflow.name!r} has no event {event!r}{nearest(str(event), triggers)}")


def id_of(event_id: str | None) -> str:
    """An event's id: that which is given, else a new one, which may be a key too. Raises CodecError for a bad one."""
    if event_id is None:
        return uuid.uuid4().hex
    if problems := name_problem(event_id, "the id"):
        raise CodecError("event_id", problems[0])
    return event_id


def _actions(workflow: Workflow) -> dict[str, Callable[..., Any]]:
    hooks = [hook for state in workflow.states.values() for hook in (state.enter, state.exit)]
    return {action_name(a): a for a in [*(t.after for t in workflow.transitions), *hooks] if callable(a)}


def resolved(workflow: Workflow, t: Transition) -> Transition:
    """The transition with the full path of its target."""
    source = t.source if isinstance(t.source, str) else t.source[0]
    return t if t.dest is None else msgspec.structs.replace(t, dest=resolve(workflow.states, source, t.dest))
