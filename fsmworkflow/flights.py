"""Flights: runs that were in flight twice when their process died fly one at a time, which shows the one at fault."""

from __future__ import annotations

from typing import Protocol

from fsmworkflow.errors import Poisoned
from fsmworkflow.records import Run

__all__ = ["SUSPECT", "Flights", "poisoned"]

SUSPECT = 2
"""So many deaths make a run a suspect; from then on only a death with it in flight counts."""


class Flier(Protocol):
    """A drive of a suspect."""

    def wake(self) -> None:
        """Look whether it is its turn."""


class Flights:
    """Which suspect of this process is in flight, and which wait for their turn, in their order."""

    def __init__(self) -> None:
        self._flying: Flier | None = None
        self._waiting: dict[Flier, None] = {}

    def take(self, flier: Flier) -> bool:
        """Whether it is its turn. If not, it is woken when one has landed."""
        if self._flying is None:
            self._flying = flier
        if self._flying is flier:
            self._waiting.pop(flier, None)
            return True
        self._waiting[flier] = None
        return False

    def land(self, flier: Flier) -> None:
        """It flies no more, and waits no more."""
        self._waiting.pop(flier, None)
        if self._flying is flier:
            self._flying = None
            for other in self._waiting:
                other.wake()
                return


def poisoned(run: Run) -> Poisoned:
    """Why a run is parked."""
    where = f"state {run.state!r}, visit {run.visit}"
    return Poisoned(
        f"{run.deaths} processes died while run {run.workflow}/{run.key} was in flight in {where}: look at what it "
        "does to its process (memory, os._exit, a fault in C code); retry lets it go on, rerun leads it elsewhere"
    )
