"""Joint commits: a step's move in the transaction that the step has begun, and what waits for that one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fsmworkflow.acting import failed
from fsmworkflow.decide import decide
from fsmworkflow.errors import RolledBack, StoreError
from fsmworkflow.records import Event, Move
from fsmworkflow.store.lent import Lent

if TYPE_CHECKING:
    from fsmworkflow.drive import Drive

__all__ = ["lent_to", "take_after", "take_within"]


async def take_within(drive: Drive, event: Event, lent: Lent) -> None:
    """As `Drive.take`, for a step with a transaction: its move is committed there, or it is rolled back first."""
    failing: Event | None = None
    try:
        move = await decide(drive.workflow, drive.run, event, now=drive.store.now())
        if move.error is None:
            await drive.stop_left(move)
            failing = await _commit_within(drive, move, lent)
    finally:
        await lent.rollback()
    if failing is not None:
        await drive.take(failing)
    elif move.error is not None:
        await drive.commit(move)


async def _commit_within(drive: Drive, move: Move, lent: Lent) -> Event | None:
    """Commit a move where its step has written. Returns the step's failure, where what it wrote cannot be kept."""
    event, move = move.event, drive.finished(move)
    try:
        due = await lent.commit(move)
    except StoreError:
        raise
    except Exception as error:
        return failed(error, drive.run, event.state, event.began, event.remembered)
    drive.committed(move, due)
    return None


def lent_to(drive: Drive) -> tuple[str, int] | None:
    """The step, if there is one, whose transaction every other write waits for."""
    for state, visit in drive.steps if drive.worker.lent else ():
        lent = drive.worker.lent.get((drive.run.id, state, visit))
        if lent is not None and lent.alone and not lent.over:
            return state, visit
    return None


async def take_after(drive: Drive, name: tuple[str, int], event: Event) -> None:
    """Take an event after the end of a step for which every write waits, and which waits for nothing but its end.

    What is in the inbox, and what is due, is found again; the end of another step is taken where it still can be.
    """
    visits = {state: stay.visit for state, stay in drive.run.active.items()}
    await asyncio.wait([drive.steps[name]])
    try:
        if (first := drive.ended_step(name)) is not None:
            await drive.take(first)
    except RolledBack as error:  # it is run again, and what it held up is taken all the same
        await drive.anew(error)
    stay = drive.run.active.get(event.state)
    if event.began is not None and stay is not None and stay.visit == visits.get(event.state):
        await drive.take(event)
