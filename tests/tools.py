"""Programs of the system that some tests use. `make system-deps` installs them."""

from __future__ import annotations

import os
import shutil

import pytest


def program(name: str) -> str:
    """The path of a program. Without it the test is skipped, and says so; where CI is set, it fails."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        told = f"{name} is not installed: run `make system-deps`"
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)
    return found
