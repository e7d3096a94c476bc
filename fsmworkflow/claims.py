"""Claims: how a run is started, or taken up, and given back, and whether it can move while others drive it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from fsmworkflow.children import awaits
from fsmworkflow.decide import begin
from fsmworkflow.due import resting_due
from fsmworkflow.errors import CodecError, InputDiffers, RunNotFound, StoreError, log
from fsmworkflow.records import MOVING, OPEN, Run, replace, sooner
from fsmworkflow.store import Store
from fsmworkflow.store.writer import whole
from fsmworkflow.versions import shifted
from fsmworkflow.worker import Worker
from fsmworkflow.workflow import Workflow

if TYPE_CHECKING:
    from fsmworkflow.drive import Drive
    from fsmworkflow.errand import Name

__all__ = ["all_rest", "first", "give_up", "goes_on", "left_alone", "loaded", "may_go_on", "patience", "rest"]
__all__ += ["take_up", "taken", "tell"]

WATCH, SELDOM = 0.05, 0.5
"""Seconds between two looks at a run that another process drives: at first, and in the end."""


def may_go_on(run: Run, now: float, *, retry: bool = True) -> bool:
    """Whether driving a run can move it now: it does not rest, or, with `retry`, it failed and keeps its place."""
    if retry and run.status == "failed" and not run.over:
        return True
    return run.due is not None and (run.status in MOVING or run.due <= now)


async def goes_on(run: Run, store: Store, *, retry: bool = True) -> bool:
    """Whether a run, or one below it, can move now, or is a child that waits for its turn."""
    if may_go_on(run, store.now(), retry=retry) or (run.in_line and run.status in OPEN):
        return True
    if not awaits(run) or await store.below(run):
        return awaits(run)
    now = await store.load(run.workflow, run.key)  # the last of those below may have ended just now
    return now is not None and now.posted != run.posted


async def all_rest(drive: Drive, see_to: Callable[[Name], asyncio.Future[Any] | None], pause: float) -> bool:
    """Whether all runs below a held one rest. Where one can move it waits for a while, and then says no.

    `see_to` has such a run driven, and returns what is done when that is over; None where it is driven elsewhere. They
    are waited for until the run itself is woken, for `pause` seconds at the most.
    """
    names = await drive.store.below(drive.run)
    if not names:  # or the last of them has ended just now
        return not await drive.news()
    driven = [done for done in map(see_to, names) if done is not None]
    ended = [asyncio.ensure_future(asyncio.wait(driven))] if driven else []
    try:
        await drive.woken(ended, pause)
    finally:
        for one in ended:
            one.cancel()
    if any(done.done() and not done.cancelled() and done.exception() for done in driven):
        await asyncio.sleep(pause)  # a drive has failed, and not its step: the next will hardly fare better
    return False


def left_alone(workflow: Workflow, run: Run) -> bool:
    """Whether a run is of a newer version of the workflow, which only newer processes drive; then the log says so."""
    if run.definition > workflow.version and not run.over:
        log.warning(
            "run %s/%s is of version %d of the workflow, and version %d is here: it is left to whoever has that one",
            run.workflow, run.key, run.definition, workflow.version,
        )  # fmt: skip
    return run.definition > workflow.version


async def patience(pause: float) -> float:
    """Wait before the next look at a run that another process drives. Returns how long to wait the next time."""
    await asyncio.sleep(pause)
    return min(2 * pause, SELDOM)


async def loaded(store: Store, workflow: str, key: str) -> Run:
    """The run as it now is. Raises RunNotFound."""
    run = await store.load(workflow, key)
    if run is None:
        raise RunNotFound(workflow, key)
    return run


async def first(workflow: Workflow, store: Store, key: str, data: Any) -> Run:
    """The run as it would begin with this data. Raises CodecError where the data does not fit the workflow.

    Without data it stands for the run that is there, so that a run whose data type has required fields can be taken up.
    """
    try:
        return begin(workflow, key, workflow.codec.start(data), now=store.now())
    except CodecError:
        there = await store.load(workflow.name, key) if data is None else None
        if there is None:
            raise
        return there


def tell(run: Run, fresh: Run, data: Any, *, refuse: bool = False) -> None:
    """Say in the log, or as InputDiffers, that the run which is there was started with other data than is given."""
    if data is None or run.input == fresh.input:
        return
    message = f"run {run.workflow}/{run.key} was started with a different input"
    if refuse:
        raise InputDiffers(f"{message}: nothing was done")
    log.warning("%s: it goes on with its own", message)


async def take_up(
    workflow: Workflow, worker: Worker, key: str, data: Any, *, wait: bool, rest: bool = False
) -> tuple[Run, bool]:
    """Start a run, or claim the one that is there. Returns it and whether it is new.

    One that is over has no owner, nor, unless `rest`, one that rests; nor has one that a live owner drives, unless
    `wait` says to wait for its end.
    """
    fresh = await first(workflow, worker.store, key, data)
    if workflow.concurrency is None:
        there, created = await worker.create(fresh)
        if created:
            return there, True
    else:  # it waits for its place among all that are driven
        there, _ = await worker.store.create(fresh)
    if rest and not there.over and there.definition > workflow.version:
        shifted(workflow, there)
    retry = there.status == "failed"  # a failure that was waited for is not tried again
    wait = wait or workflow.concurrency is not None
    run, ours = await taken(worker, workflow, there, retry=retry, rest=rest, wait=wait)
    if ours or wait:
        tell(run, fresh, data)
    return (run if ours else replace(run, owner=None)), False


async def taken(
    worker: Worker, workflow: Workflow, run: Run, *, retry: bool, rest: bool = False, wait: bool = True
) -> tuple[Run, bool]:
    """Claim a run that goes on, or, with `rest`, is not over; while a live owner drives it, wait.

    Returns it as last seen, and whether it is ours. It is not where it does not go on any more, where this worker is
    stopping, or, without `wait`, where it cannot be had at once. Raises RunNotFound where it was deleted meanwhile.
    """
    left, pause = left_alone(workflow, run), WATCH
    while not worker.stopping and ((rest and not run.over) or await goes_on(run, worker.store, retry=retry)):
        free, claimed = not left and (not wait or await worker.may_claim(run)), None
        async with worker.room(workflow) if free else nullcontext():
            if free and not worker.stopping:
                run = run if workflow.concurrency is None else await loaded(worker.store, run.workflow, run.key)
                # One that waits in a line of ours has its place.
                mine = run.owner == worker.token and may_go_on(run, worker.store.now(), retry=False)
                limit = None if mine else workflow.concurrency
                claimed = await worker.claim_one(run.workflow, run.key, workflow.version, limit)
            if claimed is None and wait:
                pause = await patience(pause)  # still in its place: where there is no room, few ask for it
        if claimed is not None:
            if rest or await goes_on(claimed, worker.store, retry=retry):
                return claimed, True
            await worker.store.release(claimed)  # it ended just before
        elif not wait:
            break
        run = await loaded(worker.store, run.workflow, run.key)
    return run, False


async def rest(drive: Drive, kept: bool) -> None:
    """Write when somebody has to look at the run again, where the row says something else, and let it go."""
    run = drive.run
    due = sooner(run.due, run.later) if run.status in MOVING else None
    if run.status == "waiting":
        due = resting_due(run)
    if drive.inbox and drive.oldest_due(now := drive.store.now()) is not None:
        due = now  # which is taken by whoever comes next, as this worker is stopping
    if due != run.due or not kept:
        after = replace(run, due=due, owner=run.owner if kept else None)
        await drive.store.settle(run, after)
        drive.run = after


async def give_up(drive: Drive) -> None:
    """Release a run that is still ours; where this task is being cancelled, the writer does it all the same."""
    try:
        await whole(drive.store.release(drive.run))
    except StoreError as error:
        log.warning("run %s/%s could not be given back: %s", drive.run.workflow, drive.run.key, error)
        drive.worker.unreleased.append(drive.run)
    drive.run = replace(drive.run, owner=None)
