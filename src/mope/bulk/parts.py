"""The parts of a file that is being written: a folder beside it, which a killed process leaves whole."""

import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mope.errors import UserError
from mope.predictions import require_format

_STATE = "state.json"


@dataclass
class State:
    """What is safe.

    Attributes:
        identity: what the rows depend on, by what messages call it; each a text.
        rows: how many rows of the table are in the parts.
        parts: how many parts that is.
        bad: how many of the rows can't be used.
        first: the first of these, and why.
        joined: the file or folder that all parts became, which may be in its place by now: its number on the
            disk, and its size.
    """

    identity: dict[str, str]
    rows: int = 0
    parts: int = 0
    bad: int = 0
    first: str | None = None
    joined: list[int] | None = None


class Parts:
    """The parts of a file, and how far they go.

    A part counts once the state says so, and the state is replaced as a whole: so a part that was cut short
    is written again.

    Args:
        out: the file, or a folder, that the parts become.
        identity: see `State`.
        resume: go on with the parts that are there, if there are any.
        overwrite: replace the file if it is there, and parts unless they are gone on with.

    Attributes:
        finished: whether all had been done before, and nothing is left to do.

    Raises:
        UserError: the file is there, or parts are that aren't to be gone on with or don't fit; or nothing can
            be written there.
    """

    def __init__(self, out: Path, identity: Mapping[str, str], resume: bool, overwrite: bool):
        self.out, self.folder = out, out.parent / f".{out.name}.parts"
        self.finished = False
        before = self._load() if resume or not overwrite else None
        if before is not None and not (resume or overwrite):
            raise UserError(
                f"Rows for {out} were begun, in {self.folder}: go on with --resume, or begin anew with "
                "--overwrite."
            )
        if before is None:
            require_free(out, overwrite)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / "lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(f"Another process is writing {out}: wait for it, or name another file.") from None
        try:
            self.state = before or State(dict(identity))
            self._require(dict(identity))
            self.finished = self.state.joined is not None and self.state.joined == _mark(out)
            if not self.finished:
                require_free(out, overwrite)
                self._write(self.state)
                self._clear({_STATE, "lock", *(self._name(number) for number in range(self.state.parts))})
        except BaseException:
            self._lock.release()
            raise
        if self.finished:
            self.remove()

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, *error: Any) -> None:
        """Keep the parts that there are; a folder without any goes."""
        self._lock.release()
        if self.state.rows == 0 and self.folder.exists():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _load(self) -> State | None:
        """The state that another process left; None where it left no rows."""
        file = self.folder / _STATE
        if not file.exists():
            return None
        try:
            state = State(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise UserError(f"{file} is damaged: begin anew with --overwrite.") from None
        return state if state.rows else None

    def _require(self, identity: dict[str, str]) -> None:
        """Make sure that the rows that are there are those that are wanted."""
        for name in {**self.state.identity, **identity}:
            if self.state.identity.get(name) != identity.get(name):
                raise UserError(
                    f"The rows in {self.folder} were predicted with another {name}: go on with the same "
                    "command as then, or begin anew with --overwrite and without --resume."
                )

    def _clear(self, kept: Collection[str]) -> None:
        """Take away all but what is named: parts that were cut short, and drafts."""
        for entry in self.folder.iterdir():
            if entry.name in kept:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _name(self, number: int) -> str:
        return f"part-{number:08d}"

    def files(self) -> list[Path]:
        """The parts that count, in order."""
        return [self.folder / self._name(number) for number in range(self.state.parts)]

    def next(self) -> Path:
        """Where the next part is to be written."""
        return self.folder / self._name(self.state.parts)

    def add(self, rows: int, bad: int, first: str | None) -> None:
        """Count the next part, which was written to the disk."""
        state = self.state
        state.rows, state.parts, state.bad = state.rows + rows, state.parts + 1, state.bad + bad
        state.first = state.first or first
        self._write(state)

    def draft(self) -> Path:
        """Where the parts are to be joined."""
        return self.folder / f"joined{self.out.suffix}"

    def finish(self) -> None:
        """Put what they were joined to in its place, and take the parts away."""
        draft = self.draft()
        self.state.joined = _mark(draft)
        self._write(self.state)
        if self.out.is_dir():  # which require_free allowed
            shutil.rmtree(self.out)
        draft.replace(self.out)
        self.remove()

    def remove(self) -> None:
        """Take the parts away; what says that all is done goes last, should this be cut short."""
        self._clear({_STATE})
        self._lock.release()
        shutil.rmtree(self.folder)

    def _write(self, state: State) -> None:
        draft = self.folder / f"{_STATE}.draft"
        with draft.open("w", encoding="utf-8") as stream:
            json.dump(asdict(state), stream, indent=2)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(self.folder / _STATE)


def require_free(out: Path, overwrite: bool) -> None:
    """Make sure that a file, or a dataset's folder, may be written there.

    Raises:
        UserError: its name ends in something else, it is there and isn't to be replaced, or it is a folder of
            something else.
    """
    require_format(out)
    if not out.exists() or (not out.suffix and out.is_dir() and not any(out.iterdir())):
        return
    what = "file" if out.suffix else "folder"
    if not overwrite:
        raise UserError(
            f"Can't write {out}: it is there already; name a new {what}, or replace it by --overwrite."
        )
    if out.is_dir() and (out.suffix or not (out / "dataset_info.json").is_file()):
        raise UserError(f"Can't write {out}: it is a folder of something else; name a new {what}.")
    if not out.is_dir() and not out.suffix:
        raise UserError(f"Can't write {out}: a file is there; name a new folder.")


def _mark(path: Path) -> list[int] | None:
    """What tells a file or folder from another that has its name."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_ino, 0 if path.is_dir() else found.st_size]
