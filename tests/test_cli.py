"""The command line as people and supervisors meet it: answers, exit codes, one-line errors, a terminal, signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import Engine
from fsmworkflow.cli import main
from tests.children import launched
from tests.stopwatch import Stopwatch
from tests.terminal import command, plain, terminal
from tests.test_systemd import Manager
from tests.waiting import PATIENCE, until_now

ROOT = Path(__file__).parent.parent
APP = """
import asyncio, os, time
from fsmworkflow import Engine, Workflow

report = Workflow("report", keep="30d")

@report.step(initial=True, then="sent")
async def send(ctx):
    with open("ledger", "a") as ledger:
        print("begin", ctx.run.key, file=ledger)
    if ctx.data.get("blocks"):
        time.sleep(ctx.data["blocks"])
    while ctx.data.get("waits") and not os.path.exists("go"):
        await asyncio.sleep(0.01)
    with open("ledger", "a") as ledger:
        print("end", ctx.run.key, file=ledger)

report.final("sent")

def make():
    return Engine("sqlite:///app.db", workflows=[report], poll=0.05)

engine = make()
number = 7
"""


@pytest.fixture(autouse=True)
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a program in it, as the working directory."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("fsmworkflow.cli.steering.TAKEN_SECONDS", PATIENCE)
    yield tmp_path
    for name in ("app", "broken"):
        sys.modules.pop(name, None)


def make(**data: Any) -> None:
    """Leave a run in the store that nobody drives."""

    async def create() -> None:
        import app

        from fsmworkflow.claims import first

        async with app.make() as engine:
            await engine.store.create(await first(app.report.check(), engine.store, data.pop("key", "a"), data))

    asyncio.run(create())


def schedule(name: str = "nightly") -> None:
    async def put() -> None:
        import app

        async with app.make() as engine:
            await engine.schedule(name, "report", cron="0 3 * * *", timezone="Europe/Berlin")
            await asyncio.sleep(0.05)

    asyncio.run(put())


@contextlib.contextmanager
def working(*words: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """A real `fsmworkflow work`, once it says that it works; killed at the end."""
    command_line, pipe = command("work", "app:make", "--json", *words), subprocess.PIPE
    with launched(command_line, env={**os.environ, **environ}, stdout=pipe, stderr=pipe, text=True) as process:
        line = process.stdout.readline()
        assert line, process.communicate()
        assert json.loads(line)["event"] == "working"
        yield process


def ledger() -> list[str]:
    return Path("ledger").read_text().splitlines() if Path("ledger").exists() else []


# -- looking ----------------------------------------------------------------------------------------------------------


def test_health_says_that_an_engine_is_well(capsys: Any) -> None:
    assert main(["health", "app:engine"]) == 0
    assert capsys.readouterr().out.startswith("well\n")
    assert main(["health", "app:make", "--json", "--live"]) == 0
    assert json.loads(capsys.readouterr().out)["ready"] is True
    assert main(["health", "sqlite:///app.db"]) == 0


def test_health_shows_how_much_of_each_resource_is_used(app: Path, capsys: Any) -> None:
    with (app / "app.py").open("a") as program:
        program.write(
            "from fsmworkflow.pools import Folder, Pool\n"
            "given = {'out': Folder('out'), 'db': Pool(object, min=2, max=3)}\n"
            "rich = Engine('sqlite:///app.db', workflows=[report], resources=given)\n"
        )
    assert main(["health", "app:rich"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["resource", "out", "0", "used,", "1", "open"] in shown
    assert ["resource", "db", "0", "used,", "2", "of", "3", "open"] in shown
    assert main(["health", "app:rich", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resources"]["db"] == {"used": 0, "open": 2, "max": 3, "problem": None}


def test_health_is_1_where_a_run_waits_that_nobody_drives_but_ready_is_not(capsys: Any) -> None:
    make()
    asyncio.run(_age())
    assert main(["health", "app:engine"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("not well:\n")
    assert "nobody drives it" in out
    sys.modules.pop("app")
    assert main(["health", "app:engine", "--ready"]) == 0


async def _age() -> None:
    import sqlite3

    with contextlib.closing(sqlite3.connect("app.db")) as db, db:
        db.execute("UPDATE fsm_runs SET due = due - 3600")


def test_the_doctors_findings_are_told_with_what_to_do(capsys: Any) -> None:
    assert main(["doctor", "app:engine", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"sqlite", "filesystem", "clock", "owners", "workflows", "health"} <= {one["check"] for one in found}
    assert main(["doctor", "app:make"]) == 0
    assert "filesystem" in capsys.readouterr().out


def test_the_doctor_is_1_where_it_finds_an_error(capsys: Any) -> None:
    make()
    asyncio.run(_age())
    assert main(["doctor", "app:engine"]) == 1
    assert re.search(r"^error +health$", capsys.readouterr().out, re.MULTILINE)


def test_the_size_and_the_vacuum_of_a_store(capsys: Any) -> None:
    make()
    assert main(["db", "size", "sqlite:///app.db"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^fsm_runs +1 +[\d.,]+ k?B$", out, re.MULTILINE)
    assert re.search(r"^report +1 +1 +", out, re.MULTILINE)
    assert main(["db", "size", "app:engine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["workflows"][0]["name"] == "report"
    assert main(["db", "vacuum", "sqlite:///app.db"]) == 0
    assert re.fullmatch(r"[\d.,]+ k?B before, [\d.,]+ k?B now\n", capsys.readouterr().out)
    assert main(["db", "vacuum", "sqlite:///app.db", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["after"] > 0


# -- schedules --------------------------------------------------------------------------------------------------------


def test_schedules_are_listed(capsys: Any) -> None:
    assert main(["schedule", "list", "app:make"]) == 0
    assert capsys.readouterr().out == "there are no schedules\n"
    schedule()
    assert main(["schedule", "list", "app:make"]) == 0
    assert re.search(
        r"^nightly +report +0 3 \* \* \* +Europe/Berlin +\d{4}-\d\d-\d\d 03:00", capsys.readouterr().out, re.M
    )
    assert main(["schedule", "list", "app:make", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["name"], found["cron"], found["status"]) == ("nightly", "0 3 * * *", "waiting")


def test_a_schedule_is_steered_without_an_engine_that_works_and_nothing_is_driven_here(
    capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("fsmworkflow.cli.steering.TAKEN_SECONDS", 0.1)
    schedule()
    asyncio.run(_age())
    assert main(["schedule", "pause", "app:make", "nightly"]) == 0
    assert capsys.readouterr().out == "nightly will be paused as soon as an engine works\n"
    assert main(["schedule", "list", "app:make"]) == 0
    assert "waiting" in capsys.readouterr().out
    assert ledger() == []


def test_an_engine_that_works_takes_what_the_command_line_posts(capsys: Any) -> None:
    schedule()
    with working():
        for verb, told in (("pause", "paused"), ("unpause", "unpaused"), ("remove", "removed")):
            assert main(["schedule", verb, "app:make", "nightly"]) == 0
            assert capsys.readouterr().out == f"nightly {told}\n"
    assert main(["schedule", "remove", "app:make", "nightly"]) == 3
    assert capsys.readouterr().err == "error: the workflows of this engine have no schedule 'nightly'\n"


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["health", "nowhere:engine"], 2, "No module named 'nowhere'"),
        (["health", "broken:engine"], 2, "ZeroDivisionError: division by zero"),
        (["health", "app:nothing"], 2, "has no attribute 'nothing'"),
        (["health", "app:number"], 2, "app:number is int, and neither a Workflow nor an Engine"),
        (["health", "app"], 2, "is neither MODULE:NAME"),
        (["health"], 2, "name MODULE:ENGINE, or a --file"),
        (["work", "app:engine", "--concurrency", "0"], 2, "--concurrency"),
        (["dance"], 2, "No such command 'dance'"),
        (["db", "size", "memory://"], 3, "in this process only"),
        (["db", "size", "sqlite:////nowhere/x.db"], 3, "there is no file /nowhere/x.db"),
        (["doctor", "sqlite:////tmp/nowhere-x.db"], 3, "there is no file /tmp/nowhere-x.db"),
        (["db", "size", "mysql://x"], 3, "no store has a URL"),
        (["doctor", "postgresql://postgres@127.0.0.1:1/x"], 3, "postgresql://postgres@127.0.0.1:1/x"),
    ],
)
def test_an_error_is_one_line_with_an_exit_code(words: list[str], code: int, says: str, capsys: Any) -> None:
    assert main(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("WARNING")]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert says in lines[0]


def test_an_unforeseen_error_is_one_line_too_and_70(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(Engine, "schedules", lambda _: 1 / 0)
    assert main(["schedule", "list", "app:engine"]) == 70
    assert capsys.readouterr().err == "error: ZeroDivisionError: division by zero\n"


def test_with_debug_the_traceback_comes_before_the_line(capsys: Any) -> None:
    assert main(["health", "broken:engine", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("error: ")


def test_without_its_libraries_the_command_line_says_how_to_get_them() -> None:
    for library in ("click", "rich"):
        program = (
            f"import sys; sys.modules['{library}'] = None\nfrom fsmworkflow.__main__ import main; sys.argv = ['f', "
        )
        program += "'schedule', 'list', 'app:make']; main()"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "pip install 'fsmworkflow[cli]'" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_package_does_not_import_the_command_line() -> None:
    program = (
        "import sys, fsmworkflow.engine; print([m for m in ('click', 'rich', 'fsmworkflow.cli') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    schedule()
    done = subprocess.run(
        f"{' '.join(command('schedule', 'list', 'app:make', '--json'))} | true; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 128 + signal.SIGPIPE)


def test_help_and_version_are_answers(capsys: Any) -> None:
    assert main(["--version"]) == 0
    assert "0.1.0" in capsys.readouterr().out
    assert main(["work", "--help"]) == 0
    assert "SIGTERM" in capsys.readouterr().out
    assert main([]) == 2
    assert "Usage: fsmworkflow" in capsys.readouterr().err


def test_the_help_of_every_verb_is_whole_in_eighty_columns(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    todo: list[tuple[str, ...]] = [()]
    while todo:
        words = todo.pop()
        assert main([*words, "--help"]) == 0
        shown = capsys.readouterr().out
        assert max(map(len, shown.splitlines())) <= 80
        _, _, options = re.sub(r" *\[[^]]*]", "", shown).partition("Options:\n")
        assert not re.search(r"^  -\S+( \S+)*$(?!\n {4})", options, re.MULTILINE), shown  # each says what it is for
        _, _, verbs = shown.partition("Commands:\n")
        assert "..." not in verbs, shown
        todo += [(*words, line.split()[0]) for line in verbs.splitlines()]


@pytest.mark.parametrize("words", [("work",), ("schedule", "list"), ("schedule", "pause")])
def test_what_would_do_nothing_with_a_bare_url_is_refused(words: tuple[str, ...], sqlite_url: str, capsys: Any) -> None:
    name = ("nightly",) if words[-1] == "pause" else ()
    assert main([*words, sqlite_url, *name]) == 2
    assert "this engine knows no workflow: name an Engine" in capsys.readouterr().err
    assert not Path(sqlite_url.removeprefix("sqlite:///")).exists()


# -- in a terminal ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["health", "app:make"], ["doctor", "app:make"], ["db", "size", "app:make"], ["schedule", "list", "app:make"],
        ["health", "nowhere:engine"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_in_a_terminal_of_80_columns_every_line_fits_and_there_is_colour(words: list[str]) -> None:
    schedule("a-name-that-is-quite-long-for-a-schedule")
    _, shown = terminal(*words)
    assert "\x1b[" in shown
    lines = plain(shown).splitlines()
    if "nowhere:engine" not in words:  # an error is one line, however long
        assert max(map(len, lines)) <= 80, shown
    assert len(lines) < 40


def test_through_a_pipe_there_is_no_colour_and_no_folded_line() -> None:
    for words in (["doctor", "app:make"], ["health", "app:make"], ["health", "nowhere:engine"]):
        done = subprocess.run(command(*words), capture_output=True, text=True, check=False)
        assert "\x1b[" not in done.stdout + done.stderr
    done = subprocess.run(command("doctor", "app:make"), capture_output=True, text=True, check=False)
    assert all(line.startswith(("ok", "warning", "error", "        ")) for line in done.stdout.splitlines())
    assert len(done.stdout.splitlines()) <= 3 * 8


# -- work -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_steps_end_and_hands_the_runs_back(number: signal.Signals, capsys: Any) -> None:
    make(waits=True)
    with working() as child:
        until_now(lambda: ledger() == ["begin a"])
        child.send_signal(number)
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["event"] == "stopping"
        Path("go").touch()
        out, err = child.communicate(timeout=PATIENCE)
        assert child.returncode == 0, err
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["stopped"]
    assert ledger() == ["begin a", "end a"]
    assert main(["health", "app:make"]) == 0
    capsys.readouterr()
    assert main(["db", "size", "app:make", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["workflows"]
    assert (found["name"], found["runs"], found["unfinished"]) == ("report", 1, 0)


def test_a_run_whose_step_outlasts_the_grace_is_taken_up_by_the_next(capsys: Any) -> None:
    make(waits=True)
    with working("--grace", "0.1") as child:
        until_now(lambda: ledger() == ["begin a"])
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0
    assert ledger() == ["begin a"]
    Path("go").touch()
    with working():
        until_now(lambda: ledger() == ["begin a", "begin a", "end a"])


def test_a_second_signal_ends_at_once_and_the_next_goes_on(stopwatch: Stopwatch) -> None:
    make(waits=True)
    with working("--grace", "600") as child:
        until_now(lambda: ledger() == ["begin a"])
        child.send_signal(signal.SIGTERM)
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["event"] == "stopping"
        began = time.monotonic()
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 128 + signal.SIGTERM
        assert stopwatch.since(began) < 3
    with working():
        until_now(lambda: ledger() == ["begin a", "begin a"])


def test_work_tells_systemd(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    with contextlib.closing(manager.socket), working(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="400000") as child:
        manager.hear("READY=1")
        manager.hear("WATCHDOG=1")
        child.send_signal(signal.SIGTERM)
        manager.hear("STOPPING=1")
        assert child.wait(PATIENCE) == 0


def test_a_probe_reads_the_health_of_the_working_process_from_its_file(capsys: Any) -> None:
    probe = ["health", "--file", "health.json"]
    assert main([*probe, "--live"]) == 1
    assert "cannot be read" in capsys.readouterr().out
    with working("--health", "health.json") as child:
        until_now(lambda: [main([*probe, *only]) for only in ([], ["--live"], ["--ready"])] == [0, 0, 0])
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0
    assert not Path("health.json").exists()


def test_a_process_whose_loop_is_stuck_is_not_live(capsys: Any) -> None:
    with working("--health", "health.json"):
        until_now(lambda: Path("health.json").exists())
        make(blocks=60)
        until_now(lambda: ledger() == ["begin a"])
        until_now(lambda: main(["health", "--file", "health.json", "--live", "--max-age", "3"]) == 1)
    assert "the process is stuck, or has ended" in capsys.readouterr().out


def test_work_says_what_it_does_in_its_log() -> None:
    make()
    pipe = subprocess.PIPE
    with launched(command("work", "app:make"), stderr=pipe, stdout=pipe, text=True) as process:
        until_now(lambda: ledger() == ["begin a", "end a"])
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "")
    assert re.search("INFO working: on sqlite:///.*/app.db, 100 runs at once", err)
    assert "INFO stopped: all runs were handed back" in err
