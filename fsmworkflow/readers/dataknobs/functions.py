"""Functions of a machine of dataknobs-fsm: what a reference stands for, and what it is given."""

from __future__ import annotations

import ast
import asyncio
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fsmworkflow.config.code import Code
from fsmworkflow.errors import nearest
from fsmworkflow.functions.words import Invalid
from fsmworkflow.readers.dataknobs.builtin import BUILTIN
from fsmworkflow.readers.places import Node, Problems
from fsmworkflow.threads import is_async

__all__ = ["Call", "Context", "Functions", "Invalid", "Record", "Role"]

Fn = Callable[..., Any]
Role = str
"""What a function is for, which is the name of the method where it is a class: transform, validate or test."""

_REFERENCE = ("type", "name", "module", "code", "test", "params")
_KINDS = ("builtin", "custom", "inline", "registered")


class Record(dict[str, Any]):
    """The data as a function is given it: a dict, whose fields are attributes too, and `data` is the whole."""

    @property
    def data(self) -> Record:
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the data has no field {name!r}") from None


class Context(dict[str, Any]):
    """What a function is given beside the data, by key or attribute.

    `state_name`, `function_name`, the `metadata` of the state, the `resources` that it names, `variables`, which are
    none, and `ctx`: the WorkflowContext of the step, with `ctx.call` and `ctx.idempotency_key`. In a condition it has
    the data and the run; on an arc there is none.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"a context has no {name!r}{nearest(name, self)}") from None


class Call:
    """A function by its name, called with the data, or with the data and a context where it takes two."""

    def __init__(self, name: str, function: Fn, more: Mapping[str, Any]) -> None:
        self.name, self.function, self.more = name, function, more
        self.alone = _positional(function, more) == 1
        self.is_async = is_async(function)

    def __call__(self, record: Record, context: Context) -> Any:
        context = Context(context, function_name=self.name)
        given = (record,) if self.alone else (record, context)
        return self.function(*given, **self.more)


def _positional(function: Fn, more: Mapping[str, Any]) -> int:
    """How many arguments it takes by their place: those with a default count, too, and so does `*args`."""
    try:
        parts = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 2
    if any(part.kind is part.VAR_POSITIONAL for part in parts):
        return 2
    return sum(
        part.kind in (part.POSITIONAL_ONLY, part.POSITIONAL_OR_KEYWORD) and part.name not in more for part in parts
    )


class Functions:
    """Where references are looked up: among the given functions, the modules that are allowed, and the library.

    Code that stands in the configuration is compiled only where the caller has said so.
    """

    def __init__(self, given: Mapping[str, Fn], modules: Iterable[str], inline: bool, problems: Problems) -> None:
        self.code, self.inline, self.problems = Code(given, modules), inline, problems

    def find(self, one: Node, role: Role) -> Call:
        """What a reference stands for: the name of a given function, code, or a mapping. Refuses what it is not."""
        if isinstance(one.value, str):
            given = one.value in self.code.given
            return self._called(one, one.value, self.code.given[one.value], {}, role) if given else self._inline(one)
        one.keys(_REFERENCE)
        kind = one.get("type", str, default="inline" if "code" in one else "registered")
        if kind not in _KINDS:
            one["type"].refuse(f"there is no type {kind[:40]!r}{nearest(kind, _KINDS)}")
        if kind == "inline":
            return self._inline(one["code"])
        name, params = one["name"].of(str), one.get("params", dict, default={})
        return self._called(one["name"], name, self._named(one, kind, name), params, role)

    def _named(self, one: Node, kind: str, name: str) -> Any:
        if name in self.code.given:
            return self.code.given[name]
        if kind == "custom":
            module = one["module"].of(str)
            try:
                return self.code.find(f"{module}:{name}")
            except LookupError as error:
                one["module"].refuse(str(error.args[0]))
        known = BUILTIN if kind == "builtin" else self.code.given
        if name not in known:
            why = "the library here has none of this name" if kind == "builtin" else "there is no function of this name"
            told = f"{why}: {name[:100]!r}{nearest(name, known)}: give it in functions="
            self.problems.unbound(one["name"], name, told)
        return BUILTIN.get(name, lambda data: data)

    def _called(self, one: Node, name: str, found: Any, params: Mapping[str, Any], role: Role) -> Call:
        """A class is made with its parameters, and has a method of the role; so is a function of the library."""
        if isinstance(found, type) or (name in BUILTIN and found is BUILTIN[name]):
            try:
                made: Any = found(**params)
            except (TypeError, ValueError) as error:
                one.refuse(f"{name} cannot be made with these params: {error}")
            found, params = getattr(made, role, made), {}
        return self._call(one, name, found, params)

    def _call(self, one: Node, name: str, found: Any, params: Mapping[str, Any]) -> Call:
        if not callable(found) or _positional(found, params) not in (1, 2):
            one.refuse(f"{name} is no function of the data, or of the data and a context")
        return Call(name, found, params)

    def _inline(self, one: Node) -> Call:
        code = textwrap.dedent(one.of(str)).strip()
        if not self.inline:
            hint = nearest(code, self.code.given)
            one.refuse(f"it is code, which is run only with allow_inline_code=True; else name a function{hint}")
        try:
            found = _compiled(code, self.code.given)
        except Exception as error:
            one.refuse(f"it is no function in Python: {type(error).__name__}: {error}"[:300])
        return self._call(one, " ".join(code.split())[:200], found, {})


def _compiled(code: str, names: Mapping[str, Any]) -> Fn:
    """The function that code is: a lambda or a `def`, else an expression or statements about `data` and `context`.

    It can do all that Python can: the caller has said that the code is trusted.
    """
    tree = ast.parse(code)
    last = tree.body[-1] if tree.body else None
    space: dict[str, Any] = {"asyncio": asyncio, **names}
    if isinstance(last, ast.Expr) and isinstance(last.value, ast.Lambda):
        return eval(code, space)  # type: ignore[no-any-return]
    if not isinstance(last, ast.FunctionDef | ast.AsyncFunctionDef):
        tree, last = _wrapped(tree.body)
    exec(compile(tree, "<inline>", "exec"), space)
    return space[last.name]  # type: ignore[no-any-return]


def _wrapped(body: list[ast.stmt]) -> tuple[ast.Module, ast.FunctionDef | ast.AsyncFunctionDef]:
    waits = any(isinstance(inner, ast.Await) for part in body for inner in ast.walk(part))
    made: Any = ast.parse(f"{'async ' if waits else ''}def inline(data, context=None): pass").body[0]
    if len(body) == 1 and isinstance(body[0], ast.Expr):
        made.body = [ast.Return(body[0].value)]
    else:
        made.body = [*body, *ast.parse("return data").body]
    return ast.fix_missing_locations(ast.Module([made], [])), made
