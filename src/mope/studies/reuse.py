"""Runs that one study has made and another asks for: taken over, instead of trained anew."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mope.config import Config
from mope.errors import UserError
from mope.files import replacing_folder
from mope.run import CHECKPOINTS, METRICS, difference, read_metrics, read_run
from mope.studies.study import Cell
from mope.versions import installed


def take_over(todo: Sequence[Cell], folder: str | Path) -> int:
    """Copy runs into the folders of cells that have none yet.

    A run is a cell's if it is trained, by this version of the library, and its config says what the cell's
    does. What else a study asks of it, such as another table's metrics, is done as for any trained run.

    Args:
        todo: the cells.
        folder: holds runs, at any depth, such as `runs/studies`.

    Returns:
        How many were copied.

    Raises:
        UserError: there is no such folder, or a run in it is damaged.
    """
    if not Path(folder).is_dir():
        raise UserError(f"There is no folder {folder}: --reuse takes one that holds studies' runs.")
    waiting = [cell for cell in todo if not cell.folder.exists()]
    runs = _trained(Path(folder)) if waiting else []
    copied = 0
    for cell in waiting:
        same = (run for run, config in runs if difference(config, cell.config) is None)
        if (run := next(same, None)) is not None:
            with replacing_folder(cell.folder) as draft:
                shutil.copytree(run, draft, ignore=_left_behind, dirs_exist_ok=True)
            copied += 1
    return copied


def _trained(folder: Path) -> list[tuple[Path, Config]]:
    """The runs that this version has trained, and their configs, in the order of their paths."""
    found = []
    for run in sorted(file.parent for file in folder.rglob(METRICS)):
        if read_metrics(run, trained=True):
            config, facts = read_run(run, finished=False)  # kept runs have no weights
            if facts.get("versions", {}).get("mope") == installed():
                found.append((run, config))
    return found


def _left_behind(_folder: Any, names: Sequence[str]) -> set[str]:
    """What belongs to the process that trains a run, and not to the run."""
    return {name for name in names if name == CHECKPOINTS or name.startswith(".")}
