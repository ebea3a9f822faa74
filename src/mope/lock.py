"""A folder of a run or a study has one writer."""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mope.errors import UserError
from mope.files import cause_of

_LOCK, _WRITER = ".lock", ".writer.json"
_LEAVING = 15.0  # seconds


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the one process that writes a folder, which is made if it isn't there.

    The operating system gives the lock back when a process ends, however it does.

    Raises:
        UserError: another process writes it, or nothing can be written there.
    """
    lock = FileLock(folder / _LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Processes that read rows for a killed one hold on for some seconds, until they see that it is gone.
        lock.acquire(timeout=_LEAVING if _is_gone(_last_writer(folder)) else 0)
    except Timeout:
        one = _last_writer(folder)
        who = f"process {one['process']} on {one['host']}, since {one['since']}" if one else "another process"
        raise UserError(
            f"{folder} is being written by {who}: wait for it, stop it, or name another folder with --output."
        ) from None
    except OSError as error:
        raise UserError(
            f"{folder} can't be written: {cause_of(error, folder) or error}; name another folder with "
            "--output."
        ) from None
    before = set(folder.iterdir())
    try:
        own = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M")}
        with suppress(OSError):  # it only tells others who we are
            (folder / _WRITER).write_text(json.dumps(own), encoding="utf-8")
        yield
    finally:
        (folder / _WRITER).unlink(missing_ok=True)
        if set(folder.iterdir()) == before == {folder / _LOCK}:
            shutil.rmtree(folder)  # nothing came of it
        lock.release()


def _last_writer(folder: Path) -> dict[str, Any]:
    """Who said last that it writes a folder; empty if nobody did, or it ended in order."""
    try:
        one = json.loads((folder / _WRITER).read_text(encoding="utf-8"))
        return one if {"host", "process", "since"} <= one.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


def _is_gone(writer: dict[str, Any]) -> bool:
    """Whether it was a process of this machine that is no more."""
    if writer.get("host") != socket.gethostname():
        return False
    try:
        os.kill(writer["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
