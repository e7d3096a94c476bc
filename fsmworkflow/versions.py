"""A run of another definition: how it goes on in the workflow as it now is. Pure; the run's next commit writes it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from fsmworkflow.codec import Data, Fields
from fsmworkflow.draft import Draft
from fsmworkflow.due import resting_due
from fsmworkflow.errors import DefinitionChanged, DefinitionError, FSMWorkflowError, nearest
from fsmworkflow.records import OPEN, Active, Move, Run, Undo, replace, sooner
from fsmworkflow.states import Migration
from fsmworkflow.workflow import Workflow

__all__ = ["Plan", "Planned", "Shift", "known", "names", "of_this", "outlook", "plan", "seen", "shifted", "steps_from"]


class Shift(msgspec.Struct, frozen=True):
    """What another definition makes of a run: `row` as it stands in the store, `run` as it goes on.

    `detail` is what history says of it, and `mapped` whether a migration had a part in it.
    """

    row: Run
    run: Run
    detail: str
    mapped: bool = False
    changes: Fields = {}
    removed: tuple[str, ...] = ()

    def onto(self, workflow: Workflow, move: Move) -> Move:
        """The run's next move as it is written: seen from the row, and with what the new definition changed beside it.

        Timers that the states did not have before start with it.
        """
        row = self.row
        before = replace(
            move.before, active=row.active, fields=row.fields, hashes=row.hashes, status=row.status,
            definition=row.definition, structure=row.structure, undo=row.undo,
        )  # fmt: skip
        kept = {key: text for key, text in self.changes.items() if key not in move.removed}
        return replace(
            move,
            before=before,
            after=_timed(workflow, move),
            changes={**kept, **move.changes},
            removed=self.removed + move.removed,
            detail=self.detail if move.detail is None else f"{self.detail}; {move.detail}",
        )


def _timed(workflow: Workflow, move: Move) -> Run:
    """What a move leaves, with the timers started that the states which stay active had not before."""
    after, before, delays = move.after, move.before.active, workflow.chart.delays
    if after.status not in OPEN:
        return after
    active = dict(after.active)
    for state, stay in after.active.items():
        if (there := before.get(state)) is not None and there.visit == stay.visit:
            had = (*there.timers, *there.spent)
            new = {name: move.at + delay for name, delay in delays.get(state, ()) if name not in had}
            active[state] = replace(stay, timers={**new, **stay.timers}) if new else stay
    if active == after.active:
        return after
    after = replace(after, active=active)
    first = sooner(after.due, resting_due(after))
    return replace(after, due=first) if after.status == "waiting" else after


def of_this(workflow: Workflow, run: Run) -> bool:
    """Whether a run was last written by this very definition."""
    return run.definition == workflow.version and run.structure == workflow.chart.structure


def shifted(workflow: Workflow, run: Run) -> Shift | None:
    """What this definition makes of a run of another one; None where it is of this one.

    Raises DefinitionChanged, with both versions, where it does not fit: a state is gone, its data does not decode, a
    migration raises, or it is of a newer version.
    """
    if run.over or of_this(workflow.check(), run):
        _decoded(workflow, run, run.fields)
        return None
    if run.definition > workflow.version:
        raise _changed(workflow, run, "and is left to whoever has that version")
    steps = steps_from(workflow, run.definition)
    active, draft = _active(workflow, run, steps), _data(workflow, run, steps)
    after = replace(
        run,
        active=active,
        fields=draft.fields,
        hashes=draft.hashes(),
        status=_status(workflow, run, active),
        definition=workflow.version,
        structure=workflow.chart.structure,
        undo=replace(run.undo, left=_undo(workflow, run.undo.left, steps), lost=_undo(workflow, run.undo.lost, steps)),
    )
    detail = f"{run.definition}, changed" if run.structure else None  # None where it was taken over and had none
    if run.definition != workflow.version:
        detail = f"{run.definition} -> {workflow.version}"
    if detail is None and after == replace(run, structure=after.structure):
        return None
    return Shift(run, after, detail or "taken over", bool(steps), draft.changes, draft.removed)


def seen(workflow: Workflow, run: Run) -> Run:
    """A run as this definition has it, its data typed; as it stands, where it does not fit."""
    try:
        shift = shifted(workflow, run)
    except (DefinitionChanged, DefinitionError):
        return run
    now = run if shift is None else shift.run
    return now if workflow.codec.kind is None else replace(now, typed=workflow.codec.decode(now.fields))


def _changed(workflow: Workflow, run: Run, what: str) -> DefinitionChanged:
    there = f"run {run.workflow}/{run.key} is of version {run.definition}"
    return DefinitionChanged(f"{there}, this workflow of version {workflow.version}; {what}")


# -- states -----------------------------------------------------------------------------------------------------------


def steps_from(workflow: Workflow, version: int) -> list[Migration]:
    """The migrations on the way from a version to the workflow's. Where none is declared, nothing is to be mapped."""
    found = []
    for migration in sorted(workflow.migrations, key=lambda one: one.version):
        if migration.version >= version:
            found.append(migration)
            version = migration.to
    return found


def names(state: str, steps: Iterable[Migration]) -> list[str]:
    """What a state may be called after some migrations, the likeliest first.

    One that is not named itself moves with the nearest state around it that is, or becomes that one.
    """
    found = [state]
    for step in steps:
        found = list(dict.fromkeys(new for old in found for new in _mapped(old, step)))
    return found


def _mapped(state: str, step: Migration) -> list[str]:
    around = state
    while around and around not in step.states:
        around = around.rpartition(".")[0]
    return [step.states[around] + state[len(around) :], step.states[around]] if around else [state]


def _active(workflow: Workflow, run: Run, steps: list[Migration]) -> dict[str, Active]:
    """The active states by their new names, with what was not active before and now is, in document order."""
    chart = workflow.chart
    new = {old: next((name for name in names(old, steps) if name in workflow.states), "") for old in run.active}
    leaves = [s for s in run.active if not any(other.startswith(s + ".") for other in run.active)]
    known(workflow, run, (leaf for leaf in leaves if not new[leaf]), steps)
    entered = chart.entered(dict.fromkeys(new[leaf] for leaf in leaves))
    stays: dict[str, Active] = {}
    for old, name in new.items():
        if name:
            stays.setdefault(name, _stay(workflow, old, name, run.active[old]))
    for state in entered:
        if "." not in state and workflow.states[state].kind == "final" and run.status != "compensating":
            raise _changed(workflow, run, f"its state {state!r} is final there: a run ends by an event, not so")
    if (apart := chart.apart(entered)) is not None:
        raise _changed(workflow, run, f"its states would be {apart}, which are never active together")
    return {state: stays.get(state) or Active(run.version + 1) for state in entered}


def _stay(workflow: Workflow, old: str, new: str, stay: Active) -> Active:
    """The same visit under its new name. A timer that the state has kept is due when it was."""
    delays = dict(workflow.chart.delays.get(new, ()))
    was = stay.was or old
    timers = {name: due for name, due in stay.timers.items() if name in delays}
    stay = replace(stay, was="" if was == new else was, timers=timers)
    return stay if workflow.states[new].step is not None else replace(stay, attempt=1, again=None)


def known(workflow: Workflow, run: Run, states: Iterable[str], steps: Iterable[Migration] = ()) -> None:
    """Check that the workflow has these states of a run. Raises DefinitionChanged."""
    gone = next((name for state in states if (name := names(state, steps)[0]) not in workflow.states), None)
    if gone is not None:
        hint = nearest(gone, workflow.states)
        raise _changed(
            workflow, run, f"there is no state {gone!r}{hint}: declare it again, or a migration that maps it"
        )


def _status(workflow: Workflow, run: Run, active: dict[str, Active]) -> Any:
    """Whether the run waits or runs; any other status stays."""
    if run.status not in OPEN:
        return run.status
    kinds = {workflow.states[state].kind for state in active}
    return "running" if kinds & {"step", "choice"} else "waiting"


def _undo(workflow: Workflow, left: tuple[Undo, ...], steps: list[Migration]) -> tuple[Undo, ...]:
    """Finished visits by their new names. One whose state is gone keeps its own, and is listed as lost when undone."""
    found = []
    for undo in left:
        new = next((name for name in names(undo.state, steps) if name in workflow.states), undo.state)
        was = undo.was or undo.state
        found.append(replace(undo, state=new, was="" if was == new else was))
    return tuple(found)


# -- data -------------------------------------------------------------------------------------------------------------


def _data(workflow: Workflow, run: Run, steps: list[Migration]) -> Draft:
    """The data after the migrations. Raises DefinitionChanged where one raises, or what it leaves does not fit."""
    draft, codec = Draft(run), workflow.codec
    if functions := [step for step in steps if step.data is not None]:
        data: Any = Data(run.fields)
        for step in functions:
            assert step.data is not None
            try:
                new = step.data(data)
            except Exception as error:
                what = f"its migration from {step.version} to {step.to} raised {type(error).__name__}"
                raise _changed(workflow, run, what) from error
            data = data if new is None else new
        try:
            if codec.kind is not None:
                data = codec.decode(codec.start(dict(data) if isinstance(data, dict) else data))
            draft.apply(*codec.changes(data, run.fields))
        except FSMWorkflowError as error:
            raise _changed(workflow, run, f"its migration leaves data that does not fit: {error}") from error
    _decoded(workflow, run, draft.fields)
    return draft


def _decoded(workflow: Workflow, run: Run, fields: Fields) -> None:
    try:
        if workflow.codec.kind is not None:
            workflow.codec.decode(fields)
    except FSMWorkflowError as error:
        what = f"its data does not fit: {error}; give new fields a default, or a migration that sets them"
        raise _changed(workflow, run, what) from error


# -- planning ---------------------------------------------------------------------------------------------------------


REASONS, TOLD = 3, 300
"""How many reasons are told of the runs that are stuck in one state, and how much of each."""


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """How many unfinished runs of one version in one state fit as they are, would be `mapped`, or are `stuck`.

    `to` is the engine's version of the workflow, `becomes` the state in it, `reasons` why some are stuck.
    """

    workflow: str
    version: int
    state: str
    to: int
    becomes: str = ""
    fits: int = 0
    mapped: int = 0
    stuck: int = 0
    reasons: tuple[str, ...] = ()


class Plan(tuple[Planned, ...]):
    """What would become of the unfinished runs, a record a workflow, version and state. As text it is a table."""

    __slots__ = ()

    def __str__(self) -> str:
        head = ("workflow", "version", "state", "becomes", "fit", "mapped", "stuck")
        lines = [head] + [
            (p.workflow, f"{p.version} -> {p.to}", p.state, p.becomes or "-", str(p.fits), str(p.mapped), str(p.stuck))
            for p in self
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        told = [f"stuck in {p.state}: {reason}" for p in self for reason in p.reasons]
        return "\n".join([*table, *told])


def outlook(workflow: Workflow, run: Run) -> Planned:
    """What would become of one run."""
    one = Planned(workflow=run.workflow, version=run.definition, state=run.state, to=workflow.version)
    try:
        shift = shifted(workflow, run)
    except DefinitionChanged as error:
        cause = f": {error.__cause__}" if error.__cause__ is not None else ""
        return replace(one, stuck=1, reasons=((str(error).partition("; ")[2] + cause)[:TOLD],))
    if shift is None or not shift.mapped:
        return replace(one, becomes=run.state, fits=1)
    return replace(one, becomes=shift.run.state, mapped=1)


def plan(each: Iterable[Planned]) -> Plan:
    """The sums of many outlooks, in the order of workflow, version and state."""
    found: dict[tuple[str, int, str, str], Planned] = {}
    for one in each:
        place = (one.workflow, one.version, one.state, one.becomes)
        found[place] = _sum(found[place], one) if place in found else one
    return Plan(found[place] for place in sorted(found))


def _sum(one: Planned, other: Planned) -> Planned:
    fits, mapped, stuck = one.fits + other.fits, one.mapped + other.mapped, one.stuck + other.stuck
    reasons = tuple(dict.fromkeys((*one.reasons, *other.reasons)))[:REASONS]
    return replace(one, fits=fits, mapped=mapped, stuck=stuck, reasons=reasons)
