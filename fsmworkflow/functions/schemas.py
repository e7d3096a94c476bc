"""JSON Schemas, held by jsonschema: their patterns by re2, whose time is bounded, and nothing is fetched for them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fsmworkflow.errors import FSMWorkflowError
from fsmworkflow.functions.words import Invalid

__all__ = ["JsonSchema"]

STEPS = 10_000
"""So many references are followed for one check, and one more for each byte of the data: else it may take for ever."""
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


class JsonSchema:
    """What data must be. Raises ValueError for a schema that is none, or whose patterns would take long.

    Raises FSMWorkflowError without jsonschema, or, for one with patterns, without google-re2.
    """

    def __init__(self, told: Mapping[str, Any]) -> None:
        self._left = threading.local()  # how many references may be followed yet
        try:
            kind = _validators(told, self._step)
            kind.check_schema(told)
        except (FSMWorkflowError, ValueError):
            raise
        except Exception as error:  # SchemaError, and whatever a schema that is none makes of its check
            raise ValueError(f"it is no JSON Schema: {str(getattr(error, 'message', error))[:200]}") from error
        self._validator = kind(told, registry=_nothing())

    def problems(self, data: Mapping[str, Any]) -> list[str]:
        """What is wrong, each with its place, as "$.age: 'x' is not of type 'integer'"."""
        found = (f"{error.json_path}: {error.message[:200]}" for error in self._errors(data))
        return list(found)

    def best(self, data: Mapping[str, Any]) -> str | None:
        """The problem that says most; None where the data fits."""
        from jsonschema.exceptions import best_match  # type: ignore[import-untyped]

        error = best_match(self._errors(data))
        return None if error is None else str(error.message[:200])

    def _errors(self, data: Mapping[str, Any]) -> Iterator[Any]:
        from referencing.exceptions import Unresolvable

        try:
            text = json.dumps(dict(data), default=str)
            self._left.steps = STEPS + len(text)
            yield from self._validator.iter_errors(json.loads(text))
        except RecursionError:
            raise Invalid("the data, or the schema's references to itself, are nested too deep to be checked") from None
        except Unresolvable as error:
            what = f"{str(error)[:200]}: nothing is fetched, so put it under $defs"
            raise Invalid(f"the schema refers to what is not in it: {what}") from None

    def _step(self) -> None:
        self._left.steps -= 1
        if self._left.steps < 0:
            raise Invalid("the schema's references lead on and on: it takes too long to be checked")


def _nothing() -> Any:
    """A registry that fetches nothing: jsonschema's own opens whatever URL a `$ref` names, files too."""
    from referencing import Registry

    return Registry()


def _validators(told: Mapping[str, Any], step: Callable[[], None]) -> Any:
    try:
        from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
        from jsonschema.validators import extend, validator_for  # type: ignore[import-untyped]
    except ImportError as error:
        raise FSMWorkflowError(
            "a schema needs the library jsonschema: pip install 'fsmworkflow[jsonschema]'"
        ) from error
    kind = validator_for(told, default=Draft202012Validator)
    ours: dict[str, Any] = {"pattern": _pattern} if _patterns(told) else {}
    counted = {word: _counted(kind.VALIDATORS[word], step) for word in REFERENCES if word in kind.VALIDATORS}
    return extend(kind, {**ours, **counted, "uniqueItems": _unique})


def _counted(follow: Any, step: Callable[[], None]) -> Any:
    def ask(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        step()
        yield from follow(validator, value, instance, schema) or ()

    return ask


def _unique(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """In time that grows with the list: jsonschema compares each item with each."""
    from jsonschema import ValidationError

    if value and validator.is_type(instance, "array") and len(set(map(_hashed, instance))) < len(instance):
        yield ValidationError(f"{str(instance)[:200]} has non-unique elements")


def _hashed(value: Any) -> Any:
    """What is equal where two values of JSON are."""
    if isinstance(value, dict):
        return dict, frozenset((key, _hashed(item)) for key, item in value.items())
    return (type(value), tuple(map(_hashed, value))) if isinstance(value, list) else (type(value) is bool, value)


def _patterns(schema: Any) -> bool:
    """Whether a schema has patterns, which need re2: Python's own may take for ever."""
    found = False
    for key, value in schema.items() if isinstance(schema, Mapping) else enumerate(schema):
        if key == "patternProperties":
            raise ValueError("'patternProperties' is not mapped: name the properties, or say additionalProperties")
        if key == "pattern" and isinstance(value, str):
            compiled(value)
            found = True
        elif isinstance(value, (dict, list)):
            found = _patterns(value) or found
    return found


def compiled(pattern: str) -> Any:
    """A regular expression of google-re2. Raises FSMWorkflowError without it, ValueError for what it cannot compile."""
    try:
        import re2
    except ImportError as error:
        raise FSMWorkflowError("patterns need google-re2: pip install 'fsmworkflow[re2]'") from error
    options = re2.Options()
    options.log_errors = False  # they are told here
    try:
        return re2.compile(pattern, options=options)
    except re2.error as error:
        raise ValueError(f"the pattern {pattern[:60]!r} does not compile: {error.args[0].decode()}") from error


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
    import re2
    from jsonschema import ValidationError

    if validator.is_type(value, "string") and re2.search(pattern, value) is None:
        yield ValidationError(f"{value!r} does not match {pattern!r}")
