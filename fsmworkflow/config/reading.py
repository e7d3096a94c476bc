"""A definition that was read becomes a Workflow: its code is looked up, and every problem has its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from fsmworkflow.conditions import Condition, Function, Guard, Joined, Operand, as_guard, field, payload
from fsmworkflow.config.code import NAME, Code
from fsmworkflow.config.keys import Make, Reading, Row
from fsmworkflow.config.text import Place, Source
from fsmworkflow.errors import DefinitionError, FSMWorkflowError, cut, name_problem, nearest
from fsmworkflow.expressions import Expression
from fsmworkflow.operators import Operator
from fsmworkflow.plain import decode
from fsmworkflow.problems import place_of
from fsmworkflow.retry import Retry
from fsmworkflow.states import ENDS, Children
from fsmworkflow.workflow import State, Transition, Workflow, WorkflowStep

__all__ = ["built"]

_OF_WORKFLOW = ("version", "payload", "deadline", "on_failure", "keep", "concurrency", "limit", "data", "merge")
_KINDS = ("step", "child", "each", "choice", "final", "children", "parallel")
"""The keys of a state of which one says what it is; without one it waits."""
_NEEDS = dict.fromkeys(("retry", "timeout", "compensate", "undo", "ends"), "step")
_NEEDS |= {"initial": "children", "outcome": "final"}
_LEADS = (("then", None), ("on", "trigger"), ("after", "delay"), ("on_error", "error"))
_FORMS = ("function", "all", "any", "not", "field", "payload")


def built(source: Source, functions: Mapping[str, Any] | None, modules: Iterable[str]) -> Workflow:
    """The checked workflow. Raises DefinitionError, which lists the problems: those of keys, names and expressions, or
    where there are none, those of the structure, or else those that the check of the whole finds."""
    return _Reader(source, Code(functions, modules)).workflow()


class _Reader:
    def __init__(self, source: Source, code: Code) -> None:
        self.source, self.code = source, code
        makes: dict[str, Make] = {
            "code": self._code, "error": self._error, "retry": self._retry, "condition": self._condition,
            "guard": self._guard, "guards": self._guards, "state": self._named, "target": self._target,
            "transition": self._target,
        }  # fmt: skip
        self.reading = Reading(source, makes)
        self.named: dict[str, Any] = {}
        self.workflows: dict[str, Workflow] = {}
        self.places: dict[tuple[str, str], Place] = {}

    def workflow(self) -> Workflow:
        rows = list(_all(self.reading.whole()))
        for row in rows:
            made = Workflow(row["name"], **{key: row[key] for key in _OF_WORKFLOW if key in row})
            made.code = self.named
            made.lenient, made.endless = (row.get(key, False) for key in ("lenient", "endless"))
            if self.workflows.setdefault(made.name, made) is not made:
                self.reading.problem(f"there is another workflow {made.name!r}", row.place)
        for row in rows:
            self._fill(self.workflows[row["name"]], row)
        self.reading.close()
        try:
            return self.workflows[rows[0]["name"]].check()
        except DefinitionError as error:
            for problem in error.problems:
                self.reading.problem(problem, self._place(error.workflow, problem))
            raise DefinitionError(self.source.name, self.reading.problems) from None

    def _place(self, workflow: str, problem: str) -> Place:
        """The place of the state or transition that a problem of the check names."""
        ends = (match.start() for match in re.finditer("[:,]? ", problem))
        named = ((workflow, problem[:end]) for end in ends)
        return next((self.places[place] for place in named if place in self.places), None)

    # -- what is made of single values --------------------------------------------------------------------------------

    def _code(self, name: str, _: Place) -> Any:
        if name == ENDS:
            return name
        return self.named.setdefault(name, self.code.find(name))

    def _error(self, name: str, _: Place) -> Any:
        return self.code.error(name) if self.code.known(name) else self.named.setdefault(name, self.code.error(name))

    def _retry(self, told: Row, _: Place) -> Retry:
        given: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in told.items()}
        return Retry(**given)

    def _named(self, told: Any, place: Place) -> Row:
        row = Row(place, {"name": told}) if isinstance(told, str) else told
        for problem in name_problem(row["name"], "state name", dots=False):
            raise ValueError(problem)
        return row

    def _target(self, told: Any, place: Place) -> Row:
        row = told if isinstance(told, Row) else Row(place, {"dest": told})
        if "dest" not in row and not row.get("internal"):
            raise ValueError("the key 'dest' is missing; null ends the run where it is")
        return row

    def _guard(self, told: Any, place: Place) -> Guard:
        """A function by its name, an expression, or a condition that was made already."""
        if isinstance(told, Guard):
            return told
        if not re.fullmatch(NAME, told):
            return Expression(told)
        try:
            return as_guard(self._code(told, place))
        except LookupError as error:
            raise LookupError(f"{error.args[0]}; of a field ask more, as in `{told[:60]} == true`") from None

    def _guards(self, told: Any, _: Place) -> list[Guard]:
        return told if isinstance(told, list) else [told]

    def _condition(self, told: Row, _: Place) -> Guard:
        forms = [form for form in _FORMS if form in told]
        if len(forms) != 1 or (len(told) > 1 and forms[0] not in ("field", "payload")):
            raise ValueError(f"a condition has one of {', '.join(_FORMS)}, and beside a field what is asked of it")
        form, value = forms[0], told[forms[0]]
        if form == "function":
            return as_guard(value)
        if form in ("field", "payload"):
            return _compared(told, Operand("data" if form == "field" else "payload", value))
        return ~value if form == "not" else Joined("and" if form == "all" else "or", value)

    # -- states and transitions ---------------------------------------------------------------------------------------

    def _fill(self, workflow: Workflow, row: Row) -> None:
        self._states(workflow, row, row["states"], "")
        for one in row.get("transitions", ()):
            self._transition(workflow, one, one)
        for one in row.get("migrations", ()):
            workflow.migrate(one["version"], to=one["to"], states=one.get("states"), data=one.get("data"))

    def _states(self, workflow: Workflow, row: Row, states: list[Row], around: str) -> None:
        first, names = row.get("initial"), [one["name"] for one in states]
        if first not in names and "parallel" not in row:
            what = "it is missing" if first is None else f"there is no state {first[:100]!r}{nearest(first, names)}"
            self.reading.problem(f"{what}: it names the first of the states", (row.place, "initial", row))
        for one in states:
            self._state(workflow, one, f"{around}.{one['name']}" if around else one["name"], one["name"] == first)

    def _state(self, workflow: Workflow, row: Row, path: str, initial: bool) -> None:
        self.places[workflow.name, f"state {path!r}"] = row.place
        kind, step = self._kind(workflow, row, path.rpartition(".")[0]), None
        if kind == "step":
            step = WorkflowStep(row["name"], row["step"], row.get("retry"), row.get("timeout"))
        parts = {key: row[key] for key in ("enter", "exit", "compensate", "undo", "ends", "outcome") if key in row}
        children = self._children(row[kind]) if kind in ("child", "each") else None
        workflow.add(State(name=path, kind=kind, step=step, initial=initial, children=children, **parts))
        for key, by in _LEADS:
            for name, targets in (row.get(key, {}) if by else {None: row[key]} if key in row else {}).items():
                self._led(workflow, path, targets if isinstance(targets, list) else [targets], by, name)
        for key in ("children", "parallel"):
            self._states(workflow, row, row[key], path) if key in row else None

    def _kind(self, workflow: Workflow, row: Row, around: str) -> Any:
        """What a state is, by the key that says so."""
        said = [key for key in _KINDS if row.get(key, False) is not False]
        if len(said) > 1:
            what = f"{said[0]!r} and {said[1]!r} do not go together: each says what a state is"
            self.reading.problem(what, row.place)
        for key, needed in _NEEDS.items():
            if key in row and needed not in said:
                self.reading.problem(f"{key!r} needs {needed!r} beside it", row.place)
        if around and workflow.states[around].kind == "parallel":
            return "region"
        return {"children": "state"}.get(said[0], said[0]) if said else "wait"

    def _children(self, told: Row) -> Children:
        """The runs that a state makes, of a workflow of this file, or of a given one."""
        given, name = dict(told), told["workflow"]
        other = self.workflows.get(name, self.code.given.get(name))
        if not isinstance(other, Workflow):
            names = [*self.workflows, *(k for k, one in self.code.given.items() if isinstance(one, Workflow))]
            what = f"there is no workflow {name[:100]!r}{nearest(name, names)}: give it in functions="
            self.reading.problem(what, told.place)
        if isinstance(over := told.get("over"), Row):
            given["over"] = over["function"]
        return Children(**({"concurrency": 8} if "over" in told else {}) | given | {"workflow": other})

    def _led(self, workflow: Workflow, source: str, targets: list[Row], by: str | None, name: Any) -> None:
        """The transitions that a state names itself."""
        for number, target in enumerate(targets):
            told = {"source": source} | ({by: name} if by else {})
            if number < len(targets) - 1 and not target.keys() & {"conditions", "unless"}:
                self.reading.problem("what follows it can never be taken", target.place)
            if by == "error":
                try:
                    told["error"] = self._error(name, None)
                except LookupError as error:
                    self.reading.problem(str(error.args[0]), target.place)
            self._transition(workflow, target, {**target, **told})

    def _transition(self, workflow: Workflow, row: Row, told: dict[str, Any]) -> None:
        guards: list[Guard] = [*row.get("conditions", ()), *(~guard for guard in row.get("unless", ()))]
        for expression in _expressions(guards):
            expression.kind = workflow.codec.kind
        told = {key: value for key, value in told.items() if key not in ("conditions", "unless")}
        dest = row.get("dest", told["source"] if row.get("internal") else None)
        made = Transition(**{**told, "dest": dest, "conditions": guards[0] if len(guards) == 1 else guards or None})
        if workflow.lenient and callable(made.after):  # by its name, as a WorkflowDefinition has it
            name = next(name for name, code in self.named.items() if code is made.after)
            workflow.actions[name] = made.after
            made = msgspec.structs.replace(made, after=name)
        self.places.setdefault((workflow.name, place_of(made)), row.place)
        workflow.add(made)


def _all(row: Row) -> Iterator[Row]:
    """A workflow and those within it."""
    yield row
    for other in row.get("workflows", ()):
        yield from _all(other)


def _expressions(guards: Iterable[Guard]) -> Iterator[Expression]:
    for guard in guards:
        if isinstance(guard, Expression):
            yield guard
        yield from _expressions(guard.parts)


def _compared(told: Row, left: Operand) -> Guard:
    if "custom" in told:
        return Function(told["custom"], left)
    rights = [made(told[key]) for key, made in _RIGHT.items() if key in told]
    if len(rights) > 1:
        raise ValueError("it is compared with one value")
    right, operator = rights[0] if rights else None, told.get("operator", "eq")
    return _Matches(left, right) if operator == "matches" else Condition(left, operator, right)


def _value(told: Any) -> Any:
    """A constant: what is no JSON is written as in the data, `{"$date": "2026-01-31"}`."""
    try:
        return decode(msgspec.json.encode(told))
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"{cut(told)[:60]} cannot be read: {error}") from error


_RIGHT: dict[str, Callable[[Any], Any]] = {"value": _value, "value_field": field, "value_payload": payload}


class _Matches(Condition):
    """A regular expression from a file, whose time re2 bounds: Python's own may take for ever."""

    def __init__(self, left: Operand, pattern: Any) -> None:
        if not isinstance(pattern, str):
            raise ValueError("operator matches needs a pattern as its value, a text")
        try:
            import re2
        except ImportError as error:
            raise FSMWorkflowError("matches needs google-re2 in files: pip install 'fsmworkflow[re2]'") from error
        options = re2.Options()
        options.log_errors = False  # they are told here
        try:
            found = re2.compile(pattern, options=options)
        except re2.error as error:
            raise ValueError(f"the pattern {pattern[:60]!r} does not compile: {error.args[0].decode()}") from error
        super().__init__(left, "matches", pattern)
        self.known = Operator("matches", "matches", lambda text, _: found.match(text) is not None, (str,))
