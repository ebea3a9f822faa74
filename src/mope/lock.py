"""A folder of a run or a study has one writer."""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
    lock = FileLock(folder / _LOCK, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Processes that read rows for a killed one hold on for some seconds, until they see that it is gone.
        lock.acquire(timeout=_LEAVING if _is_gone(folder) else 0, blocking=True)
    except Timeout:
        raise UserError(
            f"{folder} is being written by {_writer(folder)}: wait for it, stop it, or name another folder "
            "with --output."
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


def _is_gone(folder: Path) -> bool:
    """Whether the process that last wrote a folder was one of this machine that ended without saying so."""
    try:
        one = json.loads((folder / _WRITER).read_text(encoding="utf-8"))
        if one["host"] != socket.gethostname():
            return False
        os.kill(one["process"], 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError):
        return False
    return False


def _writer(folder: Path) -> str:
    try:
        one = json.loads((folder / _WRITER).read_text(encoding="utf-8"))
        return f"process {one['process']} on {one['host']}, since {one['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
