"""A workflow as data: what a file says, that both ways lose nothing, and what is refused, with its place."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsmworkflow import DefinitionError, FSMWorkflowError, Retry, Workflow, field, open_store
from fsmworkflow.conditions import View, as_guard
from fsmworkflow.config import Functions, Source, functions_of
from tests.scenarios import SCENARIOS, Ledger, Scenario, by_run, check_end


async def draft(ctx: Any) -> None: ...
async def judge(ctx: Any) -> None: ...
async def publish(ctx: Any) -> None: ...


STEPS = {"draft": draft, "judge": judge, "publish": publish}
ARTICLE = """\
name: article
initial: draft
states:
  - name: draft
    step: draft
    retry: {attempts: 5, on: ConnectionError}
    timeout: 60
    then: judge
  - name: judge
    step: judge
    then:
      - {conditions: score >= 8, dest: review}
      - draft
  - name: review
    on: {approved: publish, rejected: draft}
    after: {3d: expired}
  - {name: publish, step: publish, then: published}
  - {name: published, final: true}
  - {name: expired, final: true, outcome: failed}
"""


def load(tmp_path: Path, text: str, name: str = "w.yaml", **given: Any) -> Workflow:
    file = tmp_path / name
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    return Workflow.load(file, **given)


def problems(tmp_path: Path, text: str, name: str = "w.yaml", **given: Any) -> list[str]:
    """What is told of a file, without the directory."""
    with pytest.raises(DefinitionError) as caught:
        load(tmp_path, text, name, **given)
    return [problem.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]


def again(made: Workflow) -> Workflow:
    """The same workflow by way of plain values, which JSON carries."""
    config = json.loads(json.dumps(made.to_dict()))
    read = Workflow.from_dict(config, functions=functions_of(made))
    assert read.to_dict() == config
    assert functions_of(read) == functions_of(made)
    assert read.chart.structure == made.chart.structure
    return read


# -- both ways --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
async def test_every_scenario_says_as_data_what_it_says_in_python(scenario: Scenario) -> None:
    as_data = replace(scenario, make=lambda ledger: again(scenario.make(ledger)))
    if scenario.connected:
        as_data.make(Ledger())
        return
    store, ledger = open_store("memory://"), Ledger()
    await store.open()
    await by_run(store, as_data, ledger)
    await check_end(store, as_data, ledger)
    await store.close()


def test_a_file_says_the_same_in_yaml_and_in_json(tmp_path: Path) -> None:
    made = load(tmp_path, ARTICLE, functions=STEPS)
    other = load(tmp_path, json.dumps(made.to_dict()), "w.json", functions=STEPS)
    assert other.to_dict() == made.to_dict()
    assert other.chart.structure == made.chart.structure
    assert made.states["draft"].step is not None
    assert made.states["draft"].step.execute is draft
    assert made.states["expired"].outcome == "failed"


def test_what_the_page_writes_for_a_file_is_what_it_writes_in_python() -> None:
    page = (Path(__file__).parent.parent / "docs" / "files.md").read_text(encoding="utf-8")
    table = page[page.index("| in Python | here") : page.index("## Code is named")]
    texts = re.findall(r"`(\{name.*?\})`[ ,]", table.replace(", ...]", ", {name: over, final: true}]"))
    states: list[Any] = [json.loads(json.dumps(Source.of_text(text, "yaml", "page").value)) for text in texts]

    def code(*_: Any) -> None: ...

    small = Workflow("small")
    small.step("only", initial=True, then="end")(code)
    small.final("end")
    made = Workflow("page")
    made.choice("first", [(field("n") == number, state["name"]) for number, state in enumerate(states)], initial=True)
    made.step("pay", then="paid", retry=Retry(attempts=3), timeout=60)(code)
    made.wait("review", on={"ok": [(field("n") > 1, "paid"), "lost"]}, after={"3d": "lost"})
    made.choice("kind", [(field("n") > 1, "pay"), "lost"])
    made.child("ship", small, data=code, then="sent")
    made.each("thumbs", small, over=field("images"), then="sent")
    inner = made.state("inner", then="sent")
    inner.wait("first", initial=True, on={"go": "over"})
    inner.final("over")
    bill = made.parallel("both", then="sent").region("bill")
    bill.wait("due", initial=True, on={"settled": "over"})
    bill.final("over")
    made.final("lost", outcome="failed")
    made.final("paid", "sent")
    ways = [{"conditions": f"n == {number}", "dest": state["name"]} for number, state in enumerate(states)]
    ends = [{"name": name, "final": True} for name in ("paid", "sent")]
    config = {
        "name": "page",
        "initial": "first",
        "states": [{"name": "first", "choice": True, "then": ways}, *states, *ends],
    }
    known = {"pay": code, "address": code, "parcel": small, "thumb": small}
    read = Workflow.from_dict(config, functions=known)
    assert read.chart.structure == made.check().chart.structure
    assert read.states["pay"].step == made.states["pay"].step
    assert len(states) == 8


def test_the_readme_shows_one_machine_in_python_and_in_yaml(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (python,) = re.findall(r"^```python\n([^`]*?)^async def main[^`]*?```\n\n### The same in a file", page, re.M)
    (yaml,) = re.findall(r"^```yaml\n# order.yaml\n(.*?)^```", page, re.M | re.S)
    shown: dict[str, Any] = {}
    exec(python, shown)
    made, read = shown["order"].check(), load(tmp_path, yaml, functions={"take": shown["take"]})
    assert read.chart.structure == made.chart.structure
    assert [t.update for t in read.transitions] == [t.update for t in made.transitions]


def test_on_is_a_key_and_yes_is_text(tmp_path: Path) -> None:
    made = load(tmp_path, "{name: w, initial: a, states: [{name: a, on: {yes: b, no: b}}, {name: b, final: true}]}")
    assert made.chart.triggers == ("yes", "no")


# -- refused ----------------------------------------------------------------------------------------------------------


def test_an_unknown_key_is_told_with_its_line_and_the_nearest_one(tmp_path: Path) -> None:
    found = problems(tmp_path, ARTICLE.replace("conditions: score", "gaurds: score"), functions=STEPS)
    assert len(found) == 1
    assert found[0].startswith("w.yaml:12:10: states[1].then[0].gaurds: unknown key 'gaurds'")
    near = problems(tmp_path, ARTICLE.replace("timeout:", "timeuot:"), functions=STEPS)
    assert near == ["w.yaml:7:5: states[0].timeuot: unknown key 'timeuot' (did you mean 'timeout'?)"]


def test_an_unknown_function_is_told_with_its_place_and_the_nearest_one(tmp_path: Path) -> None:
    found = problems(tmp_path, ARTICLE.replace("step: judge", "step: jugde"), functions=STEPS)
    what = "there is no function 'jugde' (did you mean 'judge'?): give it in functions="
    assert found == [f"w.yaml:10:5: states[1].step: {what}"]


def test_what_is_wrong_with_the_whole_has_its_line_too(tmp_path: Path) -> None:
    found = problems(tmp_path, ARTICLE.replace("initial: draft", "initial: draf"), functions=STEPS)
    line = 1 + ARTICLE.splitlines().index("initial: draft")
    what = "there is no state 'draf' (did you mean 'draft'?): it names the first of the states"
    assert found == [f"w.yaml:{line}:1: initial: {what}"]
    assert problems(tmp_path, "initial: a\nstates: [a]\n") == ["w.yaml:1:1: the key 'name' is missing"]


def test_signs_of_other_languages_are_answered_with_the_words_of_an_expression(tmp_path: Path) -> None:
    leads = "{name: a, on: {go: {conditions: 'n > 1 && m', dest: b}}}"
    config = f"name: w\ninitial: a\nstates: [{leads}, {{name: b, final: true}}]\n"
    (found,) = problems(tmp_path, config)
    assert found.endswith("conditions: column 8: invalid syntax; it has `and or not`, and `==` for equal")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("parallel", True, "parallel: True must be a list of its regions, each a state"),
        ("on", "go", r"on: 'go' must be a mapping of events to where they lead, as \{approved: published\}"),
        ("after", "3d", r"after: '3d' must be a mapping of times to where they lead, as \{3d: expired\}"),
        ("on_error", ["b"], "on_error: .* must be a mapping of errors to where they lead"),
    ],
)
def test_what_is_of_the_wrong_kind_is_told_with_what_is_meant(key: str, value: Any, told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        Workflow.from_dict(rows({"name": "a", key: value}))


def test_what_the_check_finds_has_its_place_too(tmp_path: Path) -> None:
    found = problems(tmp_path, ARTICLE.replace("then: judge", "then: jugde"), functions=STEPS)
    assert any(
        problem.startswith("w.yaml:8:5: states[0].then: transition 'then' of 'draft': there is no state 'jugde'")
        for problem in found
    )


def rows(*states: Any, **told: Any) -> dict[str, Any]:
    """A definition of the states `a` and `b`, the second an end, and of these."""
    return {"name": "w", "initial": "a", "states": [*(states or ["a"]), {"name": "b", "final": True}], **told}


def asking(condition: Any, **told: Any) -> dict[str, Any]:
    return rows(transitions=[{"trigger": "go", "source": "a", "dest": "b", "conditions": condition, **told}])


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "the key 'name' is missing"),
        (rows({"name": "a", "step": "draft", "final": True}), "states[0]: 'step' and 'final' do not go together"),
        (rows({"name": "a", "timeout": 5}), "states[0]: 'timeout' needs 'step' beside it"),
        (rows({"name": "a", "initial": "x"}), "states[0]: 'initial' needs 'children' beside it"),
        (rows({"name": "a", "children": ["x"]}), "states[0].initial: it is missing: it names the first"),
        (rows(initial="c"), "initial: there is no state 'c'"),
        (rows(initial=True), "initial: True must be text"),
        (rows("a", "a"), "state 'a' is declared twice"),
        (rows({"name": "a.b"}), "states[0]: state name 'a.b' holds a dot"),
        (rows(transitions=[{"trigger": "go", "source": "a"}]), "transitions[0]: the key 'dest' is missing"),
        (rows(transitions=[{"trigger": "go", "source": "c", "dest": "b"}]), "transitions[0]: transition 'go' of 'c'"),
        (rows({"name": "a", "on": {"go": ["b", "b"]}}), "states[0].on.go[0]: what follows it can never be taken"),
        (rows({"name": "a", "on_error": {"ValueEror": "b"}}), "no error 'ValueEror' (did you mean 'ValueError'?)"),
        (rows({"name": "a", "child": {"workflow": "x"}, "then": "b"}), "states[0].child: there is no workflow 'x'"),
        (rows({"name": "a", "step": "draft", "retry": 3}), "states[0].retry: 3 must be a mapping"),
        (rows({"name": "a", "step": "draft", "retry": {"attempts": 0}, "then": "b"}), "attempts must be 1 or more"),
        (rows({"name": "a", "step": "a b", "then": "b"}), "states[0].step: 'a b' is no name of a function"),
        (rows(keep={"don": "30d"}, transitions=[{"trigger": "go", "source": "a", "dest": "b"}]), "keep: 'don' must be"),
        (rows(version="1"), "version: '1' must be a whole number"),
        (rows(payload="Merge"), "payload: 'Merge' must be 'merge'"),
        (rows(workflows=[rows()]), "workflows[0]: there is another workflow 'w'"),
        (asking("paid"), "no function 'paid': give it in functions=; of a field ask more, as in `paid == true`"),
        (asking("n >="), "transitions[0].conditions: column"),
        (asking({"field": "n", "all": []}), "transitions[0].conditions: a condition has one of"),
        (asking({"not": "n == 1", "operator": "eq"}), "a condition has one of"),
        (asking({"field": "n", "value": 1, "value_field": "m"}), "it is compared with one value"),
        (asking({"field": "n", "operator": "gte"}), "operator: 'gte' must be 'contains' or"),
        (asking({"field": "n", "operator": "in", "value": 3}), "operator in needs a list"),
        (asking({"field": "n", "value": {"$date": "soon"}}), "transitions[0].conditions"),
        (asking({"field": "n", "value": {"$decimal": "x"}}), "cannot be read"),
        (asking({"field": "n", "operator": "matches", "value": "a(?=b)"}), "does not compile"),
        (asking({"field": "n", "operator": "matches", "value": 3}), "needs a pattern"),
        (asking("n == 1", error="ValueError"), "a trigger, a delay and an error each need a transition of their own"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_meant_is_told_with_its_path(config: dict[str, Any], told: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        Workflow.from_dict(config, functions=STEPS)
    assert any(told in problem for problem in caught.value.problems), caught.value.problems


def test_a_pattern_that_does_not_compile_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DefinitionError, match=r"the pattern '\(' does not compile: missing \): \("):
        Workflow.from_dict(asking({"field": "n", "operator": "matches", "value": "("}))
    assert capfd.readouterr().err == ""


async def test_a_pattern_in_a_file_takes_no_more_time_than_its_text_is_long() -> None:
    made = Workflow.from_dict(asking({"field": "n", "operator": "matches", "value": "(a+)+$"}))
    guard = as_guard(made.transitions[0].conditions)
    began = time.process_time()
    assert not await guard.ask(View({"n": "a" * 50_000 + "b"}))
    assert await guard.ask(View({"n": "aaa"}))
    assert time.process_time() - began < 1


def test_what_is_no_function_is_no_condition() -> None:
    with pytest.raises(DefinitionError, match="is no condition"):
        Workflow.from_dict(asking("paid"), functions={"paid": 3})


async def test_conditions_combine() -> None:
    text = {"any": [{"all": ["n > 1", {"not": "n > 5"}]}, {"field": "m", "value_payload": "m"}]}
    guard = as_guard(Workflow.from_dict(asking(text, unless=["n == 3", "n == 4"])).transitions[0].conditions)
    answers = [await guard.ask(View({"n": n, "m": 1}, {"m": 0})) for n in range(1, 7)]
    assert answers == [False, True, False, False, True, False]
    assert await guard.ask(View({"n": 9, "m": 1}, {"m": 1}))


def test_workflows_of_a_file_are_each_other_s_children() -> None:
    inner = {**rows({"name": "a", "child": {"workflow": "w"}, "then": "b"}), "name": "inner"}
    outer = rows({"name": "a", "each": {"workflow": "inner", "over": "items"}, "then": "b"}, workflows=[inner])
    made = again(Workflow.from_dict(outer))
    assert made.states["a"].children is not None
    below = made.states["a"].children.workflow
    assert (below.name, made.states["a"].children.concurrency) == ("inner", 8)
    assert below.states["a"].children is not None
    assert below.states["a"].children.workflow is made


def test_a_program_without_files_loads_nothing_for_them() -> None:
    told = "import sys, fsmworkflow as f; w = f.Workflow('w'); w.wait('a', initial=True, on={'x': 'b'}); w.final('b')"
    told += "; w.check(); print([m for m in sys.modules if m.startswith(('yaml', 'fsmworkflow.config'))])"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_json_needs_no_yaml_and_yaml_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    load(tmp_path, json.dumps(asking("n == 1")), "w.json")
    with pytest.raises(FSMWorkflowError, match=r"pip install 'fsmworkflow\[yaml\]'"):
        load(tmp_path, "name: w")
    with pytest.raises(DefinitionError, match="ends neither in"):
        load(tmp_path, "name: w", "w.txt")
    with pytest.raises(OSError):
        Workflow.load(tmp_path / "nowhere.json")


# -- code is named ----------------------------------------------------------------------------------------------------


def test_functions_are_registered_by_decorator(tmp_path: Path) -> None:
    functions = Functions()
    functions.register(draft)
    functions.register("judge")(judge)

    @functions.register
    def publish(ctx: Any) -> None: ...

    made = load(tmp_path, ARTICLE, functions=functions)
    assert functions_of(made) == {"draft": draft, "judge": judge, "publish": publish}
    with pytest.raises(ValueError, match="another function 'draft'"):
        functions.register("draft")(judge)


def test_a_module_is_looked_into_only_where_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_steps.py").write_text("from os import system\ndef pay(ctx): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = "{name: w, initial: a, states: [{name: a, step: 'shop_steps:pay', then: b}, {name: b, final: true}]}"
    assert "module 'shop_steps' is not allowed" in problems(tmp_path, text)[0]
    assert "shop_steps" not in sys.modules
    made = load(tmp_path, text, modules=["shop_steps"])
    assert made.to_dict()["states"][0]["step"] == "shop_steps:pay"
    assert "defines no 'system'" in problems(tmp_path, text.replace(":pay", ":system"), modules=["shop_steps"])[0]


@settings(max_examples=200, deadline=None)
@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-9, 9)
        | st.sampled_from(["", "a,b", "{", "]", 'q"q', "\\", "x: y", "ä"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b,", 'c"', "{d"]), inner),
        max_leaves=12,
    ).map(lambda value: {"name": value}),
    indent=st.sampled_from([None, 0, 1, 3]),
)
def test_a_problem_in_json_stands_at_the_line_and_column_at_which_it_stands_in_the_same_text_as_yaml(
    value: Any, indent: int | None
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    as_json, as_yaml = Source.of_text(text, "json", "w"), Source.of_text(text, "yaml", "w")
    todo: list[tuple[Any, Any, Any, Any]] = [(as_json.value, as_yaml.value, None, None)]
    while todo:
        one, other, place, same = todo.pop()
        assert as_json.at("it is wrong", place) == as_yaml.at("it is wrong", same)
        parts = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        todo += [(inner, other[key], (place, key, one), (same, key, other)) for key, inner in parts]


def test_an_unknown_key_of_a_json_file_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(
        '{\n  "name": "w", "initial": "a",\n  "states": [\n    {"name": "a", "finel": true}\n  ]\n}'
    )
    with pytest.raises(DefinitionError, match=r"w\.json:4:19: states\[0\]\.finel: unknown key 'finel'"):
        Workflow.load(tmp_path / "w.json")
