"""The operators of a condition: what each answers, what it does not take, and how it reads in a message.

`OPERATORS` is the table of them; `unknown` says of a name that is not in it what may have been meant.
"""

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

_NUMBERS = (int, float, Decimal)
_ORDERED = (*_NUMBERS, str, dt.date, dt.time, dt.timedelta)  # a datetime is a date
_LISTS = (list, tuple, set, frozenset)


class Operator(msgspec.Struct, frozen=True):
    """One operator. `test(left, right)` answers as Python does, or raises what Python raises.

    `sign` stands between the two values in a message, `right` are the kinds that the right one may be of, `refusal`
    says that another one is not; an unary operator does not look at it.
    """

    name: str
    sign: str
    test: Callable[[Any, Any], Any]
    right: tuple[type, ...] = (object,)
    refusal: str = ""
    unary: bool = False

    def answer(self, left: Any, right: Any) -> bool:
        """Raises TypeError for kinds that the operator does not take, and what the values' own operators raise."""
        if not isinstance(right, self.right):
            raise TypeError(self.refusal.format(type(right).__qualname__))
        return bool(self.test(left, right))

    def first_answer(self, left: Any, right: Any) -> bool:
        """As the first FSM-Workflow, which took True and False as 1 and 0. Raises as `answer`, and where that would be
        True but the first FSM-Workflow, not knowing the kinds of the values, said False."""
        left = int(left) if left is True or left is False else left
        right = int(right) if right is True or right is False else right
        answer = self.answer(left, right)
        if answer and self._new(left, right):
            raise TypeError("the first FSM-Workflow had no answer")
        return answer

    def _new(self, left: Any, right: Any) -> bool:
        if left is None:
            return self.name != "is_none"
        if self.name in ("eq", "ne"):
            return (
                isinstance(left, str) is not isinstance(right, str)
                or isinstance(left, _NUMBERS) is not isinstance(right, _NUMBERS)
                or isinstance(left, (list, dict))
            )
        return isinstance(left, dict) and self.name in ("contains", "not_contains", "is_empty", "is_not_empty")

    def problem(self, right: Any) -> str | None:
        """Why no left value at all could be compared with this right one; None where one could."""
        if not isinstance(right, self.right):
            return f"operator {self.name} {self.refusal.format(type(right).__qualname__)}"
        try:
            if self.name == "matches":
                re.compile(right)
        except (re.error, RecursionError, OverflowError) as error:
            return f"the pattern does not compile: {error}"
        return None


def _order(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def test(left: Any, right: Any) -> Any:
        if left is True or left is False or right is True or right is False:
            raise TypeError("True and False have no order")
        return compare(left, right)

    return test


_OF_ORDER: Any = (_ORDERED, "has no order for {}")
_OF_TEXT: Any = ((str,), "needs text, not {}")
_OF_PATTERN: Any = ((str, re.Pattern), "needs a pattern, not {}")
_OF_LIST: Any = (_LISTS, "needs a list, a tuple or a set, not {}")

OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("eq", "==", python.eq),
        Operator("ne", "!=", python.ne),
        Operator("gt", ">", _order(python.gt), *_OF_ORDER),
        Operator("ge", ">=", _order(python.ge), *_OF_ORDER),
        Operator("lt", "<", _order(python.lt), *_OF_ORDER),
        Operator("le", "<=", _order(python.le), *_OF_ORDER),
        Operator("contains", "contains", python.contains),
        Operator("not_contains", "does not contain", lambda left, right: right not in left),
        Operator("starts_with", "starts with", str.startswith, *_OF_TEXT),
        Operator("ends_with", "ends with", str.endswith, *_OF_TEXT),
        Operator("matches", "matches", lambda left, right: re.match(right, left) is not None, *_OF_PATTERN),
        Operator("in", "in", lambda left, right: left in right, *_OF_LIST),
        Operator("not_in", "not in", lambda left, right: left not in right, *_OF_LIST),
        Operator("is_empty", "is empty", lambda left, _: left is None or len(left) == 0, unary=True),
        Operator("is_not_empty", "is not empty", lambda left, _: left is not None and len(left) > 0, unary=True),
        Operator("is_none", "is none", lambda left, _: left is None, unary=True),
        Operator("is_not_none", "is not none", lambda left, _: left is not None, unary=True),
    )
}
_MEANT = {operator.sign: name for name, operator in OPERATORS.items()} | {"gte": "ge", "lte": "le", "neq": "ne"}


def unknown(name: object) -> str:
    """What is wrong with a name that is not in OPERATORS, and what may have been meant."""
    if name == "custom":
        return "operator 'custom' needs a custom_function"
    text = str(name)[:50].lower()
    near = [_MEANT[text]] if text in _MEANT else difflib.get_close_matches(text, OPERATORS, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {' '.join(OPERATORS)} custom"
    return f"unknown operator {name!r:.50}: {hint}"
