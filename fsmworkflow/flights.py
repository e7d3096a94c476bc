"""Flights: runs that were in flight twice when their process died fly one at a time, which shows the one at fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsmworkflow.actions import settle_ended
from fsmworkflow.errors import Poisoned, log
from fsmworkflow.failures import failure
from fsmworkflow.records import PARKED, STEERING, Event, replace
from fsmworkflow.versions import of_this

if TYPE_CHECKING:
    from fsmworkflow.drive import Drive

__all__ = ["SUSPECT", "Flights", "fly"]

SUSPECT = 2
"""So many deaths make a run a suspect; from then on only a death with it in flight counts."""


class Flights:
    """Which runs of this process that a death has marked are in flight, and which wait for their turn, in their order.

    A suspect flies beside no other that is marked, lest it pay for the deeds of that one.
    """

    def __init__(self) -> None:
        self._flying: dict[Drive, bool] = {}  # and whether it is a suspect
        self._waiting: dict[Drive, bool] = {}

    def take(self, drive: Drive, *, suspect: bool) -> bool:
        """Whether it is its turn. If not, it is woken when it may be."""
        mine = not self._flying or drive in self._flying or not (suspect or any(self._flying.values()))
        (self._flying if mine else self._waiting)[drive] = suspect
        if mine:
            self._waiting.pop(drive, None)
        return mine

    def land(self, drive: Drive) -> None:
        """It flies no more, and waits no more."""
        self._waiting.pop(drive, None)
        self._flying.pop(drive, None)
        if not self._flying:
            for other in [other for other, suspect in self._waiting.items() if not suspect] or [*self._waiting][:1]:
                other.wake()


async def fly(drive: Drive) -> bool:
    """Turns of a run that was in flight when its process died: if twice, it says so before each, and flies alone.

    Until it is out of that visit. False when nothing is next: it rests, or has been parked.
    """
    more, flights = drive.run.deaths < drive.worker.deaths, drive.worker.flights
    if not more:
        await _park(drive)
    try:
        while more and drive.run.deaths > 0:
            if not drive.steps and drive.run.due is not None and drive.run.due > drive.store.now():
                flights.land(drive)  # a pause may be long
                drive.fit()
                more = await drive.turn()
            elif flights.take(drive, suspect=drive.run.deaths >= SUSPECT):
                await _take_off(drive)
                more = await drive.turn()
            else:
                more = await _grounded(drive)
    finally:
        flights.land(drive)
    return more


async def _take_off(drive: Drive) -> None:
    """A suspect says that it flies, and only then is seen as this definition has it, which may end processes."""
    if drive.run.deaths >= SUSPECT and drive.run.flight != drive.run.epoch:
        after = replace(drive.run, flight=drive.run.epoch)
        await drive.store.settle(drive.run, after)
        drive.run = after
    drive.fit()


async def _grounded(drive: Drive) -> bool:
    """Wait for its turn, open only to who steers it by hand."""
    if drive.unread:
        await drive.look()
    steering = next((event for event in drive.inbox if event.name in STEERING and not drive.run.over), None)
    if steering is None or not of_this(drive.workflow, drive.run):
        await drive.wait()
        return not drive.stopping
    await drive.take(steering)
    return True


async def _park(drive: Drive) -> None:
    """Too many processes died while it was in flight. Where it had ended, its actions did it, and stay listed."""
    run = drive.run
    error = Poisoned(
        f"{run.deaths} processes died while run {run.workflow}/{run.key} was in flight in state {run.state!r}, visit "
        f"{run.visit}: look at what it does to its process (memory, os._exit, a fault in C code); retry lets it go on, "
        "rerun leads it elsewhere"
    )
    log.error("%s", error)
    if run.over:
        await settle_ended(drive, error)
    else:
        await drive.take(Event(name=PARKED, failure=failure(error, run, next(reversed(run.active)))))
