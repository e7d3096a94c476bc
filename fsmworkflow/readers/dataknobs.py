"""Machines of dataknobs-fsm (0.1.14), in YAML, JSON or a dict, as workflows: docs/dataknobs.md has a table.

A state runs its validators and transforms when it is entered, then the first arc whose condition holds is taken, the
one of the highest priority first, and its transform changes the data in the same commit.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fsmworkflow.conditions import Function, Guard
from fsmworkflow.errors import FSMWorkflowError
from fsmworkflow.readers.places import Node, node
from fsmworkflow.threads import Threads, is_async
from fsmworkflow.workflow import State, Transition, Workflow, WorkflowStep, nearest

__all__ = ["load"]

Fn = Callable[..., Any]

_TOLD = ("description", "metadata")  # for people
_ROOT = (
    "name", "version", "data_mode", "execution_strategy", "networks", "main_network", "states", "arcs", "initial_state",
    "resources", "max_transitions", "timeout_seconds", "transaction", *_TOLD,
)  # fmt: skip
_NETWORK = ("name", "states", "arcs", "initial_state", "resources", "streaming", *_TOLD)
_STATE = (
    "name", "is_start", "is_end", "final", "functions", "pre_validators", "validators", "validator", "transforms",
    "transform", "schema", "data_schema", "resources", "data_mode", "arcs", "on_complete", "on_error", *_TOLD,
)  # fmt: skip
_ARC = (
    "name", "from", "to", "target", "condition", "pre_test", "transform", "priority", "resources", "type",
    "target_network", "return_state", "data_isolation", *_TOLD,
)  # fmt: skip
_FUNCTIONS = ("transform", "validate", "validators", "state_test")
_REFERENCE = ("type", "name", "module", "code", "test", "params")
_KINDS = ("builtin", "custom", "inline", "registered")


def load(
    config: Mapping[str, Any] | str | Path,
    *,
    functions: Mapping[str, Fn] | None = None,
    modules: Iterable[str] = (),
    allow_inline_code: bool = False,
) -> Workflow:
    """The checked workflow of a file or of plain values.

    `functions` are those that the machine calls registered or builtin, `modules` those that it may take custom ones
    from. Code that stands in the configuration is refused unless `allow_inline_code=True`: it is Python, run as it is,
    so say that only of files of your own. Raises DefinitionError with the place of what cannot be read or mapped.
    """
    return _Reader(node(config), functions or {}, set(modules), allow_inline_code).workflow()


class _Reader:
    def __init__(self, root: Node, functions: Mapping[str, Fn], modules: set[str], inline: bool) -> None:
        self.root = root.keys(_ROOT)
        self.functions, self.modules, self.inline = functions, modules, inline
        self.networks: dict[str, Node] = {}
        self.states: dict[str, dict[str, Node]] = {}

    def workflow(self) -> Workflow:
        root = self.root
        self._refused()
        for network in root.each("networks") if "networks" in root else [root]:
            name = network.get("name", str, default="main") if network is not root else "main"
            if network is not root:
                network.keys(_NETWORK, needed=("name", "states"))
            self.networks[name], self.states[name] = network, self._read(network)
        main = root.get("main_network", str, default=next(iter(self.networks), "main"))
        if main not in self.networks:
            root["main_network"].refuse(f"there is no network {main[:100]!r}{nearest(main, self.networks)}")
        self.made = Workflow(root.get("name", str, default="machine"), deadline=root.get("timeout_seconds", int, float))
        self._network(main, "", ())
        return self.made.check()

    def _refused(self) -> None:
        """What says something that has no counterpart."""
        strategy = self.root.get("execution_strategy", str, default="depth_first")
        if strategy.lower() != "depth_first":
            self.root["execution_strategy"].refuse(f"{strategy[:40]!r} is not mapped: runs go depth_first, one way")
        for key, todo in (
            ("max_transitions", "give the workflow a deadline"), ("resources", "open what steps use beside the engine"),
            ("transaction", "each state is a transaction"),
        ):  # fmt: skip
            if self.root.value.get(key):
                self.root[key].refuse(f"{key!r} is not mapped: {todo}")

    # -- states -------------------------------------------------------------------------------------------------------

    def _read(self, network: Node) -> dict[str, Node]:
        """The states of a network by their names: they stand in a list, or in a mapping."""
        found: dict[str, Node] = {}
        states = network["states"]
        named = isinstance(states.of(dict, list), dict)
        keys: Iterable[Any] = states.value if named else range(len(states.value))
        for key in keys:
            one = Node(network.source, states.value[key], (states.place, key, states.value))
            one.keys(_STATE, needed=() if named else ("name",))
            name = key if named else one["name"].of(str)
            if name in found:
                one.refuse(f"there is another state {name!r}")
            if one.value.get("resources"):
                one["resources"].refuse("'resources' is not mapped: open what steps use beside the engine")
            found[name] = one
        if not found:
            states.refuse("a network has states")
        return found

    def _network(self, name: str, path: str, below: tuple[str, ...]) -> None:
        """The states and arcs of a network, in the workflow or in the state that stands for its call."""
        if name in below:
            self.networks[name].refuse(f"network {name!r} calls itself")
        network, states = self.networks[name], self.states[name]
        starts = [one for one, told in states.items() if told.value.get("is_start")]
        first = network.get("initial_state", str) or next(iter(starts or states))
        if first not in states:
            network["initial_state"].refuse(f"there is no state {first[:100]!r}{nearest(first, states)}")
        arcs: dict[str, list[Node]] = {one: list(told.each("arcs")) for one, told in states.items()}
        for arc in network.each("arcs"):
            arcs[self._known(arc.keys(_ARC, needed=("from",))["from"], states)].append(arc)
        for state, told in states.items():
            ways = [told["on_complete"]] if "on_complete" in told else []
            self._state(told, f"{path}{_segment(state)}", state == first, bool(arcs[state] or ways))
            for arc in sorted([*arcs[state], *ways], key=lambda arc: -arc.get("priority", int, default=0)):
                self._arc(arc.keys(_ARC), state, path, states, (*below, name))
            if "on_error" in told:
                dest = self._known(told["on_error"].keys(_ARC)["target"], states)
                source = f"{path}{_segment(state)}"
                self.made.add(Transition(source=source, dest=f"{path}{_segment(dest)}", error=Exception))

    def _known(self, one: Node, states: Mapping[str, Node]) -> str:
        name: str = one.of(str)
        if name not in states:
            one.refuse(f"there is no state {name[:100]!r}{nearest(name, states)}")
        return name

    def _state(self, told: Node, path: str, initial: bool, leads: bool) -> None:
        acts = self._acts(told)
        ends = bool(told.value.get("is_end") or told.value.get("final")) and not leads
        if not acts:
            self.made.add(State(name=path, kind="final" if ends else "choice", initial=initial))
        elif ends and "." not in path:
            self.made.add(State(name=path, kind="step", step=_step(path, acts), initial=initial, ends=True))
        else:
            self.made.add(State(name=path, kind="step", step=_step(path, acts), initial=initial))
            if ends:  # in a network that was called: its end is a state of its own
                self.made.add(State(name=f"{path} ended", kind="final"), Transition(source=path, dest=f"{path} ended"))

    def _acts(self, told: Node) -> list[Fn]:
        """What a state does with its data: its schema, validators, then transforms."""
        inner = told["functions"].keys(_FUNCTIONS) if "functions" in told else Node(told.source, {}, None)
        acts = [_checked(told[key].of(dict)) for key in ("schema", "data_schema") if key in told]
        for where, keys in ((told, ("pre_validators", "validators", "validator")), (inner, _FUNCTIONS[1:])):
            acts += [_validated(self._function(one)) for key in keys for one in where.each(key)]
        for where, key in ((told, "transforms"), (told, "transform"), (inner, "transform")):
            acts += [_transformed(self._function(one)) for one in where.each(key)]
        return acts

    # -- arcs ---------------------------------------------------------------------------------------------------------

    def _arc(self, arc: Node, source: str, path: str, states: Mapping[str, Node], below: tuple[str, ...]) -> None:
        if arc.value.get("resources"):
            arc["resources"].refuse("'resources' is not mapped: open what steps use beside the engine")
        from_ = f"{path}{_segment(source)}"
        key = next((key for key in ("to", "target", "return_state") if key in arc), None)
        if key is None:
            arc.refuse("the key 'to' is missing")
        dest = f"{path}{_segment(self._known(arc[key], states))}"
        if "target_network" in arc:
            dest = self._call(arc, from_, path, states, below)
        transforms = [self._function(one) for one in arc.each("transform")]
        if any(is_async(fn) for fn in transforms):
            arc["transform"].refuse("it changes the data in a commit, and cannot be async: make it one of the state's")
        self.made.add(Transition(source=from_, dest=dest, conditions=self._condition(arc), update=_updated(transforms)))

    def _call(self, arc: Node, source: str, path: str, states: Mapping[str, Node], below: tuple[str, ...]) -> str:
        """Another network, as a state that holds its states, and leads on when it has come to its end."""
        name = arc["target_network"].of(str)
        if name not in self.networks:
            arc["target_network"].refuse(f"there is no network {name[:100]!r}{nearest(name, self.networks)}")
        number = sum(
            one.startswith(f"{path}{_segment(name)} ") and one.count(".") == path.count(".") for one in self.made.states
        )
        made = f"{path}{_segment(name)} {number + 1}"
        self.made.add(State(name=made, kind="state"))
        self._network(name, f"{made}.", below)
        back = arc["return_state" if "return_state" in arc else "target" if "target" in arc else "to"]
        self.made.add(Transition(source=made, dest=f"{path}{_segment(self._known(back, states))}"))
        return made

    def _condition(self, arc: Node) -> Guard | None:
        key = next((key for key in ("condition", "pre_test") if key in arc), None)
        if key is None:
            return None
        one = arc[key]
        word = one.value.get("type") if isinstance(one.value, dict) else one.value
        if word in ("success", "failure"):
            return _Asked(word, lambda data, ctx: data.get("valid", True) is (word == "success"))
        if isinstance(one.value, dict) and "test" in one.value:
            one = one["test"]
        return _Asked(_named(one.value), self._function(one))

    # -- functions ----------------------------------------------------------------------------------------------------

    def _function(self, one: Node) -> Fn:
        """What a reference stands for, as a function of the data and a context."""
        if isinstance(one.value, str):
            return self.functions[one.value] if one.value in self.functions else self._inline(one, one.value)
        one.keys(_REFERENCE)
        kind = one.get("type", str, default="inline" if "code" in one else "registered")
        if kind not in _KINDS:
            one["type"].refuse(f"there is no type {kind[:40]!r}{nearest(kind, _KINDS)}")
        if kind == "inline":
            return self._inline(one["code"], one["code"].of(str))
        name, params = one["name"].of(str), one.get("params", dict, default={})
        found = self.functions.get(name)
        if found is None and kind == "custom":
            found = self._custom(one["module"], name)
        if found is None:
            one["name"].refuse(
                f"there is no function {name[:100]!r}{nearest(name, self.functions)}: give it in functions="
            )
        return functools.partial(found, **params) if params else found

    def _custom(self, module: Node, name: str) -> Fn | None:
        if module.of(str) not in self.modules:
            module.refuse(f"module {module.value[:100]!r} is not allowed: name it in modules=")
        found: Fn | None = getattr(import_module(module.value), name, None)
        return found

    def _inline(self, one: Node, code: str) -> Fn:
        if not self.inline:
            one.refuse("it is code, which is run only with allow_inline_code=True; else name a function")
        try:
            tree = ast.parse(code.strip(), mode="eval")
        except (SyntaxError, ValueError) as error:
            one.refuse(f"it is no expression of Python: {error}")
        text = code.strip() if isinstance(tree.body, ast.Lambda) else f"lambda data, ctx: ({code.strip()})"
        found: Fn = eval(compile(text, "<inline>", "eval"), {})  # the caller has said so
        return found


# -- what is done -----------------------------------------------------------------------------------------------------


class _Asked(Function):
    """A condition as a guard: given the data and a context."""

    def __init__(self, name: str, function: Fn) -> None:
        super().__init__(lambda ctx: _given(function)(dict(ctx.data), ctx))
        self._text = name


def _step(path: str, acts: list[Fn]) -> WorkflowStep:
    async def execute(ctx: Any) -> None:
        for act in acts:
            await act(ctx)

    return WorkflowStep(path.rpartition(".")[2], execute)


def _given(function: Fn) -> Fn:
    """Given the data and a context; where it takes one argument, a state, whose `data` is the data."""
    try:
        many = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty and p.kind < 2]
    except (TypeError, ValueError):
        return function
    if len(many) == 1:
        if many[0].name == "data":
            return lambda data, ctx: function(data)
        return lambda data, ctx: function(SimpleNamespace(data=data))
    return function


async def _called(function: Fn, ctx: Any) -> Any:
    call = _given(function)
    data = dict(ctx.data)
    result = await call(data, ctx) if is_async(function) else await Threads(1).call(call, data, ctx)
    return result, data


def _validated(function: Fn) -> Fn:
    """A dict that a validator returns goes into the data; else `valid` says whether it held, and raised nothing."""

    async def act(ctx: Any) -> None:
        try:
            result, _ = await _called(function, ctx)
        except Exception as error:
            result = {"valid": False, "validation_error": f"{type(error).__name__}: {error}"[:200]}
        ctx.data.update(result if isinstance(result, Mapping) else {"valid": bool(result)})

    return act


def _transformed(function: Fn) -> Fn:
    """The dict that a transform returns is the data; where it returns none, what it made of the one it was given."""

    async def act(ctx: Any) -> None:
        result, data = await _called(function, ctx)
        _replaced(ctx.data, result if isinstance(result, Mapping) else data)

    return act


def _updated(transforms: list[Fn]) -> Fn | None:
    def update(data: Any, event: Any) -> None:
        for function in transforms:
            given = dict(data)
            result = _given(function)(given, event)
            _replaced(data, result if isinstance(result, Mapping) else given)

    return update if transforms else None


def _replaced(data: Any, by: Mapping[str, Any]) -> None:
    for key in [key for key in data if key not in by]:
        del data[key]
    data.update(by)


def _checked(schema: Mapping[str, Any]) -> Fn:
    """The data must fit a JSON Schema, or the step fails."""

    async def act(ctx: Any) -> None:
        try:
            from jsonschema import ValidationError, validate  # type: ignore[import-untyped]
        except ImportError as error:
            raise FSMWorkflowError(
                "data_schema needs the library jsonschema: pip install 'fsmworkflow[jsonschema]'"
            ) from error
        try:
            validate(json.loads(json.dumps(dict(ctx.data), default=str)), dict(schema))
        except ValidationError as error:
            raise ValueError(f"the data does not fit the schema of {ctx.state}: {error.message[:200]}") from None

    return act


def _segment(name: str) -> str:
    return name.replace(".", "_")


def _named(reference: Any) -> str:
    """A condition as history tells it."""
    if isinstance(reference, Mapping):
        reference = reference.get("name") or reference.get("code") or reference.get("test") or "condition"
    return re.sub(r"\s+", " ", str(reference))[:200]
