"""Workflows drawn: as text for Mermaid or Graphviz, and as a page that opens without a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from fsmworkflow.diagram.dot import dot
from fsmworkflow.diagram.mermaid import mermaid
from fsmworkflow.diagram.page import page
from fsmworkflow.diagram.picture import picture
from fsmworkflow.records import Entry, Run
from fsmworkflow.workflow import Workflow

__all__ = ["Format", "diagram"]

Format = Literal["mermaid", "dot", "html"]


def diagram(
    workflow: Workflow, run: Run | None = None, history: Sequence[Entry] = (), *, format: Format = "mermaid"
) -> str:
    """A workflow as a statechart, as text: for Mermaid, for Graphviz in DOT, or a page in HTML that holds all it needs.

    With a run, its current states stand out, with attempts and the next timer; with its `history` as well, the states
    and transitions that it came through, and how often. Names and conditions are labels, and cannot be anything else,
    whatever is in them. Raises DefinitionError for a workflow that is not well formed, ValueError for another format.
    """
    if format not in get_args(Format):
        raise ValueError(f"there is no format {format!r}: {', '.join(get_args(Format))}")
    seen = picture(workflow, run, history)
    if format == "html":
        return page(seen, run, history)
    return dot(seen) if format == "dot" else mermaid(seen)
