"""A definition that was read becomes a Workflow: its code is looked up, and every problem has its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from fsmworkflow.conditions import Condition, Function, Guard, Joined, Not, Operand, as_guard, field, payload
from fsmworkflow.config.code import NAME, Code
from fsmworkflow.config.keys import checked
from fsmworkflow.config.text import Place, Source
from fsmworkflow.errors import DefinitionError, FSMWorkflowError
from fsmworkflow.expressions import Expression
from fsmworkflow.operators import Operator
from fsmworkflow.plain import decode
from fsmworkflow.problems import place_of
from fsmworkflow.retry import Retry
from fsmworkflow.workflow import ENDS, Children, State, Transition, Workflow, WorkflowStep, name_problem, nearest

__all__ = ["built"]

_OF_WORKFLOW = ("version", "payload", "deadline", "on_failure", "keep", "concurrency", "limit")
_KINDS = ("step", "child", "each", "choice", "final", "children", "parallel")
"""The keys of a state of which one says what it is; without one it waits."""
_NEEDS = {"retry": "step", "timeout": "step", "compensate": "step", "undo": "step", "ends": "step"}
_NEEDS |= {"initial": "children"}
_LEADS = (("then", None), ("on", "trigger"), ("after", "delay"), ("on_error", "error"))
_FORMS = ("function", "field", "payload", "all", "any", "not")


def built(source: Source, functions: Mapping[str, Any] | None, modules: Iterable[str]) -> Workflow:
    """The checked workflow. Raises DefinitionError with every problem of the first kind that there are: keys and
    values, then names, expressions and what contradicts itself, then what the check of the whole finds."""
    if problems := checked(source):
        raise DefinitionError(source.name, problems)
    return _Reader(source, Code(functions, modules)).workflow()


class _Reader:
    def __init__(self, source: Source, code: Code) -> None:
        self.source, self.code = source, code
        self.problems: list[str] = []
        self.workflows: dict[str, Workflow] = {}
        self.places: dict[tuple[str, str], Place] = {}
        self.named: dict[str, Any] = {}

    def workflow(self) -> Workflow:
        definitions = list(self._definitions(self.source.value, None))
        for config, place in definitions:
            made = self._made(config, place)
            if self.workflows.setdefault(made.name, made) is not made:
                self._problem(f"there is another workflow {made.name!r}", (place, "name", config))
        for config, place in definitions:
            self._filled(self.workflows[config["name"]], config, place)
        if self.problems:
            raise DefinitionError(self.source.name, self.problems)
        first = self.workflows[self.source.value["name"]]
        try:
            return first.check()
        except DefinitionError as error:
            told = [self._located(problem, error) for problem in error.problems[:100]]
            more = len(error.problems) - len(told)
            raise DefinitionError(self.source.name, told + ([f"and {more} more"] if more else [])) from None

    def _definitions(self, config: dict[str, Any], place: Place) -> Iterator[tuple[dict[str, Any], Place]]:
        yield config, place
        inside = (place, "workflows", config)
        for number, other in enumerate(config.get("workflows", ())):
            yield from self._definitions(other, (inside, number, config["workflows"]))

    def _made(self, config: dict[str, Any], place: Place) -> Workflow:
        given = {key: config[key] for key in _OF_WORKFLOW if key in config}
        merge = {key: self._code(config["merge"], key, (place, "merge", config)) for key in config.get("merge", ())}
        made = Workflow(config["name"], data=self._code(config, "data", place), merge=merge, **given)
        made.code, made.lenient = self.named, config.get("lenient", False)
        return made

    def _filled(self, workflow: Workflow, config: dict[str, Any], place: Place) -> None:
        self._states(workflow, config, "states", place, "")
        inside = (place, "transitions", config)
        for number, row in enumerate(rows := config.get("transitions", ())):
            self._transition(workflow, row, (inside, number, rows), {})
        inside = (place, "migrations", config)
        for number, row in enumerate(rows := config.get("migrations", ())):
            data = self._code(row, "data", (inside, number, rows))
            workflow.migrate(row["version"], to=row["to"], states=row.get("states"), data=data)

    # -- problems and names -------------------------------------------------------------------------------------------

    def _problem(self, what: str, place: Place) -> None:
        if len(self.problems) < 100:
            self.problems.append(self.source.at(what, place))

    def _located(self, problem: str, error: DefinitionError) -> str:
        """A problem of the check, with the place of the state or transition that it names."""
        for end in (match.start() for match in re.finditer(r"[:,]? ", problem)):
            if (error.workflow, problem[:end]) in self.places:
                return self.source.at(problem, self.places[error.workflow, problem[:end]])
        return self.source.at(problem)

    def _code(self, table: Any, key: Any, place: Place, find: Callable[[str], Any] | None = None) -> Any:
        """What the name at a key stands for; None where there is none."""
        if isinstance(table, dict) and key not in table:
            return None
        name = table[key]
        try:
            found = (find or self.code.find)(name)
        except LookupError as error:
            self._problem(str(error.args[0]), (place, key, table))
            return None
        if self.code.given.get(name) is found or ":" in name:
            self.named[name] = found
        return found

    # -- states -------------------------------------------------------------------------------------------------------

    def _states(self, workflow: Workflow, table: dict[str, Any], key: str, place: Place, around: str) -> None:
        """The states of a list, of which the table that holds it names the first."""
        rows, inside, first = table[key], (place, key, table), table.get("initial")
        names = [row if isinstance(row, str) else row["name"] for row in rows]
        if first not in names and key != "parallel":
            what = "the key 'initial' is missing" if first is None else f"there is no state {first[:100]!r}"
            self._problem(f"{what}: it names the first of the states{nearest(first or '', names)}", place)
        for number, row in enumerate(rows):
            row = {"name": row} if isinstance(row, str) else row
            self._state(workflow, row, (inside, number, rows), around, row["name"] == first)

    def _state(self, workflow: Workflow, row: dict[str, Any], place: Place, around: str, initial: bool) -> None:
        simple, kind = row["name"], self._kind(row, place, around, workflow)
        for problem in name_problem(simple, "state name", dots=False):
            self._problem(problem, (place, "name", row))
        path = f"{around}.{simple}" if around else simple
        self.places[workflow.name, f"state {path!r}"] = place
        step = WorkflowStep(
            simple, self._code(row, "step", place), self._retry(row, "retry", place), row.get("timeout")
        ) if kind == "step" else None  # fmt: skip
        parts: dict[str, Any] = {key: self._code(row, key, place) for key in ("enter", "exit", "compensate")}
        if "undo" in row:
            parts["undo"] = self._retry(row, "undo", place)
        final: Any = row.get("final")
        workflow.add(
            State(name=path, kind=kind, step=step, initial=initial, ends=row.get("ends", False),
                  outcome="failed" if final == "failed" else "done", children=self._children(row, place), **parts)
        )  # fmt: skip
        for key, by in _LEADS:
            self._led(workflow, row, key, by, place, path)
        for key in ("children", "parallel"):
            if key in row:
                self._states(workflow, row, key, place, path)

    def _kind(self, row: dict[str, Any], place: Place, around: str, workflow: Workflow) -> Any:
        """What a state is, by the key that says so."""
        said = [key for key in _KINDS if row.get(key, False) is not False]
        if len(said) > 1:
            self._problem(f"{said[0]!r} and {said[1]!r} do not go together: each says what a state is", place)
        for key, needed in _NEEDS.items():
            if key in row and needed not in said:
                self._problem(f"{key!r} needs {needed!r} beside it", (place, key, row))
        if around and workflow.states[around].kind == "parallel":
            return "region"
        return {"children": "state"}.get(said[0], said[0]) if said else "wait"

    def _children(self, row: dict[str, Any], place: Place) -> Children | None:
        key = "child" if "child" in row else "each" if "each" in row else None
        if key is None:
            return None
        told, inside = row[key], (place, key, row)
        given = {k: told[k] for k in ("into", "concurrency", "on_failure") if k in told}
        if key == "each":
            over = told["over"]
            given["over"] = over if isinstance(over, str) else self._code(over, "function", (inside, "over", told))
            given.setdefault("concurrency", 8)
        other = self._other(told["workflow"], (inside, "workflow", told))
        return Children(workflow=other, data=self._code(told, "data", inside), **given)

    def _other(self, name: str, place: Place) -> Any:
        """The workflow of a state's children: of this file, or a given one."""
        found = self.workflows.get(name, self.code.given.get(name))
        if not isinstance(found, Workflow):
            names = [*self.workflows, *(k for k, one in self.code.given.items() if isinstance(one, Workflow))]
            self._problem(f"there is no workflow {name[:100]!r}{nearest(name, names)}: give it in functions=", place)
        return found

    def _retry(self, row: dict[str, Any], key: str, place: Place) -> Retry | None:
        if key not in row:
            return None
        told, inside = dict(row[key]), (place, key, row)
        for name in ("on", "never_on"):
            if name in told:
                given = told[name]
                names, at = ([given], (inside, name, told)) if isinstance(given, str) else (given, (inside, name, told))
                told[name] = tuple(self._code(names, n, at, self.code.error) for n in range(len(names)))
        return Retry(**told)

    # -- transitions --------------------------------------------------------------------------------------------------

    def _led(self, workflow: Workflow, row: Any, key: str, by: str | None, place: Place, source: str) -> None:
        """The transitions that a state names itself."""
        if key not in row:
            return
        inside = (place, key, row)
        told: Any = {None: row[key]} if by is None else row[key]
        for name, targets in told.items():
            at: Any = inside if by is None else (inside, name, told)
            several = isinstance(targets, list)
            for number, target in enumerate(targets if several else [targets]):
                spot: Place = (at, number, targets) if several else at
                target = target if isinstance(target, dict) else {"dest": target}
                if several and number < len(targets) - 1 and not target.keys() & {"conditions", "unless"}:
                    self._problem("what follows it can never be taken", spot)
                self._transition(workflow, target, spot, {"source": source} | ({} if by is None else {by: name}))

    def _transition(self, workflow: Workflow, row: dict[str, Any], place: Place, told: dict[str, Any]) -> None:
        given = {**row, **told}
        if "dest" not in row and not row.get("internal"):
            self._problem("the key 'dest' is missing; null ends the run where it is", place)
        kind = None
        if "error" in given:
            kind = self._code(given, "error", place if "error" in row else place and place[0], self.code.error)
        made = Transition(
            trigger=given.get("trigger"), source=given["source"], error=kind, delay=given.get("delay"),
            dest=row.get("dest", given["source"] if row.get("internal") else None),
            conditions=self._conditions(workflow, row, place), after=self._action(workflow, row, place),
            automatic=row.get("automatic"), update=self._code(row, "update", place), internal=row.get("internal", False)
        )  # fmt: skip
        self.places.setdefault((workflow.name, place_of(made)), place)
        workflow.add(made)

    def _action(self, workflow: Workflow, row: dict[str, Any], place: Place) -> Any:
        if row.get("after") == ENDS:
            return ENDS
        action = self._code(row, "after", place)
        if workflow.lenient and action is not None:  # as a WorkflowDefinition names its machine's methods
            workflow.actions[row["after"]] = action
            return row["after"]
        return action

    # -- conditions ---------------------------------------------------------------------------------------------------

    def _conditions(self, workflow: Workflow, row: dict[str, Any], place: Place) -> Any:
        """All of `conditions` hold, and none of `unless`."""
        found = [guard for guard, _ in self._guards(workflow, row, "conditions", place)]
        found += [~guard for guard, _ in self._guards(workflow, row, "unless", place)]
        return found[0] if len(found) == 1 else found or None

    def _guards(self, workflow: Workflow, row: Any, key: str, place: Place) -> Iterator[tuple[Guard, Place]]:
        if key in row:
            told, inside = row[key], (place, key, row)
            for number in range(len(told)) if isinstance(told, list) else ():
                yield self._guard(workflow, told, number, inside), inside
            if not isinstance(told, list):
                yield self._guard(workflow, row, key, place), place

    def _guard(self, workflow: Workflow, table: Any, key: Any, place: Place) -> Guard:
        told, here = table[key], (place, key, table)
        if isinstance(told, dict):
            return self._condition(workflow, told, here)
        if re.fullmatch(NAME, told):
            found = self._code(table, key, place)
            return as_guard(found) if callable(found) else Joined("and", ())
        try:
            made = Expression(told, workflow.codec.kind)
            for problem in made.problems():
                self._problem(problem, here)
            return made
        except ValueError as error:
            self._problem(f"{told[:60]!r} is no expression: {error}", here)
            return Joined("and", ())

    def _condition(self, workflow: Workflow, told: dict[str, Any], place: Place) -> Guard:
        forms = [form for form in _FORMS if form in told]
        extra = [key for key in told if key not in _FORMS]
        if len(forms) != 1 or (extra and forms[0] not in ("field", "payload")):
            self._problem(
                f"a condition has one of {', '.join(_FORMS)}; beside field or payload, what it is asked", place
            )
            return Joined("and", ())
        form = forms[0]
        if form == "function":
            found = self._code(told, form, place)
            return as_guard(found) if callable(found) else Joined("and", ())
        if form == "not":
            return Not(self._guard(workflow, told, form, place))
        if form in ("all", "any"):
            parts = [guard for guard, _ in self._guards(workflow, told, form, place)]
            return Joined("and" if form == "all" else "or", parts)
        return self._compared(told, Operand("data" if form == "field" else "payload", told[form]), place)

    def _compared(self, told: dict[str, Any], left: Operand, place: Place) -> Guard:
        if "custom" in told:
            custom = self._code(told, "custom", place)
            return Function(custom, left) if callable(custom) else Joined("and", ())
        if sum(key in told for key in ("value", "value_field", "value_payload")) > 1:
            self._problem("it is compared with one value", place)
        right = next((made(told[key]) for key, made in _RIGHT.items() if key in told), None)
        operator = told.get("operator", "eq")
        try:
            return _Matches(left, right) if operator == "matches" else Condition(left, operator, right)
        except (ValueError, FSMWorkflowError) as error:
            self._problem(str(error), place)
            return Joined("and", ())


def _value(told: Any) -> Any:
    """A constant: what is no JSON is written as in the data, `{"$date": "2026-01-31"}`."""
    return decode(msgspec.json.encode(told))


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
        try:
            found = re2.compile(pattern)
        except re2.error as error:
            raise ValueError(f"the pattern {pattern[:60]!r} does not compile: {error}") from error
        super().__init__(left, "matches", pattern)
        self._operator = Operator("matches", "matches", lambda text, _: found.match(text) is not None, (str,))
