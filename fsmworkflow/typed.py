"""Data of the user's own type (dataclass, msgspec.Struct, TypedDict, pydantic model) as JSON text and back.

It is written by msgspec or pydantic, and compared with what reads back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from fsmworkflow.errors import CodecError
from fsmworkflow.plain import Path, check_text, spelled

__all__ = ["Typed"]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_split = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Typed:
    """Data of the user's own type. pydantic models are written by pydantic, all else by msgspec."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        self.name = getattr(kind, "__name__", repr(kind))
        self.origin: Any = dict if hasattr(kind, "__required_keys__") else (getattr(kind, "__origin__", None) or kind)
        self.pydantic = hasattr(kind, "model_validate_json")
        self.fields = _fields(kind)
        if not self.fields and not self.pydantic and self.origin is not dict:
            raise TypeError(f"{self.name} is no dataclass, msgspec.Struct, TypedDict or pydantic model")
        self.decoder: Any = None if self.pydantic else msgspec.json.Decoder(kind)

    def _read(self, text: bytes) -> Any:
        try:
            return self.kind.model_validate_json(text) if self.pydantic else self.decoder.decode(text)
        except ValueError as error:  # both libraries' validation errors
            raise CodecError("data", f"does not fit {self.name}: {error}") from error

    def decode(self, fields: dict[str, msgspec.Raw]) -> Any:
        return self._read(_encode(fields))

    def convert(self, data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise CodecError("data", f"must be a {self.name} or a dict, not {type(data).__name__}")
        try:
            if self.pydantic:
                return self.kind.model_validate(dict(data))
            found = msgspec.convert(dict(data), self.kind)
        except ValueError as error:
            raise CodecError("data", f"does not fit {self.name}: {error}") from error
        self._known(data)
        _complete(found)
        return found

    def _known(self, names: Iterable[str]) -> None:
        """Refuse what is no field as it is written: it would be lost."""
        for name in names if self.fields else ():
            if name not in self.fields:
                raise CodecError(f"data.{name}", f"a {self.name} has no such field, so it would be lost")

    def encode(self, data: Any, limit: int) -> dict[str, msgspec.Raw]:
        if not isinstance(data, self.origin):
            raise CodecError("data", f"must be a {self.name}, not {type(data).__name__}")
        own = getattr(data, "__dict__", ())  # where attributes of the class, as cached properties, may stand too
        self._known(data if isinstance(data, dict) else (name for name in own if not hasattr(self.origin, name)))
        try:
            text = data.model_dump_json(by_alias=True, warnings=False).encode() if self.pydantic else _encode(data)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise CodecError("data", f"a {self.name} that has no JSON text: {error}") from error
        if len(text) > limit:
            raise CodecError("data", f"{len(text):,} bytes of JSON are over the limit of {limit:,}")
        if b"\\u0000" in text:
            _check_nul(_decode(text), "data")
        self._compare(text, data)
        try:
            return _split(text)
        except msgspec.ValidationError as error:
            raise CodecError("data", f"a {self.name} must be written as a JSON object: {error}") from error

    def _compare(self, text: bytes, data: Any) -> None:
        """Refuse data that its text does not give back."""
        try:
            found = self._read(text)
            if found == data:
                return
            path = spelled(_difference(found, data, "data"))
        except RecursionError as error:
            raise CodecError("data", f"a {self.name} that is nested too deeply") from error
        raise CodecError(path, f"this {self.name} would not come back equal from its JSON text")


def _fields(kind: Any) -> frozenset[str]:
    """The names of the fields of a type as they are written; none where it may have any."""
    if hasattr(kind, "__required_keys__"):
        return frozenset(kind.__required_keys__ | kind.__optional_keys__)
    if hasattr(kind, "__struct_encode_fields__") and not kind.__struct_config__.array_like:
        return frozenset((*kind.__struct_encode_fields__, kind.__struct_config__.tag_field))
    return frozenset(getattr(kind, "__dataclass_fields__", ()))


def _parts(value: Any) -> dict[Any, Any]:
    """What a value consists of, by key, index or name."""
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    if isinstance(value, dict):
        return value
    kind: Any = type(value)
    names: Any = ()
    for where in ("__struct_fields__", "__dataclass_fields__", "model_fields"):
        names = names or getattr(kind, where, ())
    return {name: getattr(value, name) for name in names}


def _difference(found: Any, given: Any, path: Path) -> Path:
    """The path to the first part that differs."""
    left, right = _parts(found), _parts(given)
    if type(found) is type(given) and list(left) == list(right):
        for part in left:
            if left[part] != right[part]:
                return _difference(left[part], right[part], (path, part))
    return path


def _complete(value: Any) -> None:
    """Give dataclasses their defaults: msgspec leaves them on the class, where its encoder does not look."""
    own = getattr(value, "__dict__", None) if hasattr(type(value), "__dataclass_fields__") else None
    for name, part in _parts(value).items():
        if own is not None:
            own.setdefault(name, part)
        _complete(part)


def _check_nul(value: Any, path: str) -> None:
    if isinstance(value, str):
        check_text(value, path)
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(key, path)
            _check_nul(item, f"{path}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_nul(item, f"{path}[{number}]")
