"""The schema of a state: held by jsonschema, its patterns by re2, whose time is bounded. Nothing is fetched for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fsmworkflow.errors import FSMWorkflowError
from fsmworkflow.readers.dataknobs.functions import Invalid
from fsmworkflow.readers.places import Node

__all__ = ["VALUES", "Schema", "size"]

VALUES = 5_000
"""So many values the schemas of one file may have: they are checked before anything is made."""


class Schema:
    """What the data must be. Refuses, with its place, a schema that is none, and one that would take long to ask."""

    def __init__(self, one: Node) -> None:
        kind = _validators(one)
        try:
            kind.check_schema(one.value)
        except Exception as error:  # SchemaError, and whatever a schema that is none makes of its check
            one.refuse(f"it is no JSON Schema: {str(getattr(error, 'message', error))[:200]}")
        self.validator = kind(one.value, registry=_nothing())

    def ask(self, state: str, record: Mapping[str, Any]) -> None:
        """Raise Invalid where the data does not fit."""
        from jsonschema import ValidationError  # type: ignore[import-untyped]
        from referencing.exceptions import Unresolvable

        try:
            self.validator.validate(json.loads(json.dumps(record, default=str)))
        except ValidationError as error:
            raise Invalid(f"the data does not fit the schema of {state}: {error.message[:200]}") from None
        except Unresolvable as error:
            what = f"{str(error)[:200]}: nothing is fetched, so put it under $defs"
            raise Invalid(f"the schema of {state} refers to what is not in it: {what}") from None


def size(schema: Any) -> int:
    """How many values a schema has."""
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    return 1 + sum(map(size, inner))


def _nothing() -> Any:
    """A registry that fetches nothing: jsonschema's own opens whatever URL a `$ref` names, files too."""
    from referencing import Registry

    return Registry()


def _validators(one: Node) -> Any:
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.validators import extend, validator_for  # type: ignore[import-untyped]
    except ImportError as error:
        raise FSMWorkflowError(
            "a schema needs the library jsonschema: pip install 'fsmworkflow[jsonschema]'"
        ) from error
    kind = validator_for(one.value, default=Draft202012Validator)
    return extend(kind, {"pattern": _pattern}) if _patterns(one, one.value) else kind


def _patterns(one: Node, schema: Any) -> bool:
    """Whether a schema has patterns, which need re2: Python's own may take for ever."""
    found = False
    for key, value in schema.items() if isinstance(schema, dict) else enumerate(schema):
        if key == "patternProperties":
            one.refuse("'patternProperties' is not mapped: name the properties, or say additionalProperties")
        if key == "pattern" and isinstance(value, str):
            _compiled(one, value)
            found = True
        elif isinstance(value, (dict, list)):
            found = _patterns(one, value) or found
    return found


def _compiled(one: Node, pattern: str) -> None:
    try:
        import re2
    except ImportError as error:
        raise FSMWorkflowError("a pattern needs google-re2: pip install 'fsmworkflow[re2]'") from error
    try:
        re2.compile(pattern)
    except re2.error as error:
        one.refuse(f"the pattern {pattern[:60]!r} does not compile: {error}")


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
    import re2
    from jsonschema import ValidationError

    if validator.is_type(value, "string") and re2.search(pattern, value) is None:
        yield ValidationError(f"{value!r} does not match {pattern!r}")
