"""Verbs for definitions: a project to begin with, checking a workflow, and drawing it."""

from __future__ import annotations

import asyncio
import json
import webbrowser
from collections import Counter
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from fsmworkflow.cli import answers
from fsmworkflow.cli.answers import answer, say
from fsmworkflow.cli.targets import Reader, Target, there, workflow_in, workflows_of
from fsmworkflow.cli.verbs import NOT_WELL, code_given, save, target_given, verb
from fsmworkflow.errors import DefinitionError
from fsmworkflow.workflow import Workflow

if TYPE_CHECKING:
    from fsmworkflow.engine import Engine
    from fsmworkflow.findings import Finding
    from fsmworkflow.records import Entry, Run

__all__ = ["COMMANDS"]

ENDINGS = {".html": "html", ".htm": "html", ".mmd": "mermaid", ".mermaid": "mermaid", ".dot": "dot", ".gv": "dot"}


@verb("schema")
@click.option("--output", "-o", type=click.Path(dir_okay=False), help="The file; else stdout.")
async def schema(output: str | None, as_json: bool) -> int:
    """Print the JSON Schema of workflows as files, for editors."""
    from fsmworkflow.config import schema as described

    text = json.dumps(described(), indent=2) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        await asyncio.to_thread(save, output, text)
        said = {"file": output}
        answer(as_json, said, f"{output} was written")
    return 0


@verb("init")
@click.argument("directory", type=click.Path(file_okay=False))
async def init(directory: str, as_json: bool) -> int:
    """Make a small project that runs, to begin with.

    It has a workflow, a test of it, and what to type. Nothing that is there is written over.
    """
    made = await asyncio.to_thread(_made, Path(directory))

    def draw(console: Any) -> None:
        for file in made:
            say(console, file)
        say(console, f"now: cd {directory}, and see README.md")

    answer(as_json, {"files": made}, draw)
    return 0


def _made(directory: Path) -> list[str]:
    """Copy the project. Raises BadParameter, and copies nothing, where a file of it is there."""
    copied = [
        one for one in files("fsmworkflow.cli").joinpath("project").iterdir() if one.name.endswith((".py", ".md"))
    ]
    project = {one.name: one.read_text(encoding="utf-8") for one in copied}
    if there := sorted(name for name in project if (directory / name).exists()):
        raise click.BadParameter(f"{directory / there[0]} is there already, and is left alone")
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in project.items():
        (directory / name).write_text(text, encoding="utf-8")
    return sorted(str(directory / name) for name in project)


@verb("check")
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True)
@code_given
@click.option("--strict", is_flag=True, help="Exit with 1 also where there are warnings.")
async def check(
    targets: tuple[str, ...], code: tuple[str, ...], reader: Reader | None, strict: bool, as_json: bool
) -> int:
    """Say what is wrong with workflows, or may be.

    TARGET is a file in YAML or JSON, or MODULE:NAME of a Workflow or an Engine. Exits with 1 where there is an error:
    with --strict also where there is a warning, never for notes.
    """
    from fsmworkflow.findings import findings, refused

    workflows: dict[int, Workflow] = {}
    found: dict[Finding, None] = {}
    for target in targets:
        try:
            named = workflows_of(Target(target, code=code, reader=reader))
        except DefinitionError as error:
            found.update(dict.fromkeys(refused(error)))
        else:
            workflows.update((id(one), one) for workflow in named.values() for one in workflow.family)
    found.update((finding, None) for workflow in workflows.values() for finding in findings(workflow))

    def draw(console: Any) -> None:
        heads = (" ".join(filter(None, (one.workflow, one.state, one.code))) for one in found)
        rows = ((one.level, head, (one.message, one.todo)) for one, head in zip(found, heads, strict=True))
        answers.findings(console, rows)
        say(console, f"{_many(len(workflows), 'workflow')} checked: {_summed(found) or 'nothing was found'}")

    answer(as_json, list(found), draw)
    bad = {"error", "warning"} if strict else {"error"}
    return NOT_WELL if any(one.level in bad for one in found) else 0


def _summed(found: Iterable[Finding]) -> str:
    from fsmworkflow.findings import Level

    many = Counter(one.level for one in found)
    return ", ".join(_many(many[level], level) for level in get_args(Level) if many[level])


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@verb("draw")
@target_given
@click.option("--workflow", metavar="NAME", help="Which workflow, where the engine knows several.")
@click.option("--run", "key", metavar="KEY", help="Draw the way of this run as well.")
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False), help="The file; else WORKFLOW.html, or stdout for text."
)
@click.option("--format", "form", type=click.Choice(["html", "mermaid", "dot"]), help="Else as the file's name ends.")
@click.option("--open", "shown", is_flag=True, help="Show the page in a browser.")
async def draw(
    target: Target, workflow: str | None, key: str | None, output: str | None, form: str | None, shown: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """Draw a workflow, and where a run of it is.

    TARGET is a file in YAML or JSON, or MODULE:NAME of a Workflow or an Engine. It is drawn as one page in HTML that
    opens without a network, or as text for Mermaid or Graphviz.
    """
    from fsmworkflow.diagram import Format, diagram

    engine = None if key is None else there(target)
    found = workflow_in(workflows_of(engine or target), workflow)
    kind: Format = form or ENDINGS.get(Path(output or "x.html").suffix, "html")  # type: ignore[assignment]
    if shown and kind != "html":
        raise click.UsageError("--open shows a page: leave --format out, or say html")
    text = diagram(found, *(await _followed(engine, found, key) if engine and key else ()), format=kind)
    if output is None and kind != "html":
        said = {"workflow": found.name, "format": kind, "text": text}
        answer(as_json, said, lambda console: click.echo(text, nl=False))
        return 0
    file = output or f"{_file_name(found.name)}.html"
    place = await asyncio.to_thread(save, file, text)
    said = {"workflow": found.name, "format": kind, "file": file}
    answer(as_json, said, f"{file} was written")
    if shown and not webbrowser.open(place):
        raise click.ClickException(f"no browser could be started: open {file} yourself")
    return 0


async def _followed(engine: Engine, workflow: Workflow, key: str) -> tuple[Run, list[Entry]]:
    """A run with its history."""
    async with engine:
        return await engine.get(workflow, key), await engine.history(workflow, key)


def _file_name(name: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "-_." else "_" for sign in name)[:100].lstrip(".") or "workflow"


COMMANDS = [init, check, draw, schema]
