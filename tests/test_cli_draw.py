"""`fsmworkflow draw`: pages and texts of workflows, and of the ways of their runs."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow.cli import main
from tests.browser import seen
from tests.terminal import plain, terminal

ROOT = Path(__file__).parent.parent
APP = """
from fsmworkflow import Engine, Workflow

article = Workflow("article")

@article.step(initial=True, then="review")
async def draft(ctx):
    ctx.data["text"] = "..."

article.wait("review", on={"approved": "published", "rejected": "draft"}, after={"3d": "expired"})
article.final("published", "expired")
other = Workflow("other/one")
other.wait("only", initial=True, on={"go": "gone"})
other.final("gone")

def engine():
    return Engine("sqlite:///app.db", workflows=[article])

def both():
    return Engine("sqlite:///app.db", workflows=[article, other])

broken = Workflow("broken")
"""


@pytest.fixture(autouse=True)
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "drawn_app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield
    sys.modules.pop("drawn_app", None)


def start() -> None:
    async def begin() -> None:
        import drawn_app

        async with drawn_app.engine() as engine:
            await engine.run("article", {}, key="a-1")
            await engine.send("article", "a-1", "rejected")
            await engine.result("article", "a-1")

    asyncio.run(begin())


def test_a_page_of_a_workflow_is_written_beside_and_draws_without_a_network(capsys: Any) -> None:
    assert main(["draw", "drawn_app:article"]) == 0
    assert capsys.readouterr().out == "article.html was written\n"
    assert '<body data-drawn="yes">' in seen(Path("article.html").absolute())


def test_the_way_of_a_run_is_drawn_from_the_engines_store(capsys: Any) -> None:
    start()
    assert main(["draw", "drawn_app:engine", "--run", "a-1", "-o", "way.html"]) == 0
    shown = seen(Path("way.html").absolute())
    assert "<h1>article/a-1</h1>" in shown
    assert "waiting in review, version 3" in shown
    assert "2 visits" in shown
    assert shown.count("<td>rejected") == 1
    capsys.readouterr()
    words = ["draw", "drawn_app:article", "--store", "sqlite:///app.db", "--run", "a-1", "--format", "mermaid"]
    assert main(words) == 0
    assert ": rejected #10003;\n" in capsys.readouterr().out


def test_text_goes_to_stdout_or_to_a_file_by_its_ending(capsys: Any) -> None:
    assert main(["draw", "drawn_app:article", "--format", "dot"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("digraph {")
    assert main(["draw", "drawn_app:article", "--output", "x.dot"]) == 0
    assert Path("x.dot").read_text() == out
    assert main(["draw", "drawn_app:article", "--output", "x.mmd"]) == 0
    assert Path("x.mmd").read_text().startswith("stateDiagram-v2\n")


def test_draw_answers_in_json(capsys: Any) -> None:
    assert main(["draw", "drawn_app:article", "--json", "--format", "mermaid"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["workflow"], said["format"]) == ("article", "mermaid")
    assert said["text"].startswith("stateDiagram-v2")
    assert main(["draw", "drawn_app:both", "--workflow", "other/one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == "other_one.html"


def test_open_starts_the_persons_browser_with_the_page(monkeypatch: Any) -> None:
    Path("browser").write_text('#!/bin/sh\necho "$1" > opened\n')
    Path("browser").chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{Path('browser').absolute()} %s")
    code, shown = terminal("draw", "drawn_app:article", "--open")
    assert code == 0, shown
    assert plain(shown) == "article.html was written\n"
    assert Path("opened").read_text().strip() == Path("article.html").absolute().as_uri()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["drawn_app:both"], 2, "say which workflow: article or other/one"),
        (["drawn_app:both", "--workflow", "artikel"], 2, "there is no workflow 'artikel' (did you mean 'article'?)"),
        (["drawn_app:article", "--run", "a-1"], 2, "say where its runs are kept: --store URL"),
        (["drawn_app:engine", "--run", "b"], 3, "there is no run 'b' of workflow 'article'"),
        (["drawn_app:broken"], 3, "no state is initial"),
        (["drawn_app:asyncio"], 2, "cannot be loaded"),
        (["drawn_app:article", "--open", "--format", "dot"], 2, "--open shows a page"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(words: list[str], code: int, says: str, capsys: Any) -> None:
    assert main(["draw", *words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert says in err
