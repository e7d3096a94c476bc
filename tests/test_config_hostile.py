"""Files at their worst: each ends within 2 s and 300 MB in a DefinitionError, and no code is run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

from fsmworkflow import DefinitionError, Workflow
from fsmworkflow.config import Source, schema
from fsmworkflow.operators import OPERATORS
from fsmworkflow.records import ENDED
from fsmworkflow.states import OnFailure, Outcome
from tests.test_config import ARTICLE, STEPS

SEED = int(os.environ.get("FSM_SEED", "0")) or random.SystemRandom().randrange(2**32)
SECONDS, MEGABYTES = 2.0, 300
END = {"name": "end", "final": True}


def flat(*more: Any, **told: Any) -> str:
    return json.dumps({"name": "w", "initial": "a", "states": ["a", END, *more], **told})


def asked(*conditions: Any) -> str:
    return flat(transitions=[{"trigger": "t", "source": "a", "dest": "end", "conditions": list(conditions)}])


def nested(levels: int) -> str:
    inner: Any = {"name": "x", "final": True}
    for _ in range(levels):
        inner = {"name": "x", "initial": "x", "children": [inner]}
    return json.dumps({"name": "w", "initial": "x", "states": [inner]})


def leaves(many: int) -> list[str]:
    return [f"s{number}" for number in range(many)]


def regions(many: int) -> str:
    ends = [{"name": "a", "on": {"e": "z"}}, {"name": "z", "final": True}]
    rows = [{"name": f"r{number}", "initial": "a", "children": ends} for number in range(many)]
    return json.dumps({"name": "w", "initial": "p", "states": [{"name": "p", "parallel": rows, "then": "end"}, END]})


def held(many: int) -> str:
    outer = {"name": "o", "initial": "s0", "children": leaves(many), "on": {f"t{n}": "end" for n in range(many)}}
    return json.dumps({"name": "w", "initial": "o", "states": [outer, END]})


REFUSED: dict[str, str | bytes] = {
    # YAML that is more, or another, than it seems
    "merge bomb.yaml": "a: &a {x: 1}\nb: &b {<<: *a, <<: *a}\nc: {<<: [*b, *b]}\n",
    "merge key.yaml": "name: w\n<<: {a: 1}\n",
    "billion laughs.yaml": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "anchor.yaml": "name: &x w",
    "alias.yaml": "name: *x",
    "python tag.yaml": "!!python/object/apply:os.system ['touch hacked']",
    "tag.yaml": "name: !!str w",
    "tag without a name.yaml": "name: ! w",
    "tag directive.yaml": "%TAG ! tag:example.com,2000:\n---\nname: !x w",
    "twice.yaml": "name: w\nname: v\n",
    "two documents.yaml": "name: w\n---\nname: v\n",
    "empty.yaml": "",
    "comment.yaml": "# nothing",
    "list as key.yaml": "[a]: 1",
    "mapping as key.yaml": "? {a: 1}\n: 2",
    "tab.yaml": "\tname: w",
    "scalar.yaml": "hello",
    # depth
    "deep brackets.yaml": "[" * 2_000_000,
    "deep braces.yaml": "{a: " * 500_000,
    "deep dashes.yaml": "- " * 1_000_000,
    "deep keys.yaml": "? " * 1_000_000,
    "deep blocks.yaml": "".join(" " * level + "a:\n" for level in range(2_000)),
    "deep.json": "[" * 2_000_000,
    "deep mappings.json": '{"a":' * 500_000,
    "just too deep.json": "[" * 70 + "]" * 70,
    "nested states.json": nested(40),
    # size
    "100 MB.yaml": "name: '" + "x" * 100_000_000 + "'",
    "100 MB.json": '{"name": "' + "x" * 100_000_000 + '"}',
    "large scalar.yaml": "name: '" + "x" * 4_000_000 + "'",
    "large key.yaml": "x" * 4_000_000 + ": 1",
    "many empty.json": "[" + "{}," * 1_390_000 + "{}]",
    "many rows.json": '{"states":[' + '{"a":1},' * 400_000 + "1]}",
    "many.yaml": "- 1\n" * 1_000_000,
    "many keys.yaml": "".join(f"k{number}: 1\n" for number in range(300_000)),
    "many keys.json": json.dumps({f"k{number}": 1 for number in range(100_000)}),
    "same name.json": json.dumps({"name": "w", "initial": "a", "states": ["a"] * 140_000}),
    "long number.json": '{"name": ' + "9" * 1_000_000 + "}",
    "long number.yaml": "name: " + "9" * 1_000_000,
    # text and numbers that no store keeps
    "NUL.yaml": "name: 'a\0b'",
    "NUL escaped.yaml": 'name: "a\\0b"',
    "NUL.json": '{"name": "a\\u0000b"}',
    "surrogate.yaml": 'name: "\\ud800"',
    "surrogate.json": '{"name": "\\ud800"}',
    "surrogate key.json": '{"\\ud800": 1}',
    "NaN.json": '{"name": NaN}',
    "infinite.yaml": "version: .inf",
    "infinite.json": '{"version": 1e999}',
    "no UTF-8.yaml": b"\xff\xfe\x00",
    "UTF-16.yaml": "name: w".encode("utf-16"),
    "twice.json": '{"name": "w", "states": [{"name": "a", "name": "b"}]}',
    "empty.json": "",
    # definitions whose check could take long
    "delays of every state.json": flat(
        *leaves(4_000), transitions=[{"delay": n, "source": "*", "dest": "end"} for n in range(1, 20_000)]
    ),
    "migrations.json": flat(
        version=9_002, migrations=[{"version": n, "to": n + 1, "states": {"a": "b"}} for n in range(1, 9_000)]
    ),
    "unreached in one.json": held(30_000),
    "unknown targets.json": flat({"name": "b", "on": {f"t{n}": f"q{n}" for n in range(60_000)}}),
    "unknown functions.json": flat(*({"name": f"b{n}", "step": f"step{n}"} for n in range(30_000))),
    "unknown errors.json": flat({"name": "b", "on_error": {f"ValueErro{n}": "end" for n in range(60_000)}}),
    "durations.json": flat({"name": "b", "after": {"1" * 90 + f"{n}x": "end" for n in range(20_000)}}),
    # expressions
    "power.json": asked("9**9**9 == x"),
    "brackets.json": asked(*["(" * 900] * 1_000),
    "negations.json": asked(*["not " * 240 + "a"] * 1_000),
    "sums.json": asked(*["a" + "+a" * 499] * 1_000),
    "attributes.json": asked("a.__class__ == 1", "().__class__"),
    "functions.json": asked(*(f"n{n}" for n in range(100_000))),
    "conditions in conditions.json": asked(json.loads('{"not":' * 62 + '"a == 1"' + "}" * 62)),
}  # fmt: skip
LOADED = {
    "regions.json": regions(4_000),
    "many conditions.json": asked(*(f"x == {n}" for n in range(10_000))),
    "every state.json": json.dumps(
        {"name": "w", "initial": "s0", "states": [*leaves(1_900), END],
         "transitions": [{"trigger": f"t{n}", "source": "*", "dest": f"s{n}"} for n in range(1_900)]
         + [{"trigger": "e", "source": "*", "dest": "end"}]}
    ),
}  # fmt: skip

READ = """
import sys, time
import fsmworkflow.config, transitions.extensions.nesting, yaml
from fsmworkflow import DefinitionError, Workflow
began = time.process_time()
try:
    Workflow.load(sys.argv[1])
    told = "loaded"
except DefinitionError as error:
    told = "refused" if error.problems and len(str(error)) < 100_000 else "refused at length"
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(told, time.process_time() - began, int(peak) // 1024)
"""


@pytest.mark.parametrize("name", [*REFUSED, *LOADED])
def test_P14_a_file_ends_within_two_seconds_and_300_mb(name: str, tmp_path: Path) -> None:
    text = {**REFUSED, **LOADED}[name]
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = subprocess.run([sys.executable, "-c", READ, file], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2_000:]
    told, seconds, megabytes = done.stdout.split()
    assert told == ("loaded" if name in LOADED else "refused")
    assert float(seconds) < SECONDS
    assert int(megabytes) < MEGABYTES
    assert [one.name for one in tmp_path.iterdir()] == [name]  # and no code was run


def test_a_program_s_own_values_have_the_same_limits() -> None:
    endless: dict[str, Any] = {"name": "w"}
    endless["states"] = [endless, endless]
    shared: Any = ["x"]
    for _ in range(60):
        shared = [shared, shared]
    for config in (endless, {"name": shared}, {"name": "w", 3: 4}, {"name": b"w"}, {"name": {1, 2}}, [], None, "w"):
        with pytest.raises(DefinitionError):
            Workflow.from_dict(config)  # type: ignore[arg-type]


# -- fuzzed -----------------------------------------------------------------------------------------------------------

PIECES = ["&a ", "*a", "<<: ", "!!str ", "- ", ": ", "{", "}", "[", "]", "\n", "  ", "'", '"', "# ", "? ", "*", "~"]
PIECES += ["null", "true", "1e999", "name", "states", "initial", "then", "---\n"]
PIECES += ["|\n", "\0", "\x85", "\ud800", "\ufeff", "9" * 5_000]


def broken(text: str, chance: random.Random) -> bytes:
    """A file with some of it cut, doubled, moved or replaced."""
    for _ in range(chance.randint(1, 6)):
        at, to = sorted((chance.randrange(len(text) + 1), chance.randrange(len(text) + 1)))
        piece = chance.choice([chance.choice(PIECES), text[at : at + chance.randint(0, 40)], ""])
        text = text[:at] + piece + text[chance.choice([at, at + 1, min(to, at + 30)]) :]
    raw = text.encode("utf-8", "surrogatepass")
    if chance.random() < 0.1:
        at = chance.randrange(len(raw) + 1)
        raw = raw[:at] + bytes([chance.randrange(256)]) + raw[at:]
    return raw


def changed(config: Any, chance: random.Random) -> Any:
    """The same values with one of them replaced by another, or put elsewhere."""
    if isinstance(config, dict) and config and chance.random() < 0.9:
        key = chance.choice(list(config))
        inner = changed(config[key], chance)
        return {**config, chance.choice([key] * 9 + ["name", "children", "parallel", "final", "x"]): inner}
    if isinstance(config, list) and config and chance.random() < 0.9:
        at = chance.randrange(len(config))
        return [*config[:at], changed(config[at], chance), *config[at + chance.choice([0, 1, 1, 1]) :]]
    odd: list[Any] = [
        None,
        True,
        0,
        -1,
        1.5,
        "",
        "a",
        "draft",
        "*",
        [],
        {},
        ["a"],
        {"a": 1},
        {"not": "a == 1"},
        "a ==",
        "5m",
        2**70,
    ]
    return chance.choice(odd)


def fuzz(times: int) -> None:
    print("FSM_SEED =", SEED)
    chance, loaded, refused = random.Random(SEED), 0, 0
    config = Workflow.from_dict(Source.of_text(ARTICLE, "yaml", "article").value, functions=STEPS).to_dict()
    texts = {"yaml": ARTICLE, "json": json.dumps(config, indent=1)}
    for _ in range(times):
        kind = chance.choice(["yaml", "json", "values"])
        try:
            if kind == "values":
                Workflow.from_dict(changed(config, chance), functions=STEPS)
            else:
                source = Source.of_text(broken(texts[kind], chance), kind, "fuzzed")
                Workflow.from_dict(source.value, functions=STEPS)
            loaded += 1
        except DefinitionError:
            refused += 1
    assert loaded
    assert refused


def test_a_broken_file_is_a_workflow_or_a_definition_error() -> None:
    fuzz(1_500)


@pytest.mark.soak
def test_very_many_broken_files_are_workflows_or_definition_errors() -> None:
    fuzz(150_000)


# -- the schema -------------------------------------------------------------------------------------------------------


def test_the_schema_is_one_and_names_what_the_code_knows() -> None:
    told = schema()
    jsonschema.Draft202012Validator.check_schema(told)
    definitions = told["$defs"]
    assert definitions["condition"]["properties"]["operator"]["enum"] == sorted(OPERATORS)
    assert definitions["described"]["properties"]["outcome"]["enum"] == list(get_args(Outcome))
    assert definitions["each"]["properties"]["on_failure"]["enum"] == sorted(get_args(OnFailure))
    assert all(status in definitions["workflow"]["properties"]["keep"]["description"] for status in ENDED)
    for table in definitions.values():
        for entry in table.get("properties", {}).values():
            assert entry["description"].endswith("."), entry


def test_an_editor_accepts_by_the_schema_what_loads_and_refuses_what_does_not() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    config = json.loads(json.dumps(Source.of_text(ARTICLE, "yaml", "article").value))
    assert validator.is_valid(config)
    assert validator.is_valid(Workflow.from_dict(config, functions=STEPS).to_dict())
    chance, agreed = random.Random(7), 0
    for _ in range(300):
        broken = json.loads(json.dumps(changed(config, chance)))
        try:
            Workflow.from_dict(broken, functions=STEPS)
        except DefinitionError:
            agreed += not validator.is_valid(broken)
        else:
            assert validator.is_valid(broken)
    assert agreed > 100
