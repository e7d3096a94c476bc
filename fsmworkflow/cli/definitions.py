"""Verbs for definitions: drawing a workflow."""

from __future__ import annotations

import asyncio
import webbrowser
from pathlib import Path
from typing import Any

import click

from fsmworkflow.cli.answers import answer
from fsmworkflow.cli.targets import engine_of, workflow_in, workflows_of
from fsmworkflow.cli.verbs import verb
from fsmworkflow.engine import Engine
from fsmworkflow.workflow import Workflow

__all__ = ["COMMANDS"]

ENDINGS = {".html": "html", ".htm": "html", ".mmd": "mermaid", ".mermaid": "mermaid", ".dot": "dot", ".gv": "dot"}


@verb("draw")
@click.argument("target", metavar="MODULE:NAME")
@click.option("--workflow", metavar="NAME", help="Which workflow, where the engine knows several.")
@click.option("--run", "key", metavar="KEY", help="Draw the way of this run as well.")
@click.option("--store", metavar="URL", help="Where the run is, if MODULE:NAME is a workflow.")
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False), help="The file; else WORKFLOW.html, or stdout for text."
)
@click.option("--format", "form", type=click.Choice(["html", "mermaid", "dot"]), help="Else as the file's name ends.")
@click.option("--open", "shown", is_flag=True, help="Show the page in a browser.")
async def draw(
    target: str, workflow: str | None, key: str | None, store: str | None, output: str | None, form: str | None,
    shown: bool, as_json: bool,
) -> int:  # fmt: skip
    """Draw a workflow, and where a run of it is.

    NAME is a Workflow or an Engine. It is drawn as one page in HTML that opens without a network, or as text for
    Mermaid or Graphviz.
    """
    from fsmworkflow.diagram import Format, diagram

    found = workflow_in(workflows_of(target), workflow)
    kind: Format = form or ENDINGS.get(Path(output or "x.html").suffix, "html")  # type: ignore[assignment]
    if shown and kind != "html":
        raise click.UsageError("--open shows a page: leave --format out, or say html")
    text = diagram(found, *(() if key is None else await _followed(target, store, found, key)), format=kind)
    if output is None and kind != "html":
        said = {"workflow": found.name, "format": kind, "text": text}
        answer(as_json, said, lambda console: click.echo(text, nl=False))
        return 0
    file = output or f"{_file_name(found.name)}.html"
    place = await asyncio.to_thread(_written, Path(file), text)
    said = {"workflow": found.name, "format": kind, "file": file}
    answer(as_json, said, lambda console: console.print(f"{file} was written", markup=False))
    if shown and not webbrowser.open(place):
        raise click.ClickException(f"no browser could be started: open {file} yourself")
    return 0


def _written(file: Path, text: str) -> str:
    """Write a file, and say where it is for a browser."""
    file.write_text(text, encoding="utf-8")
    return file.resolve().as_uri()


async def _followed(target: str, store: str | None, workflow: Workflow, key: str) -> tuple[Any, Any]:
    """A run with its history, from the engine's store or from the one that is named."""
    if store is not None:
        engine = Engine(store, workflows=[workflow])
    else:
        try:
            engine = engine_of(target)
        except click.BadParameter as error:
            raise click.UsageError("--run needs the run's store: name an Engine, or say --store URL") from error
    async with engine:
        return await engine.get(workflow.name, key), await engine.history(workflow.name, key)


def _file_name(name: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "-_." else "_" for sign in name)[:100].lstrip(".") or "workflow"


COMMANDS = [draw]
