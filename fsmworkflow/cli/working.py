"""Verbs that drive runs, and those that look after who drives them."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from fsmworkflow.cli.answers import answer, findings, progress, say, table
from fsmworkflow.cli.targets import Target, knowing, there
from fsmworkflow.cli.verbs import NOT_WELL, addressed, engine_given, verb
from fsmworkflow.engine import Engine
from fsmworkflow.errors import log
from fsmworkflow.hooks import Hook, Hooks
from fsmworkflow.records import MOVING, Move

__all__ = ["COMMANDS"]


@verb("work", level=logging.INFO)
@engine_given
@click.option("--concurrency", default=100, show_default=True, type=click.IntRange(1), help="So many runs at once.")
@click.option("--grace", type=click.FloatRange(0), help="Seconds for running steps to end in; else the engine's own.")
@click.option("--health", "file", type=click.Path(dir_okay=False), help="Write how it is into this file, every 2 s.")
async def work(engine: Target, concurrency: int, grace: float | None, file: str | None, as_json: bool) -> int:
    """Drive all runs that are due, until SIGTERM or Ctrl-C.

    Then it begins nothing new, waits up to --grace seconds for the steps that run, leaves the rest to other processes,
    and exits with 0. A second signal ends it at once. Start as many of these as you like on one store.
    """
    from fsmworkflow.service import serve

    working = knowing(engine)
    working.grace = working.grace if grace is None else grace
    await serve(working, concurrency, file, lambda event, text: _tell(as_json, event, text))
    return 0


@verb("resume")
@engine_given
@click.option("--concurrency", default=100, show_default=True, type=click.IntRange(1), help="So many runs at once.")
async def resume(engine: Target, concurrency: int, as_json: bool) -> int:
    """Drive what is unfinished to its end or rest, and come back.

    What another process drives is left to it. Ctrl-C leaves them where they are.
    """
    working = knowing(engine)
    async with working:
        total = await _unfinished(working)
        with progress("driving", total) as more:
            counting = _Counting(more)
            working.worker.hooks = Hooks([*working.worker.hooks.given, counting])
            many = await working.resume(concurrency=concurrency)
    failed = f": {counting.failed:,} failed, see `list --status failed`" if counting.failed else ""
    said = {"driven": many, "failed": counting.failed}
    answer(as_json, said, f"{many:,} run{'' if many == 1 else 's'} driven{failed}")
    return 0


async def _unfinished(engine: Engine) -> int:
    """How many runs of the engine's workflows have not ended."""
    from fsmworkflow.doctor import census

    return sum(group.many for group in await census(engine.store) if group.workflow in engine.workflows)


class _Counting(Hook):
    """Shows on the bar how many runs have come to an end or a rest, and counts those that failed."""

    def __init__(self, more: Any) -> None:
        self.more, self.failed = more, 0

    def moved(self, move: Move) -> None:
        self.failed += move.after.status == "failed"
        if move.after.status not in MOVING:
            self.more()


def _tell(as_json: bool, event: str, text: str) -> None:
    if as_json:
        click.echo(json.dumps({"event": event, "at": time.time(), "pid": os.getpid(), "text": text}))
        sys.stdout.flush()
    else:
        log.info("%s: %s", event, text)


@verb("health")
@addressed("engine", required=False)
@click.option("--file", type=click.Path(dir_okay=False), help="The file that `work --health FILE` writes.")
@click.option("--live", "only", flag_value="live", help="Only ask if its event loop turns: restart it if not.")
@click.option("--ready", "only", flag_value="ready", help="Only ask if it can do its work now.")
@click.option("--max-age", default=30.0, show_default=True, help="Seconds after which a --file is too old.")
async def health(engine: Target | None, file: str | None, only: str | None, max_age: float, as_json: bool) -> int:
    """Say whether all is well; if not, exit with 1.

    Given MODULE:ENGINE or a URL it opens the store here, and writes to it. Given --file it tells of the process that
    writes that file: for the probes of Kubernetes.
    """
    if (engine is None) == (file is None):
        raise click.UsageError("name MODULE:ENGINE, or a --file that `work --health` writes")
    found = await _asked(engine) if engine is not None else _read(Path(file or ""), max_age)
    well = bool(found[only or "ok"])

    def draw(console: Any) -> None:
        problems = found["problems"]
        console.print(f"[{'green' if well else 'red'}]{'well' if well else 'not well'}[/]" + (":" if problems else ""))
        for problem in problems:
            say(console, f"  {problem}")
        rows = [(name, value) for name, value in found.items() if name not in ("problems", "at", "resources")]
        for name, use in found.get("resources", {}).items():
            most = "" if use["max"] is None else f" of {use['max']}"
            rows.append((f"resource {name}", f"{use['used']} used, {use['open']}{most} open"))
        table(console, ("", ""), rows)

    answer(as_json, found, draw)
    return 0 if well else NOT_WELL


async def _asked(target: Target) -> dict[str, Any]:
    async with there(target) as engine:
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


@verb("doctor")
@engine_given
async def doctor(engine: Target, as_json: bool) -> int:
    """Say what may be wrong, and what to do about it.

    Looks at the store, the clocks, the processes and the runs, and changes none of them. Exits with 1 where it finds an
    error.
    """
    from fsmworkflow.doctor import examine

    async with there(engine) as opened:
        found = await examine(opened)
    rows = [(one.level, one.check, (one.what, one.todo)) for one in found]
    answer(as_json, found, lambda console: findings(console, rows))
    return NOT_WELL if any(one.level == "error" for one in found) else 0


COMMANDS = [work, resume, health, doctor]
