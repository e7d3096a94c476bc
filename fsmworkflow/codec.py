"""Data as JSON text and back, strictly: what would not come back equal is refused, with the path to it.

Plain data is dict, list, str, int, float, bool and None; datetime, date, time, timedelta, UUID, Decimal and bytes are
written `{"$datetime": "..."}`, and a user's own key that begins with `$` gets one more. A data type of the user's
(dataclass, msgspec.Struct, TypedDict, pydantic model) is written by msgspec or pydantic, and compared with what
reads back.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import inspect
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, NoReturn

import msgspec

from fsmworkflow.errors import CodecError

__all__ = ["Codec", "Data", "Fields", "decode", "digests", "encode", "fields_of", "read_back", "text_of"]

Fields = dict[str, msgspec.Raw]
"""Data as it is stored: each top-level field with its JSON text, in the order of the data."""

LIMIT = 16 * 2**20
DEPTH = 100
LARGE = 4096
REFERENCE = b'{"$field":"'
"""How a row refers to a field whose text is kept apart, followed by its hash."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_split = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_Raw = msgspec.Raw
_MISSING: Any = object()


def text_of(fields: Fields) -> bytes:
    """The JSON text of a whole data object."""
    return _encode(fields)


def fields_of(text: bytes | str) -> Fields:
    """The fields of a data object from its JSON text; their values stay text."""
    return _split(text)


def digests(fields: Fields) -> dict[str, str]:
    """The hash of each field over 4 KB: a store keeps such a text once for all moves of a run.

    Also of one that is spelled like the reference to such a text, which typed data may be: so none is taken for one.
    """
    return {k: hashlib.blake2b(v, digest_size=16).hexdigest() for k, v in fields.items() if _apart(memoryview(v))}


def _apart(text: memoryview) -> bool:
    return len(text) > LARGE or text[: len(REFERENCE)] == REFERENCE


# -- plain values ---------------------------------------------------------------------------------------------------

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


def _spelled(path: Path) -> str:
    if isinstance(path, str):
        return path
    parent, part = path
    return _spelled(parent) + (f"[{part}]" if isinstance(part, int) else f".{part}")


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
    raise CodecError(_spelled(path), reason)


def _check_text(value: str, path: Path) -> None:
    if "\0" in value:
        raise CodecError(_spelled(path), "text holds a NUL character, which stores do not keep")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise CodecError(_spelled(path), "text holds a lone surrogate, which is not Unicode text") from None


def _check_key(key: Any, path: Path) -> None:
    if type(key) is not str:
        raise CodecError(_spelled(path), f"a key of type {type(key).__name__} would come back as text")
    _check_text(key, path)


def _tagged(value: Any, path: Path, known: _Known) -> dict[str, str]:
    tag, write = _WRITE[type(value)]
    zone = getattr(value, "tzinfo", None)
    # A named zone would come back as a fixed offset, which is another value the day the clocks change.
    if zone is not None and (type(zone) is not dt.timezone or repr(zone) != repr(dt.timezone(zone.utcoffset(None)))):
        raise CodecError(_spelled(path), "a named time zone does not read back: use datetime.timezone, without a name")
    if zone is not None and zone.utcoffset(None).microseconds:  # which Python 3.11 reads back as UTC
        raise CodecError(_spelled(path), "an offset from UTC of a fraction of a second does not read back")
    if isinstance(value, Decimal) and value.is_nan():
        raise CodecError(_spelled(path), f"{value!r} is not equal to itself, so nothing that reads back is")
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
            raise CodecError(_spelled(path), f"with this its JSON text is over the limit of {self.limit:,} bytes")


def _walk(value: Any, path: Path, depth: int, known: _Known) -> Any:
    """The value as msgspec may write it: itself where nothing in it needs a tag, else a copy. Exact types only."""
    kind = type(value)
    if kind is str:
        known.room -= len(value) + 1
        if "\0" in value or not value.isascii():
            _check_text(value, path)
        return value
    if kind in _PLAIN:
        return value
    if kind is float:
        return value if value - value == 0.0 else _refuse(value, path)
    if kind is not dict and kind is not list and kind is not Data:
        return _tagged(value, path, known) if kind in _WRITE else _refuse(value, path)
    if depth <= 0:
        raise CodecError(_spelled(path), f"nested deeper than {DEPTH} levels")
    known.charge(2 * len(value), path)
    return _walk_list(value, path, depth - 1, known) if kind is list else _walk_dict(value, path, depth - 1, known)


def _walk_dict(value: dict[str, Any], path: Path, depth: int, known: _Known) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    escape = type(value) is Data
    for key, item in value.items():
        if type(key) is not str or key not in known:
            _check_key(key, path)
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
    return _spelled(path) if type(value) is int and value.bit_length() > 14_000 else None


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


# -- data -----------------------------------------------------------------------------------------------------------


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
        return dict.__eq__(self._plain(), other._plain() if isinstance(other, Data) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def _plain(self) -> dict[str, Any]:
        return dict(self.items())

    def __or__(self, other: Any) -> Any:
        return self._plain() | other

    def __ror__(self, other: Any) -> Any:
        return other | self._plain()

    def __repr__(self) -> str:
        return repr(self._plain())

    def __reduce__(self) -> Any:
        return dict, (self._plain(),)

    def __deepcopy__(self, memo: Any) -> Any:
        import copy

        return copy.deepcopy(self._plain(), memo)


class Codec:
    """How the data of one workflow becomes text and comes back: `type=None` is plain data, else the user's own type.

    `limit` is the largest text of one run's data, in bytes.
    """

    def __init__(self, kind: Any = None, *, limit: int = LIMIT) -> None:
        self.kind = None if kind is dict else kind
        self.limit = limit
        self._typed = None if self.kind is None else _Typed(self.kind)

    def decode(self, fields: Fields) -> Any:
        """A private copy of the data. Raises CodecError where it does not fit the data type."""
        return Data(fields) if self._typed is None else self._typed.decode(fields)

    def encode(self, data: Any) -> Fields:
        """All fields of the data as text. Raises CodecError where something would not come back equal."""
        changes, _ = self.changes(data, {})
        return changes

    def start(self, data: Any) -> Fields:
        """The fields of a new run's data, given as the data type, as a dict that fits it, or None for empty data."""
        if self._typed is not None and not isinstance(data, self._typed.origin):
            data = self._typed.convert({} if data is None else data)
        elif data is None:
            data = {}
        return self.encode(data)

    def changes(self, data: Any, base: Fields) -> tuple[Fields, tuple[str, ...]]:
        """What differs from `base`: the fields with another text, and the names of those that are gone.

        Raises CodecError with the path to what would not come back equal, or where the whole is over the limit.
        """
        items = self._items(data) if self._typed is None else list(self._typed.encode(data, self.limit).items())
        changes: Fields = {}
        grown = 0
        for key, value in items:
            before = base.get(key)
            if value is before and before is not None:
                continue
            text = bytes(value) if type(value) is _Raw else self._field(key, value)
            before_text = b"" if before is None else bytes(before)
            if text != before_text:
                grown += len(text) - len(before_text)
                changes[key] = _Raw(text)
        names = list(dict.keys(data) if self._typed is None else (key for key, _ in items))
        if grown > 0 and sum((len(memoryview(text)) for text in base.values()), grown) > self.limit // 2:
            self._weigh({key: changes[key] if key in changes else base[key] for key in names})
        if names == list(base) or not base:
            return changes, ()
        return self._moved(names, {k: v if type(v) is _Raw else None for k, v in items}, changes, base)

    @staticmethod
    def _moved(names: list[str], raws: dict[str, Any], changes: Fields, base: Fields) -> tuple[Fields, tuple[str, ...]]:
        """The same where fields came, went, or stand in another order: what moved is both removed and changed."""
        gone = tuple(key for key in base if key not in raws)
        written = [key for key in base if key in raws] + [key for key in changes if key not in base]
        if written == names:
            return changes, gone
        first = next(i for i, (a, b) in enumerate(zip(written, names, strict=True)) if a != b)
        late = {key: changes[key] if key in changes else base[key] for key in names[first:]}
        early = {key: text for key, text in changes.items() if key not in late}
        return {**early, **late}, gone + tuple(key for key in late if key in base)

    @staticmethod
    def _items(data: Any) -> Iterable[tuple[str, Any]]:
        if not isinstance(data, dict):
            raise CodecError("data", f"must be a dict, not {type(data).__name__}, or give the workflow a data type")
        return dict.items(data)

    def _field(self, key: Any, value: Any) -> bytes:
        if type(key) is not str:
            raise CodecError("data", f"a key of type {type(key).__name__} would come back as text")
        _check_text(key, "data")
        return encode(value, f"data.{key}", limit=self.limit)

    def _weigh(self, fields: Fields) -> None:
        size = len(text_of(fields))
        if size > self.limit:
            raise CodecError("data", f"{size:,} bytes of JSON are over the limit of {self.limit:,}")


class _Typed:
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

    def decode(self, fields: Fields) -> Any:
        return self._read(text_of(fields))

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

    def encode(self, data: Any, limit: int) -> Fields:
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
            path = _spelled(_difference(found, data, "data"))
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
        _check_text(value, path)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, path)
            _check_nul(item, f"{path}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_nul(item, f"{path}[{number}]")
