"""The command line. It reads and steers through the store, and drives runs only in `work`.

Exit codes: 0 done, and well; 1 not well (`health`, or an error that `doctor` found); 2 a wrong command, or an engine
that cannot be loaded; 3 an error of fsmworkflow, such as a store that is away; 70 any other error; 128 + n ended by
signal n.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from fsmworkflow.engine import Engine
from fsmworkflow.errors import FSMWorkflowError, ScheduleNotFound, StoreError
from fsmworkflow.records import PAUSE, RERUN, UNPAUSE, Event

__all__ = ["main"]

log = logging.getLogger("fsmworkflow")

NOT_WELL, REFUSED, BROKEN, ENDED_BY = 1, 3, 70, 128
TAKEN_SECONDS = 3.0
"""How long a steering verb waits for an engine that works to take its event."""


def main(words: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code. An error is one line on stderr, with --debug its traceback."""
    words = sys.argv[1:] if words is None else words
    try:
        with cli.make_context("fsmworkflow", list(words)) as context:
            code = cli.invoke(context)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as ended:  # --help and --version
        return ended.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        if "--debug" in words:
            traceback.print_exc()
        _complain(error.format_message())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return ENDED_BY + signal.SIGINT
    except BrokenPipeError:  # whoever read our output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ENDED_BY + signal.SIGPIPE
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc()
        known = isinstance(error, FSMWorkflowError)
        _complain(f"{_line(error)}" if known else f"{type(error).__name__}: {_line(error)}")
        return REFUSED if known else BROKEN


def _line(error: BaseException) -> str:
    return "; ".join(line.strip(" -") for line in str(error).splitlines() if line.strip())


def _complain(text: str) -> None:
    click.echo(f"{click.style('error', fg='red', bold=True)}: {text}", err=True)


# -- what all verbs share ---------------------------------------------------------------------------------------------


def _engine(target: str) -> Engine:
    """The engine that MODULE:NAME or a URL names. NAME may be a function that makes one."""
    if "://" in target:
        return Engine(target)
    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise click.BadParameter(f"{target!r} is neither MODULE:ENGINE, as in app:engine, nor the URL of a store")
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        made: Any = found if isinstance(found, Engine) or not callable(found) else found()
    except Exception as error:
        raise click.BadParameter(f"{target} cannot be loaded: {type(error).__name__}: {_line(error)}") from error
    if not isinstance(made, Engine):
        raise click.BadParameter(f"{target} is {type(made).__name__}, and no Engine")
    return made


def _there(target: str) -> Engine:
    """An engine whose store is there: what only looks after one makes none."""
    engine = _engine(target)
    path = getattr(engine.store, "path", None) if "://" in target else None
    if path is not None and not os.path.exists(path):
        raise StoreError(f"there is no file {path}: it is made by the program that runs the workflows")
    return engine


def _knowing(target: str) -> Engine:
    """An engine that knows a workflow, for what would do nothing where it knows none, without a word."""
    engine = _engine(target)
    if not engine._workflows:
        raise click.BadParameter("this engine knows no workflow: name an Engine(workflows=[...]), as in app:engine")
    return engine


def _verb(group: click.Group, name: str) -> Callable[[Callable[..., Coroutine[Any, Any, int]]], click.Command]:
    """A coroutine function as a verb, with --json and --debug. It returns the exit code."""

    def add(fn: Callable[..., Coroutine[Any, Any, int]]) -> click.Command:
        def run(debug: bool, **words: Any) -> int:
            level = logging.INFO if fn is _work else logging.ERROR
            form = "%(asctime)s %(levelname)s %(message)s" if fn is _work else "%(levelname)s: %(message)s"
            logging.basicConfig(level=logging.DEBUG if debug else level, format=form)
            return asyncio.run(fn(**words))

        run.__doc__ = fn.__doc__
        for option in getattr(fn, "__click_params__", ()):
            run.__dict__.setdefault("__click_params__", []).append(option)
        run_ = click.option("--debug", is_flag=True, help="Show the whole log, and the traceback of an error.")(run)
        run_ = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(run_)
        return group.command(name)(run_)

    return add


engine_given = click.argument("engine", metavar="MODULE:ENGINE")


def _answer(as_json: bool, value: Any, draw: Callable[[Any], None]) -> None:
    """Print a value as JSON, or have it drawn on a console: coloured on a terminal, and else plain and not folded."""
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
        return
    from rich.console import Console  # takes long to import, which a probe need not wait for

    terminal = sys.stdout.isatty()
    draw(Console(highlight=False, width=None if terminal else 400, soft_wrap=not terminal))


def _table(console: Any, names: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[str] = ()) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(names))
    for name in names:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*[cell if isinstance(cell, Text) else Text("" if cell is None else str(cell)) for cell in row])
    console.print(table)


def _bytes(many: int | None) -> str:
    if many is None:
        return "?"
    size, unit = float(many), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:,.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fsmworkflow")
def cli() -> None:
    """Drive the runs of your workflows, and see how they are.

    MODULE:ENGINE says where your Engine is: app:engine is `engine` in app.py, sought from this directory on; it may be
    a function that makes one. For `health`, `doctor` and `db` the URL of the store will do: sqlite:///app.db.
    """


# -- work -------------------------------------------------------------------------------------------------------------


@engine_given
@click.option("--concurrency", default=100, show_default=True, type=click.IntRange(1), help="So many runs at once.")
@click.option("--grace", type=click.FloatRange(0), help="Seconds for running steps to end in; else the engine's own.")
@click.option("--health", "file", type=click.Path(dir_okay=False), help="Write how it is into this file, every 2 s.")
async def _work(engine: str, concurrency: int, grace: float | None, file: str | None, as_json: bool) -> int:
    """Drive all runs that are due, until SIGTERM or Ctrl-C.

    Then it begins nothing new, waits up to --grace seconds for the steps that run, leaves the rest to other processes,
    and exits with 0. A second signal ends it at once. Start as many of these as you like on one store.
    """
    from fsmworkflow.service import serve

    working = _knowing(engine)
    working.grace = working.grace if grace is None else grace
    await serve(working, concurrency, file, lambda event, text: _tell(as_json, event, text))
    return 0


def _tell(as_json: bool, event: str, text: str) -> None:
    if as_json:
        click.echo(json.dumps({"event": event, "at": time.time(), "pid": os.getpid(), "text": text}))
        sys.stdout.flush()
    else:
        log.info("%s: %s", event, text)


# -- looking ----------------------------------------------------------------------------------------------------------


@click.argument("engine", metavar="[MODULE:ENGINE]", required=False)
@click.option("--file", type=click.Path(dir_okay=False), help="The file that `work --health FILE` writes.")
@click.option("--live", "only", flag_value="live", help="Only ask if its event loop turns: restart it if not.")
@click.option("--ready", "only", flag_value="ready", help="Only ask if it can do its work now.")
@click.option("--max-age", default=30.0, show_default=True, help="Seconds after which a --file is too old.")
async def _health(engine: str | None, file: str | None, only: str | None, max_age: float, as_json: bool) -> int:
    """Say whether all is well; if not, exit with 1.

    Given MODULE:ENGINE or a URL it opens the store here, and writes to it. Given --file it tells of the process that
    writes that file: for the probes of Kubernetes.
    """
    if (engine is None) == (file is None):
        raise click.UsageError("name MODULE:ENGINE, or a --file that `work --health` writes")
    found = _read(Path(file), max_age) if file is not None else await _asked(str(engine))
    well = bool(found[only or "ok"])

    def draw(console: Any) -> None:
        problems = found["problems"]
        console.print(f"[{'green' if well else 'red'}]{'well' if well else 'not well'}[/]" + (":" if problems else ""))
        for problem in problems:
            console.print(f"  {problem}", markup=False)
        _table(console, ("", ""), [(name, value) for name, value in found.items() if name not in ("problems", "at")])

    _answer(as_json, found, draw)
    return 0 if well else NOT_WELL


async def _asked(target: str) -> dict[str, Any]:
    async with _there(target) as engine:
        found: dict[str, Any] = msgspec.to_builtins(await engine.health())
        return found


def _read(file: Path, max_age: float) -> dict[str, Any]:
    """The health of a working process. One that was not written for a while is of a process that is stuck or gone."""
    try:
        found: dict[str, Any] = json.loads(file.read_bytes())
        age = time.time() - file.stat().st_mtime
    except (OSError, ValueError) as error:
        return {"ok": False, "live": False, "ready": False, "problems": [f"{file} cannot be read: {error}"]}
    if age > max_age:
        problem = f"{file} was written {age:.0f} s ago: the process is stuck, or has ended"
        found |= {"ok": False, "live": False, "ready": False, "problems": [problem]}
    return found


@engine_given
async def _doctor(engine: str, as_json: bool) -> int:
    """Say what may be wrong, and what to do about it.

    Looks at the store, the clocks, the processes and the runs, and changes none of them. Exits with 1 where it finds an
    error.
    """
    from fsmworkflow.doctor import examine

    async with _there(engine) as opened:
        found = await examine(opened)
    colours = {"ok": "green", "warning": "yellow", "error": "red"}

    def draw(console: Any) -> None:
        from rich.padding import Padding
        from rich.text import Text

        for one in found:
            console.print(f"[{colours[one.level]}]{one.level:7}[/] [bold]{one.check}[/]")
            for text in filter(None, (one.what, one.todo)):
                console.print(Padding(Text(text), (0, 0, 0, 8), expand=False))

    _answer(as_json, found, draw)
    return NOT_WELL if any(one.level == "error" for one in found) else 0


# -- the store --------------------------------------------------------------------------------------------------------


@engine_given
async def _size(engine: str, as_json: bool) -> int:
    """Show the rows and bytes of each table and workflow."""
    from fsmworkflow.upkeep import size

    async with _there(engine) as opened:
        found = await size(opened.store)

    def draw(console: Any) -> None:
        _table(
            console,
            ("table", "rows", "bytes"),
            [*((t.name, f"{t.rows:,}", _bytes(t.bytes)) for t in found.tables), ("all", "", _bytes(found.bytes))],
            ("rows", "bytes"),
        )
        rows = [(w.name, f"{w.runs:,}", f"{w.unfinished:,}", _bytes(w.bytes)) for w in found.workflows]
        console.print()
        _table(console, ("workflow", "runs", "unfinished", "text"), rows, ("runs", "unfinished", "text"))

    _answer(as_json, found, draw)
    return 0


@engine_given
async def _vacuum(engine: str, as_json: bool) -> int:
    """Give the room of deleted runs back to the disk.

    On SQLite everything that writes waits until it is done.
    """
    from fsmworkflow.upkeep import size, vacuum

    async with _there(engine) as opened:
        before = await size(opened.store)
        await vacuum(opened.store)
        after = await size(opened.store)
    found = {"before": before.bytes, "after": after.bytes}
    _answer(as_json, found, lambda console: console.print(f"{_bytes(before.bytes)} before, {_bytes(after.bytes)} now"))
    return 0


# -- schedules --------------------------------------------------------------------------------------------------------


@engine_given
async def _listed(engine: str, as_json: bool) -> int:
    """List the schedules of this engine's workflows."""
    async with _knowing(engine) as opened:
        found = await opened.schedules()
    ticks = ["" if s.next is None else s.next.strftime("%Y-%m-%d %H:%M %z") for s in found]
    rows = [(s.name, s.workflow, s.cron, s.timezone, tick, s.status) for s, tick in zip(found, ticks, strict=True)]
    names = ("name", "workflow", "cron", "time zone", "next", "status")

    def draw(console: Any) -> None:
        _table(console, names, rows) if rows else console.print("there are no schedules")

    _answer(as_json, found, draw)
    return 0


def _steering(what: str, event: str, payload: Any, done: str) -> Callable[..., Coroutine[Any, Any, int]]:
    """A verb that posts one of the engine's own events to a schedule. It is never driven here."""

    @engine_given
    @click.argument("name")
    async def steer(engine: str, name: str, as_json: bool) -> int:
        async with _knowing(engine) as opened:
            found = [schedule for schedule in await opened.schedules() if schedule.name == name]
            if not found:
                raise ScheduleNotFound(f"the workflows of this engine have no schedule {name!r}")
            taken = [await _posted(opened, schedule.address, event, payload) for schedule in found]
        told = done if all(taken) else f"will be {done} as soon as an engine works"
        _answer(
            as_json, {"name": name, "done": all(taken)}, lambda console: console.print(f"{name} {told}", markup=False)
        )
        return 0

    steer.__doc__ = f"{what}.\n\nA process that works does it; where none does, it is kept for the next one."
    return steer


async def _posted(engine: Engine, address: tuple[str, str], name: str, payload: Any) -> bool:
    """Post an event, and wait a while for the engine that holds the run. Whether it was taken."""
    event = await engine.store.post(*address, Event(name=name, payload=payload, id=uuid.uuid4().hex))
    end = time.monotonic() + TAKEN_SECONDS
    while event.status == "waiting" and time.monotonic() < end:
        await asyncio.sleep(0.05)
        event = await engine.event(*address, event.id)
    return event.status != "waiting"


_verb(cli, "work")(_work)
_verb(cli, "health")(_health)
_verb(cli, "doctor")(_doctor)
db = click.Group("db", help="Show how big the store is, and make it smaller.")
_verb(db, "size")(_size)
_verb(db, "vacuum")(_vacuum)
schedule = click.Group("schedule", help="List, pause, unpause and remove the calendars that start runs.")
_verb(schedule, "list")(_listed)
_verb(schedule, "pause")(_steering("Start no runs by this schedule until `unpause`", PAUSE, None, "paused"))
_verb(schedule, "unpause")(_steering("Let a paused schedule start runs again", UNPAUSE, None, "unpaused"))
_verb(schedule, "remove")(
    _steering("End a schedule for good; the runs that it started go on", RERUN, "removed", "removed")
)
cli.add_command(db)
cli.add_command(schedule)
