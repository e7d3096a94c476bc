"""What does an event do to a run? `decide` answers with a Move, and does nothing: it awaits only the user's guards.

Every rule of the machine is here, one function an event. Time comes in as `now`; chance is a hash of run and attempt.
"""

from __future__ import annotations

import hashlib
import traceback
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from fsmworkflow.codec import Fields, digests, text_of
from fsmworkflow.conditions import Seen, View
from fsmworkflow.errors import DefinitionChanged, FSMWorkflowError, MergeConflict, NoTransition
from fsmworkflow.records import Action, Active, Event, Failure, Move, Run, replace
from fsmworkflow.statechart import Arc
from fsmworkflow.workflow import Workflow, nearest

__all__ = ["DONE", "ERROR", "RETRY", "begin", "decide", "failure", "fit"]

DONE, ERROR, RETRY = "$done", "$error", "$retry"
TRACE = 20_000


class Look(msgspec.Struct, frozen=True):
    """What a guard that is a plain function is given: the data as it would be committed, the run, and the event."""

    data: Any
    run: Run
    event: Event


def begin(workflow: Workflow, key: str, fields: Fields, *, now: float) -> Run:
    """A new run in its initial state, to be created by the store. Its first visit is 0."""
    return Run(
        workflow=workflow.name,
        key=key,
        active={workflow.initial: Active(0)},
        fields=fields,
        hashes=digests(fields),
        definition=workflow.version,
        structure=workflow.chart.structure,
        due=now,
        input=hashlib.blake2b(text_of(fields), digest_size=16).hexdigest(),
        created=now,
        updated=now,
    )


async def decide(workflow: Workflow, run: Run, event: Event, *, now: float) -> Move:
    """The move that `event` makes of `run`. Nothing is changed, and nothing awaited but guards.

    What a guard raises, and what leads nowhere, is no error here: it is a move that fails the run.
    """
    return await _RULES[event.name](workflow, run, event, now)


# -- $done: a step ended, or a state without a step is asked where it leads -----------------------------------------


async def _done(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    state = workflow.states[event.state]
    try:
        fields = _written(workflow, run, event)
    except MergeConflict as error:
        return _fail(run, event, now, failure(error, run, event.state), error)
    if event.trigger is None and state.ends:
        return _take(workflow, run, event, now, Arc(None, state.name, None, None, ends=True), fields, ())
    asked: list[Seen] = []
    try:
        arc = await _choose(workflow, run, event, fields, asked)
    except Exception as error:
        return _fail(run, event, now, failure(error, run, event.state), error, tuple(asked))
    return _take(workflow, run, event, now, arc, fields, tuple(asked))


def _written(workflow: Workflow, run: Run, event: Event) -> Fields:
    """The data after the step: what it changed, onto the data as it now is. What moved to the end is in both lists."""
    base = run.fields
    if not event.changes and not event.removed:
        return base
    fields = {k: v for k, v in base.items() if k not in event.removed} if event.removed else base
    return {**fields, **(event.changes or {})}


async def _choose(workflow: Workflow, run: Run, event: Event, fields: Fields, asked: list[Seen]) -> Arc:
    """The first transition whose condition holds, each asked once. Raises NoTransition, or what a guard raised."""
    chart = workflow.chart
    arcs = chart.automatic(event.state) if event.trigger is None else chart.named(event.state, event.trigger)
    if arcs and arcs[0].guard is None:
        return arcs[0]
    data = workflow.codec.decode(fields)
    view = View(data, None, Look(data, run, event), workflow.lenient)
    view.seen = asked
    for arc in arcs:
        if arc.guard is None or await arc.guard.ask(view):
            return arc
    raise NoTransition(_nowhere(workflow, event, arcs, asked))


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


def _take(
    workflow: Workflow, run: Run, event: Event, now: float, arc: Arc, fields: Fields, asked: tuple[Seen, ...]
) -> Move:
    version = run.version + 1
    ends = arc.ends
    state = workflow.states[arc.dest or arc.source]
    ends = ends or state.kind == "final"
    active = run.active if arc.dest is None else {arc.dest: Active(version)}
    actions = () if arc.action is None else (Action(arc.action, version),)
    after = replace(
        run,
        active=active,
        fields=fields,
        hashes=_hashes(run, event),
        status=("failed" if state.outcome == "failed" else "done") if ends else "running",
        version=version,
        definition=workflow.version,
        structure=workflow.chart.structure,
        due=run.due if not ends else now if actions else None,
        owner=None if ends and not actions else run.owner,
        error=None,
        actions=actions,
        deaths=0,
        updated=now,
    )
    return Move(
        before=run,
        event=event,
        after=after,
        at=now,
        changes=event.changes or {},
        removed=event.removed,
        asked=asked,
        forget=((event.state, run.active[event.state].visit),) if event.remembered else (),
    )


def _hashes(run: Run, event: Event) -> dict[str, str]:
    """The hashes of the large fields after the step: only what changed is hashed."""
    new = digests(event.changes) if event.changes else {}
    if not run.hashes:
        return new
    kept = {k: v for k, v in run.hashes.items() if k not in event.removed and k not in (event.changes or {})}
    return {**kept, **new}


# -- $error: a step raised ------------------------------------------------------------------------------------------


async def _error(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    stay, step = run.active[event.state], workflow.states[event.state].step
    found = event.failure or failure(event.error or RuntimeError("unknown"), run, event.state)
    retry = None if step is None else step.retry
    if retry is None or event.error is None or not retry.again(stay.attempt, event.error):
        return _fail(run, event, now, found, event.error)
    after = replace(
        run,
        active={**run.active, event.state: replace(stay, attempt=stay.attempt + 1)},
        status="running",
        version=run.version + 1,
        due=now + retry.delay(stay.attempt, _chance(run, stay)),
        error=found,
        updated=now,
    )
    return Move(before=run, event=event, after=after, at=now)


def _chance(run: Run, stay: Active) -> float:
    """A number in [0, 1) that differs between runs, visits and attempts: jitter without a source of randomness."""
    return zlib.crc32(f"{run.workflow}\0{run.key}\0{stay.visit}\0{stay.attempt}".encode()) / 2**32


def _fail(
    run: Run, event: Event, now: float, found: Failure, error: BaseException | None, asked: tuple[Seen, ...] = ()
) -> Move:
    """The run fails and keeps its place: state, data, visit and remembered calls."""
    after = replace(run, status="failed", version=run.version + 1, due=None, owner=None, error=found, updated=now)
    return Move(before=run, event=event, after=after, at=now, asked=asked, error=error)


# -- $retry: somebody wants a failed run to go on -------------------------------------------------------------------


async def _retry(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """The same visit goes on, its attempts counted anew."""
    active = {state: replace(stay, attempt=1) for state, stay in run.active.items()}
    after = replace(run, active=active, status="running", version=run.version + 1, due=now, deaths=0, updated=now)
    return Move(before=run, event=event, after=after, at=now)


_RULES: dict[str, Callable[[Workflow, Run, Event, float], Awaitable[Move]]] = {
    DONE: _done,
    ERROR: _error,
    RETRY: _retry,
}


# -- fitting a run to a definition ----------------------------------------------------------------------------------


def fit(workflow: Workflow, run: Run) -> None:
    """Check that a run can go on in this workflow. Raises DefinitionChanged, with both versions; nothing is touched."""
    gone = [state for state in run.active if state not in workflow.states]
    if gone:
        raise DefinitionChanged(
            f"run {run.workflow}/{run.key} (version {run.definition}) is in state {gone[0]!r}, "
            f"which version {workflow.version} of the workflow does not have{nearest(gone[0], workflow.states)}"
        )
    try:
        if workflow.codec.kind is not None:
            workflow.codec.decode(run.fields)
    except FSMWorkflowError as error:
        raise DefinitionChanged(
            f"run {run.workflow}/{run.key} (version {run.definition}) has data that does not fit "
            f"version {workflow.version} of the workflow: {error}"
        ) from error


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
