"""Children: what a state gives the runs that it makes, what a move says to them, and what their ends come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from fsmworkflow.codec import Data, encode, text_of
from fsmworkflow.conditions import Operand, View, cut
from fsmworkflow.errors import ChildFailed, TooDeep
from fsmworkflow.records import Event, Order, Run, replace
from fsmworkflow.workflow import Children, Workflow

if TYPE_CHECKING:
    from fsmworkflow.records import Active

__all__ = [
    "BEGIN", "DEPTH", "JOINED", "awaiting", "awaits", "deeper", "inputs", "joined", "order_to_begin", "orders_of",
]  # fmt: skip

BEGIN, JOINED = "$begin", "$joined"
KEY_BYTES = 1_750
"""With visit, ordinal and the workflow's name it stays below the 2,704 bytes that PostgreSQL takes into an index."""

DEPTH = 16
"""How many runs may be above one: a workflow may contain itself, and must come to an end."""
GOING = frozenset({"running", "waiting", "paused"})
WORST = {"failed": 0, "parked": 1, "cancelled": 2}
"""Which child is named where several did not end well: those that are only stopped come last."""


def inputs(workflow: Workflow, children: Children, run: Run) -> list[Any]:
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


def deeper(run: Run, state: str) -> int:
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


def order_to_begin(workflow: Workflow, stay: Active, state: str) -> Order:
    """That the children of a visit begin."""
    return _order(workflow, BEGIN, state, stay)


def _order(workflow: Workflow, name: str, state: str, stay: Active) -> Order:
    children = workflow.families.get(state)  # none where a migration has made another state of it
    home = stay.was or state
    if children is None:
        return Order(name, home, stay.visit)
    return Order(name, home, stay.visit, children.concurrency, children.on_failure == "first")


def orders_of(workflow: Workflow, before: Run, after: Run) -> list[Order]:
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
        return "$cancel"
    if before.status in GOING:
        return "$pause" if after.status not in GOING else None
    return "$retry" if after.status in GOING else None


def awaiting(run: Run, event: Event) -> str | None:
    """The active state whose children `$joined` is about."""
    visits = run.active.items()
    return next((s for s, stay in visits if stay.visit == event.visit and (stay.was or s) == event.state), None)


def joined(workflow: Workflow, run: Run, event: Event, ended: Sequence[Run]) -> Event:
    """`$joined` with what the children of its visit came to, in their order: a field of the data, or an error."""
    home, state = event.state, awaiting(run, event) or event.state
    event, children, many = replace(event, state=state), workflow.families.get(state), run.active[state].children or 0
    if children is None:
        return event
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
