"""Drive: the loop of one run. Look, act, decide, commit, again, until it rests.

It never chooses a state: that is `decide`. It never writes: that is the store. One commit of a run is in flight at a
time; steps of several active states may run beside each other, and beside the events that come in.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from fsmworkflow import records
from fsmworkflow.acting import Acting, act_after, failed
from fsmworkflow.children import awaiting, joined
from fsmworkflow.decide import decide
from fsmworkflow.due import due_next, resting_due
from fsmworkflow.errors import DefinitionChanged, EndlessLoop, FSMWorkflowError, Refused, RolledBack, Stale, StoreError
from fsmworkflow.failures import failure
from fsmworkflow.flights import SUSPECT, poisoned
from fsmworkflow.hooks import Hooks
from fsmworkflow.records import Event, Move, Run, replace
from fsmworkflow.store import Keys
from fsmworkflow.store.lent import Lent
from fsmworkflow.versions import Shift, of_this, shifted
from fsmworkflow.worker import Worker
from fsmworkflow.workflow import Workflow

__all__ = ["Drive"]

log = logging.getLogger("fsmworkflow")

LOOP = 1_000
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
        "_acting", "_acts", "_anew_at", "_anew_in", "_asked", "_entered_by", "_fresh", "_idle", "_inline", "_peek",
        "_rung", "_sent", "_shift", "_steps", "_stopped", "_told", "_unread", "_woken", "error", "hold", "inbox",
        "retry", "run", "store", "worker", "workflow",
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
        hooks = worker.hooks if hooks is None else hooks
        self._told = hooks.moved
        self.workflow = workflow
        self.run = run
        self.worker = worker
        self.store = worker.store
        self.hold = hold
        self.retry = retry
        self.error: BaseException | None = None
        self.inbox: Sequence[Event] = ()
        self._acting = Acting(workflow, worker, hooks)
        self._fresh = fresh  # whether the visits began here, so that they have no remembered calls yet
        self._unread = run.posted > 0  # whether the inbox may hold what was not looked at
        self._asked: int | None = None  # the version at which waiting states were asked whether they lead on
        self._shift: Shift | None = None  # what another definition has made of the run, and no commit has written yet
        self._idle: tuple[str, ...] = ()  # the states passed since the last step: a cycle of them never rests
        self._sent: asyncio.Task[None] | None = None
        self._anew_at, self._anew_in = -1, AGAIN  # when a step was run again without effect, and after what pause
        self._steps: dict[tuple[str, int], asyncio.Task[Event]] = {}
        self._entered_by: dict[int, Event] = {}
        self._woken: asyncio.Future[None] | None = None
        self._inline: tuple[asyncio.Task[Any] | None] | None = None  # the step that runs in our own task, each another
        self._peek: asyncio.Task[None] | None = None
        self._rung = self._stopped = False
        self._acts = ACTS

    # -- from outside -----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something was posted to this run: look at the inbox as soon as possible."""
        self._unread = True
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
        self._acting.stopping = True
        self.wake()

    def within(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether a task is one in which a step of this run runs."""
        return task is not None and (task in (self._inline or ()) or task in self._steps.values())

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
            self._unread = True
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
        return not self._unread and run.status != "running" and (run.due is None or run.due > self.store.now())

    @property
    def late(self) -> bool:
        """Whether something was posted to a run just as it ended or failed, and was not looked at."""
        return self.run.owner is None and (self._unread or (self.run.over and bool(self.inbox)))

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
            failed = self.retry and self.run.status == "failed" and not self.run.over
            suspect = self.run.deaths >= SUSPECT and not failed
            self.retry = False
            if not suspect:
                self._fit()
            if failed:
                await self._take(Event(name=records.RETRY))
            more = not suspect or self.run.status == "parked" or await self._as_suspect()
            while more:
                more = await self._turn()
            kept = self.hold and not self._acting.stopping and self.run.status in ("waiting", "paused")
            if self.run.owner is not None:
                await self._rest(kept)
        except Exception as error:
            self.worker.set_aside(self.run.id, self.run.version, error)
            raise
        finally:
            if self._peek is not None:
                self._peek.cancel()
            await self._stop(list(self._steps))
            if self.run.owner is not None and not kept:
                await self.give_up()
        return self.run

    def _fit(self) -> None:
        """See the run as this definition has it. Raises DefinitionChanged: then it is claimed no more as it stands."""
        try:
            shift = shifted(self.workflow, self.run)
        except DefinitionChanged:
            self.worker.stuck[self.run.id] = self.run.version
            raise
        if shift is not None:
            self._shift, self.run = shift, shift.run

    def _turn(self) -> Coroutine[Any, Any, bool]:
        """One turn: whatever is next. False when nothing is, and nothing is on its way."""
        run, busy = self.run, self._unread or self._steps or self.inbox or self._acting.stopping
        if run.status == "running" and not (busy or run.actions):
            ((state, stay),) = run.active.items() if len(run.active) == 1 else ((None, None),)
            if state in self.workflow.chart.quiet and stay is not None and stay.again is None and run.deadline is None:
                return self._quietly(state)
        return self._fully()

    async def _fully(self) -> bool:
        if self._unread:
            if self.run.owner is None:  # it has failed, and is left due for what was posted meanwhile
                return False
            await self._look()
            return True
        run = self.run
        if run.actions and run.due is not None and (run.over or run.status in self._acts):
            await self._after()
            return True
        if self._acting.stopping and not self._steps:
            return False
        event = await self._next(self.store.now())
        if event is not None:
            if run.status == "parked":  # only now, lest a migration that ends processes do so for whatever is posted
                self._fit()
            await self._take(event)
            return True
        if self._steps or self._again() is not None:
            await self._wait()
            return True
        return self._unread  # something came meanwhile

    async def _as_suspect(self) -> bool:
        """Turns of a run that was in flight twice when its process died: it says so before each, and flies alone.

        Until it is none any more. False when nothing is next: it rests, or has been parked.
        """
        more, flights = self.run.deaths < self.worker.deaths, self.worker.flights
        if not more:
            await self._park()
        try:
            while more and self.run.deaths >= SUSPECT:
                if not self._steps and self.run.due is not None and self.run.due > self.store.now():
                    flights.land(self)  # a pause may be long
                    self._fit()
                    more = await self._turn()
                elif flights.take(self):
                    await self._take_off()
                    more = await self._turn()
                else:
                    more = await self._grounded()
        finally:
            flights.land(self)
        return more

    async def _take_off(self) -> None:
        """Say that it flies, and only then see it as this definition has it, which may be what ends processes."""
        if self.run.flight != self.run.epoch:
            after = replace(self.run, flight=self.run.epoch)
            await self.store.settle(self.run, after)
            self.run = after
        self._fit()

    async def _grounded(self) -> bool:
        """Wait for the turn of this suspect, open only to who steers it by hand."""
        if self._unread:
            await self._look()
        steering = next((event for event in self.inbox if event.name in records.STEERING and not self.run.over), None)
        if steering is None or not of_this(self.workflow, self.run):
            await self._wait()
            return not self._acting.stopping
        await self._take(steering)
        return True

    async def _park(self) -> None:
        """Too many processes died while it was in flight. Where it had ended, its actions did it, and stay listed."""
        error = poisoned(self.run)
        log.error("%s", error)
        if self.run.over:
            await self._ended_acting(self.run, error)
        else:
            leaf = next(reversed(self.run.active))
            await self._take(Event(name=records.PARKED, failure=failure(error, self.run, leaf)))

    async def _quietly(self, state: str) -> bool:
        """A step of a flat workflow between which and its end nothing can come: the shortest turn."""
        if self.worker.lapsed:
            await self.worker.hold(self.run)
        self._idle = ()
        event = await self._alone(state)
        if event is not None:
            await self._take(event)
        return True

    async def _next(self, now: float) -> Event | None:
        """The next event: what the run has due, a step that has ended, the oldest that is accepted, a new step."""
        run = self.run
        if run.status == "compensating":
            if (refused := self._accepted(now)) is not None:
                return refused
            again = run.undo.left[-1].again if run.undo.left else None
            if again is not None and again > now:
                return None
            await self.worker.hold(run)
            while True:
                try:
                    return await self._acting.undo(run)
                except RolledBack as error:
                    await self._anew(error)
        if self._steps and (name := self._lent_to()) is not None and (event := self._ended_step(name)) is not None:
            return event
        event = due_next(self.workflow, run, now, asked=self._asked)
        if event is not None and (event.due is None or (older := self._accepted(now, event.due)) is None):
            return self._counted(event)
        if event is not None:
            return older
        event = self._ended_step() or self._accepted(now)
        if event is not None or self._acting.stopping or run.status != "running":
            return event
        return await self._begin_steps(now)

    def _counted(self, event: Event) -> Event:
        """A state passed without a step, an event or a time. More than 1,000 of them in a row are a cycle."""
        if event.name not in (records.DONE, records.BEGIN):
            self._idle = ()
            return event
        self._idle = (*self._idle, event.state)
        if len(self._idle) <= LOOP:
            return event
        before = [place for place, state in enumerate(self._idle[:-1]) if state == event.state]
        cycle = " -> ".join(self._idle[before[-1] if before else -20 :])
        error = EndlessLoop(f"{LOOP:,} moves without a step, an event or time between them: {cycle}")
        return Event(name=records.ERROR, state=event.state, error=error, failure=failure(error, self.run, event.state))

    # -- steps ------------------------------------------------------------------------------------------------------

    async def _begin_steps(self, now: float) -> Event | None:
        """Begin the steps of all active states. One that nothing can interrupt is run here, and its end returned."""
        run, workflow = self.run, self.workflow
        if self._pausing():  # it is taken once those that are on have ended
            return None
        ready = [
            state
            for state, stay in run.active.items()
            if workflow.states[state].step is not None
            and (state, stay.visit) not in self._steps
            and (stay.again is None or stay.again <= now)
        ]
        if not ready:
            return None
        await self.worker.hold(run)
        self._idle = ()
        if len(run.active) == 1 and not workflow.chart.listens(ready[0]) and run.deadline is None:
            return await self._alone(ready[0])
        for state in ready:
            stay = run.active[state]
            self._steps[state, stay.visit] = asyncio.create_task(self._step(run, state), name=f"step {state}")
        return None

    async def _step(self, run: Run, state: str) -> Event:
        stay = run.active[state]
        fresh = self._fresh and stay.attempt == 1 and stay.visit == run.version
        event = await self._entered(stay.visit) if run.posted else None
        while True:
            try:
                return await self._acting.step(run, state, stay, fresh=fresh, event=event)
            except RolledBack as error:
                fresh = False
                await self._anew(error)

    async def _entered(self, visit: int) -> Event | None:
        """The event that led into this visit, also after a crash."""
        if visit and visit not in self._entered_by:
            found = await self.store.taken(self.run, visit)
            if found is not None and found.name != records.JOINED:
                self._entered_by[visit] = found
        return self._entered_by.get(visit)

    async def _alone(self, state: str) -> Event | None:
        """A step that accepts no event needs no task of its own. Returns its end, or the event that has stopped it."""
        if self._unread:  # something came while the inbox was being read
            return None
        task = asyncio.current_task()
        self._inline, self._stopped = (task,), False
        try:
            return await self._step(self.run, state)
        except asyncio.CancelledError:
            if not self._stopped or task is None or task.uncancel() > 0:
                raise
            self._inline = None
            await self._look()
            return next((event for event in self.inbox if event.name in STOPPING), None)
        finally:
            self._inline = None

    def _ended_step(self, only: tuple[str, int] | None = None) -> Event | None:
        for name, task in list(self._steps.items()):
            if task.done() and only in (None, name):
                del self._steps[name]
                if not task.cancelled():
                    return task.result()
        return None

    def _again(self) -> float | None:
        """When the next attempt of a step or of an undoing is due: a retry's pause is no rest."""
        if self.run.status == "compensating":
            return self.run.undo.left[-1].again if self.run.undo.left else None
        if self.run.status != "running":
            return None
        return min((stay.again for stay in self.run.active.values() if stay.again is not None), default=None)

    async def _wait(self) -> None:
        """Wait until a step ends, something is posted, or a time has come; in pieces, as the worker may be stopping."""
        now = self.store.now()
        times = [t for t in (self._again(), resting_due(self.run)) if t is not None and t > now]
        limit = min(times) - now if times else None
        if not self._steps:
            limit = PIECE if limit is None else min(limit, PIECE)
        if not self._unread:
            await self.woken(self._steps.values(), limit)

    async def _stop(self, names: list[tuple[str, int]]) -> None:
        """Cancel steps and wait until they have ended; after 10 s they are left behind, and what they do is dropped."""
        tasks = [self._steps.pop(name) for name in names]
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

    async def _look(self) -> None:
        self._unread = False
        posted, self.inbox = await self.store.inbox(self.run)
        if posted > self.run.posted and self.run.status in ("waiting", "paused"):
            self.run = replace(self.run, due=self.store.now())  # posting has made the row due: it is to rest again
        self._note(posted)

    def _note(self, posted: int) -> None:
        now = self.store.now()
        later = min((e.due for e in self.inbox if e.due is not None and e.due > now), default=None)
        self.run = replace(self.run, posted=posted, later=later)

    def _accepted(self, now: float, before: float = math.inf) -> Event | None:
        """The oldest event due by now, and `before`, that the run accepts. Of one that is over all are only dropped."""
        run, busy = self.run, bool(self._steps)
        for event in () if run.over else self.inbox:
            if (event.due is None or (event.due <= now and event.due < before)) and self._takes(run, event, busy=busy):
                return event
        return None

    def _takes(self, run: Run, event: Event, *, busy: bool) -> bool:
        """Whether a run accepts an event of its inbox. A pause, and its end, wait for steps that are on (`busy`)."""
        if event.visit is not None and event.visit not in {stay.visit for stay in run.active.values()}:
            return False
        if event.name in records.STEERING:
            return not (busy and event.name in (records.PAUSE, records.UNPAUSE) and self._pausing())
        if run.status not in ("running", "waiting"):
            return False
        if event.name == records.JOINED:
            return awaiting(run, event) in self.workflow.families
        return self.workflow.chart.accepted(run.active, event.name)

    def _pausing(self) -> bool:
        return any(event.name == records.PAUSE for event in self.inbox)

    def _due_again(self, move: Move) -> Move:
        """Where the inbox has something for the run, the move leaves it due and ours, lest a crash leave it there."""
        after, now = move.after, move.at
        waiting = (e for e in self.inbox if e.id != move.event.id and (e.due is None or e.due <= now))
        if after.over or not any(self._takes(after, event, busy=False) for event in waiting):
            return move
        return replace(move, after=replace(after, owner=self.run.owner, due=now))

    async def _take(self, event: Event) -> None:
        """Decide and commit. Steps whose states the move leaves are ended before its commit."""
        if event.within is not None:
            await self._take_within(event, event.within)
            return
        if event.name == records.JOINED and event.visit is not None:
            ended = await self.store.children(self.run, event.state, event.visit)
            event = joined(self.workflow, self.run, event, ended)
        move = await decide(self.workflow, self.run, event, now=self.store.now())
        if move.after is move.before:
            self._asked = self.run.version
            return
        if self.inbox:
            move = self._due_again(move)
        if self._steps:
            await self._stop_left(move)
            if (name := self._lent_to()) is not None:
                await self._take_after(name, event)
                return
        await self.commit(move)

    async def _stop_left(self, move: Move) -> None:
        live = move.after.active if move.after.status in ("running", "waiting") else {}
        await self._stop([(s, v) for s, v in self._steps if s not in live or live[s].visit != v])

    async def _take_within(self, event: Event, lent: Lent) -> None:
        """As `_take`, for a step with a transaction: its move is committed there, or it is rolled back first."""
        failing: Event | None = None
        try:
            move = await decide(self.workflow, self.run, event, now=self.store.now())
            if move.error is None:
                await self._stop_left(move)
                failing = await self._commit_within(move, lent)
        finally:
            await lent.rollback()
        if failing is not None:
            await self._take(failing)
        elif move.error is not None:
            await self.commit(move)

    async def _commit_within(self, move: Move, lent: Lent) -> Event | None:
        """Commit a move where its step has written. Returns the step's failure, where what it wrote cannot be kept."""
        event = move.event
        if self.inbox:
            move = self._due_again(move)
        if self._shift is not None:
            move = self._shift.onto(self.workflow, move)
        try:
            due = await lent.commit(move)
        except RolledBack as error:
            await self._anew(error)
        except StoreError:
            raise
        except Exception as error:
            return failed(error, self.run, event.state, event.began, event.remembered)
        else:
            self._committed(move, due)
        return None

    async def _anew(self, error: RolledBack) -> None:
        """What a step did had no effect: it is run again, in the same attempt."""
        log.warning("a step of run %s/%s is run again: %s", self.run.workflow, self.run.key, error)
        self._fresh = False  # what it has remembered stays
        self._anew_in = min(self._anew_in * 2, LONGEST) if self._anew_at == self.run.version else AGAIN
        self._anew_at = self.run.version
        await asyncio.sleep(self._anew_in)

    def _lent_to(self) -> tuple[str, int] | None:
        """The step, if there is one, whose transaction every other write waits for."""
        for state, visit in self._steps if self.worker.lent else ():
            lent = self.worker.lent.get((self.run.id, state, visit))
            if lent is not None and lent.alone and not lent.over:
                return state, visit
        return None

    async def _take_after(self, name: tuple[str, int], event: Event) -> None:
        """Take an event after the end of a step for which every write waits, and which waits for nothing but its end.

        What is in the inbox, and what is due, is found again; the end of another step is taken where it still can be.
        """
        visits = {state: stay.visit for state, stay in self.run.active.items()}
        await asyncio.wait([self._steps[name]])
        first = self._ended_step(name)
        if first is not None:
            await self._take(first)
        stay = self.run.active.get(event.state)
        if event.began is not None and stay is not None and stay.visit == visits.get(event.state):
            await self._take(event)

    async def commit(self, move: Move) -> None:
        """Write a move, and go on from there."""
        if self._shift is not None:
            move = self._shift.onto(self.workflow, move)
        try:
            due = await self.store.commit(move)
        except Refused as error:
            failing = move.event.failure is not None and move.event.error is None
            if failing or (move.event.id and (not move.event.number or move.answer == "rejected")):
                raise  # not even that is taken; or it is to be posted first
            sent = move.event.id and move.event.name != records.JOINED
            await (self._reject(move.event, error) if sent else self._fail(error))
        else:
            self._committed(move, due)

    def _committed(self, move: Move, due: Keys | None = None) -> None:
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
            self._unread |= any((post.workflow, post.key) == (self.run.workflow, self.run.key) for post in move.posts)
            self.worker.told(move.posts)
        if move.orders:
            self._unread = True  # perhaps there is nothing to wait for
        if due:
            self.worker.due(due)
        if move.error is not None:
            self.error = move.error
        self._told(move)

    # -- resting ----------------------------------------------------------------------------------------------------

    async def _rest(self, kept: bool) -> None:
        """Write when somebody has to look at the run again, where the row says something else, and let it go."""
        run = self.run
        due = run.due if run.status in ("running", "compensating") else None
        if due is not None and run.later is not None:
            due = min(due, run.later)
        if run.status == "waiting":
            due = resting_due(run)
        if self.inbox and self._accepted(now := self.store.now()) is not None:
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

    async def _after(self) -> None:
        """Do what the last move named, at least once. The next commit strikes it off, or one of its own."""
        before = self.run
        await self.worker.hold(before)
        failed = await act_after(self.workflow, before, self.worker)
        if failed is not None and before.status == "compensating":
            # What is to be undone comes first: they are tried again at its end, and then listed.
            self._acts = self._acts - {before.status}
            log.error("an action of run %s/%s failed while it is undone: %r", before.workflow, before.key, failed)
        elif before.over:
            await self._ended_acting(before, failed)
        elif failed is None:
            self.run = replace(before, actions=())
        else:  # a state with a step has on_error, and retries, for that
            step = self.workflow.states[next(reversed(before.active))].step
            await self._fail(failed, failed if step is None else None)

    async def _reject(self, event: Event, error: Refused) -> None:
        """What somebody sends stops no run, also where the database does not take what comes of it."""
        run, now = self.run, self.store.now()
        log.warning("run %s/%s rejects %r: %s", run.workflow, run.key, event.name, error)
        after = replace(run, version=run.version + 1, updated=now)
        await self.commit(Move(before=run, event=event, after=after, at=now, answer="rejected", detail=str(error)))

    async def _fail(self, error: BaseException, caught: BaseException | None = None) -> None:
        """The run fails where it is, and no step is at fault: an action failed, or the store does not take a move.

        It goes on where an error that may be `caught` is led on from.
        """
        run = self.run
        leaf = next(reversed(run.active))
        await self._stop(list(self._steps))
        await self._take(Event(name=records.ERROR, state=leaf, failure=failure(error, run, leaf), error=caught))
        if self.run.status == "failed" and not self.run.over:
            self.error = error

    async def _ended_acting(self, before: Run, failed: BaseException | None) -> None:
        """The actions of a run that has ended are done, or stay listed with what failed them."""
        after = replace(before, actions=(), owner=None, due=None)
        if failed is not None:
            # A failed run with an error is one that may go on; one that ended as failed has none.
            error = failure(failed, before, before.state) if before.status == "done" else None
            after = replace(after, actions=before.actions, error=error)
        await self.store.settle(before, after)
        self.run = after


def _let_go(task: asyncio.Task[Event]) -> None:
    """What a step did that was stopped is dropped, also where it came to its end all the same."""
    if not task.cancelled() and task.exception() is None and (lent := task.result().within) is not None:
        lent.drop()
