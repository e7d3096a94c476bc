"""The table `workflow_states` of the first FSM-Workflow, and the runs that its unfinished rows become."""

from __future__ import annotations

import json

from fsmworkflow.codec import Codec, digests
from fsmworkflow.errors import CodecError, log
from fsmworkflow.records import Active, Run
from fsmworkflow.store.rows import Row


def legacy_run(row: Row, now: float) -> Run | None:
    """Its key is the row's id. It begins in the step that was begun last; the data is nested once for each resume."""
    data = json.loads(row["context"])
    while isinstance(data, dict) and list(data) == ["data"] and isinstance(data["data"], dict):
        data = data["data"]
    try:
        fields = Codec().start(data)
    except CodecError as error:
        log.error("row %s of the table workflow_states cannot be taken over: %s", row["key"], error)
        return None
    return Run(
        workflow=row["workflow"],
        key=row["key"],
        active={row["state"]: Active(0)},
        fields=fields,
        hashes=digests(fields),
        due=now,
        created=now if row["created"] is None else row["created"],
        updated=now if row["updated"] is None else row["updated"],
    )
