"""Drive: the loop of one run. Look, act, decide, commit, again, until it rests.

It never chooses a state: that is `decide`. It never writes: that is the store. One commit of a run is in flight at a
time; steps of several active states may run beside each other, and beside the events that come in.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from fsmworkflow import acting, actions, claims, records, tasks
from fsmworkflow.children import joined
from fsmworkflow.decide import decide
from fsmworkflow.due import LOOP, again, due_next, endless, resting_due
from fsmworkflow.errors import DefinitionChanged, Refused, RolledBack, log
from fsmworkflow.failures import failure
from fsmworkflow.flights import SUSPECT, fly
from fsmworkflow.hooks import Hooks
from fsmworkflow.inbox import later, left_due, oldest
from fsmworkflow.joint import lent_to, sent, take_after, take_within
from fsmworkflow.records import OPEN, RESTING, Event, Move, Run, replace
from fsmworkflow.store import Keys
from fsmworkflow.versions import Shift, shifted
from fsmworkflow.worker import Worker
from fsmworkflow.workflow import Workflow

__all__ = ["Drive"]

AGAIN, LONGEST = 0.05, 5.0
"""Seconds before a step is run again whose transaction had no effect, at first and at the most; it is doubled."""
PIECE = 0.25
"""Seconds of one piece of a wait for which no step runs."""
ACTS = frozenset({"running", "waiting", "compensating"})
"""The statuses in which a run that is not over does what its last move named."""


class Drive:
    """Drives one claimed run until it rests. `error` is what its step raised, where it failed here.

    With `hold` a run that rests stays ours, so that the next event costs one commit; else it is let go.
    """

    __slots__ = (
        "_anew_at", "_anew_in", "_asked", "_shift", "_woken", "acts", "entered_by", "error", "fresh", "hold", "hooks",
        "inbox", "inline", "passed", "peek", "retry", "run", "rung", "sending", "steps", "stopped", "stopping", "store",
        "unread", "worker", "workflow",
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
        self.fresh = fresh  # whether the visits began here, so that they have no remembered calls yet
        self.unread = run.posted > 0  # whether the inbox may hold what was not looked at
        self._asked: int | None = None  # the version at which waiting states were asked whether they lead on
        self._shift: Shift | None = None  # what another definition has made of the run, and no commit has written yet
        self.passed: tuple[str, ...] = ()  # the states passed since the last step: a cycle of them never rests
        self.sending: asyncio.Task[None] | None = None
        self._anew_at, self._anew_in = -1, AGAIN  # when a step was run again without effect, and after what pause
        self.steps: dict[tasks.Named, asyncio.Task[Event]] = {}
        self.entered_by: dict[int, Event] = {}
        self._woken: asyncio.Future[None] | None = None
        self.inline: tuple[asyncio.Task[Any] | None] | None = None  # the step that runs in our own task, each another
        self.peek: asyncio.Task[None] | None = None
        self.rung = self.stopped = False
        self.acts = ACTS

    # -- from outside -----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something was posted to this run: look at the inbox as soon as possible."""
        self.unread = True
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)
        self.rung = self.inline is not None
        if self.rung and (self.peek is None or self.peek.done()):
            self.peek = asyncio.create_task(tasks.peek_for_stop(self))

    def stop(self) -> None:
        """Begin nothing more: once the steps that are on have ended, the run is given back."""
        self.stopping = True
        self.wake()

    def within(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether a task is one in which a step of this run runs."""
        return task is not None and (task in (self.inline or ()) or task in self.steps.values())

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
            await sent(self)
            await self._begin()
            more, marked = True, self.run.deaths > 0 and self.run.status != "parked"
            while more:
                try:
                    more = await (fly(self) if marked and self.run.deaths > 0 else self.turn())
                except RolledBack as error:
                    await self.anew(error)
            kept = self.hold and not self.stopping and self.run.status in RESTING
            if self.run.owner is not None:
                await claims.rest(self, kept)
        except Exception as error:
            self.worker.set_aside(self.run.id, self.run.version, error)
            raise
        finally:
            if self.peek is not None:
                self.peek.cancel()
            await tasks.stop_steps(self, list(self.steps))
            if self.run.owner is not None and not kept:
                await claims.give_up(self)
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
        self.fresh = False  # what it has remembered stays
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
            await actions.act_after(self)
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
        self.passed = ()
        event = await tasks.alone(self, state)
        if event is not None:
            await self.take(event)
        return True

    async def _next(self, now: float) -> Event | None:
        """The next event: what the run has due, a step that has ended, the oldest that is accepted, a new step."""
        run = self.run
        if run.status == "compensating":
            return self.oldest_due(now) or await self._undone(now)
        if self.steps and (name := lent_to(self)) is not None and (event := tasks.ended_step(self, name)) is not None:
            return event
        event = due_next(self.workflow, run, now, asked=self._asked)
        if event is not None:
            older = None if event.due is None else self.oldest_due(now, event.due)
            return older or self._counted(event)
        event = tasks.ended_step(self) or self.oldest_due(now)
        if event is not None or self.stopping or run.status != "running":
            return event
        return await tasks.begin_steps(self, now)

    def oldest_due(self, now: float, before: float = math.inf) -> Event | None:
        return oldest(self.workflow, self.run, self.inbox, now, before=before, busy=bool(self.steps))

    async def _undone(self, now: float) -> Event | None:
        """The end of the undoing that is next."""
        pause = again(self.run)
        if pause is not None and pause > now:
            return None
        await self.worker.hold(self.run)
        return await acting.undo(self, self.run)

    def _counted(self, event: Event) -> Event:
        """A state passed without a step, an event or a time. More than 1,000 of them in a row are a cycle."""
        if event.name not in (records.DONE, records.BEGIN):
            self.passed = ()
            return event
        self.passed = (*self.passed, event.state)
        return event if len(self.passed) <= LOOP else endless(self.run, self.passed)

    # -- steps ------------------------------------------------------------------------------------------------------

    async def wait(self) -> None:
        """Wait until a step ends, something is posted, or a time has come; in pieces, as the worker may be stopping."""
        now = self.store.now()
        times = [t for t in (again(self.run), resting_due(self.run)) if t is not None and t > now]
        limit = min(times) - now if times else None
        if not self.steps:
            limit = PIECE if limit is None else min(limit, PIECE)
        if not self.unread:
            await self.woken(self.steps.values(), limit)

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
        await tasks.stop_steps(self, [(s, v) for s, v in self.steps if s not in live or live[s].visit != v])

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
        """A move is written, which has made those runs `due`: go on from there."""
        event = move.event
        posted = move.after.posted + (1 if event.id and not event.number else 0)
        if event.id:
            self._spent(move)
        self._shift = None
        self.fresh = self.fresh or move.after.active is not move.before.active
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

    def _spent(self, move: Move) -> None:
        """An event of the inbox was taken. The visits that it has led into know it."""
        event = move.event
        self.inbox = [e for e in self.inbox if e.id != event.id]
        if event.name != records.JOINED:
            entered = {**self.entered_by, move.after.version: event}
            visits = {stay.visit for stay in move.after.active.values()}
            self.entered_by = {visit: by for visit, by in entered.items() if visit in visits}
        elif not self.run.active[event.state].children:
            return  # where there were no children nothing was waited for
        self.passed = ()

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
        await tasks.stop_steps(self, list(self.steps))
        await self.take(Event(name=records.ERROR, state=leaf, failure=failure(error, run, leaf), error=caught))
        if self.run.status == "failed" and not self.run.over:
            self.error = error
