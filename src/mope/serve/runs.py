"""The runs of a server: loaded when they are asked for, replaced and taken out while it serves."""

import gc
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mope.device import pick_device
from mope.errors import UserError
from mope.graphs import Compile, require_compile
from mope.hub import find_run, is_on_hub
from mope.predictor import Predictor
from mope.predictors import named_runs
from mope.run import CONFIG, METRICS, WEIGHTS, read_metrics, read_run
from mope.serve.failures import RETRY_SECONDS, Failures
from mope.serve.limits import Refusal
from mope.serve.served import Served, describe
from mope.serve.settings import ServeSettings

Report = Callable[[str], None]

_SECONDS = 1.0
"""Between two looks at what is served."""

State = tuple[tuple[int, int, int], ...]
"""Size, time and inode of a run's files: another one for other contents."""


class _Held(NamedTuple):
    state: State
    served: Served


class OneRun:
    """One run, which stays as it is.

    Args:
        served: the run.
    """

    def __init__(self, served: Served):
        self.served = served
        self._described = {**_described(served.name, served.predictor.run), "in_memory": True}

    def held(self, name: str) -> Served | None:
        """The run, if this is its name."""
        return self.served if name == self.served.name else None

    def get(self, name: str) -> Served:
        """Nothing: there is no other run.

        Raises:
            Refusal: 404.
        """
        raise _unknown(name)

    def describe(self, name: str) -> dict[str, Any]:
        """What `/v1/runs` says of the run."""
        if self.held(name) is None:
            raise _unknown(name)
        return self._described

    def describe_all(self) -> list[dict[str, Any]]:
        """What `/v1/runs` says."""
        return [self._described]

    def open(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class Runs:
    """Runs that come and go, by name.

    A run is loaded when it is asked for first. Where its files change it is loaded anew, and takes the place
    of the old one at once; who began with the old one gets its answer from that. What can't be loaded is
    said, and the old one stays; after a while it is tried again. Of more than `most` in memory the least
    recently used is dropped.

    Args:
        sources: run folders or repositories by name.
        folders: whose folders are runs, as long as they are there.
        settings: the limits.
        device, compile: see `Predictor`.
        most: runs in memory.
        report: takes what is said.

    Raises:
        UserError: there is no run.
    """

    def __init__(
        self,
        sources: Mapping[str, str | Path],
        folders: Sequence[Path],
        settings: ServeSettings,
        *,
        device: str | None = None,
        compile: Compile = "none",
        most: int = 1000,
        report: Report = print,
    ):
        if most < 1:
            raise UserError(f"--max-runs is {most}: at least one is held.")
        self._sources, self._folders = dict(sources), list(folders)
        self._settings, self._device, self._most, self._report = settings, device, most, report
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._failed, self._unread = Failures(report), Failures(report)
        self._described: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._dropped = False
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.device = pick_device(device)
        self._compile: Compile = compile
        require_compile(compile, self.device)
        if not self._find():
            raise UserError(f"There is no finished run in {', '.join(map(str, folders)) or 'what is named'}.")

    def _find(self) -> dict[str, str | Path]:
        """The runs that are there, by name."""
        found = dict(self._sources)
        for folder in self._folders:
            for run in sorted(folder.iterdir()) if folder.is_dir() else []:
                if is_run(run):
                    found.setdefault(run.name, run)
        return found

    def held(self, name: str) -> Served | None:
        """A run that is in memory."""
        with self._lock:
            if (held := self._held.get(name)) is None:
                return None
            self._held.move_to_end(name)
            return held.served

    def get(self, name: str) -> Served:
        """A run, loaded if need be.

        Raises:
            Refusal: 404, there is no such run; 503, it can't be loaded.
        """
        with self._loading:  # one at a time: they would take each other's memory and processor
            if (served := self.held(name)) is not None:
                return served
            if (source := self._find().get(name)) is None:
                raise _unknown(name)
            state = state_of(source)
            if (left := self._failed.left(name, state)) <= 0:
                try:
                    return self._load(name, source, state)
                except Exception as error:
                    self._failed.add(name, state, f"The run '{name}' can't be loaded: {_cause(error)}")
                    left = RETRY_SECONDS
        text = f"The run '{_cut(name)}' can't be loaded: the server's log says why."
        raise Refusal(503, "run", text, {"Retry-After": str(math.ceil(left))})

    def _load(self, name: str, source: str | Path, state: State) -> Served:
        if not is_on_hub(source):
            read_run(source)  # one that can't be read takes no other's place
        evicted = False
        with self._lock:
            while len(self._held) >= self._most and name not in self._held:
                self._held.popitem(last=False)
                evicted = True
        if evicted:  # before another takes memory
            self._collect()
        predictor = Predictor(
            source, device=self._device, batch_size=self._settings.batch, compile=self._compile
        )
        served = Served(name, predictor, self._settings)  # what changed meanwhile differs at the next look
        with self._lock:
            replaced = self._held.pop(name, None) is not None
            self._held[name] = _Held(state, served)
        if replaced:
            self._collect()
        self._failed.forget(name)
        return served

    def _collect(self) -> None:
        """Give back the memory of runs that were dropped: some encoders' layers refer to themselves.

        Where a request still goes on with one, the next look gives it back.
        """
        self._dropped = True
        gc.collect()

    def look(self) -> None:
        """Load anew what has changed, and drop what is gone."""
        if self._dropped:
            self._dropped = False
            gc.collect()
        with self._lock:
            states = {name: held.state for name, held in self._held.items()}
        there = self._find()
        for name, state in states.items():
            if name not in there or not (found := state_of(there[name])):
                with self._lock:
                    self._held.pop(name, None)
                self._report(f"The run '{name}' is gone.")
                self._dropped = True
            elif found != state and self._failed.left(name, found) <= 0:
                self._replace(name, there[name], found)
        for failures in (self._failed, self._unread):
            failures.keep(there)
        for name in set(self._described) - set(there):
            self._described.pop(name, None)

    def _replace(self, name: str, source: str | Path, state: State) -> None:
        try:
            with self._loading:
                if self.held(name) is None:
                    return  # dropped meanwhile
                self._load(name, source, state)
            self._report(f"The run '{name}' was replaced.")
        except Exception as error:  # whatever is wrong with it, the others are served
            line = f"The run '{name}' has changed and can't be loaded, so the old one stays: {_cause(error)}"
            self._failed.add(name, state, line)

    def describe(self, name: str) -> dict[str, Any]:
        """What `/v1/runs` says of a run.

        Raises:
            Refusal: 404, there is none of this name.
        """
        if (source := self._find().get(name)) is None:
            raise _unknown(name)
        return self._describe(name, source)

    def describe_all(self) -> list[dict[str, Any]]:
        """What `/v1/runs` says of all runs, by name."""
        return [self._describe(name, source) for name, source in sorted(self._find().items())]

    def _describe(self, name: str, source: str | Path) -> dict[str, Any]:
        state = (state_of(source), None if is_on_hub(source) else _stat(Path(source) / METRICS))
        with self._lock:
            is_held = name in self._held
        known = self._described.get(name)
        if known is None or known[0] != state:
            if (found := self._read(name, source, state)) is None:
                why = "It can't be read: the server's log says why."
                return {"name": name, "error": why, "in_memory": is_held}
            self._described[name] = known = (state, found)
        return {**known[1], "in_memory": is_held}

    def _read(self, name: str, source: str | Path, state: Any) -> dict[str, Any] | None:
        """What its files say of a run; None where they can't be read, or couldn't a moment ago."""
        if self._unread.left(name, state) > 0:
            return None
        try:
            found = _described(name, find_run(source))
        except Exception as error:
            self._unread.add(name, state, f"The run '{name}' can't be read: {_cause(error)}")
            return None
        self._unread.forget(name)
        return found

    def open(self) -> None:
        """Begin to look for changes."""
        if self._thread is None:
            self._ended.clear()
            self._thread = threading.Thread(target=self._watch, name="mope-runs", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread = None

    def _watch(self) -> None:
        while not self._ended.wait(_SECONDS):
            try:
                self.look()
            except Exception as error:  # a watch that ends would go unnoticed
                self._report(f"The runs can't be looked at: {_cause(error)}")


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


def _stat(file: Path) -> tuple[int, int, int] | None:
    """What a file is like; None of one that isn't there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def _described(name: str, run: Path) -> dict[str, Any]:
    config, facts = read_run(run)
    metrics = read_metrics(run)
    shown = {split: metrics[split] for split in ("validation", "test") if split in metrics}
    return {"name": name, **describe(config, facts["labels"]), "metrics": shown}


def _unknown(name: str) -> Refusal:
    return Refusal(404, "run", f"There is no run '{_cut(name)}': /v1/runs lists them.")


def _cause(error: Exception) -> str:
    """What is wrong, for the log."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _cut(name: str) -> str:
    return name if len(name) <= 50 else f"{name[:50]}..."
