"""Every error that fsmworkflow raises, each with a stable `code` that survives renaming and translation.

FSMWorkflowError
├── DefinitionError (ValueError)        a workflow says something that cannot be meant
├── CodecError (ValueError)             data that would not come back equal
├── ConditionError                      a condition that cannot be answered
├── NoTransition                        a step ended, and nothing leads on
├── EndlessLoop                         automatic transitions that never come to rest
├── MergeConflict                       two sides changed the same key
├── ChildFailed                         a run that a state waited for has not ended well
├── TooDeep                             a workflow that contains itself without an end
├── StepTimeout (TimeoutError)          a step took longer than it may
├── RunFailed                           a run that was waited for has failed
├── RunNotFound (LookupError)           no run of that workflow and key
├── RunOver                             the run has ended for good, and takes no more events
├── UnknownState (LookupError)          no such state, or none in which a run could go on
├── InvalidKey (ValueError)             a key that cannot be kept
├── ScheduleNotFound (LookupError)      no schedule of that name
├── UnknownWorkflow (LookupError)       the engine was not given this workflow
├── DefinitionChanged                   the run's state or data no longer fits the workflow
├── InputDiffers                        the key is taken by a run with another input
├── Poisoned                            processes died while this run was in flight: it is parked
├── EngineClosed                        the engine is not open
├── TransactionError                    a step's transaction cannot be had, or was taken back
└── StoreError                          the store cannot do its work
    ├── StoreUnavailable                it may again: waited for, then retried
    ├── Refused                         it does not take what was to be written, and never will: the run fails
    ├── SchemaError                     the tables are newer than this code, or not ours
    ├── LeaseLost                       another owner has claimed the run: nothing was written
    ├── RolledBack                      a step's transaction had no effect: the step is run again
    └── Stale                           an older event has been posted meanwhile: nothing was written
"""

from __future__ import annotations

import difflib
import logging
import reprlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from fsmworkflow.records import Run

__all__ = [
    "ChildFailed", "CodecError", "ConditionError", "DeadlineExceeded", "DefinitionChanged", "DefinitionError",
    "EndlessLoop", "EngineClosed", "EngineOpen", "EventNotFound", "FSMWorkflowError", "InputDiffers", "InvalidKey",
    "LeaseLost", "MergeConflict", "NoTransition", "NotAccepted", "Poisoned", "Refused", "RolledBack", "RunFailed",
    "RunNotFound", "RunOver", "ScheduleNotFound", "SchemaError", "Stale", "StepTimeout", "StoreError",
    "StoreUnavailable", "TooDeep", "TransactionError", "UnknownEvent", "UnknownState", "UnknownWorkflow",
]  # fmt: skip

log = logging.getLogger("fsmworkflow")
"""Where everything is said that is not raised to anybody."""

WIDTH = 200
"""How many characters are shown of a value."""
_repr = reprlib.Repr()  # looks at 20 items of anything, three levels deep, however large it is
_repr.maxlevel = 3
_repr.maxdict = _repr.maxlist = _repr.maxtuple = _repr.maxset = _repr.maxfrozenset = 20
_repr.maxstring = _repr.maxother = _repr.maxlong = WIDTH

COMPARED = 100_000
"""No name is sought that is near to an unknown one where the product of their lengths is above this: it takes long."""


class FSMWorkflowError(Exception):
    """The root of all errors of this package. `code` is stable, the message is for people."""

    code: ClassVar[str] = "error"


class DefinitionError(FSMWorkflowError, ValueError):
    """A workflow is not well formed. `.problems` lists each with the place where it stands."""

    code = "definition"

    def __init__(self, workflow: str, problems: Iterable[str]) -> None:
        self.workflow = workflow
        self.problems = tuple(problems)
        super().__init__(f"workflow {workflow!r} is not well formed:\n" + "\n".join(f"  - {p}" for p in self.problems))


class CodecError(FSMWorkflowError, ValueError):
    """A value would not come back equal from the store, so it was refused before any write. Never retried.

    `.path` says where the value stands, as in `data.items[3].price`.
    """

    code = "codec"

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class ConditionError(FSMWorkflowError):
    """A condition cannot be answered: a missing field, or a value of a kind that the operator does not know."""

    code = "condition"


class NoTransition(FSMWorkflowError):
    """A step ended and no transition leads on. The message lists each condition with the values that it saw."""

    code = "no_transition"


class EndlessLoop(FSMWorkflowError):
    """More than 1,000 moves without a step, an event or time between them. The message names the cycle."""

    code = "endless_loop"


class MergeConflict(FSMWorkflowError):
    """A step changed a key that another move had changed meanwhile, and `merge=` does not say how to join them."""

    code = "merge"


class ChildFailed(FSMWorkflowError):
    """A child failed, was cancelled or parked, and its parent's state says nothing of that.

    `.key` is the child's key, `.run` the child (None where its key was taken by another run), `.type` and `.message`
    what its own error said.
    """

    code = "child_failed"

    def __init__(self, key: str, run: Run | None) -> None:
        self.key, self.run = key, run
        self.type, self.message = type(self).__qualname__, "its key is taken by another run"
        if run is not None:
            self.type, self.message = "", f"it ended in state {run.state!r}"
            if run.error is not None:
                self.type, self.message = run.error.type, run.error.message
        what = f"child {key!r}" if run is None else f"child {run.workflow}/{key} {run.status} in state {run.state!r}"
        super().__init__(f"{what}: {self.type}{': ' if self.type else ''}{self.message}")


class TooDeep(FSMWorkflowError):
    """A run would make children more than 16 runs deep, or with keys (parent/state/visit/n) too long to be kept."""

    code = "too_deep"


class DeadlineExceeded(FSMWorkflowError, TimeoutError):
    """A run had not ended by the `deadline` of its workflow."""

    code = "deadline"


class NotAccepted(FSMWorkflowError):
    """No active state, nor one around it, has a transition for this event. The message lists what is accepted."""

    code = "not_accepted"


class Poisoned(FSMWorkflowError):
    """So many processes died while this run was in flight in one visit that it is parked."""

    code = "poisoned"


class StepTimeout(FSMWorkflowError, TimeoutError):
    """A step took longer than its `timeout` and was cancelled."""

    code = "timeout"


class RunFailed(FSMWorkflowError):
    """A run that was waited for has failed. `.run` is the run, `__cause__` the step's own error where it is known."""

    code = "run_failed"

    def __init__(self, run: Run) -> None:
        self.run = run
        what = f": {run.error.type}: {run.error.message}" if run.error else ""
        if run.status == "failed" and run.error is None:
            what = ", an end that counts as failed"
        super().__init__(f"{run.workflow}/{run.key} {run.status} in state {run.state!r}{what}")


class RunNotFound(FSMWorkflowError, LookupError):
    """There is no run of that workflow with that key."""

    code = "run_not_found"

    def __init__(self, workflow: str, key: str) -> None:
        self.workflow, self.key = workflow, key
        super().__init__(f"there is no run {key!r} of workflow {workflow!r}")


class EventNotFound(FSMWorkflowError, LookupError):
    """The run has no event of that id."""

    code = "event_not_found"


class UnknownEvent(FSMWorkflowError, LookupError):
    """No transition of the workflow has a trigger of that name. Names that begin with `$` are the engine's own."""

    code = "unknown_event"


class RunOver(FSMWorkflowError):
    """The run has ended for good, so that it takes no more events. `.status` says how it ended."""

    code = "run_over"

    def __init__(self, workflow: str, key: str, status: str, *, undone: bool = False) -> None:
        self.workflow, self.key, self.status = workflow, key, status
        why = "what it had done is undone, so nothing can go on in it" if undone else "it takes no more events"
        super().__init__(f"run {key!r} of workflow {workflow!r} is {status}: {why}")


class UnknownState(FSMWorkflowError, LookupError):
    """The workflow has no such state, or none in which a run could go on."""

    code = "unknown_state"


class InvalidKey(FSMWorkflowError, ValueError):
    """A key that cannot be kept: it must be text of 1 to 200 characters, none of them a control character."""

    code = "invalid_key"


class ScheduleNotFound(FSMWorkflowError, LookupError):
    """There is no schedule of that name, or it has been removed."""

    code = "schedule_not_found"


class UnknownWorkflow(FSMWorkflowError, LookupError):
    """The engine was not given a workflow of that name; pass it in `Engine(workflows=[...])`."""

    code = "unknown_workflow"

    def __init__(self, workflow: str) -> None:
        self.workflow = workflow
        super().__init__(f"this engine does not know workflow {workflow!r}: pass it in Engine(workflows=[...])")


class DefinitionChanged(FSMWorkflowError):
    """A run does not fit the workflow as it now is: its state is gone, or its data does not decode. Left untouched."""

    code = "definition_changed"


class InputDiffers(FSMWorkflowError):
    """The key is taken by a run with a different input, and the caller asked to be told (`different="refuse"`)."""

    code = "input_differs"


class EngineClosed(FSMWorkflowError):
    """The engine is not open: use it inside `async with Engine(...)`."""

    code = "engine_closed"


class EngineOpen(FSMWorkflowError):
    """The engine is open already, and cannot be entered again."""

    code = "engine_open"


class TransactionError(FSMWorkflowError):
    """A step's transaction cannot be had here, was misused, or took too long. What the step wrote in it is gone."""

    code = "transaction"


class StoreError(FSMWorkflowError):
    """The store cannot do its work, for a reason that waiting does not mend."""

    code = "store"


class StoreUnavailable(StoreError):
    """The store cannot be reached, is locked or full; the same call may succeed later. Moves are tried again."""

    code = "store_unavailable"


class Refused(StoreError):
    """The database does not take what was to be written, as a constraint or a limit of it says.

    An event that brought it is rejected, else the run fails. `.rows` are the id and version of a run that cannot even
    be claimed, where it was that.
    """

    code = "refused"
    rows: Iterable[tuple[int, int]] = ()


class SchemaError(StoreError):
    """The tables are newer than this code, or a table of one of our names is not ours. Nothing was changed."""

    code = "schema"


class LeaseLost(StoreError):
    """Another owner has claimed this run, so nothing was written. Its work here is stopped; the other one goes on."""

    code = "lease_lost"

    @classmethod
    def of(cls, run: Run) -> LeaseLost:
        return cls(
            f"run {run.workflow}/{run.key} was claimed by another owner since version {run.version}, epoch "
            f"{run.epoch}: nothing was written, the other one goes on"
        )


class RolledBack(StoreError):
    """A step's transaction was rolled back for a reason that passes, as a serialization failure or a lost connection.

    It had no effect, so that the step is run again, in the same attempt.
    """

    code = "rolled_back"


class Stale(StoreError):
    """A move was decided without an event that had been posted meanwhile, or its own was known already.

    Nothing was written; the caller reads the inbox and decides again.
    """

    code = "stale"

    @classmethod
    def of(cls, run: Run) -> Stale:
        return cls(
            f"the inbox of run {run.workflow}/{run.key} is not as it was when this move was decided, at version "
            f"{run.version}: nothing was written, read it and decide again"
        )


def cut(value: object) -> str:
    """The repr of a value, cut at 200 characters, however large the value is. Never raises."""
    try:
        if isinstance(value, str):
            text = repr(value[:WIDTH])
        elif value is None or isinstance(value, (int, float)):
            text = repr(value)
        else:  # of a dict that decodes its fields late, only those that are told
            text = storable(_repr.repr_dict(value, 3) if isinstance(value, dict) else _repr.repr(value))
    except Exception:  # an int of more digits than Python writes
        return f"<{type(value).__qualname__} without a repr>"
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def told(error: Exception) -> str:
    """The type and message of an error, cut."""
    return storable(f"{type(error).__name__}: {error}"[: 4 * WIDTH])


def storable(text: str) -> str:
    """Text of any origin as stores keep it: without NUL and lone surrogates."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for messages: the known name nearest to an unknown one, or nothing."""
    names = list(names)
    if len(name) * sum(map(len, names)) > COMPARED:
        return ""
    found = difflib.get_close_matches(name, names, 1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def name_problem(name: Any, what: str, *, dots: bool = True) -> list[str]:
    """What is wrong with a name of a workflow, state, trigger or key: nothing, or one sentence."""
    if not name or not isinstance(name, str):
        return [f"{what} {name!r} must be text that is not empty"]
    if len(name) > 200:
        return [f"{what} {name[:30]!r}... is {len(name)} characters long; 200 are allowed"]
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in name):
        return [f"{what} {name!r} holds control characters"]
    if not dots and "." in name:
        return [f"{what} {name!r} holds a dot, which separates nested states"]
    return []
