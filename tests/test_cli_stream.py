"""Streams from the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow.cli import main
from tests.children import launched
from tests.terminal import plain, terminal
from tests.waiting import PATIENCE

ROOT = Path(__file__).parent.parent
APP = """
from contextlib import asynccontextmanager
from fsmworkflow import Engine, Workflow, field

order = Workflow("order")

@order.step(initial=True, then=[(field("total") > 0, "output"), "error"])
def price(ctx):
    ctx.data["total"] = sum(ctx.data["items"])

order.final("output", "error")
engine = Engine("sqlite:///app.db", workflows=[order])

shared = Workflow("shared")

@shared.step(initial=True, then="over")
async def use(ctx):
    async with ctx.use("prices") as prices:
        ctx.data["price"] = prices[0]

shared.final("over")

@asynccontextmanager
async def opened():
    yield [7]
    print("closed")

sharing = Engine("sqlite:///app.db", workflows=[shared], resources={"prices": opened})
"""
WAYS = ["--sink", "output=good.jsonl", "--sink", "error=bad.jsonl"]


@pytest.fixture(autouse=True)
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "stream_app.py").write_text(APP)
    records = [{"items": [n]} for n in range(3)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield
    sys.modules.pop("stream_app", None)


@pytest.mark.parametrize("target", [["stream_app:engine"], ["stream_app:order", "--store", "sqlite:///app.db"]])
def test_a_file_is_streamed_and_a_second_start_with_the_key_only_reports_it(target: list[str], capsys: Any) -> None:
    words = ["stream", target[0], "in.jsonl", *target[1:], *WAYS, "--key", "k"]
    for _ in range(2):
        assert main([*words, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["records"], told["states"], told["share"]) == (3, {"error": 1, "output": 2}, 1.0)
    assert Path("good.jsonl").read_text() == '{"items":[1],"total":1}\n{"items":[2],"total":2}\n'
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["  error: 1", "  output: 2"]


def test_without_a_key_its_steps_have_what_the_engine_shares_and_no_store_is_made(capsys: Any) -> None:
    assert main(["stream", "stream_app:sharing", "in.jsonl", "--sink", "out.jsonl"]) == 0
    assert "closed" in capsys.readouterr().out
    assert json.loads(Path("out.jsonl").read_text().splitlines()[2]) == {"items": [2], "price": 7}
    assert not Path("app.db").exists()


def test_what_fails_goes_where_it_is_told_and_else_stops_it(capsys: Any) -> None:
    Path("in.jsonl").write_text('{"items": [1]}\n{"item": 1}\nno json\n')
    assert main(["stream", "stream_app:order", "in.jsonl", "--sink", "out.jsonl"]) == 3
    assert "record 2 of in.jsonl failed in state 'price': KeyError: 'items'" in capsys.readouterr().err
    Path("out.jsonl").unlink(missing_ok=True)
    assert main(["stream", "stream_app:order", "in.jsonl", "--sink", "out.jsonl", "--errors", "wrong.jsonl"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["  output: 1", "  KeyError: 1", "  malformed: 1"]
    assert len(Path("wrong.jsonl").read_text().splitlines()) == 2
    Path("wrong.jsonl").write_text(
        Path("wrong.jsonl").read_text().replace('"item"', '"items"').replace(":1}}", ":[1]}}")
    )
    words = ["wrong.jsonl", "--again", "--sink", "again.jsonl", "--errors", "left.jsonl"]
    assert main(["stream", "stream_app:order", *words]) == 0
    assert Path("again.jsonl").read_text() == '{"items":[1],"total":1}\n'
    assert json.loads(Path("left.jsonl").read_text())["number"] == 2


def test_files_of_a_pattern_are_one_source(capsys: Any) -> None:
    Path("in[1].jsonl").write_text('{"items": [8]}\n')
    Path("in1.jsonl").write_text('{"items": [9]}\n{"items": 0}\n')
    assert main(["stream", "stream_app:order", "in*.jsonl", *WAYS, "--errors", "wrong1.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["states"] == {"error": 1, "output": 4}
    assert main(["stream", "stream_app:order", "in[1].jsonl", "--sink", "it.jsonl"]) == 0  # a file of that name
    assert Path("it.jsonl").read_text() == '{"items":[8],"total":8}\n'
    assert main(["stream", "stream_app:order", "wrong*.jsonl", "--again", "--sink", "again.jsonl"]) == 3
    assert "record 1 of wrong*.jsonl failed in state 'price'" in capsys.readouterr().err
    assert main(["stream", "stream_app:order", "none*.jsonl", "--sink", "none.jsonl"]) == 3
    assert "there is no file none*.jsonl" in capsys.readouterr().err


def test_records_on_standard_output_are_all_that_is_there(capfd: Any) -> None:
    assert main(["stream", "stream_app:order", "in.jsonl", "--sink", "output=-", "--sink", "error="]) == 0
    out, err = capfd.readouterr()
    assert [json.loads(line)["total"] for line in out.splitlines()] == [1, 2]
    assert err.startswith("3 records")


def test_whoever_reads_standard_output_may_stop_reading_it() -> None:
    Path("in.jsonl").write_text("".join(f'{{"items": [{n}]}}\n' for n in range(50_000)))
    words = [sys.executable, "-m", "fsmworkflow", "stream", "stream_app:order", "in.jsonl", "--sink", "-"]
    with launched(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b'{"items":[0],"total":0}\n'
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 128 + signal.SIGPIPE


STOPPED = """
import os, signal
from stream_app import Engine, Workflow

order = Workflow("order")

@order.step(initial=True, then="output")
def price(ctx):
    if ctx.data["items"] == [25] and not os.path.exists("again"):
        open("again", "w").close()
        os.kill(os.getpid(), signal.SIGINT)

order.final("output")
"""


def test_whoever_stops_a_stream_with_a_key_is_told_that_it_goes_on_and_it_does() -> None:
    Path("stopped.py").write_text(STOPPED)
    Path("in.jsonl").write_text("".join(f'{{"items": [{n}]}}\n' for n in range(50)))
    words = ["stream", "stopped:order", "in.jsonl", "--sink", "out.jsonl", "--chunk", "10"]
    words = [sys.executable, "-m", "fsmworkflow", *words, "--key", "k", "--store", "sqlite:///app.db"]
    ended, again = (subprocess.run(words, capture_output=True, text=True, check=False) for _ in range(2))
    assert ended.returncode == 128 + signal.SIGINT
    assert ended.stderr == "stopped: what was committed is kept, and the same command goes on with 'k'\n"
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith("50 records, 20 of them before")
    assert [json.loads(line)["items"] for line in Path("out.jsonl").read_text().splitlines()] == [
        [n] for n in range(50)
    ]


def test_a_stream_is_steered_by_the_verbs_that_steer_runs(capsys: Any) -> None:
    Path("in.jsonl").write_text('{"items": [1]}\n{"items": 2}\n')
    words = ["stream", "stream_app:engine", "in.jsonl", *WAYS, "--key", "k"]
    assert main(words) == 3
    capsys.readouterr()
    assert main(["retry", "stream_app:engine", "$stream:order", "k"]) == 0
    assert capsys.readouterr().out == "$stream:order/k will be retried as soon as it is started again\n"
    assert main(words) == 3  # where its record is as bad as before
    assert "record 2 of in.jsonl failed in state 'price'" in capsys.readouterr().err
    assert main(["doctor", "stream_app:engine"]) == 0
    for verb in ("retry", "pause"):
        assert main([verb, "stream_app:engine", "$stream:order", "k"]) == 0
    capsys.readouterr()
    assert main(words) == 3
    said = "stream 'k' is paused, and does not go on: somebody has steered it so. `fsmworkflow unpause` lets it go on"
    assert said in capsys.readouterr().err
    assert main(["unpause", "stream_app:engine", "$stream:order", "k"]) == 0
    assert main(words) == 3
    assert "record 2 of in.jsonl failed in state 'price'" in capsys.readouterr().err
    assert main(["cancel", "stream_app:engine", "$stream:order", "k"]) == 0
    capsys.readouterr()
    assert main(words) == 3
    assert "stream 'k' is cancelled, and does not go on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--sink", "a.jsonl", "--sink", "error=b.jsonl"], 2, "say of which state a.jsonl is the sink"),
        (["--sink", "output=a.jsonl"], 3, "there is none for error"),
        (["--sink", "output=a.jsonl", "--sink", "output=b.jsonl"], 2, "--sink output=FILE was given more than once"),
        (["--sink", "a.jsonl", "--every", "often"], 2, "for '--every': 'often' is no duration"),
        (["--sink", "a.jsonl", "--key", "k"], 2, "and no Engine"),
        (["--sink", "a.jsonl", "--every", "often"], 2, "'often' is no duration"),
    ],
)
def test_what_is_wrong_with_the_command_is_said(words: list[str], code: int, said: str, capsys: Any) -> None:
    assert main(["stream", "stream_app:order", "in.jsonl", *words]) == code
    assert said in capsys.readouterr().err


def test_a_bar_says_how_far_it_is() -> None:
    Path("in.jsonl").write_text("".join(f'{{"items": [{n}]}}\n' for n in range(3000)))
    code, shown = terminal("stream", "stream_app:order", "in.jsonl", *WAYS, "--chunk", "1000")
    assert code == 0
    assert "order: 3,000 records" in plain(shown)
    assert "3,000 records" in plain(shown).splitlines()[-3]
