"""The runs of a server: loaded when they are asked for, replaced and taken out while it serves."""

import gc
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mope.device import pick_device
from mope.encoders.sources import resolve
from mope.errors import UserError
from mope.graphs import Compile, require_compile
from mope.hub import forget_tables, is_on_hub
from mope.model import needed_inputs
from mope.predictor import Predictor
from mope.run import DIGEST, WEIGHTS, read_metrics, read_run
from mope.serve.failures import RETRY_SECONDS, Failures
from mope.serve.limits import Refusal
from mope.serve.media import require_packages
from mope.serve.remote import RemoteEncoders, fetch, remote_inputs
from mope.serve.served import Served, describe
from mope.serve.settings import ServeSettings
from mope.serve.sources import Sources, State, metrics_state_of, state_of
from mope.weights import read_weights

Report = Callable[[str], None]

_SECONDS = 1.0
"""Between two looks at what is served."""


class _Held(NamedTuple):
    source: str | Path
    state: State
    served: Served


class OneRun:
    """One run, which stays as it is.

    Args:
        served: the run.
    """

    def __init__(self, served: Served):
        self.served = served
        found = _described(served.name, served.predictor.run)
        self._described = {**found, "in_memory": True, "group": 0}

    def held(self, name: str) -> Served | None:
        """The run, if this is its name."""
        return self.served if name == self.served.name else None

    def require(self, name: str) -> None:
        """Make sure that this is the run's name.

        Raises:
            Refusal: 404, it isn't.
        """
        if name != self.served.name:
            raise _unknown(name)

    def get(self, name: str) -> Served:
        """The run, see `require`."""
        self.require(name)
        return self.served

    def describe(self, name: str) -> dict[str, Any]:
        """What `/v1/runs` says of the run, see `require`."""
        self.require(name)
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
        UserError: there is no run, or two have the same name.
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
        self._sources = Sources(sources, folders, report)
        self._settings, self._device, self._most, self._report = settings, device, most, report
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._failed, self._unread = Failures(report), Failures(report)
        self._described: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._dropped, self._replacing = False, set[str]()
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._ended = threading.Event()
        self._remote = RemoteEncoders(report, self._ended)
        self._thread: threading.Thread | None = None
        self.device = pick_device(device)
        self._compile: Compile = compile
        require_compile(compile, self.device)

    def held(self, name: str) -> Served | None:
        """A run that is in memory."""
        with self._lock:
            if (held := self._held.get(name)) is None:
                return None
            self._held.move_to_end(name)
            return held.served

    def require(self, name: str) -> None:
        """Make sure that a run can be asked for.

        Raises:
            Refusal: 404, there is none of this name; 503, it or its encoders are still to come from the hub.
        """
        source = self._source(name)
        if self._thread is not None and self._sources.fetched(source) is None:  # a thread fetches it
            text = f"The run '{_cut(name)}': {self._sources.missing(source)}"
            raise Refusal(503, "run", text, {"Retry-After": "5"})
        if self._thread is not None and self._failed.left(name, state := state_of(source)) <= 0:
            try:
                coming = self._remote.coming(name, self._sources.folder(source), state)
            except UserError:  # `get` says what is wrong with it
                return
            if coming:
                text = f"The run '{_cut(name)}': its encoders are still to come from the hub."
                raise Refusal(503, "run", text, {"Retry-After": "5"})

    def _source(self, name: str) -> str | Path:
        """Where a run is.

        Raises:
            Refusal: 404, there is none of this name.
        """
        if (source := self._sources.find().get(name)) is None:
            raise _unknown(name)
        return source

    def get(self, name: str) -> Served:
        """A run, loaded if need be.

        Raises:
            Refusal: 404, there is no such run; 503, it can't be loaded.
        """
        source = self._source(name)
        if (served := self.held(name)) is not None:
            return served
        state = state_of(source)
        if (left := self._failed.left(name, state)) <= 0:
            try:
                folder = self._sources.folder(source)
                with self._loading:  # one at a time: they would take each other's memory and processor
                    if (served := self.held(name)) is not None:
                        return served
                    if (left := self._failed.left(name, state)) <= 0:
                        return self._load(name, source, folder, state)
            except Exception as error:
                self._failed.add(name, state, f"The run '{name}' can't be loaded: {_cause(error)}")
                left = RETRY_SECONDS
        text = f"The run '{_cut(name)}' can't be loaded: the server's log says why."
        raise Refusal(503, "run", text, {"Retry-After": str(math.ceil(left))})

    def _load(self, name: str, source: str | Path, folder: Path, state: State) -> Served:
        config, facts = read_run(folder)  # what can't be loaded takes no other's place
        read_weights(folder / WEIGHTS, facts.get(DIGEST))
        inputs = needed_inputs(config)
        require_packages({entry.kind for entry in inputs.values()})
        for entry in inputs.values():
            if entry.encoder.weights is not None:
                resolve(entry.encoder.weights)
        evicted = False
        with self._lock:
            while len(self._held) >= self._most and name not in self._held:
                self._held.popitem(last=False)
                evicted = True
        if evicted:  # before another takes memory
            self._collect()
        predictor = Predictor(
            folder, device=self._device, batch_size=self._settings.batch, compile=self._compile
        )
        if is_on_hub(source):
            forget_tables(predictor.settings)
        served = Served(name, predictor, self._settings)  # what changed meanwhile differs at the next look
        with self._lock:
            replaced = self._held.pop(name, None) is not None
            self._held[name] = _Held(source, state, served)
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

    def look(self, wait: bool = True) -> None:
        """Load anew what has changed, and drop what is gone.

        Args:
            wait: for what is loaded anew.
        """
        if self._dropped:
            self._dropped = False
            gc.collect()
        with self._lock:
            every = [(name, held.source, held.state) for name, held in self._held.items()]
        there = self._sources.find()
        for name, source, state in every:
            if there.get(name) != source or not (found := state_of(source)):
                with self._lock:
                    held = self._held.get(name)
                    if held is None or (held.source, held.state) != (source, state):
                        continue  # loaded anew meanwhile, from where it is now
                    del self._held[name]
                self._report(f"The run '{name}' is gone.")
                self._dropped = True
            elif found != state and self._failed.left(name, found) <= 0 and name not in self._replacing:
                self._replacing.add(name)
                work = threading.Thread(
                    target=self._replace, args=(name, source, found), name="mope-replace", daemon=True
                )
                work.start()
                if wait:
                    work.join()
        for failures in (self._failed, self._unread):
            failures.keep(there)
        for name in set(self._described) - set(there):
            self._described.pop(name, None)

    def _replace(self, name: str, source: str | Path, state: State) -> None:
        try:
            fetch(remote_inputs(Path(source)))
            with self._loading:
                if self.held(name) is None:
                    return  # dropped meanwhile
                self._load(name, source, Path(source), state)
            self._report(f"The run '{name}' was replaced.")
        except Exception as error:  # whatever is wrong with it, the others are served
            line = f"The run '{name}' has changed and can't be loaded, so the old one stays: {_cause(error)}"
            self._failed.add(name, state, line)
        finally:
            self._replacing.discard(name)

    def describe(self, name: str) -> dict[str, Any]:
        """What `/v1/runs` says of a run.

        Raises:
            Refusal: 404, there is none of this name.
        """
        return self._describe(name, self._source(name), self._groups())

    def describe_all(self) -> list[dict[str, Any]]:
        """What `/v1/runs` says of all runs, by name."""
        groups = self._groups()
        every = sorted(self._sources.find().items())
        return [self._describe(name, source, groups) for name, source in every]

    def _groups(self) -> dict[str, int]:
        """Of the runs in memory, a number that those have in common whose rows may go together."""
        with self._lock:
            found = {name: self._held[name].served.lane.group for name in sorted(self._held)}
        numbers: dict[Any, int] = {}
        return {name: numbers.setdefault(group, len(numbers)) for name, group in found.items()}

    def _describe(self, name: str, source: str | Path, groups: Mapping[str, int]) -> dict[str, Any]:
        folder = self._sources.fetched(source)
        state = (folder, state_of(source), metrics_state_of(source))
        is_held = name in groups
        known = self._described.get(name)
        if known is None or known[0] != state:
            if folder is None:
                return {"name": name, "error": self._sources.missing(source), "in_memory": False}
            if (found := self._read(name, folder, state)) is None:
                why = "It can't be read: the server's log says why."
                return {"name": name, "error": why, "in_memory": is_held}
            self._described[name] = known = (state, found)
        return {**known[1], "in_memory": is_held, "group": groups.get(name)}

    def _read(self, name: str, folder: Path, state: Any) -> dict[str, Any] | None:
        """What its files say of a run; None where they can't be read, or couldn't a moment ago."""
        if self._unread.left(name, state) > 0:
            return None
        try:
            found = _described(name, folder)
        except Exception as error:
            self._unread.add(name, state, f"The run '{name}' can't be read: {_cause(error)}")
            return None
        self._unread.forget(name)
        return found

    def open(self) -> None:
        """Begin to look for changes."""
        if self._thread is None:
            self._ended.clear()
            self._sources.fetch(self._ended)
            self._thread = threading.Thread(target=self._watch, name="mope-runs", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread = None

    def _watch(self) -> None:
        while not self._ended.wait(_SECONDS):
            try:
                self.look(wait=False)  # a run's encoders may come from a hub that takes its time
            except Exception as error:  # a watch that ends would go unnoticed
                self._report(f"The runs can't be looked at: {_cause(error)}")


def _described(name: str, run: Path) -> dict[str, Any]:
    config, facts = read_run(run)
    said = {"name": name, **describe(config, facts["labels"]), "metrics": {}}
    try:
        metrics = read_metrics(run)
    except UserError:  # it predicts without them
        return {**said, "metrics_error": "They can't be read: mope evaluate says why."}
    shown = {split: metrics[split] for split in ("validation", "test") if split in metrics}
    return {**said, "metrics": shown}


def _unknown(name: str) -> Refusal:
    return Refusal(404, "run", f"There is no run '{_cut(name)}': /v1/runs lists them.")


def _cause(error: Exception) -> str:
    """What is wrong, for the log."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _cut(name: str) -> str:
    return name if len(name) <= 50 else f"{name[:50]}..."
