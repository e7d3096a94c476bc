"""A workflow as data: what a file says, that both ways lose nothing, and what is refused, with its place."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import DefinitionError, Workflow, open_store
from fsmworkflow.config import Functions, functions_of
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
  - {name: expired, final: failed}
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


def test_what_the_check_finds_has_its_place_too(tmp_path: Path) -> None:
    found = problems(tmp_path, ARTICLE.replace("then: judge", "then: jugde"), functions=STEPS)
    assert any(
        problem.startswith("w.yaml:8:5: states[0].then: transition 'then' of 'draft': there is no state 'jugde'")
        for problem in found
    )


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
