"""Machine: a definition of PyStator's, its functions bound by name, and the workflow that it comes to."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from fsmworkflow.decide import decide
from fsmworkflow.errors import DefinitionError, NotAccepted
from fsmworkflow.readers.places import Node, node
from fsmworkflow.readers.pystator.building import TOLD, Builder, Fn, major
from fsmworkflow.readers.pystator.entity import Entity, Validator
from fsmworkflow.records import Event, Run
from fsmworkflow.workflow import Workflow

__all__ = ["Machine", "Result"]

ROOT = ("meta", "groups", "states", "transitions", "error_policy", "state_variables", "events")


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What an event makes of a state: `target_state` and `context` are as before, and `error` says why, where it is not
    taken."""

    success: bool
    source_state: str
    target_state: str
    trigger: str
    context: dict[str, Any]
    error: str | None = None


class Machine:
    """A machine of PyStator, before its guards and actions are bound; `workflow()` is what it comes to.

    Guards, actions and invoked services are functions, sync or async, of one argument: a dict of the data with the
    payload of the event over it, and `_event`, `_entity_id`, `_guard_params` or `_action_params`.
    """

    def __init__(self, root: Node) -> None:
        root.keys(ROOT, needed=("states", "transitions"))
        self.root = root
        meta = root["meta"] if "meta" in root else Node(root.source, {}, None)
        meta.of(dict)
        self.name: str = meta.get("machine_name", str, default="machine")
        self.version = major(meta)
        self.strict: bool = meta.get("strict_mode", bool, default=True)
        self.required: list[str] = []
        self.defaults: dict[str, Any] = {}
        self._variables(meta.get("validate_context", bool, default=False))
        self._normalizer: str | None = meta.get("event_normalizer", str)
        if self._normalizer not in (None, "lower", "upper"):
            meta["event_normalizer"].refuse("it is 'lower' or 'upper'")
        self.guards: dict[str, Fn] = {}
        self.actions: dict[str, Fn] = {}
        self._workflow: Workflow | None = None
        self._builder: Builder | None = None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The machine of a file. Raises DefinitionError, with the place of what cannot be mapped, and OSError."""
        return cls(node(path))

    from_yaml = load

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """The machine of plain values. Raises DefinitionError."""
        return cls(node(config))

    def guard(self, name: str) -> Callable[[Fn], Fn]:
        """Bind a guard: `@machine.guard("is_full")`."""
        return functools.partial(self._bound, self.guards, name)

    def action(self, name: str) -> Callable[[Fn], Fn]:
        """Bind an action, or the service that a state invokes."""
        return functools.partial(self._bound, self.actions, name)

    def bind_guards(self, guards: Mapping[str, Fn]) -> None:
        for name, function in guards.items():
            self._bound(self.guards, name, function)

    def bind_actions(self, actions: Mapping[str, Fn]) -> None:
        for name, function in actions.items():
            self._bound(self.actions, name, function)

    def _bound(self, functions: dict[str, Fn], name: str, function: Fn) -> Fn:
        if self._workflow is not None:
            raise DefinitionError(self.name, [f"{name!r} is bound too late: the workflow was built, and is immutable"])
        functions[name] = function
        return function

    def workflow(self) -> Workflow:
        """The checked workflow, made once. Raises DefinitionError where a guard or an action is not bound, or the
        check finds something: PyStator's own check is the weaker one."""
        if self._workflow is None:
            self._builder = Builder(self)
            self._workflow = self._builder.built()
        return self._workflow

    def create(
        self,
        context: Mapping[str, Any] | None = None,
        *,
        db: Any = "memory://",
        key: str | None = None,
        context_validator: Validator | None = None,
    ) -> Entity:
        """One entity, as PyStator's EntitySession, kept in `db` under `key`: use it inside `async with`."""
        return Entity(self, {**self.defaults, **(context or {})}, db, key, context_validator)

    async def process(self, state: str, trigger: str, context: Mapping[str, Any] | None = None) -> Result:
        """What an event makes of a state, for a program that keeps the state itself: nothing is kept, no action runs.

        Raises DefinitionError for a state that there is not.
        """
        path, data, name = self.names().get(state, state), {**self.defaults, **(context or {})}, self.trigger(trigger)
        run = Run.at(self.workflow(), path, data)
        try:
            move = await decide(self.workflow(), run, Event(name=name, payload=data), now=time.time())
        except NotAccepted as error:
            return Result(
                success=False, source_state=state, target_state=state, trigger=name, context=data, error=str(error)
            )
        after, taken = move.after, move.answer == "accepted" and move.error is None
        why = None if taken else str(move.error or [f"{one.condition}{one.saw}" for one in move.asked])
        target = ", ".join(self.named(one) for one in after.state.split(", ")) if taken else state
        return Result(
            success=taken, source_state=state, target_state=target, trigger=name, context=dict(after.data), error=why
        )

    def trigger(self, name: str) -> str:
        """An event's name, as `event_normalizer` has it."""
        return {"lower": name.lower(), "upper": name.upper()}.get(self._normalizer or "", name)

    def named(self, path: str) -> str:
        """The name in the file of a state of the workflow."""
        self.workflow()
        assert self._builder is not None
        return self._builder.names.get(path, path)

    def names(self) -> dict[str, str]:
        """The states of the workflow by their names in the file."""
        self.workflow()
        assert self._builder is not None
        return {name: path for path, name in self._builder.names.items()}

    def _variables(self, validated: bool) -> None:
        for one in self.root.each("state_variables"):
            if isinstance(one.value, str):
                continue
            one.keys(("key", "type", "default", "required", *TOLD), needed=("key",))
            key = one["key"].of(str)
            if "default" in one:
                self.defaults[key] = one.value["default"]
            if validated and one.get("required", bool, default=False):
                self.required.append(key)
