"""The operators of a condition: what each answers, what it does not take, and how it reads in a message."""

from __future__ import annotations

import datetime as dt
import difflib
import operator as python
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec

__all__ = ["OPERATORS", "Operator", "unknown"]

_ORDERED = (int, float, Decimal, str, dt.date, dt.time, dt.timedelta)  # a datetime is a date
_NUMBERS = (int, float)
_STORED = (*_NUMBERS, str, list, dict, type(None))  # all that the first FSM-Workflow had to do with


class Operator(msgspec.Struct, frozen=True):
    """One operator: `test(left, right)` answers as Python does, or raises what Python raises.

    `sign` stands between the two values in a message. `kinds` are those that the right value may be of, and `refusal`
    is what to say of another. An unary operator does not look at it.
    """

    name: str
    sign: str
    test: Callable[[Any, Any], Any]
    kinds: tuple[type, ...] = (object,)
    refusal: str = ""
    unary: bool = False

    def answer(self, left: Any, right: Any) -> bool:
        """Raises TypeError for kinds that the operator does not take, and what the values' own operators raise."""
        if not isinstance(right, self.kinds):
            raise TypeError(self.refusal.format(type(right).__qualname__))
        if self.kinds is _ORDERED and (type(left) is bool or type(right) is bool):
            raise TypeError("True and False have no order")
        return bool(self.test(left, right))

    def first_answer(self, left: Any, right: Any) -> bool:
        """As the first FSM-Workflow, which took True and False for 1 and 0. Raises as `answer` does, and TypeError
        where that is True but the first FSM-Workflow said False, because it did not know the kinds."""
        left = int(left) if type(left) is bool else left
        right = int(right) if type(right) is bool else right
        answer = self.answer(left, right)
        if self.name in ("eq", "ne"):
            numbers = isinstance(left, _NUMBERS) and isinstance(right, _NUMBERS)
            texts = isinstance(left, str) and isinstance(right, str)
            newer = not isinstance(left, _STORED) or not isinstance(right, _STORED)
            known = numbers or texts or (newer and not isinstance(left, (list, dict)))
        else:
            known = not isinstance(left, dict) or self.name in ("in", "not_in", "is_not_none")
        if answer and not (known if left is not None else self.name == "is_none"):
            raise TypeError("the first FSM-Workflow had no answer")
        return answer

    def problem(self, right: Any) -> str | None:
        """Why there is no answer with this right value, whatever the left one is; None where there may be one."""
        if not isinstance(right, self.kinds):
            return f"operator {self.name} {self.refusal.format(type(right).__qualname__)}"
        try:
            if self.name == "matches":
                self.test("", right)
        except (re.error, RecursionError, OverflowError) as error:
            return f"the pattern does not compile: {error}"
        return None


_ORDER: Any = (_ORDERED, "has no order for {}")
_TEXT: Any = ((str,), "needs text, not {}")
_PATTERN: Any = ((str, re.Pattern), "needs a pattern, not {}")
_LIST: Any = ((list, tuple, set, frozenset), "needs a list, a tuple or a set, not {}")

_ALL = (
    Operator("eq", "==", python.eq),
    Operator("ne", "!=", python.ne),
    Operator("gt", ">", python.gt, *_ORDER),
    Operator("ge", ">=", python.ge, *_ORDER),
    Operator("lt", "<", python.lt, *_ORDER),
    Operator("le", "<=", python.le, *_ORDER),
    Operator("contains", "contains", python.contains),
    Operator("not_contains", "does not contain", lambda left, right: right not in left),
    Operator("starts_with", "starts with", str.startswith, *_TEXT),
    Operator("ends_with", "ends with", str.endswith, *_TEXT),
    Operator("matches", "matches", lambda left, right: re.match(right, left) is not None, *_PATTERN),
    Operator("in", "in", lambda left, right: left in right, *_LIST),
    Operator("not_in", "not in", lambda left, right: left not in right, *_LIST),
    Operator("is_empty", "is empty", lambda left, _: left is None or len(left) == 0, unary=True),
    Operator("is_not_empty", "is not empty", lambda left, _: left is not None and len(left) > 0, unary=True),
    Operator("is_none", "is none", lambda left, _: left is None, unary=True),
    Operator("is_not_none", "is not none", lambda left, _: left is not None, unary=True),
)
OPERATORS = {operator.name: operator for operator in _ALL}
_MEANT = {operator.sign: operator.name for operator in _ALL} | {"gte": "ge", "lte": "le", "neq": "ne"}


def unknown(name: object) -> str:
    """What to say of a name that is not in OPERATORS, with the one that may have been meant."""
    if name == "custom":
        return "operator 'custom' needs a custom_function"
    text = str(name)[:50].lower()
    near = [_MEANT[text]] if text in _MEANT else difflib.get_close_matches(text, OPERATORS, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {' '.join(OPERATORS)} custom"
    return f"unknown operator {name!r:.50}: {hint}"
