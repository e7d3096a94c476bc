"""Which transitions are taken? The first whose conditions hold, each asked once."""

from __future__ import annotations

from collections.abc import Iterable

from fsmworkflow.case import Case
from fsmworkflow.codec import Fields
from fsmworkflow.conditions import View
from fsmworkflow.errors import NoTransition, nearest
from fsmworkflow.records import Run
from fsmworkflow.statechart import Arc

__all__ = ["choose", "first", "left_by", "pick"]


async def first(arcs: Iterable[Arc], view: View) -> Arc | None:
    """The first transition that has no condition, or one that holds. None where there is none."""
    for arc in arcs:
        if arc.guard is None or await arc.guard.ask(view):
            return arc
    return None


async def choose(case: Case, fields: Fields) -> Arc:
    """The transition that the end of a step takes. Raises NoTransition, or what a guard raised."""
    chart, event = case.workflow.chart, case.event
    if event.trigger is None:
        arcs = chart.automatic(event.state)
    else:
        arcs = tuple(arc for state in chart.outward(event.state) for arc in chart.named(state, event.trigger))
    if arcs and arcs[0].guard is None:
        return arcs[0]
    arc = await first(arcs, case.view(fields))
    if arc is None:
        raise NoTransition(_nowhere(case, arcs))
    return arc


def _nowhere(case: Case, arcs: tuple[Arc, ...]) -> str:
    event, where = case.event, f"state {case.event.state!r}"
    if event.trigger is not None and not arcs:
        hint = nearest(event.trigger, case.workflow.chart.triggers)
        return f"{where} returned the trigger {event.trigger!r}, which no transition out of it takes{hint}"
    if not arcs:
        return f"{where} ended, and no transition leads on by itself: return a trigger"
    lines = "".join(f"\n  - {one.condition}: {one.answer}{one.saw}" for one in case.asked)
    return f"{where} ended, and none of its conditions holds:{lines}"


async def pick(case: Case, fields: Fields) -> list[Arc]:
    """For each active leaf the first transition that holds, from inside outwards; what contradicts another goes."""
    chart, run, view = case.workflow.chart, case.run, case.view(fields)
    answers: dict[int, bool] = {}
    picked: list[Arc] = []
    for leaf in chart.leaves(run.active):
        for arc in (arc for state in chart.outward(leaf) for arc in chart.named(state, case.event.name)):
            if id(arc) not in answers:
                answers[id(arc)] = arc.guard is None or await arc.guard.ask(view)
            if answers[id(arc)]:
                if arc not in picked:
                    picked.append(arc)
                break
    return _agreeing(run, picked)


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
