"""Guards of PyStator's: they see the payload of the event over the data."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

from fsmworkflow.conditions import Condition, Function, Guard, View, field, payload
from fsmworkflow.errors import nearest
from fsmworkflow.expressions import Expression, Read
from fsmworkflow.readers.places import Node

__all__ = ["Merged", "Named", "Required", "check"]

CHECKS = {
    "eq": "eq", "neq": "ne", "gt": "gt", "gte": "ge", "lt": "lt", "lte": "le", "in": "in", "not_in": "not_in",
    "is_set": "is_not_none", "is_null": "is_none",
}  # fmt: skip


class Merged(Expression):
    """An expression whose names are fields of the payload, or else of the data."""

    def _name(self, node: ast.expr, asked: bool = False) -> Read:
        kept = super()._name(node, asked)
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        first = getattr(node, "id", "")
        if first in ("event", "true", "false", "null"):
            return kept
        path, inner = ".".join((first, *names)), ast.Attribute(ast.Name("event"), first)
        for name in names:
            inner = ast.Attribute(inner, name)
        sent = super()._name(inner, asked)

        def read(view: View, seen: dict[str, Any]) -> Any:
            payload = view.payload
            here = isinstance(payload, dict) and (first in payload or path in payload)
            return (sent if here else kept)(view, seen)

        return read


class Named(Function):
    """A function of the user's that is given a context as PyStator's."""

    def __init__(self, name: str, function: Callable[..., Any], params: Mapping[str, Any]) -> None:
        def call(ctx: Any) -> Any:
            event = getattr(ctx, "event", None)
            sent = {} if event is None or not isinstance(event.payload, dict) else event.payload
            more = {"_guard_params": dict(params)} if params else {}
            return function({**ctx.data, **sent, "_event": event, **more})

        super().__init__(call)
        self._text = name


class Required(Guard):
    """Whether a variable that the machine requires is there, in the payload or in the data."""

    def __init__(self, key: str) -> None:
        self.inner = field(key).is_not_none() | payload(key).is_not_none()
        self._text = str(self.inner)

    async def ask(self, view: View) -> bool:
        return await self.inner.ask(view)


def check(one: Node) -> Guard:
    """A field of the payload, or else of the data, that is compared with a value."""
    one.keys(("field", "op", "value", "values"), needed=("field", "op"))
    name, word = one["field"].of(str), one["op"].of(str)
    if word not in CHECKS:
        one["op"].refuse(f"there is no operator {word[:100]!r}{nearest(word, CHECKS)}")
    value = list(one.value["values"]) if "values" in one else one.value.get("value")
    return _Checked(Condition(name, CHECKS[word], value))


class _Checked(Guard):
    def __init__(self, inner: Condition) -> None:
        self.inner, self._text = inner, str(inner)

    async def ask(self, view: View) -> bool:
        sent = view.payload if isinstance(view.payload, dict) else {}
        return await self.inner.ask(View({**view.data, **sent}, view.payload, view.ctx, view.lenient, view.seen))
