"""Packing: what the end of a file's name says; with .gz or .zst it is a gzip member or zstd frame a checkpoint."""

from __future__ import annotations

import gzip
import os
import stat
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from fsmworkflow.stream.words import StreamError

__all__ = ["TORN", "Unpacked", "bare", "is_packed", "named", "packed"]

T = TypeVar("T")
SUFFIXES = (".gz", ".zst")
TORN = (OSError, EOFError, zlib.error)
"""What reading a file raises that is cut off, or not packed as its name says."""


def is_packed(path: str | Path) -> bool:
    """Whether a file is packed, by its name."""
    return str(path).endswith(SUFFIXES)


def bare(path: str | Path) -> Path:
    """The name that the file has once it is unpacked."""
    return Path(path).with_suffix("") if is_packed(path) else Path(path)


def named(path: str | Path, formats: Mapping[str, T], where: str) -> T:
    """What a file is by the end of its name; "-" is JSON lines. Raises StreamError for a name that says no format."""
    kind = formats.get(".jsonl" if str(path) == "-" else bare(path).suffix.lower())
    if kind is None:
        raise StreamError(
            f"the name {str(path)!r} does not say what is in it ({', '.join(formats)}): give {where}.JsonLines(path), "
            f"{where}.Csv(path) or {where}.Text(path)"
        )
    return kind


def packed(path: str, data: bytes) -> bytes:
    """Data as one member or frame of a file of that name."""
    if path.endswith(".gz"):
        return gzip.compress(data, 6, mtime=0)
    zstd = _zstd()
    frame: bytes = zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})
    return frame


class Unpacked:
    """What is in a packed file, opened here, or `raw`. `read` and `seek` raise one of TORN."""

    def __init__(self, path: str, raw: Any = None) -> None:
        self._zstd = None if path.endswith(".gz") else _zstd()
        self._raw = open(path, "rb") if raw is None else raw  # noqa: SIM115 (until `close`)
        there = os.fstat(self._raw.fileno())
        self._size, self._empty = there.st_size, stat.S_ISREG(there.st_mode) and not there.st_size
        self._file: Any = gzip.GzipFile(fileobj=self._raw) if self._zstd is None else self._zstd.open(self._raw)

    def read(self, many: int) -> bytes:
        return b"" if self._empty else self._said(self._file.read, many)  # where zstd would say that it is cut off

    def seek(self, at: int) -> None:
        self._said(self._file.seek, at)

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def close(self) -> None:
        self._raw.close()

    @property
    def share(self) -> float:
        """Which part of the packed file was read."""
        return min(1.0, self._raw.tell() / self._size) if self._size else 1.0

    def _said(self, do: Any, number: int) -> Any:
        try:
            return do(number)
        except Exception as error:
            if self._zstd is not None and isinstance(error, self._zstd.ZstdError):
                raise OSError(str(error)) from error
            raise


def _zstd() -> Any:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise StreamError("a file whose name ends with .zst needs: pip install 'fsmworkflow[zstd]'") from error
    return zstd
