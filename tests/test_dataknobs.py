"""Machines of dataknobs-fsm, loaded as they are: what their texts say happens."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import Engine, Run, RunFailed, Workflow
from fsmworkflow.errors import DefinitionError
from fsmworkflow.readers.dataknobs import Context, Invalid, load
from fsmworkflow.stream import stream


async def passed(flow: Workflow, data: dict[str, Any], db: str = "memory://") -> Run:
    async with Engine(db, workflows=[flow]) as engine:
        return await engine.run(flow, data, key="k")


@pytest.fixture(params=["memory", "sqlite"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/runs.db"


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


async def test_the_quick_start_does_what_it_says(db: str) -> None:
    flow = load(PIPELINE, allow_inline_code=True)
    assert flow.name == "data_pipeline"
    assert await way(flow, {"input": "data"}) == ["start", "process", "end"]
    run = await passed(flow, {"input": "data"}, db)
    assert (run.status, run.data) == ("done", {"input": "data", "processed": True})


def test_all_mistakes_of_a_configuration_are_told_together() -> None:
    states = [{"name": "start", "is_strat": True}, {"name": "work", "data_mode": "cpoy"}, {"name": "end"}]
    with pytest.raises(DefinitionError) as refused:
        load({"states": states})
    assert list(refused.value.problems) == [
        "states[0].is_strat: there is no key 'is_strat' (did you mean 'is_start'?)",
        "states[1].data_mode: there is no mode 'cpoy' (did you mean 'copy'?)",
    ]
    arcs = [{"from": "start", "to": "wrok"}, {"from": "wrok", "to": "end"}, {"from": "work", "to": "end", "prio": 1}]
    with pytest.raises(DefinitionError) as refused:
        load({"states": [{"name": "start"}, {"name": "work", "transform": "n"}, {"name": "end"}], "arcs": arcs})
    assert [problem.partition(": it is code")[0] for problem in refused.value.problems] == [
        "arcs[1].from: there is no state 'wrok' (did you mean 'work'?)",
        "arcs[2].prio: there is no key 'prio' (did you mean 'priority'?)",
        "arcs[0].to: there is no state 'wrok' (did you mean 'work'?)",
        "states[1].transform",
    ]


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


def test_all_functions_that_are_not_given_are_told_at_once() -> None:
    arcs = [
        {"from": "a", "to": "b", "transform": {"type": "registered", "name": name}} for name in ("mark", "sign", "mark")
    ]
    config = {"states": [{"name": "a", "is_start": True}, {"name": "b", "is_end": True}], "arcs": arcs}
    with pytest.raises(DefinitionError) as refused:
        load(config)
    why = "there is no function of this name"
    assert list(refused.value.problems) == [
        f"arcs[{n}].transform.name: {why}: {name!r}: give it in functions=" for n, name in enumerate(("mark", "sign"))
    ]


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
        ({"resources": [{"name": "db", "type": "database"}]}, "resources[0]: resource 'db' is not given"),
        ({"transaction": {"strategy": "batch"}}, "transaction: 'batch' is not mapped: each state is a transaction"),
        ({"data_mode": {"default": "kopy"}}, "data_mode.default: there is no mode 'kopy' (did you mean 'copy'?)"),
        ({"states": {"start": {"resources": ["db"]}, "process": {}, "end": {}}}, "there is no resource 'db'"),
        ({"states": [{"name": n, "is_start": True} for n in ("start", "process", "end")]}, "begins in one state"),
        ({"arcs": [{"from": "end", "to": "start"}]}, "arcs[0]: it leads out of a state that ends the run"),
        ({"arcs": [{"from": "start", "to": "end", "transform": "lambda: 1"}]}, "no function of the data"),
        ({"arcs": [{"from": "start", "to": "end", "transform": "data['x'"}]}, "it is no function in Python"),
        ({"arcs": [{"from": "start", "to": "nowhere"}]}, "arcs[0].to: there is no state 'nowhere'"),
        ({"arcs": [{"from": "start"}]}, "arcs[0]: the key 'to' is missing"),
        ({"metadata": {"at": ["${HOME}"]}}, "metadata.at[0]: variables of the environment are not read"),
        ({"timeout_seconds": "$LATER"}, "timeout_seconds: variables of the environment are not read"),
        ({"arks": []}, "there is no key 'arks' (did you mean 'arcs'?)"),
        ({"arcs": [{"from": "start", "to": "end", "condition": {"type": "registerd"}}]}, "did you mean 'registered'"),
        ({"arcs": [{"from": "start", "to": "end", "target_network": "x"}]}, "there is no network 'x'"),
    ],
)  # fmt: skip
def test_what_cannot_be_mapped_is_refused_by_name_and_place(more: dict[str, Any], told: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        load({**PIPELINE, **more}, allow_inline_code=True)
    assert told in str(refused.value)


STATES = {
    "validate": "lambda state: {**state.data, 'valid': 'value' in state.data and state.data['value'] >= 0}",
    "enrich": """lambda state: {
        'id': state.data['id'], 'category': state.data['category'], 'status': 'enriched',
        'original_value': state.data['value'], 'doubled_value': 2 * state.data['value'],
        'squared_value': state.data['value'] ** 2,
    }""",
    "categorize": """lambda state: {
        **state.data, 'status': 'processed', 'risk_score': min(100, state.data['squared_value'] / 100),
        'value_tier': 'high' if state.data['original_value'] > 5000 else
                      'medium' if state.data['original_value'] > 1000 else 'low',
    }""",
}
STREAMING: dict[str, Any] = {
    "name": "StreamingProcessor",
    "main_network": "main",
    "networks": [
        {
            "name": "main",
            "streaming": {"enabled": True, "chunk_size": 10},
            "states": [
                {"name": "input", "is_start": True},
                *({"name": name, "functions": {"transform": {"type": "inline", "code": code}}}
                  for name, code in STATES.items()),
                {"name": "output", "is_end": True},
                {"name": "error", "is_end": True},
            ],
            "arcs": [
                {"from": "input", "to": "validate"},
                {"from": "validate", "to": "enrich",
                 "condition": {"type": "inline", "code": "lambda state: state.data.get('valid', True)"}},
                {"from": "validate", "to": "error",
                 "condition": {"type": "inline", "code": "lambda state: not state.data.get('valid', True)"}},
                {"from": "enrich", "to": "categorize"},
                {"from": "categorize", "to": "output"},
            ],
        }
    ],
}  # fmt: skip


async def test_the_streaming_configuration_does_what_it_says_to_one_record(db: str) -> None:
    flow = load(STREAMING, allow_inline_code=True)
    record = {"id": 60, "value": 6000, "category": "cat_0", "status": "pending"}
    run = await passed(flow, record, db)
    assert (run.state, run.data) == ("output", {
        "id": 60, "category": "cat_0", "status": "processed", "original_value": 6000, "doubled_value": 12_000,
        "squared_value": 36_000_000, "value_tier": "high", "risk_score": 100,
    })  # fmt: skip
    assert await way(flow, record) == ["input", "validate", "enrich", "categorize", "output"]


async def test_the_streaming_configuration_takes_a_file_to_a_file(tmp_path: Path, db: str) -> None:
    records = [{"id": n, "value": 100 * n, "category": f"cat_{n % 3}", "status": "raw"} for n in range(100)]
    records += [{"id": 100, "category": "cat_0"}, {"id": 101, "value": -1, "category": "cat_1"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    flow = load(STREAMING, allow_inline_code=True)
    async with Engine(db, workflows=[flow]) as engine:
        out, bad = tmp_path / "out.jsonl", tmp_path / "bad.jsonl"
        await stream(engine, flow, tmp_path / "in.jsonl", {"output": out, "error": bad}, key="all", chunk=10)
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["doubled_value"] for one in made] == [200 * n for n in range(100)]
    assert [one["value_tier"] for one in made].count("high") == 49
    assert [json.loads(line)["id"] for line in bad.read_text().splitlines()] == [100, 101]


@pytest.mark.parametrize(("data", "state"), [({"data": "abc"}, "output"), ({"data": ""}, "error")])
async def test_a_validator_that_says_no_is_what_the_arcs_ask_for(data: dict[str, Any], state: str, db: str) -> None:
    config: dict[str, Any] = {
        "name": "SimpleDataPipeline",
        "networks": [{"name": "main", "states": [
            {"name": "input", "is_start": True, "arcs": [{"target": "validate"}]},
            {"name": "validate", "validators": ["lambda data: len(data.get('data', '')) > 0"], "arcs": [
                {"target": "transform", "condition": "lambda data: data.get('valid', True)"},
                {"target": "error", "condition": "lambda data: not data.get('valid', True)"},
            ]},
            {"name": "transform", "arcs": [{"target": "output"}],
             "transforms": ["lambda data: {'result': data['data'].upper(), 'length': len(data['data'])}"]},
            {"name": "output", "is_end": True},
            {"name": "error", "is_end": True, "transforms": ["lambda data: {'error': 'no', 'input': data}"]},
        ]}],
    }  # fmt: skip
    run = await passed(load(config, allow_inline_code=True), data, db)
    result = {"result": "ABC", "length": 3} if state == "output" else {"error": "no", "input": {**data, "valid": False}}
    assert (run.state, run.status, run.data) == (state, "done", result)


async def test_networks_are_pushed_where_their_own_states_are_the_target(db: str) -> None:
    def network(name: str, *states: dict[str, Any]) -> dict[str, Any]:
        return {"name": name, "states": list(states)}

    def push(target: str, to: str, back: str) -> dict[str, Any]:
        return {"target": target, "target_network": to, "return_state": back}

    config = {
        "name": "OrderProcessing",
        "main_network": "main",
        "networks": [
            network(
                "main",
                {"name": "receive", "is_start": True, "arcs": [push("validate", "validation", "pay")]},
                {"name": "pay", "arcs": [push("check", "payment", "ship")]},
                {"name": "ship", "arcs": [{"target": "complete"}]},
                {"name": "complete", "is_end": True},
            ),
            network(
                "validation",
                {"name": "validate", "is_start": True, "arcs": [{"target": "validated"}],
                 "validators": ["lambda data: all([data.get('customer'), data.get('items')])"]},
                {"name": "validated", "is_end": True},
            ),
            network(
                "payment",
                {"name": "start", "is_start": True, "arcs": [{"target": "check"}]},
                {"name": "check", "transforms": ["paid"], "arcs": [{"target": "over"}]},
                {"name": "over", "is_end": True},
            ),
        ],
    }  # fmt: skip
    flow = load(config, functions={"paid": lambda data: {**data, "paid": True}}, allow_inline_code=True)
    run = await passed(flow, {"customer": 7, "items": [1]}, db)
    assert (run.state, run.data) == ("complete", {"customer": 7, "items": [1], "valid": True, "paid": True})
    assert await way(flow, {}) == [
        "receive", "validation 1.validate", "validation 1.validated", "pay", "payment 1.check", "payment 1.over",
        "ship", "complete",
    ]  # fmt: skip


async def test_a_network_without_a_way_back_ends_the_run() -> None:
    config = {
        "networks": [
            {"name": "main", "states": [{"name": "a", "arcs": [{"target_network": "in:two"}]}]},
            {"name": "in", "states": [{"name": "one", "arcs": [{"target": "two"}]}, {"name": "three", "is_end": True},
                                      {"name": "two", "arcs": [{"target": "three"}]}]},
        ]
    }  # fmt: skip
    assert (await passed(load(config), {})).state == "in 1.three"
    assert await way(load(config), {}) == ["a", "in 1.two", "in 1.three", "in 1.three"]


async def test_code_may_be_a_lambda_an_expression_statements_or_a_function_and_call_functions_given() -> None:
    def machine(code: str) -> Workflow:
        config = {"states": {"a": {"transform": code, "on_complete": {"target": "b"}}, "b": {"final": True}}}
        return load(config, functions={"twice": twice}, allow_inline_code=True)

    async def twice(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    for code in (
        "lambda data: {**data, 'x': 1}", "{**data, 'x': 1}", "data['x'] = 1", "data['x'] = 2; data['x'] -= 1",
        "if data:\n    return {**data, 'x': 1}", "def made(data, context):\n    return {**data, 'x': 1}",
    ):  # fmt: skip
        assert (await passed(machine(code), {"n": 4})).data == {"n": 4, "x": 1}, code
    assert (await passed(machine("data['n'] = await twice(data['n'])"), {"n": 4})).data == {"n": 8}
    with pytest.raises(RunFailed, match="make it an async function"):
        await passed(machine("lambda data: twice(data['n'])"), {"n": 4})


@pytest.mark.parametrize("arc", [True, False])
async def test_the_fields_of_what_a_transform_returns_stand_in_its_order(arc: bool, store_url: str) -> None:
    code = "lambda data: {'b': data['b'], 'new': 1, 'a': data['a'], 'last': 2}"
    states: Any = [{"name": "x"}, {"name": "y", "is_end": True}]
    way: dict[str, Any] = {"from": "x", "to": "y"}
    if arc:
        way["transform"] = code
    else:
        states[0]["transforms"] = [code]
    flow = load({"states": states, "arcs": [way]}, allow_inline_code=True)
    async with Engine(store_url, workflows=[flow]) as engine:
        run = await engine.run(flow, {"a": 1, "gone": 0, "b": [2]}, key="k")
    assert list(run.data.items()) == [("b", [2]), ("new", 1), ("a", 1), ("last", 2)]
    sink: list[Any] = []
    await stream(None, flow, [{"a": 1, "gone": 0, "b": [2]}], sink, mode="reference")
    assert list(sink[0]) == ["b", "new", "a", "last"]


async def test_functions_are_given_the_resources_that_their_state_names() -> None:
    def query(data: dict[str, Any], context: Any = None) -> dict[str, Any]:
        assert sorted(context["resources"]) == ["source"], "not those of others"
        assert (context.state_name, context["function_name"], context.metadata) == ("a", "query", {"page": 2})
        assert context.get("variables", {}).get("threshold", 100) == 100
        return {"rows": context.resources["source"][data["id"]], "key": context.ctx.run.key}

    config = {
        "resources": [{"name": "source", "type": "database", "config": {"pool_size": 5}}, {"name": "other"}],
        "states": [
            {"name": "a", "resources": ["source"], "transforms": ["query"], "metadata": {"page": 2}},
            {"name": "b", "is_end": True},
        ],
        "arcs": [{"from": "a", "to": "b"}],
    }
    flow = load(config, functions={"query": query}, resources={"source": {3: "row"}, "other": None})
    assert (await passed(flow, {"id": 3})).data == {"rows": "row", "key": "k"}


class Doubles:
    """As a class of dataknobs-fsm: made with params, and asked by the name of its role."""

    def __init__(self, field: str) -> None:
        self.field = field

    async def transform(self, data: Any, context: Any = None) -> Any:
        return _Result({**data, self.field: 2 * data[self.field]}) if data[self.field] else _Result(None, "nothing")


class _Result:
    def __init__(self, data: Any, error: str | None = None) -> None:
        self.data, self.error, self.success = data, error, error is None


async def test_classes_are_made_with_their_params_and_async_transforms_of_arcs_are_states_of_their_own() -> None:
    transform = {"type": "custom", "module": __name__, "name": "Doubles", "params": {"field": "n"}}
    config = {"states": [{"name": "a", "is_start": True}, {"name": "b", "is_end": True}],
              "arcs": [{"from": "a", "to": "b", "transform": transform}]}  # fmt: skip
    flow = load(config, modules=[__name__])
    assert (await passed(flow, {"n": 21})).data == {"n": 42}
    assert await way(flow, {"n": 21}) == ["a", "a to b", "b"]
    with pytest.raises(RunFailed, match="nothing"):
        await passed(flow, {"n": 0})
    wrong = {**transform, "params": {"feild": "n"}}
    with pytest.raises(DefinitionError, match="Doubles cannot be made with these params"):
        load({**config, "arcs": [{"from": "a", "to": "b", "transform": wrong}]}, modules=[__name__])


@pytest.mark.parametrize(
    ("name", "params", "data", "result"),
    [
        ("validators.RequiredFieldsValidator", {"fields": ["a"]}, {"a": 1}, True),
        ("validators.RequiredFieldsValidator", {"fields": ["a"]}, {"a": None}, False),
        ("validators.range_check", {"age": {"min": 0, "max": 150}}, {"age": 151}, False),
        ("validators.RangeValidator", {"field_ranges": {"age": {"min": 0}}}, {"age": 151}, True),
        ("validators.length", {"name": {"exact": 2}}, {"name": "bo"}, True),
        ("validators.LengthValidator", {"field_lengths": {"name": {"max": 2}}}, {"name": "anna"}, False),
        ("validators.depends_on", {"a": "b"}, {"a": 1}, False),
        ("has_required_fields", {"fields": ["a"]}, {}, False),
        ("data_valid", {}, {"a": 1}, True),
        ("validators.pattern", {"a": "[a-z]+$"}, {"a": "abc"}, True),
        ("validators.TypeValidator", {"field_types": {"a": "int"}}, {"a": "abc"}, False),
        ("validators.UniqueValidator", {"fields": ["a"], "key": "b"}, {"a": [{"b": 1}, {"b": 1}]}, False),
        ("transformers.replace_values", {"a": {"x": "y"}}, {"a": "x"}, {"a": "y"}),
        ("transformers.ArrayFlattener", {"fields": ["a"]}, {"a": [[1], [2]]}, {"a": [1, 2]}),
        ("transformers.split_on", {"field": "a"}, {"a": [1], "b": 2}, {"records": [{"b": 2, "a": 1}]}),
        ("transformers.map_fields", {"mapping": {"a": "b"}}, {"a": 1, "c": 2}, {"b": 1, "c": 2}),
        ("transformers.FieldMapper", {"field_map": {"a": "b"}, "drop_unmapped": True}, {"a": 1, "c": 2}, {"b": 1}),
        ("transformers.normalize", {"*": ["trim", "snake_case"]}, {"a": " someName "}, {"a": "some_name"}),
        ("transformers.normalize", {"a": "camel_case"}, {"a": "some-name", "b": "X"}, {"a": "someName", "b": "X"}),
        ("transformers.convert_types", {"a": "int", "b": "bool"}, {"a": "7", "b": "yes"}, {"a": 7, "b": True}),
        ("transformers.TypeConverter", {"conversions": {"a": "int"}}, {"a": "seven"}, {"a": "seven"}),
        ("transformers.enrich", {"a": 1, "b": 2}, {"a": 0}, {"a": 0, "b": 2}),
        ("transformers.filter_fields", {"exclude": ["a"]}, {"a": 0, "b": 1}, {"b": 1}),
    ],
)  # fmt: skip
async def test_builtin_functions_do_what_they_are_named_for(
    name: str, params: dict[str, Any], data: dict[str, Any], result: Any
) -> None:
    what = "validators" if isinstance(result, bool) else "transforms"
    states = [{"name": "a", what: [{"type": "builtin", "name": name, "params": params}]}, {"name": "b", "is_end": True}]
    run = await passed(load({"states": states, "arcs": [{"from": "a", "to": "b"}]}), data)
    assert run.data == ({**data, "valid": result} if isinstance(result, bool) else result)


def test_a_builtin_that_is_not_here_or_is_made_wrongly_is_refused_by_name() -> None:
    def machine(name: str, params: dict[str, Any]) -> None:
        load({"states": [{"name": "a", "is_end": True,
                          "transforms": [{"type": "builtin", "name": name, "params": params}]}]})  # fmt: skip

    with pytest.raises(DefinitionError, match=r"has none of this name: 'validators.CompositeValidator'"):
        machine("validators.CompositeValidator", {"validators": ["a"]})
    with pytest.raises(DefinitionError, match="there is no normalization 'lowercse'"):
        machine("transformers.normalize", {"a": "lowercse"})
    with pytest.raises(DefinitionError, match="cannot be made with these params"):
        machine("transformers.FieldMapper", {"fields": {}})


async def test_a_pre_validator_keeps_the_run_out_of_its_state() -> None:
    config = {"states": [{"name": "a", "pre_validators": [lambda_of("n")]}, {"name": "b", "is_end": True}],
              "arcs": [{"from": "a", "to": "b"}]}  # fmt: skip
    flow = load(config, allow_inline_code=True)
    assert (await passed(flow, {"n": 1})).data == {"n": 1}
    with pytest.raises(RunFailed, match="'a' is not entered: its pre-validator") as failed:
        await passed(flow, {})
    assert isinstance(failed.value.__cause__, Invalid)


def lambda_of(field: str) -> str:
    return f"lambda data, context: ('{field}' in data, 'a reason')"


async def test_more_transitions_than_max_transitions_fail_the_run() -> None:
    config: dict[str, Any] = {
        "version": "3.1.0",
        "max_transitions": 4,
        "states": [{"name": "a", "transforms": ["data['n'] -= 1"]}, {"name": "b"}, {"name": "end", "is_end": True}],
        "arcs": [
            {"from": "a", "to": "b"},
            {"from": "b", "to": "a", "condition": "data['n'] > 0", "priority": 1},
            {"from": "b", "to": "end"},
        ],
    }
    flow = load(config, allow_inline_code=True)
    assert flow.version == 3
    assert (await passed(flow, {"n": 2})).state == "end"
    with pytest.raises(RunFailed, match="made 5 transitions, and max_transitions is 4"):
        await passed(flow, {"n": 3})


def test_what_a_context_does_not_have_is_told() -> None:
    with pytest.raises(AttributeError, match=r"has no 'resource' .did you mean 'resources'"):
        Context(resources={}).resource  # noqa: B018


async def test_all_validators_of_a_state_are_asked_and_one_that_raises_does_not_hold(db: str) -> None:
    def raises(data: dict[str, Any], context: Any) -> bool:
        raise OSError("away")

    asked: list[str] = []
    config = {
        "states": [
            {"name": "a", "validators": ["yes", "raises", "told", "yes"]},
            {"name": "b", "is_end": True}, {"name": "c", "is_end": True},
        ],
        "arcs": [{"from": "a", "to": "b", "condition": "failure"}, {"from": "a", "to": "c", "condition": "success"}],
    }  # fmt: skip
    functions = {
        "yes": lambda *given: asked.append("yes") or True,
        "raises": raises,
        "told": lambda data: {"seen": dict(data)},
    }
    run = await passed(load(config, functions=functions), {"n": 1}, db)
    seen = {"n": 1, "valid": False, "validation_error": "OSError: away"}
    assert (run.state, run.data, asked) == ("b", {**seen, "seen": seen}, ["yes", "yes"])


async def test_a_state_may_have_functions_of_both_kinds_and_its_arcs_too(db: str) -> None:
    async def waits(data: dict[str, Any], context: Any) -> None:
        await asyncio.sleep(0)
        data["waited"] = threading.current_thread() is threading.main_thread()

    async def is_long(state: Any) -> tuple[bool, str]:
        await asyncio.sleep(0)
        return state.n > 3, "its length"

    def counts(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "n": len(data["text"]), "beside": threading.current_thread() is not threading.main_thread()}

    config = {
        "states": [
            {"name": "a", "transforms": ["counts", "waits"]},
            {"name": "b", "is_end": True}, {"name": "c", "is_end": True},
        ],
        "arcs": [{"from": "a", "to": "b", "condition": "is_long"}, {"from": "a", "to": "c"}],
    }  # fmt: skip
    flow = load(config, functions={"waits": waits, "is_long": is_long, "counts": counts})
    for text, state in (("abcd", "b"), ("abc", "c")):
        run = await passed(flow, {"text": text}, db.replace("runs", text))
        assert (run.state, run.data) == (state, {"text": text, "n": len(text), "beside": True, "waited": True})


async def test_what_a_transform_returns_is_a_dict_or_nothing() -> None:
    config = {"states": [{"name": "a", "transforms": ["seven"]}, {"name": "b", "is_end": True}],
              "arcs": [{"from": "a", "to": "b"}]}  # fmt: skip
    with pytest.raises(
        RunFailed, match="a transform returns the data as a dict, or changes what it was given, not int"
    ):
        await passed(load(config, functions={"seven": lambda data: 7}), {})


async def test_a_network_is_called_as_often_as_arcs_push_it_each_time_anew() -> None:
    inner = {"name": "inner", "states": [{"name": "one", "transforms": ["more"], "arcs": [{"target": "two"}]},
                                         {"name": "two", "is_end": True}]}  # fmt: skip
    push = {"target_network": "inner"}
    states = [{"name": "a", "arcs": [{**push, "return_state": "b"}]}, {"name": "b", "arcs": [{**push, "to": "c"}]},
              {"name": "c", "is_end": True}]  # fmt: skip
    flow = load(
        {"networks": [{"name": "main", "states": states}, inner], "max_transitions": 20},
        functions={"more": lambda data: {"n": data["n"] + 1}},
    )
    assert (await passed(flow, {"n": 0})).data == {"n": 2}
    assert [state for state in await way(flow, {"n": 0}) if "." in state] == [
        "inner 1.one", "inner 1.two", "inner 2.one", "inner 2.two",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("networks", "told"),
    [
        ([{"name": "main", "states": [{"name": "a", "arcs": [{"target_network": "main"}]}]}], "'main' calls itself"),
        ([{"name": "other", "states": ["a"]}], "it is a mapping"),
        ([{"name": "other", "states": [{"name": "a"}, {"name": "a"}]}], "there is another state 'a'"),
        ([{"name": "mian", "states": [{"name": "a"}]}], "there is no network 'main' (did you mean 'mian'?)"),
        ([{"name": "main", "states": []}], "a network has states"),
        (
            [{"name": "main", "states": [{"name": "a", "arcs": [{"target_network": "in:oen"}]}]},
             {"name": "in", "states": [{"name": "one"}]}],
            "there is no state 'oen' (did you mean 'one'?)",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_networks_is_told_by_name(networks: list[Any], told: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        load({"networks": networks, "main_network": "main"})
    assert told in str(refused.value)
