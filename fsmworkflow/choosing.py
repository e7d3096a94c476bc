"""Which transitions are taken? The first whose conditions hold, each asked once."""

from __future__ import annotations

from typing import Any

import msgspec

from fsmworkflow.codec import Fields
from fsmworkflow.conditions import Seen, View
from fsmworkflow.errors import NoTransition
from fsmworkflow.records import Event, Run
from fsmworkflow.statechart import Arc
from fsmworkflow.workflow import Workflow, nearest

__all__ = ["Look", "choose", "left_by", "pick", "view_of"]


class Look(msgspec.Struct, frozen=True):
    """What a guard that is a plain function is given: the data as it would be committed, the run, and the event."""

    data: Any
    run: Run
    event: Event


def view_of(workflow: Workflow, run: Run, event: Event, fields: Fields, asked: list[Seen]) -> View:
    """What a guard may look at, each answer noted in `asked`."""
    data = workflow.codec.decode(fields)
    view = View(data, event.payload, Look(data, run, event), workflow.lenient)
    view.seen = asked
    return view


async def choose(workflow: Workflow, run: Run, event: Event, fields: Fields, asked: list[Seen]) -> Arc:
    """The first transition whose condition holds, each asked once. Raises NoTransition, or what a guard raised."""
    chart = workflow.chart
    if event.trigger is None:
        arcs = chart.automatic(event.state)
    else:
        arcs = tuple(arc for state in chart.outward(event.state) for arc in chart.named(state, event.trigger))
    if arcs and arcs[0].guard is None:
        return arcs[0]
    view = view_of(workflow, run, event, fields, asked)
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


async def pick(workflow: Workflow, run: Run, event: Event, fields: Fields, asked: list[Seen]) -> list[Arc]:
    """For each active leaf the first transition that holds, from inside outwards; what contradicts another goes."""
    chart, view = workflow.chart, view_of(workflow, run, event, fields, asked)
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
        rivals = [k for k in kept if set(left_by(run, k)) & set(left_by(run, arc))]
        if all(arc.source.startswith(rival.source + ".") for rival in rivals):
            kept = [k for k in kept if k not in rivals] + [arc]
    return kept


def left_by(run: Run, arc: Arc) -> list[str]:
    """The active states that a transition leaves."""
    if arc.internal or arc.dest is None:
        return []
    return [state for state in run.active if not arc.domain or state.startswith(arc.domain + ".")]
