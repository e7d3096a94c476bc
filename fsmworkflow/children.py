"""Children: what a state gives the runs that it makes, what a move says to them, and what their ends come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from fsmworkflow.beginning import begin
from fsmworkflow.case import Case
from fsmworkflow.codec import Data, encode, text_of
from fsmworkflow.conditions import Operand, View
from fsmworkflow.due import resting
from fsmworkflow.errors import ChildFailed, CodecError, TooDeep, cut
from fsmworkflow.failures import failure
from fsmworkflow.records import BEGIN, CANCEL, GOING, OPEN, PAUSE, RETRY, Child, Event, Move, Order, Run, replace
from fsmworkflow.states import Children
from fsmworkflow.steps import failed, step_ended
from fsmworkflow.workflow import Workflow

if TYPE_CHECKING:
    from fsmworkflow.records import Active

__all__ = ["DEPTH", "awaiting", "awaits", "children_begin", "children_joined", "joined", "with_children"]

KEY_BYTES = 1_750
"""With visit, ordinal and the workflow's name it stays below the 2,704 bytes that PostgreSQL takes into an index."""

DEPTH = 16
"""How many runs may be above one: a workflow may contain itself, and must come to an end."""
WORST = {"failed": 0, "parked": 1, "cancelled": 2}
"""Which child is named where several did not end well: those that are only stopped come last."""


def with_children(workflow: Workflow, move: Move, now: float) -> Move:
    """The move with the children that it makes, and with what it says to those that are there."""
    after, starts = move.after, move.starts
    orders = [*move.orders, *_orders_of(workflow, move.before, after)]
    for state, stay in after.active.items():
        if state in workflow.families and stay.children is None and after.status in OPEN:
            try:
                after, made = _family(workflow, after, state, now)
            except Exception:  # `$begin` comes next, and says what is wrong, in the state itself
                after = replace(after, status="running", due=now)
            else:
                starts, orders = (*starts, *made), [*orders, _order(workflow, BEGIN, state, stay)]
    return replace(move, after=after, starts=starts, orders=tuple(orders))


def _family(workflow: Workflow, run: Run, state: str, now: float) -> tuple[Run, tuple[Run, ...]]:
    """The run with the children of a state made, and these. Raises what the user's functions do, and CodecError."""
    depth, stay, other = _deeper(run, state), run.active[state], workflow.families[state].workflow
    made = []
    for ordinal, given in enumerate(_inputs(workflow, workflow.families[state], run)):
        try:
            fields = other.codec.start(given)
        except CodecError as error:
            raise CodecError(f"input of child {ordinal}, {error.path}", error.reason) from error
        child = begin(other, f"{run.key}/{state}/{stay.visit}/{ordinal}", fields, now=now)
        made.append(replace(child, due=None, child=Child(run.id, state, stay.visit, ordinal, depth)))
    active = {**run.active, state: replace(stay, children=len(made))}
    return replace(run, active=active), tuple(made)


async def children_begin(case: Case) -> Move:
    """The children of a state in which the run began, or whose making failed in the move that entered it."""
    workflow, state = case.workflow, case.event.state
    try:
        after, made = _family(workflow, case.after(), state, case.now)
    except Exception as error:
        return await _failed(case, error)
    order = _order(workflow, BEGIN, state, case.run.active[state])
    return case.move(await resting(case, after), starts=made, orders=(order,))


async def children_joined(case: Case) -> Move:
    """All children of a visit have ended, or the first has failed: as the end of a step, or its error."""
    workflow, run, event, error = case.workflow, case.run, case.event, case.event.error
    if error is None and event.changes:
        try:
            workflow.codec.weigh({**run.fields, **event.changes})
            workflow.codec.decode({**run.fields, **event.changes})
        except Exception as refused:
            error = refused
    return await step_ended(case) if error is None else await _failed(case, error)


async def _failed(case: Case, error: BaseException) -> Move:
    found = failure(error, case.run, case.event.state)
    return await failed(replace(case, event=replace(case.event, error=error, failure=found)), found)


def _inputs(workflow: Workflow, children: Children, run: Run) -> list[Any]:
    """The input of each child. Raises TypeError where `over` gives no list, and whatever the user's functions raise."""
    data, fn = workflow.codec.decode(run.fields), children.data
    if children.over is None:
        return [Data(run.fields) if fn is None else fn(data)]
    items = _items(children.over, data)
    return [{"item": item, "index": n} if fn is None else fn(data, item, n) for n, item in enumerate(items)]


def _items(over: Any, data: Any) -> Sequence[Any]:
    where = Operand("data", over) if isinstance(over, str) else over
    found = where.read(View(data, None, None, False)) if isinstance(where, Operand) else where(data)
    if not isinstance(found, (list, tuple)):
        what = f"{where.text!r} is" if isinstance(where, Operand) else "its function gave"
        raise TypeError(f"over= must come to a list, and {what} {cut(found)}")
    return found


def _deeper(run: Run, state: str) -> int:
    """The depth of the children of a run. Raises TooDeep, also where their keys would be longer than stores take."""
    depth = 1 if run.child is None else run.child.depth + 1
    if depth > DEPTH:
        raise TooDeep(
            f"state {state!r} of {run.workflow}/{run.key} would make children {depth} deep; {DEPTH} are allowed"
        )
    if (size := len(f"{run.key}/{state}".encode())) > KEY_BYTES:
        raise TooDeep(
            f"state {state!r} of {run.workflow}/{run.key:.100} would make children whose keys begin with {size:,} "
            f"bytes; {KEY_BYTES:,} are allowed: give states shorter names"
        )
    return depth


def _order(workflow: Workflow, name: str, state: str, stay: Active) -> Order:
    children = workflow.families.get(state)  # none where a migration has made another state of it
    home = stay.was or state
    if children is None:
        return Order(name, home, stay.visit)
    return Order(name, home, stay.visit, children.concurrency, children.on_failure == "first")


def _orders_of(workflow: Workflow, before: Run, after: Run) -> list[Order]:
    """What a move says to the children of the visits that were active before it."""
    found = []
    for state, stay in before.active.items():
        if stay.children is not None:
            there = after.active.get(state)
            name = _said(before, after, left=there is None or there.visit != stay.visit)
            found += [] if name is None else [_order(workflow, name, state, stay)]
    return found


def _said(before: Run, after: Run, *, left: bool) -> str | None:
    """A state that is left, and a run that is over, cancels; one that fails and keeps its place stops for a while."""
    if before.over or before.status == "compensating":
        return None
    if left or after.over or after.status == "compensating":
        return CANCEL
    if before.status in GOING:
        return PAUSE if after.status not in GOING else None
    return RETRY if after.status in GOING else None


def awaiting(run: Run, event: Event) -> str | None:
    """The active state whose children `$joined` is about."""
    visits = run.active.items()
    return next((s for s, stay in visits if stay.visit == event.visit and (stay.was or s) == event.state), None)


def joined(workflow: Workflow, run: Run, event: Event, ended: Sequence[Run]) -> Event:
    """`$joined` with what the children of its visit came to, in their order: a field of the data, or an error."""
    home, state = event.state, awaiting(run, event) or event.state
    event, children, many = replace(event, state=state), workflow.families[state], run.active[state].children or 0
    there = {one.child.ordinal: one for one in ended if one.child is not None}
    if children.on_failure == "first" and (error := _failure(run, home, event, there, many)) is not None:
        return replace(event, error=error)
    if children.into is None:
        return event
    if children.over is None:
        text = text_of(there[0].fields)
    elif children.on_failure == "first":
        text = b"[%b]" % b",".join(text_of(there[n].fields) for n in range(many))
    else:
        text = b"[%b]" % b",".join(_collected(_key(run, home, event, n), there.get(n)) for n in range(many))
    return replace(event, changes={children.into: msgspec.Raw(text)}, base=dict(run.fields))


def _key(run: Run, home: str, event: Event, ordinal: int) -> str:
    return f"{run.key}/{home}/{event.visit}/{ordinal}"


def _failure(run: Run, home: str, event: Event, there: dict[int, Run], many: int) -> ChildFailed | None:
    """The first of the children that did not end as done."""
    if missing := [n for n in range(many) if n not in there]:
        return ChildFailed(_key(run, home, event, missing[0]), None)
    bad = [(WORST.get(one.status, 3), n) for n, one in sorted(there.items()) if one.status != "done"]
    return None if not bad else ChildFailed(there[min(bad)[1]].key, there[min(bad)[1]])


def _collected(key: str, one: Run | None) -> bytes:
    if one is not None and one.status == "done":
        return b'{"status":"done","data":%b}' % text_of(one.fields)
    error = ChildFailed(key, one)
    told = {"type": error.type, "message": error.message}
    return encode({"status": "failed" if one is None else one.status, "error": told})


def awaits(run: Run) -> bool:
    """Whether a run waits for children."""
    return run.status == "waiting" and any(stay.children for stay in run.active.values())
