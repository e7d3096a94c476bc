"""Packing: files whose names end with .gz or .zst, a gzip member or a zstd frame for each checkpoint."""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from pathlib import Path
from typing import Any

from fsmworkflow.stream.words import StreamError

__all__ = ["TORN", "bare", "is_packed", "packed", "unpacked"]

SUFFIXES = (".gz", ".zst")
TORN = (OSError, EOFError, zlib.error)
"""What reading a file raises that is cut off, or not packed as its name says."""


def is_packed(path: str | Path) -> bool:
    """Whether a file is packed, by its name."""
    return str(path).endswith(SUFFIXES)


def bare(path: str | Path) -> Path:
    """The name that the file has once it is unpacked."""
    return Path(path).with_suffix("") if is_packed(path) else Path(path)


def unpacked(path: str) -> Any:
    """A packed file, open for reading; its methods raise one of TORN. Raises StreamError without the extra."""
    return gzip.open(path) if path.endswith(".gz") else _Frames(path)


def packed(path: str, data: bytes) -> bytes:
    """Data as one member or frame of a file of that name."""
    if path.endswith(".gz"):
        return gzip.compress(data, 6, mtime=0)
    zstd = _zstd()
    frame: bytes = zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})
    return frame


class _Frames:
    """A file of zstd frames."""

    def __init__(self, path: str) -> None:
        self._zstd = _zstd()
        self._empty = os.stat(path).st_size == 0  # which gzip takes for a file of nothing, and zstd does not
        self._file = self._zstd.open(path)
        self.close = self._file.close

    def read(self, many: int) -> bytes:
        return b"" if self._empty else self._said(self._file.read, many)

    def seek(self, at: int) -> None:
        self._said(self._file.seek, at)

    def _said(self, do: Any, number: int) -> Any:
        try:
            return do(number)
        except self._zstd.ZstdError as error:
            raise OSError(str(error)) from error


def _zstd() -> Any:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise StreamError("a file whose name ends with .zst needs: pip install 'fsmworkflow[zstd]'") from error
    return zstd
