"""Expressions: conditions as text, as in `fill_qty >= order_qty and status in ["open", "partial"]`.

Python's parser reads the text, a fixed list of its nodes is let through, and each becomes a closure: nothing of the
text is ever compiled or run by Python. Names are fields of the data, dotted, and `event` is the payload. Of the
libraries that were tried, simpleeval reaches attributes, methods and f-strings, and finds out only when it is asked;
CEL in Rust takes a copy of all data each time and bounds no macro; cel-python takes 170 us. See docs/design.md.
"""

from __future__ import annotations

import ast
import operator as python
import warnings
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from functools import cached_property
from types import NoneType, UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

from fsmworkflow.conditions import Guard, Seen, View
from fsmworkflow.errors import ConditionError, cut, nearest
from fsmworkflow.operators import OPERATORS

__all__ = ["Expression", "Read"]

TEXT, DEPTH = 1_000, 50
"""How many characters an expression may have, and how many levels."""
SIZE, BITS = 100_000, 4_096
"""The largest text or list that an operator or function goes through, and the largest whole number it reckons with."""

Read = Callable[[View, dict[str, Any]], Any]
_MISSING: Any = object()
_CONSTANTS = {"true": True, "false": False, "null": None}
_NUMBERS = (int, float, Decimal)


class Expression(Guard):
    """A condition written as text. Its operators are those of Python, and its answer must be true or false.

        and or not    == != < <= > >=    in, not in (a list, a text, the keys of a mapping)    a if b else c
        + - * / // %    len lower upper strip starts_with ends_with abs round min max sum has
        1 2.5 "text" 'text' [1, 2] true false null

    A name is a field of the data: `order.qty` looks into it, and an exact key wins over a path. `event` is the payload,
    `event.qty` a part of it. A field that is missing has no answer, and neither have kinds that do not go together:
    ConditionError, with the values that were read. `has(discount)` asks whether a field is there and is not null.
    No text, list or number grows without bound. `kind` is the type of the data, whose fields the names must be.

    Raises ValueError, with the column, for a text that is no such expression.
    """

    def __init__(self, text: str, kind: Any = None) -> None:
        if len(text) > TEXT:
            raise ValueError(f"an expression is text of at most {TEXT:,} characters")
        self._text, self.kind = text.strip(), kind
        self._fields: set[str] = set()
        self._read(_parsed(self._text), 0)  # which refuses what is none; its closures are many, and made when asked

    @cached_property
    def answer(self) -> Read:
        """What reads the answer, whatever it comes to, from a view, and notes there what it has read."""
        return self._read(_parsed(self._text), 0)

    async def ask(self, view: View) -> bool:
        read: dict[str, Any] = {}
        try:
            answer = self.answer(view, read)
            if answer is not True and answer is not False:
                raise TypeError(f"it comes to {cut(answer)}, and neither to true nor to false")
        except Exception as error:
            values = {name: cut(value) for name, value in read.items()}
            told = "".join(f"; {name} = {value}" for name, value in values.items())
            reason = f"`{self}` has no answer: {str(error)[:400]}{told}"
            view.seen.append(Seen(self._text, values, None, reason))
            raise ConditionError(reason) from error
        view.seen.append(Seen(self._text, {name: cut(value) for name, value in read.items()}, answer))
        return answer

    def problems(self, lenient: bool = False) -> list[str]:
        """The names that are no fields of the data's type."""
        found = (_unknown(self.kind, path) for path in sorted(self._fields))
        return [f"condition `{self}`: {problem}" for problem in found if problem]

    def fields(self) -> set[str]:
        return set(self._fields)

    def _read(self, node: ast.expr, depth: int) -> Read:
        """How a node is read, or ValueError where it is none of those that are let through."""
        if depth > DEPTH:
            raise ValueError(f"an expression has at most {DEPTH} levels")
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None as value):
                return lambda view, read: value
            case ast.Name() | ast.Attribute():
                return self._name(node)
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                return _list([self._read(part, depth + 1) for part in parts])
            case ast.BoolOp(op=word, values=parts):
                return _joined(isinstance(word, ast.Or), [self._read(part, depth + 1) for part in parts])
            case ast.UnaryOp(op=sign, operand=part) if type(sign) in _UNARY:
                return _applied(_UNARY[type(sign)], [self._read(part, depth + 1)])
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
                return _applied(_BINARY[type(sign)], [self._read(left, depth + 1), self._read(right, depth + 1)])
            case ast.Compare(left=left, ops=signs, comparators=others) if all(type(s) in _COMPARED for s in signs):
                reads = [self._read(part, depth + 1) for part in (left, *others)]
                return _compared([_COMPARED[type(sign)] for sign in signs], reads)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return _either(*(self._read(part, depth + 1) for part in (test, body, orelse)))
            case ast.Call(func=ast.Name(id="has"), args=[ast.Name() | ast.Attribute() as named], keywords=[]):
                return self._name(named, asked=True)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
                return _applied(_FUNCTIONS[name], [self._read(part, depth + 1) for part in args])
        return self._refuse(node)

    def _refuse(self, node: ast.expr) -> NoReturn:
        """What is not let through, where it stands, and what may stand there."""
        told = ast.get_source_segment(self._text, node) or self._text
        place = f"column {node.col_offset + 1}: {cut(told[:60])}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            raise ValueError(f"{place}: there is no function of this name or form; there are {_KNOWN}")
        raise ValueError(f"{place} may not stand in an expression: compare fields and constants, or call {_KNOWN}")

    def _name(self, node: ast.expr, asked: bool = False) -> Read:
        """A field, a part of the payload, or a constant; `asked`: only whether it is there."""
        names: list[str] = []
        inner = node
        while isinstance(inner, ast.Attribute):
            names.insert(0, inner.attr)
            inner = inner.value
        if not isinstance(inner, ast.Name) or any(name.startswith("__") for name in (inner.id, *names)):
            self._refuse(node)
        if inner.id in _CONSTANTS and not names and not asked:
            value = _CONSTANTS[inner.id]
            return lambda view, read: value
        path = ".".join((inner.id, *names))
        if inner.id == "event":
            return _payload(path, names, asked)
        self._fields.add(path)
        return _field(path, asked)


def _parsed(text: str) -> ast.expr:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # as for "\d", which Python takes with a warning
            return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"column {error.offset or 1}: {error.msg}; it has `and or not`, and `==` for equal") from error
    except (ValueError, MemoryError, RecursionError) as error:  # NUL, or nested beyond what the parser takes
        raise ValueError(f"it cannot be parsed: {error}") from error


# -- names ------------------------------------------------------------------------------------------------------------


def _field(path: str, asked: bool) -> Read:
    def read_field(view: View, read: dict[str, Any]) -> Any:
        root = view.data
        value = root.get(path, _MISSING) if isinstance(root, dict) else _MISSING  # nearly always
        if value is _MISSING:
            value = _found(root, path)
        return _met(path, value, asked, read)

    return read_field


def _payload(path: str, names: list[str], asked: bool) -> Read:
    inner = ".".join(names)

    def read_payload(view: View, read: dict[str, Any]) -> Any:
        return _met(path, _found(view.payload, inner) if inner else view.payload, asked, read)

    return read_payload


def _met(path: str, value: Any, asked: bool, read: dict[str, Any]) -> Any:
    if asked:
        read[path] = None if value is _MISSING else value
        return read[path] is not None
    if value is _MISSING:
        raise LookupError(f"there is no {path}; has({path}) asks whether there is")
    read[path] = value
    return value


def _found(root: Any, path: str) -> Any:
    """What stands at a path: at each level the exact key wins over the path. Of an object, only declared fields."""
    while (found := _part(root, path)) is _MISSING and "." in path:
        name, _, path = path.partition(".")
        root = _part(root, name)
    return found


def _part(root: Any, name: str) -> Any:
    if isinstance(root, Mapping):
        return root.get(name, _MISSING)
    return getattr(root, name, _MISSING) if name in _declared(type(root)) else _MISSING


def _declared(kind: Any) -> Iterable[str]:
    """The names of the fields that a type declares; none of one that declares none."""
    for where in ("__struct_fields__", "__dataclass_fields__", "model_fields", "__annotations__"):
        if where != "__annotations__" or hasattr(kind, "__required_keys__"):
            names: Iterable[str] = getattr(kind, where, ())
            if names:
                return names
    return ()


def _unknown(kind: Any, path: str) -> str | None:
    """The first name of a path that is no field of the data's type, as far as types say."""
    for name in path.split("."):
        names = tuple(_declared(kind))
        if not names:
            return None
        if name not in names:
            return f"a {kind.__name__} has no field {name!r}{nearest(name, names)}"
        try:
            kind = get_type_hints(kind).get(name)
        except (NameError, TypeError):
            return None
        if get_origin(kind) in (Union, UnionType):
            others = [one for one in get_args(kind) if one is not NoneType]
            kind = others[0] if len(others) == 1 else None
    return None


# -- operators and functions ------------------------------------------------------------------------------------------


def _list(parts: list[Read]) -> Read:
    return lambda view, read: [part(view, read) for part in parts]


def _applied(function: Callable[..., Any], parts: list[Read]) -> Read:
    if len(parts) == 1:
        one = parts[0]
        return lambda view, read: function(one(view, read))
    return lambda view, read: function(*[part(view, read) for part in parts])


def _truth(value: Any) -> bool:
    if value is not True and value is not False:
        raise TypeError(f"{cut(value)} is neither true nor false: compare it")
    return value


def _joined(decisive: bool, parts: list[Read]) -> Read:
    def joined(view: View, read: dict[str, Any]) -> bool:
        for part in parts:
            answer = part(view, read)
            if answer is decisive or _truth(answer) is decisive:
                return decisive
        return not decisive

    return joined


def _either(test: Read, body: Read, orelse: Read) -> Read:
    return lambda view, read: (body if _truth(test(view, read)) else orelse)(view, read)


def _compared(tests: list[Callable[[Any, Any], Any]], parts: list[Read]) -> Read:
    left_of, test, right_of = parts[0], tests[0], parts[1]
    if len(tests) == 1:
        return lambda view, read: test(left_of(view, read), right_of(view, read))

    def compared(view: View, read: dict[str, Any]) -> Any:
        left = left_of(view, read)
        for test, part in zip(tests, parts[1:], strict=True):
            right = part(view, read)
            if not test(left, right):
                return False
            left = right
        return True

    return compared


def _order(name: str, test: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Two numbers, two texts, two dates or times: as the operator of this name in a Condition."""
    answer = OPERATORS[name].answer

    def ordered(left: Any, right: Any) -> Any:
        if type(left) is type(right) and type(left) in (int, float, str):
            return test(left, right)
        try:
            return answer(left, right)
        except TypeError:
            kinds = f"{type(left).__qualname__} and {type(right).__qualname__}"
            raise TypeError(f"{cut(left)} and {cut(right)} have no order, {kinds}") from None

    return ordered


def _in(left: Any, right: Any) -> bool:
    if isinstance(right, str) and not isinstance(left, str):
        raise TypeError(f"{cut(left)} is no text, to be sought in one")
    if not isinstance(right, (str, list, tuple, set, frozenset, Mapping)):
        raise TypeError(f"{cut(right)} is nothing that holds others")
    return left in (right if isinstance(right, (set, frozenset, Mapping)) else _sized(right))


def _sized(value: Any) -> Any:
    if len(value) > SIZE:
        raise ValueError(f"{cut(value)[:40]} is longer than {SIZE:,}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{cut(value)} is no text")
    return str(_sized(value))


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        raise TypeError(f"{cut(value)} is no number")
    if isinstance(value, int) and value.bit_length() > BITS:
        raise ValueError(f"a whole number of more than {BITS:,} bits")
    return value


def _numbers(sign: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *values: _number(sign(*map(_number, values)))


def _plus(left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        return _text(_text(left) + _text(right))
    return _number(_number(left) + _number(right))


def _round(number: Any, digits: Any = None) -> Any:
    if digits is not None and (type(digits) is not int or abs(digits) > 100):
        raise TypeError(f"{cut(digits)} is no number of digits")
    if isinstance(number, Decimal) and digits is None:  # int() of 1E+999999999 would not end
        return number.to_integral_value()
    return round(_number(number), digits)


def _least(function: Callable[..., Any]) -> Callable[..., Any]:
    """min, max and sum: of several values, or of a list."""

    def of(*values: Any) -> Any:
        given = values[0] if len(values) == 1 else values
        if not isinstance(given, (list, tuple)):
            raise TypeError(f"{cut(given)} is no list")
        return function([value if isinstance(value, str) else _number(value) for value in _sized(given)])

    return of


def _len(value: Any) -> int:
    if not isinstance(value, (str, list, tuple, set, frozenset, Mapping)):
        raise TypeError(f"{cut(value)} has no length")
    return len(value)


_UNARY: dict[type, Callable[..., Any]] = {
    ast.Not: lambda value: not _truth(value), ast.USub: _numbers(python.neg), ast.UAdd: _numbers(python.pos),
}  # fmt: skip
_BINARY: dict[type, Callable[..., Any]] = {
    ast.Add: _plus, ast.Sub: _numbers(python.sub), ast.Mult: _numbers(python.mul), ast.Div: _numbers(python.truediv),
    ast.FloorDiv: _numbers(python.floordiv), ast.Mod: _numbers(python.mod),
}  # fmt: skip
_COMPARED: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: python.eq, ast.NotEq: python.ne, ast.Lt: _order("lt", python.lt), ast.LtE: _order("le", python.le),
    ast.Gt: _order("gt", python.gt), ast.GtE: _order("ge", python.ge), ast.In: _in,
    ast.NotIn: lambda left, right: not _in(left, right),
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": _len, "lower": lambda text: _text(text).lower(), "upper": lambda text: _text(text).upper(),
    "strip": lambda text: _text(text).strip(), "starts_with": lambda text, start: _text(text).startswith(_text(start)),
    "ends_with": lambda text, end: _text(text).endswith(_text(end)), "abs": _numbers(abs), "round": _round,
    "min": _least(min), "max": _least(max), "sum": _least(sum),
}  # fmt: skip
_KNOWN = ", ".join([*_FUNCTIONS, "has"])
