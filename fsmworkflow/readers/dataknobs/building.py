"""The map: networks, states and arcs of dataknobs-fsm as those of a Workflow."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fsmworkflow.conditions import Guard
from fsmworkflow.errors import nearest
from fsmworkflow.readers.dataknobs.functions import Call, Context, Functions, Role
from fsmworkflow.readers.dataknobs.schema import VALUES, Schema, size
from fsmworkflow.readers.dataknobs.work import Asked, Work, updated
from fsmworkflow.readers.places import Node, Problems, checked, node
from fsmworkflow.workflow import State, Transition, Workflow, WorkflowStep

__all__ = ["load"]

_TOLD = ("description", "metadata")  # for people, and `metadata` for functions, too
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
    "name", "from", "to", "target", "condition", "pre_test", "transform", "priority", "resources",
    "target_network", "return_state", "data_isolation", *_TOLD,
)  # fmt: skip
_FUNCTIONS = ("transform", "validate", "validators", "state_test")
_RESOURCE = (
    "name", "type", "config", "connection_pool_size", "timeout_seconds", "retry_attempts", "retry_delay_seconds",
    "health_check_interval",
)  # fmt: skip
_MODES = ("copy", "reference", "direct")
STATES = 25_000
"""So many states a machine may come to."""
_STREAMING = ("enabled", "chunk_size", "parallelism", "memory_limit_mb", "backpressure_threshold", "format")


def load(
    config: Mapping[str, Any] | str | Path,
    *,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    modules: Iterable[str] = (),
    resources: Mapping[str, Any] | None = None,
    allow_inline_code: bool = False,
) -> Workflow:
    """The checked workflow of a file or of plain values.

    `functions` are those that the machine calls registered, `modules` those that it may take custom ones from,
    `resources` the open connections, clients and pools that it names; each is handed to the functions of the states
    that name it. Code that stands in the configuration is refused unless `allow_inline_code=True`: it is Python, run
    as it is, so say that only of files of your own. Raises DefinitionError, with the place of what cannot be read or
    mapped, and OSError.
    """
    root = node(config)
    known = Functions(functions or {}, modules, allow_inline_code, Problems(root))
    return _Reader(root, known, resources or {}).workflow()


class _Here(NamedTuple):
    """A network while it is mapped: its states, the path before their names, and what it was called from."""

    network: Node
    states: dict[str, Node]
    path: str
    below: tuple[str, ...]


class _Reader:
    def __init__(self, root: Node, functions: Functions, resources: Mapping[str, Any]) -> None:
        self.root = root.keys(_ROOT)
        self.functions, self.problems, self.given = functions, functions.problems, resources
        self.resources: dict[str, Any] = {}
        self.networks: dict[str, Node] = {}
        self.states: dict[str, dict[str, Node]] = {}
        self.numbers: Counter[str] = Counter()
        self.schemas: dict[int, Schema] = {}
        self.sized = 0

    def workflow(self) -> Workflow:
        root = self.root
        self._whole()
        self.problems.each(self._met, ((one,) for one in (root.each("networks") if "networks" in root else [root])))
        self.problems.close()
        main = root.get("main_network", str, default=next(iter(self.networks), "main"))
        if main not in self.networks:
            root["main_network"].refuse(f"there is no network {main[:100]!r}{nearest(main, self.networks)}")
        deadline = root.get("timeout_seconds", int, float)
        self.made = Workflow(root.get("name", str, default="machine"), version=self._version(), deadline=deadline)
        self.problems.each(self._network, [(main, "", ())])
        self.problems.close()
        return checked(self.made)

    def _version(self) -> int:
        """The first number of a version such as "1.2.0"; 1 where there is none."""
        found = re.match(r"\d{1,9}", str(self.root.value.get("version", "1")))
        return max(1, int(found[0])) if found else 1

    def _whole(self) -> None:
        """What is said of the whole: refused where it has no counterpart."""
        strategy = self.root.get("execution_strategy", str, default="depth_first")
        if strategy.lower() != "depth_first":
            self.root["execution_strategy"].refuse(f"{strategy[:40]!r} is not mapped: runs go depth_first, one way")
        if "transaction" in self.root:
            strategy = self.root["transaction"].of(dict).get("strategy", "single")
            if strategy not in ("single", "none"):
                self.root["transaction"].refuse(f"{str(strategy)[:40]!r} is not mapped: each state is a transaction")
        self.most = self.root.get("max_transitions", int)
        self._mode(self.root)
        _plain({key: self.root[key] for key in self.root.value if key != "resources"})
        for one in self.root.each("resources"):
            name = one.keys(_RESOURCE, needed=("name",))["name"].of(str)
            if name not in self.given:
                one.refuse(f"resource {name[:100]!r} is not given: load(..., resources={{{name[:100]!r}: ...}})")
            self.resources[name] = self.given[name]

    def _mode(self, one: Node) -> None:
        """How data is handed on: each step has a private copy here, which all of the modes allow."""
        if "data_mode" not in one:
            return
        mode = one["data_mode"]
        if isinstance(mode.value, dict):
            mode = mode.keys(("default", "state_overrides", *(f"{mode}_config" for mode in _MODES)))["default"]
        if mode.value is not None and mode.of(str).lower() not in _MODES:
            mode.refuse(f"there is no mode {mode.value[:40]!r}{nearest(mode.value, _MODES)}")

    # -- states -------------------------------------------------------------------------------------------------------

    def _met(self, network: Node) -> None:
        """One more network, with its states by their names: they stand in a list, or in a mapping."""
        whole = network is self.root
        name = "main" if whole else network.keys(_NETWORK, needed=("name", "states"))["name"].of(str)
        self.networks[name], self.states[name] = network, {}
        if "streaming" in network:
            network["streaming"].keys(_STREAMING)
        states = network["states"]
        if not states.of(dict, list):
            states.refuse("a network has states")
        keys: Iterable[Any] = states.value if isinstance(states.value, dict) else range(len(states.value))
        parts = ((Node(network.source, states.value[key], (states.place, key, states.value)), key) for key in keys)
        self.problems.each(functools.partial(self._met_state, self.states[name]), parts)

    def _met_state(self, found: dict[str, Node], one: Node, key: str | int) -> None:
        """One more state. What is wrong in it hides nothing of what leads there."""
        name = key if isinstance(key, str) else one["name"].of(str) if one.of(dict) and "name" in one else None
        if name in found:
            one.refuse(f"there is another state {name!r}")
        if name is not None:
            found[name] = one
        one.keys(_STATE, needed=() if isinstance(key, str) else ("name",))
        self._mode(one)

    def _network(self, name: str, path: str, below: tuple[str, ...], begin: str | None = None) -> None:
        """The states and arcs of a network, in the workflow or in the state that stands for its call."""
        if name in below:
            self.networks[name].refuse(f"network {name!r} calls itself")
        if len(self.made.states) + len(self.states[name]) > STATES:
            self.root.refuse(f"with its networks, each as often as it is called, it has more than {STATES:,} states")
        here = _Here(self.networks[name], self.states[name], path, (*below, name))
        first = begin or self._first(here)
        ways: dict[str, list[Node]] = {one: list(told.each("arcs")) for one, told in here.states.items()}

        def leading(arc: Node) -> None:
            ways[self._known(arc.keys(_ARC, needed=("from",))["from"], here.states)].append(arc)

        self.problems.each(leading, ((arc,) for arc in here.network.each("arcs")))
        for state, told in here.states.items():
            ways[state] += [told["on_complete"]] if "on_complete" in told else []
        for state in _reached(here, ways, begin) if begin else here.states:
            self.problems.each(self._state, [(here, state, state == first, ways[state])])
            arcs = sorted(ways[state], key=lambda arc: -arc.keys(_ARC).get("priority", int, default=0))
            self.problems.each(self._arc, ((arc, here, state) for arc in arcs))

    def _first(self, here: _Here) -> str:
        starts = [one for one, told in here.states.items() if told.get("is_start", bool, default=False)]
        for other in starts[1:]:
            here.states[other]["is_start"].refuse(f"a run begins in one state, and {starts[0]!r} is the first")
        if "initial_state" in here.network:
            return self._known(here.network["initial_state"], here.states)
        return next(iter(starts or here.states))

    def _known(self, one: Node, states: Mapping[str, Node]) -> str:
        name: str = one.of(str)
        if name not in states:
            one.refuse(f"there is no state {name[:100]!r}{nearest(name, states)}")
        return name

    def _state(self, here: _Here, state: str, initial: bool, ways: list[Node]) -> None:
        told, path = here.states[state], f"{here.path}{segment(state)}"
        ends = told.get("is_end", bool, default=False) or told.get("final", bool, default=False)
        if ends and ways:
            ways[0].refuse("it leads out of a state that ends the run, and is never taken")
        work = self._work(told, path, self._context(path, here.network, told))
        work.most = None if ends else self.most
        if not work:
            self.made.add(State(name=path, kind="final" if ends else "choice", initial=initial))
            return
        step = WorkflowStep(path.rpartition(".")[2], work.execute())
        whole = ends and not here.path
        self.made.add(State(name=path, kind="step", step=step, initial=initial, ends=whole))
        if ends and not whole:  # in a network that was called: its end is a state of its own
            self.made.add(State(name=f"{path} ended", kind="final"), Transition(source=path, dest=f"{path} ended"))
        if "on_error" in told:
            target = told["on_error"].keys(("target", *_TOLD), needed=("target",))["target"]
            dest = f"{here.path}{segment(self._known(target, here.states))}"
            self.made.add(Transition(source=path, dest=dest, error=Exception))

    def _work(self, told: Node, path: str, known: Context) -> Work:
        work = Work(path, known)
        for key in ("schema", "data_schema"):
            if told.get(key, dict) is not None:
                work.schema = self._schema(told[key])
        inner = told["functions"].keys(_FUNCTIONS) if "functions" in told else Node(told.source, {}, None)
        work.before = self._calls(told, ("pre_validators",), "validate")
        work.validators = self._calls(told, ("validators", "validator"), "validate")
        work.validators += self._calls(inner, ("validate", "validators", "state_test"), "validate")
        work.transforms = self._calls(told, ("transforms", "transform"), "transform")
        work.transforms += self._calls(inner, ("transform",), "transform")
        return work

    def _schema(self, one: Node) -> Schema:
        if id(one.value) not in self.schemas:
            self.sized += size(one.value)
            if self.sized > VALUES:
                one.refuse(f"the schemas of one file have at most {VALUES:,} values")
            self.schemas[id(one.value)] = Schema(one)
        return self.schemas[id(one.value)]

    def _calls(self, told: Node, keys: Iterable[str], role: Role) -> list[Call]:
        return [self.functions.find(one, role) for key in keys for one in told.each(key)]

    def _context(self, path: str, *told: Node) -> Context:
        """What functions of a place know, with the resources that it names, or that the network names around it."""
        found = {}
        for name in (name for one in told if one is not self.root for name in one.each("resources")):
            if name.of(str) not in self.resources:
                name.refuse(f"there is no resource {name.value[:100]!r}{nearest(name.value, self.resources)}")
            found[name.value] = self.resources[name.value]
        metadata = dict(told[-1].get("metadata", dict, default={}))
        return Context(state_name=path, metadata=metadata, resources=found, variables={})

    # -- arcs ---------------------------------------------------------------------------------------------------------

    def _arc(self, arc: Node, here: _Here, state: str) -> None:
        source, told = f"{here.path}{segment(state)}", here.states[state]
        if "target_network" in arc:
            dest = self._call(arc, here)
        else:
            key = "target" if "target" in arc else "to"
            dest = f"{here.path}{segment(self._known(arc.keys(_ARC, needed=(key,))[key], here.states))}"
        known = self._context(source, here.network, told, arc)
        calls = self._calls(arc, ("transform",), "transform")
        if any(call.is_async for call in calls):
            dest, calls = self._between(source, dest, known, calls), []
        update = updated(calls, known) if calls else None
        self.made.add(Transition(source=source, dest=dest, conditions=self._condition(arc, known), update=update))

    def _between(self, source: str, dest: str, known: Context, calls: list[Call]) -> str:
        """Transforms that must be awaited: a state of their own on the way."""
        made = f"{source} to {dest.rpartition('.')[2]}"
        self.numbers[made] += 1
        made = f"{made} {self.numbers[made]}" if self.numbers[made] > 1 else made
        work = Work(made, known)
        work.transforms = calls
        self.made.add(State(name=made, kind="step", step=WorkflowStep(made.rpartition(".")[2], work.execute())))
        self.made.add(Transition(source=made, dest=dest))
        return made

    def _call(self, arc: Node, here: _Here) -> str:
        """Another network, as a state that holds its states, and leads on when it has come to its end.

        It begins in the state that `network:state` names, or in `target` where that is one of its states and none of
        this network. It leads back to `return_state`, else to `target`; where there is neither it ends the run.
        """
        name, _, begin = arc["target_network"].of(str).partition(":")
        if name not in self.networks:
            arc["target_network"].refuse(f"there is no network {name[:100]!r}{nearest(name, self.networks)}")
        inner = self.states[name]
        key = "to" if "to" in arc else "target"
        target = arc.get(key, str)
        if target in inner and target not in here.states:
            begin, target = begin or target, None
        if begin and begin not in inner:
            arc["target_network"].refuse(f"there is no state {begin[:100]!r}{nearest(begin, inner)}")
        if target is not None:
            self._known(arc[key], here.states)
        back = self._known(arc["return_state"], here.states) if "return_state" in arc else target
        made = self._named(f"{here.path}{segment(name)}")
        self.made.add(State(name=made, kind="state"))
        self._network(name, f"{made}.", here.below, begin or None)
        self.made.add(Transition(source=made, dest=None if back is None else f"{here.path}{segment(back)}"))
        return made

    def _named(self, name: str) -> str:
        """A name for the call of a network: `name 1`, then `name 2`."""
        while True:
            self.numbers[name] += 1
            if (made := f"{name} {self.numbers[name]}") not in self.made.states:
                return made

    def _condition(self, arc: Node, known: Context) -> Guard | None:
        key = next((key for key in ("condition", "pre_test") if key in arc), None)
        if key is None:
            return None
        one = arc[key]
        word = one.value.get("type") if isinstance(one.value, dict) else one.value
        if word in ("success", "failure"):
            return Asked(Call(word, lambda data: bool(data.get("valid", True)) is (word == "success"), {}), known)
        if isinstance(one.value, dict) and "test" in one.value:
            one = one["test"]
        return Asked(self.functions.find(one, "test"), known)


def _reached(here: _Here, ways: Mapping[str, list[Node]], begin: str) -> list[str]:
    """The states of a network that is begun in another than its first."""
    found, todo = {begin: None}, [begin]
    for state in todo:
        arcs = [*ways[state], *here.states[state].each("on_error")]
        nexts = [arc.value.get(key) for arc in arcs for key in ("to", "target", "return_state")]
        fresh = [one for one in dict.fromkeys(nexts) if one in here.states and one not in found]
        found.update(dict.fromkeys(fresh))
        todo += fresh
    return todo


def _plain(parts: Mapping[Any, Node]) -> None:
    """Refuse what would come from the environment: `${TOKEN}`, or `$TOKEN`. Resources are given open, so not theirs."""
    for key, one in parts.items():
        value = one.value
        if isinstance(value, str) and key != "code" and re.search(r"\$\{|^\$\w", value):
            one.refuse("variables of the environment are not read: give the value")
        keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        _plain({inner: Node(one.source, value[inner], (one.place, inner, value)) for inner in keys})


def segment(name: str) -> str:
    return name.replace(".", "_")
