"""Drive: the loop of one run. Look, act, decide, commit, again, until it rests.

It never chooses a state: that is `decide`. It never writes: that is the store. One commit of a run is in flight at a
time; steps of several active states may run beside each other, and beside the events that come in.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from fsmworkflow import records
from fsmworkflow.acting import act, undo
from fsmworkflow.actions import act_after
from fsmworkflow.children import joined
from fsmworkflow.decide import decide
from fsmworkflow.due import LOOP, again, due_next, endless, resting_due
from fsmworkflow.errors import DefinitionChanged, FSMWorkflowError, Refused, RolledBack, Stale, StoreError, log
from fsmworkflow.failures import failure
from fsmworkflow.flights import SUSPECT, fly
from fsmworkflow.hooks import Hooks
from fsmworkflow.inbox import later, left_due, oldest, pausing
from fsmworkflow.joint import lent_to, take_after, take_within
from fsmworkflow.records import MOVING, OPEN, RESTING, Event, Move, Run, replace
from fsmworkflow.store import Keys
from fsmworkflow.versions import Shift, shifted
from fsmworkflow.worker import Worker
from fsmworkflow.workflow import Workflow

__all__ = ["Drive"]

LEFT_BEHIND = 10.0
"""Seconds that a cancelled step has to end, before the move that leaves its state is committed without it."""
AGAIN, LONGEST = 0.05, 5.0
"""Seconds before a step is run again whose transaction had no effect, at first and at the most; it is doubled."""
PIECE = 0.25
"""Seconds of one piece of a wait for which no step runs."""
ACTS = frozenset({"running", "waiting", "compensating"})
"""The statuses in which a run that is not over does what its last move named."""
STOPPING = frozenset({records.CANCEL, records.RERUN})
"""What stops a running step, also one that accepts no event."""


class Drive:
    """Drives one claimed run until it rests. `error` is what its step raised, where it failed here.

    With `hold` a run that rests stays ours, so that the next event costs one commit; else it is let go.
    """

    __slots__ = (
        "_anew_at", "_anew_in", "_asked", "_entered_by", "_fresh", "_idle", "_inline", "_peek", "_rung", "_sent",
        "_shift", "_stopped", "_woken", "acts", "error", "hold", "hooks", "inbox", "retry", "run", "steps", "stopping",
        "store", "unread", "worker", "workflow",
    )  # fmt: skip

    def __init__(
        self,
        workflow: Workflow,
        run: Run,
        worker: Worker,
        *,
        fresh: bool = False,
        retry: bool = False,
        hold: bool = False,
        hooks: Hooks | None = None,
    ) -> None:
        self.hooks = worker.hooks if hooks is None else hooks
        self.stopping = worker.stopping
        self.workflow = workflow
        self.run = run
        self.worker = worker
        self.store = worker.store
        self.hold = hold
        self.retry = retry
        self.error: BaseException | None = None
        self.inbox: Sequence[Event] = ()
        self._fresh = fresh  # whether the visits began here, so that they have no remembered calls yet
        self.unread = run.posted > 0  # whether the inbox may hold what was not looked at
        self._asked: int | None = None  # the version at which waiting states were asked whether they lead on
        self._shift: Shift | None = None  # what another definition has made of the run, and no commit has written yet
        self._idle: tuple[str, ...] = ()  # the states passed since the last step: a cycle of them never rests
        self._sent: asyncio.Task[None] | None = None
        self._anew_at, self._anew_in = -1, AGAIN  # when a step was run again without effect, and after what pause
        self.steps: dict[tuple[str, int], asyncio.Task[Event]] = {}
        self._entered_by: dict[int, Event] = {}
        self._woken: asyncio.Future[None] | None = None
        self._inline: tuple[asyncio.Task[Any] | None] | None = None  # the step that runs in our own task, each another
        self._peek: asyncio.Task[None] | None = None
        self._rung = self._stopped = False
        self.acts = ACTS

    # -- from outside -----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something was posted to this run: look at the inbox as soon as possible."""
        self.unread = True
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)
        self._rung = self._inline is not None
        if self._rung and (self._peek is None or self._peek.done()):
            self._peek = asyncio.create_task(self._peek_for_stop())

    async def _peek_for_stop(self) -> None:
        """A step that accepts nothing runs in our own task: only a steering hand stops it, and only while it is on."""
        try:
            while self._rung and (step := self._inline) is not None and not self._stopped:
                self._rung = False
                _, waiting = await self.store.inbox(self.run)
                if step is self._inline and step[0] is not None and any(event.name in STOPPING for event in waiting):
                    self._stopped = True
                    step[0].cancel()
        except FSMWorkflowError as error:
            log.warning("the inbox of run %s/%s could not be read: %s", self.run.workflow, self.run.key, error)

    def stop(self) -> None:
        """Begin nothing more: once the steps that are on have ended, the run is given back."""
        self.stopping = True
        self.wake()

    def within(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether a task is one in which a step of this run runs."""
        return task is not None and (task in (self._inline or ()) or task in self.steps.values())

    async def send(self, event: Event) -> Event | None:
        """Take a new event at once, in the commit that makes it durable. Only of a held run, while it rests.

        Returns the event as it then is; None where it cannot be taken now and is to be posted: no active state accepts
        it, or an older event is due, or (Stale) has been posted meanwhile.
        """
        await self._settled()
        if not self.idle or self.inbox or self.run.status != "waiting":
            return None
        if not self.workflow.chart.accepted(self.run.active, event.name):
            return None
        try:
            move = await decide(self.workflow, self.run, event, now=self.store.now())
            self._sent = asyncio.ensure_future(self.commit(move))
            self._sent.add_done_callback(lambda sent: None if sent.cancelled() else sent.exception())
            # A caller that is cancelled leaves no move of which this drive knows nothing.
            await asyncio.shield(self._sent)
        except (Stale, Refused):
            self.unread = True
            return None
        return replace(event, status=move.answer, version=move.after.version)

    async def _settled(self) -> None:
        """Wait for the commit of an event whose sender was cancelled."""
        if self._sent is not None and not self._sent.done():
            await asyncio.wait([self._sent])

    @property
    def idle(self) -> bool:
        """Whether a held run rests, and nothing that was posted to it waits to be looked at."""
        run = self.run
        return not self.unread and run.status != "running" and (run.due is None or run.due > self.store.now())

    @property
    def late(self) -> bool:
        """Whether something was posted to a run just as it ended or failed, and was not looked at."""
        return self.run.owner is None and (self.unread or (self.run.over and bool(self.inbox)))

    async def news(self) -> bool:
        """Whether something was posted to a held run since it was last looked at; then it is looked at next."""
        row = await self.store.load(self.run.workflow, self.run.key)
        if row is not None and row.posted != self.run.posted:
            self.wake()
        return not self.idle

    async def woken(self, ends: Iterable[asyncio.Future[Any]], limit: float | None) -> None:
        """Wait until something is posted to the run, one of `ends` is done, or `limit` seconds have passed."""
        self._woken = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait({*ends, self._woken}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._woken.cancel()
            self._woken = None

    # -- the loop ---------------------------------------------------------------------------------------------------

    async def go(self) -> Run:
        """Drive the run until it ends, fails or rests, and return it. Raises LeaseLost where another has claimed it.

        When cancelled or stopped, the run is given back and may be resumed at once.
        """
        kept = False
        try:
            await self._settled()
            await self._begin()
            more, marked = True, self.run.deaths > 0 and self.run.status != "parked"
            while more:
                try:
                    more = await (fly(self) if marked and self.run.deaths > 0 else self.turn())
                except RolledBack as error:
                    await self.anew(error)
            kept = self.hold and not self.stopping and self.run.status in RESTING
            if self.run.owner is not None:
                await self._rest(kept)
        except Exception as error:
            self.worker.set_aside(self.run.id, self.run.version, error)
            raise
        finally:
            if self._peek is not None:
                self._peek.cancel()
            await self.stop_steps(list(self.steps))
            if self.run.owner is not None and not kept:
                await self.give_up()
        return self.run

    async def _begin(self) -> None:
        """Let a failed run go on, where that was asked for. A suspect is seen as it stands until it flies."""
        retry, self.retry = self.retry and self.run.status == "failed" and not self.run.over, False
        if retry or self.run.deaths < SUSPECT:
            self.fit()
        if retry:
            await self.take(Event(name=records.RETRY))

    async def anew(self, error: RolledBack) -> None:
        """What a step did had no effect: it is run again, in the same attempt, after a pause that grows."""
        log.warning("a step of run %s/%s is run again: %s", self.run.workflow, self.run.key, error)
        self._fresh = False  # what it has remembered stays
        self._anew_in = min(self._anew_in * 2, LONGEST) if self._anew_at == self.run.version else AGAIN
        self._anew_at = self.run.version
        await self.woken((), self._anew_in)

    def fit(self) -> None:
        """See the run as this definition has it. Raises DefinitionChanged: then it is claimed no more as it stands."""
        try:
            shift = shifted(self.workflow, self.run)
        except DefinitionChanged:
            self.worker.stuck[self.run.id] = self.run.version
            raise
        if shift is not None:
            self._shift, self.run = shift, shift.run

    def turn(self) -> Coroutine[Any, Any, bool]:
        """One turn: whatever is next. False when nothing is, and nothing is on its way."""
        run, busy = self.run, self.unread or self.steps or self.inbox or self.stopping
        if run.status == "running" and not (busy or run.actions):
            ((state, stay),) = run.active.items() if len(run.active) == 1 else ((None, None),)
            if state in self.workflow.chart.quiet and stay is not None and stay.again is None and run.deadline is None:
                return self._quietly(state)
        return self._fully()

    async def _fully(self) -> bool:
        if self.unread:
            if self.run.owner is None:  # it has failed, and is left due for what was posted meanwhile
                return False
            await self.look()
            return True
        run = self.run
        if run.actions and run.due is not None and (run.over or run.status in self.acts):
            await act_after(self)
            return True
        if self.stopping and not self.steps:
            return False
        event = await self._next(self.store.now())
        if event is not None:
            if run.status == "parked":  # only now, lest a migration that ends processes do so for whatever is posted
                self.fit()
            await self.take(event)
            return True
        if self.steps or again(self.run) is not None:
            await self.wait()
            return True
        return self.unread  # something came meanwhile

    async def _quietly(self, state: str) -> bool:
        """A step of a flat workflow between which and its end nothing can come: the shortest turn."""
        if self.worker.lapsed:
            await self.worker.hold(self.run)
        self._idle = ()
        event = await self._alone(state)
        if event is not None:
            await self.take(event)
        return True

    async def _next(self, now: float) -> Event | None:
        """The next event: what the run has due, a step that has ended, the oldest that is accepted, a new step."""
        run = self.run
        if run.status == "compensating":
            return self._oldest(now) or await self._undone(now)
        if self.steps and (name := lent_to(self)) is not None and (event := self.ended_step(name)) is not None:
            return event
        event = due_next(self.workflow, run, now, asked=self._asked)
        if event is not None:
            older = None if event.due is None else self._oldest(now, event.due)
            return older or self._counted(event)
        event = self.ended_step() or self._oldest(now)
        if event is not None or self.stopping or run.status != "running":
            return event
        return await self._begin_steps(now)

    def _oldest(self, now: float, before: float = math.inf) -> Event | None:
        return oldest(self.workflow, self.run, self.inbox, now, before=before, busy=bool(self.steps))

    async def _undone(self, now: float) -> Event | None:
        """The end of the undoing that is next."""
        pause = again(self.run)
        if pause is not None and pause > now:
            return None
        await self.worker.hold(self.run)
        return await undo(self, self.run)

    def _counted(self, event: Event) -> Event:
        """A state passed without a step, an event or a time. More than 1,000 of them in a row are a cycle."""
        if event.name not in (records.DONE, records.BEGIN):
            self._idle = ()
            return event
        self._idle = (*self._idle, event.state)
        return event if len(self._idle) <= LOOP else endless(self.run, self._idle)

    # -- steps ------------------------------------------------------------------------------------------------------

    async def _begin_steps(self, now: float) -> Event | None:
        """Begin the steps of all active states. One that nothing can interrupt is run here, and its end returned."""
        run, workflow = self.run, self.workflow
        if pausing(self.inbox):  # it is taken once those that are on have ended
            return None
        ready = [
            state
            for state, stay in run.active.items()
            if workflow.states[state].step is not None
            and (state, stay.visit) not in self.steps
            and (stay.again is None or stay.again <= now)
        ]
        if not ready:
            return None
        await self.worker.hold(run)
        self._idle = ()
        if len(run.active) == 1 and not workflow.chart.listens(ready[0]) and run.deadline is None:
            return await self._alone(ready[0])
        for visit in {run.active[state].visit for state in ready} if run.posted else ():
            await self._read_entered(visit)
        for state in ready:
            self.steps[state, run.active[state].visit] = asyncio.create_task(self._step(state), name=f"step {state}")
        return None

    def _step(self, state: str) -> Coroutine[Any, Any, Event]:
        run, stay = self.run, self.run.active[state]
        fresh = self._fresh and stay.attempt == 1 and stay.visit == run.version
        return act(self, run, state, stay, fresh=fresh, event=self._entered_by.get(stay.visit))

    async def _read_entered(self, visit: int) -> None:
        """Know the event that led into this visit, also after a crash."""
        if visit and visit not in self._entered_by:
            found = await self.store.taken(self.run, visit)
            if found is not None and found.name != records.JOINED:
                self._entered_by[visit] = found

    async def _alone(self, state: str) -> Event | None:
        """A step that accepts no event needs no task of its own. Returns its end, or the event that has stopped it."""
        if self.run.posted:
            await self._read_entered(self.run.active[state].visit)
        if self.unread:  # something came while the inbox was being read
            return None
        task = asyncio.current_task()
        self._inline, self._stopped = (task,), False
        try:
            return await self._step(state)
        except asyncio.CancelledError:
            if not self._stopped or task is None or task.uncancel() > 0:
                raise
            self._inline = None
            await self.look()
            return next((event for event in self.inbox if event.name in STOPPING), None)
        finally:
            self._inline = None

    def ended_step(self, only: tuple[str, int] | None = None) -> Event | None:
        for name, task in list(self.steps.items()):
            if task.done() and only in (None, name):
                del self.steps[name]
                if not task.cancelled():
                    return task.result()
        return None

    async def wait(self) -> None:
        """Wait until a step ends, something is posted, or a time has come; in pieces, as the worker may be stopping."""
        now = self.store.now()
        times = [t for t in (again(self.run), resting_due(self.run)) if t is not None and t > now]
        limit = min(times) - now if times else None
        if not self.steps:
            limit = PIECE if limit is None else min(limit, PIECE)
        if not self.unread:
            await self.woken(self.steps.values(), limit)

    async def stop_steps(self, names: list[tuple[str, int]]) -> None:
        """Cancel steps and wait until they have ended; after 10 s they are left behind, and what they do is dropped."""
        tasks = [self.steps.pop(name) for name in names]
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        _, left = await asyncio.wait(tasks, timeout=LEFT_BEHIND)
        for task in tasks:
            task.add_done_callback(_let_go)
        for task in left:
            log.warning(
                "%s of run %s/%s does not end: it is left behind", task.get_name(), self.run.workflow, self.run.key
            )

    # -- events -----------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        self.unread = False
        posted, self.inbox = await self.store.inbox(self.run)
        if posted > self.run.posted and self.run.status in RESTING:
            self.run = replace(self.run, due=self.store.now())  # posting has made the row due: it is to rest again
        self._note(posted)

    def _note(self, posted: int) -> None:
        self.run = replace(self.run, posted=posted, later=later(self.inbox, self.store.now()))

    async def take(self, event: Event) -> None:
        """Decide and commit. Steps whose states the move leaves are ended before its commit."""
        if event.within is not None:
            await take_within(self, event, event.within)
            return
        if event.name == records.JOINED and event.visit is not None:
            ended = await self.store.children(self.run, event.state, event.visit)
            event = joined(self.workflow, self.run, event, ended)
        move = await decide(self.workflow, self.run, event, now=self.store.now())
        if move.after is move.before:
            self._asked = self.run.version
            return
        if self.steps:
            await self.stop_left(move)
            if (name := lent_to(self)) is not None:
                await take_after(self, name, event)
                return
        await self.commit(move)

    async def stop_left(self, move: Move) -> None:
        live = move.after.active if move.after.status in OPEN else {}
        await self.stop_steps([(s, v) for s, v in self.steps if s not in live or live[s].visit != v])

    def finished(self, move: Move) -> Move:
        """A move with what the inbox, and another definition of the workflow, add to it."""
        if self.inbox:
            move = left_due(self.workflow, self.inbox, move)
        return move if self._shift is None else self._shift.onto(self.workflow, move)

    async def commit(self, move: Move) -> None:
        """Write a move, and go on from there."""
        move = self.finished(move)
        try:
            due = await self.store.commit(move)
        except Refused as error:
            failing = move.event.failure is not None and move.event.error is None
            if failing or (move.event.id and (not move.event.number or move.answer == "rejected")):
                raise  # not even that is taken; or it is to be posted first
            sent = move.event.id and move.event.name != records.JOINED
            await (self._reject(move.event, error) if sent else self.fail(error))
        else:
            self.committed(move, due)

    def committed(self, move: Move, due: Keys | None = None) -> None:
        self._shift = None
        event = move.event
        if event.id:
            if event.name != records.JOINED or self.run.active[event.state].children:
                self._idle = ()  # where there were no children nothing was waited for
            if event.name != records.JOINED:
                entered = {**self._entered_by, move.after.version: event}
                visits = {stay.visit for stay in move.after.active.values()}
                self._entered_by = {visit: by for visit, by in entered.items() if visit in visits}
            self.inbox = [e for e in self.inbox if e.id != event.id]
        self._fresh = self._fresh or move.after.active is not move.before.active
        posted = move.after.posted + (1 if event.id and not event.number else 0)
        self.run = replace(move.after, posted=posted) if posted != move.after.posted else move.after
        if event.id:
            self._note(posted)
        if move.posts:
            self.unread |= any((post.workflow, post.key) == (self.run.workflow, self.run.key) for post in move.posts)
            self.worker.told(move.posts)
        if move.orders:
            self.unread = True  # perhaps there is nothing to wait for
        if due:
            self.worker.due(due)
        if move.error is not None:
            self.error = move.error
        self.hooks.moved(move)

    # -- resting ----------------------------------------------------------------------------------------------------

    async def _rest(self, kept: bool) -> None:
        """Write when somebody has to look at the run again, where the row says something else, and let it go."""
        run = self.run
        due = run.due if run.status in MOVING else None
        if due is not None and run.later is not None:
            due = min(due, run.later)
        if run.status == "waiting":
            due = resting_due(run)
        if self.inbox and self._oldest(now := self.store.now()) is not None:
            due = now  # which is taken by whoever comes next, as this worker is stopping
        if due != run.due or not kept:
            after = replace(run, due=due, owner=run.owner if kept else None)
            await self.store.settle(run, after)
            self.run = after

    async def give_up(self) -> None:
        """Release a run that is still ours; where this task is being cancelled, the writer does it all the same."""
        release = asyncio.ensure_future(self.store.release(self.run))
        try:
            await asyncio.shield(release)
        except StoreError as error:
            log.warning("run %s/%s could not be given back: %s", self.run.workflow, self.run.key, error)
            self.worker.unreleased.append(self.run)
        self.run = replace(self.run, owner=None)

    async def _reject(self, event: Event, error: Refused) -> None:
        """What somebody sends stops no run, also where the database does not take what comes of it."""
        run, now = self.run, self.store.now()
        log.warning("run %s/%s rejects %r: %s", run.workflow, run.key, event.name, error)
        after = replace(run, version=run.version + 1, updated=now)
        await self.commit(Move(before=run, event=event, after=after, at=now, answer="rejected", detail=str(error)))

    async def fail(self, error: BaseException, caught: BaseException | None = None) -> None:
        """The run fails where it is, and no step is at fault: an action failed, or the store does not take a move.

        It goes on where an error that may be `caught` is led on from.
        """
        run = self.run
        leaf = next(reversed(run.active))
        await self.stop_steps(list(self.steps))
        await self.take(Event(name=records.ERROR, state=leaf, failure=failure(error, run, leaf), error=caught))
        if self.run.status == "failed" and not self.run.over:
            self.error = error


def _let_go(task: asyncio.Task[Event]) -> None:
    """What a step did that was stopped is dropped, also where it came to its end all the same."""
    if not task.cancelled() and task.exception() is None and (lent := task.result().within) is not None:
        lent.drop()
