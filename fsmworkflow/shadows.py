"""Whether a condition holds whenever another one does: of comparisons with constants, and of what is joined of them."""

from __future__ import annotations

import ast
from typing import Any

from fsmworkflow.conditions import Condition, Guard, Joined, field, payload
from fsmworkflow.expressions import Expression

__all__ = ["implies"]

LESS, MORE = frozenset({"lt", "le"}), frozenset({"gt", "ge"})
COMPARED: dict[type[ast.cmpop], str] = {
    ast.Eq: "eq", ast.NotEq: "ne", ast.Gt: "gt", ast.GtE: "ge", ast.Lt: "lt", ast.LtE: "le", ast.In: "in",
    ast.NotIn: "not_in",
}  # fmt: skip


def implies(one: Guard, other: Guard) -> bool:
    """Whether the second condition surely holds when the first one does. False where that is not certain."""
    one, other = _opened(one), _opened(other)
    if one is other:
        return True
    if isinstance(one, Joined) and one.word == "and" and any(implies(part, other) for part in one.parts):
        return True
    if isinstance(one, Joined) and one.word == "or":
        return bool(one.parts) and all(implies(part, other) for part in one.parts)
    if isinstance(other, Joined) and other.parts:
        return (all if other.word == "and" else any)(implies(one, part) for part in other.parts)
    return isinstance(one, Condition) and isinstance(other, Condition) and _narrower(one, other)


def _narrower(one: Condition, other: Condition) -> bool:
    if one.parts or other.parts or one.left.text != other.left.text:
        return False
    if one.right is not None or other.right is not None or one.operator == other.operator:
        if str(one) == str(other) and type(one.value) is type(other.value) and len(str(one)) < 200:
            return True
        if one.right is not None or other.right is not None:
            return False
    if one.operator == "eq" and one.value is not None:
        return _answers(other, one.value)
    if one.operator == "in" and isinstance(one.value, (list, tuple, set, frozenset)) and one.value:
        return all(value is not None and _answers(other, value) for value in one.value)
    return _tighter(one, other)


def _answers(condition: Condition, value: Any) -> bool:
    """Whether a condition surely holds of a value."""
    try:
        return condition.known is not None and condition.known.answer(value, condition.value)
    except Exception:  # the value's own operators, and kinds that do not go together
        return False


def _tighter(one: Condition, other: Condition) -> bool:
    """Whether one bound lies within another, of numbers."""
    low, high = one.value, other.value
    if any(type(value) not in (int, float) for value in (low, high)):
        return False
    strict = one.operator in ("gt", "lt") or other.operator in ("ge", "le")
    if {one.operator, other.operator} <= MORE:
        return bool(low > high or (low == high and strict))
    if {one.operator, other.operator} <= LESS:
        return bool(low < high or (low == high and strict))
    return False


# -- expressions ------------------------------------------------------------------------------------------------------


def _opened(guard: Guard) -> Guard:
    """An expression as the comparisons that it is made of."""
    return _compared(ast.parse(str(guard), mode="eval").body) if isinstance(guard, Expression) else guard


def _compared(node: ast.expr) -> Guard:
    """What cannot be taken apart is like a field of its own text, of which is asked whether it is true."""
    if isinstance(node, ast.BoolOp):
        return Joined("and" if isinstance(node.op, ast.And) else "or", map(_compared, node.values))
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.left, (ast.Name, ast.Attribute)):
        try:
            value = ast.literal_eval(node.comparators[0])
        except ValueError:
            value = ast
        if value is not ast and type(node.ops[0]) in COMPARED:
            name = ast.unparse(node.left)
            operand = payload(name.partition(".")[2]) if name.partition(".")[0] == "event" else field(name)
            return Condition(operand, COMPARED[type(node.ops[0])], value)
    return Condition(field(ast.unparse(node)), "eq", True)
