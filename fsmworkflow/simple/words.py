"""What is said of a simple machine: how far it is, how long it took, and the words that dataknobs-fsm has for ways."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from fsmworkflow.simple.walk import StateTime
from fsmworkflow.stream.words import Progress

__all__ = ["BatchProgress", "DataHandlingMode", "ExecutionMode", "Profile", "Result", "StreamProgress"]

Result = dict[str, Any]


class DataHandlingMode(enum.Enum):
    """What a step of a stream is given: its own copy, one that is made when it is touched, or the record itself."""

    COPY = "copy"
    REFERENCE = "reference"
    DIRECT = "direct"


class ExecutionMode(enum.Enum):
    """How dataknobs-fsm calls ways to look at a machine. Here a walk can always be stepped, stopped and timed."""

    STEP_BY_STEP = "step"
    BREAKPOINT = "breakpoint"
    TRACE = "trace"
    PROFILE = "profile"
    DEBUG = "debug"


class BatchProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How many records of a batch are done."""

    total: int
    completed: int
    succeeded: int

    @property
    def failed(self) -> int:
        """How many of them did not come to an end, or to one that is no success."""
        return self.completed - self.succeeded

    @property
    def progress(self) -> float:
        """Which part is done, from 0 to 1."""
        return self.completed / self.total if self.total else 1.0


class StreamProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a stream is; `errors` is as long as many records went wrong, `kinds` counts them by their class."""

    records_processed: int
    chunks_processed: int
    bytes_processed: int
    records_per_second: float
    elapsed_time: float
    errors: range
    kinds: dict[str, int]

    @classmethod
    def of(cls, progress: Progress) -> StreamProgress:
        """By the names of dataknobs-fsm."""
        return cls(
            records_processed=progress.records,
            chunks_processed=progress.chunks,
            bytes_processed=progress.read,
            records_per_second=progress.rate,
            elapsed_time=progress.seconds,
            errors=range(progress.errors + progress.malformed),
            kinds=progress.kinds,
        )


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """How long a record took: in all, and in each state, in seconds; `slowest` is the state with the most."""

    total: float
    transitions: int
    states: dict[str, StateTime]
    result: Result

    @property
    def slowest(self) -> str:
        return max(self.states, key=lambda name: self.states[name].seconds)
