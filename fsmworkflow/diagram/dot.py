"""A picture as text for Graphviz, a digraph in DOT. Names are numbers there: what a user wrote is only ever a label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fsmworkflow.diagram.path import ANY
from fsmworkflow.diagram.picture import END, Arrow, Node, Picture

__all__ = ["dot"]

HEAD = """digraph {
    compound=true; rankdir=TB; fontname="Helvetica"; labelloc=t;
    node [shape=box, style="rounded,filled", fillcolor="#f4f4fb", color="#5a5a8c", fontname="Helvetica", fontsize=12];
    edge [color="#444444", fontname="Helvetica", fontsize=10];
"""
MANY, QUICK = 200, "    nslimit=2; nslimit1=2; mclimit=0.5;"
"""From so many arrows on Graphviz shall look for a good place less long: it may take minutes else."""
LOOKS = {
    "": "",
    "visited": ', color="#2e7d32", penwidth=2',
    "current": ', fillcolor="#ffe08a", color="#b8860b", penwidth=3',
    "failed": ', fillcolor="#ffcdd2", color="#b71c1c", penwidth=3',
}
DOT = 'shape=circle, style=filled, fillcolor=black, width=0.15, label=""'
BULL = 'shape=doublecircle, style=filled, fillcolor=black, width=0.12, label=""'


def dot(picture: Picture) -> str:
    """The text of a picture."""
    ids = {node.path: f"s{number}" for number, node in enumerate(picture.all(), 1)}
    holders = {node.path for node in picture.all() if node.inner}
    lines = [f"    label={_text([picture.name, *picture.facts])};"]
    lines += [QUICK] if len(picture.arrows) > MANY else []
    for node in picture.nodes:
        lines += _state(node, ids, 1)
    lines += _first(picture.nodes, "", ids, holders, 1)
    if any(arrow.source == ANY for arrow in picture.arrows):
        lines.append('    any [label="any state", style="rounded,dashed"];')
    if any(arrow.dest == END for arrow in picture.arrows):
        lines.append(f"    end [{BULL}];")
    lines += [_arrow(arrow, ids, holders) for arrow in picture.arrows]
    return HEAD + "\n".join(lines) + "\n}\n"


def _state(node: Node, ids: dict[str, str], level: int) -> Iterator[str]:
    pad, name = "    " * level, ids[node.path]
    if not node.inner:
        shape = "shape=diamond, style=filled, " if node.kind == "choice" else ""
        double = "peripheries=2, " if node.kind == "final" else ""
        yield f"{pad}{name} [{shape}{double}label={_text([node.name, *node.lines])}{LOOKS[node.place]}];"
        return
    style = "rounded,dashed" if node.kind == "region" else "rounded"
    colour = "#b8860b" if node.place in ("current", "failed") else "#5a5a8c"
    yield f"{pad}subgraph cluster_{name} {{"
    yield f'{pad}    label={_text([node.name, *node.lines])}; style="{style}"; color="{colour}"; fontsize=12;'
    yield f'{pad}    {name} [shape=point, style=invis, width=0.01, label=""];'
    for one in node.inner:
        yield from _state(one, ids, level + 1)
    if node.kind != "parallel":
        holders = {one.path for one in node.inner if one.inner}
        yield from _first(node.inner, name, ids, holders, level + 1)
    yield f"{pad}}}"


def _first(nodes: tuple[Node, ...], scope: str, ids: dict[str, str], holders: set[str], level: int) -> Iterator[str]:
    """The black spot from which a scope begins."""
    pad = "    " * level
    for node in nodes:
        if node.initial:
            yield f"{pad}first{scope} [{DOT}];"
            yield f"{pad}first{scope} -> {ids[node.path]}{_clipped(None, node.path, ids, holders, [])};"


def _arrow(arrow: Arrow, ids: dict[str, str], holders: set[str]) -> str:
    source = "any" if arrow.source == ANY else ids[arrow.source]
    dest = "end" if arrow.dest == END else ids[arrow.dest]
    attributes = [f"label={_text(arrow.lines)}"] if arrow.lines else []
    attributes += ['color="#2e7d32", penwidth=2.5'] if arrow.taken else []
    return f"    {source} -> {dest}{_clipped(arrow.source, arrow.dest, ids, holders, attributes)};"


def _clipped(source: str | None, dest: str, ids: dict[str, str], holders: set[str], attributes: list[str]) -> str:
    """An arrow of a state that holds others ends at its border, unless it leads back to what is around it."""
    inwards = source is not None and (source.startswith(f"{dest}.") or source == dest)
    found = list(attributes)
    if source in holders and not inwards:
        found.append(f"ltail=cluster_{ids[source or '']}")
    if dest in holders and not inwards:
        found.append(f"lhead=cluster_{ids[dest]}")
    return f" [{', '.join(found)}]" if found else ""


def _text(lines: Iterable[str]) -> str:
    """A label in quotes. Graphviz reads entities in it, so `&` is written as one."""
    told = []
    for line in lines:
        shown = (sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in " ".join(line.split()))
        told.append("".join({"\\": "\\\\", '"': '\\"', "&": "&amp;"}.get(sign, sign) for sign in shown))
    return '"' + "\\n".join(told) + '"'
