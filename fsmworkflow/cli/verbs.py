"""What all verbs share: a coroutine function becomes a command, with --json and --debug."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from fsmworkflow.cli.targets import Reader, Target

__all__ = [
    "NOT_WELL", "Verb", "addressed", "code_given", "engine_given", "given", "run_given", "save", "target_given", "verb",
]  # fmt: skip

NOT_WELL = 1
Verb = Callable[..., Coroutine[Any, Any, int]]

store_given = click.option(
    "--store", metavar="URL", help="Where its runs are kept, if it is a file or a workflow; else FSMWORKFLOW_URL."
)


def code_given(fn: Any) -> Any:
    """The options that say how a file is read."""
    reader = click.option("--reader", type=click.Choice(get_args(Reader)), help="Whose format the file is in.")
    code = click.option("--code", metavar="MODULE", multiple=True, help="Where a file's functions are.")
    return code(reader(fn))


def addressed(name: str, *, required: bool = True) -> Callable[[Verb], Verb]:
    """The argument that names an engine, a workflow, a file or a store, as a Target, with its options."""

    def made(fn: Verb) -> Verb:
        @functools.wraps(fn)
        async def run(store: str | None, code: tuple[str, ...], reader: Reader | None, **words: Any) -> int:
            said = words.pop(name)
            return await fn(**{name: None if said is None else Target(said, store, code, reader)}, **words)

        told: Any = code_given(store_given(run))
        metavar = name.upper() if required else f"[{name.upper()}]"
        argument: Verb = click.argument(name, metavar=metavar, required=required)(told)
        return argument

    return made


engine_given = addressed("engine")
target_given = addressed("target")


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
            shown = logging.DEBUG if debug else level
            logging.basicConfig(level=min(shown, logging.WARNING), format=form, handlers=[_Log(shown)])
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


def save(file: str, text: str | bytes) -> str:
    """Write a file that an option names, and say where it is for a browser. Raises BadParameter where it cannot be."""
    try:
        Path(file).write_bytes(text if isinstance(text, bytes) else text.encode())
        return Path(file).resolve().as_uri()
    except OSError as error:
        raise click.BadParameter(f"{file} cannot be written: {error.strerror}") from error


class _Log(logging.StreamHandler[Any]):
    """Writes to what stderr is at the time: above a bar, where one is drawn. That a store is waited for is told."""

    def __init__(self, shown: int) -> None:
        super().__init__()
        self.addFilter(lambda record: record.levelno >= shown or record.module == "writer")

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        super().emit(record)


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
    except OSError as error:
        raise click.BadParameter(f"{what} cannot be read: {text[1:]}: {error.strerror}") from error
    except (ValueError, msgspec.MsgspecError) as error:
        why = f"{what} is no JSON: {error}; give it in quotes, as @FILE, or as - for stdin"
        raise click.BadParameter(why) from error
