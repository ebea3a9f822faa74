"""Checkpoints: whole or not there at all, and known to be what was written."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mope.data.splits import Report
from mope.errors import UserError
from mope.files import cause_of, digest

STATE = "trainer_state.json"
_DIGESTS = "files.json"
_DRAFT = ".draft"
_OLD = ".old"
_KEPT = 2  # the newest ones, and the best


def begin_draft(folder: Path) -> Path:
    """An empty folder to write a checkpoint in, of the folder of checkpoints."""
    draft = folder / _DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    return draft


def finish_draft(folder: Path, name: str, best: str | None) -> None:
    """Let what was written become a checkpoint, in the place of one of the same step, and remove older ones.

    Args:
        folder: of checkpoints.
        name: the checkpoint's.
        best: path of the one that is kept whatever its age.
    """
    draft = folder / _DRAFT / name
    digests = {file.name: digest(file) for file in sorted(draft.iterdir())}
    (draft / _DIGESTS).write_text(json.dumps(digests, indent=2), encoding="utf-8")
    for file in draft.iterdir():
        with file.open("rb") as content:
            os.fsync(content.fileno())
    if (folder / name).exists():
        # It is kept aside, whole, until the new one stands in its place: see `_restore`.
        shutil.rmtree(folder / _OLD, ignore_errors=True)
        (folder / name).rename(folder / _OLD)
    draft.rename(folder / name)
    draft.parent.rmdir()
    shutil.rmtree(folder / _OLD, ignore_errors=True)
    keep = {one.name for one in _newest_first(folder)[:_KEPT]} | {Path(best or "").name}
    for other in _newest_first(folder):
        if other.name not in keep:
            _remove(other)


def last_checkpoint(folder: Path, report: Report | None = None) -> str | None:
    """The newest whole checkpoint of a folder of checkpoints; None where there is none.

    Args:
        folder: which; what a killed run left half written is removed from it, and what it had put aside for
            a new one that didn't come is put back.
        report: takes a line about each one that is damaged, and so left out; None to look at nothing but
            whether it was finished.
    """
    _restore(folder)
    for name in (_DRAFT, _OLD):
        shutil.rmtree(folder / name, ignore_errors=True)
    for checkpoint in _newest_first(folder):
        damaged = _damaged_file(checkpoint, thorough=report is not None)
        if damaged is None:
            return str(checkpoint)
        if report is not None:
            report(f"{checkpoint} is damaged ({damaged} isn't what was written): it is passed over.")
    return None


@contextmanager
def explained(folder: Path, what: str) -> Iterator[None]:
    """Say in a sentence why something can't be written.

    Args:
        folder: into which.
        what: such as "The run".

    Raises:
        UserError: it can't.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = cause_of(error, folder)
        if cause is None:
            raise
        raise UserError(
            f"{what} can't be written into {folder}: {cause}. The last checkpoint is whole: mend that, "
            "then go on with --resume."
        ) from error


def _newest_first(folder: Path) -> list[Path]:
    steps = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    found = {int(step): path for path, step in steps.items() if step.isdecimal()}
    return [found[step] for step in sorted(found, reverse=True)]


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint so that no part of it is ever taken for a whole one."""
    if checkpoint.exists():
        old = checkpoint.with_name(_OLD)
        shutil.rmtree(old, ignore_errors=True)
        checkpoint.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def _restore(folder: Path) -> None:
    """Put a checkpoint back that was to be replaced when the run was killed.

    One that was being removed then is half there, perhaps without the digests that would say so: it isn't.
    """
    old = folder / _OLD
    # Several processes may be here at once: one of them finds it whole and moves it.
    with suppress(OSError):
        if (old / _DIGESTS).is_file() and _damaged_file(old, thorough=True) is None:
            step = json.loads((old / STATE).read_text(encoding="utf-8"))["global_step"]
            if not (folder / f"checkpoint-{step}").exists():
                old.rename(folder / f"checkpoint-{step}")


def _damaged_file(checkpoint: Path, thorough: bool) -> str | None:
    """Name of a file that isn't what was written; None where all are."""
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return STATE
    if not thorough or not (checkpoint / _DIGESTS).is_file():
        return None  # without digests: of an earlier version
    try:
        digests: dict[str, Any] = json.loads((checkpoint / _DIGESTS).read_text(encoding="utf-8"))
    except ValueError:
        return _DIGESTS
    for name, expected in digests.items():
        if not (checkpoint / name).is_file() or digest(checkpoint / name) != expected:
            return name
    return None
