"""How an answer is shown: as JSON, or drawn for a reader, coloured on a terminal, and else plain and not folded."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
import msgspec

__all__ = ["answer", "clock", "colour", "progress", "size_of", "table"]

COLOURS = {
    "ok": "green", "warning": "yellow", "error": "red", "note": "cyan", "done": "green", "failed": "red",
    "parked": "red", "cancelled": "yellow", "compensating": "yellow", "paused": "yellow",
}  # fmt: skip


def answer(as_json: bool, value: Any, draw: Callable[[Any], None]) -> None:
    """Print a value as JSON, or have it drawn on a console."""
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
        return
    from rich.console import Console  # takes long to import, which a probe need not wait for

    terminal = sys.stdout.isatty()
    draw(Console(highlight=False, width=None if terminal else 400, soft_wrap=not terminal))


def table(console: Any, names: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[str] = ()) -> None:
    """Rows in columns, what is too wide folded. A name of `numbers` stands to the right."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold", show_header=any(names))
    for name in names:
        made.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        made.add_row(*[cell if isinstance(cell, Text) else Text("" if cell is None else str(cell)) for cell in row])
    console.print(made)


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
