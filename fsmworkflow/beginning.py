"""A run at its beginning, and a visit at its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from fsmworkflow.codec import Fields, digests, text_of
from fsmworkflow.due import resting_due
from fsmworkflow.records import Action, Active, Run, replace
from fsmworkflow.retry import seconds
from fsmworkflow.statechart import Arc
from fsmworkflow.states import action_name
from fsmworkflow.workflow import Workflow

__all__ = ["actions_of", "bare", "begin", "new_stay"]

BUSY = frozenset({"step", "choice", "child", "each"})
"""The kinds of states that do something by themselves when a run begins in them."""


def begin(workflow: Workflow, key: str, fields: Fields, *, now: float, states: tuple[str, ...] | None = None) -> Run:
    """A new run, to be created by the store, in these states, in the initial one where None. Its first visit is 0."""
    states = workflow.chart.initial if states is None else states
    active = {state: new_stay(workflow, state, 0, now) for state in states}
    run = Run(
        workflow=workflow.name,
        key=key,
        active=active,
        fields=fields,
        hashes=digests(fields),
        definition=workflow.version,
        structure=workflow.chart.structure,
        deadline=None if workflow.deadline is None else now + seconds(workflow.deadline),
        actions=actions_of(workflow, (), states, (), 0),
        input=hashlib.blake2b(text_of(fields), digest_size=16).hexdigest(),
        created=now,
        updated=now,
    )
    kinds = {workflow.states[state].kind for state in active}
    busy = not kinds.isdisjoint(BUSY)
    # Whether a state that waits leads on is asked by the first drive: until then the run is due.
    asked = run.actions or any(workflow.chart.automatic(state) for state in active)
    due = now if busy or asked else resting_due(run)
    return replace(run, status="running" if busy else "waiting", due=due)


def bare(workflow: Workflow, states: Iterable[str], fields: Fields, key: str, since: float | None) -> Run:
    """A run that has been in these states for some time, and of which nothing else is known. See `Run.at`."""
    run = begin(workflow, key, fields, now=since or 0.0, states=workflow.chart.entered(states))
    if since is None:
        active = {state: replace(stay, timers={}) for state, stay in run.active.items()}
        run = replace(run, active=active, deadline=None)
    ends = next((state for state in run.active if state in workflow.finals and "." not in state), None)
    status = run.status if ends is None else workflow.states[ends].outcome
    return replace(run, status=status, due=None, actions=())


def new_stay(workflow: Workflow, state: str, version: int, now: float) -> Active:
    """A visit that begins now, with its timers."""
    delays = workflow.chart.delays.get(state)
    return Active(version) if delays is None else Active(version, timers={name: now + after for name, after in delays})


def actions_of(
    workflow: Workflow, left: Iterable[str], entered: Iterable[str], arcs: Iterable[Arc], version: int
) -> tuple[Action, ...]:
    """What is to be done after the commit: exits from inside out, the transitions' own, entries from outside in."""
    states = workflow.states
    hooks = [states[s].exit for s in sorted(left, key=workflow.chart.order.__getitem__, reverse=True)]
    names = [action_name(hook) for hook in hooks if hook is not None]
    names += [arc.action for arc in arcs if arc.action is not None]
    names += [action_name(hook) for state in entered if (hook := states[state].enter) is not None]
    return tuple(Action(name, version) for name in names)
