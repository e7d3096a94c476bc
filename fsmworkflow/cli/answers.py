"""How an answer is shown: as JSON, or drawn for a reader, coloured on a terminal, and else plain and not folded."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import click
import msgspec

__all__ = ["answer", "clean", "clock", "colour", "findings", "progress", "say", "share", "size_of", "table"]

COLOURS = {
    "ok": "green", "warning": "yellow", "error": "red", "note": "cyan", "done": "green", "failed": "red",
    "parked": "red", "cancelled": "yellow", "compensating": "yellow", "paused": "yellow",
}  # fmt: skip


def answer(as_json: bool, value: Any, shown: str | Callable[[Any], None]) -> None:
    """Print a value as JSON, or, for a reader, a text or what is drawn on a console."""
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
        return
    from rich.console import Console  # takes long to import, which a probe need not wait for

    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else 400, soft_wrap=not terminal)
    say(console, shown) if isinstance(shown, str) else shown(console)


def clean(text: str) -> str:
    """A text of somebody else's: what could steer the terminal is replaced."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)


def say(console: Any, text: str) -> None:
    """Print a text as it is."""
    console.print(clean(text), markup=False)


def findings(console: Any, found: Iterable[tuple[str, str, Sequence[str]]]) -> None:
    """Print what was found: a level, a head, and below it some texts, those that are empty left out."""
    from rich.padding import Padding
    from rich.text import Text

    for level, head, texts in found:
        console.print(Text.assemble(colour(f"{level:7}"), " ", (clean(head), "bold")))
        for text in filter(None, texts):
            console.print(Padding(Text(clean(text)), (0, 0, 0, 8), expand=False))


def table(console: Any, names: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[str] = ()) -> None:
    """Rows in columns, what is too wide folded. A name of `numbers` stands to the right."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold", show_header=any(names))
    for name in names:
        made.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        cells = (cell if isinstance(cell, Text) else Text("" if cell is None else clean(str(cell))) for cell in row)
        made.add_row(*cells)
    with console.capture() as shown:
        console.print(made)
    lines = shown.get().splitlines()
    console.file.write("".join(f"{line if console.is_terminal else line.rstrip()}\n" for line in lines))


def colour(word: str) -> Any:
    """A level or a status in its colour."""
    from rich.text import Text

    return Text(word, style=COLOURS.get(word.strip(), ""))


def clock(at: float | None) -> str:
    """A time as people read it, in UTC."""
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))


def size_of(many: int | None) -> str:
    """A number of bytes as people read it."""
    if many is None:
        return "?"
    size, unit = float(many), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:,.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


@contextlib.contextmanager
def progress(text: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A bar on a terminal for what takes long, gone when it is done. Call it for each piece, with a text to change it.

    Where stderr is no terminal there is none.
    """
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    parts = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,}")]
    with Progress(*parts, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)

        def more(said: str | None = None) -> None:
            bar.update(task, advance=1, description=None if said is None else escape(said))

        yield more


@contextlib.contextmanager
def share(text: str) -> Iterator[Callable[[str, float | None], None]]:
    """A bar as `progress`, for what is known by the share that is done, from 0 to 1, or None. Call it with both."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    parts = [SpinnerColumn(), BarColumn(16), TextColumn("{task.description}")]
    with Progress(*parts, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=None)

        def far(said: str, done: float | None) -> None:
            bar.update(task, total=None if done is None else 1.0, completed=done or 0.0, description=escape(said))

        yield far
