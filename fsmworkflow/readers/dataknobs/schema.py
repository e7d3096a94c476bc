"""The schema of a state, as what its data must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsmworkflow.functions.schemas import JsonSchema
from fsmworkflow.readers.dataknobs.functions import Invalid
from fsmworkflow.readers.places import Node

__all__ = ["VALUES", "Schema", "size"]

VALUES = 5_000
"""So many values the schemas of one file may have: they are checked before anything is made."""


class Schema:
    """What the data must be. Refuses, with its place, a schema that is none, and one that would take long to ask."""

    def __init__(self, one: Node) -> None:
        try:
            self._schema = JsonSchema(one.value)
        except ValueError as error:
            one.refuse(str(error))

    def ask(self, state: str, record: Mapping[str, Any]) -> None:
        """Raise Invalid where the data does not fit."""
        try:
            problem = self._schema.best(record)
        except Invalid as error:
            raise Invalid(f"state {state}: {error}") from None
        if problem is not None:
            raise Invalid(f"the data does not fit the schema of {state}: {problem}")


def size(schema: Any) -> int:
    """How many values a schema has."""
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    return 1 + sum(map(size, inner))
