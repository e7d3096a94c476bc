"""Checks say what is wrong and with which field; changes make other data, and leave what they are given alone."""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsmworkflow import Engine, FSMWorkflowError, RunFailed, To, Workflow, field
from fsmworkflow.functions import (
    Change,
    Check,
    Invalid,
    add_metadata,
    chain,
    convert,
    data_valid,
    depends_on,
    enrich,
    filter_fields,
    flatten,
    has_required_fields,
    lengths,
    map_fields,
    normalise,
    patterns,
    ranges,
    replace,
    required,
    schema,
    split,
    types,
    unique,
    validate,
)
from fsmworkflow.stream import stream


@dataclass
class Person:
    name: str
    age: int = 0


class Struct(msgspec.Struct):
    name: str


class Typed(TypedDict):
    name: str


class Model(pydantic.BaseModel):
    name: str


NESTED = {"customer": {"email": "a@b.c", "age": 7}}


@pytest.mark.parametrize(
    ("check", "holds", "data", "problems"),
    [
        (required("a", "b"), {"a": 1, "b": 0}, {"a": None}, ["a is missing", "b is missing"]),
        (required("a", allow_none=True), {"a": None}, {}, ["a is missing"]),
        (required("customer.email"), NESTED, {"customer": {"email": None}}, ["customer.email is missing"]),
        (required("c.e", allow_none=True), {"c": {"e": None}}, {"c": 3}, ["c.e is missing"]),
        (has_required_fields(["a"]), {"a": 1}, {}, ["a is missing"]),
        (types(a="int", b=(str, "list")), {"a": 1, "b": []}, {"a": True, "b": 2},
         ["a must be of type int, not True", "b must be of type str or list, not 2"]),
        (types(a="float"), {"a": 1}, {"a": "1"}, ["a must be of type float or int, not '1'"]),
        (types(a=date, b="any"), {"a": date(2026, 1, 1), "b": True}, {"a": "x"}, ["a must be of type date, not 'x'"]),
        (ranges(**{"customer.age": (0, 150)}), NESTED, {"customer": {"age": 151}},
         ["customer.age must be from 0 to 150, not 151"]),
        (ranges(a={"min": 3}), {"a": 3}, {"a": 2.5}, ["a must be at least 3, not 2.5"]),
        (ranges(a=(None, 3)), {}, {"a": True}, ["a must be at most 3, not True"]),
        (ranges(a=(date(2026, 1, 1), None)), {"a": date(2026, 2, 1)}, {"a": "x"},
         ["a must be at least 2026-01-01, not 'x'"]),
        (ranges(a=(0, 1)), {"a": None}, {"a": float("nan")}, ["a must be from 0 to 1, not nan"]),
        (lengths(a=2), {"a": "ab"}, {"a": [1]}, ["a must be of length 2, not [1]"]),
        (lengths(a=(1, 2)), {"a": {"x": 1}}, {"a": 5}, ["a must be of length from 1 to 2, not 5"]),
        (lengths(a={"exact": 0}), {"a": ""}, {"a": "x"}, ["a must be of length 0, not 'x'"]),
        (patterns(a=r"[a-z]+\d$"), {"a": "abc1"}, {"a": "1abc1"}, ["a must match '[a-z]+\\\\d$', not '1abc1'"]),
        (patterns(a="x"), {}, {"a": 5}, ["a must match 'x', not 5"]),
        (schema(Person), {"name": "ann", "age": 3}, {"age": 3}, ["Object missing required field `name`"]),
        (schema(Struct), {"name": "ann"}, {"name": 3}, ["Expected `str`, got `int` - at `$.name`"]),
        (schema(Typed), {"name": "ann"}, {}, ["Object missing required field `name`"]),
        (schema({"required": ["a"], "properties": {"a": {"type": "integer"}}}), {"a": 1}, {"a": "x"},
         ["$.a: 'x' is not of type 'integer'"]),
        (unique("tags"), {"tags": [1, "1", [2], {"a": 1}]}, {"tags": [{"a": 1, "b": 2}, {"b": 2, "a": 1}]},
         ["tags must have {'a': 1, 'b': 2} once, not [{'a': 1, 'b': 2}, {'a': 1, 'b': 2}]"]),
        (unique("items", key="id"), {"items": [{"id": 1}, {"id": 2}, {}, {}, 7]}, {"items": "text"},
         ["items must be a list, not 'text'"]),
        (depends_on(card=["number", "owner"]), {"number": 1}, {"card": 1, "owner": 2}, ["card needs number"]),
        (data_valid(), {}, {"valid": False}, ["valid is false"]),
        (required("a") & ranges(a=(0, 1)), {"a": 1}, {"a": 2}, ["a must be from 0 to 1, not 2"]),
        (required("a") | required("b"), {"b": 1}, {}, ["a is missing", "b is missing"]),
        (~required("a"), {}, {"a": 1}, ["required(a) holds"]),
    ],
)  # fmt: skip
def test_a_check_holds_or_says_what_is_wrong(
    check: Check, holds: dict[str, Any], data: dict[str, Any], problems: list[str]
) -> None:
    assert check(holds)
    assert check.problems(holds) == []
    assert not check(data)
    assert check.problems(data) == problems


def test_a_model_of_pydantic_is_a_schema() -> None:
    assert schema(Model)({"name": "ann"})
    assert "Field required" in schema(Model).problems({})[0]


@pytest.mark.parametrize(
    ("change", "data", "made"),
    [
        (map_fields({"a": "b", "c.d": "e"}), {"a": 1, "c": {"d": 2}}, {"c": {"d": 2}, "b": 1, "e": 2}),
        (map_fields({"a": "b"}, drop=True), {"a": None, "x": 3}, {"b": None}),
        (map_fields({"gone": "b"}), {"x": 3}, {"x": 3}),
        (convert(a="int", b="bool", c="Decimal", d=len), {"a": "7", "b": "Yes", "c": "1.5", "d": "four"},
         {"a": 7, "b": True, "c": Decimal("1.5"), "d": 4}),
        (convert(a="date", b="datetime", c="json"), {"a": "2026-01-02", "b": None, "c": "[1]"},
         {"a": date(2026, 1, 2), "b": None, "c": [1]}),
        (convert(strict=False, a="int"), {"a": "seven"}, {"a": "seven"}),
        (normalise(a=["trim", "snake_case"]), {"a": " someName ", "b": " X "}, {"a": "some_name", "b": " X "}),
        (normalise("uppercase", a="camel_case"), {"a": "some-name", "b": "x", "c": 3},
         {"a": "someName", "b": "X", "c": 3}),
        (normalise(a=["normalize_spaces", "remove_special"]), {"a": "a   b!"}, {"a": "a b"}),
        (convert(**{"a.b": "int", "c.1.d": "int", "e.f": "int", "g.h": "int"}),
         {"a": {"b": "1", "c": "2"}, "c": ["x", {"d": "3"}], "e": {}, "g.h": "4"},
         {"a": {"b": 1, "c": "2"}, "c": ["x", {"d": 3}], "e": {}, "g.h": 4}),
        (normalise("uppercase", **{"a.b": "trim"}), {"a": {"b": " x "}, "c": "y"}, {"a": {"b": "x"}, "c": "Y"}),
        (replace(**{"a.b": {"ok": "done"}}), {"a": {"b": "ok"}}, {"a": {"b": "done"}}),
        (filter_fields(include=["a"]), {"a": 1, "b": 2}, {"a": 1}),
        (filter_fields(exclude=["a"]), {"a": 1, "b": 2}, {"b": 2}),
        (replace(a={"ok": "done", 3: 4}), {"a": "ok", "b": "ok"}, {"a": "done", "b": "ok"}),
        (replace(a={"ok": "done"}), {"a": ["ok"]}, {"a": ["ok"]}),
        (flatten("a"), {"a": [[1], 2, [[3]]], "b": [[4]]}, {"a": [1, 2, [3]], "b": [[4]]}),
        (flatten("a", depth=2), {"a": [[1], [[3, [4]]]]}, {"a": [1, 3, [4]]}),
        (flatten("a"), {"a": {"b": 1, "c": {"d": 2}}, "x": 1}, {"a.b": 1, "a.c": {"d": 2}, "x": 1}),
        (flatten("a", depth=2), {"a": {"b": 1, "c": {"d": 2}}}, {"a.b": 1, "a.c.d": 2}),
        (split("items"), {"id": 7, "items": [{"n": 1}, "x"]},
         {"records": [{"id": 7, "n": 1}, {"id": 7, "items": "x"}]}),
        (split("tags", at=","), {"tags": "a,b"}, {"tags": ["a", "b"]}),
        (split("tags"), {"tags": "a"}, {"tags": "a"}),
        (enrich(a=1, b=lambda data: data["c"] * 2), {"a": 0, "c": 4}, {"a": 0, "c": 4, "b": 8}),
        (enrich({"a-b": 1}, overwrite=True, a=1), {"a": 0}, {"a": 1, "a-b": 1}),
        (validate(required("a")), {}, {"valid": False, "problems": ["a is missing"]}),
        (convert(a="int") | enrich(b=lambda data: data["a"] + 1), {"a": "1"}, {"a": 1, "b": 2}),
        (chain(), {"a": 1}, {"a": 1}),
        (chain(filter_fields(include=["a"]), enrich(c=1)), {"a": 1, "b": 2}, {"a": 1, "c": 1}),
    ],
)  # fmt: skip
def test_a_change_makes_other_data_and_leaves_what_it_is_given(
    change: Change, data: dict[str, Any], made: dict[str, Any]
) -> None:
    before = copy.deepcopy(data)
    assert change(data) == made
    assert data == before


@pytest.mark.parametrize("change", [enrich(tags=[]), enrich({"tags": []}, overwrite=True)])
def test_what_is_added_is_each_records_own(change: Change) -> None:
    one, other = change({}), change({})
    one["tags"].append(1)  # type: ignore[index]
    assert other == {"tags": []}
    assert change({}) == {"tags": []}


def test_metadata_are_added_to_those_that_are_there() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    metadata = add_metadata(by="import")({"metadata": {"a": 1}})["metadata"]  # type: ignore[index]
    assert before <= datetime.fromisoformat(metadata.pop("processed_at")) <= datetime.now(UTC)
    assert metadata == {"a": 1, "by": "import"}
    assert list(add_metadata()({"metadata": 3})["metadata"]) == ["processed_at"]  # type: ignore[index]


DATA = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=4) | st.booleans() | st.floats(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
        max_leaves=6,
    ),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(DATA)
def test_whatever_the_data_is_a_check_answers_and_a_change_alters_nothing_that_it_is_given(
    data: dict[str, Any],
) -> None:
    before = copy.deepcopy(data)
    for check in (
        required("a", "b.a"), types(a="int"), ranges(a=(0, 5), b=("a", "b")), lengths(a=1), patterns(a="x+"),
        unique("a", key="a"), unique("b"), depends_on(a="b.a"), schema({"required": ["a"]}),
    ):  # fmt: skip
        assert check(data) is (not check.problems(data))
        assert (~check)(data) is not check(data)
    for change in (
        map_fields({"a": "c", "b.a": "d"}), convert(strict=False, a="int", b="json"), normalise("trim", a="camel_case"),
        flatten("a", "b", depth=3), split("a"), replace(a={1: 2}), enrich(z=1), add_metadata(),
    ):  # fmt: skip
        assert isinstance(change(data), dict)
    assert repr(data) == repr(before)


def test_what_cannot_be_converted_is_told_with_its_field() -> None:
    with pytest.raises(Invalid, match="convert of age = 'seven': ValueError: invalid literal"):
        convert(age="int")({"age": "seven"})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: convert(a="integer"), "there is no type 'integer'.*did you mean"),
        (lambda: types(a="sting"), "there is no type 'sting'"),
        (lambda: normalise(a="lowercse"), "there is no normalization 'lowercse'"),
        (lambda: ranges(a={"least": 3}), "bounds are min and max, not 'least'"),
        (lambda: ranges(a=5), "bounds are the least and the most, as \\(0, 150\\), or min and max, not 5"),
        (lambda: lengths(a="ab"), "or min and max, not 'ab'"),
        (lambda: filter_fields(include=["a"], exclude=["b"]), "include or exclude"),
        (lambda: patterns(a="("), r"the pattern '\(' does not compile: missing \): \("),
        (lambda: patterns(a=r"(a)\1"), "does not compile"),
        (lambda: schema({"type": "integr"}), "it is no JSON Schema"),
    ],
)
def test_what_means_nothing_is_refused_when_it_is_made(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_what_is_no_check_and_no_data_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"validate is given a check, as required\('email'\), not 5"):
        validate(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="data is a dict, or what has one as its `data`, not 5"):
        required("email")(5)


def test_a_pattern_that_does_not_compile_is_told_once() -> None:
    program = (
        "from fsmworkflow.functions import patterns, schema\n"
        "for make in (lambda: patterns(a='('), lambda: schema({'properties': {'a': {'pattern': '('}}})):\n"
        "    try: make()\n"
        "    except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("the pattern '(' does not compile: missing ): (\n" * 2, "")


def test_items_that_are_no_data_are_compared_by_their_repr() -> None:
    assert unique("a")({"a": [{1, 2}, {3}, object()]})
    assert not unique("a")({"a": [1j, 1j]})


def test_nothing_is_fetched_for_a_schema_and_its_patterns_are_bounded() -> None:
    with pytest.raises(Invalid, match=r"refers to what is not in it.*nothing is fetched"):
        schema({"$ref": "http://127.0.0.1:1/other.json"})({})
    began = time.process_time()
    check = schema({"properties": {"a": {"pattern": r"(a+)+$"}}})
    assert not check({"a": "a" * 100_000 + "!"})
    assert time.process_time() - began < 2


def _twice(many: int) -> dict[str, Any]:
    """A schema that is checked two to the power of so many times."""
    both = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(many)}
    return {"$defs": {**both, f"a{many}": {"type": "object"}}, "$ref": "#/$defs/a0"}


def _nested(many: int) -> Any:
    data: Any = {}
    for _ in range(many):
        data = {"a": data}
    return data


TWO_EACH: dict[str, Any] = {"properties": {"a": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}}


@pytest.mark.parametrize(
    ("told", "data", "said"),
    [
        (_twice(40), {}, "lead on and on"),
        (TWO_EACH, _nested(40), "lead on and on"),
        ({"$ref": "#"}, {}, "nested too deep"),
        ({"properties": {"a": {"$ref": "#"}}}, _nested(100_000), "nested too deep"),
    ],
)
def test_a_schema_is_checked_in_time_that_grows_with_the_data(told: Any, data: Any, said: str) -> None:
    began = time.process_time()
    with pytest.raises(Invalid, match=said):
        schema(told).problems(data)
    assert time.process_time() - began < 10
    while data:  # so that it is let go of from outside inwards
        data = data.pop("a", None)


def test_many_references_are_followed_where_the_data_has_as_many() -> None:
    item = {"$defs": {"item": {"type": "integer"}}, "properties": {"a": {"items": {"$ref": "#/$defs/item"}}}}
    assert schema(item)({"a": list(range(20_000))})


def test_unique_items_of_a_schema_are_found_at_once_and_equal_as_json_is() -> None:
    check = schema({"properties": {"a": {"uniqueItems": True}}})
    began = time.process_time()
    assert check({"a": [{"n": n} for n in range(20_000)]})
    assert time.process_time() - began < 10
    for items in ([1, True, "1", None, [1], {"n": 1}, 0, False], [[1, [True]], [1, [1]]], [{"a": 1}, {"a": 1, "b": 2}]):
        assert check({"a": items}), items
    for items in ([1, 1.0], [[1], [1.0]], [{"a": 1, "b": [2]}, {"b": [2], "a": 1}], ["x", "x"], [None, None]):
        assert check.problems({"a": items}) == [f"$.a: {items} has non-unique elements"]


def test_a_number_of_endless_digits_and_text_nested_beyond_reason_are_not_converted() -> None:
    huge, deep = {"a": Decimal("1e999999999")}, {"a": "[" * 200_000}
    for kind, data in (("int", huge), ("json", deep)):
        with pytest.raises(Invalid, match="convert of a"):
            convert(a=kind)(dict(data))
        assert convert(strict=False, a=kind)(dict(data)) == data


def test_a_pattern_is_bounded_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.process_time()
    assert not patterns(a=r"(a+)+$")({"a": "a" * 100_000 + "!"})  # for which `re` would take longer than the sun
    assert time.process_time() - began < 2
    monkeypatch.setitem(sys.modules, "re2", None)
    with pytest.raises(FSMWorkflowError, match=r"patterns need google-re2: pip install 'fsmworkflow\[re2\]'"):
        patterns(a="x")


async def test_checks_are_conditions_and_changes_are_steps_and_updates(store_url: str) -> None:
    known = required("email") & ranges(age=(0, 150))
    clean = normalise(email=["trim", "lowercase"]) | convert(age="int")
    flow = Workflow("people")
    flow.step("clean", initial=True, then=[(known & (field("age") > 17), "adult"), (known, "child"), "refused"])(clean)
    flow.wait("adult", on={"renamed": To("named", update=map_fields({"email": "mail"}))})
    flow.final("child", "refused", "named")
    async with Engine(store_url, workflows=[flow]) as engine:
        assert (await engine.run(flow, {"email": " A@B.C ", "age": "7"}, key="a")).state == "child"
        assert (await engine.run(flow, {"age": "7"}, key="b")).state == "refused"
        run = await engine.run(flow, {"email": " A@B.C ", "age": "18", "x": 1}, key="c")
        assert (run.state, run.data) == ("adult", {"email": "a@b.c", "age": 18, "x": 1})
        asked = (await engine.history(flow, "c"))[-1].asked
        assert [str(one.condition) for one in asked] == ["required(email) and ranges(age)", "age > 17"]
        await engine.send(flow, "c", "renamed")
        assert (await engine.result(flow, "c")).data == {"age": 18, "x": 1, "mail": "a@b.c"}
        with pytest.raises(RunFailed, match="convert of age = 'seven'"):
            await engine.run(flow, {"email": "x", "age": "seven"}, key="d")


def test_a_condition_of_ours_combines_with_a_check_from_either_side() -> None:
    check = required("a")
    for guard in (
        check & (field("a") > 1),
        (field("a") > 1) & check,
        check | (field("a") > 1),
        (lambda _: True) | check,
    ):
        assert "required(a)" in str(guard)


async def test_records_of_a_stream_are_checked_and_changed() -> None:
    flow = Workflow("people")
    change = validate(required("n")) | enrich(twice=lambda data: 2 * (data.get("n") or 0))
    flow.step("look", initial=True, then=[(data_valid(), "good"), "bad"])(change)
    flow.final("good", "bad")
    good: list[Any] = []
    bad: list[Any] = []
    done = await stream(None, flow, [{"n": 1}, {}, {"n": 3}], {"good": good, "bad": bad})
    assert done.states == {"good": 2, "bad": 1}
    assert [one["twice"] for one in good] == [2, 6]
    assert bad == [{"valid": False, "problems": ["n is missing"], "twice": 0}]
