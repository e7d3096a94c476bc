"""`fsmworkflow check`: findings in a terminal, in JSON, and as exit codes for CI."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow.cli import main
from tests.terminal import plain, terminal

ROOT = Path(__file__).parent.parent
APP = """
from fsmworkflow import Engine, Retry, Workflow, field

def nothing(ctx): pass

clean = Workflow("clean")
clean.step("work", initial=True, then="end")(nothing)
clean.final("end")

entity = Workflow("entity")
entity.wait("open", initial=True, on={"close": "end"})
entity.final("end")

odd = Workflow("odd")
odd.step("work", initial=True, then=[(field("n") > 1, "ask"), (field("n") > 2, "end"), "end"])(nothing)
odd.wait("ask", on={"yes": "end"})
odd.final("end")

wrong = Workflow("wrong")
wrong.wait("first", initial=True, on={"go": "end"})
wrong.wait("lost", on={"go": "end"})
wrong.final("end")

parent = Workflow("parent")
parent.child("odd", odd, initial=True, then="end")
parent.final("end")

engine = Engine("sqlite:///never.db", workflows=[clean, entity, odd])
"""


@pytest.fixture(autouse=True)
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "checked_app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield
    sys.modules.pop("checked_app", None)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["checked_app:clean"], 0),
        (["checked_app:clean", "--strict"], 0),
        (["checked_app:entity", "--strict"], 0),
        (["checked_app:odd"], 0),
        (["checked_app:odd", "--strict"], 1),
        (["checked_app:clean", "checked_app:odd", "--strict"], 1),
        (["checked_app:wrong"], 1),
        (["checked_app:nothing"], 2),
        (["nowhere:clean"], 2),
        (["checked_app:missing"], 2),
        ([], 2),
    ],
)
def test_the_exit_code_says_how_it_is(words: list[str], code: int, capsys: Any) -> None:
    assert main(["check", *words]) == code
    assert main(["check", *words, "--json"]) == code


def test_findings_are_told_with_their_place_and_what_to_do(capsys: Any) -> None:
    assert main(["check", "checked_app:engine"]) == 0
    assert capsys.readouterr().out == (
        "note    entity open no-timeout\n"
        "        it waits for an event without a time-out\n"
        "        give it, or a state around it, after={...}, or the workflow a deadline\n"
        "warning odd work shadowed\n"
        "        [n > 2] to end is never taken: [n > 1] to ask stands before it, and holds whenever it does\n"
        "        put it first, or take one of them away\n"
        "warning odd ask no-timeout\n"
        "        it waits for an event without a time-out\n"
        "        give it, or a state around it, after={...}, or the workflow a deadline\n"
        "3 workflows checked: 2 warnings, 1 note\n"
    )
    assert main(["check", "checked_app:clean"]) == 0
    assert capsys.readouterr().out == "1 workflow checked: nothing was found\n"
    assert not Path("never.db").exists()


def test_the_workflows_of_children_are_checked_too(capsys: Any) -> None:
    assert main(["check", "checked_app:parent"]) == 0
    assert capsys.readouterr().out.endswith("2 workflows checked: 2 warnings\n")


def test_findings_are_told_in_json(capsys: Any) -> None:
    assert main(["check", "checked_app:wrong", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert found == {
        "level": "error", "code": "unreachable", "workflow": "wrong", "state": "lost",
        "message": "state 'lost' cannot be reached", "todo": "",
    }  # fmt: skip


ORDER = """\
name: order
initial: paid
states:
  - {name: paid, step: pay, then: asked}
  - name: asked
    on:
      answered:
        - {conditions: n > 1, dest: done}
        - {conditions: n > 1, dest: lost}
  - {name: done, final: true}
  - {name: lost, final: true}
"""


def test_a_file_is_checked_with_the_code_that_it_names(capsys: Any) -> None:
    Path("order.yaml").write_text(ORDER)
    Path("file_code.py").write_text("def pay(ctx):\n    return 'odd'\n")
    assert main(["check", "order.yaml", "--code", "file_code", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["state"], one["code"]) for one in found] == [
        ("paid", "unhandled"), ("asked", "shadowed"), ("asked", "no-timeout"),
    ]  # fmt: skip
    assert main(["check", "order.yaml", "--code", "file_code", "--strict"]) == 1
    assert main(["draw", "order.yaml", "--code", "file_code", "--format", "mermaid"]) == 0
    assert "answered [n #62; 1]" in capsys.readouterr().out


def test_a_file_that_is_wrong_is_an_error_with_its_line(capsys: Any) -> None:
    Path("order.yaml").write_text(ORDER.replace("then: asked", "thenn: asked"))
    assert main(["check", "order.yaml", "checked_app:odd"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("error   order.yaml definition\n        order.yaml:4:")
    assert "thenn" in out
    assert out.endswith("1 workflow checked: 2 errors, 2 warnings\n")
    Path("order.yaml").write_text(ORDER)
    assert main(["check", "order.yaml"]) == 1
    assert "there is no function 'pay'" in capsys.readouterr().out
    for words, says in (
        (["check", "order.yaml", "--code", "nowhere"], "nowhere cannot be loaded"),
        (["check", "none.yaml"], "none.yaml cannot be read: No such file or directory"),
    ):
        assert main(words) == 2
        assert says in capsys.readouterr().err


def test_the_schema_of_files_is_printed_or_written(capsys: Any) -> None:
    assert main(["schema"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert main(["schema", "-o", "order.schema.json"]) == 0
    assert Path("order.schema.json").read_text() == text
    assert main(["schema", "--json"]) == 0


def test_in_a_terminal_they_fit_in_eighty_columns_and_have_colours() -> None:
    code, shown = terminal("check", "checked_app:engine", "--strict")
    assert code == 1
    assert "\x1b[33mwarning\x1b[0m" in shown
    assert max(map(len, plain(shown).splitlines())) <= 80
