"""The command line as a person meets it: in a terminal of 80 columns."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios

from tests.children import launched
from tests.waiting import PATIENCE


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "fsmworkflow", *words]


def terminal(*words: str, columns: int = 80) -> tuple[int, str]:
    """What a command shows in a terminal of that width, and its exit code."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environ = {**os.environ, "TERM": "xterm-256color"}
    environ.pop("NO_COLOR", None)
    with launched(command(*words), stdin=slave, stdout=slave, stderr=slave, env=environ, close_fds=True) as process:
        os.close(slave)
        shown = b""
        while True:
            ready, _, _ = select.select([master], [], [], PATIENCE)
            try:
                piece = os.read(master, 65_536) if ready else b""
            except OSError:  # Linux's way to say that the other side is closed
                piece = b""
            if not piece:
                break
            shown += piece
        os.close(master)
        return process.wait(PATIENCE), shown.decode().replace("\r\n", "\n")


def plain(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)
