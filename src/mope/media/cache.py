"""Decoded and resized pictures on disk."""

import hashlib
import sqlite3
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mope.errors import UserError
from mope.files import open_store
from mope.media.cells import UntrustedFolder, file_of
from mope.remote import RemotePath


class PixelCache:
    """Pictures of one size, uint8 (3, height, width), by what their cells hold; one SQLite file.

    Several processes may use it at once. It may be deleted at any time.

    Args:
        file: where it is kept.
    """

    def __init__(self, file: Path):
        self.file = file
        self._connection: sqlite3.Connection | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "_connection": None}

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            schema = "pictures (key BLOB PRIMARY KEY, height INT, pixels BLOB)"
            self._connection = open_store(self.file, schema)
        return self._connection

    def get(self, key: bytes) -> Tensor | None:
        """A picture, or None if it isn't kept."""
        found = self._open().execute("SELECT height, pixels FROM pictures WHERE key = ?", (key,)).fetchone()
        if found is None:
            return None
        height, pixels = found
        return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(3, height, -1)

    def put(self, key: bytes, picture: Tensor) -> None:
        """Keep a picture."""
        entry = (key, picture.shape[1], picture.contiguous().numpy().tobytes())
        with self._open() as file:
            file.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?)", entry)


def content_key(cell: Any, folder: Path) -> bytes | None:
    """What a picture's cell is known by: its bytes, or its file's path, size and time; None for neither."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return hashlib.blake2b(cell, digest_size=20).digest()
    # A path from somebody else must be looked at before anything is said about it.
    if not isinstance(cell, str) or isinstance(folder, UntrustedFolder):
        return None
    try:
        file = file_of(cell, folder)
        if isinstance(file, RemotePath):
            name = str(file.local())  # which is another one for another version
        else:
            state = file.stat()
            name = f"{file.resolve()}|{state.st_size}|{state.st_mtime_ns}"
    except (OSError, ValueError, UserError):
        return None
    return hashlib.blake2b(name.encode(), digest_size=20).digest()
