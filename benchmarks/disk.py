"""A disk of a given speed whose flushes and writes are counted: slowdisk.c, compiled when it is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("slowdisk.c")


def compiled(directory: Path) -> Path | None:
    """The shared library, readable by the user that a PostgreSQL server runs as. None without gcc (or `CC`)."""
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        return None
    library = directory / "slowdisk.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    library.chmod(0o755)
    return library


class Disk:
    """`least` is the time in microseconds that a flush takes at least; with 0 or without a library it is as it is."""

    def __init__(self, library: Path | None, least: int) -> None:
        self.shim, self.least = library, least

    def environment(self, counts: Path) -> dict[str, str]:
        """What a process must be given to live on this disk and to count in the file `counts`, made here, at 0."""
        if self.shim is None:
            return {}
        counts.write_bytes(bytes(24))
        counts.chmod(0o666)
        return {"LD_PRELOAD": str(self.shim), "FSM_SYNC_US": str(self.least), "FSM_SYNC_COUNTS": str(counts)}
