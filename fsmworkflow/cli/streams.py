"""The verb for streams: records of a file through a workflow, with a bar that says how far it is."""

from __future__ import annotations

import asyncio
import glob
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, get_args

import click

from fsmworkflow.cli.answers import answer, share
from fsmworkflow.cli.targets import Target, engine_of, named, workflow_in, workflows_of
from fsmworkflow.cli.verbs import target_given, verb
from fsmworkflow.engine import Engine
from fsmworkflow.retry import seconds
from fsmworkflow.stream import Progress, StreamError, sources, stream
from fsmworkflow.stream.words import Mode

__all__ = ["COMMANDS"]


def _duration(context: click.Context, option: click.Parameter, text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@verb("stream")
@target_given
@click.argument("source")
@click.option(
    "--sink",
    "sinks",
    multiple=True,
    required=True,
    metavar="[STATE=]FILE",
    help="Where records go that end in STATE, or all; STATE= only counts them. - is standard output.",
)
@click.option(
    "--errors", metavar="FILE", help="Where records go that fail or are malformed; else it stops at the first."
)
@click.option("--again", is_flag=True, help="SOURCE is what --errors has kept: its records are driven once more.")
@click.option("--limit", type=click.FloatRange(0, 1), help="The share of those above which it stops.")
@click.option("--key", help="Keep where it is under this key, to go on there when it is started again.")
@click.option("--workflow", metavar="NAME", help="Which workflow, where the engine knows several.")
@click.option("--chunk", default=10_000, show_default=True, type=click.IntRange(1), help="So many records a commit.")
@click.option("--every", default="1s", show_default=True, callback=_duration, help="Or what came within this time.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="So many records at once.")
@click.option("--ordered/--unordered", default=True, show_default=True, help="Whether their order is that of SOURCE.")
@click.option(
    "--mode", default="copy", show_default=True, type=click.Choice(get_args(Mode)), help="What a step is given."
)
async def run(
    target: Target, source: str, sinks: tuple[str, ...], key: str | None, workflow: str | None, as_json: bool,
    again: bool, **how: Any,
) -> int:  # fmt: skip
    """Let every record of SOURCE pass through a workflow.

    TARGET is a file in YAML or JSON, or MODULE:NAME of a Workflow or an Engine. SOURCE and FILE say by their names what
    is in them: .jsonl, .csv, .tsv, .txt, .log, each also .gz or .zst, and .parquet; - is standard input. SOURCE may be
    a pattern, as 'logs/*.log.gz'. Stopped by Ctrl-C or killed, the same command with the same --key goes on after the
    last commit.
    """
    made = named(target) if key is None else engine_of(target)
    engine = made if isinstance(made, Engine) else None
    found = workflow_in(workflows_of(made), workflow)
    async with AsyncExitStack() as stack:
        if engine is not None and key is not None:
            await stack.enter_async_context(engine)
        elif engine is not None:  # nothing is kept: what its steps share is all that is needed of it
            stack.push_async_callback(engine.resources.close)
            await engine.resources.open()
        with _told_how_to_go_on(key), share(found.name) as more, _quiet_pipes():
            done = await stream(
                engine,
                found,
                _source(source, again),
                _outlets(sinks),
                key=key,
                on_progress=lambda far: more(_far(found.name, far), far.share),
                **how,
            )
    if "-" in _files(sinks):  # its answer is the records
        click.echo(_said(done), err=True)
    else:
        answer(as_json, done, _said(done))
    return 0


@contextmanager
def _quiet_pipes() -> Iterator[None]:
    """Whoever read standard output has read enough: that is no error to be told."""
    try:
        yield
    except StreamError as error:
        if isinstance(error.__cause__, BrokenPipeError):
            raise error.__cause__ from None
        raise


@contextmanager
def _told_how_to_go_on(key: str | None) -> Iterator[None]:
    """Whoever ends a stream that has a key is told that nothing is lost."""
    try:
        yield
    except asyncio.CancelledError:
        if key is not None:
            click.echo(f"stopped: what was committed is kept, and the same command goes on with {key!r}", err=True)
        raise


def _source(given: str, again: bool) -> Any:
    """Where the records come from: a file, or several by a pattern, which stands in quotes where a shell is asked."""
    if glob.has_magic(given) and not Path(given).exists():
        return sources.files(given, sources.Errors if again else None)
    return sources.Errors(given) if again else given


def _outlets(sinks: tuple[str, ...]) -> Any:
    """The sink of all, or of each state."""
    if len(sinks) == 1 and "=" not in sinks[0]:
        return sinks[0]
    if unnamed := [sink for sink in sinks if "=" not in sink]:
        raise click.UsageError(f"say of which state {unnamed[0]} is the sink: --sink STATE={unnamed[0]}")
    pairs = [sink.partition("=") for sink in sinks]
    if len(found := {state: file or None for state, _, file in pairs}) < len(pairs):
        twice = next(state for state in found if sum(state == one for one, _, _ in pairs) > 1)
        raise click.UsageError(f"state {twice!r} has one sink: --sink {twice}=FILE was given more than once")
    return found


def _files(sinks: tuple[str, ...]) -> list[str]:
    return [sink.partition("=")[2] if "=" in sink else sink for sink in sinks]


def _far(name: str, far: Progress) -> str:
    done = "" if far.share is None else f"{far.share:4.0%} "
    left = "" if far.left is None or far.ended else f", {_time(far.left)} left"
    wrong = f", {far.errors + far.malformed:,} wrong" if far.errors + far.malformed else ""
    return f"{done}{Path(name).name}: {far.records:,} records{wrong}, {far.rate:,.0f}/s{left}"


def _time(seconds: float) -> str:
    """A time as people read it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _said(done: Progress) -> str:
    resumed = f", {done.resumed:,} of them before" if done.resumed else ""
    lines = [f"{done.records:,} records{resumed}, {done.rate:,.0f}/s"]
    lines += [f"  {state}: {many:,}" for state, many in done.states.items()]
    lines += [f"  {kind}: {many:,}" for kind, many in done.kinds.items()]
    return "\n".join([*lines, f"  malformed: {done.malformed:,}"] if done.malformed else lines)


COMMANDS = (run,)
