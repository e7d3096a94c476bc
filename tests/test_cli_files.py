"""The command line over workflows in files, our own and those of other engines: FILE, --code, --reader, --store."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow.cli import main
from tests.children import launched
from tests.terminal import command, plain, terminal
from tests.waiting import PATIENCE

ROOT = Path(__file__).parent.parent
STORE = ("--store", "sqlite:///orders.db")
ORDER = """\
name: order
initial: check
states:
  - {name: check, step: check, then: review, retry: {attempts: 1}}
  - name: review
    on: {approved: [{conditions: event.by != owner, dest: packed}], rejected: refused}
  - {name: packed, child: {workflow: parcel, data: shipping}, then: sent}
  - {name: sent, final: true}
  - {name: refused, final: true, outcome: failed}
"""
PARCEL = """\
{"name": "parcel", "initial": "load", "states": [
  {"name": "load", "step": "load", "then": "gone"}, {"name": "gone", "final": true}]}
"""
CODE = """\
from fsmworkflow import Workflow
from fsmworkflow.config import Functions

functions = Functions()

@functions.register
async def check(ctx):
    if ctx.data.get("broken"):
        raise ValueError("broken")
    ctx.data["checked"] = True

@functions.register
async def load(ctx):
    ctx.data["loaded"] = True

@functions.register
def shipping(data):
    return {"to": data["owner"]}

parcel = Workflow.load("parcel.json", functions=functions)
alone = Workflow("alone")
alone.wait("open", initial=True, on={"close": "closed"})
alone.final("closed")
"""


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "order.yaml").write_text(ORDER)
    (tmp_path / "parcel.json").write_text(PARCEL)
    (tmp_path / "files_code.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("FSMWORKFLOW_URL", raising=False)
    yield
    for name in ("files_code", "their_code"):
        sys.modules.pop(name, None)


def say(capsys: Any, verb: str, *words: str, code: int = 0, file: str = "order.yaml") -> Any:
    """What a verb answers over a file, in JSON."""
    capsys.readouterr()
    verbs = verb.split()
    assert main([*verbs, file, *words, "--code", "files_code", *STORE, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_run_of_a_file_is_driven_told_shown_and_steered_as_any_other(capsys: Any) -> None:
    found = say(capsys, "run", "--key", "o-1", "--data", '{"owner": "bob"}')
    assert (found["workflow"], found["status"], found["state"]) == ("order", "waiting", "review")
    assert found["data"] == {"owner": "bob", "checked": True}
    assert say(capsys, "send", "order", "o-1", "approved", "--payload", '{"by": "ann"}')["status"] == "waiting"
    assert say(capsys, "explain", "order", "o-1")["text"]
    assert say(capsys, "resume")["driven"] >= 1
    assert say(capsys, "show", "order", "o-1")["state"] == "sent"
    assert [one["dest"] for one in say(capsys, "history", "order", "o-1")] == ["check", "review", "packed", "sent"]
    assert {one["workflow"] for one in say(capsys, "list")} == {"order", "parcel"}
    assert say(capsys, "migrate", "--plan") == {"stuck": 0, "plan": []}
    assert say(capsys, "health")["ok"] is True
    assert say(capsys, "db size")["workflows"]
    assert {one["check"] for one in say(capsys, "doctor")} >= {"sqlite"}


def test_a_run_of_a_file_is_steered(capsys: Any) -> None:
    say(capsys, "start", "order", "--key", "o-2", "--data", '{"owner": "bob"}')
    for verb, words in (("pause", ()), ("unpause", ()), ("rerun", ("check",)), ("cancel", ())):
        assert say(capsys, verb, "order", "o-2", *words)["answer"] == "waiting"
    assert say(capsys, "fork", "order", "o-2", "o-3")["made"] is True
    say(capsys, "resume")
    assert say(capsys, "show", "order", "o-2")["status"] == "cancelled"
    assert say(capsys, "run", "--key", "o-3", code=0)["state"] == "review"
    assert say(capsys, "run", "--key", "o-4", "--data", '{"broken": true}', code=1)["status"] == "failed"
    assert say(capsys, "retry", "order", "o-4")["answer"] == "waiting"
    assert say(capsys, "schedule add", "nightly", "order", "--cron", "0 3 * * *")["name"] == "nightly"
    assert [one["name"] for one in say(capsys, "schedule list")] == ["nightly"]


def test_a_verb_that_does_nothing_for_a_run_as_it_is_says_so_and_leaves_nothing_in_its_inbox(capsys: Any) -> None:
    say(capsys, "run", "order", "--key", "o-5", "--data", '{"owner": "bob"}')
    for verb in ("retry", "unpause"):
        assert say(capsys, verb, "order", "o-5", code=1)["answer"] == "rejected"
    assert say(capsys, "show", "order", "o-5")["inbox"] == []
    say(capsys, "pause", "order", "o-5")
    assert say(capsys, "unpause", "order", "o-5")["answer"] == "waiting"  # it is paused before


def test_work_drives_the_runs_of_a_file(capsys: Any) -> None:
    say(capsys, "start", "--key", "o-1", "--data", '{"owner": "bob"}')
    words = command("work", "order.yaml", "--code", "files_code", *STORE, "--json")
    with launched(words, stdout=subprocess.PIPE, text=True) as process:
        assert json.loads(process.stdout.readline())["event"] == "working"
        answer = say(capsys, "send", "order", "o-1", "rejected")
        assert answer["status"] in ("accepted", "waiting")
        process.terminate()
        assert process.wait(PATIENCE) == 0
    say(capsys, "resume")
    assert say(capsys, "show", "order", "o-1", code=0)["state"] == "refused"


def test_the_store_of_a_file_may_stand_in_the_environment(capsys: Any, monkeypatch: Any) -> None:
    words = ["run", "order.yaml", "--code", "files_code", "--key", "o-1", "--data", '{"owner": "bob"}', "--json"]
    assert main(words) == 2
    assert (
        "order.yaml is a workflow, and no Engine: say where its runs are kept: --store URL" in capsys.readouterr().err
    )
    monkeypatch.setenv("FSMWORKFLOW_URL", STORE[1])
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "review"


def test_a_workflow_of_a_module_takes_a_store_as_a_file_does(capsys: Any) -> None:
    assert main(["run", "files_code:alone", *STORE, "--key", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "open"
    assert main(["show", "files_code:alone", "alone", "a", *STORE]) == 0
    assert "alone/a is waiting in open" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (
            ["run", "order.yaml", *STORE],
            3,
            "order.yaml:4:19: states[0].step: there is no function 'check': --code MODULE says where it is",
        ),
        (["run", "none.yaml", *STORE], 2, "none.yaml cannot be read: No such file or directory"),
        (["show", "order.yaml", "order", "o-1", "--code", "files_code", *STORE], 3, "there is no file"),
        (["run", "order.yaml", "--code", "nowhere", *STORE], 2, "nowhere cannot be loaded"),
        (["run", "order.yaml", "--reader", "burr", *STORE], 2, "--reader"),
        (["run", "files_code:alone", "--reader", "pystator", *STORE], 2, "--code and --reader are for files"),
        (["list", "sqlite:///x.db", *STORE], 2, "has a store of its own"),
        (["check", "order.yaml", "--reader", "pystator"], 1, ""),
    ],
)
def test_what_cannot_be_is_said_in_one_line(words: list[str], code: int, says: str, capsys: Any) -> None:
    assert main(words) == code
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == (1 if says else 0)
    assert not list(Path().glob("*.db"))


# -- files of other engines -------------------------------------------------------------------------------------------

PYSTATOR = """\
meta: {machine_name: trade, version: "1.0.0"}
states:
  - {name: PENDING, type: initial}
  - {name: OPEN, timeout: {seconds: 86400, destination: EXPIRED}}
  - {name: FILLED, type: terminal}
  - {name: EXPIRED, type: terminal}
transitions:
  - {trigger: ack, source: PENDING, dest: OPEN}
  - {trigger: fill, source: OPEN, dest: FILLED, guards: [is_full], actions: [book]}
"""
DATAKNOBS = """\
name: pipeline
states: [{name: start, is_start: true}, {name: end, is_end: true}]
arcs: [{from: start, to: end, transform: {type: registered, name: mark}}]
"""
THEIRS = """\
def is_full(ctx): return ctx["qty"] >= ctx["order_qty"]

def book(ctx): print("booked", ctx["qty"])

def mark(data, ctx): return {**data, "processed": True}
"""


@pytest.fixture
def theirs() -> None:
    Path("trade.yaml").write_text(PYSTATOR)
    Path("pipeline.yaml").write_text(DATAKNOBS)
    Path("their_code.py").write_text(THEIRS)


@pytest.mark.usefixtures("theirs")
def test_a_machine_of_pystator_is_checked_drawn_and_run_as_it_stands(capsys: Any) -> None:
    how = ["--reader", "pystator", "--code", "their_code"]
    assert main(["check", "trade.yaml", *how, "--json"]) == 0
    assert all(one["level"] != "error" for one in json.loads(capsys.readouterr().out))
    assert main(["run", "trade.yaml", *how, *STORE, "--key", "t", "--data", '{"order_qty": 3}']) == 0
    for event, payload in (("ack", "{}"), ("fill", '{"qty": 3}')):
        assert main(["send", "trade.yaml", "trade", "t", event, "--payload", payload, *how, *STORE]) == 0
    assert main(["resume", "trade.yaml", *how, *STORE]) == 0
    assert "booked 3" in capsys.readouterr().out
    assert main(["draw", "trade.yaml", *how, *STORE, "--run", "t", "--format", "mermaid"]) == 0
    drawn = capsys.readouterr().out
    assert "FILLED" in drawn
    assert "fill" in drawn


@pytest.mark.usefixtures("theirs")
def test_a_configuration_of_dataknobs_is_checked_drawn_and_run_as_it_stands(capsys: Any) -> None:
    how = ["--reader", "dataknobs", "--code", "their_code"]
    assert main(["check", "pipeline.yaml", *how]) == 0
    assert main(["draw", "pipeline.yaml", *how, "--format", "dot"]) == 0
    assert "start" in capsys.readouterr().out
    assert main(["run", "pipeline.yaml", *how, *STORE, "--data", '{"input": 1}', "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["data"]) == ("done", {"input": 1, "processed": True})


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize(
    ("file", "reader", "missing"),
    [("trade.yaml", "pystator", "guard 'is_full' is not bound"), ("pipeline.yaml", "dataknobs", "name: 'mark'")],
)
def test_a_file_of_another_engine_is_told_as_such_and_where_its_code_is_named(
    file: str, reader: str, missing: str, capsys: Any
) -> None:
    assert main(["check", file, "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert found["message"] == f"{file} looks like a file of another engine: --reader {reader} reads it"
    assert main(["check", file, "--reader", reader, "--json"]) == 1
    found, *_ = json.loads(capsys.readouterr().out)
    assert f"{missing}: --code MODULE says where it is" in found["message"]


def test_a_module_that_code_is_named_in_is_told_to_be_given_by_code(capsys: Any) -> None:
    Path("aside.yaml").write_text(ORDER.replace("step: check,", "step: 'shop:check',"))
    assert main(["check", "aside.yaml"]) == 1
    assert "module 'shop' is not allowed: --code MODULE says where it is" in plain(capsys.readouterr().out)


@pytest.mark.parametrize("verb", [["draw", "order.yaml", "--code", "files_code"], ["schema"]])
def test_a_file_that_cannot_be_written_is_told_in_one_line(verb: list[str], capsys: Any) -> None:
    assert main([*verb, "-o", "nowhere/it.html"]) == 2
    why = "nowhere/it.html cannot be written: No such file or directory"
    assert capsys.readouterr().err == f"error: Invalid value: {why}\n"


@pytest.mark.parametrize(("code", "named"), [("files_code.py", "files_code"), ("./shop/orders.py", "shop.orders")])
def test_code_that_is_named_by_its_file_is_told_how_a_module_is_named(code: str, named: str, capsys: Any) -> None:
    assert main(["check", "order.yaml", "--code", code]) == 2
    why = f"{code} is no name of a module: give it as Python imports it, as {named}"
    assert capsys.readouterr().err == f"error: Invalid value: {why}\n"


def test_resume_says_how_many_runs_failed(capsys: Any) -> None:
    say(capsys, "start", "--data", '{"broken": true}')
    say(capsys, "start", "--data", '{"owner": "bob"}')
    assert say(capsys, "resume") == {"driven": 2, "failed": 1}


def test_a_store_that_is_waited_for_is_told_by_every_verb(tmp_path: Path) -> None:
    store = tmp_path / "locked.db"
    url = f"sqlite:///{store}"
    subprocess.run(
        command("start", "order.yaml", "--code", "files_code", "--store", url), check=True, capture_output=True
    )
    with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with launched(command("list", url), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as verb:
            assert "database is locked" in verb.stderr.readline()
            other.execute("ROLLBACK")
            assert "order" in verb.communicate(timeout=60)[0]
            assert verb.returncode == 0


@pytest.mark.usefixtures("theirs")
def test_code_within_a_configuration_is_never_run_from_the_command_line(capsys: Any) -> None:
    Path("pipeline.yaml").write_text(
        DATAKNOBS.replace("{type: registered, name: mark}", "{type: inline, code: 'boom'}")
    )
    assert main(["check", "pipeline.yaml", "--reader", "dataknobs", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert "inline" in found["message"]


def test_in_a_terminal_a_run_of_a_file_fits_in_eighty_columns() -> None:
    code, shown = terminal("run", "order.yaml", "--code", "files_code", *STORE, "--data", '{"owner": "bob"}')
    assert code == 0, shown
    lines = [line.split("\r")[-1] for line in plain(shown).splitlines()]
    assert any("is waiting in review" in line for line in lines)
