"""Runs from the command line: started, told something, steered and looked at, with and without an engine that works."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
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
APP = """
import asyncio
from fsmworkflow import Engine, Workflow, field

article = Workflow("article")

@article.step(initial=True, then="review")
async def draft(ctx):
    await asyncio.sleep(ctx.data.get("takes", 0))
    if ctx.data.get("topic") == "none":
        raise ValueError("nothing to write about")
    ctx.data["text"] = f"About {ctx.data['topic']}"

on = {"approved": [(field("topic") != "tea", "published")], "rejected": "draft"}
article.wait("review", on=on, after={"3d": "gone"})
article.final("published", "gone")
url = "sqlite:///app.db"

def engine():
    return Engine(url, workflows=[article], poll=0.05)
"""


@pytest.fixture(autouse=True)
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "runs_app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("fsmworkflow.cli.steering.TAKEN_SECONDS", PATIENCE)
    yield
    sys.modules.pop("runs_app", None)


ENGINE = "runs_app:engine"


def say(*words: str, code: int = 0) -> None:
    verb, *rest = words
    assert main([verb, ENGINE, *rest]) == code


def told(capsys: Any, *words: str, code: int = 0) -> Any:
    capsys.readouterr()
    say(*words, "--json", code=code)
    return json.loads(capsys.readouterr().out)


def data(**words: Any) -> tuple[str, str]:
    return "--data", json.dumps(words)


@contextlib.contextmanager
def working() -> Iterator[None]:
    """A `fsmworkflow work` beside the test, which ends well when it is told to."""
    with launched(command("work", ENGINE, "--json"), stdout=subprocess.PIPE, text=True) as process:
        assert json.loads(process.stdout.readline())["event"] == "working"
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


# -- starting ---------------------------------------------------------------------------------------------------------


def test_run_drives_a_run_until_it_rests_and_shows_it(capsys: Any) -> None:
    say("run", "article", "--key", "a-1", *data(topic="ink"))
    out = re.sub(r" +$", "", capsys.readouterr().out, flags=re.MULTILINE)
    assert out.startswith("article/a-1 is waiting in review\nversion     1\n")
    assert re.search(r'^data\.text +"About ink"$', out, re.MULTILINE)
    assert re.search(r"^timer +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d, of review$", out, re.MULTILINE)


def test_run_on_the_same_key_takes_up_the_run_and_says_where_its_data_differ(capsys: Any) -> None:
    first = told(capsys, "run", "article", "--key", "a-1", *data(topic="ink"))
    again = told(capsys, "run", "article", "--key", "a-1", *data(topic="ink"))
    assert first["id"] == again["id"]
    say("run", "article", "--key", "a-1", *data(topic="oil"), "--different", "refuse", code=3)
    assert "was started with a different input" in capsys.readouterr().err
    done = subprocess.run(
        command("run", ENGINE, "article", "--key", "a-1", *data(topic="oil")),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "different input: it goes on with its own" in done.stderr


def test_a_run_that_fails_is_shown_with_its_error_and_is_1(capsys: Any) -> None:
    say("run", "article", "--key", "a-1", *data(topic="none"), code=1)
    assert re.search(r"^error +ValueError: nothing to write about *$", capsys.readouterr().out, re.MULTILINE)
    found = told(capsys, "run", "article", "--key", "a-1", code=1)
    assert (found["status"], found["error"]["type"]) == ("failed", "ValueError")


def test_in_a_terminal_the_log_stands_above_the_bar() -> None:
    code, shown = terminal("run", ENGINE, "article", "--key", "a-1", *data(topic="none"))
    assert code == 1
    lines = [line.split("\r")[-1] for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).splitlines()]
    assert sum(line.startswith("WARNING: run article/a-1 failed in state 'draft'") for line in lines) == 1


def test_start_makes_a_run_and_drives_nothing(capsys: Any) -> None:
    say("start", "article", "--key", "a-1", *data(topic="ink"))
    assert capsys.readouterr().out == "article/a-1 was started\n"
    say("start", "article", "--key", "a-1", *data(topic="ink"))
    assert capsys.readouterr().out == "article/a-1 was there, running in draft\n"
    assert told(capsys, "show", "article", "a-1")["version"] == 0
    say("resume")
    assert capsys.readouterr().out == "1 run driven\n"
    assert told(capsys, "show", "article", "a-1")["state"] == "review"


def test_data_comes_from_a_file_or_from_stdin(capsys: Any) -> None:
    Path("in.json").write_text('{"topic": "ink"}')
    found = told(capsys, "run", "article", "--data", "@in.json")
    assert found["data"]["text"] == "About ink"
    done = subprocess.run(
        command("run", ENGINE, "article", "--data", "-", "--json"), input='{"topic": "oil"}', capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["data"]["text"] == "About oil"


def test_ctrl_c_leaves_a_run_where_it_is(capsys: Any) -> None:
    words, pipe = command("run", ENGINE, "article", "--key", "a-1", *data(topic="ink", takes=30)), subprocess.PIPE
    with launched(words, stdout=pipe, stderr=pipe, text=True) as process:
        asyncio.run(_until_there())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (130, "", "")
    assert told(capsys, "show", "article", "a-1")["status"] == "running"


async def _until_there() -> None:
    from fsmworkflow import open_store

    while not Path("app.db").exists():
        await asyncio.sleep(0.02)
    store = open_store("sqlite:///app.db")
    await store.open()
    try:
        while (await store.load("article", "a-1")) is None:
            await asyncio.sleep(0.02)
    finally:
        await store.close()


# -- events and steering ----------------------------------------------------------------------------------------------


def test_what_is_said_is_kept_until_an_engine_works(capsys: Any) -> None:
    say("run", "article", "--key", "a-1", *data(topic="ink"))
    capsys.readouterr()
    say("send", "article", "a-1", "approved", "--payload", '{"by": "ann"}', "--event-id", "click-1")
    assert capsys.readouterr().out == "approved waits in the inbox\n"
    assert [event["id"] for event in told(capsys, "show", "article", "a-1")["inbox"]] == ["click-1"]
    say("pause", "article", "a-1")
    assert capsys.readouterr().out == "article/a-1 will be paused as soon as an engine works\n"
    say("resume")
    found = told(capsys, "show", "article", "a-1")
    assert (found["state"], found["status"]) == ("published", "done")


def test_an_engine_that_works_answers_what_became_of_it(capsys: Any) -> None:
    say("start", "article", "--key", "a-1", *data(topic="ink"))
    say("start", "article", "--key", "a-2", *data(topic="tea"))
    with working():
        for key in ("a-1", "a-2"):
            until_state(capsys, key, "review")
        capsys.readouterr()
        say("send", "article", "a-1", "approved")
        assert capsys.readouterr().out == "approved was accepted by version 2\n"
        say("send", "article", "a-2", "approved", code=1)
        assert capsys.readouterr().out == "approved was rejected by version 2\n"
        for verb, done in (("pause", "paused"), ("unpause", "unpaused")):
            say(verb, "article", "a-2")
            assert capsys.readouterr().out.startswith(f"article/a-2 was {done}, and is ")
        say("rerun", "article", "a-2", "draft")
        assert capsys.readouterr().out.startswith("article/a-2 was rerun, and is ")
        until_state(capsys, "a-2", "review")
        said = told(capsys, "cancel", "article", "a-2")
        assert (said["done"], said["status"]) == (True, "cancelled")
        say("retry", "article", "a-2", code=3)
        assert "is cancelled: it takes no more events" in capsys.readouterr().err


def until_state(capsys: Any, key: str, state: str) -> None:
    import time

    end = time.monotonic() + PATIENCE
    while told(capsys, "show", "article", key)["state"] != state:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_failed_run_is_retried(capsys: Any) -> None:
    say("run", "article", "--key", "a-1", *data(topic="none"), code=1)
    with working():
        said = told(capsys, "retry", "article", "a-1")
        assert said["done"]
    events = [move["event"] for move in told(capsys, "history", "article", "a-1")]
    assert events[:3] == ["$start", "$error", "$retry"]


def test_an_event_for_later_and_for_one_visit(capsys: Any) -> None:
    say("run", "article", "--key", "a-1", *data(topic="ink"))
    later = told(capsys, "send", "article", "a-1", "rejected", "--in", "3600", "--visit", "1")
    assert later["status"] == "waiting"
    (waiting,) = told(capsys, "show", "article", "a-1")["inbox"]
    assert (waiting["due"], waiting["visit"]) == (later["due"], 1)
    capsys.readouterr()
    say("explain", "article", "a-1")
    assert "In its inbox: rejected for visit 1 (due in 60 min)." in capsys.readouterr().out
    say("show", "article", "a-1")
    assert re.search(r"^in the inbox +rejected, due .+, for visit 1 *$", capsys.readouterr().out, re.MULTILINE)


def test_fork_makes_a_run_of_what_another_one_was(capsys: Any) -> None:
    say("run", "article", "--key", "a-1", *data(topic="ink"))
    capsys.readouterr()
    say("fork", "article", "a-1", "a-2", "--at", "0", *data(topic="oil"))
    assert capsys.readouterr().out == "article/a-2 was made, in draft\n"
    assert told(capsys, "show", "article", "a-2")["data"] == {"topic": "oil"}
    say("fork", "article", "a-1", "a-3", "--at", "7", code=2)
    assert "has versions 0 to 1, not 7" in capsys.readouterr().err


# -- looking ----------------------------------------------------------------------------------------------------------


def test_runs_are_listed_by_workflow_status_state_and_in_pages(capsys: Any) -> None:
    say("run", "article", "--key", "a-1", *data(topic="ink"))
    for number in (2, 3):
        say("start", "article", "--key", f"a-{number}", *data(topic="ink"))
    assert [run["key"] for run in told(capsys, "list")] == ["a-1", "a-2", "a-3"]
    assert [run["key"] for run in told(capsys, "list", "article", "--status", "waiting")] == ["a-1"]
    assert [run["key"] for run in told(capsys, "list", "--state", "draft")] == ["a-2", "a-3"]
    first = told(capsys, "list", "--limit", "2")
    assert [run["key"] for run in told(capsys, "list", "--after", str(first[-1]["id"]))] == ["a-3"]
    say("list", "--limit", "2")
    assert capsys.readouterr().out.endswith(f"there may be more: --after {first[-1]['id']}\n")
    say("list", "nothing")
    assert capsys.readouterr().out == "no runs\n"


def test_what_only_looks_needs_no_definition(capsys: Any) -> None:
    say("run", "article", "--key", "a-1", *data(topic="ink"))
    for verb in (["list"], ["show", "article", "a-1"], ["history", "article", "a-1"]):
        assert main([verb[0], "sqlite:///app.db", *verb[1:]]) == 0
        assert main([verb[0], "sqlite:///nowhere.db", *verb[1:]]) == 3
        assert not Path("nowhere.db").exists()


def test_history_tells_each_move_with_what_it_changed(capsys: Any) -> None:
    say("run", "article", "--key", "a-1", *data(topic="ink"))
    moves = told(capsys, "history", "article", "a-1")
    assert [(move["event"], move["dest"], move["changes"]) for move in moves] == [
        ("$start", "draft", {"topic": "ink"}),
        ("$done", "review", {"text": "About ink"}),
    ]
    say("history", "article", "a-1", "--data")
    assert re.search(r'^ +text = "About ink" *$', capsys.readouterr().out, re.MULTILINE)


TRIP = """
import asyncio
from fsmworkflow import Engine, Retry, Workflow

trip = Workflow("trip")

async def no_refund(ctx):
    raise OSError("no refund")

@trip.step(initial=True, then="pay", compensate=no_refund, undo=Retry(attempts=2, first_delay=0))
async def book(ctx): ...

@trip.step(then="done", retry=Retry(attempts=2, first_delay=0))
async def pay(ctx):
    raise LookupError("no card")

trip.final("done")
engine = Engine("sqlite:///trip.db", workflows=[trip])
"""


def test_what_could_not_be_undone_is_shown_with_its_error_and_no_attempt_that_will_never_come(capsys: Any) -> None:
    Path("trips.py").write_text(TRIP)
    assert main(["run", "trips:engine", "--key", "t-1"]) == 1
    assert main(["show", "sqlite:///trip.db", "trip", "t-1"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^not undone +book \(visit 0\)$", shown, re.MULTILINE), shown
    assert "next attempt" not in shown
    assert main(["history", "sqlite:///trip.db", "trip", "t-1"]) == 0
    assert re.search(r"^ +OSError: no refund\n +step book could not be undone$", capsys.readouterr().out, re.MULTILINE)
    assert main(["show", "sqlite:///trip.db", "trip", "t-1", "--json"]) == 0
    (lost,) = json.loads(capsys.readouterr().out)["undo"]["lost"]
    assert (lost["state"], lost["visit"], lost["attempt"]) == ("book", 0, 2)


def test_migrate_plans_and_exits_with_1_where_a_run_is_stuck(capsys: Any) -> None:
    assert told(capsys, "migrate", "--plan") == {"stuck": 0, "plan": []}
    say("run", "article", "--key", "a-1", *data(topic="ink"))
    say("migrate")
    assert capsys.readouterr().out.endswith("the tables are up to date, and every run fits\n")
    assert told(capsys, "migrate", "--plan")["plan"][0]["fits"] == 1
    source = APP.replace('Workflow("article")', 'Workflow("article", version=2)').replace('"review"', '"check"')
    Path("runs_app.py").write_text(source)
    sys.modules.pop("runs_app", None)
    shutil.rmtree("__pycache__", ignore_errors=True)
    assert told(capsys, "migrate", "--plan", code=1)["stuck"] == 1
    say("migrate", code=1)
    assert "stuck in review: " in capsys.readouterr().out


def test_a_schedule_is_added_and_changed(capsys: Any) -> None:
    words = ("schedule", "add", ENGINE, "nightly", "article", "--cron", "0 3 * * *", *data(topic="ink"))
    assert main([*words]) == 0
    assert re.fullmatch(r"nightly starts article next at \d{4}-\d\d-\d\d 03:00 \+0000\n", capsys.readouterr().out)
    assert main([*words, "--timezone", "Nowhere/City"]) == 2
    assert "there is no time zone 'Nowhere/City'" in capsys.readouterr().err


# -- as a person meets it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["show", ENGINE, "article", "a-9"], 3, "there is no run 'a-9' of workflow 'article'"),
        (["send", ENGINE, "article", "a-1", "aproved"], 3, "has no event 'aproved' (did you mean 'approved'?)"),
        (["rerun", ENGINE, "article", "a-1", "draf"], 3, "has no state 'draf' (did you mean 'draft'?)"),
        (["run", ENGINE, "artikel"], 3, "artikel"),
        (["run", ENGINE, "article", "--data", "{x"], 2, "--data is no JSON"),
        (["run", ENGINE, "article", "--data", "@nowhere"], 2, "--data cannot be read: nowhere: No such file"),
        (["start", ENGINE, "article", "--key", ""], 3, "key '' must be text that is not empty"),
        (["list", ENGINE, "--status", "odd"], 2, "--status"),
        (["cancel", "sqlite:///app.db", "article", "a-1"], 2, "this engine knows no workflow"),
        (["run"], 2, "Missing argument 'ENGINE'"),
    ],
)
def test_an_error_is_one_line_with_an_exit_code(words: list[str], code: int, says: str, capsys: Any) -> None:
    assert main(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert says in line


@pytest.mark.parametrize(
    "words",
    [["list"], ["list", "article"], ["show", "article", "long"], ["history", "article", "long", "--data"],
     ["explain", "article", "long"], ["migrate", "--plan"], ["run", "article", "--key", "long"], ["resume"]],
    ids=" ".join,
)  # fmt: skip
def test_in_a_terminal_of_80_columns_every_line_fits(words: list[str]) -> None:
    say("run", "article", "--key", "long", *data(topic="a topic of many words " * 8, more=list(range(50))))
    say(
        "start",
        "article",
        "--key",
        "a-key-that-is-long-and-says-what-the-run-is-about/2026-11-27",
        *data(topic="x"),
    )
    _, shown = terminal(words[0], ENGINE, *words[1:])
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", plain(shown)).replace("\r", "\n").splitlines()
    if words[0] != "explain":
        assert max(map(len, lines)) <= 80, shown
    assert "\x1b[" in shown or words[0] in ("explain", "resume")


def test_in_a_terminal_there_is_a_bar_that_goes_when_it_is_done() -> None:
    for number in range(3):
        say("start", "article", "--key", f"a-{number}", *data(topic="ink", takes=0.3))
    code, shown = terminal("resume", ENGINE)
    assert code == 0
    assert "driving" in shown
    assert re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).splitlines()[-1] == "3 runs driven"
    done = subprocess.run(command("resume", ENGINE), capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("3 runs driven\n", "")


def test_what_others_wrote_cannot_steer_the_terminal(capsys: Any) -> None:
    evil = "\x1b]0;taken\x07\x1b[2Jred\u202e\x9b31m"
    Path("runs_app.py").write_text(APP.replace("nothing to write about", evil))
    say("run", "article", "--key", "a-1", *data(topic="none", said=evil), code=1)
    for words in (["show", "article", "a-1"], ["history", "article", "a-1", "--data"], ["explain", "article", "a-1"]):
        _, shown = terminal(words[0], ENGINE, *words[1:])
        assert not set(plain(shown)) & set(evil) - set("]0;taken[2Jred31m"), repr(shown)
    _, shown = terminal("show", ENGINE, "article", evil.encode("utf-8", "replace").decode())
    assert not set(plain(shown)) & {"\x1b", "\x07", "\x9b", "\u202e"}


def test_no_password_of_a_url_is_shown(capsys: Any) -> None:
    url = "postgresql://ann:s3cret@127.0.0.1:1/x"
    for words in (["list", url], ["show", url, "w", "k"], ["health", url], ["list", url, "--debug"]):
        assert main(words) == 3
        out, err = capsys.readouterr()
        assert "s3cret" not in out + err
        assert "127.0.0.1:1" in err


def test_init_makes_a_project_that_runs_and_writes_over_nothing(capsys: Any, monkeypatch: Any) -> None:
    assert main(["init", "new/place"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "now: cd new/place, and see README.md"
    assert main(["init", "new/place", "--json"]) == 2
    assert "is there already, and is left alone" in capsys.readouterr().err
    monkeypatch.chdir("new/place")
    subprocess.run([sys.executable, "-m", "unittest", "-q"], check=True, capture_output=True)
    shell = re.findall(r"```sh\n(.*?)```", Path("README.md").read_text(), re.DOTALL)[0]
    lines = [line.partition("#")[0].strip() for line in shell.splitlines()]
    assert len(lines) == 7
    for line in lines[1:]:
        words = line.replace("fsmworkflow", f"{sys.executable} -m fsmworkflow", 1).replace(" --open", "")
        done = subprocess.run(words, shell=True, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), line
        if " show " in line:
            assert "article/a-1 is done in published" in done.stdout
    assert Path("article.html").exists()


def test_the_documentation_names_every_verb_and_what_it_says_to_type_works(monkeypatch: Any) -> None:
    from fsmworkflow.cli import cli

    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    for name in cli.commands:
        assert re.search(rf"`{name}\b|\b{name}`", page), name
    for name in ("claim.py", "claim.yaml"):
        Path(name).write_text((ROOT / "examples" / name).read_text())
    told = []
    for shell in re.findall(r"```sh\n(.*?)```", page, re.DOTALL):
        typed = re.sub("^fsmworkflow", f"{sys.executable} -m fsmworkflow", shell, flags=re.MULTILINE)
        done = subprocess.run(["bash", "-e", "-c", typed], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        told.append(done.stdout)
    assert "articles/" in told[0]
    assert re.search(r"^claim +c-1 +done +paid ", told[1], re.MULTILINE)


def test_every_verb_takes_json_and_debug() -> None:
    from click import Group

    from fsmworkflow.cli import cli

    todo: list[Any] = list(cli.commands.values())
    verbs = 0
    while todo:
        command = todo.pop()
        if isinstance(command, Group):
            todo += command.commands.values()
            continue
        verbs += 1
        options = {word for parameter in command.params for word in parameter.opts}
        assert {"--json", "--debug"} <= options, command.name
    assert verbs > 25
