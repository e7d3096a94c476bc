"""What the source of a step or of an `update=` says: what it returns, emits, and has to do with the data.

Nothing is called. Where there is no source, or it does what cannot be followed, it may do anything.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

__all__ = ["asked", "emitted", "returned", "touched"]

Function = ast.FunctionDef | ast.AsyncFunctionDef
_OWN = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


@functools.lru_cache(maxsize=4096)
def _parsed(code: Any) -> Function | None:
    try:
        found = ast.parse(textwrap.dedent(inspect.getsource(code))).body[0]
    except (OSError, TypeError, SyntaxError, ValueError, IndexError, RecursionError):
        return None
    return found if isinstance(found, Function) and found.name == code.co_name else None


def _tree(function: Any) -> Function | None:
    """The definition of a plain function that is decorated by nothing that stands between."""
    return _parsed(function.__code__) if inspect.isfunction(function) and not hasattr(function, "__wrapped__") else None


def _first(tree: Function) -> str | None:
    names = [*tree.args.posonlyargs, *tree.args.args]
    return names[0].arg if names else None


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function, without those of functions in it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, _OWN):
            yield child
            yield from _own(child)


def returned(function: Any) -> list[str]:
    """The triggers that a step surely may return: texts that stand in its `return`s."""
    tree = _tree(function)
    if tree is None or any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in _own(tree)):
        return []
    values = [node.value for node in _own(tree) if isinstance(node, ast.Return)]
    return list(dict.fromkeys(text for value in values for text in _texts(value)))


def _texts(value: ast.expr | None) -> Iterator[str]:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.IfExp):
        yield from _texts(value.body)
        yield from _texts(value.orelse)
    elif isinstance(value, ast.Tuple) and len(value.elts) == 2:  # (context, trigger)
        yield from _texts(value.elts[1])


def emitted(function: Any) -> Iterator[tuple[Any, str]]:
    """What a step emits: the receiver, where its name is one of the module's, and the event, where it is a text."""
    tree = _tree(function)
    for node in () if tree is None else ast.walk(tree):
        if (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "emit"
            and len(node.args) > 2 and isinstance(node.args[0], ast.Name) and tree is not None
            and isinstance(node.func.value, ast.Name) and node.func.value.id == _first(tree)
        ):  # fmt: skip
            for event in _texts(node.args[2]):
                yield function.__globals__.get(node.args[0].id), event


def asked(function: Any) -> set[str]:
    """The attributes of its context for which a step asks, as far as they stand in it."""
    tree = _tree(function)
    if tree is None or (first := _first(tree)) is None:
        return set()
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name))
    return {node.attr for node in found if node.value.id == first}  # type: ignore[attr-defined]


def touched(function: Any, *, context: bool) -> set[str] | None:
    """The top-level fields of the data that a function names, and so may write; None where it may be any.

    With `context` its first argument is a context, whose `.data` is meant, else that is the data.
    """
    tree = _tree(function)
    if tree is None or (first := _first(tree)) is None:
        return None
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == first:
            place = parents[node] if context else node
            if context and not (isinstance(place, ast.Attribute) and place.attr == "data"):
                if not isinstance(place, (ast.Attribute, ast.Return)):
                    return None  # it is handed on
                continue
            if (name := _field(parents[place])) is None:
                return None
            names.add(name)
    return names


def _field(node: ast.AST) -> str | None:
    """The field that is named beside the data, `.name` or `["name"]`; what a method does is not known."""
    if isinstance(node, ast.Attribute):
        return None if node.attr in _METHODS else node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
        return node.slice.value
    return None


_METHODS = frozenset(dir(dict)) | {"model_copy", "copy"}
