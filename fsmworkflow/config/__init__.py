"""A workflow as data: YAML, JSON or a dict, read strictly, and written so that it reads back as the same workflow.

`Workflow.load`, `Workflow.from_dict` and `workflow.to_dict()` use it; docs/files.md has the format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fsmworkflow.config.code import Functions
from fsmworkflow.config.keys import Reading, schema
from fsmworkflow.config.reading import built
from fsmworkflow.config.states import translated
from fsmworkflow.config.text import Source
from fsmworkflow.config.writing import written

if TYPE_CHECKING:
    from fsmworkflow.workflow import Workflow

__all__ = ["Functions", "Reading", "Source", "built", "functions_of", "schema", "translated", "written"]


def functions_of(workflow: Workflow) -> dict[str, Any]:
    """The code that `workflow.to_dict()` names, so that `Workflow.from_dict(workflow.to_dict(), functions=...)` gives
    the same workflow again. Raises as `to_dict` does."""
    return written(workflow)[1]
