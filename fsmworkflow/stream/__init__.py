"""Streams: records by the million through a workflow, in constant memory, gone on with after a crash.

    from fsmworkflow.stream import stream

    await stream(engine, order, "in.jsonl", {"output": "good.jsonl", "error": "bad.jsonl"}, key="import-7")

Each record is the data of one passage, from the initial state to a final one, in memory; a chunk of records is one move
of a run of a built-in workflow, whose data is the cursor: where the source is, how long each sink is, what was counted.
"""

from __future__ import annotations

from fsmworkflow.stream import sinks, sources
from fsmworkflow.stream.batch import Outcome, batch
from fsmworkflow.stream.pipe import Pipe
from fsmworkflow.stream.run import retry, stream
from fsmworkflow.stream.windows import window
from fsmworkflow.stream.words import Malformed, Progress, Sink, Source, StreamError

__all__ = [
    "Malformed",
    "Outcome",
    "Pipe",
    "Progress",
    "Sink",
    "Source",
    "StreamError",
    "batch",
    "retry",
    "sinks",
    "sources",
    "stream",
    "window",
]
