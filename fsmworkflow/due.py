"""What a run has due by itself, and when somebody has to look at it again."""

from __future__ import annotations

from collections.abc import Sequence

from fsmworkflow.case import Case
from fsmworkflow.choosing import first
from fsmworkflow.errors import EndlessLoop
from fsmworkflow.failures import OWN, asked_to_stop, failure
from fsmworkflow.records import BEGIN, DONE, ERROR, OPEN, TIMEOUT, Event, Run, replace, sooner
from fsmworkflow.workflow import Workflow

__all__ = ["LOOP", "again", "due_next", "endless", "resting", "resting_due"]

LOOP = 1_000
"""The most moves without a step, an event or a time between them."""
QUIET = frozenset({"final", "child", "each"})
"""The kinds of states that lead nowhere by themselves: children bring `$joined`."""


def due_next(workflow: Workflow, run: Run, now: float, *, asked: int | None = None) -> Event | None:
    """The event that the run itself has due: a choice, a state that is complete, a time that has come. Else None.

    States that wait with conditions are asked unless they were at version `asked`.
    """
    chart = workflow.chart
    if run.status not in OPEN:
        return None
    for state in run.active:
        if chart.inner[state]:
            continue
        kind = workflow.states[state].kind
        if run.active[state].children is None and state in workflow.families:
            return Event(name=BEGIN, state=state)
        if kind == "choice" or (kind == "wait" and asked != run.version and chart.automatic(state)):
            return Event(name=DONE, state=state)
    for state in reversed(run.active):
        if chart.inner[state] and chart.automatic(state) and chart.complete(state, run.active, workflow.finals):
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


def endless(run: Run, passed: Sequence[str]) -> Event:
    """What fails a run that has passed more than 1,000 states in a row which do nothing."""
    before = [place for place, state in enumerate(passed[:-1]) if state == passed[-1]]
    cycle = " -> ".join(passed[before[-1] if before else -20 :])
    error = EndlessLoop(f"{LOOP:,} moves without a step, an event or time between them: {cycle}")
    return Event(name=ERROR, state=passed[-1], error=error, failure=failure(error, run, passed[-1]))


async def resting(case: Case, run: Run) -> Run:
    """The run with its status and with the time from which somebody has to drive it."""
    busy = [state for state in run.active if await _goes_on(case, run, state)]
    going = busy or any(case.workflow.states[state].kind == "step" for state in run.active)
    due = sooner(run.due, case.now) if busy or run.actions else resting_due(run)
    return replace(run, status="running" if going else "waiting", due=due)


def resting_due(run: Run) -> float | None:
    """When somebody has to look at a run that nothing moves now: its timers, retries, deadline and events to come."""
    times = [time for stay in run.active.values() for time in (stay.again, *stay.timers.values())]
    return sooner(*times, run.deadline, run.later)


def again(run: Run) -> float | None:
    """When the next attempt of a step or of an undoing is due: a retry's pause is no rest."""
    if run.status == "compensating":
        return run.undo.left[-1].again if run.undo.left else None
    if run.status != "running":
        return None
    return sooner(*(stay.again for stay in run.active.values()))


async def _goes_on(case: Case, run: Run, state: str) -> bool:
    """Whether a state does something now: its step is not between two attempts, or it leads on by itself."""
    kind = case.workflow.states[state].kind
    if kind == "step":
        return run.active[state].again is None
    if kind == "choice":
        return True
    if kind in QUIET or not (arcs := case.workflow.chart.automatic(state)):
        return False
    if kind != "wait":
        return case.workflow.chart.complete(state, run.active, case.workflow.finals)
    asking = replace(case, run=run, event=Event(name=DONE, state=state), asked=[])
    try:
        return await first(arcs, asking.view(run.fields)) is not None
    except OWN as error:
        if asked_to_stop(error):
            raise
        return True  # the decision that follows says what is wrong, and fails the run
