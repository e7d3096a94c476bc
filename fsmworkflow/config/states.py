"""States and transitions as the transitions library is given them, in the vocabulary of a definition of ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, NoReturn

from fsmworkflow.conditions import cut
from fsmworkflow.errors import DefinitionError
from fsmworkflow.workflow import nearest

__all__ = ["translated"]

_STATE = {"name": "name", "on_enter": "enter", "on_exit": "exit", "final": "final", "initial": "initial"}
_BESIDE = ("children", "transitions", "parallel")
_TRANSITION = ("trigger", "source", "dest", "conditions", "unless", "before", "after", "prepare")
_REFUSED = {
    "before": "what is done comes after the commit: use `after`, or a step",
    "prepare": "what is asked is asked in `conditions`",
    "ignore_invalid_triggers": "an event that no state accepts waits",
    "timeout": "write Transition(delay=), or after= of a state",
    "on_final": "use on_enter of the final state",
    "tags": "they say nothing here",
}


def translated(
    name: str, states: Iterable[Any], transitions: Iterable[Any], initial: Any, functions: Mapping[str, Any], auto: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The definition, and the functions that it names; `auto`: with a trigger `to_<state>` for each state.

    Raises DefinitionError for what has no counterpart, by name.
    """
    translation = _Translation(name, functions)
    return translation.whole(list(states), list(transitions), _text(initial), auto), translation.functions


class _Translation:
    def __init__(self, name: str, functions: Mapping[str, Any]) -> None:
        self.name = name
        self.functions = dict(functions)
        self.paths: dict[str, str] = {}  # by the names that transitions gives them: nested ones with _ between
        self.regions: set[str] = set()  # and the names of the states in them
        self.left: set[str] = set()

    def whole(self, states: list[Any], transitions: list[Any], initial: Any, auto: bool) -> dict[str, Any]:
        self._known(states, "", "")
        if auto:
            transitions = transitions + [[f"to_{name}", "*", name] for name in self.paths if name not in self.regions]
        ways = [way for told, inner in self._all(states, transitions, "") for way in self._ways(told, inner)]
        made = {"name": self.name, "initial": self.paths.get(initial, initial), "transitions": ways}
        return made | {"states": [self._state(one, "") for one in states]}

    def refuse(self, what: str) -> NoReturn:
        raise DefinitionError(self.name, [what])

    # -- states -------------------------------------------------------------------------------------------------------

    def _known(self, states: Iterable[Any], around: str, path: str) -> None:
        for one in states:
            name = _text(one["name"] if isinstance(one, Mapping) and "name" in one else one)
            if not isinstance(name, str):
                self.refuse(f"a state is a name, a member of an Enum or a mapping with a name, not {cut(one)[:60]}")
            self.paths[f"{around}{name}"] = f"{path}{name}"
            self._known(_inner(one), f"{around}{name}_", f"{path}{name}.")
            if _parallel(one):
                self.regions |= {there for there in self.paths if there.startswith(f"{around}{name}_")}

    def _all(self, states: Iterable[Any], transitions: Any, path: str) -> Iterator[tuple[Any, str]]:
        """The transitions, and those that stand within a state, with the path of that."""
        yield from ((told, path) for told in transitions)
        for one in states:
            if isinstance(one, Mapping):
                yield from self._all(_inner(one), one.get("transitions", ()), f"{path}{_text(one['name'])}.")

    def _state(self, one: Any, path: str) -> dict[str, Any]:
        told = one if isinstance(one, Mapping) else {"name": one}
        name = _text(told["name"])
        self._keys(told, (*_STATE, *_BESIDE), f"state {name!r}")
        made = {ours: told[theirs] for theirs, ours in _STATE.items() if told.get(theirs)} | {"name": name}
        for key in ("enter", "exit"):
            if key in made:
                made[key] = self._action(made[key], f"{key} of state {name!r}")
        inner = [self._state(state, f"{path}{name}.") for state in _inner(told)]
        if inner:
            made |= {"parallel" if _parallel(told) else "children": inner}
            made.pop("initial", None) if _parallel(told) else made.update(initial=_text(made.get("initial")))
        elif f"{path}{name}" not in self.left and not self.left & {"*", *_around(f"{path}{name}")}:
            made["final"] = True  # what nothing leads out of
        return made

    # -- transitions --------------------------------------------------------------------------------------------------

    def _ways(self, told: Any, path: str) -> Iterator[dict[str, Any]]:
        """One transition as ours: several, where it leads back to each of its sources."""
        if isinstance(told, (list, tuple)):
            told = dict(zip(_TRANSITION, told, strict=False))
        if not isinstance(told, Mapping):
            self.refuse(f"a transition is a list or a mapping, not {cut(told)[:60]}")
        what = f"transition {cut(told.get('trigger'))[:60]}"
        self._keys(told, _TRANSITION, what)
        made = {"trigger": _text(told.get("trigger"))}
        for key in ("conditions", "unless"):
            if told.get(key):
                given = told[key] if isinstance(told[key], (list, tuple)) else [told[key]]
                made[key] = [self._code(one, key) for one in given]
        if told.get("after"):
            made["after"] = self._action(told["after"], f"after of {what}")
        given = told.get("source")
        sources = [self._path(one, path) for one in (given if isinstance(given, (list, tuple, set)) else [given])]
        self.left.update(sources)
        dest = told.get("dest")
        if dest is None or dest == "=":
            every = [path for path in self.paths.values() if "." not in path] if sources == ["*"] else sources
            kind = "internal" if dest is None else "dest"
            yield from (made | {"source": source, kind: dest is None or source} for source in every)
        else:
            yield made | {"source": sources if len(sources) > 1 else sources[0], "dest": self._path(dest, path)}

    def _path(self, state: Any, around: str) -> Any:
        name = _text(state)
        return self.paths.get(f"{around.replace('.', '_')}{name}", self.paths.get(name, name))

    # -- code and keys ------------------------------------------------------------------------------------------------

    def _action(self, told: Any, what: str) -> str:
        given = list(told) if isinstance(told, (list, tuple)) else [told]
        if len(given) != 1:
            self.refuse(f"{what}: it takes one function: make one of them")
        return self._code(given[0], what)

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


def _inner(one: Any) -> list[Any]:
    return list(one.get("children") or one.get("parallel") or ()) if isinstance(one, Mapping) else []


def _parallel(one: Any) -> bool:
    return isinstance(one, Mapping) and ("parallel" in one or isinstance(one.get("initial"), (list, tuple)))


def _around(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:many]) for many in range(1, len(parts))]


def _text(told: Any) -> Any:
    """The name of a state: a member of an Enum goes by its name, as there."""
    return told.name if isinstance(told, Enum) else told
