"""What a command line names: an engine, a workflow, a file that describes one, or a store."""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import Any, Literal

import click
import msgspec

from fsmworkflow.engine import Engine
from fsmworkflow.errors import DefinitionError, StoreError, nearest
from fsmworkflow.schedule import PREFIX
from fsmworkflow.settings import URL
from fsmworkflow.workflow import Workflow

FILES = (".yaml", ".yml", ".json")
"""How the name of a file ends that describes a workflow."""
Reader = Literal["pystator", "dataknobs"]
THEIRS: dict[str, Reader] = {"meta": "pystator", "arcs": "dataknobs", "networks": "dataknobs"}
"""Keys of the whole that no file of ours has, and whose files have them."""
HERE = re.compile(r"(give it in functions|name it in modules)=|@machine\.(guard|action)\('[^']*'\)")
"""What is told to a program, where the command line has --code."""

__all__ = ["Reader", "Target", "engine_of", "knowing", "line", "named", "there", "workflow_in", "workflows_of"]


class Target(msgspec.Struct, frozen=True):
    """MODULE:NAME, a file, or the URL of a store, with what else was said of it."""

    name: str
    store: str | None = None
    code: tuple[str, ...] = ()
    reader: Reader | None = None

    @property
    def is_url(self) -> bool:
        return "://" in self.name

    @property
    def is_file(self) -> bool:
        return self.name.lower().endswith(FILES)


def line(error: BaseException) -> str:
    """The text of an error in one line."""
    text = "; ".join(line.strip(" -") for line in str(error).splitlines() if line.strip())
    return text.replace(":; ", ": ")


def engine_of(target: Target) -> Engine:
    """The engine that MODULE:NAME or a URL names; that of a file, or of a Workflow, is made on its --store."""
    made = Engine(target.name) if target.is_url else named(target)
    if isinstance(made, Workflow):
        if not (store := target.store or os.environ.get(URL)):
            where = f"say where its runs are kept: --store URL, as sqlite:///runs.db, or {URL} in the environment"
            raise click.UsageError(f"{target.name} is a workflow, and no Engine: {where}")
        return Engine(store, workflows=[made])
    if target.store is not None:
        raise click.UsageError(f"{target.name} has a store of its own: --store is for files and workflows")
    return made


def there(target: Target) -> Engine:
    """An engine whose store is there: what only looks after one makes none."""
    engine = engine_of(target)
    path = getattr(engine.store, "path", None) if target.is_url or target.is_file or target.store else None
    if path is not None and not os.path.exists(path):
        raise StoreError(f"there is no file {path}: it is made by the program that runs the workflows")
    return engine


def knowing(target: Target) -> Engine:
    """An engine that knows a workflow, for what would do nothing where it knows none, without a word."""
    engine = engine_of(target)
    if not engine.workflows:
        raise click.BadParameter("this engine knows no workflow: name an Engine(workflows=[...]), as in app:engine")
    return engine


def workflows_of(target: Target | Engine | Workflow) -> dict[str, Workflow]:
    """The workflows of a target: one of a file or of MODULE:NAME, or those of an engine, without its schedules.

    What a file names is looked up in the modules of `code`. Raises DefinitionError for a file that describes none.
    """
    made = named(target) if isinstance(target, Target) else target
    if isinstance(made, Workflow):
        return {made.name: made}
    return {name: one for name, one in made.workflows.items() if not name.startswith(PREFIX)}


def named(target: Target) -> Engine | Workflow:
    """What a file describes, or MODULE:NAME is, or makes where it is a function."""
    if target.is_file:
        return _read(target)
    if target.code or target.reader:
        raise click.UsageError(f"{target.name} is no file, as order.yaml: --code and --reader are for files")
    module, colon, name = target.name.partition(":")
    if not (module and colon and name) or target.is_url:
        what = f"{target.name!r} is neither MODULE:NAME, as in app:engine, nor a file that ends with"
        raise click.BadParameter(f"{what} {' or '.join(FILES)}, nor the URL of a store")
    made: Any = _imported(module)
    try:
        for part in name.split("."):
            made = getattr(made, part)
        if not isinstance(made, (Engine, Workflow)):
            made = made() if callable(made) else made
    except Exception as error:
        raise click.BadParameter(f"{target.name} cannot be loaded: {type(error).__name__}: {line(error)}") from error
    if not isinstance(made, (Engine, Workflow)):
        raise click.BadParameter(f"{target.name} is {type(made).__name__}, and neither a Workflow nor an Engine")
    return made


def _read(target: Target) -> Workflow:
    """The workflow of a file, in our own words or in those of another engine."""
    functions = {name: found for module in target.code for name, found in _code(module).items()}
    try:
        if target.reader == "pystator":
            return _pystator(target.name, functions)
        if target.reader == "dataknobs":
            from fsmworkflow.readers.dataknobs import load

            return load(target.name, functions=functions, modules=target.code)
        return Workflow.load(target.name, functions=functions, modules=target.code)
    except OSError as error:
        raise click.BadParameter(f"{target.name} cannot be read: {error.strerror}") from error
    except DefinitionError as error:
        told = [HERE.sub("--code MODULE says where it is", one) for one in error.problems]
        theirs = next(
            (one for key, one in THEIRS.items() if any(f"unknown key {key!r}" in line for line in told)), None
        )
        if theirs is not None and target.reader is None:
            told = [f"{target.name} looks like a file of another engine: --reader {theirs} reads it"]
        raise DefinitionError(error.workflow, told) from error


def _pystator(file: str, functions: dict[str, Any]) -> Workflow:
    """A machine of PyStator: any function of the code may be a guard or an action of it."""
    from fsmworkflow.readers.pystator import Machine

    machine = Machine.load(file)
    machine.bind_guards(functions)
    machine.bind_actions(functions)
    return machine.workflow()


def _code(module: str) -> dict[str, Any]:
    """The public names of a module, and what it has registered by name."""
    from fsmworkflow.config import Functions

    own = {name: one for name, one in vars(_imported(module)).items() if not name.startswith("_")}
    registered = [one for one in own.values() if isinstance(one, Functions)]
    return own | {name: one for functions in registered for name, one in functions.items()}


def _imported(module: str) -> Any:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", module) or module.endswith(".py"):
        named = re.sub(r"\W+", ".", module.removesuffix(".py")).strip(".") or "shop.orders"
        raise click.BadParameter(f"{module} is no name of a module: give it as Python imports it, as {named}")
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise click.BadParameter(f"{module} cannot be loaded: {type(error).__name__}: {line(error)}") from error


def workflow_in(found: dict[str, Workflow], name: str | None) -> Workflow:
    """The one of that name; without a name the only one that is no other's child."""
    if name is not None and name not in found:
        raise click.BadParameter(f"there is no workflow {name!r}{nearest(name, found)}")
    below = {one.name for workflow in found.values() for one in workflow.others if one is not workflow}
    asked = [name] if name is not None else [one for one in found if one not in below]
    if len(asked) != 1:
        raise click.BadParameter(f"say which workflow: {' or '.join(found) or '(this engine knows none)'}")
    return found[asked[0]]
