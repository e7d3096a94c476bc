"""Plain values as JSON text and back, strictly: what would not come back equal is refused, with the path to it.

Plain data is dict, list, str, int, float, bool and None; datetime, date, time, timedelta, UUID, Decimal and bytes are
written `{"$datetime": "..."}`, and a user's own key that begins with `$` gets one more.
"""

from __future__ import annotations

import base64
import datetime as dt
import inspect
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, NoReturn

import msgspec

from fsmworkflow.errors import CodecError

__all__ = ["LIMIT", "Data", "Path", "check_key", "check_text", "decode", "encode", "read_back", "spelled"]

LIMIT = 16 * 2**20
DEPTH = 100

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_Raw = msgspec.Raw
_MISSING: Any = object()

_WRITE: dict[type, tuple[str, Callable[[Any], str]]] = {
    dt.datetime: ("$datetime", lambda v: v.isoformat() + ("~1" if v.fold else "")),
    dt.date: ("$date", dt.date.isoformat),
    dt.time: ("$time", lambda v: v.isoformat() + ("~1" if v.fold else "")),
    dt.timedelta: ("$timedelta", lambda v: f"{v.days} {v.seconds} {v.microseconds}"),
    uuid.UUID: ("$uuid", str),
    Decimal: ("$decimal", str),
    bytes: ("$bytes", lambda v: base64.b64encode(v).decode()),
}


def _folded(read: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: read(text[:-2]).replace(fold=1) if text.endswith("~1") else read(text)


_READ: dict[str, Callable[[str], Any]] = {
    "$datetime": _folded(dt.datetime.fromisoformat),
    "$date": dt.date.fromisoformat,
    "$time": _folded(dt.time.fromisoformat),
    "$timedelta": lambda text: dt.timedelta(*map(int, text.split())),
    "$uuid": uuid.UUID,
    "$decimal": Decimal,
    "$bytes": base64.b64decode,
}


Path = str | tuple[Any, Any]
"""Where a value stands: a name, or (what it is in, its key or index). Spelled out only where something is refused."""


def spelled(path: Path) -> str:
    """The path as one reads it: `data.items[3].price`."""
    if isinstance(path, str):
        return path
    parent, part = path
    return spelled(parent) + (f"[{part}]" if isinstance(part, int) else f".{part}")


def _refuse(value: Any, path: Path) -> NoReturn:
    kind = type(value)
    if isinstance(value, float):
        reason = f"{value!r} has no JSON text that reads back equal"
    elif isinstance(value, tuple):
        reason = "a tuple would come back as a list: write a list, or give the workflow a data type"
    elif inspect.iscoroutine(value):
        reason = f"{value.__qualname__}() has not been awaited: is an `await` missing?"
    else:
        name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        reason = f"a value of type {name} would not come back equal: use plain values, or give the workflow a data type"
    raise CodecError(spelled(path), reason)


def check_text(value: str, path: Path) -> None:
    """Refuse text that stores do not keep, with its path."""
    if "\0" in value:
        raise CodecError(spelled(path), "text holds a NUL character, which stores do not keep")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise CodecError(spelled(path), "text holds a lone surrogate, which is not Unicode text") from None


def check_key(key: Any, path: Path) -> None:
    """Refuse a key that would not come back equal, with its path."""
    if type(key) is not str:
        raise CodecError(spelled(path), f"a key of type {type(key).__name__} would come back as text")
    check_text(key, path)


def _tagged(value: Any, path: Path, known: _Known) -> dict[str, str]:
    tag, write = _WRITE[type(value)]
    zone = getattr(value, "tzinfo", None)
    # A named zone would come back as a fixed offset, which is another value the day the clocks change.
    if zone is not None and (type(zone) is not dt.timezone or repr(zone) != repr(dt.timezone(zone.utcoffset(None)))):
        raise CodecError(spelled(path), "a named time zone does not read back: use datetime.timezone, without a name")
    if zone is not None and zone.utcoffset(None).microseconds:  # which Python 3.11 reads back as UTC
        raise CodecError(spelled(path), "an offset from UTC of a fraction of a second does not read back")
    if isinstance(value, Decimal) and value.is_nan():
        raise CodecError(spelled(path), f"{value!r} is not equal to itself, so nothing that reads back is")
    text = write(value)
    known.charge(len(text), path)
    return {tag: text}


_PLAIN = frozenset({int, bool, type(None)})


class _Known(set[str]):
    """What a walk knows: the keys that it checked (records in a list have the same ones), and the bytes it has left.

    A small value may hold one part many times over; it is refused before its text is made, which memory might not hold.
    """

    __slots__ = ("limit", "room")

    def __init__(self, limit: int) -> None:
        self.limit = self.room = limit

    def charge(self, least: int, path: Path) -> None:
        """Take off what a part needs at the least. Raises CodecError where nothing is left."""
        self.room -= least
        if self.room < 0:
            raise CodecError(spelled(path), f"with this its JSON text is over the limit of {self.limit:,} bytes")


def _walk(value: Any, path: Path, depth: int, known: _Known) -> Any:
    """The value as msgspec may write it: itself where nothing in it needs a tag, else a copy. Exact types only."""
    kind = type(value)
    if kind is str:
        known.room -= len(value) + 1
        if "\0" in value or not value.isascii():
            check_text(value, path)
        return value
    if kind in _PLAIN:
        return value
    if kind is float:
        return value if value - value == 0.0 else _refuse(value, path)
    if kind is not dict and kind is not list and kind is not Data:
        return _tagged(value, path, known) if kind in _WRITE else _refuse(value, path)
    if depth <= 0:
        raise CodecError(spelled(path), f"nested deeper than {DEPTH} levels")
    known.charge(2 * len(value), path)
    return _walk_list(value, path, depth - 1, known) if kind is list else _walk_dict(value, path, depth - 1, known)


def _walk_dict(value: dict[str, Any], path: Path, depth: int, known: _Known) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    escape = type(value) is Data
    for key, item in value.items():
        if type(key) is not str or key not in known:
            check_key(key, path)
            escape = escape or key[:1] == "$"
            if key[:1] != "$" and len(key) <= 64:
                known.add(key)
            else:
                known.charge(len(key), path)
        if type(item) not in _PLAIN:
            plain = _walk(item, (path, key), depth, known)
            if plain is not item:
                changed[key] = plain
    if not changed and not escape:
        return value
    return {("$" + key if key[:1] == "$" else key): changed.get(key, item) for key, item in value.items()}


def _walk_list(value: list[Any], path: Path, depth: int, known: _Known) -> list[Any]:
    changed: dict[int, Any] = {}
    for number, item in enumerate(value):
        if type(item) not in _PLAIN:
            plain = _walk(item, (path, number), depth, known)
            if plain is not item:
                changed[number] = plain
    return [changed.get(number, item) for number, item in enumerate(value)] if changed else value


def _revive(value: Any) -> Any:
    if type(value) is dict:
        if len(value) == 1:
            ((key, text),) = value.items()
            if key in _READ:
                return _READ[key](text)
        return {(k[1:] if k[:1] == "$" else k): _revive(v) for k, v in value.items()}
    if type(value) is list:
        return [_revive(item) for item in value]
    return value


def encode(value: Any, path: str = "value", *, limit: int = LIMIT) -> bytes:
    """A plain value as JSON text.

    Raises CodecError with the path to what would not come back equal, or where the text is over `limit` bytes.
    """
    kind, plain = type(value), value
    if kind is not int and kind is not bool and value is not None:
        known = _Known(limit)
        plain = _walk(value, path, DEPTH, known)
        known.charge(0, path)
    try:
        text = _encode(plain)
    except ValueError as error:
        raise CodecError(_long_number(value, path) or path, str(error)) from error
    if len(text) > limit:
        raise CodecError(path, f"{len(text):,} bytes of JSON are over the limit of {limit:,}")
    return text


def _long_number(value: Any, path: Path) -> str | None:
    """The path to the first whole number of more digits than Python writes."""
    if isinstance(value, (dict, list)):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return next((found for part, item in parts if (found := _long_number(item, (path, part)))), None)
    return spelled(path) if type(value) is int and value.bit_length() > 14_000 else None


def decode(text: bytes | str | msgspec.Raw) -> Any:
    """What `encode` wrote, equal in value, type and order."""
    value = _decode(text)
    # Only a text that holds the quoted dollar can hold a tag or an escaped key.
    if type(value) is dict or type(value) is list:
        raw = text.encode() if isinstance(text, str) else bytes(text)
        return _revive(value) if b'"$' in raw else value
    return value


def read_back(text: bytes | str | msgspec.Raw) -> Any:
    """As `decode`; but what is spelled like a tagged value and is none, as typed data may be, comes as written."""
    try:
        return decode(text)
    except (ValueError, TypeError, ArithmeticError):
        return _decode(text)


class Data(dict[str, Any]):
    """A workflow's plain data: a dict whose fields are decoded when they are touched.

    A field that is never touched costs nothing, neither to read nor to write. Everything else is as in a dict.
    """

    __slots__ = ()

    def __getitem__(self, key: str) -> Any:
        value = dict.__getitem__(self, key)
        if type(value) is _Raw:
            value = decode(value)
            dict.__setitem__(self, key, value)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 (it would ask itself)

    def setdefault(self, key: str, default: Any = None) -> Any:
        dict.setdefault(self, key, default)
        return self[key]

    def pop(self, key: str, default: Any = _MISSING) -> Any:
        if key in self:
            value = self[key]
            del self[key]
            return value
        if default is _MISSING:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[str, Any]:
        key, value = dict.popitem(self)
        return key, decode(value) if type(value) is _Raw else value

    # A subclass that overrides __iter__ makes dict(data), {**data} and json.dumps ask the methods below.
    def __iter__(self) -> Iterator[str]:
        return dict.__iter__(self)

    def keys(self) -> Any:
        return dict.keys(self)

    def items(self) -> Any:
        return self._whole().items()

    def values(self) -> Any:
        return self._whole().values()

    def copy(self) -> dict[str, Any]:
        return dict(self.items())

    def _whole(self) -> Any:
        for key in dict.keys(self):
            self[key]
        return super()

    def __eq__(self, other: object) -> bool:
        return dict.__eq__(self.copy(), other.copy() if isinstance(other, Data) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def __repr__(self) -> str:
        return repr(self.copy())

    def __reduce__(self) -> Any:
        return dict, (self.copy(),)

    def __deepcopy__(self, memo: Any) -> Any:
        import copy

        return copy.deepcopy(self.copy(), memo)
