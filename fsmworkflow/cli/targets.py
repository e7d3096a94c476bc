"""What a command line names: an engine, a workflow, or a store, loaded from the working directory."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from fsmworkflow.engine import Engine
from fsmworkflow.errors import StoreError
from fsmworkflow.schedule import PREFIX
from fsmworkflow.workflow import Workflow, nearest

FILES = (".yaml", ".yml", ".json")
"""How the name of a file ends that describes a workflow."""

__all__ = ["engine_of", "knowing", "line", "there", "workflow_in", "workflows_of"]


def line(error: BaseException) -> str:
    """The text of an error in one line."""
    text = "; ".join(line.strip(" -") for line in str(error).splitlines() if line.strip())
    return text.replace(":; ", ": ")


def loaded(target: str) -> Any:
    """What MODULE:NAME names, sought from the working directory on."""
    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise click.BadParameter(f"{target!r} is neither MODULE:NAME, as in app:engine, nor the URL of a store")
    found = _imported(module)
    try:
        for part in name.split("."):
            found = getattr(found, part)
        made: Any = found if isinstance(found, (Engine, Workflow)) or not callable(found) else found()
    except Exception as error:
        raise click.BadParameter(f"{target} cannot be loaded: {type(error).__name__}: {line(error)}") from error
    return made


def engine_of(target: str) -> Engine:
    """The engine that MODULE:NAME or a URL names. NAME may be a function that makes one."""
    if "://" in target:
        return Engine(target)
    made = loaded(target)
    if not isinstance(made, Engine):
        raise click.BadParameter(f"{target} is {type(made).__name__}, and no Engine")
    return made


def there(target: str) -> Engine:
    """An engine whose store is there: what only looks after one makes none."""
    engine = engine_of(target)
    path = getattr(engine.store, "path", None) if "://" in target else None
    if path is not None and not os.path.exists(path):
        raise StoreError(f"there is no file {path}: it is made by the program that runs the workflows")
    return engine


def knowing(target: str) -> Engine:
    """An engine that knows a workflow, for what would do nothing where it knows none, without a word."""
    engine = engine_of(target)
    if not engine._workflows:
        raise click.BadParameter("this engine knows no workflow: name an Engine(workflows=[...]), as in app:engine")
    return engine


def workflows_of(target: str, code: Sequence[str] = ()) -> dict[str, Workflow]:
    """The workflows of a target: one of a file or of MODULE:NAME, or those of an engine, without its schedules.

    What a file names is looked up in the modules `code`. Raises DefinitionError for a file that describes none.
    """
    if target.lower().endswith(FILES):
        functions = {name: found for module in code for name, found in _code(module).items()}
        try:
            made = Workflow.load(target, functions=functions, modules=code)
        except OSError as error:
            raise click.BadParameter(f"{target} cannot be read: {error.strerror}") from error
        return {made.name: made}
    made = loaded(target)
    if isinstance(made, Workflow):
        return {made.name: made}
    if isinstance(made, Engine):
        return {name: one for name, one in made._workflows.items() if not name.startswith(PREFIX)}
    raise click.BadParameter(f"{target} is {type(made).__name__}, and neither a Workflow nor an Engine")


def _code(module: str) -> dict[str, Any]:
    """The public names of a module, and what it has registered by name."""
    from fsmworkflow.config import Functions

    own = {name: one for name, one in vars(_imported(module)).items() if not name.startswith("_")}
    registered = [one for one in own.values() if isinstance(one, Functions)]
    return own | {name: one for functions in registered for name, one in functions.items()}


def _imported(module: str) -> Any:
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise click.BadParameter(f"{module} cannot be loaded: {type(error).__name__}: {line(error)}") from error


def workflow_in(found: dict[str, Workflow], name: str | None) -> Workflow:
    """The one of that name; without a name the only one."""
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    if name in found:
        return found[name]
    several = f"say which workflow: --workflow {' or '.join(found) or '(this engine knows none)'}"
    raise click.BadParameter(several if name is None else f"there is no workflow {name!r}{nearest(name, found)}")
