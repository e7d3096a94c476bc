"""fsmworkflow: state machines that survive a crash. A workflow engine that lives inside a Python program."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsmworkflow.conditions import Condition, field, payload  # noqa: I001 (a name a line would be a page)
    from fsmworkflow.context import WorkflowContext
    from fsmworkflow.definition import WorkflowDefinition
    from fsmworkflow.engine import Engine
    from fsmworkflow.errors import (
        ChildFailed, CodecError, ConditionError, DefinitionChanged, DefinitionError, EndlessLoop, EngineClosed,
        EventNotFound, FSMWorkflowError, InputDiffers, InvalidKey, LeaseLost, MergeConflict, NoTransition, Refused,
        RunFailed, RunNotFound, RunOver, ScheduleNotFound, SchemaError, Stale, StepTimeout, StoreError,
        StoreUnavailable, TransactionError, UnknownEvent, UnknownState, UnknownWorkflow,
    )  # fmt: skip
    from fsmworkflow.health import Health
    from fsmworkflow.hooks import Hook, LogHook
    from fsmworkflow.machine import PersistentWorkflowStateMachine
    from fsmworkflow.records import Entry, Event, Failure, Move, Run
    from fsmworkflow.retry import Retry
    from fsmworkflow.schedule import Schedule
    from fsmworkflow.settings import DBConfig
    from fsmworkflow.store import Store, open_store
    from fsmworkflow.versions import Plan, Planned
    from fsmworkflow.workflow import State, To, Transition, Workflow, WorkflowStep

__all__ = [
    "ChildFailed", "CodecError", "Condition", "ConditionError", "DBConfig", "DefinitionChanged", "DefinitionError",
    "EndlessLoop", "Engine", "EngineClosed", "Entry", "Event", "EventNotFound", "FSMWorkflowError", "Failure",
    "Health", "Hook", "InputDiffers", "InvalidKey", "LeaseLost", "LogHook", "MergeConflict", "Move", "NoTransition",
    "PersistentWorkflowStateMachine", "Plan", "Planned", "Refused", "Retry", "Run", "RunFailed", "RunNotFound",
    "RunOver", "Schedule", "ScheduleNotFound", "SchemaError", "Stale", "State", "StepTimeout", "Store", "StoreError",
    "StoreUnavailable", "To", "TransactionError", "Transition", "UnknownEvent", "UnknownState", "UnknownWorkflow",
    "Workflow", "WorkflowContext", "WorkflowDefinition", "WorkflowStep", "field", "open_store", "payload",
]  # fmt: skip

_FILES = (
    "errors", "records", "hooks", "retry", "conditions", "workflow", "definition", "context", "store", "settings",
    "machine", "engine", "schedule", "health", "versions",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public name from its file when it is first used: importing the package costs next to nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    files = (import_module(f"{__name__}.{file}") for file in _FILES)  # each imports only those before it, or nearly
    value = globals()[name] = getattr(next(file for file in files if name in file.__all__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
