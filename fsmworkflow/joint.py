"""Joint commits: a move in the transaction that its step has begun, or in the commit that makes its event durable."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fsmworkflow.acting import failed
from fsmworkflow.decide import decide
from fsmworkflow.errors import Refused, RolledBack, Stale, StoreError
from fsmworkflow.records import Event, Move, replace
from fsmworkflow.store.lent import Lent
from fsmworkflow.store.writer import begun
from fsmworkflow.tasks import Named, ended_step

if TYPE_CHECKING:
    from fsmworkflow.drive import Drive

__all__ = ["lent_to", "send", "sent", "take_after", "take_within"]


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


def lent_to(drive: Drive) -> Named | None:
    """The step, if there is one, whose transaction every other write waits for."""
    for state, visit in drive.steps if drive.worker.lent else ():
        lent = drive.worker.lent.get((drive.run.id, state, visit))
        if lent is not None and lent.alone and not lent.over:
            return state, visit
    return None


async def take_after(drive: Drive, name: Named, event: Event) -> None:
    """Take an event after the end of a step for which every write waits, and which waits for nothing but its end.

    What is in the inbox, and what is due, is found again; the end of another step is taken where it still can be.
    """
    visits = {state: stay.visit for state, stay in drive.run.active.items()}
    await asyncio.wait([drive.steps[name]])
    try:
        if (first := ended_step(drive, name)) is not None:
            await drive.take(first)
    except RolledBack as error:  # it is run again, and what it held up is taken all the same
        await drive.anew(error)
    stay = drive.run.active.get(event.state)
    if event.began is not None and stay is not None and stay.visit == visits.get(event.state):
        await drive.take(event)


async def send(drive: Drive, event: Event) -> Event | None:
    """Take a new event at once, in the commit that makes it durable. Only of a held run, while it rests.

    Returns the event as it then is; None where it cannot be taken now and is to be posted: no active state accepts
    it, or an older event is due, or (Stale) has been posted meanwhile.
    """
    await sent(drive)
    if not drive.idle or drive.inbox or drive.run.status != "waiting":
        return None
    if not drive.workflow.chart.accepted(drive.run.active, event.name):
        return None
    try:
        move = await decide(drive.workflow, drive.run, event, now=drive.store.now())
        drive.sending = begun(drive.commit(move))
        # A caller that is cancelled leaves no move of which this drive knows nothing.
        await asyncio.shield(drive.sending)
    except (Stale, Refused):
        drive.unread = True
        return None
    return replace(event, status=move.answer, version=move.after.version)


async def sent(drive: Drive) -> None:
    """Wait for the commit of an event whose sender was cancelled."""
    if drive.sending is not None and not drive.sending.done():
        await asyncio.wait([drive.sending])
