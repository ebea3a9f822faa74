"""A folder of a run or a study has one writer."""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mope.errors import UserError
from mope.files import cause_of

_LOCK, _WRITER = ".lock", ".writer.json"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the one process that writes a folder, which is made if it isn't there.

    The operating system gives the lock back when a process ends, however it does: none is ever stale.

    Raises:
        UserError: another process writes it, or nothing can be written there.
    """
    lock = FileLock(folder / _LOCK, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{folder} is being written by {_writer(folder)}: wait for it, stop it, or name another folder "
            "with --output."
        ) from None
    except OSError as error:
        raise UserError(
            f"{folder} can't be written: {cause_of(error, folder)}; name another folder with --output."
        ) from None
    before = set(folder.iterdir())
    try:
        own = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M")}
        (folder / _WRITER).write_text(json.dumps(own), encoding="utf-8")
        yield
    finally:
        (folder / _WRITER).unlink(missing_ok=True)
        if set(folder.iterdir()) == before == {folder / _LOCK}:
            shutil.rmtree(folder)  # nothing came of it
        lock.release()


def _writer(folder: Path) -> str:
    try:
        one = json.loads((folder / _WRITER).read_text(encoding="utf-8"))
        return f"process {one['process']} on {one['host']}, since {one['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
