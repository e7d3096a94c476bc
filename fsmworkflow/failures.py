"""What a guard or a step raised, as the row keeps it."""

from __future__ import annotations

import asyncio
import traceback

from fsmworkflow.errors import FSMWorkflowError, storable
from fsmworkflow.records import Active, Failure, Run

__all__ = ["OWN", "asked_to_stop", "failure"]

OWN = (Exception, asyncio.CancelledError)
"""What a guard or step may raise as its own error."""
TRACE = 20_000
"""So many characters of a message or traceback are kept."""


def asked_to_stop(error: BaseException) -> bool:
    """Whether a CancelledError came from outside. One that a guard or step brought on itself is its own error."""
    # The error is asked first: a passage of a stream has no event loop, and so no task.
    return isinstance(error, asyncio.CancelledError) and bool((task := asyncio.current_task()) and task.cancelling())


def failure(error: BaseException, run: Run, state: str) -> Failure:
    """An error as the row keeps it: its type, message and traceback, the message and trace cut to a bearable length."""
    undoing = {undo.state: undo for undo in run.undo.left[-1:] if run.status == "compensating"}
    stay = undoing.get(state) or run.active.get(state, Active(run.version))
    trace = "".join(traceback.format_exception(error))
    return Failure(
        type=type(error).__qualname__,
        message=storable(_said(error))[:TRACE],
        traceback=storable(trace)[-TRACE:],
        state=state,
        visit=stay.visit,
        attempt=stay.attempt,
        code=error.code if isinstance(error, FSMWorkflowError) else None,
    )


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an error of the user's whose text cannot be made
        return ""
