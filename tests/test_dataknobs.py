"""Machines of dataknobs-fsm, loaded as they are: what their texts say happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import Engine, Run, RunFailed, Workflow
from fsmworkflow.errors import DefinitionError
from fsmworkflow.readers.dataknobs import load


async def passed(flow: Workflow, data: dict[str, Any]) -> Run:
    async with Engine("memory://", workflows=[flow]) as engine:
        return await engine.run(flow, data, key="k")


async def way(flow: Workflow, data: dict[str, Any]) -> list[str]:
    async with Engine("memory://", workflows=[flow]) as engine:
        await engine.run(flow, data, key="k")
        return [entry.dest for entry in await engine.history(flow, "k")]


PIPELINE = {
    "name": "data_pipeline",
    "states": [{"name": "start", "is_start": True}, {"name": "process"}, {"name": "end", "is_end": True}],
    "arcs": [
        {
            "from": "start",
            "to": "process",
            "transform": {"type": "inline", "code": "lambda data, ctx: {**data, 'processed': True}"},
        },
        {"from": "process", "to": "end"},
    ],
}


async def test_the_quick_start_does_what_it_says() -> None:
    flow = load(PIPELINE, allow_inline_code=True)
    assert flow.name == "data_pipeline"
    assert await way(flow, {"input": "data"}) == ["start", "process", "end"]
    run = await passed(flow, {"input": "data"})
    assert (run.status, run.data) == ("done", {"input": "data", "processed": True})


def test_code_in_a_configuration_is_not_run_unless_the_caller_says_so() -> None:
    with pytest.raises(DefinitionError, match=r"arcs\[0\]\.transform\.code: it is code.*allow_inline_code=True"):
        load(PIPELINE)


def has_name(data: dict[str, Any], ctx: Any) -> bool:
    return "name" in data


def enrich(data: dict[str, Any], ctx: Any) -> dict[str, Any]:
    return {**data, "length": len(data["name"])}


async def categorise(state: Any) -> dict[str, Any]:
    return {**state.data, "kind": "long" if state.data["length"] > 3 else "short"}


STAGES = """
name: stages
data_mode: copy
execution_strategy: DEPTH_FIRST
main_network: main
networks:
  - name: main
    states:
      - {name: validate, is_start: true, functions: {validators: [has_name]}}
      - {name: enrich, functions: {transform: {type: registered, name: enrich}}}
      - {name: categorise, transforms: [{type: registered, name: categorise}]}
      - {name: output, is_end: true}
      - {name: error, is_end: true}
    arcs:
      - {from: validate, to: error, condition: failure}
      - {from: validate, to: enrich, condition: success, priority: 5}
      - {from: enrich, to: categorise}
      - {from: categorise, to: output, pre_test: {test: is_known}}
      - {from: categorise, to: error}
"""


@pytest.mark.parametrize(
    ("data", "state", "kind"),
    [({"name": "anna"}, "output", "long"), ({"name": "bo"}, "output", "short"), ({}, "error", None)],
)  # fmt: skip
async def test_four_stages_with_validators_transforms_and_conditions(
    tmp_path: Path, data: dict[str, Any], state: str, kind: str | None
) -> None:
    (tmp_path / "stages.yaml").write_text(STAGES)
    named = {f.__name__: f for f in (has_name, enrich, categorise)} | {"is_known": lambda data, ctx: "kind" in data}
    run = await passed(load(tmp_path / "stages.yaml", functions=named), data)
    assert (run.state, run.status, run.data.get("kind")) == (state, "done", kind)
    assert run.data["valid"] is (state == "output")


async def test_of_several_arcs_that_hold_the_highest_priority_is_taken_and_none_fails_the_run() -> None:
    config: dict[str, Any] = {
        "states": [{"name": "a", "is_start": True}, {"name": "b", "is_end": True}, {"name": "c", "is_end": True}],
        "arcs": [
            {"from": "a", "to": "b", "condition": {"type": "registered", "name": "even"}, "priority": 1},
            {"from": "a", "to": "c", "condition": {"type": "registered", "name": "even"}, "priority": 2},
        ],
    }
    flow = load(config, functions={"even": lambda data, ctx: data["n"] % 2 == 0})
    assert (await passed(flow, {"n": 2})).state == "c"
    with pytest.raises(RunFailed):
        await passed(flow, {"n": 1})


async def test_a_pushed_network_comes_to_its_end_and_leads_back() -> None:
    config: dict[str, Any] = {
        "name": "outer",
        "main_network": "main",
        "networks": [
            {
                "name": "main",
                "states": [
                    {"name": "start", "is_start": True, "arcs": [
                        {"target": "end", "target_network": "inner", "return_state": "after", "data_isolation": "copy"},
                    ]},
                    {"name": "after", "arcs": [{"target": "end"}],
                     "transforms": [{"type": "registered", "name": "third"}]},
                    {"name": "end", "is_end": True},
                ],
            },
            {
                "name": "inner",
                "states": [
                    {"name": "one", "is_start": True, "transforms": [{"type": "registered", "name": "first"}],
                     "arcs": [{"target": "two"}]},
                    {"name": "two", "is_end": True, "transforms": [{"type": "registered", "name": "second"}]},
                ],
            },
        ],
    }  # fmt: skip

    def adds(what: str) -> Any:
        return lambda data, ctx: {**data, "seen": [*data["seen"], what]}

    flow = load(config, functions={name: adds(name) for name in ("first", "second", "third")})
    assert (await passed(flow, {"seen": []})).data == {"seen": ["first", "second", "third"]}
    assert await way(flow, {"seen": []}) == [
        "start", "inner 1.one", "inner 1.two", "inner 1.two ended", "after", "end",
    ]  # fmt: skip


async def test_states_in_a_mapping_with_what_follows_them_and_errors(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "initial_state": "fetch",
        "states": {
            "fetch": {
                "transform": "fails",
                "on_complete": {"target": "end"},
                "on_error": {"target": "broken"},
            },
            "end": {"final": True},
            "broken": {"final": True},
        },
    }

    def fails(data: dict[str, Any], ctx: Any) -> None:
        if data["bad"]:
            raise OSError("away")
        data["fetched"] = True

    flow = load(config, functions={"fails": fails})
    assert (await passed(flow, {"bad": True})).state == "broken"
    run = await passed(flow, {"bad": False})
    assert (run.state, run.data) == ("end", {"bad": False, "fetched": True})


async def test_a_schema_is_held_when_its_state_is_entered() -> None:
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    config = {"states": [{"name": "a", "is_start": True, "schema": schema}, {"name": "b", "is_end": True}],
              "arcs": [{"from": "a", "to": "b"}]}  # fmt: skip
    assert (await passed(load(config), {"n": 1})).state == "b"
    with pytest.raises(RunFailed, match="does not fit the schema of a"):
        await passed(load(config), {"n": "one"})


def grown(data: dict[str, Any], ctx: Any, by: int = 1) -> dict[str, Any]:
    return {"n": data["n"] + by}


async def test_functions_of_modules_that_are_allowed_are_found_and_take_parameters() -> None:
    transform = {"type": "custom", "module": __name__, "name": "grown", "params": {"by": 41}}
    config = {"states": [{"name": "a", "is_start": True}, {"name": "b", "is_end": True}],
              "arcs": [{"from": "a", "to": "b", "transform": transform}]}  # fmt: skip
    with pytest.raises(DefinitionError, match="is not allowed: name it in modules="):
        load(config)
    assert (await passed(load(config, modules=[__name__]), {"n": 1})).data == {"n": 42}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"execution_strategy": "breadth_first"}, "execution_strategy: 'breadth_first' is not mapped"),
        ({"resources": [{"name": "db", "type": "database"}]}, "resources: 'resources' is not mapped"),
        ({"max_transitions": 5}, "'max_transitions' is not mapped: give the workflow a deadline"),
        ({"arcs": [{"from": "start", "to": "nowhere"}]}, "arcs[0].to: there is no state 'nowhere'"),
        ({"arcs": [{"from": "start"}]}, "arcs[0]: the key 'to' is missing"),
        ({"arks": []}, "there is no key 'arks' (did you mean 'arcs'?)"),
        ({"arcs": [{"from": "start", "to": "end", "condition": {"type": "registerd"}}]}, "did you mean 'registered'"),
        ({"arcs": [{"from": "start", "to": "end", "target_network": "x"}]}, "there is no network 'x'"),
    ],
)  # fmt: skip
def test_what_cannot_be_mapped_is_refused_by_name_and_place(more: dict[str, Any], told: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        load({**PIPELINE, **more}, allow_inline_code=True)
    assert told in str(refused.value)
