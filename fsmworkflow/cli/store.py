"""Verbs for what keeps the runs: how large it is, and moving runs between stores."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from fsmworkflow.cli.answers import answer, progress, say, size_of, table
from fsmworkflow.cli.targets import Target, engine_of, knowing, there
from fsmworkflow.cli.verbs import NOT_WELL, engine_given, run_given, save, verb

__all__ = ["COMMANDS"]


@verb("size")
@engine_given
async def show_size(engine: Target, as_json: bool) -> int:
    """Show the rows and bytes of each table and workflow."""
    from fsmworkflow.upkeep import size

    async with there(engine) as opened:
        with progress("weighing"):
            found = await size(opened.store)

    def draw(console: Any) -> None:
        table(
            console,
            ("table", "rows", "bytes"),
            [*((t.name, f"{t.rows:,}", size_of(t.bytes)) for t in found.tables), ("all", "", size_of(found.bytes))],
            ("rows", "bytes"),
        )
        rows = [(w.name, f"{w.runs:,}", f"{w.unfinished:,}", size_of(w.bytes)) for w in found.workflows]
        console.print()
        table(console, ("workflow", "runs", "unfinished", "text"), rows, ("runs", "unfinished", "text"))

    answer(as_json, found, draw)
    return 0


@verb("vacuum")
@engine_given
async def give_back(engine: Target, as_json: bool) -> int:
    """Give the room of deleted runs back to the disk.

    On SQLite everything that writes waits until it is done.
    """
    from fsmworkflow.upkeep import size, vacuum

    async with there(engine) as opened:
        before = await size(opened.store)
        with progress("giving back room"):
            await vacuum(opened.store)
        after = await size(opened.store)
    found = {"before": before.bytes, "after": after.bytes}
    answer(as_json, found, f"{size_of(before.bytes)} before, {size_of(after.bytes)} now")
    return 0


@verb("export")
@run_given
@click.option("--output", "-o", type=click.Path(dir_okay=False), help="The file; else stdout.")
async def export(engine: Target, workflow: str, key: str, output: str | None, as_json: bool) -> int:
    """Write a run, with all that is its own, as one JSON file.

    The runs below it go with it. The store keeps them: pause the run first, or it goes on here and there.
    """
    from fsmworkflow.transfer import exported, written

    async with there(engine) as opened:
        with progress(f"{workflow}/{key}"):
            document = await exported(opened.store, workflow, key)
    text = written(document)
    if output is None:
        click.echo(text, nl=False)
        return 0
    await asyncio.to_thread(save, output, text)
    moves = sum(len(kept.moves) for kept in document.runs)
    said = {"file": output, "runs": len(document.runs), "moves": moves, "bytes": len(text)}
    answer(as_json, said, f"{output} was written")
    return 0


@verb("import")
@engine_given
@click.argument("file", type=click.File("rb"))
async def import_(engine: Target, file: Any, as_json: bool) -> int:
    """Put a run that was exported into a store; - is stdin.

    It is nobody's there, and goes on when an engine works. Nothing is written over: where it is there already, as it
    stands in the file, nothing is done.
    """
    from fsmworkflow.exports import LIMIT
    from fsmworkflow.transfer import imported, read

    document = read(file.read(LIMIT + 1))
    async with engine_of(engine) as opened:
        run, made = await imported(opened.store, document)
    what = f"was {'imported' if made else 'there already'}, {run.status} in {run.state}"
    said = {"imported": made, "runs": len(document.runs), "workflow": run.workflow, "key": run.key}
    answer(as_json, said, f"{run.workflow}/{run.key} {what}")
    return 0


@verb("migrate")
@engine_given
@click.option("--plan", "only", is_flag=True, help="Only say what would become of the runs.")
async def migrate(engine: Target, only: bool, as_json: bool) -> int:
    """Bring the tables up to date, and say what fits no more.

    Runs of an older version of their workflow go on in its new one by themselves, each with its next move. Exits with 1
    where one is stuck.
    """
    async with knowing(engine) as opened:
        with progress("looking at every unfinished run"):
            plan = [one for one in await opened.plan_migration() if only or one.stuck or one.mapped]
    stuck = sum(one.stuck for one in plan)

    def draw(console: Any) -> None:
        names = ("workflow", "version", "state", "becomes", "fit", "mapped", "stuck")
        rows = [
            (p.workflow, f"{p.version} -> {p.to}", p.state, p.becomes or "-", p.fits, p.mapped, p.stuck) for p in plan
        ]
        table(console, names, rows, names[4:])
        for one in plan:
            for reason in one.reasons:
                say(console, f"stuck in {one.state}: {reason}")

    nothing = "there are no unfinished runs" if only else "the tables are up to date, and every run fits"
    answer(as_json, {"stuck": stuck, "plan": plan}, draw if plan else nothing)
    return NOT_WELL if stuck else 0


db = click.Group("db", help="Show how big the store is, and make it smaller.", commands=[show_size, give_back])
COMMANDS = [db, export, import_, migrate]
