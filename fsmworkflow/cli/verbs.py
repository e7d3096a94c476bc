"""What all verbs share: a coroutine function becomes a command, with --json and --debug."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click
import msgspec

__all__ = ["NOT_WELL", "Verb", "engine_given", "given", "run_given", "verb"]

NOT_WELL = 1
Verb = Callable[..., Coroutine[Any, Any, int]]

engine_given = click.argument("engine", metavar="MODULE:ENGINE")


def run_given(fn: Verb) -> Verb:
    """The arguments that address a run."""
    fn = click.argument("key", metavar="KEY")(fn)
    fn = click.argument("workflow", metavar="WORKFLOW")(fn)
    return engine_given(fn)


def verb(name: str, *, level: int = logging.ERROR) -> Callable[[Verb], click.Command]:
    """A coroutine function that returns the exit code, as a verb. `level` is what it shows of the log."""

    def made(fn: Verb) -> click.Command:
        def run(debug: bool, **words: Any) -> int:
            long = level == logging.INFO  # what works for hours says when it did what
            form = "%(asctime)s %(levelname)s %(message)s" if long else "%(levelname)s: %(message)s"
            logging.basicConfig(level=logging.DEBUG if debug else level, format=form)
            return asyncio.run(fn(**words))

        run.__doc__ = fn.__doc__
        for option in getattr(fn, "__click_params__", ()):
            run.__dict__.setdefault("__click_params__", []).append(option)
        run_: Any = click.option("--debug", is_flag=True, help="Show the whole log, and the traceback of an error.")(
            run
        )
        run_ = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(run_)
        return click.command(name)(run_)

    return made


def given(text: str | None, what: str) -> Any:
    """What an option says in JSON: itself, in the file @NAME, or, for "-", on standard input. None where it is None."""
    if text is None:
        return None
    try:
        if text == "-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            text = Path(text[1:]).read_text(encoding="utf-8")
        return msgspec.json.decode(text)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        why = f"{what} is no JSON: {error}; give it in quotes, as @FILE, or as - for stdin"
        raise click.BadParameter(why) from error
