"""Guards: what a transition may ask of a run's data, of an event's payload, or of a function of the user's.

A guard is built once, when the workflow is defined, and asked once per decision; it changes nothing but `View.seen`.
"""

from __future__ import annotations

import functools
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Literal, NoReturn

import msgspec

from fsmworkflow.errors import WIDTH, ConditionError, cut, log, told
from fsmworkflow.operators import OPERATORS, unknown

__all__ = ["Condition", "Function", "Guard", "Joined", "Not", "Operand", "Seen", "View"]
__all__ += ["as_guard", "cut", "field", "payload", "uncallable"]

_MISSING: Any = object()
DEPTH = 100
"""How many levels of `&`, `|` and `~` a guard may have: each is asked within the one around it."""


class Seen(msgspec.Struct, frozen=True):
    """One question and its answer, all text: `values` maps what was looked at to its repr, cut at 200 characters.

    `answer` is None where the question could not be answered, or False where it was asked leniently; `error` says why.
    """

    condition: str
    values: dict[str, str]
    answer: bool | None
    error: str | None = None

    @property
    def saw(self) -> str:
        """What was looked at, in parentheses; empty where that was nothing."""
        return f" ({', '.join(f'{name} = {value}' for name, value in self.values.items())})" if self.values else ""


class View(msgspec.Struct):
    """What a guard may look at. Every condition and function that is asked appends one `Seen` to `seen`.

    `data` is a mapping or any object with attributes, `payload` is None where there is no event, `ctx` is what plain
    functions are given. `lenient` asks as the first FSM-Workflow did: False, not an error, for what has no answer.
    """

    data: Any
    payload: Any = None
    ctx: Any = None
    lenient: bool = False
    seen: list[Seen] = []  # msgspec gives each view its own


class Guard(ABC):
    """Something that can be asked for yes or no. Combines with `&`, `|` and `~`; a plain function may stand beside it.

    `str(guard)` is its text, as in `score >= 8`. Guards are equal only to themselves.
    """

    parts: tuple[Guard, ...] = ()
    depth = 1
    _text = "guard"

    @abstractmethod
    async def ask(self, view: View) -> bool:
        """Answers from `view`, and appends what was looked at to `view.seen`.

        Raises ConditionError where there is no answer; what a function of the user's raises passes on.
        """

    def problems(self, lenient: bool = False) -> list[str]:
        """What is wrong with this guard, whatever the data; empty where nothing is.

        Leniently, a constant that its operator never takes is no problem: the answer is False.
        """
        if self.depth > DEPTH:
            return [f"its conditions are nested {self.depth:,} levels deep, and {DEPTH} are allowed: use a function"]
        return [problem for part in self.parts for problem in part.problems(lenient)]

    def fields(self) -> set[str]:
        """The paths into the data that this guard reads. What functions read is not known."""
        return set().union(*(part.fields() for part in self.parts))

    # fmt: off
    def __and__(self, other: object) -> Guard: return Joined("and", (self, as_guard(other)))
    def __rand__(self, other: object) -> Guard: return Joined("and", (as_guard(other), self))
    def __or__(self, other: object) -> Guard: return Joined("or", (self, as_guard(other)))
    def __ror__(self, other: object) -> Guard: return Joined("or", (as_guard(other), self))
    def __invert__(self) -> Guard: return Not(self)
    def __str__(self) -> str: return self._text
    def __repr__(self) -> str: return f"<{type(self).__name__} {self}>"
    # fmt: on

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"the condition `{self}` has no answer before it is asked: use & instead of and, | instead of or, "
            "~ instead of not, and (a < b) & (b < c) instead of a < b < c"
        )


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


def uncallable(function: Callable[..., Any], arguments: int = 1) -> str:
    """Why a function cannot be called with so many arguments; nothing where it can be, as far as it says."""
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except (TypeError, ValueError) as error:  # ValueError: it is written in C, without a signature to read
        return str(error) if isinstance(error, TypeError) else ""
    return ""


class Joined(Guard):
    """Parts joined by "and" or by "or"; asks no further than the first that decides. Without parts "and" holds."""

    def __init__(self, word: Literal["and", "or"], parts: Iterable[Guard]) -> None:
        self.word = word
        for part in parts:
            self.parts += part.parts if isinstance(part, Joined) and part.word == word else (part,)
        self.depth = 1 + max((part.depth for part in self.parts), default=0)

    async def ask(self, view: View) -> bool:
        decisive = self.word == "or"
        for part in self.parts:
            if await part.ask(view) is decisive:
                return decisive
        return not decisive

    def __str__(self) -> str:
        return f" {self.word} ".join(map(_enclosed, self.parts)) or ("always" if self.word == "and" else "never")


class Not(Guard):
    """Holds when its part does not. What has no answer has none when it is negated, either."""

    def __init__(self, part: Guard) -> None:
        self.parts = (part,)
        self.depth = 1 + part.depth

    async def ask(self, view: View) -> bool:
        return not await self.parts[0].ask(view)

    def __invert__(self) -> Guard:
        return self.parts[0]

    def __str__(self) -> str:
        return f"not {_enclosed(self.parts[0])}"


def _enclosed(guard: Guard) -> str:
    return f"({guard})" if isinstance(guard, Joined) else str(guard)


class Function(Guard):
    """A function of the user's, sync or async, as a guard: it is given the context, or the value of the operand `of`.

    Its answer is taken as Python takes it in an `if`, so a match or a count may be returned. None is refused with a
    ConditionError, because it is what a function returns that forgot its `return`. What it raises passes on.
    """

    def __init__(self, function: Callable[[Any], Any], of: Operand | None = None) -> None:
        self.function = function
        self.of = of
        named = function.func if isinstance(function, functools.partial) else function
        name = getattr(named, "__qualname__", type(named).__qualname__)
        self._text = name if of is None else f"{name}({of})"

    async def ask(self, view: View) -> bool:
        given = view.ctx if self.of is None else self.of.read(view)
        values = {} if self.of is None else {self.of.text: cut(given)}
        try:
            answer = self.function(given)
            if answer is not True and answer is not False:
                answer = await answer if inspect.isawaitable(answer) else answer
                if answer is None and (self.of is None or not view.lenient):
                    raise ConditionError(f"`{self}` returned None: return True or False")
                answer = bool(answer)
        except Exception as error:
            view.seen.append(Seen(self._text, values, None, told(error)))
            raise
        view.seen.append(Seen(self._text, values, answer))
        return answer

    def problems(self, lenient: bool = False) -> list[str]:
        found = [] if self.of is None else self.of.problems()
        if why := uncallable(self.function):
            found.append(f"it is no function that can be called with one argument: {why}")
        return [f"condition `{self}`: {problem}" for problem in found]

    def fields(self) -> set[str]:
        return set() if self.of is None else self.of.fields()


class Condition(Guard):
    """One operator between a field and a value, which may be another field or a part of the payload.

        eq ne                  as in Python: 1 equals 1.0 and True, and what is of different kinds is unequal
        gt ge lt le            two numbers (True and False are none), two texts, two dates or times
        contains not_contains  text in this text, an item of this list, tuple or set, a key of this dict
        starts_with ends_with  text
        matches                a regular expression fits this text from its start on (re.match)
        in not_in              this value is one of a list, tuple or set
        is_empty is_not_empty  None, or of length 0
        is_none is_not_none    missing, or None
        custom                 what `custom_function` says; a given one, sync or async, wins over any operator

    A missing field reads as None. The operators of equality and those with `in` or `is` answer for it, a custom
    function is given it, and the others raise ConditionError, as all do for kinds that they do not take. Construction
    never fails: `problems()` names an unknown operator, and asking it raises ConditionError, leniently too.
    `left` and `right` are its operands, and `known` is the Operator of that name, None where there is none.
    """

    def __init__(
        self,
        field: str | Operand,
        operator: str = "eq",
        value: Any = None,
        custom_function: Callable[[Any], bool | Awaitable[bool]] | None = None,
    ) -> None:
        self.field, self.operator, self.value, self.custom_function = field, operator, value, custom_function
        self.left = field if isinstance(field, Operand) else Operand("data", field)
        self.known = OPERATORS.get(str(operator))
        unary = self.known is not None and self.known.unary
        self.right = value if isinstance(value, Operand) and not unary else None
        sign = cut(operator) if self.known is None else self.known.sign
        self._text = f"{self.left} {sign}"
        if custom_function is not None:
            self.parts = (Function(custom_function, self.left),)
            self._text = str(self.parts[0])
        elif not unary:
            self._text += f" {cut(value) if self.right is None else self.right}"

    async def ask(self, view: View) -> bool:
        if self.parts:
            return await self.parts[0].ask(view)
        values: dict[str, str] = {}
        try:
            if self.known is None:
                raise LookupError(unknown(self.operator))
            left, right = self.left.read(view), self.value
            values[self.left.text] = cut(left)
            if self.right is not None:
                right = self.right.read(view)
                values[self.right.text] = cut(right)
        except Exception as error:  # such as a property of the user's
            return self._unanswered(view, values, told(error), error, False)
        try:
            if right is None and self.right is not None and self.operator not in ("eq", "ne"):
                raise LookupError("nothing to compare with")
            answer = (self.known.first_answer if view.lenient else self.known.answer)(left, right)
        except Exception as error:  # kinds that do not go together, or a pattern that does not compile
            return self._unanswered(view, values, self._misfit(left, right, error), error, view.lenient)
        view.seen.append(Seen(self._text, values, answer))
        return answer

    def _misfit(self, left: Any, right: Any, error: Exception) -> str:
        why = f"operator {self.operator} does not take {self.left} = {cut(left)} ({type(left).__qualname__})"
        if not (self.known and self.known.unary):
            place = "" if self.right is None else f"{self.right} = "
            why += f" with {place}{cut(right)} ({type(right).__qualname__})"
        why += f" ({told(error)})"
        for operand, value in ((self.left, left), (self.right, right)):
            if operand is not None and value is None:
                why += f"; {operand} is missing or None, ask is_not_none first"
        return why

    def _unanswered(self, view: View, values: dict[str, str], why: str, cause: Exception, lenient: bool) -> bool:
        reason = f"`{self}` has no answer: {why}"
        view.seen.append(Seen(self._text, values, False if lenient else None, reason))
        if not lenient:
            raise ConditionError(reason) from cause
        # The user's data stays out of the log.
        log.warning("condition on %s: operator %s does not take its value, so it is False", self.left, self.operator)
        return False

    def problems(self, lenient: bool = False) -> list[str]:
        if self.parts:
            return super().problems(lenient)
        found = self.left.problems() + ([] if self.right is None else self.right.problems())
        if self.known is None:
            found.append(unknown(self.operator))
        elif self.right is None and not lenient and (problem := self.known.problem(self.value)):
            found.append(problem)
        return [f"condition `{self}`: {problem}" for problem in found]

    def fields(self) -> set[str]:
        return self.left.fields() | (set() if self.parts or self.right is None else self.right.fields())


class Operand:
    """A place in the data or in the payload, to be compared: `field("left") > payload("qty")`.

    A dotted path looks into mappings, objects and, by number, lists: "items.0.price". At each level the exact key wins
    over the path. What is not there reads as None; of an object only public attributes that are not callable are there.
    `Condition` says what the comparisons answer.
    """

    def __init__(self, of: Literal["data", "payload"], path: str) -> None:
        self.of = of
        self.path = path
        self.text = name = str(path)[:WIDTH]
        if of == "payload":
            self.text = f"payload.{name}" if name else "payload"
        elif name.partition(".")[0] == "payload":  # a field of that name must not read like the event's payload
            self.text = f"data.{name}"

    def read(self, view: View) -> Any:
        """The value at this place, None where there is none. Raises only what a property of the user's raises."""
        root, path = view.data if self.of == "data" else view.payload, self.path
        if not path:
            return root
        if isinstance(root, dict) and path in root:  # nearly always
            return root[path]
        while (found := _step(root, path)) is _MISSING:
            name, _, path = path.partition(".")
            if (root := _step(root, name)) is _MISSING:
                return None
        return found

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
    def __gt__(self, other: object) -> Condition: return Condition(self, "gt", other)
    def __ge__(self, other: object) -> Condition: return Condition(self, "ge", other)
    def __lt__(self, other: object) -> Condition: return Condition(self, "lt", other)
    def __le__(self, other: object) -> Condition: return Condition(self, "le", other)
    def contains(self, value: object) -> Condition: return Condition(self, "contains", value)
    def not_contains(self, value: object) -> Condition: return Condition(self, "not_contains", value)
    def starts_with(self, text: str | Operand) -> Condition: return Condition(self, "starts_with", text)
    def ends_with(self, text: str | Operand) -> Condition: return Condition(self, "ends_with", text)
    def matches(self, pattern: str | re.Pattern[str] | Operand) -> Condition: return Condition(self, "matches", pattern)
    def in_(self, values: object) -> Condition: return Condition(self, "in", values)
    def not_in(self, values: object) -> Condition: return Condition(self, "not_in", values)
    def is_empty(self) -> Condition: return Condition(self, "is_empty")
    def is_not_empty(self) -> Condition: return Condition(self, "is_not_empty")
    def is_none(self) -> Condition: return Condition(self, "is_none")
    def is_not_none(self) -> Condition: return Condition(self, "is_not_none")
    def __bool__(self, *_: object) -> NoReturn: _refuse(self)
    def __str__(self) -> str: return self.text
    def __repr__(self) -> str: return f"<Operand {self.text}>"
    # fmt: on

    __and__ = __rand__ = __or__ = __ror__ = __invert__ = __bool__
    __hash__ = object.__hash__  # by identity, as == builds a condition


def field(path: str) -> Operand:
    """The field of the data at `path`, to be compared."""
    return Operand("data", path)


def payload(path: str = "") -> Operand:
    """The part of the event's payload at `path`, or the whole payload; None where there is no event."""
    return Operand("payload", path)


def _step(root: Any, name: str) -> Any:
    if isinstance(root, (dict, Mapping)):  # through its own methods, as some dicts decode what they give
        return root.get(name, _MISSING)
    if isinstance(root, (list, tuple)) and name.isascii() and name.isdigit():
        return root[int(name)] if len(name) < 12 and int(name) < len(root) else _MISSING
    found = _MISSING if name.startswith("_") else getattr(root, name, _MISSING)
    return _MISSING if callable(found) else found
