"""Code is named in a definition, never written: where the names are looked up, and how code gets a name."""

from __future__ import annotations

import builtins
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from types import MethodType
from typing import Any, TypeVar, overload

from fsmworkflow import errors
from fsmworkflow.errors import nearest

__all__ = ["NAME", "Code", "Functions", "Names"]

NAME = r"[^\W\d]\w*|[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*"
"""How code is named: `pay`, or `shop.orders:pay`."""

Fn = TypeVar("Fn", bound=Callable[..., Any])
_ERRORS: dict[str, Any] = {
    name: found
    for where in (builtins, errors)
    for name, found in vars(where).items()
    if isinstance(found, type) and issubclass(found, BaseException)
}


class Functions(dict[str, Any]):
    """Functions by the names that a definition uses: `@functions.register`, or `@functions.register("name")`."""

    @overload
    def register(self, name: Fn, /) -> Fn: ...

    @overload
    def register(self, name: str, /) -> Callable[[Fn], Fn]: ...

    def register(self, name: Any, /) -> Any:
        """Enter a function or class, by its own name or by the one that is given. Raises ValueError for a name that
        is taken by another."""

        def enter(code: Any, called: str) -> Any:
            if self.setdefault(called, code) is not code:
                raise ValueError(f"there is another function {called!r}")
            return code

        return (lambda code: enter(code, name)) if isinstance(name, str) else enter(name, name.__name__)


class Code:
    """Where the names of a definition are looked up: among the `given`, else in the `modules` that are allowed."""

    def __init__(self, given: Mapping[str, Any] | None, modules: Iterable[str]) -> None:
        self.given = dict(given or {})
        self.modules = {modules} if isinstance(modules, str) else set(modules)

    def find(self, name: str) -> Any:
        """What a name stands for. Raises LookupError, with what is near."""
        if not re.fullmatch(NAME, name):
            raise LookupError(f"{name[:100]!r} is no name of a function: give `name`, or `package.module:name`")
        if name in self.given:
            return self.given[name]
        module, colon, inner = name.partition(":")
        if not colon:
            raise LookupError(f"there is no function {name[:100]!r}{nearest(name, self.given)}: give it in functions=")
        if module not in self.modules:
            raise LookupError(f"module {module[:100]!r} is not allowed: name it in modules=")
        return self._imported(module, inner)

    def known(self, name: str) -> bool:
        """Whether a name stands for an error of Python's own, or of this package."""
        return name in _ERRORS and name not in self.given

    def error(self, name: str) -> Any:
        """A class of errors: a given one, one of Python's own, or one of this package. Raises LookupError."""
        if self.known(name):
            return _ERRORS[name]
        try:
            return self.find(name)
        except LookupError:
            if hint := nearest(name, _ERRORS):
                raise LookupError(f"there is no error {name[:100]!r}{hint}") from None
            raise

    def _imported(self, module: str, name: str) -> Any:
        """What a module itself defines, or exports: not what it happens to import."""
        try:
            found = import_module(module)
        except Exception as error:
            raise LookupError(f"module {module!r} cannot be imported: {type(error).__name__}: {error}") from error
        own = {
            key: code
            for key, code in vars(found).items()
            if key in getattr(found, "__all__", ()) or getattr(code, "__module__", None) == module
        }
        if name not in own:
            raise LookupError(f"module {module!r} defines no {name!r}{nearest(name, own)}")
        return own[name]


class Names:
    """The names under which code is written: those that a definition gave it, else its own, else where it stands."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.code: dict[str, Any] = {}
        self._given = dict(given)
        self._names = {_identity(code): name for name, code in reversed(list(given.items()))}

    def name(self, code: Any, place: str) -> str:
        """The name of this code, the same each time."""
        name = self._names.get(_identity(code))
        if name is None:
            own = str(getattr(code, "__name__", ""))
            name = own if self._free(own) else self._placed(place)
            self._names[_identity(code)] = name
        self.code[name] = code
        return name

    def error(self, kind: Any, place: str) -> str:
        """The name of a class of errors: Python's own, and those of this package, are known by theirs."""
        name = str(getattr(kind, "__name__", ""))
        return name if _ERRORS.get(name) is kind and name not in self._given else self.name(kind, place)

    def _placed(self, place: str) -> str:
        name = re.sub(r"\W+|^(?=\d)", "_", place)
        numbered = (f"{name}_{count}" if count else name for count in itertools.count())
        return next(one for one in numbered if self._free(one))

    def _free(self, name: str) -> bool:
        taken = name in self.code or name in self._given or name in _ERRORS
        return bool(re.fullmatch(NAME, name)) and not taken


def _identity(code: Any) -> Any:
    return code if isinstance(code, MethodType) else id(code)
