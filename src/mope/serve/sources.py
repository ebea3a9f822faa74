"""Where a server's runs are: folders that are named, folders of runs, and repositories of the hub."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mope.errors import UserError
from mope.hub import find_run, is_on_hub, repository_of
from mope.predictors import named_runs
from mope.run import CONFIG, METRICS, WEIGHTS, read_run
from mope.serve.failures import RETRY_SECONDS

State = tuple[tuple[int, int, int], ...]
"""Size, time and inode of a run's files: another one for other contents."""


class Sources:
    """Runs by name, as they are there now.

    A name is the run's that had it first, as long as that is there.

    Args:
        named: run folders or repositories by name.
        folders: whose folders are runs, as long as they are there.
        report: takes what is said: of a run whose name is taken, of a repository that can't be fetched.

    Raises:
        UserError: there is no run, two have the same name, or one that is named is none.
    """

    def __init__(
        self, named: Mapping[str, str | Path], folders: Sequence[Path], report: Callable[[str], None]
    ):
        self._named, self._folders, self._report = dict(named), list(folders), report
        for source in self._named.values():  # what isn't one is said before anything is served
            if is_on_hub(source):
                repository_of(source)
            else:
                read_run(source)
        self._owners: dict[str, str | Path] = {}
        self._said: set[str | Path] = set()
        self._fetched: dict[str, Path] = {}
        self._failed: set[str] = set()
        self._owners, hidden = self._look()
        if hidden:
            one, other = hidden[0]
            raise UserError(f"Two runs are called '{other.name}', {one} and {other}: give one another name.")
        if not self._owners:
            raise UserError(f"There is no finished run in {', '.join(map(str, folders)) or 'what is named'}.")

    def find(self) -> dict[str, str | Path]:
        """The runs that are there, by name."""
        self._owners, hidden = self._look()
        for owner, run in hidden:
            if run not in self._said:
                self._said.add(run)
                self._report(f"The run {run} isn't served: {owner} has its name.")
        return self._owners

    def _look(self) -> tuple[dict[str, str | Path], list[tuple[str | Path, Path]]]:
        """Runs by name; and who has the name of a run that can't be served for it."""
        every: dict[str, list[str | Path]] = {name: [source] for name, source in self._named.items()}
        for folder in self._folders:
            for run in sorted(folder.iterdir()) if folder.is_dir() else []:
                if is_run(run):
                    every.setdefault(run.name, []).append(run)
        found, hidden = {}, []
        for name, sources in every.items():
            before = self._owners.get(name)
            found[name] = owner = before if before in sources else sources[0]
            others = [Path(one) for one in sources if one != owner]
            hidden += [(owner, one) for one in others if one.resolve() != Path(owner).resolve()]
        return found, hidden

    def folder(self, source: str | Path) -> Path:
        """Where a run's files are, fetched from the hub if need be.

        Raises:
            UserError: it can't be fetched.
        """
        if (folder := self.fetched(source)) is None:
            try:
                folder = self._fetched[str(source)] = find_run(source)
            except Exception:
                self._failed.add(str(source))
                raise
        return folder

    def fetched(self, source: str | Path) -> Path | None:
        """Where a run's files are; None of one on the hub that hasn't been fetched."""
        return self._fetched.get(str(source)) if is_on_hub(source) else Path(source)

    def missing(self, source: str | Path) -> str:
        """Why a run on the hub isn't here."""
        if str(source) in self._failed:
            return "It can't be fetched from the hub: the server's log says why."
        return "It is being fetched from the hub."

    def fetch(self, ended: threading.Event) -> None:
        """Fetch what is on the hub, each in a thread that tries until `ended`: nobody waits for a hub."""
        for source in self._named.values():
            if is_on_hub(source):
                threading.Thread(target=self._fetch, args=(source, ended), daemon=True).start()

    def _fetch(self, source: str | Path, ended: threading.Event) -> None:
        said = ""
        while not ended.is_set():
            try:
                self.folder(source)
                return
            except Exception as error:
                if str(error) != said:
                    said = str(error)
                    self._report(f"{source} can't be fetched: {error}")
                ended.wait(RETRY_SECONDS)


def find_runs(paths: Sequence[str]) -> tuple[dict[str, str | Path], list[Path]]:
    """Runs by name, and folders of runs, of what a command line names.

    Raises:
        UserError: a path is neither, or two runs have the same name.
    """
    runs: list[str | Path] = []
    folders: list[Path] = []
    for path in paths:
        folder = Path(path)
        if is_on_hub(path) or (folder / CONFIG).exists():
            runs.append(path)
        elif folder.is_dir():
            folders.append(folder)
        else:
            raise UserError(f"There is no run in {path}: name a run's folder, or a folder of runs.")
    return named_runs(runs) if runs else {}, folders


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run that has been saved."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def state_of(run: str | Path) -> State:
    """What a run's files are like; nothing of one that is gone, and of one on the hub, which stays."""
    if is_on_hub(run):
        return ((0, 0, 0),)
    found = [_stat(Path(run) / name) for name in (CONFIG, WEIGHTS)]
    return () if None in found else tuple(one for one in found if one is not None)


def metrics_state_of(run: str | Path) -> tuple[int, int, int] | None:
    """What its metrics are like, likewise."""
    return None if is_on_hub(run) else _stat(Path(run) / METRICS)


def _stat(file: Path) -> tuple[int, int, int] | None:
    """What a file is like; None of one that isn't there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
