"""Guards: what they answer, strictly and as the first FSM-Workflow did, what they tell, and how they combine."""

from __future__ import annotations

import collections
import datetime as dt
import functools
import gc
import json
import logging
import math
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsmworkflow.codec import Data, fields_of
from fsmworkflow.conditions import Condition, Guard, Operand, Seen, View, as_guard, cut, field, payload
from fsmworkflow.errors import ConditionError

UTC = dt.UTC
NONE_ANSWERS = {
    "eq": False, "ne": True, "in": False, "not_in": True,
    "is_none": True, "is_not_none": False, "is_empty": True, "is_not_empty": False,
}  # fmt: skip
VALUES: dict[str, Any] = {"in": [1], "not_in": [1]}
OPERATORS = [
    "eq", "ne", "gt", "ge", "lt", "le", "contains", "not_contains", "starts_with", "ends_with", "matches", "in",
    "not_in", "is_empty", "is_not_empty", "is_none", "is_not_none",
]  # fmt: skip

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.decimals() | st.datetimes() | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


async def ask(guard: Guard, data: Any = None, *, event: Any = None, lenient: bool = False) -> bool:
    return await guard.ask(View({} if data is None else data, event, lenient=lenient))


# -- strict answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "left", "right", "expected"),
    [
        ("eq", 1, 1, True), ("eq", 1, 1.0, True), ("eq", "1", 1, False), ("eq", [1], [1], True),
        ("eq", None, None, True),
        ("ne", "a", 1, True), ("ne", {"a": 1}, {"a": 1}, False),
        ("gt", 2, 1, True), ("gt", 1, 1, False), ("ge", 1, 1.0, True), ("lt", Decimal("0.1"), 1, True),
        ("le", 0.5, Decimal("0.5"), True), ("gt", "b", "a", True), ("lt", "B", "a", True), ("gt", math.nan, 1, False),
        ("lt", dt.date(2024, 1, 1), dt.date(2024, 1, 2), True),
        ("ge", dt.datetime(2024, 1, 2, tzinfo=UTC), dt.datetime(2024, 1, 1, tzinfo=UTC), True),
        ("lt", dt.timedelta(seconds=1), dt.timedelta(seconds=2), True), ("lt", dt.time(1), dt.time(2), True),
        ("contains", "abc", "b", True), ("contains", ["a"], "a", True), ("contains", {"a": 1}, "a", True),
        ("contains", {1, 2}, 3, False), ("contains", [None], None, True), ("not_contains", "abc", "x", True),
        ("not_contains", (1,), 1, False),
        ("starts_with", "abc", "ab", True), ("ends_with", "abc", "bc", True), ("ends_with", "abc", "ab", False),
        ("matches", "abc", "b", False), ("matches", "abc", "a", True), ("matches", "abc", re.compile("A", re.I), True),
        ("in", 1, [1, 2], True), ("in", "a", ("b",), False), ("not_in", "a", {"b"}, True), ("in", None, [None], True),
        ("is_empty", "", None, True), ("is_empty", [0], None, False), ("is_not_empty", {"a": 1}, None, True),
        ("is_none", 0, None, False), ("is_not_none", 0, None, True),
    ],
)  # fmt: skip
async def test_an_operator_answers(operator: str, left: Any, right: Any, expected: bool) -> None:
    assert await ask(Condition("x", operator, right), {"x": left}) is expected
    if operator != "contains" or right is not None:
        assert await ask(Condition("x", operator, payload("y")), {"x": left}, event={"y": right}) is expected


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("data", [{}, {"x": None}, {"other": 1}, []])
async def test_a_missing_field_reads_as_none(operator: str, data: Any) -> None:
    guard = Condition("x", operator, VALUES.get(operator, "a"))
    if operator in NONE_ANSWERS:
        assert await ask(guard, data) is NONE_ANSWERS[operator]
    else:
        with pytest.raises(ConditionError, match="x is missing or None, ask is_not_none first"):
            await ask(guard, data)


async def test_a_missing_field_equals_none_and_is_in_a_list_that_holds_none() -> None:
    assert await ask(field("x") == None)  # noqa: E711
    assert await ask(field("x").in_([None]))


@pytest.mark.parametrize(
    ("operator", "left", "right"),
    [
        ("gt", "8", 8), ("ge", True, 0), ("lt", 1, False), ("le", [1], [2]), ("gt", 1, None), ("gt", {}, {}),
        ("lt", dt.date(2024, 1, 1), "2024-01-02"), ("lt", dt.date(2024, 1, 1), dt.datetime(2024, 1, 1)),
        ("lt", dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=UTC)), ("gt", Decimal("NaN"), 1),
        ("contains", 5, 5), ("contains", "abc", 1), ("contains", {1}, []), ("not_contains", 5, 5),
        ("starts_with", ["a"], "a"), ("starts_with", "abc", ("a", "b")), ("ends_with", 1, "1"), ("matches", 1, "1"),
        ("matches", "abc", "("), ("matches", "abc", b"a"), ("in", "a", "abc"), ("not_in", 1, 5), ("in", "a", {"a": 1}),
        ("in", 1, None), ("is_empty", 5, None), ("is_not_empty", 5, None), ("is_empty", dt.date(2024, 1, 1), None),
    ],
)  # fmt: skip
async def test_a_wrong_kind_has_no_answer_and_the_error_says_what_was_met(operator: str, left: Any, right: Any) -> None:
    view = View({"deep": {"x": left}})
    with pytest.raises(ConditionError) as caught:
        await Condition("deep.x", operator, right).ask(view)
    for part in (f"operator {operator} ", "deep.x", cut(left), f"({type(left).__qualname__})"):
        assert part in str(caught.value)
    assert view.seen == [Seen(view.seen[0].condition, {"deep.x": cut(left)}, None, str(caught.value))]


async def test_the_value_in_an_error_is_cut_at_200_characters() -> None:
    with pytest.raises(ConditionError) as caught:
        await ask(field("x") > 1, {"x": "y" * 10_000})
    assert "yyy..." in str(caught.value)
    assert len(str(caught.value)) < 400


@given(plain, plain)
async def test_equality_answers_for_any_two_plain_values_as_python_does(left: Any, right: Any) -> None:
    signalling = "sNaN" in repr((left, right))  # a Decimal that refuses to be compared
    if not signalling:
        assert await ask(field("x") == right, {"x": left}) is (left == right)
        assert await ask(field("x") != right, {"x": left}) is (left != right)


async def test_true_equals_one_as_in_python_but_is_no_number_in_an_order() -> None:
    assert await ask(field("x") == 1, {"x": True})
    with pytest.raises(ConditionError, match=r"True \(bool\)"):
        await ask(field("x") >= 1, {"x": True})


@given(st.sampled_from(OPERATORS), plain, plain, st.booleans())
async def test_every_operator_answers_or_raises_a_condition_error(
    op: str, left: Any, right: Any, lenient: bool
) -> None:
    view = View({"x": left}, lenient=lenient)
    try:
        answer: bool | None = await Condition("x", op, right).ask(view)
    except ConditionError:
        assert not lenient
        answer = None
    assert [seen.answer for seen in view.seen] == [answer]
    assert msgspec.json.encode(view.seen)


# -- as the first FSM-Workflow --------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", OPERATORS)
async def test_leniently_none_is_false_for_all_but_is_none(operator: str) -> None:
    guard = Condition("x", operator, VALUES.get(operator, "a"))
    assert await ask(guard, {}, lenient=True) is (operator == "is_none")


@pytest.mark.parametrize(
    ("operator", "left", "right", "expected"),
    [
        ("ge", 8, 8, True), ("eq", 1, 1.0, True), ("gt", True, 0, True), ("eq", True, True, True),
        ("ne", True, False, True),
        ("eq", "a", "a", True), ("contains", "abc", "b", True), ("not_contains", "abc", "b", False),
        ("starts_with", "abc", "a", True), ("ends_with", "abc", "c", True), ("matches", "abc", "b", False),
        ("contains", [1], 1, True), ("not_contains", [1], 1, False), ("is_empty", [], None, True),
        ("is_not_empty", [1], None, True), ("is_not_none", 0, None, True), ("is_none", 0, None, False),
        # what it could not do at all is answered as it is elsewhere
        ("gt", "b", "a", True), ("is_empty", "", None, True), ("in", "a", ["a"], True), ("not_in", 1, [2], True),
        ("gt", Decimal(2), 1, True), ("lt", dt.date(2024, 1, 1), dt.date(2024, 1, 2), True),
    ],
)  # fmt: skip
async def test_leniently_known_kinds_are_answered(
    operator: str, left: Any, right: Any, expected: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert await ask(Condition("x", operator, right), {"x": left}, lenient=True) is expected
    assert not caplog.records


@pytest.mark.parametrize(
    ("operator", "left", "right"),
    [
        ("gt", "8", 8), ("ne", "8", 8), ("ne", 8, None), ("eq", [1], [1]), ("eq", {"a": 1}, {"a": 1}), ("gt", None, 1),
        ("ne", None, 1), ("is_empty", None, None), ("not_contains", 5, 1), ("contains", {"a": 1}, "a"),
        ("in", "a", "abc"),
        ("is_empty", 5, None), ("matches", "a", "("), ("is_empty", {}, None), ("starts_with", ["a"], "a"),
    ],
)  # fmt: skip
async def test_leniently_a_wrong_kind_is_false_with_a_warning(
    operator: str, left: Any, right: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert await ask(Condition("x", operator, right), {"x": left}, lenient=True) is False
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("fsmworkflow", logging.WARNING)
    assert f"condition on x: operator {operator} " in record.message


async def test_user_data_is_never_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    view = View({"x": "secret"}, lenient=True)
    assert await Condition("x", "gt", 8).ask(view) is False
    assert "secret" not in caplog.text
    assert "secret" in view.seen[0].values["x"]
    assert "secret" in str(view.seen[0].error)


async def test_leniently_there_is_no_warning_where_the_strict_answer_is_false_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert await ask(field("x") == 8, {"x": "8"}, lenient=True) is False
    assert await ask(field("x") == 8, {}, lenient=True) is False
    assert await ask(field("x").is_not_empty(), {}, lenient=True) is False
    assert not caplog.records


async def test_leniently_an_unknown_operator_is_an_error_all_the_same() -> None:
    with pytest.raises(ConditionError, match="unknown operator"):
        await ask(Condition("x", "gte", 1), {"x": 1}, lenient=True)


# -- paths ----------------------------------------------------------------------------------------------------------


@dataclass
class Item:
    price: float
    _cost: float = 1.0

    @property
    def gross(self) -> float:
        return self.price * 1.2

    @property
    def broken(self) -> float:
        raise RuntimeError("no price list")

    def method(self) -> None: ...


class Order(msgspec.Struct):
    items: list[Item]
    customer: dict[str, Any]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("items.0.price", 9.5), ("items.1.price", 3.0), ("items.2.price", None), ("items.-1.price", None),
        ("items.x", None), ("items.0.price.cents", None), ("customer.name", "ann"), ("customer.address.city", "Bern"),
        ("customer.address.zip.code", "3000"), ("customer.nobody", None), ("customer.", None), (".", None),
        ("items." + "9" * 5000, None), ("items.\u0660", None), ("customer..name", None),
    ],
)  # fmt: skip
async def test_a_dotted_path_looks_into_mappings_objects_and_lists(path: str, expected: Any) -> None:
    customer = {"name": "ann", "address": {"city": "Bern", "zip.code": "3000"}}
    as_dict = {"items": [{"price": 9.5}, {"price": 3.0}], "customer": customer}
    as_struct = Order([Item(9.5), Item(3.0)], customer)
    for data in (as_dict, as_struct):
        assert field(path).read(View(data)) == expected
        assert payload(path).read(View({}, data)) == expected


async def test_an_exact_key_wins_over_a_dotted_path() -> None:
    data = {"a.b": 1, "a": {"b": 2, "c.d": 3, "c": {"d": 4}}}
    assert await ask(field("a.b") == 1, data)
    assert await ask(field("a.c.d") == 3, data)


async def test_a_pydantic_model_is_looked_into() -> None:
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Answer", score=(int, ...), parts=(list[dict[str, int]], ...))
    data = model(score=9, parts=[{"n": 1}])
    assert await ask((field("score") >= 8) & (field("parts.0.n") == 1) & field("model_dump").is_none(), data)


@pytest.mark.parametrize("name", ["__class__", "_cost", "method", "__class__.__mro__", "price.__class__", "price.hex"])
async def test_of_an_object_only_public_data_is_read(name: str) -> None:
    assert await ask(field(name).is_none(), Item(2.0))
    assert await ask(field("gross") == 2.4, Item(2.0))


async def test_a_key_that_begins_with_an_underscore_is_a_key_like_any_other() -> None:
    assert await ask(field("_id") == 7, {"_id": 7})


async def test_a_property_that_raises_is_a_condition_without_an_answer() -> None:
    with pytest.raises(ConditionError, match="RuntimeError: no price list") as caught:
        await ask(field("broken") == 1, Item(2.0))
    assert isinstance(caught.value.__cause__, RuntimeError)


def stored(**fields: Any) -> Data:
    """Data as it comes from a store: each field is JSON text until it is touched."""
    return Data(fields_of(json.dumps(fields)))


def untouched(data: Data) -> set[str]:
    return {key for key, value in dict.items(data) if type(value) is msgspec.Raw}


async def test_lists_and_dicts_that_are_decoded_late_are_looked_into_and_only_what_is_asked_for_is_decoded() -> None:
    data = stored(items=[{"price": 9.5}, {"price": 3}], customer={"name": "ann"}, tags=["a"], empty=[], **{"a.b": [1]})
    asked = [
        field("items.1.price") == 3, field("customer.name").in_(["ann"]), field("tags").contains("a"),
        field("tags") == ["a"],
        ~field("empty").is_not_empty(), field("a.b").is_not_empty(), field("nobody.name").is_none(),
    ]  # fmt: skip
    data["large"] = msgspec.Raw(b"[1, 2]")
    for lenient in (False, True):
        view = View(data, lenient=lenient)
        answers = [await guard.ask(view) for guard in asked]
        assert answers == [True, True, True, not lenient, True, True, True]
        assert "Raw" not in str(view.seen)
    assert untouched(data) == {"large"}


async def test_a_payload_that_is_decoded_late_is_compared_and_told_as_a_dict() -> None:
    plain = {"by": {"name": "ann"}, "votes": [1, 2]}
    view = View(stored(votes=[1, 2]), stored(**plain))
    assert await ((payload() == plain) & payload().contains("by") & payload().is_not_empty()).ask(view)
    assert view.seen[0].values == {"payload": repr(plain)}
    assert await ask(payload("votes") == field("votes"), stored(votes=[1, 2]), event=stored(**plain))
    assert cut(stored(**{str(number): number for number in range(1000)})) == cut({str(n): n for n in range(1000)})


async def test_a_guard_adds_no_key_to_a_dict_that_makes_up_what_is_missing() -> None:
    data = collections.defaultdict(int)
    assert await ask(field("a").is_none() & field("b.c").is_none(), data)
    assert not data


async def test_a_path_of_many_dots_costs_no_time() -> None:
    assert await ask(field("." * 1_000_000).is_none(), {"": {"": {}}})


# -- operands -------------------------------------------------------------------------------------------------------


async def test_both_sides_may_be_looked_up() -> None:
    enough = field("left") >= payload("qty")
    view = View({"left": 3}, {"qty": 4})
    assert await enough.ask(view) is False
    assert view.seen == [Seen("left >= payload.qty", {"left": "3", "payload.qty": "4"}, False)]


async def test_a_missing_right_side_has_no_answer_either() -> None:
    for guard in (field("x") >= payload("y"), field("x").contains(payload("y")), field("x").in_(payload("y"))):
        with pytest.raises(ConditionError, match=r"payload\.y is missing or None"):
            await ask(guard, {"x": [1]})
    assert await ask(field("x") != payload("y"), {"x": 1})


async def test_without_an_event_the_payload_reads_as_none_and_a_plain_payload_is_looked_at_whole() -> None:
    assert await ask(payload("qty").is_none() & payload().is_none())
    assert await ask(payload() == "yes", event="yes")


async def test_a_value_on_the_left_is_the_same_comparison() -> None:
    assert str(8 <= field("score")) == "score >= 8"  # noqa: SIM300
    assert str(8 == field("score")) == "score == 8"  # noqa: SIM300


@pytest.mark.parametrize(
    "misuse",
    [
        lambda: (field("a") == 1) and (field("b") == 2),
        lambda: not (field("a") == 1),  # noqa: SIM201
        lambda: 1 < field("a") < 5,
        lambda: field("a") in [1, 2],
        lambda: bool(field("a")),
    ],
)
def test_and_or_not_and_chains_say_what_to_write_instead(misuse: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=r"use & instead of and|compare it"):
        misuse()


@pytest.mark.parametrize(
    "misuse",
    [
        lambda: field("a") & (field("b") == 1),
        lambda: (field("b") == 1) | field("a"),
        lambda: ~field("a"),
        lambda: field("a") == 1 & field("b") == 2,
    ],
)
def test_an_operand_that_is_not_compared_is_no_condition(misuse: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match="put each comparison in parentheses"):
        misuse()


def test_an_operand_may_be_in_a_set_or_a_dict() -> None:
    operands = [field("a"), field("a"), payload("a")]
    assert len(set(operands)) == 3
    assert {operand: place for place, operand in enumerate(operands)}[operands[1]] == 1


def test_guards_are_equal_only_to_themselves() -> None:
    one, other = field("a") == 1, field("a") == 1
    assert one == one
    assert one != other
    assert len({one, other}) == 2


# -- combining ------------------------------------------------------------------------------------------------------


@given(st.booleans(), st.booleans(), st.booleans())
async def test_guards_combine_as_booleans_do(a: bool, b: bool, c: bool) -> None:
    x, y, z = (field(name) == True for name in "xyz")  # noqa: E712
    data = {"x": a, "y": b, "z": c}
    assert await ask((x & y) | ~z, data) is ((a and b) or not c)
    assert await ask(~(x | y) & z, data) is (not (a or b) and c)
    assert await ask(as_guard([x, y, z]), data) is (a and b and c)


async def test_what_is_decided_already_is_not_asked_and_not_seen() -> None:
    view = View({"a": 1})
    assert await ((field("a") == 2) & (field("b") > 1)).ask(view) is False
    assert await ((field("a") == 1) | (field("b") > 1)).ask(view) is True
    assert [seen.condition for seen in view.seen] == ["a == 2", "a == 1"]


async def test_functions_stand_on_either_side() -> None:
    def yes(ctx: Any) -> bool:
        return True

    for guard in (yes & (field("a") == 1), (field("a") == 1) & yes, yes | (field("a") == 2), (field("a") == 2) | yes):
        assert await ask(guard, {"a": 1})
    with pytest.raises(TypeError):
        (field("a") == 1) & 3


async def test_no_condition_at_all_holds() -> None:
    assert await ask(as_guard([]))
    assert str(as_guard([])) == "always"


@pytest.mark.parametrize("value", [None, True, "score >= 8", 3, field("a"), ["a"], {"field": "a"}])
def test_what_is_no_condition_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="is no condition"):
        as_guard(value)


async def test_a_chain_of_thousands_is_asked_without_recursion() -> None:
    guard: Guard = field("a") == 0
    for number in range(3000):
        guard = guard | (field("a") == number)
    assert await ask(guard, {"a": 2999})
    assert str(guard).count(" or ") == 3000


# -- functions ------------------------------------------------------------------------------------------------------


class Ready:
    async def __call__(self, ctx: Any) -> bool:
        return bool(ctx["ready"])


def ready(ctx: Any) -> bool:
    return bool(ctx["ready"])


async def later(ctx: Any) -> bool:
    return bool(ctx["ready"])


def of_two(name: str, ctx: Any) -> bool:
    return bool(ctx[name])


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (ready, "ready"), (later, "later"), (Ready(), "Ready"), (functools.partial(of_two, "ready"), "of_two"),
        (functools.partial(later), "later"), (lambda ctx: later(ctx), "<lambda>"),
    ],
)  # fmt: skip
async def test_a_function_is_a_guard_and_is_given_the_context(function: Any, text: str) -> None:
    for answer in (True, False):
        view = View({}, ctx={"ready": answer})
        assert await as_guard(function).ask(view) is answer
        assert view.seen == [Seen(text, {}, answer)]


async def test_what_a_function_returns_is_taken_as_in_an_if() -> None:
    assert await ask(as_guard(lambda ctx: re.match("a", "abc"))) is True
    assert await ask(as_guard(lambda ctx: 0)) is False


async def test_a_function_that_returns_none_has_forgotten_its_return() -> None:
    with pytest.raises(ConditionError, match="returned None"):
        await ask(as_guard(lambda ctx: None))


async def test_what_a_function_raises_passes_on_and_is_seen() -> None:
    def broken(ctx: Any) -> bool:
        raise KeyError("topic\0\ud800")

    view = View({})
    with pytest.raises(KeyError):
        await as_guard(broken).ask(view)
    (seen,) = view.seen
    assert seen.answer is None
    assert str(seen.error).startswith("KeyError: 'topic")


# -- Condition ------------------------------------------------------------------------------------------------------


def test_a_condition_keeps_what_it_was_given() -> None:
    def fits(value: Any) -> bool:
        return True

    positional = Condition("a", "ge", 3, fits)
    named = Condition(field="a", operator="ge", value=3, custom_function=fits)
    for condition in (positional, named):
        assert (condition.field, condition.operator, condition.value) == ("a", "ge", 3)
        assert condition.custom_function is fits
    assert (Condition("a").operator, Condition("a").value) == ("eq", None)


@pytest.mark.parametrize("lenient", [True, False])
async def test_a_custom_function_wins_over_the_operator_and_gets_the_value(lenient: bool) -> None:
    given_values = []

    def sync(value: Any) -> bool:
        given_values.append(value)
        return bool(value == "high")

    async def asynchronous(value: Any) -> bool:
        return sync(value)

    for function in (sync, asynchronous):
        for operator in ("custom", "eq", "nonsense"):
            condition = Condition("ticket.priority", operator, "low", function)
            assert await ask(condition, {"ticket": {"priority": "high"}}, lenient=lenient) is True
            assert await ask(condition, {}, lenient=lenient) is False
            assert condition.problems() == []
    assert given_values == ["high", None] * 6


async def test_a_custom_function_is_seen_with_the_value_it_got() -> None:
    view = View({"a": 5})
    await Condition("a", custom_function=ready_value).ask(view)
    assert view.seen == [Seen("ready_value(a)", {"a": "5"}, True)]


def ready_value(value: Any) -> bool:
    return bool(value)


async def test_a_custom_function_that_returns_none_is_false_only_leniently() -> None:
    condition = Condition("a", custom_function=lambda value: None)  # type: ignore[arg-type,return-value]
    assert await ask(condition, lenient=True) is False
    with pytest.raises(ConditionError, match="returned None"):
        await ask(condition)


@pytest.mark.parametrize(
    ("operator", "hint"),
    [
        ("gte", "did you mean 'ge'"), ("==", "did you mean 'eq'"), ("start_with", "did you mean 'starts_with'"),
        ("IN", "did you mean 'in'"), ("frobnicate", "there are eq ne gt"), ("custom", "needs a custom_function"),
        (5, "unknown operator 5"), (["eq"], "unknown operator"), (None, "unknown operator None"),
    ],
)  # fmt: skip
async def test_an_unknown_operator_is_named_with_the_nearest_and_cannot_be_asked(operator: Any, hint: str) -> None:
    condition = Condition("a", operator, 1)
    (problem,) = condition.problems()
    assert hint in problem
    with pytest.raises(ConditionError, match="has no answer"):
        await ask(condition, {"a": 1})


@pytest.mark.parametrize(
    ("guard", "words"),
    [
        (field(""), "needs a name"), (Operand("data", 3), "named by text"),  # type: ignore[arg-type]
        (field("a\0b"), "control characters"), (payload("a\nb"), "control characters"),
    ],
)  # fmt: skip
def test_a_bad_name_is_a_problem_on_either_side(guard: Operand, words: str) -> None:
    for comparison in (guard == 1, field("a") == guard, ~(guard == 1), (guard == 1) & ready):
        assert [words in problem for problem in comparison.problems()] == [True]


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (Condition("a", "in", "abc"), "needs a list"), (Condition("a", "starts_with", 5), "needs text"),
        (Condition("a", "gt", None), "no order for NoneType"), (Condition("a", "matches", "("), "does not compile"),
        (Condition("a", "matches", 5), "needs a pattern"),
        (Condition("a", custom_function=3), "is no function"),  # type: ignore[arg-type]
        (as_guard(lambda: True), "one argument"), (as_guard(of_two), "one argument"),
    ],
)  # fmt: skip
def test_what_can_never_be_answered_is_a_problem(condition: Guard, words: str) -> None:
    (problem,) = condition.problems()
    assert words in problem


@pytest.mark.parametrize(
    "condition",
    [
        Condition("a", "in", "abc"), Condition("a", "starts_with", 5), Condition("a", "gt", None),
        Condition("a", "matches", "("), as_guard([Condition("a", "lt"), ~(field("b") > {})]),
    ],
)  # fmt: skip
async def test_leniently_a_constant_that_is_never_answered_is_no_problem(condition: Guard) -> None:
    assert condition.problems(lenient=True) == []
    assert condition.problems() != []
    assert await ask(condition, {"a": 1}, lenient=True) is False


def test_leniently_an_unknown_operator_and_a_bad_name_are_problems_all_the_same() -> None:
    both = as_guard([Condition("a", "gte", 1), Condition("", "eq", 1), as_guard(of_two)])
    assert both.problems(lenient=True) == both.problems()
    assert len(both.problems()) == 3


def test_sound_guards_have_no_problems() -> None:
    sound = [
        field("a") > 1, payload() == 1, field("a").matches("a+"), field("a").in_(payload("b")), as_guard(ready),
        as_guard([ready, ~(field("a").is_none())]), field("a") > payload("b"), as_guard(str), as_guard(Ready()),
    ]  # fmt: skip
    assert [guard.problems() for guard in sound] == [[]] * len(sound)


def test_a_guard_tells_which_fields_of_the_data_it_reads() -> None:
    guard = ((field("a.b") == payload("x")) & ready) | ~(field("c") < field("d"))
    assert guard.fields() == {"a.b", "c", "d"}
    assert Condition("e", custom_function=ready_value).fields() == {"e"}


# -- what is told ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guard", "text"),
    [
        (field("score") >= 8, "score >= 8"), (payload("qty") >= field("left"), "payload.qty >= left"),
        ((field("a") == 1) & ~field("b").is_none(), "a == 1 and not b is none"),
        (((field("a") == 1) & (field("b") != "x")) | (field("c") < 2.5), "(a == 1 and b != 'x') or c < 2.5"),
        (~((field("a") == 1) | (field("b") == 2)), "not (a == 1 or b == 2)"),
        (~~(field("a") == 1), "a == 1"), (Condition("a", "ge", 8), "a >= 8"),
        (field("tags").not_contains("x"), "tags does not contain 'x'"),
        (field("a").starts_with("x"), "a starts with 'x'"),
        (field("a").in_([1, 2]), "a in [1, 2]"), (field("a").not_in({1}), "a not in {1}"),
        (field("a").is_not_empty(), "a is not empty"), (payload() == None, "payload == None"),  # noqa: E711
        (field("payload.qty") == 1, "data.payload.qty == 1"), (field("a").matches("x+"), "a matches 'x+'"),
    ],
)  # fmt: skip
def test_a_guard_reads_as_it_is_meant(guard: Guard, text: str) -> None:
    assert str(guard) == text
    assert text in repr(guard)


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


@dataclass
class Loud:
    def __repr__(self) -> str:
        raise RuntimeError


@given(plain)
def test_a_value_is_told_in_at_most_200_characters_that_every_store_takes(value: Any) -> None:
    text = cut(value)
    assert len(text) <= 200
    assert "\0" not in text
    assert text.encode()


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6, "\0" * 300, "\ud800", 10**5000, [[[[[[]]]]]], list(range(10**6)), Loud(), [Loud()],
        nested(50_000), {"a" * 1000: "b" * 1000}, [[list(range(200))] * 200] * 200,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_hostile_values_are_told_too(value: Any) -> None:
    assert len(cut(value)) <= 200
    json.dumps(cut(value)).encode()


def test_small_values_are_told_whole() -> None:
    values: list[Any] = [None, True, -3, 2.5, "it's", [1, [2, {"a": "b"}]], (1,), {"a": None}, Decimal("1.50"), set()]
    for value in values:
        assert cut(value) == repr(value)


async def test_nothing_live_outlives_the_decision() -> None:
    item = Item(2.0)
    there = weakref.ref(item)
    view = View({"x": item})
    await field("x").is_not_none().ask(view)
    view.data = None
    del item
    gc.collect()
    assert there() is None
    assert "price=2.0" in view.seen[0].values["x"]
