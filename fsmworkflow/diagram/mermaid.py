"""A picture as text for Mermaid, a stateDiagram-v2. Names are numbers there: what a user wrote is only ever a label."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fsmworkflow.diagram.path import ANY
from fsmworkflow.diagram.picture import END, Arrow, Node, Picture

__all__ = ["drawn", "mermaid"]

PLAIN = frozenset(" ,/[]")
"""What stands in a label as it is, beside letters and digits: nothing that Mermaid, Markdown or HTML reads."""
READ = re.compile(r"direction(?= )|\[(?=\[)", re.IGNORECASE)
"""What Mermaid reads wherever in a line it stands: `direction LR` and `[[fork]]`."""
LOOKS = (
    "classDef region stroke-dasharray:6 4",
    "classDef visited stroke:#2e7d32,stroke-width:2px",
    "classDef current fill:#ffe08a,stroke:#b8860b,stroke-width:3px,color:#222222",
    "classDef failed fill:#ffcdd2,stroke:#b71c1c,stroke-width:3px,color:#222222",
    "classDef inside stroke:#b8860b,stroke-width:3px",
)


def mermaid(picture: Picture) -> str:
    """The text of a picture."""
    return drawn(picture)[0]


def drawn(picture: Picture) -> tuple[str, list[int]]:
    """The text of a picture, and which of its arrows were taken: Mermaid numbers them as they stand in the text."""
    ids = {node.path: f"s{number}" for number, node in enumerate(picture.all(), 1)}
    lines, taken = ["stateDiagram-v2"], []
    for node in picture.nodes:
        lines += _state(node, ids, 1)
    lines += [f"    [*] --> {ids[node.path]}" for node in picture.nodes if node.initial]
    if any(arrow.source == ANY for arrow in picture.arrows):
        lines.append('    state "any state" as any')
    first = sum(" --> " in line for line in lines)
    for number, arrow in enumerate(picture.arrows, first):
        lines.append(f"    {_end(arrow.source, ids)} --> {_end(arrow.dest, ids)}{_told(arrow)}")
        taken += [number] if arrow.taken else []
    looks = [f"    class {ids[node.path]} {look}" for node in picture.all() if (look := _look(node))]
    lines += [f"    {look}" for look in LOOKS if any(one.endswith(look.split()[1]) for one in looks)] + looks
    return "\n".join(lines) + "\n", taken


def _state(node: Node, ids: dict[str, str], level: int) -> Iterator[str]:
    pad = "    " * level
    name = f"◇ {node.name}" if node.kind == "choice" else node.name
    label = "<br/>".join(map(_text, [name, *node.lines]))
    yield f'{pad}state "{label}" as {ids[node.path]}' + (" {" if node.inner else "")
    if not node.inner:
        return
    regions = node.kind == "parallel"
    for one in node.inner:
        yield from _state(one, ids, level + 1)
    for one in node.inner:
        if one.initial and not regions:
            yield f"{pad}    [*] --> {ids[one.path]}"
        if one.kind == "final":
            yield f"{pad}    {ids[one.path]} --> [*]"
    yield f"{pad}}}"


def _end(path: str, ids: dict[str, str]) -> str:
    return "any" if path == ANY else "[*]" if path == END else ids[path]


def _told(arrow: Arrow) -> str:
    return f" : {'<br/>'.join(map(_text, arrow.lines))}" if arrow.lines else ""


def _look(node: Node) -> str:
    if node.inner:
        return "inside" if node.place in ("current", "failed") else "region" if node.kind == "region" else ""
    return node.place


def _text(text: str) -> str:
    """A label of one line. All but the plainest signs become their numbers, so no text can be anything else."""
    shown = (sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in " ".join(text.split()))
    told = "".join(sign if sign.isalnum() or sign in PLAIN else f"#{ord(sign)};" for sign in shown) or " "
    return READ.sub(lambda word: f"#{ord(word[0][0])};{word[0][1:]}", told)
