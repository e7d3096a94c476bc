"""Compiled: the passages of a flat workflow, read out once: its functions are called one after the other.

No task a record, no turn of the event loop a state, no text of the data. It is the same `decide`: what raises, and what
leads nowhere, is left to that, and a test holds both ways to one outcome.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from fsmworkflow.acting import outcome
from fsmworkflow.conditions import Condition, Function, Guard, Joined, Not, View
from fsmworkflow.decide import by_hand
from fsmworkflow.due import LOOP
from fsmworkflow.errors import CodecError, EndlessLoop
from fsmworkflow.expressions import Expression
from fsmworkflow.records import DONE, ERROR, Event, replace
from fsmworkflow.resources import Resources
from fsmworkflow.statechart import AUTOMATIC, Arc
from fsmworkflow.stream.passage import (
    AWAITS,
    Borrowed,
    Decided,
    End,
    Glance,
    Passage,
    Passing,
    acted,
    copied,
)  # fmt: skip
from fsmworkflow.stream.words import Failed, Mode, StreamError
from fsmworkflow.threads import is_async
from fsmworkflow.workflow import Workflow

__all__ = ["Compiled", "passage"]

Test = Callable[[Any], Any]


class Context(Passing):
    """What a step is given here: one for each record, and so quickly made."""

    __slots__ = ()
    attempt, event, stopping = 1, None, False

    def __init__(self, data: Any) -> None:
        self.data = data


def passage(workflow: Workflow, mode: Mode, resources: Resources | None = None) -> Passage:
    """The shortest way for records through this workflow, whose steps may use these resources."""
    return Compiled(workflow, mode, resources) if compilable(workflow) else Decided(workflow, resources)


def compilable(workflow: Workflow) -> bool:
    """Whether nothing in it needs the whole of `decide`: flat, plain data, functions, and conditions on fields."""
    if not workflow.chart.flat or workflow.codec.kind is not None or workflow.lenient:
        return False
    for state in workflow.states.values():
        if state.kind not in ("step", "choice", "final") or state.ends or (state.step is not None and state.step.retry):
            return False
    arcs = [
        arc for s in workflow.states for t in (AUTOMATIC, *workflow.chart.triggers) for arc in _arcs(workflow, s, t)
    ]
    return all(not (arc.ends or arc.internal or arc.action) and _plain(arc.guard) for arc in arcs)


def _arcs(workflow: Workflow, state: str, trigger: str) -> tuple[Arc, ...]:
    return workflow.chart.named(state, trigger)


def _plain(guard: Guard | None) -> bool:
    """Whether a guard asks nothing but the data, by fields, expressions and sync functions."""
    if (
        guard is None
        or isinstance(guard, Expression)
        or (isinstance(guard, (Joined, Not)) and all(map(_plain, guard.parts)))
    ):
        return True
    if isinstance(guard, Function):
        return guard.of is None and not is_async(guard.function)
    if not isinstance(guard, Condition) or guard.parts or guard.known is None:
        return False
    return all(operand is None or operand.of == "data" for operand in (guard.left, guard.right))


class Node:
    """A state, with its step and with where each trigger leads. `ways` has those without a trigger."""

    __slots__ = ("always", "chart", "done", "final", "fn", "name", "nodes", "timeout", "triggers", "waits", "ways")

    def __init__(self, workflow: Workflow, name: str, nodes: dict[str, Node]) -> None:
        state = workflow.states[name]
        self.chart, self.name, self.nodes = workflow.chart, name, nodes
        self.final = state.kind == "final"
        self.fn = None if state.step is None else state.step.execute
        self.timeout = None if state.step is None else state.step.timeout
        self.waits = self.fn is not None and is_async(self.fn)
        self.done = Event(name=DONE, state=name)
        self.triggers: dict[str, list[Way]] = {}
        self.ways: list[Way] = []
        self.always: Node | None = None

    def link(self) -> None:
        """Find where it leads, once all nodes are there."""
        arcs = self.chart.automatic(self.name)
        self.ways = [(_test(arc.guard), arc.update, self.nodes[str(arc.dest)]) for arc in arcs]
        if self.ways and self.ways[0][0] is None and self.ways[0][1] is None:
            self.always = self.ways[0][2]

    def named(self, trigger: str) -> list[Way]:
        """Where a trigger leads that the step has returned."""
        ways = self.triggers.get(trigger)
        if ways is None:
            arcs = self.chart.named(self.name, trigger)
            ways = [(_test(arc.guard), arc.update, self.nodes[str(arc.dest)]) for arc in arcs]
            self.triggers[trigger] = ways
        return ways


Way = tuple[Test | None, Callable[[Any, Any], Any] | None, Node]
"""What must hold, what changes the data, and where it leads."""


class Compiled(Passage):
    """Calls the functions of a flat workflow one after the other."""

    def __init__(self, workflow: Workflow, mode: Mode, resources: Resources | None = None) -> None:
        super().__init__(workflow, resources, Context)
        self.copying, self.borrowing = mode == "copy", mode == "reference"
        nodes: dict[str, Node] = {}
        nodes.update((name, Node(workflow, name, nodes)) for name in workflow.states)
        for node in nodes.values():
            node.link()
        self.first = nodes[workflow.initial]
        self.sync = not any(node.waits for node in nodes.values())
        # Its first step is that of its first state, and what fails in it goes on nowhere with what it was given.
        self._firm = self.first.fn is not None and not workflow.chart.failing(self.first.name)
        self._decided = Decided(workflow, resources)

    def straight(self, record: Any, ours: bool = False) -> End:
        if not isinstance(record, dict):
            return self._no_dict(record)
        node, copying, idle = self.first, self.copying, 0
        held = copying and not (ours and self._firm)
        data = Borrowed(record) if self.borrowing else record
        ctx = self.context(data)
        while not node.final:
            trigger, fn = None, node.fn
            if fn is not None:
                ctx._state, before = node.name, data
                try:
                    if held:
                        data = ctx.data = copied(data)
                    held = copying
                    if (result := fn(ctx)) is not None:
                        trigger = by_hand(_ended(result, ctx), StreamError, AWAITS)
                    if (made := ctx.data) is not data:
                        data = self._taken(made)
                except StreamError:
                    raise
                except Exception as error:
                    return by_hand(self._raised(node, before, error), StreamError, AWAITS)
                idle = 0
            elif (idle := idle + 1) > LOOP:
                return self._endless(node)
            if trigger is None and node.always is not None:
                node = node.always
                continue
            try:
                node, data = self._next(node, trigger, data)
            except StreamError:
                raise
            except Exception:  # a condition without an answer, or none that holds: `decide` says which, and why
                ended = Event(name=DONE, state=node.name, trigger=trigger)
                return by_hand(self._decide(node, data, ended), StreamError, AWAITS)
            ctx.data = data
        return node.name, data

    async def go(self, record: Any) -> End:
        """The same, with steps that are awaited."""
        if not isinstance(record, dict):
            return self._no_dict(record)
        ctx = self.context(Borrowed(record) if self.borrowing else record)
        try:
            return await self._through(ctx)
        finally:
            self.ended(ctx)

    async def _through(self, ctx: Context) -> End:
        node, idle, data = self.first, 0, ctx.data
        while not node.final:
            trigger = None
            if node.fn is not None:
                ctx._state, before = node.name, data
                try:
                    if self.copying:
                        data = ctx.data = copied(data)
                    if (result := await acted(node.name, node.fn, node.timeout, ctx)) is not None:
                        trigger = await _ended(result, ctx)
                    if ctx.data is not data:
                        data = self._taken(ctx.data)
                except StreamError:
                    raise
                except Exception as error:
                    return await self._raised(node, before, error)
                idle = 0
            elif (idle := idle + 1) > LOOP:
                return self._endless(node)
            try:
                node, data = self._next(node, trigger, data)
            except StreamError:
                raise
            except Exception:
                return await self._decide(node, data, Event(name=DONE, state=node.name, trigger=trigger))
            ctx.data = data
        return node.name, data

    def _taken(self, data: Any) -> Any:
        """Other data than was given, which somebody may hold. Raises CodecError, as `decide`, for what is no dict."""
        if not isinstance(data, dict):
            self.workflow.codec.encode(data)
        return copied(data) if self.copying else data

    def _no_dict(self, record: Any) -> End:
        return "", Failed(self.first.name, TypeError(f"a record is a dict, not a {type(record).__name__}"))

    def _endless(self, node: Node) -> End:
        return "", Failed(node.name, EndlessLoop(f"{LOOP} moves without a step, the last one in {node.name}"))

    def _next(self, node: Node, trigger: str | None, data: Any) -> tuple[Node, Any]:
        for test, update, target in node.ways if trigger is None else node.named(trigger):
            if test is None or test(data):
                if update is None:
                    return target, data
                data = copied(data) if self.copying else data
                new = update(data, node.done if trigger is None else replace(node.done, trigger=trigger))
                return target, data if new is None or new is data else self._taken(new)
        raise LookupError(node.name)

    async def _raised(self, node: Node, data: Any, error: Exception) -> End:
        if not self.workflow.chart.failing(node.name):
            return "", Failed(node.name, error)
        return await self._decide(node, data, Event(name=ERROR, state=node.name, error=error))

    async def _decide(self, node: Node, data: Any, event: Event) -> End:
        """Go on as `decide` does, from a run that stands where the record does."""
        try:
            run = self.workflow.at(node.name, data)
        except CodecError as error:
            return "", Failed(node.name, error)
        return await self._decided.on(run, event)


async def _ended(result: Any, ctx: Passing) -> str | None:
    """The trigger that a step returned; its data is the context's then."""
    if inspect.isawaitable(result):
        result = await result
    trigger, ctx.data = (None, ctx.data) if result is None else outcome(result, ctx)
    return trigger


# -- conditions as functions of the data ------------------------------------------------------------------------------


def _test(guard: Guard | None) -> Test | None:
    """The same question as a plain function, which may raise anything where there is no answer."""
    if guard is None:
        return None
    if isinstance(guard, Function):
        return _function(guard.function)
    if isinstance(guard, Condition):
        return _condition(guard)
    if isinstance(guard, Expression):
        return _expression(guard.answer)
    parts = [test for part in guard.parts if (test := _test(part)) is not None]
    if isinstance(guard, Not):
        return lambda data: not parts[0](data)
    if isinstance(guard, Joined) and guard.word == "or":
        return lambda data: any(part(data) for part in parts)
    return lambda data: all(part(data) for part in parts)


def _function(function: Callable[[Any], Any]) -> Test:
    def ask(data: Any) -> Any:
        answer = function(Glance(data))
        if answer is None or inspect.isawaitable(answer):
            raise LookupError("no answer")
        return answer

    return ask


def _expression(read: Callable[[View, dict[str, Any]], Any]) -> Test:
    def ask(data: Any) -> bool:
        answer = read(View(data), {})
        if answer is not True and answer is not False:
            raise TypeError("no answer")
        return answer

    return ask


def _condition(guard: Condition) -> Test:
    operator, left, right = guard.known, guard.left, guard.right
    assert operator is not None
    path, value, test, read = left.path, guard.value, operator.test, left.read
    ordered = operator.name in ("gt", "ge", "lt", "le")

    def constant(data: Any) -> Any:
        found = data[path] if path in data else read(View(data))
        if ordered and type(found) is bool:
            raise TypeError("True and False have no order")
        return test(found, value)

    def other(data: Any) -> Any:
        assert right is not None
        found = right.read(View(data))
        if found is None and operator.name not in ("eq", "ne"):
            raise LookupError("nothing to compare with")
        return operator.answer(left.read(View(data)), found)

    return constant if right is None else other
