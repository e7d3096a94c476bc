"""States and transitions as the transitions library is given them, in the vocabulary of a definition of ours."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, NoReturn

from fsmworkflow.errors import DefinitionError, cut, nearest

__all__ = ["translated"]

_STATE = {"name": "name", "on_enter": "enter", "on_exit": "exit", "final": "final", "initial": "initial"}
_BESIDE = ("children", "states", "parallel", "transitions", "remap", "timeout", "on_timeout", "on_final", "tags")
_TRANSITION = ("trigger", "source", "dest", "conditions", "unless", "before", "after", "prepare")
_REFUSED = {
    "before": "what is done comes after the commit: use `after`, or a step",
    "prepare": "what is asked is asked in `conditions`",
    "ignore_invalid_triggers": "an event that no state accepts waits",
}
ALONE = "_"
"""The child that stands for its parent alone, where transitions enters none."""


def translated(
    name: str, states: Iterable[Any], transitions: Iterable[Any], initial: Any, functions: Mapping[str, Any], auto: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The definition, and the functions that it names; `auto`: with a trigger `to_<state>` for each state.

    Raises DefinitionError for what has no counterpart, by name.
    """
    translation = _Translation(name, functions)
    told = [translation.state(one, "", "") for one in states]
    return translation.whole(told, list(transitions), _text(initial), auto), translation.functions


class _Translation:
    def __init__(self, name: str, functions: Mapping[str, Any]) -> None:
        self.name = name
        self.functions = dict(functions)
        self.paths: dict[str, str] = {}  # by the names that transitions gives them: nested ones with _ between
        self.inner: list[tuple[Any, str]] = []  # transitions that stand within a state, and the path of that
        self.remapped: dict[str, tuple[str, str]] = {}  # and what around a state its child stands for
        self.timeouts: list[tuple[str, Any, Any]] = []  # the path, the trigger, the time
        self.regions: set[str] = set()
        self.left: set[str] = set()

    def whole(self, states: list[Any], transitions: list[Any], initial: Any, auto: bool) -> dict[str, Any]:
        for there, (around, dest) in self.remapped.items():
            self.paths[there] = self._path(dest, around)
        if auto:
            transitions = transitions + [
                [f"to_{n}", "*", n] for n in self.paths if n not in self.remapped and n not in self.regions
            ]
        every = [*((told, "") for told in transitions), *self.inner]
        ways = [way for told, path in every for way in self._ways(told, path)]
        ways += [way for told in self.timeouts for way in self._late(*told, ways)]
        made = {"name": self.name, "initial": self.paths.get(initial, initial), "endless": True}
        return made | {"states": [self._ended(one, "") for one in states], "transitions": ways}

    def refuse(self, what: str) -> NoReturn:
        raise DefinitionError(self.name, [what])

    # -- states -------------------------------------------------------------------------------------------------------

    def state(self, one: Any, around: str, path: str, region: bool = False) -> dict[str, Any]:
        """A state as ours, with its children; its name there begins with `around`, and its path with `path`."""
        told = one if isinstance(one, Mapping) else _object(one) if hasattr(one, "on_enter") else {"name": one}
        name = _text(told.get("name"))
        if not isinstance(name, str):
            self.refuse(f"a state is a name, a member of an Enum or a mapping with a name, not {cut(one)[:60]}")
        self._keys(told, (*_STATE, *_BESIDE), f"state {name!r}")
        there, here = f"{around}{name}", f"{path}{name}"
        self.paths[there] = here
        if region:
            self.regions.add(there)
        self.inner += [(way, f"{here}.") for way in told.get("transitions", ())]
        self.remapped |= {f"{there}_{_text(a)}": (path, b) for a, b in (told.get("remap") or {}).items()}
        if told.get("timeout"):
            self.timeouts.append((here, told.get("on_timeout"), told["timeout"]))
        return self._made(told, name) | self._inside(told, there, here, region)

    def _made(self, told: Mapping[str, Any], name: str) -> dict[str, Any]:
        made: dict[str, Any] = {"name": name}
        enter = [*_many(told.get("on_enter")), *_many(told.get("on_final"))]
        for key, given in (("enter", enter), ("exit", _many(told.get("on_exit")))):
            if given:
                made[key] = self._action(given, f"{key} of state {name!r}")
        return made | ({"final": True} if told.get("final") else {})

    def _inside(self, told: Mapping[str, Any], there: str, here: str, region: bool) -> dict[str, Any]:
        given = [*(told.get("children") or told.get("states") or told.get("parallel") or ())]
        parallel = "parallel" in told or isinstance(told.get("initial"), (list, tuple))
        initial = None if parallel else _text(told.get("initial"))
        if given and told.get("on_final"):
            self.refuse(f"state {told['name']!r}: there is no 'on_final' of a state that holds others")
        parts = [self.state(one, f"{there}_", f"{here}.", parallel) for one in given]
        parts = [part for part in parts if f"{there}_{part['name']}" not in self.remapped]
        if parallel:
            return {"parallel": parts}
        if (parts or region) and not initial:
            parts, initial = [{"name": ALONE}, *parts], ALONE
            if told.get("final"):
                parts = [{"name": ALONE, "then": "ended"}, {"name": "ended", "final": True}, *parts[1:]]
        return {"children": parts, "initial": initial} if parts else {}

    def _ended(self, one: dict[str, Any], path: str) -> dict[str, Any]:
        """A state, final where nothing leads out of it. Where others are in it, they say when it has ended."""
        here = f"{path}{one['name']}"
        key = next((key for key in ("children", "parallel") if key in one), None)
        if key is not None:
            made = {name: value for name, value in one.items() if name != "final"}
            inner = [self._ended(part, f"{here}.") for part in one[key]]
            ends = {"then": {"dest": None}} if one.get("final") and not path else {}
            return made | {key: inner} | ends
        return one | ({} if "then" in one or self.left & {"*", here, *_around(here)} else {"final": True})

    # -- transitions --------------------------------------------------------------------------------------------------

    def _ways(self, told: Any, path: str) -> Iterator[dict[str, Any]]:
        """One transition as ours: several, where it leads back to each of its sources."""
        if isinstance(told, (list, tuple)):
            told = dict(zip(_TRANSITION, told, strict=False))
        if not isinstance(told, Mapping):
            self.refuse(f"a transition is a list or a mapping, not {cut(told)[:60]}")
        what = f"transition {cut(told.get('trigger'))[:60]}"
        self._keys(told, _TRANSITION, what)
        if missing := [key for key in _TRANSITION[:3] if key not in told]:
            self.refuse(f"{what}: the key {missing[0]!r} is missing; a dest of None stays in its source")
        made: dict[str, Any] = {"trigger": _text(told["trigger"])}
        made |= {k: [self._code(one, k) for one in _many(told[k])] for k in ("conditions", "unless") if told.get(k)}
        if told.get("after"):
            made["after"] = self._action(_many(told["after"]), f"after of {what}")
        sources = self._sources(told.get("source"), path)
        self.left.update(sources)
        dest = told.get("dest")
        if dest is None or dest == "=":
            every = [path for path in self.paths.values() if "." not in path] if sources == ["*"] else sources
            kind = "internal" if dest is None else "dest"
            yield from (made | {"source": source, kind: dest is None or source} for source in every)
        else:
            yield made | {"source": sources if len(sources) > 1 else sources[0], "dest": self._path(dest, path)}

    def _sources(self, given: Any, path: str) -> list[Any]:
        """Within a state, "*" stands for what is in it."""
        if given == "*" and path:
            return [path.removesuffix(".")]
        return [self._path(one, path) for one in (given if isinstance(given, (list, tuple, set)) else [given])]

    def _late(self, path: str, trigger: Any, time: Any, ways: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The ways that a time-out takes: those of the trigger that `on_timeout` names."""
        sources = {"*", path, *_around(path)}
        found = [way for way in ways if way["trigger"] == trigger and sources & {*_many(way["source"])}]
        if not found:
            self.refuse(f"state {path!r}: on_timeout {cut(trigger)[:60]} is no trigger that leads out of it")
        for way in found:
            yield {key: value for key, value in way.items() if key != "trigger"} | {"source": path, "delay": time}

    def _path(self, state: Any, around: str) -> Any:
        name = _text(state)
        return self.paths.get(f"{around.replace('.', '_')}{name}", self.paths.get(name, name))

    # -- code and keys ------------------------------------------------------------------------------------------------

    def _action(self, given: list[Any], what: str) -> str:
        """The name of a function: of one that calls them all, where there are several."""
        names = [self._code(one, what) for one in given]
        if len(names) == 1:
            return names[0]
        functions = [self.functions.get(name) for name in names]
        if not all(callable(fn) and not inspect.iscoroutinefunction(fn) for fn in functions):
            self.refuse(f"{what}: of several functions each is given in functions=, and none is async")

        def act(ctx: Any) -> None:
            for function in functions:
                function(ctx)  # type: ignore[misc]

        act.__qualname__ = act.__name__ = "_and_".join(names)
        return self._code(act, what)

    def _code(self, told: Any, what: str) -> str:
        """The name of a function, one that is given entered among the others."""
        if isinstance(told, str):
            return told
        if not callable(told):
            self.refuse(f"{what}: {cut(told)[:60]} is neither a function nor the name of one")
        name = number = str(getattr(told, "__name__", "function")).strip("<>")
        while self.functions.setdefault(number, told) is not told:
            number = f"{name}_{len(self.functions)}"
        return number

    def _keys(self, told: Mapping[str, Any], known: Iterable[str], what: str) -> None:
        for key in told:
            if key in _REFUSED and told[key]:
                self.refuse(f"{what}: there is no {key!r} here: {_REFUSED[key]}")
            if key not in known and key not in _REFUSED:
                self.refuse(f"{what}: there is no key {str(key)[:60]!r}{nearest(str(key), known)}")


def _object(state: Any) -> dict[str, Any]:
    """A State of that library as a mapping: those with others in them are written as mappings."""
    keys = ("name", "on_enter", "on_exit", "final", "ignore_invalid_triggers", "states", "timeout", "on_timeout")
    return {key: getattr(state, key) for key in keys if getattr(state, key, None)}


def _many(given: Any) -> list[Any]:
    return [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]


def _around(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:many]) for many in range(1, len(parts))]


def _text(told: Any) -> Any:
    """The name of a state: a member of an Enum goes by its name, as there."""
    return told.name if isinstance(told, Enum) else told
