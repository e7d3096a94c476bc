"""What a state of a machine of dataknobs-fsm does when it is entered, and what its arcs ask and change."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fsmworkflow.conditions import Function
from fsmworkflow.errors import FSMWorkflowError
from fsmworkflow.readers.dataknobs.functions import Call, Context, Invalid, Record
from fsmworkflow.readers.dataknobs.schema import Schema
from fsmworkflow.threads import Threads

__all__ = ["Asked", "Work", "updated"]

Update = Callable[[Any, Any], None]


class Work:
    """The functions of a state, in the order of dataknobs-fsm: pre-validators, schema, validators, transforms.

    A pre-validator that does not hold, and data that does not fit the schema, fail the step with Invalid. What a
    validator returns as a dict goes into the data; else the field `valid` says whether all of them held, and none
    raised. The dict that a transform returns is the data; else it is what the transform made of the one it was given.
    """

    def __init__(self, state: str, known: Context) -> None:
        self.state, self.known = state, known
        self.schema: Schema | None = None
        self.before: list[Call] = []
        self.validators: list[Call] = []
        self.transforms: list[Call] = []
        self.most: int | None = None

    def __bool__(self) -> bool:
        return bool(self.before or self.schema is not None or self.validators or self.transforms or self.most)

    def execute(self) -> Callable[[Any], Any]:
        """The step: async where one of its functions is, else sync, so that it is run in one thread as a whole."""

        async def waiting(ctx: Any) -> None:
            await self._done(ctx, _elsewhere)

        def straight(ctx: Any) -> None:
            try:
                self._done(ctx, _here).send(None)  # which never waits
            except StopIteration:
                return

        calls = (*self.before, *self.validators, *self.transforms)
        return waiting if any(call.is_async for call in calls) else straight

    async def _done(self, ctx: Any, asked: Callable[..., Any]) -> None:
        self._bounded(ctx)
        record, context = Record(ctx.data), Context(self.known, ctx=ctx)
        for call in self.before:
            if not _holds(await asked(call, record, context)):
                raise Invalid(f"state {self.state!r} is not entered: its pre-validator {call.name} does not hold")
        if self.schema is not None:
            self.schema.ask(self.state, record)
        await self._validated(record, context, asked)
        for call in self.transforms:
            record = _changed(record, await asked(call, record, context))
        _replaced(ctx.data, record)

    async def _validated(self, record: Record, context: Context, asked: Callable[..., Any]) -> None:
        held = True
        for call in self.validators:
            try:
                result = await asked(call, record, context)
            except Exception as error:
                held = False
                record["validation_error"] = f"{type(error).__name__}: {error}"[:200]
            else:
                if isinstance(result, Mapping):
                    record.update(_plain(result))
                    continue
                held = held and _holds(result)
            record["valid"] = held

    def _bounded(self, ctx: Any) -> None:
        if self.most is None:
            return
        try:
            made = ctx.run.version
        except FSMWorkflowError:  # a record of a stream has no run
            return
        if made > self.most:
            raise Invalid(f"the run has made {made} transitions, and max_transitions is {self.most}")


class Asked(Function):
    """A condition of an arc as a guard."""

    def __init__(self, call: Call, known: Context) -> None:
        async def waiting(ctx: Any) -> bool:
            return _holds(await call(Record(ctx.data), Context(known, ctx=ctx)))

        def straight(ctx: Any) -> bool:
            return _holds(call(Record(ctx.data), Context(known, ctx=ctx)))

        super().__init__(waiting if call.is_async else straight)
        self._text = call.name


def updated(calls: Sequence[Call], known: Context) -> Update:
    """The transforms of an arc, in the commit of its move."""

    def update(data: Any, event: Any) -> None:
        record = Record(data)
        for call in calls:
            record = _changed(record, _told(call(record, Context(known, ctx=None))))
        _replaced(data, record)

    return update


async def _here(call: Call, record: Record, context: Context) -> Any:
    return _told(call(record, context))


async def _elsewhere(call: Call, record: Record, context: Context) -> Any:
    if call.is_async:
        return _told(await call(record, context))
    return _told(await Threads(1).call(call, record, context))


def _told(result: Any) -> Any:
    """What a function says: an ExecutionResult of dataknobs-fsm stands for its data, or for its error."""
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError("it returned what must be awaited: make it an async function")
    if hasattr(result, "success") and hasattr(result, "error") and not isinstance(result, Mapping):
        if not result.success:
            raise ValueError(str(result.error or "it did not succeed"))
        return result.data
    return result


def _holds(result: Any) -> bool:
    """A condition answers yes or no, or that and a reason."""
    told = _told(result)
    return bool(told[0]) if isinstance(told, tuple) and told else bool(told)


def _changed(record: Record, result: Any) -> Record:
    if result is None or isinstance(result, bool):
        return record
    if not isinstance(result, Mapping):
        raise TypeError(
            f"a transform returns the data as a dict, or changes what it was given, not {type(result).__name__}"
        )
    return Record(_plain(result))


def _plain(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: dict(value) if type(value) is Record else value for key, value in result.items()}


def _replaced(data: Any, by: Mapping[str, Any]) -> None:
    """Put these fields in the place of those that are there, in their order."""
    kept = [key for key in data if key in by]
    moved = kept != list(by)[: len(kept)]
    for key in [key for key in data if moved or key not in by]:
        del data[key]
    data.update(by)
