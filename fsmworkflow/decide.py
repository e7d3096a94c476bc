"""What does an event do to a run? `decide` answers with a Move, and does nothing: it awaits only the user's guards.

Every rule of the machine is here, one function an event. Time comes in as `now`; chance is a hash of run and attempt.
"""

from __future__ import annotations

import asyncio
import hashlib
import traceback
import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from fsmworkflow.children import BEGIN, JOINED, deeper, inputs, order_to_begin, orders_of
from fsmworkflow.codec import Data, Fields, digests, encode, text_of
from fsmworkflow.conditions import Seen, View
from fsmworkflow.errors import (
    CodecError,
    ConditionError,
    DeadlineExceeded,
    FSMWorkflowError,
    MergeConflict,
    NotAccepted,
    NoTransition,
)
from fsmworkflow.records import Action, Active, Child, Event, Failure, Move, Run, Status, Undo, Undoing, replace
from fsmworkflow.retry import seconds
from fsmworkflow.statechart import Arc
from fsmworkflow.workflow import Workflow, action_name, nearest

__all__ = [
    "CANCEL",
    "DONE",
    "ERROR",
    "PARKED",
    "PAUSE",
    "RERUN",
    "RETRY",
    "STEERING",
    "TIMEOUT",
    "UNPAUSE",
    "begin",
    "decide",
    "due_next",
]

DONE, ERROR, RETRY, TIMEOUT, CANCEL = "$done", "$error", "$retry", "$timeout", "$cancel"
PAUSE, UNPAUSE, RERUN, PARKED = "$pause", "$unpause", "$rerun", "$parked"
STEERING = frozenset({CANCEL, PAUSE, UNPAUSE, RETRY, RERUN})
BUSY = frozenset({"step", "choice", "child", "each"})
"""The kinds of states that do something by themselves when a run begins in them."""
QUIET = frozenset({"final", "child", "each"})
"""The kinds of states that lead nowhere by themselves: children bring `$joined`."""
TRACE = 20_000


OWN = (Exception, asyncio.CancelledError)
"""What a guard or step may raise as its own error."""


def asked_to_stop(error: BaseException) -> bool:
    """Whether a CancelledError came from outside. One that a guard or step brought on itself is its own error."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


class Look(msgspec.Struct, frozen=True):
    """What a guard that is a plain function is given: the data as it would be committed, the run, and the event."""

    data: Any
    run: Run
    event: Event


def begin(workflow: Workflow, key: str, fields: Fields, *, now: float, states: tuple[str, ...] | None = None) -> Run:
    """A new run, to be created by the store, in these states, in the initial one where None. Its first visit is 0."""
    states = workflow.chart.initial if states is None else states
    active = {state: _stay(workflow, state, 0, now) for state in states}
    run = Run(
        workflow=workflow.name,
        key=key,
        active=active,
        fields=fields,
        hashes=digests(fields),
        definition=workflow.version,
        structure=workflow.chart.structure,
        deadline=None if workflow.deadline is None else now + seconds(workflow.deadline),
        actions=_hooks(workflow, (), states, None, 0),
        input=hashlib.blake2b(text_of(fields), digest_size=16).hexdigest(),
        created=now,
        updated=now,
    )
    kinds = {workflow.states[state].kind for state in active}
    busy = not kinds.isdisjoint(BUSY)
    # Whether a state that waits leads on is asked by the first drive: until then the run is due.
    asked = run.actions or any(workflow.chart.automatic(state) for state in active)
    due = now if busy or asked else resting_due(workflow, run)
    return replace(run, status="running" if busy else "waiting", due=due)


def bare(workflow: Workflow, states: Iterable[str], fields: Fields, key: str, since: float | None) -> Run:
    """A run that has been in these states for some time, and of which nothing else is known. See `Run.at`."""
    run = begin(workflow, key, fields, now=since or 0.0, states=workflow.chart.entered(states, ""))
    if since is None:
        active = {state: replace(stay, timers={}) for state, stay in run.active.items()}
        run = replace(run, active=active, deadline=None)
    ends = next((state for state in run.active if state in workflow.finals and "." not in state), None)
    status = run.status if ends is None else workflow.states[ends].outcome
    return replace(run, status=status, due=None, actions=())


async def decide(workflow: Workflow, run: Run, event: Event, *, now: float) -> Move:
    """The move that `event` makes of `run`. Nothing is changed, and nothing awaited but guards.

    What a guard raises, and what leads nowhere, is no error here: it is a move that fails the run. Where nothing moves,
    `move.after is move.before`. Raises NotAccepted for an event that no active state accepts.
    """
    move = await _RULES.get(event.name, _event)(workflow.check(), run, event, now)
    if event.posts and move.error is None:
        move = replace(move, posts=event.posts)
    return _with_children(workflow, move, now) if workflow.families else move


# -- what is to be decided next ---------------------------------------------------------------------------------------


def due_next(workflow: Workflow, run: Run, now: float, *, asked: int | None = None) -> Event | None:
    """The event that the run itself has due: a choice, a state that is complete, a time that has come. Else None.

    States that wait with conditions are asked unless they were at version `asked`.
    """
    chart = workflow.chart
    if run.status not in ("running", "waiting"):
        return None
    for state in run.active:
        if chart.inner[state]:
            continue
        kind = workflow.states[state].kind
        if run.active[state].children is None and state in workflow.families:
            return Event(name=BEGIN, state=state)
        if kind == "choice" or (kind == "wait" and asked != run.version and chart.automatic(state)):
            return Event(name=DONE, state=state)
    for state in () if chart.flat else reversed(run.active):
        if chart.inner[state] and chart.automatic(state) and _complete(workflow, state, run.active):
            return Event(name=DONE, state=state)
    return _timeout_due(run, now)


def _timeout_due(run: Run, now: float) -> Event | None:
    timers = [(due, state, name) for state, stay in run.active.items() for name, due in stay.timers.items()]
    if run.deadline is not None:
        timers.append((run.deadline, "", ""))
    first = min(timers, default=None)
    if first is None or first[0] > now:
        return None
    return Event(name=TIMEOUT, state=first[1], trigger=first[2], due=first[0])


def _complete(workflow: Workflow, state: str, active: Iterable[str]) -> bool:
    return workflow.chart.complete(state, active, workflow.finals)


# -- $done: a step ended, or a state without a step is asked where it leads -------------------------------------------


async def _done(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    if run.status == "compensating":
        return await _undone(workflow, run, event, now)
    state = workflow.states[event.state]
    draft = Draft(run)
    asked: list[Seen] = []
    try:
        draft.write(workflow, event)
        if event.trigger is None and state.ends:
            arc = Arc(None, state.name, None, ends=True)
        else:
            arc = await _choose(workflow, run, event, draft.fields, asked)
            draft.update(workflow, event, [arc])
    except NoTransition as error:
        if state.kind == "wait":
            return Move(before=run, event=event, after=run, at=now, asked=tuple(asked))
        return _fail(workflow, run, event, now, failure(error, run, event.state), error, asked)
    except OWN as error:
        if asked_to_stop(error):
            raise
        return _fail(workflow, run, event, now, failure(error, run, event.state), error, asked)
    return await _take(workflow, run, event, now, [arc], draft, asked)


async def _choose(workflow: Workflow, run: Run, event: Event, fields: Fields, asked: list[Seen]) -> Arc:
    """The first transition whose condition holds, each asked once. Raises NoTransition, or what a guard raised."""
    chart = workflow.chart
    if event.trigger is None:
        arcs = chart.automatic(event.state)
    else:
        arcs = tuple(arc for state in chart.outward(event.state) for arc in chart.named(state, event.trigger))
    if arcs and arcs[0].guard is None:
        return arcs[0]
    view = _view(workflow, run, event, fields, asked)
    for arc in arcs:
        if arc.guard is None or await arc.guard.ask(view):
            return arc
    raise NoTransition(_nowhere(workflow, event, arcs, asked))


def _view(workflow: Workflow, run: Run, event: Event, fields: Fields, asked: list[Seen]) -> View:
    data = workflow.codec.decode(fields)
    view = View(data, event.payload, Look(data, run, event), workflow.lenient)
    view.seen = asked
    return view


def _nowhere(workflow: Workflow, event: Event, arcs: tuple[Arc, ...], asked: list[Seen]) -> str:
    where = f"state {event.state!r}"
    if event.trigger is not None and not arcs:
        hint = nearest(event.trigger, workflow.chart.triggers)
        return f"{where} returned the trigger {event.trigger!r}, which no transition out of it takes{hint}"
    if not arcs:
        return f"{where} ended, and no transition leads on by itself: return a trigger"
    lines = "".join(f"\n  - {one.condition}: {_seen(one)}" for one in asked)
    return f"{where} ended, and none of its conditions holds:{lines}"


def _seen(one: Seen) -> str:
    saw = ", ".join(f"{name} = {value}" for name, value in one.values.items())
    return f"{one.answer} ({saw})" if saw else str(one.answer)


# -- children ---------------------------------------------------------------------------------------------------------


def _with_children(workflow: Workflow, move: Move, now: float) -> Move:
    """The move with the children that it makes, and with what it says to those that are there."""
    after, orders = move.after, [*move.orders, *orders_of(workflow, move.before, move.after)]
    starts = move.starts
    for state, stay in after.active.items():
        if state in workflow.families and stay.children is None and after.status in ("running", "waiting"):
            try:
                after, made = _family(workflow, after, state, now)
            except Exception:  # `$begin` comes next, and says what is wrong, in the state itself
                after = replace(after, status="running", due=now)
            else:
                starts, orders = (*starts, *made), [*orders, order_to_begin(workflow, stay, state)]
    return replace(move, after=after, starts=starts, orders=tuple(orders))


def _family(workflow: Workflow, run: Run, state: str, now: float) -> tuple[Run, tuple[Run, ...]]:
    """The run with the children of a state made, and these. Raises what the user's functions do, and CodecError."""
    depth, stay, other = deeper(run, state), run.active[state], workflow.families[state].workflow
    made = []
    for ordinal, given in enumerate(inputs(workflow, workflow.families[state], run)):
        try:
            fields = other.codec.start(given)
        except CodecError as error:
            raise CodecError(f"input of child {ordinal}, {error.path}", error.reason) from error
        child = begin(other, f"{run.key}/{state}/{stay.visit}/{ordinal}", fields, now=now)
        made.append(replace(child, due=None, child=Child(run.id, state, stay.visit, ordinal, depth)))
    active = {**run.active, state: replace(stay, children=len(made))}
    return replace(run, active=active), tuple(made)


async def _begun(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """The children of a state in which the run began, or whose making failed in the move that entered it."""
    stay = run.active[event.state]
    try:
        after, made = _family(workflow, replace(run, version=run.version + 1, updated=now), event.state, now)
    except Exception as error:
        return await _failed(workflow, run, replace(event, error=error), now, failure(error, run, event.state))
    order = order_to_begin(workflow, stay, event.state)
    after = await _resting(workflow, after, now)
    return Move(before=run, event=event, after=after, at=now, starts=made, orders=(order,))


async def _joined(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """All children of a visit have ended, or the first has failed: as the end of a step, or its error."""
    error = event.error
    if error is None and event.changes:
        try:
            workflow.codec.weigh({**run.fields, **event.changes})
            workflow.codec.decode({**run.fields, **event.changes})
        except Exception as refused:
            error = refused
    if error is None:
        return await _done(workflow, run, event, now)
    return await _failed(workflow, run, replace(event, error=error), now, failure(error, run, event.state))


# -- an event from outside --------------------------------------------------------------------------------------------


async def _event(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """One event moves every region that accepts it, inner states before outer ones, in document order, in one move."""
    chart = workflow.chart
    if run.status not in ("running", "waiting") or not chart.accepted(run.active, event.name):
        accepts = ", ".join(workflow.accepts(run)) or "nothing"
        raise NotAccepted(f"{run.workflow}/{run.key} in state {run.state!r} does not accept {event.name!r}: {accepts}")
    draft = Draft(run)
    asked: list[Seen] = []
    try:
        draft.merge_payload(workflow, event)
        arcs = await _pick(workflow, run, event, draft.fields, asked)
        if not arcs:
            return _rejected(run, event, now, asked)
        draft.update(workflow, event, arcs)
    except ConditionError:  # what somebody sends stops no run: history has what could not be answered, and why
        return _rejected(run, event, now, asked)
    except OWN as error:
        if asked_to_stop(error):
            raise
        return _fail(workflow, run, event, now, failure(error, run, run.state), error, asked)
    return await _take(workflow, run, event, now, arcs, draft, asked)


async def _pick(workflow: Workflow, run: Run, event: Event, fields: Fields, asked: list[Seen]) -> list[Arc]:
    """For each active leaf the first transition that holds, from inside outwards; what contradicts another goes."""
    chart, view = workflow.chart, _view(workflow, run, event, fields, asked)
    answers: dict[int, bool] = {}
    picked: list[Arc] = []
    for leaf in chart.leaves(run.active):
        for arc in (arc for state in chart.outward(leaf) for arc in chart.named(state, event.name)):
            if id(arc) not in answers:
                answers[id(arc)] = arc.guard is None or await arc.guard.ask(view)
            if answers[id(arc)]:
                if arc not in picked:
                    picked.append(arc)
                break
    return picked if len(picked) < 2 else _agreeing(run, picked)


def _agreeing(run: Run, picked: list[Arc]) -> list[Arc]:
    """Transitions that leave a common state contradict each other: the inner source wins, else the earlier one."""
    kept: list[Arc] = []
    for arc in picked:
        rivals = [k for k in kept if set(_left(run, k)) & set(_left(run, arc))]
        if all(arc.source.startswith(rival.source + ".") for rival in rivals):
            kept = [k for k in kept if k not in rivals] + [arc]
    return kept


def _rejected(run: Run, event: Event, now: float, asked: list[Seen]) -> Move:
    """The event is spent, the run stays, and history has every condition with what it saw."""
    after = replace(run, version=run.version + 1, updated=now)
    return Move(before=run, event=event, after=after, at=now, asked=tuple(asked), answer="rejected")


# -- taking transitions -----------------------------------------------------------------------------------------------


class Draft:
    """The data of a run as a move would leave it, and what differs from before."""

    __slots__ = ("changes", "fields", "merged", "removed", "run", "touched")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.fields = run.fields
        self.changes: Fields = {}
        self.removed: tuple[str, ...] = ()
        self.merged: tuple[str, ...] = ()  # the keys that a payload has changed
        self.touched: list[tuple[str, tuple[str, ...]]] = []  # regions, with the keys that an event has changed in them

    def apply(self, changes: Fields, removed: tuple[str, ...]) -> None:
        """Write changes. A key that is both removed and changed has moved to the end."""
        if removed:
            self.fields = {key: text for key, text in self.fields.items() if key not in removed}
            self.changes = {key: text for key, text in self.changes.items() if key not in removed}
            self.removed += tuple(key for key in removed if key in self.run.fields and key not in self.removed)
        if changes:
            self.fields = {**self.fields, **changes}
            self.changes = {**self.changes, **changes} if self.changes else changes

    def write(self, workflow: Workflow, event: Event) -> None:
        """What a step changed, onto the data as it now is. Raises MergeConflict for a key that moved meanwhile."""
        changes, removed = event.changes or {}, event.removed
        if not changes and not removed:
            return
        if event.base is not None and (event.base is not self.run.fields or len(self.run.active) > 1):
            changes = {**changes, **self._merged(workflow, event, (*changes, *removed))}
        self.apply(changes, removed)

    def _merged(self, workflow: Workflow, event: Event, keys: Iterable[str]) -> Fields:
        """The keys that somebody else has changed too, joined by the functions of `merge=`."""
        merged: Fields = {}
        base, touched = event.base or {}, _touched_elsewhere(workflow, self.run, event.state)
        touched.update(self.run.active[event.state].touched)
        for key in keys:
            if base.get(key) == self.run.fields.get(key) and key not in touched:
                continue
            join = workflow.merge.get(key)
            if join is None or event.changes is None or key not in event.changes or key not in self.run.fields:
                raise MergeConflict(
                    f"state {event.state!r} changed {key!r}, which another move had changed meanwhile: "
                    f"say how to join them, with Workflow(merge={{{key!r}: fn}})"
                )
            value = join(Data(self.run.fields)[key], Data(event.changes)[key])
            merged[key] = msgspec.Raw(encode(value, f"data.{key}"))
        return merged

    def merge_payload(self, workflow: Workflow, event: Event) -> None:
        """Write the payload into the data, where the workflow says so."""
        if workflow.payload == "merge" and isinstance(event.payload, dict):
            data = {**Data(self.fields), **event.payload}
            kind = workflow.codec.kind
            new = data if kind is None else msgspec.convert(data, kind)
            self.merged = self._changed(workflow, new)

    def _changed(self, workflow: Workflow, data: Any) -> tuple[str, ...]:
        """Take the data as it shall be. Returns the keys that differ."""
        changes, removed = workflow.codec.changes(data, self.fields)
        self.apply(changes, removed)
        return (*changes, *removed)

    def update(self, workflow: Workflow, event: Event, arcs: Iterable[Arc]) -> None:
        """Let the transitions change the data: in place, or by returning what it shall be."""
        for arc in arcs:
            if arc.update is not None:
                data = workflow.codec.decode(self.fields)
                new = arc.update(data, event)
                keys = self._changed(workflow, data if new is None else new)
                self.touched += [(region, keys) for region in _regions(workflow, arc.source)]
        if self.merged:  # of several regions at once none has changed it alone
            common = [set(_regions(workflow, arc.source)) for arc in arcs]
            self.touched += [(region, self.merged) for region in set.intersection(*common)]

    def hashes(self) -> dict[str, str]:
        """The hashes of the large fields: only what changed is hashed."""
        new = digests(self.changes) if self.changes else {}
        if not self.run.hashes:
            return new
        kept = {k: h for k, h in self.run.hashes.items() if k not in self.removed and k not in self.changes}
        return {**kept, **new}


def _regions(workflow: Workflow, state: str) -> list[str]:
    if workflow.chart.flat:
        return []
    return [one for one in workflow.chart.around[state] if workflow.states[one].kind == "region"]


def _touched_elsewhere(workflow: Workflow, run: Run, state: str) -> set[str]:
    """The keys that other regions have changed in this visit of a parallel state."""
    touched: set[str] = set()
    for region in _regions(workflow, state):
        for other in workflow.chart.inner[region.rpartition(".")[0]]:
            if other != region and other in run.active:
                touched.update(run.active[other].touched)
    return touched


def _left(run: Run, arc: Arc) -> list[str]:
    """The active states that a transition leaves."""
    if arc.internal or arc.dest is None:
        return []
    return [state for state in run.active if not arc.domain or state.startswith(arc.domain + ".")]


async def _take(
    workflow: Workflow, run: Run, event: Event, now: float, arcs: list[Arc], draft: Draft, asked: list[Seen]
) -> Move:
    version, chart = run.version + 1, workflow.chart
    if arcs[0].plain and event.name == DONE:
        return _step_to_step(workflow, run, event, now, arcs[0], draft, asked)
    if chart.flat:
        left = [] if arcs[0].internal or arcs[0].dest is None else list(run.active)
    else:
        left = [state for arc in arcs for state in _left(run, arc)]
    entered = [state for arc in arcs for state in arc.enters]
    active = _moved(workflow, run, event, left, entered, draft, version, now)
    ends = any(arc.ends for arc in arcs)
    final = next((s for s in entered if s in workflow.finals and "." not in s), None)
    undo, gone = run.undo, left
    if event.name == DONE and workflow.states[event.state].compensate is not None:
        undo = replace(undo, left=(*undo.left, _done_with(event.state, run.active[event.state])))
    after = replace(
        run,
        active=active,
        fields=draft.fields,
        hashes=draft.hashes(),
        status="running",
        version=version,
        definition=workflow.version,
        structure=chart.structure,
        error=None,
        actions=_hooks(workflow, left, entered, arcs, version),
        undo=undo,
        deaths=0,
        updated=now,
    )
    if ends or final is not None:
        after = _ended(workflow, after, now, "done" if final is None else workflow.states[final].outcome)
        gone = list(run.active)
    else:
        after = await _resting(workflow, after, now)
    return Move(
        before=run,
        event=event,
        after=after,
        at=now,
        changes=draft.changes,
        removed=draft.removed,
        asked=tuple(asked),
        forget=_remembered(run, gone) if event.remembered else (),
    )


def _remembered(run: Run, states: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Where the remembered calls of active states stand."""
    return tuple((run.active[state].was or state, run.active[state].visit) for state in states)


def _done_with(state: str, stay: Active) -> Undo:
    return Undo(state, stay.visit, was=stay.was)


def _step_to_step(
    workflow: Workflow, run: Run, event: Event, now: float, arc: Arc, draft: Draft, asked: list[Seen]
) -> Move:
    """What most moves are, told shortly: see `Arc.plain`."""
    version = run.version + 1
    after = replace(
        run,
        active={arc.enters[0]: Active(version)},
        fields=draft.fields,
        hashes=draft.hashes(),
        status="running",
        version=version,
        definition=workflow.version,
        structure=workflow.chart.structure,
        due=run.due if run.due is not None and run.due <= now else now,
        error=None,
        actions=(),
        deaths=0,
        updated=now,
    )
    return Move(
        before=run,
        event=event,
        after=after,
        at=now,
        changes=draft.changes,
        removed=draft.removed,
        asked=tuple(asked),
        forget=_remembered(run, (event.state,)) if event.remembered else (),
    )


def _moved(
    workflow: Workflow,
    run: Run,
    event: Event,
    left: list[str],
    entered: list[str],
    draft: Draft,
    version: int,
    now: float,
) -> dict[str, Active]:
    """The active states after a move, in document order."""
    active = run.active
    if event.name == TIMEOUT and event.state in active:
        stay = active[event.state]
        timers = {name: due for name, due in stay.timers.items() if name != event.trigger}
        active = {**active, event.state: replace(stay, timers=timers)}
    if workflow.families:
        active = _told(workflow, active, event, draft)
    touched = draft.touched
    if event.name in (DONE, JOINED) and not workflow.chart.flat and (draft.changes or draft.removed):
        touched = [(region, (*draft.changes, *draft.removed)) for region in _regions(workflow, event.state)]
    for region, keys in touched:
        all_keys = dict.fromkeys((*active[region].touched, *keys))
        active = {**active, region: replace(active[region], touched=tuple(all_keys))}
    if not left and not entered:
        return active
    stays = {state: _stay(workflow, state, version, now) for state in entered}
    active = {**{s: stay for s, stay in active.items() if s not in left}, **stays}
    return active if len(active) == 1 else dict(sorted(active.items(), key=lambda one: workflow.chart.order[one[0]]))


def _told(workflow: Workflow, active: dict[str, Active], event: Event, draft: Draft) -> dict[str, Active]:
    """The active states, those that wait for children with the keys that others have changed meanwhile."""
    changed = (*draft.changes, *draft.removed)
    others = [s for s, stay in active.items() if stay.children is not None and s != event.state] if changed else []
    told = {s: replace(active[s], touched=tuple(dict.fromkeys([*active[s].touched, *changed]))) for s in others}
    return {**active, **told} if told else active


def _stay(workflow: Workflow, state: str, version: int, now: float) -> Active:
    delays = workflow.chart.delays.get(state)
    return Active(version) if delays is None else Active(version, timers={name: now + after for name, after in delays})


def _hooks(
    workflow: Workflow, left: Iterable[str], entered: Iterable[str], arcs: list[Arc] | None, version: int
) -> tuple[Action, ...]:
    """What is to be done after the commit: exits from inside out, the transitions' own, entries from outside in."""
    states = workflow.states
    hooks = [states[s].exit for s in sorted(left, key=workflow.chart.order.__getitem__, reverse=True)] if left else []
    names = [action_name(hook) for hook in hooks if hook is not None]
    names += [arc.action for arc in arcs or () if arc.action is not None]
    names += [action_name(hook) for state in entered if (hook := states[state].enter) is not None]
    return tuple(Action(name, version) for name in names)


async def _resting(workflow: Workflow, run: Run, now: float) -> Run:
    """The run with its status and with the time from which somebody has to drive it."""
    busy = False
    again = False
    for state in run.active:
        kind = workflow.states[state].kind
        if kind == "step":
            if run.active[state].again is None:
                busy = True
            else:
                again = True
        elif kind == "choice" or (kind not in QUIET and await _leads_on(workflow, run, state, kind)):
            busy = True
    status: Status = "running" if busy or again else "waiting"
    if busy or run.actions:
        due: float | None = run.due if run.due is not None and run.due <= now else now
    else:
        due = resting_due(workflow, run)
    return run if (status, due) == (run.status, run.due) else replace(run, status=status, due=due)


def resting_due(workflow: Workflow, run: Run) -> float | None:
    """When somebody has to look at a run that nothing moves now: its timers, retries, deadline and events to come."""
    times = [due for stay in run.active.values() for due in stay.timers.values()]
    times += [stay.again for stay in run.active.values() if stay.again is not None]
    return min((t for t in (*times, run.deadline, run.later) if t is not None), default=None)


async def _leads_on(workflow: Workflow, run: Run, state: str, kind: str) -> bool:
    """Whether a state without a step has a transition to take by itself."""
    arcs = workflow.chart.automatic(state)
    if not arcs:
        return False
    if kind != "wait":
        return _complete(workflow, state, run.active)
    view = _view(workflow, run, Event(name=DONE, state=state), run.fields, [])
    for arc in arcs:
        try:
            if arc.guard is None or await arc.guard.ask(view):
                return True
        except OWN as error:
            if asked_to_stop(error):
                raise
            return True  # the decision that follows says what is wrong, and fails the run
    return False


# -- ending -----------------------------------------------------------------------------------------------------------


def _ended(workflow: Workflow, run: Run, now: float, ends: Status) -> Run:
    """The run at its end; where it has not ended well, what can be undone comes first."""
    if ends != "done" and run.undo.left:
        if workflow.on_failure == "park" and ends == "failed" and run.error is not None:
            return replace(run, status="parked", due=None, owner=None)
        return replace(run, status="compensating", undo=replace(run.undo, ends=ends), due=now)
    if run.actions:
        return replace(run, status=ends, due=now)
    return replace(run, status=ends, due=None, owner=None)


def _fail(
    workflow: Workflow,
    run: Run,
    event: Event,
    now: float,
    found: Failure,
    error: BaseException | None,
    asked: Iterable[Seen] = (),
) -> Move:
    """The run fails and keeps its place: state, data, visit and remembered calls."""
    after = replace(run, version=run.version + 1, error=found, updated=now)
    after = _ended(workflow, after, now, "failed")
    if after.status == "failed":
        after = replace(after, due=None, owner=None)
    return Move(before=run, event=event, after=after, at=now, asked=tuple(asked), error=error)


async def _cancel(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    if run.over or run.status == "compensating":
        return _rejected(run, event, now, [])
    after = replace(run, version=run.version + 1, actions=(), updated=now)
    after = _ended(workflow, after, now, "cancelled")
    return Move(before=run, event=event, after=after, at=now, forget=_remembered(run, run.active))


# -- $error: a step raised --------------------------------------------------------------------------------------------


async def _error(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    if run.status == "compensating":
        return _not_undone(workflow, run, event, now)
    stay, step = run.active[event.state], workflow.states[event.state].step
    found = event.failure or failure(event.error or RuntimeError("unknown"), run, event.state)
    retry = None if step is None else step.retry
    if retry is None or event.error is None or not retry.again(stay.attempt, event.error):
        return await _failed(workflow, run, event, now, found)
    again = now + retry.delay(stay.attempt, _chance(run, stay.visit, stay.attempt))
    active = {**run.active, event.state: replace(stay, attempt=stay.attempt + 1, again=again)}
    after = replace(run, active=active, status="running", version=run.version + 1, error=found, updated=now)
    if event.progress:
        after = replace(after, deaths=0)
    return Move(before=run, event=event, after=await _resting(workflow, after, now), at=now)


async def _failed(workflow: Workflow, run: Run, event: Event, now: float, found: Failure) -> Move:
    """A step has failed for good: `on_error` may lead on, with the error as the payload, and in the data as `error`."""
    arcs = [arc for state in workflow.chart.outward(event.state) for arc in workflow.chart.failing(state)]
    arcs = [arc for arc in arcs if event.error is not None and isinstance(event.error, arc.error)]
    if not arcs:
        return _fail(workflow, run, event, now, found, event.error)
    payload = {"type": found.type, "message": found.message, "state": found.state, "attempt": found.attempt}
    told = replace(event, payload=payload)
    draft, asked = Draft(run), list[Seen]()
    try:
        if workflow.codec.kind is None:
            draft.apply({"error": msgspec.Raw(encode(payload))}, ())
        view = _view(workflow, run, told, draft.fields, asked)
        for arc in arcs:
            if arc.guard is None or await arc.guard.ask(view):
                draft.update(workflow, told, [arc])
                move = await _take(workflow, run, told, now, [arc], draft, asked)
                if move.after.status == "failed":  # it has ended in a final state, and tells of the error all the same
                    over = replace(move.after.undo, ends="failed")
                    return replace(move, after=replace(move.after, error=found, undo=over))
                return move
    except OWN as error:
        if asked_to_stop(error):
            raise
        return _fail(workflow, run, event, now, failure(error, run, event.state), error, asked)
    return _fail(workflow, run, event, now, found, event.error, asked)


def _chance(run: Run, visit: int, attempt: int) -> float:
    """A number in [0, 1) that differs between runs, visits and attempts: jitter without a source of randomness."""
    return zlib.crc32(f"{run.workflow}\0{run.key}\0{visit}\0{attempt}".encode()) / 2**32


# -- $timeout: a time has come ----------------------------------------------------------------------------------------


async def _timeout(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    if not event.state:
        error = DeadlineExceeded(f"{run.workflow}/{run.key} had not ended by its deadline")
        return _fail(workflow, replace(run, deadline=None), event, now, failure(error, run, run.state), error)
    draft, asked = Draft(run), list[Seen]()
    try:
        view = _view(workflow, run, event, draft.fields, asked)
        for arc in workflow.chart.named(event.state, event.trigger or ""):
            if arc.guard is None or await arc.guard.ask(view):
                draft.update(workflow, event, [arc])
                return await _take(workflow, run, event, now, [arc], draft, asked)
    except OWN as error:
        if asked_to_stop(error):
            raise
        return _fail(workflow, run, event, now, failure(error, run, event.state), error, asked)
    spent = _moved(workflow, run, event, [], [], draft, run.version, now)
    move = _rejected(replace(run, active=spent), event, now, asked)
    return replace(move, before=run, after=await _resting(workflow, move.after, now))


# -- undoing ----------------------------------------------------------------------------------------------------------


async def _undone(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """The youngest visit is undone, and what its undoing changed is written."""
    draft = Draft(run)
    draft.apply(event.changes or {}, event.removed)
    after = replace(run, fields=draft.fields, hashes=draft.hashes(), version=run.version + 1, updated=now)
    after = _undo_next(after, replace(run.undo, left=run.undo.left[:-1]), now)
    return Move(before=run, event=event, after=after, at=now, changes=draft.changes, removed=draft.removed)


def _not_undone(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """An undoing raised: it is tried again, and in the end listed as lost."""
    undo, version = run.undo.left[-1], run.version + 1
    after = replace(run, version=version, updated=now)
    state = workflow.states.get(undo.state)
    if state is not None and event.error is not None and state.undo.again(undo.attempt, event.error):
        again = now + state.undo.delay(undo.attempt, _chance(run, undo.visit, undo.attempt))
        tried = replace(undo, attempt=undo.attempt + 1, again=again)
        after = replace(after, undo=replace(run.undo, left=(*run.undo.left[:-1], tried)), due=again)
    else:
        lost = replace(run.undo, left=run.undo.left[:-1], lost=(*run.undo.lost, undo))
        after = _undo_next(after, lost, now)
    return Move(before=run, event=event, after=after, at=now, error=event.error)


def _undo_next(run: Run, undo: Undoing, now: float) -> Run:
    if undo.left:
        return replace(run, undo=undo, due=now)
    ends: Any = undo.ends or "failed"
    if run.actions:
        return replace(run, undo=undo, status=ends, due=now)
    return replace(run, undo=undo, status=ends, due=None, owner=None)


# -- steering by hand -------------------------------------------------------------------------------------------------


async def _retry(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """A failed or parked run goes on in the same visit, its attempts counted anew."""
    if run.over or run.status not in ("failed", "parked"):
        return _rejected(run, event, now, [])
    active = {state: replace(stay, attempt=1, again=None) for state, stay in run.active.items()}
    after = replace(run, active=active, version=run.version + 1, due=now, deaths=0, updated=now)
    if run.undo.ends is not None:  # it was parked while it was being undone
        return Move(before=run, event=event, after=replace(after, status="compensating"), at=now)
    return Move(before=run, event=event, after=await _resting(workflow, after, now), at=now)


async def _rerun(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """A run that is not over goes on in a new visit of the state that the payload names; not in one that ends it."""
    state = workflow.states.get(event.payload)
    ends = state is None or (state.kind == "final" and "." not in state.name)
    if run.over or run.status == "compensating" or ends:
        return _rejected(run, event, now, [])
    arc = Arc(None, run.state, str(event.payload), enters=workflow.chart.entered((str(event.payload),), ""))
    left = tuple(run.active)
    version = run.version + 1
    active = {state: _stay(workflow, state, version, now) for state in arc.enters}
    actions = _hooks(workflow, left, arc.enters, [], version)
    after = replace(run, active=active, version=version, error=None, actions=actions, due=now, deaths=0, updated=now)
    after = await _resting(workflow, after, now)
    return Move(before=run, event=event, after=after, at=now, forget=_remembered(run, left))


async def _pause(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    if run.status not in ("running", "waiting"):
        return _rejected(run, event, now, [])
    after = replace(run, status="paused", version=run.version + 1, due=None, updated=now)
    return Move(before=run, event=event, after=after, at=now)


async def _unpause(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    if run.status != "paused":
        return _rejected(run, event, now, [])
    after = replace(run, status="running", version=run.version + 1, due=now, updated=now)
    return Move(before=run, event=event, after=await _resting(workflow, after, now), at=now)


async def _parked(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """Processes died while the run was in flight: it keeps its place, and nobody drives it until somebody says so."""
    after = replace(run, status="parked", version=run.version + 1, error=event.failure, updated=now)
    return Move(before=run, event=event, after=replace(after, due=None, owner=None), at=now)


_RULES: dict[str, Callable[[Workflow, Run, Event, float], Awaitable[Move]]] = {
    DONE: _done,
    ERROR: _error,
    TIMEOUT: _timeout,
    CANCEL: _cancel,
    RETRY: _retry,
    RERUN: _rerun,
    PAUSE: _pause,
    UNPAUSE: _unpause,
    PARKED: _parked,
    BEGIN: _begun,
    JOINED: _joined,
}


def failure(error: BaseException, run: Run, state: str) -> Failure:
    """An error as the row keeps it: its type, message and traceback, the message and trace cut to a bearable length."""
    stay = run.active.get(state, Active(run.version))
    trace = "".join(traceback.format_exception(error))
    return Failure(
        type=type(error).__qualname__,
        message=_storable(_said(error))[:TRACE],
        traceback=_storable(trace)[-TRACE:],
        state=state,
        visit=stay.visit,
        attempt=stay.attempt,
        code=error.code if isinstance(error, FSMWorkflowError) else None,
    )


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an error of the user's whose text cannot be made
        return ""


def _storable(text: str) -> str:
    """Text of any origin as stores keep it: without NUL and lone surrogates."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
