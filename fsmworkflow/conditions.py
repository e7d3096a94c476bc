"""Guards: what a transition may ask of a run's data, of an event's payload, or of a function of the user's.

A guard is built once, when the workflow is defined, and asked once per decision; it changes nothing but `View.seen`.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Literal, NoReturn

import msgspec

from fsmworkflow.errors import ConditionError
from fsmworkflow.operators import OPERATORS, Operator, unknown

__all__ = ["Condition", "Function", "Guard", "Joined", "Not", "Operand", "Seen", "View"]
__all__ += ["as_guard", "cut", "field", "payload"]

log = logging.getLogger("fsmworkflow")

WIDTH = 200
_MISSING: Any = object()


class Seen(msgspec.Struct, frozen=True):
    """One question and its answer, all text: `values` maps what was looked at to its repr, cut at 200 characters.

    `answer` is None where the question could not be answered, or False where it was asked leniently; `error` says why.
    """

    condition: str
    values: dict[str, str]
    answer: bool | None
    error: str | None = None


class View(msgspec.Struct):
    """What a guard may look at. Every condition and function that is asked appends one `Seen` to `seen`.

    `data` is a mapping or any object with attributes, `payload` is None where there is no event, `ctx` is what plain
    functions are given. `lenient` asks as the first FSM-Workflow did: False, not an error, for what has no answer.
    """

    data: Any
    payload: Any = None
    ctx: Any = None
    lenient: bool = False
    seen: list[Seen] = []  # noqa: RUF012 - msgspec gives each view a list of its own


# -- values as text -------------------------------------------------------------------------------------------------

_repr = reprlib.Repr()  # looks at no more than 20 items of anything, three levels deep
_repr.maxlevel = 3
_repr.maxdict = _repr.maxlist = _repr.maxtuple = _repr.maxset = _repr.maxfrozenset = 20
_repr.maxstring = _repr.maxother = _repr.maxlong = WIDTH


def cut(value: object) -> str:
    """The repr of a value, cut at 200 characters, however large the value is. Never raises."""
    kind = type(value)
    try:
        if kind is str:
            text = repr(value[:WIDTH])  # type: ignore[index]
        elif kind is int or kind is float or kind is bool or value is None:
            text = repr(value)
        else:  # of a dict whose fields are decoded late, only those that are told
            text = _repr.repr_dict(value, 3) if isinstance(value, dict) else _repr.repr(value)
            text = _storable(text)
    except Exception:  # an int of more digits than Python writes
        return f"<{kind.__qualname__} without a repr>"
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def _storable(text: str) -> str:
    """Text that every store takes: no text in a database may hold NUL or a lone surrogate."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _told(error: BaseException) -> str:
    return _storable(f"{type(error).__name__}: {error}"[: 4 * WIDTH])


# -- guards ---------------------------------------------------------------------------------------------------------


class Guard(ABC):
    """Something that can be asked for yes or no. Combines with `&`, `|` and `~`; a plain function may stand beside it.

    `str(guard)` is its text, as in `score >= 8`. Guards are equal only to themselves.
    """

    parts: tuple[Guard, ...] = ()

    @abstractmethod
    async def ask(self, view: View) -> bool:
        """Answers from `view`, and appends what was looked at to `view.seen`.

        Raises ConditionError where there is no answer; what a function of the user's raises passes on.
        """

    def problems(self, lenient: bool = False) -> list[str]:
        """What is wrong with this guard, whatever the data; empty where nothing is.

        Leniently, a constant that its operator can never take is no problem: the answer is False.
        """
        return [problem for part in self.parts for problem in part.problems(lenient)]

    def fields(self) -> set[str]:
        """The paths into the data that this guard reads. What functions read is not known."""
        return set().union(*(part.fields() for part in self.parts))

    def __and__(self, other: object) -> Guard:
        return Joined("and", [self, as_guard(other)])

    def __rand__(self, other: object) -> Guard:
        return Joined("and", [as_guard(other), self])

    def __or__(self, other: object) -> Guard:
        return Joined("or", [self, as_guard(other)])

    def __ror__(self, other: object) -> Guard:
        return Joined("or", [as_guard(other), self])

    def __invert__(self) -> Guard:
        return Not(self)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"the condition `{self}` has no answer before it is asked: use & instead of and, | instead of or, "
            "~ instead of not, and (a < b) & (b < c) instead of a < b < c"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"


def as_guard(value: object) -> Guard:
    """A guard from a guard, from a function `fn(ctx) -> bool`, sync or async, or from a list of those, of which all
    must hold. Raises TypeError for anything else."""
    if isinstance(value, Guard):
        return value
    if isinstance(value, (list, tuple)):
        return as_guard(value[0]) if len(value) == 1 else Joined("and", map(as_guard, value))
    return Function(value) if callable(value) else _refuse(value)


def _refuse(value: object) -> NoReturn:
    raise TypeError(
        f"{cut(value)} is no condition: compare it, as in field('score') >= 8, and put each comparison in parentheses "
        "beside & and |; or give a function fn(ctx) -> bool, or a list of conditions"
    )


class Joined(Guard):
    """Parts joined by "and" or by "or"; asks no further than the first that decides. Without parts "and" holds."""

    def __init__(self, word: Literal["and", "or"], parts: Iterable[Guard]) -> None:
        self.word = word
        for part in parts:
            self.parts += part.parts if isinstance(part, Joined) and part.word == word else (part,)

    async def ask(self, view: View) -> bool:
        decisive = self.word == "or"
        for part in self.parts:
            if await part.ask(view) is decisive:
                return decisive
        return not decisive

    def __str__(self) -> str:
        return f" {self.word} ".join(map(_whole, self.parts)) or ("always" if self.word == "and" else "never")


class Not(Guard):
    """Holds when its part does not. What has no answer has none when it is negated, either."""

    def __init__(self, part: Guard) -> None:
        self.parts = (part,)

    async def ask(self, view: View) -> bool:
        return not await self.parts[0].ask(view)

    def __invert__(self) -> Guard:
        return self.parts[0]

    def __str__(self) -> str:
        return f"not {_whole(self.parts[0])}"


def _whole(guard: Guard) -> str:
    return f"({guard})" if isinstance(guard, Joined) else str(guard)


# -- functions ------------------------------------------------------------------------------------------------------


class Function(Guard):
    """A function `fn(ctx)`, sync or async, as a guard.

    Its answer is taken as Python takes it in an `if`, so a match or a count may be returned. None is refused with a
    ConditionError, because it is what a function returns that forgot its `return`. What it raises passes on.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.text = _name(function)

    async def ask(self, view: View) -> bool:
        return await _call(self.function, view.ctx, view, self.text, {})

    def problems(self, lenient: bool = False) -> list[str]:
        return _call_problems(self.function)

    def __str__(self) -> str:
        return self.text


async def _call(
    function: Callable[..., Any], given: Any, view: View, text: str, values: dict[str, str], none: bool | None = None
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
        view.seen.append(Seen(text, values, None, _told(error)))
        raise
    view.seen.append(Seen(text, values, answer))
    return answer


def _name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _call_problems(function: Any) -> list[str]:
    if not callable(function):
        return [f"condition {_name(function)}: {cut(function)} is no function"]
    try:
        inspect.signature(function).bind(None)
    except ValueError:  # written in C, without a signature to read
        return []
    except TypeError as error:
        return [f"condition {_name(function)} cannot be called with one argument: {error}"]
    return []


# -- conditions -----------------------------------------------------------------------------------------------------


class Condition(Guard):
    """One operator between a field and a value, which may be another field or a part of the payload.

    `operator` is one of eq ne gt ge lt le contains not_contains starts_with ends_with matches (re.match, so from the
    start) in not_in is_empty is_not_empty is_none is_not_none custom. A missing field reads as None. `eq`, `ne`, `in`,
    `not_in` and the four that begin with `is` answer for None; every other operator raises ConditionError for it, and
    for values of a kind that it does not take. `eq` and `ne` are Python's `==` and `!=`, so 1 equals 1.0 and True, and
    what is of different kinds is unequal; True and False are no numbers where an order is asked for.

    A `custom_function`, sync or async, wins over the operator and is given the field's value, None where it is missing;
    what it returns is taken as `Function` takes it. Construction never fails: `problems()` names an unknown operator,
    and asking it raises ConditionError, leniently too.
    """

    def __init__(
        self,
        field: str | Operand,
        operator: str = "eq",
        value: Any = None,
        custom_function: Callable[[Any], bool | Awaitable[bool]] | None = None,
    ) -> None:
        self.field = field
        self.operator = operator
        self.value = value
        self.custom_function = custom_function
        self._left = field if isinstance(field, Operand) else Operand("data", field)
        self._operator: Operator | None = None if custom_function is not None else OPERATORS.get(str(operator))
        two_places = isinstance(value, Operand) and self._operator is not None and not self._operator.unary
        self._right: Operand | None = value if two_places else None
        self.text = self._text()

    def _text(self) -> str:
        if self.custom_function is not None:
            return f"{_name(self.custom_function)}({self._left})"
        sign = cut(self.operator) if self._operator is None else self._operator.sign
        if self._operator is not None and self._operator.unary:
            return f"{self._left} {sign}"
        return f"{self._left} {sign} {self.value if isinstance(self.value, Operand) else cut(self.value)}"

    async def ask(self, view: View) -> bool:
        if self.custom_function is not None:
            value, none = self._left.read(view), False if view.lenient else None
            return await _call(self.custom_function, value, view, self.text, {self._left.text: cut(value)}, none)
        values: dict[str, str] = {}
        if self._operator is None:
            self._give_up(view, values, unknown(self.operator))
        try:
            left, right = self._look(view, values)
        except Exception as error:  # a property of the user's
            self._give_up(view, values, _told(error), error)
        try:
            if right is None and self._right is not None and self.operator not in ("eq", "ne"):
                raise TypeError("nothing to compare with")
            answer = (self._operator.first_answer if view.lenient else self._operator.answer)(left, right)
        except Exception as error:  # kinds that the operator does not take, a pattern that does not compile
            return self._unfit(view, values, left, right, error)
        view.seen.append(Seen(self.text, values, answer))
        return answer

    def _look(self, view: View, values: dict[str, str]) -> tuple[Any, Any]:
        left = self._left.read(view)
        values[self._left.text] = cut(left)
        if self._right is None:
            return left, self.value
        right = self._right.read(view)
        values[self._right.text] = cut(right)
        return left, right

    def _give_up(self, view: View, values: dict[str, str], why: str, cause: Exception | None = None) -> NoReturn:
        reason = f"`{self.text}` has no answer: {why}"
        view.seen.append(Seen(self.text, values, None, reason))
        raise ConditionError(reason) from cause

    def _unfit(self, view: View, values: dict[str, str], left: Any, right: Any, error: Exception) -> bool:
        """False where that will do, with what was met in the message: of the data only kinds go to the log."""
        why = f"operator {self.operator} does not take {self._left} = {cut(left)} ({type(left).__qualname__})"
        if self._operator is not None and not self._operator.unary:
            why += f" with {'' if self._right is None else f'{self._right} = '}{cut(right)} ({type(right).__qualname__})"
        why += f" ({_told(error)})"
        for operand, value in ((self._left, left), (self._right, right)):
            if operand is not None and value is None:
                why += f"; {operand} is missing or None, ask is_not_none first"
        if not view.lenient:
            self._give_up(view, values, why, error)
        log.warning("condition on %s: operator %s does not take its value, so it is False", self._left, self.operator)
        view.seen.append(Seen(self.text, values, False, f"`{self.text}` has no answer: {why}"))
        return False

    def problems(self, lenient: bool = False) -> list[str]:
        if self.custom_function is not None:
            return [*self._left.problems(), *_call_problems(self.custom_function)]
        found = [problem for operand in (self._left, self._right) if operand is not None for problem in operand.problems()]
        if self._operator is None:
            found.append(unknown(self.operator))
        elif self._right is None and not lenient and (problem := self._operator.problem(self.value)):
            found.append(problem)
        return [f"condition `{self.text}`: {problem}" for problem in found]

    def fields(self) -> set[str]:
        return self._left.fields() | (self._right.fields() if self._right is not None else set())

    def __str__(self) -> str:
        return self.text


# -- operands -------------------------------------------------------------------------------------------------------


class Operand:
    """A place in the data or in the payload, to be compared: `field("left") > payload("qty")`.

    A dotted path looks into mappings, objects and, by number, lists: "items.0.price". At each level the exact key wins
    over the path. What is not there reads as None; of an object only public attributes that are not callable are there.
    """

    def __init__(self, of: Literal["data", "payload"], path: str) -> None:
        self.of = of
        self.path = path
        self._dotted = "." in str(path)
        self.text = _storable(str(path)[:WIDTH])
        if of == "payload":
            self.text = f"payload.{self.text}" if path else "payload"
        elif self.text.partition(".")[0] == "payload":  # a field of this name must not read like the event's payload
            self.text = f"data.{self.text}"

    def read(self, view: View) -> Any:
        """The value at this place, None where there is none. Raises only what a property of the user's raises."""
        root = view.data if self.of == "data" else view.payload
        if not self.path:
            return root
        if isinstance(root, dict) and not self._dotted:
            return root[self.path] if self.path in root else None
        return _read(root, self.path)

    def problems(self) -> list[str]:
        """What is wrong with the path: no text, empty, or with control characters."""
        path: Any = self.path
        if not isinstance(path, str):
            return [f"a field is named by text, not by {cut(path)}"]
        if not path and self.of == "data":
            return ["a field needs a name"]
        return [f"the name {cut(path)} has control characters"] if re.search("[\0-\x1f\x7f\ud800-\udfff]", path) else []

    def fields(self) -> set[str]:
        """The path, where this operand looks into the data."""
        return {self.path} if self.of == "data" else set()

    # fmt: off
    def __eq__(self, other: object) -> Condition: return Condition(self, "eq", other)  # type: ignore[override]
    def __ne__(self, other: object) -> Condition: return Condition(self, "ne", other)  # type: ignore[override]
    def __lt__(self, other: object) -> Condition: return Condition(self, "lt", other)
    def __le__(self, other: object) -> Condition: return Condition(self, "le", other)
    def __gt__(self, other: object) -> Condition: return Condition(self, "gt", other)
    def __ge__(self, other: object) -> Condition: return Condition(self, "ge", other)
    # fmt: on

    # By identity, as == builds a condition: an operand in a set or a dict is found by itself alone.
    __hash__ = object.__hash__

    def contains(self, value: object) -> Condition:
        """Text in this text, or an item of this list, tuple or set, or a key of this dict."""
        return Condition(self, "contains", value)

    def not_contains(self, value: object) -> Condition:
        """The opposite of `contains`."""
        return Condition(self, "not_contains", value)

    def starts_with(self, text: str | Operand) -> Condition:
        """This text begins with `text`."""
        return Condition(self, "starts_with", text)

    def ends_with(self, text: str | Operand) -> Condition:
        """This text ends with `text`."""
        return Condition(self, "ends_with", text)

    def matches(self, pattern: str | re.Pattern[str] | Operand) -> Condition:
        """This text matches the regular expression from its start on (re.match)."""
        return Condition(self, "matches", pattern)

    def in_(self, values: object) -> Condition:
        """This value is one of a list, tuple or set."""
        return Condition(self, "in", values)

    def not_in(self, values: object) -> Condition:
        """This value is none of a list, tuple or set."""
        return Condition(self, "not_in", values)

    def is_empty(self) -> Condition:
        """None, or of length 0."""
        return Condition(self, "is_empty")

    def is_not_empty(self) -> Condition:
        """Neither None nor of length 0."""
        return Condition(self, "is_not_empty")

    def is_none(self) -> Condition:
        """Missing, or None."""
        return Condition(self, "is_none")

    def is_not_none(self) -> Condition:
        """There, and not None."""
        return Condition(self, "is_not_none")

    def __bool__(self, *_: object) -> NoReturn:
        _refuse(self)

    __and__ = __rand__ = __or__ = __ror__ = __invert__ = __bool__

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


def _read(root: Any, path: str) -> Any:
    while (found := _step(root, path)) is _MISSING:
        name, _, path = path.partition(".")
        root = _step(root, name)
        if root is _MISSING:
            return None
    return found


def _step(root: Any, name: str) -> Any:
    if isinstance(root, (dict, Mapping)):  # always through its own methods, as some dicts decode what they give
        return root[name] if name in root else _MISSING
    if isinstance(root, (list, tuple)) and name.isascii() and name.isdigit():
        return root[int(name)] if len(name) < 12 and int(name) < len(root) else _MISSING
    found = _MISSING if name.startswith("_") else getattr(root, name, _MISSING)
    return _MISSING if callable(found) else found
