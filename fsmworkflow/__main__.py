"""`fsmworkflow` and `python -m fsmworkflow`: the command line, or a word on how to get it."""

from __future__ import annotations

import sys
from importlib.util import find_spec

LIBRARIES = ("click", "rich")


def main() -> None:
    """Run the command line, and end with its exit code."""
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        sys.exit(f"fsmworkflow: the command line needs {' and '.join(missing)}: pip install 'fsmworkflow[cli]'")
    from fsmworkflow import cli

    sys.exit(cli.main())


if __name__ == "__main__":
    main()
