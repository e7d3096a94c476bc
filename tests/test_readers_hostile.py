"""Files of other engines at their worst: each ends within 2 s and 300 MB, refused in a text that can be read."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import DefinitionError, Engine, RunFailed, Workflow
from fsmworkflow.config import Source
from fsmworkflow.readers import dataknobs
from fsmworkflow.readers.pystator import Machine
from tests.test_config_hostile import SEED, changed
from tests.test_dataknobs import STAGES
from tests.test_pystator import LIFE, ORDER

SECONDS, MEGABYTES = 2.0, 300
MANY = 20_000
A, B = {"name": "A", "type": "initial"}, {"name": "B", "type": "terminal"}
LEADS: dict[str, Any] = {"trigger": "t", "source": "A", "dest": "B"}
START, END = {"name": "start", "is_start": True}, {"name": "end", "is_end": True}


def pystator(*states: Any, transitions: Any = (LEADS,), **more: Any) -> str:
    return json.dumps({"states": [A, B, *states], "transitions": list(transitions), **more})


def guarded(guard: Any, many: int = 1) -> str:
    return pystator(transitions=[{**LEADS, "guards": [guard]}] * many)


def knobs(*states: Any, arcs: Any = ({"from": "start", "to": "end"},), **more: Any) -> str:
    return json.dumps({"name": "d", "states": [START, END, *states], "arcs": list(arcs), **more})


def arc(**parts: Any) -> str:
    return knobs(arcs=[{"from": "start", "to": "end", **parts}])


def network(name: str, *calls: tuple[str, str]) -> dict[str, Any]:
    """A network that calls others, and leads on to a state of its own after each."""
    states = [START, *({"name": back} for _, back in calls), END]
    arcs = [{"from": "start", "to": back, "target_network": other, "return_state": back} for other, back in calls]
    arcs += [{"from": back, "to": "end"} for _, back in calls] or [{"from": "start", "to": "end"}]
    return {"name": name, "states": states, "arcs": arcs}


def networks(levels: int, wide: int) -> str:
    """Each calls the next several times: what it comes to grows with the power of the levels."""
    made = [network(f"n{n}", *((f"n{n + 1}", f"back{one}") for one in range(wide))) for n in range(levels)]
    return json.dumps({"name": "d", "main_network": "n0", "networks": [*made, network(f"n{levels}")]})


def properties(many: int) -> dict[str, Any]:
    return {"properties": {f"k{number}": {"type": "integer"} for number in range(many)}}


REFUSED: dict[str, tuple[str, str]] = {
    # by PyStator's reader
    "ps brackets.yaml": ("[" * 2_000_000, "exceeded maximum nesting depth"),
    "ps tag.yaml": ("!!python/object/apply:os.system ['touch hacked']", "tags are refused"),
    "ps merges.yaml": ("a: &a {x: 1}\nb: {<<: *a}\n", "anchors and aliases are refused"),
    "ps 100 MB.json": ('{"x": "' + "x" * 100_000_000 + '"}', "more than 4,194,304 bytes"),
    "ps every state.json": (
        pystator(
            *({"name": f"s{n}"} for n in range(3_000)),
            transitions=[{"trigger": f"t{n}", "source": "*", "dest": "B"} for n in range(3_000)],
        ),
        "more than 40,000 transitions",
    ),
    "ps within.json": (
        pystator(*({"name": f"n{n}", "parent": f"n{n - 1}" if n else "A"} for n in range(5_000))),
        "at most 64 levels",
    ),
    "ps within, backwards.json": (
        pystator(*({"name": f"n{n}", "parent": f"n{n + 1}" if n < 3_000 else "A"} for n in range(3_001))),
        "at most 64 levels",
    ),
    "ps cycle.json": (pystator({"name": "x", "parent": "y"}, {"name": "y", "parent": "x"}), "lies within itself"),
    "ps unbound.json": (guarded("nobody", MANY), "guard 'nobody' is not bound"),
    "ps power.json": (guarded({"expr": "9**9**9 == x"}), "may not stand in an expression"),
    "ps attribute.json": (guarded({"expr": "a.__class__ == 1"}), "may not stand in an expression"),
    "ps brackets.json": (guarded({"expr": "(" * 900}, 1_000), "too many nested parentheses"),
    "ps pattern.json": (guarded({"check": {"field": "a", "op": "matches", "value": "(a+)+$"}}), "there is no operator"),
    "ps long version.json": (pystator(meta={"version": "9" * 10_000, "machine_name": "x" * 100_000}), "characters"),
    "ps long delay.json": (pystator(transitions=[{**LEADS, "after": "9" * 5_000}]), "is no delay"),
    "ps delays.json": (pystator({"name": "s", "timeout": {"seconds": -1, "destination": "B"}}), "negative"),
    "ps retries.json": (pystator(error_policy={"retry_attempts": -2}), "must not be negative"),
    "ps key.json": (pystator(state_variables=[{"key": ["a"]}]), "it is text"),
    "ps NUL.json": (pystator({"name": "a\0"}), "NUL"),
    # by that of dataknobs-fsm
    "dk inline.json": (arc(transform={"type": "inline", "code": "open('hacked', 'w')"}), "allow_inline_code=True"),
    "dk lambda.json": (arc(condition="lambda d, c: open('hacked', 'w')"), "allow_inline_code=True"),
    "dk system.json": (arc(transform={"type": "custom", "module": "os", "name": "system"}), "is not allowed"),
    "dk path.json": (arc(transform={"type": "custom", "module": "/tmp/x.py", "name": "y"}), "is no name of a function"),
    "dk builtin.json": (arc(transform={"type": "builtin", "name": "__class__"}), "none of this name"),
    "dk secret.json": (knobs(description="${TOKEN}"), "variables of the environment are not read"),
    "dk calls itself.json": (
        json.dumps({"name": "d", "networks": [network("m", ("n", "b")), network("n", ("m", "b"))]}),
        "calls itself",
    ),
    "dk networks.json": (networks(30, 2), "more than 25,000 states"),
    "dk wide networks.json": (networks(7, 10), "more than 25,000 states"),
    "dk unreached.json": (knobs(*({"name": f"s{n}"} for n in range(MANY))), "and 39,900 more"),
    "dk deadline.json": (knobs(timeout_seconds=10**400), "is no duration"),
    "dk schema.json": (knobs({"name": "s", "schema": {"type": "odd"}}), "it is no JSON Schema"),
    "dk schemas.json": (knobs({"name": "s", "schema": properties(30_000)}), "at most 5,000 values"),
    "dk many schemas.json": (
        knobs(*({"name": f"s{n}", "schema": properties(1_000)} for n in range(20))),
        "at most 5,000 values",
    ),
    "dk pattern.json": (knobs({"name": "s", "schema": {"properties": {"a": {"pattern": "("}}}}), "does not compile"),
    "dk patterns.json": (knobs({"name": "s", "schema": {"patternProperties": {"(a+)+$": {}}}}), "is not mapped"),
}
LOADED: dict[str, str] = {
    "ps states.json": pystator(
        *({"name": f"s{n}"} for n in range(MANY - 10)),
        transitions=[
            {"trigger": "t", "source": "*", "dest": "B"},
            *({"trigger": "u", "source": "A", "dest": f"s{n}"} for n in range(MANY - 10)),
        ],
    ),
    "ps regions.json": pystator(
        {"name": "P", "type": "parallel", "regions": [
            {"name": f"r{n}", "initial": f"x{n}", "states": [f"x{n}"]} for n in range(4_000)
        ]},
        *({"name": f"x{n}"} for n in range(4_000)),
        transitions=[{**LEADS, "dest": "P"}, {"trigger": "q", "source": "P", "dest": "B"}],
    ),
    "dk arcs.json": knobs(arcs=[{"from": "start", "to": "end", "priority": n} for n in range(MANY)]),
    "dk asyncs.json": knobs(
        arcs=[{"from": "start", "to": "end", "transform": {"type": "registered", "name": "wait"}}] * 3_000
    ),
    "dk calls.json": json.dumps(
        {"name": "d", "networks": [network("m", *(("n", f"b{n}") for n in range(3_000))), network("n")]}
    ),
    "dk begun elsewhere.json": json.dumps(
        {"name": "d", "networks": [
            {"name": "m", "states": [START, END],
             "arcs": [{"from": "start", "to": "end", "target_network": "n:s0", "return_state": "end"}]},
            {"name": "n", "states": [START, *({"name": f"s{n}"} for n in range(8_000)), END],
             "arcs": [*({"from": f"s{n}", "to": f"s{n + 1}"} for n in range(7_999)), {"from": "s7999", "to": "end"}]},
        ]}
    ),
}  # fmt: skip
READ = """
import sys, time
import fsmworkflow.config, transitions.extensions.nesting, yaml
from fsmworkflow import DefinitionError
from fsmworkflow.readers.dataknobs import load
from fsmworkflow.readers.pystator import Machine
async def wait(data, ctx): return data
began = time.process_time()
try:
    file = sys.argv[1]
    Machine.load(file).workflow() if file.startswith("ps") else load(file, functions={"wait": wait})
    told, text = "loaded", ""
except DefinitionError as error:
    told, text = "refused" if error.problems else "refused without a problem", str(error)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.process_time() - began, int(peak) // 1024, len(text), told, text)
"""


@pytest.mark.parametrize("name", [*REFUSED, *LOADED])
def test_P14_a_file_of_another_engine_ends_within_two_seconds_and_300_mb(name: str, tmp_path: Path) -> None:
    text, says = REFUSED.get(name) or (LOADED[name], "loaded")
    (tmp_path / name).write_text(text)
    done = subprocess.run([sys.executable, "-c", READ, name], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2_000:]
    seconds, megabytes, length, told = done.stdout.split(maxsplit=3)
    assert says in told
    assert told.startswith("refused " if name in REFUSED else "loaded")
    assert float(seconds) < SECONDS
    assert int(megabytes) < MEGABYTES
    assert int(length) < 50_000
    assert [one.name for one in tmp_path.iterdir()] == [name]  # and no code was run


# -- schemas ----------------------------------------------------------------------------------------------------------


def pipeline(schema: Any) -> Workflow:
    states = [{**START, "schema": schema}, END]
    return dataknobs.load({"name": "d", "states": states, "arcs": [{"from": "start", "to": "end"}]})


async def failure(flow: Workflow, data: Any) -> str:
    async with Engine("memory://", workflows=[flow]) as engine:
        with pytest.raises(RunFailed) as failed:
            await engine.run(flow, data, key="k")
    return str(failed.value)


async def test_nothing_is_fetched_for_a_schema(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"type": "string"}')
    for where in (secret.as_uri(), "http://127.0.0.1:1/secret.json"):
        told = await failure(pipeline({"properties": {"a": {"$ref": where}}}), {"a": 1})
        assert "refers to what is not in it" in told
        assert "is not of type" not in told


async def test_a_pattern_of_a_schema_takes_no_time() -> None:
    flow = pipeline({"properties": {"a": {"pattern": "^(a+)+$"}}})
    assert "does not match" in await failure(flow, {"a": "a" * 60 + "!"})
    async with Engine("memory://", workflows=[flow]) as engine:
        assert (await engine.run(flow, {"a": "aaa"}, key="k")).status == "done"


def test_a_schema_that_many_states_share_counts_once() -> None:
    schema = properties(1_000)
    states = [START, *({"name": f"s{n}", "schema": schema} for n in range(20)), END]
    arcs = [{"from": "start", "to": "s0"}, *({"from": f"s{n}", "to": f"s{n + 1}"} for n in range(19))]
    arcs.append({"from": "s19", "to": "end"})
    assert dataknobs.load({"name": "d", "states": states, "arcs": arcs}).name == "d"


def test_a_program_s_own_values_have_the_same_limits() -> None:
    endless: dict[str, Any] = {"name": "w", "transitions": []}
    endless["states"] = [endless, endless]
    for config in (endless, {"states": {1, 2}, "transitions": []}, {3: 4}, [], None):
        with pytest.raises(DefinitionError):
            Machine.from_dict(config)  # type: ignore[arg-type]
        with pytest.raises((DefinitionError, TypeError)):
            dataknobs.load(config)  # type: ignore[arg-type]


# -- fuzzed -----------------------------------------------------------------------------------------------------------


class Everything(dict[str, Any]):
    """Functions of every name."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Any:
        return lambda ctx: None


def read(config: dict[str, Any]) -> None:
    if "networks" in config:
        functions = dict.fromkeys(("has_name", "enrich", "categorise", "is_known", "check"), lambda data: data)
        dataknobs.load(config, functions=functions)
        return
    machine = Machine.from_dict(config)
    machine.guards, machine.actions = Everything(), Everything()
    machine.workflow()


def fuzz(times: int) -> None:
    print("FSM_SEED =", SEED)
    chance, loaded, refused = random.Random(SEED), 0, 0
    configs = [json.loads(json.dumps(Source.of_text(one, "yaml", "x").value)) for one in (ORDER, LIFE, STAGES)]
    for config in configs:
        read(config)
    for _ in range(times):
        config = changed(chance.choice(configs), chance)
        if not isinstance(config, dict):
            continue
        try:
            read(config)
            loaded += 1
        except DefinitionError:
            refused += 1
    assert loaded
    assert refused


def test_a_changed_file_is_a_workflow_or_a_definition_error() -> None:
    fuzz(1_000)


@pytest.mark.soak
def test_very_many_changed_files_are_workflows_or_definition_errors() -> None:
    fuzz(100_000)
