"""The map: states and transitions of PyStator's as those of a Workflow."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from fsmworkflow.conditions import Guard, Joined, as_guard
from fsmworkflow.errors import nearest
from fsmworkflow.readers.places import Node, Problems, checked
from fsmworkflow.readers.pystator.effects import EFFECTS, Effect, effect, is_effect, updated
from fsmworkflow.readers.pystator.guards import Merged, Named, Required, check
from fsmworkflow.retry import Retry
from fsmworkflow.states import inside_of
from fsmworkflow.threads import Threads, is_async
from fsmworkflow.workflow import State, Transition, Workflow, WorkflowStep

if TYPE_CHECKING:
    from fsmworkflow.readers.pystator.machine import Machine

__all__ = ["TOLD", "Builder", "Fn", "major"]

Fn = Callable[..., Any]

TOLD = ("description", "metadata", "ref", "refs")  # for people
STATE = (
    "name", "type", "parent", "initial_child", "regions", "on_enter", "on_exit", "invoke", "timeout", "group", *TOLD,
)  # fmt: skip
TRANSITION = (
    "trigger", "source", "dest", "region", "guards", "actions", "after", "internal", "auto", "priority", *TOLD,
)  # fmt: skip
TYPES = ("initial", "stable", "terminal", "error", "parallel", "choice")
WAYS, LEVELS = 40_000, 64
"""So many transitions, `"*"` taken as each of its states, and so many states in states a machine may have."""
UNITS = {"s": 1, "m": 60, "h": 3600}


class Builder:
    def __init__(self, machine: Machine) -> None:
        self.machine, self.root = machine, machine.root
        self.workflow = Workflow(machine.name, version=machine.version, payload="merge", endless=True)
        self.states: dict[str, Node] = {}
        self.around: dict[str, str] = {}  # the path that a state lies in, where that is a region
        self.firsts: set[tuple[str, str, str]] = set()  # a state with regions, a region, and where that begins
        self.paths: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.acts: dict[str, Fn] = {}
        self.transitions: list[tuple[Node, list[str]]] = []
        self.ways: list[tuple[Transition, list[Effect]]] = []
        policy = self.root["error_policy"] if "error_policy" in self.root else Node(self.root.source, {}, None)
        policy.keys(("default_fallback", "retry_attempts", "strict_mode"))
        self.fallback = policy.get("default_fallback", str)
        self.attempts: int = 1 + policy.get("retry_attempts", int, default=0)
        if self.attempts < 1:
            policy["retry_attempts"].refuse("it must not be negative")
        self.policy, self.problems = policy, Problems(self.root)

    def built(self) -> Workflow:
        each = self.problems.each
        each(self._met, ((one,) for one in self.root.each("states")))
        each(self._regions, self.states.items())
        each(self._parts, ((one,) for one in self.root.each("transitions")))
        each(self._path, ((name, ()) for name in self.states))
        self.problems.close()
        self.leaving = {source for _, sources in self.transitions for source in sources}
        self.parents = {one.get("parent", str) for one in self.states.values()}
        each(self._state, sorted(self.states.items(), key=lambda named: self.paths[named[0]].count(".")))
        each(self._transition, sorted(self.transitions, key=lambda part: part[0].get("priority", int, default=0)))
        self.problems.close()
        self.inside = inside_of(self.workflow)
        self._fall()
        self._begin()
        for way, effects in self.ways:
            inside = way.internal or way.dest is None
            changes = effects if inside else [*self._left(way), *effects, *self._entered(way)]
            self.workflow.add(replace(way, update=updated(changes)))
        return checked(self.workflow)

    def _lead(self, way: Transition, effects: Iterable[Effect] = ()) -> None:
        """A way that is added once all states are known, and so the effects of what it enters."""
        self.ways.append((way, list(effects)))

    def _fall(self) -> None:
        """An action, or an invoked service, that fails for good leads to the fallback, whatever state is active."""
        if self.fallback is None:
            return
        fallback = self._target(self.policy["default_fallback"])
        for name, path in self.paths.items():
            last = path == fallback or self.workflow.states[path].kind == "final"
            if not last and ("." not in path or self.states[name].value.get("invoke")):
                self._lead(Transition(source=path, dest=fallback, error=Exception))

    def _begin(self) -> None:
        """Where the first state has effects of its entry, the run comes there from a state before it."""
        first = next((s for s in self.workflow.states.values() if s.initial and "." not in s.name), None)
        if first is not None and self._entered(Transition(source="", dest=first.name)):
            self.workflow.states[first.name] = replace(first, initial=False)
            before = next(name for name in ("begin", "begin 0") if name not in self.workflow.states)
            self.workflow.add(State(name=before, kind="choice", initial=True))
            self._lead(Transition(source=before, dest=first.name))

    # -- effects ------------------------------------------------------------------------------------------------------

    def _effects(self, path: str, key: str) -> list[Effect]:
        one = self.states.get(self.names.get(path, ""))
        return [] if one is None else [effect(told) for told in one.each(key) if is_effect(told)]

    def _left(self, way: Transition) -> list[Effect]:
        """Those of the exit of an outermost state; within others, what is active there is only known in a run."""
        source, dest = str(way.source).split("."), str(way.dest).split(".")
        outer = source[0] != dest[0] or len(source) == 1
        return self._effects(source[0], "on_exit") if outer else []

    def _entered(self, way: Transition) -> list[Effect]:
        """Those of the entry of what a transition enters, from outside inwards."""
        source, dest = str(way.source).split("."), str(way.dest).split(".")
        same = 0
        while same < min(len(source), len(dest)) - 1 and source[same] == dest[same]:
            same += 1
        paths = []
        for many in range(same + 1, len(dest) + 1):
            path = ".".join(dest[:many])
            paths += [path, *(p for p in self._below(path) if many == len(dest) or self._beside(path, p, dest))]
        return [one for path in paths for one in self._effects(path, "on_enter")]

    def _below(self, path: str) -> list[str]:
        """The states that are entered with a state: its initial child, or those of each region."""
        found: list[str] = []
        for state in self.inside.get(path, ()):
            if state.initial or state.kind == "region":
                found += [state.name, *self._below(state.name)]
        return found

    def _beside(self, path: str, other: str, dest: list[str]) -> bool:
        """Whether it lies in another region of a parallel state than where the way leads."""
        depth = path.count(".") + 1
        return self.workflow.states[path].kind == "parallel" and other.split(".")[depth] != dest[depth]

    # -- states -------------------------------------------------------------------------------------------------------

    def _met(self, one: Node) -> None:
        """One more state. What is wrong in it hides nothing of what leads there."""
        if one.of(dict) and "name" in one:
            name = one["name"].of(str)
            if name in self.states:
                one.refuse(f"there is another state {name!r}")
            self.states[name] = one
            if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.]*", name):
                one["name"].refuse(f"{name[:100]!r} is no name of a state")
        kind = one.keys(STATE, needed=("name",)).get("type", str, default="stable")
        if kind not in TYPES:
            one["type"].refuse(f"there is no type {kind[:100]!r}{nearest(kind, TYPES)}")

    def _regions(self, name: str, one: Node) -> None:
        for region in one.each("regions"):
            region.keys(("name", "initial", "states", *TOLD), needed=("name", "initial"))
            for state in [region["initial"], *region.each("states")]:
                self._known(state)
                self.around.setdefault(state.value, f"{name}/{segment(region['name'].of(str))}")
            self.firsts.add((name, segment(region["name"].of(str)), region["initial"].value))

    def _path(self, name: str, below: tuple[str, ...]) -> str:
        """The dotted path of a state: the states around it, and the region that it lies in."""
        if name not in self.paths:
            one = self.states[name]
            if name in below:
                one.refuse(f"state {name!r} lies within itself")
            if len(below) > LEVELS:
                one.refuse(f"states lie within each other on at most {LEVELS} levels")
            outer, _, region = self.around.get(name, "").partition("/")
            outer = outer or (self._known(one["parent"]) if "parent" in one else "")
            around = [self._path(outer, (*below, name))] if outer else []
            path = ".".join([*around, *([region] if region else []), segment(name.removeprefix(f"{outer}."))])
            if path.count(".") > LEVELS:
                one.refuse(f"states lie within each other on at most {LEVELS} levels")
            if path in self.names:
                one.refuse(f"states {name!r} and {self.names[path]!r} have the same name here")
            self.paths[name], self.names[path] = path, name
        return self.paths[name]

    def _known(self, one: Node) -> str:
        name: str = one.of(str)
        if name not in self.states:
            one.refuse(f"there is no state {name[:100]!r}{nearest(name, self.states)}")
        return name

    def _state(self, name: str, one: Node) -> None:
        kind, path = self._kind(name, one), self.paths[name]
        step = self._invoked(name, one) if "invoke" in one else None
        outcome: Any = "failed" if one.value.get("type") == "error" else "done"
        made = State(
            name=path, kind="step" if step else kind, step=step, initial=self._initial(name, one), outcome=outcome,
            enter=self._acts(one, "on_enter"), exit=self._acts(one, "on_exit"),
        )  # fmt: skip
        self.workflow.add(made)
        for region in one.each("regions"):
            self.workflow.add(State(name=f"{path}.{segment(region['name'].of(str))}", kind="region"))
        if "timeout" in one:
            timeout = one["timeout"].keys(("seconds", "destination"), needed=("seconds", "destination"))
            seconds = timeout["seconds"].of(int, float)
            self._lead(Transition(source=path, dest=self._target(timeout["destination"]), delay=seconds))
        if "." in path and (told := next((told for told in one.each("on_exit") if is_effect(told)), None)):
            told.refuse("effects of the exit of a state within another are not mapped: write them on its transitions")

    def _kind(self, name: str, one: Node) -> Any:
        kind = one.get("type", str, default="stable")
        if (kind == "parallel") != ("regions" in one):
            one.refuse("a parallel state has regions, and no other has them")
        if kind in ("parallel", "choice"):
            return kind
        if name in self.parents:
            return "state"
        if kind == "terminal" and "parent" in one and name not in self.around:
            self._lead(Transition(source=self.paths[name], dest=None))  # it ends the run, and not what is around it
            return "wait"
        if kind == "terminal" or (kind == "error" and name not in self.leaving):
            return "final"
        return "wait"

    def _initial(self, name: str, one: Node) -> bool:
        """Whether it is where the machine, the state around it, or its region begins."""
        outer, _, region = self.around.get(name, "").partition("/")
        if region:
            return (outer, region, name) in self.firsts
        if "parent" in one:
            parent = self.states[one["parent"].value]
            if "initial_child" in parent:
                self._known(parent["initial_child"])
                return bool(parent.value["initial_child"] == name)
        return bool(one.value.get("type") == "initial")

    def _invoked(self, name: str, one: Node) -> WorkflowStep:
        """A service that is called when the state is entered: a step, whose end is the event `on_done`."""
        calls = list(one.each("invoke"))
        if len(calls) != 1:
            one["invoke"].refuse("a state invokes one service here: make regions of several")
        call = calls[0].keys(("id", "src", "on_done"), needed=("src", "on_done"))
        function = self._function(self.machine.actions, "action", call["src"])
        trigger = self.machine.trigger(call["on_done"].of(str))

        async def execute(ctx: Any) -> str:
            given = {**ctx.data, "_entity_id": ctx.run.key}
            result = await called(function, given)
            if isinstance(result, Mapping):
                ctx.data.update(result)
            return trigger

        return WorkflowStep(name, execute, Retry(attempts=self.attempts) if self.attempts > 1 else None)

    # -- transitions --------------------------------------------------------------------------------------------------

    def _parts(self, one: Node) -> None:
        one.keys(TRANSITION, needed=("source", "dest"))
        if not ("trigger" in one or "after" in one or one.get("auto", bool, default=False)):
            one.refuse("a transition has 'trigger', 'after', or 'auto: true'")
        if one.value["source"] in ("*", ["*"]):
            sources = [name for name, state in self.states.items() if state.value.get("type") != "terminal"]
        else:
            sources = [self._known(source) for source in one.each("source")]
        self.transitions.append((one, sources))

    def _transition(self, one: Node, sources: Iterable[str]) -> None:
        internal = one.get("internal", bool, default=False)
        guards, action = self._guards(one), self._acts(one, "actions")
        effects = [effect(told) for told in one.each("actions") if is_effect(told)]
        trigger = one.get("trigger", str)
        for source in sources:
            if len(self.ways) > WAYS:
                one.refuse(f"it has more than {WAYS:,} transitions, with one for each source")
            path = self.paths[source]
            choosing = self.states[source].value.get("type") == "choice"
            made = Transition(
                source=path, dest=path if internal else self._target(one["dest"]), conditions=guards, after=action,
                internal=internal,
            )  # fmt: skip
            if "after" in one:
                self._lead(replace(made, delay=delay(one["after"])), effects)
            if trigger is not None and not choosing and not one.get("auto", bool, default=False):
                self._lead(replace(made, trigger=self.machine.trigger(trigger)), effects)
            elif choosing or "after" not in one:
                self._lead(made, effects)

    def _target(self, one: Node) -> str:
        name = one.of(str)
        if re.fullmatch(r"H\*?\(.*\)", name):
            one.refuse(f"{name[:100]}: there are no history states here")
        return self.paths[self._known(one)]

    def _guards(self, one: Node) -> Guard | None:
        guards = [self._guard(guard) for guard in one.each("guards")]
        guards += [Required(key) for key in self.machine.required]
        return None if not guards else guards[0] if len(guards) == 1 else Joined("and", tuple(guards))

    def _guard(self, one: Node) -> Guard:
        if isinstance(one.value, str):
            return self._named(one, one.value, {})
        one.keys(("name", "expr", "check", "params"))
        if "expr" in one:
            try:
                return Merged(one["expr"].of(str))
            except ValueError as error:
                one["expr"].refuse(str(error))
        if "check" in one:
            return check(one["check"])
        if "name" not in one:
            one.refuse("a guard has 'name', 'expr' or 'check'")
        return self._named(one["name"], one["name"].of(str), one.get("params", dict, default={}))

    def _named(self, one: Node, name: str, params: Mapping[str, Any]) -> Guard:
        if name not in self.machine.guards and not self.machine.strict:
            return as_guard(lambda ctx: True)
        return Named(name, self._function(self.machine.guards, "guard", one), params)

    def _function(self, functions: Mapping[str, Fn], what: str, one: Node) -> Fn:
        name = one.of(str)
        if name not in functions:
            told = f"{what} {name[:100]!r} is not bound{nearest(name, functions)}: @machine.{what}({name[:100]!r})"
            self.problems.unbound(one, f"{what} {name}", told)
        return functions.get(name, bool)

    def _acts(self, one: Node, key: str) -> Fn | None:
        """The actions of a list, one after the other, as one: run after the commit, at least once.

        What a row has of it is its name: that of the actions, with their parameters.
        """
        found = [self._action(action) for action in one.each(key) if not is_effect(action)]
        name = ", ".join(f"{told}({json.dumps(params, sort_keys=True)})" if params else told for told, params in found)
        if found and name not in self.acts:
            made = [
                (self.machine.actions.get(told, bool), {"_action_params": params} if params else {})
                for told, params in found
            ]

            async def act(ctx: Any) -> None:
                for function, more in made:
                    await called(function, {**ctx.data, "_entity_id": ctx.run.key, **more})

            act.__qualname__ = name
            self.acts[name] = act
        return self.acts[name] if found else None

    def _action(self, one: Node) -> tuple[str, dict[str, Any]]:
        if isinstance(one.value, str):
            self._function(self.machine.actions, "action", one)
            return one.value, {}
        one.keys(("name", "params", *EFFECTS), needed=("name",))
        self._function(self.machine.actions, "action", one["name"])
        return one.value["name"], one.get("params", dict, default={})


async def called(function: Fn, context: dict[str, Any]) -> Any:
    return await function(context) if is_async(function) else await Threads(1).call(function, context)


def segment(name: str) -> str:
    return name.replace(".", "_")


def major(meta: Node) -> int:
    """The first number of a version such as "1.2.0"; 1 where there is none."""
    found = re.match(r"\d{1,9}", str(meta.value.get("version", "1")))
    return max(1, int(found[0])) if found else 1


def delay(one: Node) -> float:
    """Milliseconds, or text as "5s", "10m", "1h"; text without a unit is milliseconds, too."""
    value = one.of(int, str)
    if isinstance(value, int):
        return value / 1000
    found = re.fullmatch(r"\s*(\d{1,12})([smh]?)\s*", value)
    if found is None:
        one.refuse(f"{value[:40]!r} is no delay: milliseconds, or text as '5s', '10m', '1h'")
    return int(found[1]) * UNITS[found[2]] if found[2] else int(found[1]) / 1000
