"""A picture as one page in HTML, with the library that draws it inside. It opens without a network, and asks for none.

What is too large to be laid out is drawn with its states closed, and listed.

The library is Mermaid's small edition, `@mermaid-js/tiny` 11.17.2, MIT, its file as it is published, compressed: see
`mermaid.LICENSE`.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterable, Sequence
from importlib.resources import files

from fsmworkflow.diagram.mermaid import drawn
from fsmworkflow.diagram.outline import closed, outlined, safe
from fsmworkflow.diagram.picture import Picture
from fsmworkflow.records import Entry, Run

__all__ = ["page"]

MOVES = 1_000
"""So many of the last moves of a run are listed."""
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; font-src data:"
STYLE = """
body { font-family: system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
p { margin: .2rem 0; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; overflow-x: auto; }
pre { font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: .85rem; }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top; }
td { overflow-wrap: anywhere; }
.key { display: inline-block; padding: 0 .5rem; margin-right: .5rem; border-radius: 4px; font-size: .85rem; }
.current { background: #ffe08a; border: 2px solid #b8860b; }
.failed { background: #ffcdd2; border: 2px solid #b71c1c; }
.visited { border: 2px solid #2e7d32; }
.states, .states ul { list-style: none; padding-left: 1.5rem; font-size: .9rem; border-left: 1px solid #ddd; }
.states li { margin: .5rem 0; padding: .1rem .4rem; border-radius: 4px; overflow-wrap: anywhere; }
.states li.current:has(> ul), .states li.failed:has(> ul) { background: none; }
.states li:target { outline: 3px solid #1565c0; }
.states div { padding-left: 1.5rem; }
.states small, .states div { color: #555; }
.states div.taken { color: #2e7d32; font-weight: bold; }
svg path.taken { stroke: #2e7d32 !important; stroke-width: 3px !important; }
"""
DRAW = """
const figure = document.querySelector("figure"), source = figure.textContent;
mermaid.initialize({ startOnLoad: false, securityLevel: "strict", htmlLabels: true, theme: "neutral",
                     maxTextSize: 10000000, maxEdges: 100000 });
mermaid.render("picture", source).then(({ svg }) => {
    figure.innerHTML = svg;
    for (const number of TAKEN)
        for (const path of figure.querySelectorAll(`path[data-id="edge${number}"]`)) path.classList.add("taken");
    document.body.dataset.drawn = "yes";
}).catch((error) => {
    const told = document.createElement("p");
    told.textContent = `It could not be drawn: ${error.message}`;
    figure.before(told);
    document.body.dataset.drawn = "no";
});
"""


def page(picture: Picture, run: Run | None, history: Sequence[Entry]) -> str:
    """The page of a picture, with the last moves of the run in a table."""
    shown = closed(picture)
    title = picture.name if run is None else f"{picture.name}/{run.key}"
    parts = [
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{safe(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{safe(title)}</h1>",
        *(f"<p>{safe(fact)}</p>" for fact in picture.facts),
        *_legend(picture),
        *(() if shown is None else _figure(shown)),
        *(() if shown is picture else outlined(picture)),
        *_table(history),
        *(() if shown is None else _drawing(shown)),
        "</body>\n</html>\n",
    ]
    return "\n".join(parts)


def _figure(picture: Picture) -> Iterable[str]:
    yield f"<figure><pre>{safe(drawn(picture)[0])}</pre></figure>"


def _drawing(picture: Picture) -> Iterable[str]:
    """What draws the figure: it stands at the end, so that the page is there before."""
    library = gzip.decompress(files("fsmworkflow.diagram").joinpath("mermaid.tiny.js.gz").read_bytes()).decode()
    yield f"<script>{library}</script>"
    yield f"<script>{DRAW.replace('TAKEN', json.dumps(drawn(picture)[1]))}</script>"


def _legend(picture: Picture) -> Iterable[str]:
    places = {node.place for node in picture.all()}
    words = {"current": "where it is", "failed": "where it stopped", "visited": "where it was"}
    if shown := [f'<span class="key {place}">{told}</span>' for place, told in words.items() if place in places]:
        yield f"<p>{''.join(shown)}</p>"


def _table(history: Sequence[Entry]) -> Iterable[str]:
    if not history:
        return
    yield "<table>\n<tr><th>version<th>at<th>event<th>from<th>to<th>status</tr>"
    for entry in history[-MOVES:]:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry.at))
        cells = (str(entry.version), at, entry.event, entry.source, entry.dest, entry.status)
        yield f"<tr>{''.join(f'<td>{safe(cell)}' for cell in cells)}</tr>"
    yield "</table>"
