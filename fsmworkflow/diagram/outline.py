"""What becomes of a picture too large to be laid out: states that hold others are closed, and all are listed."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping

from msgspec.structs import replace

from fsmworkflow.diagram.path import ANY
from fsmworkflow.diagram.picture import END, Arrow, Node, Picture

__all__ = ["PARTS", "closed", "outlined", "safe"]

PARTS = 400
"""So many states and arrows a browser lays out within seconds; its time grows with more than their square."""
TOLD = 3
"""So many lines stand beside an arrow that is several."""


def closed(picture: Picture) -> Picture | None:
    """The picture with as many levels open as can be laid out.

    Where even the outermost is too large: what is around the run, and None without one.
    """
    depth = max((node.path.count(".") + 1 for node in picture.all()), default=1)
    for level in range(depth, 0, -1):
        shown = picture if level == depth else _to(picture, level)
        if _fits(shown):
            return shown
    return _around(shown)


def _fits(picture: Picture) -> bool:
    return sum(1 for _ in picture.all()) + len(picture.arrows) <= PARTS


def _around(picture: Picture) -> Picture | None:
    """Where a run is, where it was if that is not too much, and where it may go next."""
    here = {node.path for node in picture.nodes if node.place in ("current", "failed")}
    nexts = {arrow.dest for arrow in picture.arrows if arrow.source in here}
    visited = {node.path for node in picture.nodes if node.place}
    for kept in ({*visited, *nexts}, {*here, *nexts}) if here else ():
        nodes = tuple(node for node in picture.nodes if node.path in kept)
        arrows = tuple(
            arrow
            for arrow in picture.arrows
            if arrow.source in kept and arrow.dest in kept and (arrow.source in here or arrow.taken)
        )
        shown = replace(picture, nodes=nodes, arrows=arrows)
        if _fits(shown):
            return shown
    return None


def _to(picture: Picture, level: int) -> Picture:
    """The picture with the states open down to a level."""
    ways: dict[tuple[str, str], list[Arrow]] = {}
    for arrow in picture.arrows:
        source, dest = _cut(arrow.source, level), _cut(arrow.dest, level)
        if source != dest or source == arrow.source:  # else it stays within what is closed
            ways.setdefault((source, dest), []).append(arrow)
    arrows = tuple(_one(source, dest, some) for (source, dest), some in ways.items())
    return replace(picture, nodes=tuple(_shut(node, level) for node in picture.nodes), arrows=arrows)


def _cut(path: str, level: int) -> str:
    return path if path in (ANY, END) else ".".join(path.split(".")[:level])


def _shut(node: Node, level: int) -> Node:
    if level > 1:
        return replace(node, inner=tuple(_shut(one, level - 1) for one in node.inner))
    many = sum(1 for _ in node.all()) - 1
    return replace(node, inner=(), lines=(*node.lines, f"{many:,} states in it")) if many else node


def _one(source: str, dest: str, some: list[Arrow]) -> Arrow:
    """The arrows of states that are closed, as one between those around them."""
    lines = tuple(dict.fromkeys(line for arrow in some for line in arrow.lines))
    if len(some) > 1 and len(lines) > TOLD:
        lines = (f"{len(some):,} ways",)
    return Arrow(source, dest, lines, sum(arrow.taken for arrow in some))


def outlined(picture: Picture) -> Iterator[str]:
    """All states and where they lead, as a list in HTML, states in states; each way is a link."""
    ids = {node.path: f"s{number}" for number, node in enumerate(picture.all(), 1)}
    ways: dict[str, list[Arrow]] = {}
    for arrow in picture.arrows:
        ways.setdefault(arrow.source, []).append(arrow)
    many = (
        f"{len(ids):,} states and {len(picture.arrows):,} ways between them are too many for one picture in a browser"
    )
    yield f"<p>{many}: here all are listed. Graphviz draws them from <code>--format dot</code>.</p>"
    yield '<ul class="states">'
    if ANY in ways:
        yield f"<li><b>any state</b>{_ways(ways[ANY], ids)}</li>"
    for node in picture.nodes:
        yield from _item(node, ids, ways)
    yield "</ul>"


def _item(node: Node, ids: Mapping[str, str], ways: Mapping[str, list[Arrow]]) -> Iterator[str]:
    marks = "● " if node.initial else "◇ " if node.kind == "choice" else ""
    place = f' class="{node.place}"' if node.place else ""
    told = f" <small>{safe(', '.join(node.lines))}</small>" if node.lines else ""
    yield f'<li id="{ids[node.path]}"{place}>{marks}<b>{safe(node.name)}</b>{told}{_ways(ways.get(node.path, ()), ids)}'
    if node.inner:
        yield "<ul>"
        for one in node.inner:
            yield from _item(one, ids, ways)
        yield "</ul>"
    yield "</li>"


def _ways(arrows: Iterable[Arrow], ids: Mapping[str, str]) -> str:
    """A line for each way out of a state, with a link to where it leads."""
    told = []
    for arrow in arrows:
        dest = "the end" if arrow.dest == END else f'<a href="#{ids[arrow.dest]}">{safe(arrow.dest)}</a>'
        taken = ' class="taken"' if arrow.taken else ""
        told.append(f"<div{taken}>{safe(' '.join(arrow.lines))} → {dest}</div>")
    return "".join(told)


def safe(text: str) -> str:
    """Text as HTML shows it, and never reads it."""
    shown = (sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)
    return html.escape("".join(shown))
