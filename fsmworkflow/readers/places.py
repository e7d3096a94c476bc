"""What is read from another engine's file, with its place: a key that is not known is refused, and the nearest told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from fsmworkflow.conditions import cut
from fsmworkflow.config.text import Place, Source
from fsmworkflow.errors import DefinitionError, nearest
from fsmworkflow.workflow import Workflow

__all__ = ["Node", "Problems", "checked", "node"]

TOLD = 100
"""So many problems are told of one file."""

_KINDS = {dict: "a mapping", list: "a list", str: "text", bool: "true or false"}


def node(config: Mapping[str, Any] | str | Path) -> Node:
    """The whole of a file (its path, ending in .yaml, .yml or .json), or of plain values. Raises DefinitionError."""
    source = Source.of_file(config) if isinstance(config, (str, Path)) else Source.of(config)
    found = Node(source, source.value, None)
    found.of(dict)
    return found


def checked(workflow: Workflow) -> Workflow:
    """The workflow, checked. Raises DefinitionError with the first of its problems, however many there are."""
    try:
        return workflow.check()
    except DefinitionError as error:
        more = len(error.problems) - TOLD
        told = [*error.problems[:TOLD], *([f"and {more:,} more"] if more > 0 else [])]
        raise DefinitionError(error.workflow[:TOLD], told) from None


class Problems:
    """What is wrong in a file, told together; a function that nobody gave once, with where it is named first."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.problems: dict[str, str] = {}

    def note(self, name: str, problem: str) -> None:
        self.problems.setdefault(name, problem)
        if len(self.problems) >= TOLD:
            self.close()

    def unbound(self, one: Node, name: str, what: str) -> None:
        self.note(name, one.source.at(what, one.place))

    def each(self, do: Callable[..., Any], parts: Iterable[tuple[Any, ...]]) -> None:
        """Do it with each part of a file, and note what is wrong in them."""
        for part in parts:
            try:
                do(*part)
            except DefinitionError as error:
                for problem in error.problems:
                    self.note(problem, problem)

    def close(self) -> None:
        """Raise DefinitionError where there are any."""
        if self.problems:
            raise DefinitionError(self.root.source.name, list(self.problems.values()))


class Node:
    """One value of a source, and where it stands. What is wrong with it is a DefinitionError with that place."""

    __slots__ = ("place", "source", "value")

    def __init__(self, source: Source, value: Any, place: Place) -> None:
        self.source, self.value, self.place = source, value, place

    def refuse(self, what: str) -> NoReturn:
        self.source.refuse(what, self.place)

    def of(self, *kinds: type) -> Any:
        """The value, which must be of one of these kinds: dict, list, str, int, float, bool."""
        value = self.value
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            self.refuse(f"it is {' or '.join(_KINDS.get(k, 'a number') for k in kinds)}, not {cut(value)[:60]}")
        return value

    def keys(self, known: Iterable[str], *, needed: Iterable[str] = ()) -> Node:
        """Refuse a key that is not known, and a missing one that is needed."""
        for key in self.of(dict):
            if key not in known:
                where: Place = (self.place, key, self.value)
                self.source.refuse(f"there is no key {key[:100]!r}{nearest(key, known)}", where)
        for key in needed:
            if self.value.get(key) is None:
                self.refuse(f"the key {key!r} is missing")
        return self

    def __contains__(self, key: str) -> bool:
        return self.value.get(key) is not None

    def __getitem__(self, key: str) -> Node:
        return Node(self.source, self.value.get(key), (self.place, key, self.value))

    def get(self, key: str, *kinds: type, default: Any = None) -> Any:
        """The value of a key, of one of these kinds, or the default where it is missing or null."""
        return self[key].of(*kinds) if key in self else default

    def each(self, key: str) -> Iterator[Node]:
        """The values of a list, none where it is missing. A single value that is no list stands for itself."""
        if key in self:
            inner = self[key]
            if isinstance(inner.value, (list, tuple)):
                yield from (Node(self.source, one, (inner.place, n, inner.value)) for n, one in enumerate(inner.value))
            else:
                yield inner
