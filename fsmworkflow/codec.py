"""Data as fields of JSON text, and back: plain data (plain.py), or a data type of the user's (typed.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec

from fsmworkflow.errors import CodecError
from fsmworkflow.plain import LIMIT, Data, check_key, decode, encode, read_back
from fsmworkflow.typed import Typed

__all__ = ["LIMIT", "Codec", "Data", "Fields", "decode", "digests", "encode", "fields_of", "read_back", "text_of"]

Fields = dict[str, msgspec.Raw]
"""Data as it is stored: each top-level field with its JSON text, in the order of the data."""

LARGE = 4096
REFERENCE = b'{"$field":"'
"""How a row refers to a field whose text is kept apart, followed by its hash."""

_encode = msgspec.json.Encoder().encode
_split = msgspec.json.Decoder(Fields).decode
_Raw = msgspec.Raw


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


class Codec:
    """How the data of one workflow becomes text and comes back: `type=None` is plain data, else the user's own type.

    `limit` is the largest text of one run's data, in bytes.
    """

    def __init__(self, kind: Any = None, *, limit: int = LIMIT) -> None:
        self.kind = None if kind is dict else kind
        self.limit = limit
        self._typed = None if self.kind is None else Typed(self.kind)

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
            if type(value) is _Raw:
                text = bytes(value)
            else:
                check_key(key, "data")
                text = encode(value, f"data.{key}", limit=self.limit)
            before_text = b"" if before is None else bytes(before)
            if text != before_text:
                grown += len(text) - len(before_text)
                changes[key] = _Raw(text)
        names = list(dict.keys(data) if self._typed is None else (key for key, _ in items))
        if grown > 0 and sum((len(memoryview(text)) for text in base.values()), grown) > self.limit // 2:
            self.weigh({key: changes[key] if key in changes else base[key] for key in names})
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

    def weigh(self, fields: Fields) -> None:
        """Raise CodecError for data over the limit."""
        size = len(text_of(fields))
        if size > self.limit:
            raise CodecError("data", f"{size:,} bytes of JSON are over the limit of {self.limit:,}")
