"""Entity: one thing that a machine of PyStator's is the life of, with its conveniences, and durable."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from fsmworkflow.errors import NotAccepted, nearest
from fsmworkflow.machine import PersistentWorkflowStateMachine
from fsmworkflow.records import Event

if TYPE_CHECKING:
    from fsmworkflow.readers.pystator.machine import Machine

__all__ = ["Entity", "Validator"]

Validator = Callable[[str, str, str, dict[str, Any]], tuple[bool, list[str]]]
"""Given the entity, its state, the trigger and the context: whether that is valid, and what is wrong with it."""


class Entity:
    """One entity of a machine, its state durable where `db` is: `await order.send("fill", qty=10)`.

    `await order.fill(qty=10)` is the same, `order.is_filled` asks for a state by its name in lower case, and
    `current_state`, `context`, `is_final`, `allowed_triggers` tell the rest. Two names that are the same in lower case
    are only reached through `send` and `current_state`.
    """

    def __init__(
        self, machine: Machine, context: dict[str, Any], db: Any, key: str | None, validator: Validator | None
    ) -> None:
        self._machine, self._validator = machine, validator
        workflow = machine.workflow()
        self._one = PersistentWorkflowStateMachine(db, workflow, key, context)
        self._triggers = {identifier(trigger): trigger for trigger in workflow.chart.triggers}
        self._states = {f"is_{identifier(name)}": name for name in machine.names()}

    async def __aenter__(self) -> Self:
        await self._one.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._one.__aexit__(*_)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_triggers", ()):
            return functools.partial(self.send, self._triggers[name])
        if name in self.__dict__.get("_states", ()):
            return self._states[name] in self._active
        known = [*self.__dict__.get("_triggers", ()), *self.__dict__.get("_states", ())]
        raise AttributeError(f"an entity of {self._machine.name} has no {name!r}{nearest(name, known)}")

    async def send(self, trigger: str, **payload: Any) -> Event:
        """Send an event, and drive the entity until it rests. The Event says what became of it: `.status`.

        Its payload goes into the context if it is taken. Raises NotAccepted where the `context_validator` refuses it,
        UnknownEvent for a name that no transition has, RunOver for an entity that has ended.
        """
        name = self._machine.trigger(trigger)
        if self._validator is not None:
            ok, errors = self._validator(self.key, self.current_state, name, {**self.context, **payload})
            if not ok:
                raise NotAccepted(f"{self._machine.name}/{self.key} does not take {name!r}: {'; '.join(errors)}")
        return await self._one.send(name, payload)

    @property
    def key(self) -> str:
        """Which entity it is."""
        return "" if self._one.run is None else self._one.run.key

    @property
    def context(self) -> dict[str, Any]:
        """The data."""
        return dict(self._one.data or {})

    @property
    def current_state(self) -> str:
        """The state by its name in the file; of a parallel one, those of its regions, with a comma between them."""
        return ", ".join(self._machine.named(path) for path in (self._one.state or "").split(", "))

    @property
    def _active(self) -> set[str]:
        """The active states, and those around them."""
        paths = (self._one.state or "").split(", ")
        around = {path.rsplit(".", n)[0] for path in paths for n in range(path.count(".") + 1)}
        return {self._machine.named(path) for path in around}

    @property
    def is_final(self) -> bool:
        """Whether it has ended."""
        return self._one.is_final

    @property
    def allowed_triggers(self) -> list[str]:
        """The events that its state takes, whatever their guards."""
        return [] if self._one.run is None else self._machine.workflow().accepts(self._one.run)

    def snapshot(self) -> dict[str, Any]:
        """The entity as plain values."""
        return self._one.snapshot()


def identifier(name: str) -> str:
    """A name as Python may have it: PENDING_NEW is pending_new, order.submitted is order_submitted."""
    return re.sub(r"[^a-zA-Z0-9]+", "_", name).strip("_").lower()
