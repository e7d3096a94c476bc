"""Guards: what a transition may ask of a run's data, of an event's payload, or of a function of the user's.

A guard is built once, when the workflow is defined, and asked once per decision; it changes nothing but `View.seen`.
"""

from __future__ import annotations

import datetime as dt
import functools
import inspect
import logging
import operator as operators
import re
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, Literal, NoReturn

import msgspec

from fsmworkflow.errors import ConditionError

__all__ = [
    "All", "Any_", "Comparison", "Condition", "Function", "Guard", "Not", "Operand", "Seen", "View", "as_guard", "cut",
    "field", "payload",
]  # fmt: skip

log = logging.getLogger("fsmworkflow")

WIDTH = 200
_MISSING: Any = object()

Test = Callable[[Any, Any], bool | None]


class Seen(msgspec.Struct, frozen=True):
    """One question and its answer, all text: `values` maps what was looked at to its repr, cut at 200 characters.

    `answer` is None where the question could not be answered, or False where it was asked leniently; `error` says why.
    """

    condition: str
    values: dict[str, str]
    answer: bool | None
    error: str | None = None


class View:
    """What a guard may look at. Every leaf that is asked appends one `Seen` to `seen`.

    `data` is a mapping or any object with attributes, `payload` is None where there is no event, `ctx` is what plain
    functions are given. `lenient` asks as the first FSM-Workflow did: False, not an error, for what has no answer.
    """

    __slots__ = ("ctx", "data", "lenient", "payload", "seen")

    def __init__(self, data: Any, payload: Any = None, ctx: Any = None, lenient: bool = False) -> None:
        self.data = data
        self.payload = payload
        self.ctx = ctx
        self.lenient = lenient
        self.seen: list[Seen] = []


# -- values as text -------------------------------------------------------------------------------------------------


class _Repr(reprlib.Repr):
    """A repr that looks no further once it has written enough."""

    def __init__(self) -> None:
        super().__init__()
        self.room = 3 * WIDTH
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = WIDTH // 3
        self.maxstring = self.maxother = self.maxlong = WIDTH

    def repr1(self, x: Any, level: int) -> str:
        if self.room <= 0:
            return "..."
        text = super().repr1(x, level)
        self.room -= len(text)
        return text


def cut(value: object) -> str:
    """The repr of a value, cut at 200 characters, however large the value is. Never raises."""
    kind = type(value)
    try:
        if kind is int or kind is float or kind is bool or value is None:
            text = repr(value)
        elif isinstance(value, str):
            text = repr(str(value[: WIDTH + 1]))
        else:
            text = _plain(_Repr().repr(value))
    except Exception:  # a repr of the user's, or an int of more digits than Python writes
        return f"<{kind.__qualname__} without a repr>"
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _plain(text: str) -> str:
    """Text that every store takes: neither NUL nor lone surrogates, as no text in a database may hold them."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _error_text(error: BaseException) -> str:
    try:
        text = _plain(str(error))
    except Exception:  # an error of the user's whose text cannot be made
        text = ""
    text = text if isinstance(error, ConditionError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= 4 * WIDTH else text[: 4 * WIDTH - 3] + "..."


# -- guards ---------------------------------------------------------------------------------------------------------


class Guard(ABC):
    """Something that can be asked for yes or no. Combines with `&`, `|` and `~`; a plain function may stand beside it.

    `str(guard)` is its text, as in `score >= 8`. Guards are equal only to themselves.
    """

    __slots__ = ()

    @abstractmethod
    async def ask(self, view: View) -> bool:
        """Answers from `view`, and appends what was looked at to `view.seen`.

        Raises ConditionError where there is no answer; what a function of the user's raises passes on.
        """

    def problems(self) -> list[str]:
        """What is wrong with this guard, whatever the data; empty where nothing is."""
        return []

    def fields(self) -> set[str]:
        """The paths into the data that this guard reads. What functions read is not known."""
        return set()

    def __and__(self, other: object) -> Guard:
        return All([self, as_guard(other)]) if _is_guard(other) else NotImplemented

    def __rand__(self, other: object) -> Guard:
        return All([as_guard(other), self]) if _is_guard(other) else NotImplemented

    def __or__(self, other: object) -> Guard:
        return Any_([self, as_guard(other)]) if _is_guard(other) else NotImplemented

    def __ror__(self, other: object) -> Guard:
        return Any_([as_guard(other), self]) if _is_guard(other) else NotImplemented

    def __invert__(self) -> Guard:
        return Not(self)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"the condition `{self}` has no answer before it is asked: use & instead of and, | instead of or, "
            "~ instead of not, and (a < b) & (b < c) instead of a < b < c"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"


def _is_guard(value: object) -> bool:
    return isinstance(value, Guard) or callable(value)


def as_guard(value: object) -> Guard:
    """A guard from a guard, from a function `fn(ctx) -> bool`, sync or async, or from a list of those, of which all
    must hold. Raises TypeError for anything else."""
    if isinstance(value, Guard):
        return value
    if isinstance(value, (list, tuple)):
        return as_guard(value[0]) if len(value) == 1 else All([as_guard(part) for part in value])
    if callable(value):
        return Function(value)
    raise TypeError(
        f"{cut(value)} is no condition: give a comparison such as field('score') >= 8, a Condition, "
        "a function fn(ctx) -> bool, or a list of those"
    )


class _Several(Guard):
    __slots__ = ("parts",)

    def __init__(self, parts: Iterable[Guard]) -> None:
        flat: list[Guard] = []
        for part in parts:
            flat += part.parts if isinstance(part, _Several) and type(part) is type(self) else [part]
        self.parts: tuple[Guard, ...] = tuple(flat)

    def problems(self) -> list[str]:
        return [problem for part in self.parts for problem in part.problems()]

    def fields(self) -> set[str]:
        return set().union(*(part.fields() for part in self.parts))

    def _joined(self, word: str) -> str:
        return word.join(f"({part})" if isinstance(part, _Several) else str(part) for part in self.parts)


class All(_Several):
    """Holds when every part holds; asks no further than the first that does not. Without parts it always holds."""

    __slots__ = ()

    async def ask(self, view: View) -> bool:
        for part in self.parts:
            if not await part.ask(view):
                return False
        return True

    def __str__(self) -> str:
        return self._joined(" and ") or "always"


class Any_(_Several):
    """Holds when one part holds; asks no further than the first that does. Without parts it never holds."""

    __slots__ = ()

    async def ask(self, view: View) -> bool:
        for part in self.parts:
            if await part.ask(view):
                return True
        return False

    def __str__(self) -> str:
        return self._joined(" or ") or "never"


class Not(Guard):
    """Holds when `part` does not. What has no answer has none when it is negated, either."""

    __slots__ = ("part",)

    def __init__(self, part: Guard) -> None:
        self.part = part

    async def ask(self, view: View) -> bool:
        return not await self.part.ask(view)

    def problems(self) -> list[str]:
        return self.part.problems()

    def fields(self) -> set[str]:
        return self.part.fields()

    def __invert__(self) -> Guard:
        return self.part

    def __str__(self) -> str:
        return f"not ({self.part})" if isinstance(self.part, _Several) else f"not {self.part}"


# -- functions ------------------------------------------------------------------------------------------------------


class Function(Guard):
    """A function `fn(ctx)`, sync or async, as a guard.

    Its answer is taken as Python takes it in an `if`, so a match or a count may be returned. None is refused with a
    ConditionError, because it is what a function returns that forgot its `return`. What it raises passes on.
    """

    __slots__ = ("function", "text")

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.text = _name(function)

    async def ask(self, view: View) -> bool:
        return await _call(self.function, view.ctx, view, self.text, {})

    def problems(self) -> list[str]:
        return _call_problems(self.function)

    def __str__(self) -> str:
        return self.text


async def _call(
    function: Callable[..., Any], given: Any, view: View, text: str, values: dict[str, str], *, none: bool | None = None
) -> bool:
    """What `function(given)` says; `none` is what a returned None means, where it is no error."""
    try:
        answer = function(given)
        if answer is not True and answer is not False:
            answer = await answer if inspect.isawaitable(answer) else answer
            answer = none if answer is None else bool(answer)
            if answer is None:
                raise ConditionError(f"`{text}` returned None: return True or False")
    except Exception as error:
        view.seen.append(Seen(text, values, None, _error_text(error)))
        raise
    view.seen.append(Seen(text, values, answer))
    return answer


def _name(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return _plain(str(getattr(function, "__qualname__", type(function).__qualname__))[:WIDTH])


def _call_problems(function: Callable[..., Any]) -> list[str]:
    if not _is_guard(function):
        return [f"condition {_name(function)}: {cut(function)} is no function"]
    try:
        inspect.signature(function).bind(None)
    except ValueError:  # written in C, without a signature to read
        return []
    except TypeError as error:
        return [f"condition {_name(function)} cannot be called with one argument: {error}"]
    return []


# -- operators ------------------------------------------------------------------------------------------------------
# Each takes the two values and answers True or False, or None where it does not know their kinds.

_NUMBERS = (int, float, Decimal)
_ORDERED = (str, dt.datetime, dt.date, dt.time, dt.timedelta)
_SAME = frozenset((int, float, Decimal, *_ORDERED))
_LISTS = (list, tuple, set, frozenset)


def _eq(left: Any, right: Any) -> bool:
    return bool(left == right)


def _ne(left: Any, right: Any) -> bool:
    return bool(left != right)


def _comparable(left: Any, right: Any) -> bool:
    if isinstance(left, _NUMBERS) and isinstance(right, _NUMBERS):
        return not isinstance(left, bool) and not isinstance(right, bool)
    return any(isinstance(left, kind) and isinstance(right, kind) for kind in _ORDERED)


def _order(compare: Callable[[Any, Any], Any]) -> Test:
    def test(left: Any, right: Any) -> bool | None:
        kind = type(left)
        if (kind is type(right) and kind in _SAME) or _comparable(left, right):
            return bool(compare(left, right))
        return None

    return test


def _contains(left: Any, right: Any) -> bool | None:
    if isinstance(left, str):
        return right in left if isinstance(right, str) else None
    return right in left if isinstance(left, (*_LISTS, dict)) else None


def _in(left: Any, right: Any) -> bool | None:
    return left in right if isinstance(right, _LISTS) else None


def _starts_with(left: Any, right: Any) -> bool | None:
    return left.startswith(right) if isinstance(left, str) and isinstance(right, str) else None


def _ends_with(left: Any, right: Any) -> bool | None:
    return left.endswith(right) if isinstance(left, str) and isinstance(right, str) else None


def _matches(left: Any, right: Any) -> bool | None:
    if isinstance(left, str) and isinstance(right, (str, re.Pattern)):
        return re.match(right, left) is not None
    return None


def _is_empty(left: Any, _: Any) -> bool | None:
    if left is None:
        return True
    return len(left) == 0 if hasattr(left, "__len__") else None


def _is_none(left: Any, _: Any) -> bool:
    return left is None


def _negated(test: Test) -> Test:
    def negated(left: Any, right: Any) -> bool | None:
        answer = test(left, right)
        return None if answer is None else not answer

    return negated


_TESTS: dict[str, Test] = {
    "eq": _eq,
    "ne": _ne,
    "gt": _order(operators.gt),
    "ge": _order(operators.ge),
    "lt": _order(operators.lt),
    "le": _order(operators.le),
    "contains": _contains,
    "not_contains": _negated(_contains),
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "matches": _matches,
    "in": _in,
    "not_in": _negated(_in),
    "is_empty": _is_empty,
    "is_not_empty": _negated(_is_empty),
    "is_none": _is_none,
    "is_not_none": _negated(_is_none),
}
_SIGNS = {"eq": "==", "ne": "!=", "gt": ">", "ge": ">=", "lt": "<", "le": "<=", "not_contains": "does not contain"}
_UNARY = frozenset(("is_empty", "is_not_empty", "is_none", "is_not_none"))
_ORDERINGS = frozenset(("gt", "ge", "lt", "le"))
_HOLDING = frozenset(("contains", "not_contains"))
_KNOWN = (*_TESTS, "custom")
_MEANT = {sign: name for name, sign in _SIGNS.items()} | {"gte": "ge", "lte": "le", "neq": "ne"}


def _first_kind(value: Any) -> str | None:
    """What the first FSM-Workflow would have seen; None for the kinds that it could not store."""
    if value is None:
        return "none"
    kinds: dict[str, Any] = {"number": (int, float), "text": str, "list": list, "mapping": dict}
    return next((name for name, kind in kinds.items() if isinstance(value, kind)), None)


def _first_test(operator: str, left: Any, right: Any) -> bool | None:
    """The answer of the first FSM-Workflow, None where it only had a False for want of a better one.

    It compared numbers (True and False among them) with numbers and text with text, and asked lists what they hold.
    What it could not do at all (`in` and `not_in`, other operators on text, other kinds) is answered strictly.
    """
    if type(left) is type(right) and type(left) in (int, float, str):  # most are, and they need no more looking
        return _TESTS[operator](left, right)
    kind, other = _first_kind(left), _first_kind(right)
    if kind == "none":
        return _TESTS[operator](left, right) if operator in ("is_none", "is_not_none") else None
    if operator in ("eq", "ne") and (kind in ("list", "mapping") or (kind and other and kind != other)):
        return None
    if kind == "mapping" and operator in ("contains", "not_contains", "is_empty", "is_not_empty"):
        return None
    if kind == other == "number":
        left, right = +left, +right  # True and False as 1 and 0
    return _TESTS[operator](left, right)


# -- comparisons ----------------------------------------------------------------------------------------------------


class Comparison(Guard):
    """One operator between an operand and a value or another operand; an unary operator's value is not looked at.

    A missing field reads as None. `eq`, `ne`, `in`, `not_in`, `is_none`, `is_not_none`, `is_empty` and `is_not_empty`
    answer for None; every other operator raises ConditionError for it, and for values of a kind that it does not know.
    `eq` and `ne` are Python's `==` and `!=`, so 1 equals 1.0 and True, and what is of different kinds is unequal;
    True and False are no numbers where an order is asked for.
    """

    __slots__ = ("_other", "_test", "left", "operator", "right", "text")

    def __init__(self, left: Operand, operator: str, right: Any = None) -> None:
        self.left = left
        self.operator = operator
        self.right = right
        self.text = self._text()
        self._test = _TESTS.get(operator) if _is_text(operator) else None
        self._other = right if isinstance(right, Operand) and not (self._test and operator in _UNARY) else None

    def _text(self) -> str:
        if not _is_text(self.operator):
            return f"{self.left} {cut(self.operator)} {cut(self.right)}"
        sign = _SIGNS.get(self.operator) or _plain(self.operator[:WIDTH].replace("_", " "))
        if self.operator in _UNARY:
            return f"{self.left} {sign}"
        return f"{self.left} {sign} {self.right if isinstance(self.right, Operand) else cut(self.right)}"

    async def ask(self, view: View) -> bool:
        return self._decide(view)

    def _decide(self, view: View) -> bool:
        values: dict[str, str] = {}
        answer = cause = None
        try:
            left, right = self.left.read(view), self.right
            values[self.left.text] = cut(left)
            if self._other is not None:
                right = self._other.read(view)
                values[self._other.text] = cut(right)
        except Exception as error:  # a property of the user's
            self._give_up(view, values, f"`{self.text}` has no answer: {_error_text(error)}", error)
        if view.lenient and self._test is not None:
            return self._lenient(view, left, right, values)
        try:
            answer = self._strict(left, right)
        except Exception as error:  # what the values' own operators raise, or a pattern that does not compile
            cause = error
        if answer is None:
            self._give_up(view, values, self._wrong(left, right, cause), cause)
        view.seen.append(Seen(self.text, values, answer))
        return answer

    def _strict(self, left: Any, right: Any) -> bool | None:
        if self._test is None or (right is None and self._other is not None and self.operator in _HOLDING):
            return None
        return self._test(left, right)

    def _lenient(self, view: View, left: Any, right: Any, values: dict[str, str]) -> bool:
        try:
            answer, strict = _first_test(self.operator, left, right), None
            if answer is None:
                strict = self._strict(left, right)
        except Exception:  # such as a pattern that does not compile
            answer = strict = None
        error = None
        if answer is None:
            error = self._wrong(left, right)
            if strict is not False:  # where the careful answer is False too, there is nothing to warn of
                log.warning("condition on %s: operator %s does not take its value, so it is False",
                            self.left, self.operator)  # fmt: skip
        view.seen.append(Seen(self.text, values, answer or False, error))
        return answer or False

    def _give_up(self, view: View, values: dict[str, str], reason: str, cause: Exception | None) -> NoReturn:
        view.seen.append(Seen(self.text, values, None, reason))
        raise ConditionError(reason) from cause

    def _wrong(self, left: Any, right: Any, cause: Exception | None = None) -> str:
        if self._test is None:
            return f"`{self.text}` has no answer: {self._operator_problem()}"
        hint = f" ({_error_text(cause)})" if cause is not None else ""
        found = f"{self.left} = {cut(left)} ({type(left).__qualname__})"
        if self.operator not in _UNARY:
            other = "" if self._other is None else f"{self._other} = "
            found += f" with {other}{cut(right)} ({type(right).__qualname__})"
        for operand, value in ((self.left, left), (self._other, right)):
            if operand is not None and value is None:
                hint += f"; {operand} is missing or None, ask is_not_none first"
        return f"`{self.text}` has no answer: operator {self.operator} does not take {found}{hint}"

    def _operator_problem(self) -> str:
        if self.operator == "custom":
            return "operator 'custom' needs a custom_function"
        import difflib  # only a mistake pays for it

        name = str(self.operator)[:WIDTH].lower()
        near = [_MEANT[name]] if name in _MEANT else difflib.get_close_matches(name, _KNOWN, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {' '.join(_KNOWN)}"
        return f"unknown operator {cut(self.operator)}: {hint}"

    def problems(self) -> list[str]:
        found = [*self.left.problems(), *([] if self._other is None else self._other.problems())]
        if self._test is None:
            found.append(self._operator_problem())
        elif self._other is None and (problem := self._value_problem()):
            found.append(problem)
        return [f"condition `{self.text}`: {problem}" for problem in found]

    def _value_problem(self) -> str | None:
        kind = type(self.right).__qualname__
        if self.operator in ("in", "not_in") and not isinstance(self.right, _LISTS):
            return f"operator {self.operator} needs a list, a tuple or a set, not {kind}"
        if self.operator in ("starts_with", "ends_with") and not isinstance(self.right, str):
            return f"operator {self.operator} needs text, not {kind}"
        if self.operator in _ORDERINGS and not isinstance(self.right, (*_NUMBERS, *_ORDERED)):
            return f"operator {self.operator} has no order for {kind}"
        return self._pattern_problem() if self.operator == "matches" else None

    def _pattern_problem(self) -> str | None:
        if not isinstance(self.right, (str, re.Pattern)):
            return f"operator matches needs a pattern, not {type(self.right).__qualname__}"
        try:
            re.compile(self.right)
        except (re.error, RecursionError, OverflowError) as error:
            return f"the pattern does not compile: {error}"
        return None

    def fields(self) -> set[str]:
        return self.left.fields() | (self._other.fields() if self._other is not None else set())

    def __str__(self) -> str:
        return self.text


class Condition(Comparison):
    """A comparison of one field of the data, in the words of the first FSM-Workflow.

    `operator` is one of eq ne gt ge lt le contains not_contains starts_with ends_with matches (re.match, so from the
    start) in not_in is_empty is_not_empty is_none is_not_none custom. A `custom_function`, sync or async, wins over
    the operator and is given the field's value, None where it is missing; what it returns is taken as `Function` takes
    it. Construction never fails: `problems()` names an unknown operator, and asking it raises ConditionError.
    """

    __slots__ = ("custom_function", "field", "value")

    def __init__(
        self,
        field: str | Operand,
        operator: str = "eq",
        value: Any = None,
        custom_function: Callable[[Any], bool | Awaitable[bool]] | None = None,
    ) -> None:
        self.field = field
        self.value = value
        self.custom_function = custom_function
        super().__init__(field if isinstance(field, Operand) else Operand("data", field), operator, value)

    def _text(self) -> str:
        return super()._text() if self.custom_function is None else f"{_name(self.custom_function)}({self.left})"

    async def ask(self, view: View) -> bool:
        if self.custom_function is None:
            return self._decide(view)
        value = self.left.read(view)
        none = False if view.lenient else None
        return await _call(self.custom_function, value, view, self.text, {self.left.text: cut(value)}, none=none)

    def problems(self) -> list[str]:
        if self.custom_function is None:
            return super().problems()
        return [*self.left.problems(), *_call_problems(self.custom_function)]

    def fields(self) -> set[str]:
        return super().fields() if self.custom_function is None else self.left.fields()


# -- operands -------------------------------------------------------------------------------------------------------


class Operand:
    """A place in the data or in the payload, to be compared: `field("left") > payload("qty")`.

    A dotted path looks into mappings, objects and, by number, lists: "items.0.price". At each level the exact key wins
    over the path. What is not there reads as None; of an object only public attributes that are not callable are there.
    """

    __slots__ = ("_dotted", "of", "path", "text")

    def __init__(self, of: Literal["data", "payload"], path: str) -> None:
        self.of = of
        self.path = path
        self.text = self._text()
        self._dotted = not _is_text(path) or "." in path or not path

    def _text(self) -> str:
        if not _is_text(self.path):
            return cut(self.path)
        name = _plain(self.path[:WIDTH])
        if self.of == "payload":
            return f"payload.{name}" if name else "payload"
        # A field of the data that is called payload must not read like the event's.
        return f"data.{name}" if name.partition(".")[0] == "payload" else name

    def read(self, view: View) -> Any:
        """The value at this place, None where there is none. Raises only what a property of the user's raises."""
        root = view.data if self.of == "data" else view.payload
        if self._dotted:
            return _read(root, self.path) if self.path or self.of == "data" else root
        if isinstance(root, dict):
            try:
                return root[self.path]
            except KeyError:
                return None
        found = _step(root, self.path)
        return None if found is _MISSING else found

    def problems(self) -> list[str]:
        """What is wrong with the path: no text, empty, or with control characters."""
        if not _is_text(self.path):
            return [f"a field is named by text, not by {cut(self.path)}"]
        if not self.path and self.of == "data":
            return ["a field needs a name"]
        if any(ord(char) < 32 or ord(char) == 127 for char in self.path):
            return [f"the name {cut(self.path)} has control characters"]
        return []

    def fields(self) -> set[str]:
        """The path, where this operand looks into the data."""
        return {self.path} if self.of == "data" and _is_text(self.path) else set()

    def __eq__(self, other: object) -> Comparison:  # type: ignore[override]
        return Comparison(self, "eq", other)

    def __ne__(self, other: object) -> Comparison:  # type: ignore[override]
        return Comparison(self, "ne", other)

    def __lt__(self, other: object) -> Comparison:
        return Comparison(self, "lt", other)

    def __le__(self, other: object) -> Comparison:
        return Comparison(self, "le", other)

    def __gt__(self, other: object) -> Comparison:
        return Comparison(self, "gt", other)

    def __ge__(self, other: object) -> Comparison:
        return Comparison(self, "ge", other)

    # By identity, as == builds a comparison: an operand in a set or a dict is found by itself alone.
    __hash__ = object.__hash__

    def contains(self, value: object) -> Comparison:
        """Text in this text, or an item of this list, tuple or set, or a key of this dict."""
        return Comparison(self, "contains", value)

    def not_contains(self, value: object) -> Comparison:
        """The opposite of `contains`."""
        return Comparison(self, "not_contains", value)

    def starts_with(self, text: str | Operand) -> Comparison:
        """This text begins with `text`."""
        return Comparison(self, "starts_with", text)

    def ends_with(self, text: str | Operand) -> Comparison:
        """This text ends with `text`."""
        return Comparison(self, "ends_with", text)

    def matches(self, pattern: str | re.Pattern[str] | Operand) -> Comparison:
        """This text matches the regular expression from its start on (re.match)."""
        return Comparison(self, "matches", pattern)

    def in_(self, values: object) -> Comparison:
        """This value is one of a list, tuple or set."""
        return Comparison(self, "in", values)

    def not_in(self, values: object) -> Comparison:
        """This value is none of a list, tuple or set."""
        return Comparison(self, "not_in", values)

    def is_empty(self) -> Comparison:
        """None, or of length 0."""
        return Comparison(self, "is_empty")

    def is_not_empty(self) -> Comparison:
        """Neither None nor of length 0."""
        return Comparison(self, "is_not_empty")

    def is_none(self) -> Comparison:
        """Missing, or None."""
        return Comparison(self, "is_none")

    def is_not_none(self) -> Comparison:
        """There, and not None."""
        return Comparison(self, "is_not_none")

    def __bool__(self) -> NoReturn:
        raise TypeError(f"{self} is a place, not a value: compare it, as in field('approved') == True")

    def _uncompared(self, *_: object) -> NoReturn:
        raise TypeError(
            f"{self} is a place, not a condition: compare it, and put each comparison in parentheses, as & and | bind "
            "closer than ==: (field('a') == 1) & (field('b') == 2)"
        )

    __and__ = __rand__ = __or__ = __ror__ = __invert__ = _uncompared

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<Operand {self.text}>"


def field(path: str) -> Operand:
    """The field of the data at `path`, to be compared."""
    return Operand("data", path)


def payload(path: str = "") -> Operand:
    """The part of the event's payload at `path`, or the whole payload; None where there is no event."""
    return Operand("payload", path)


def _read(root: Any, path: Any) -> Any:
    if not isinstance(path, str):
        return None
    rest = path
    while True:
        found = _step(root, rest)
        if found is not _MISSING:
            return found
        name, dot, rest = rest.partition(".")
        root = _step(root, name) if dot else _MISSING
        if root is _MISSING:
            return None


def _step(root: Any, name: str) -> Any:
    if isinstance(root, (dict, Mapping)):
        try:
            return root[name]
        except KeyError:
            return _MISSING
    if isinstance(root, (list, tuple)) and name.isascii() and name.isdigit():
        return root[int(name)] if len(name) < 12 and int(name) < len(root) else _MISSING
    if root is None or name.startswith("_"):
        return _MISSING
    found = getattr(root, name, _MISSING)
    return _MISSING if callable(found) else found
