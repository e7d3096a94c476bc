"""A browser without a window and without a network, for what is drawn in one."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.children import launched
from tests.tools import program

SECONDS = 120


def seen(page: Path, *, script: bool = True) -> str:
    """The page as it stands once its scripts have run, as HTML. No name is looked up, and no host is asked."""
    return _run(page, "--dump-dom", *([] if script else ["--blink-settings=scriptEnabled=false"]))


def pictured(page: Path, into: Path, size: str = "1200,1600") -> None:
    """A picture of the page, as PNG."""
    _run(page, f"--screenshot={into}", f"--window-size={size}")


def _run(page: Path, *words: str) -> str:
    command = [
        program("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9", "--virtual-time-budget=30000",
        f"--user-data-dir={page.parent / 'browser'}", *words, page.as_uri(),
    ]  # fmt: skip
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "start_new_session": True}
    with launched(command, **how) as process:
        try:
            out, _ = process.communicate(timeout=SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return str(out)
