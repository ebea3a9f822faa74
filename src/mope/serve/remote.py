"""Encoders that runs take from the hub: fetched by threads, so that no caller waits for a hub."""

import threading
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path

from mope.config import InputConfig
from mope.data.readers import build_readers
from mope.encoders.inputs import load_input_encoder
from mope.encoders.preparation import image_settings
from mope.encoders.sources import is_remote
from mope.model import needed_inputs
from mope.run import read_run
from mope.serve.failures import RETRY_SECONDS


class RemoteEncoders:
    """What runs' encoders take from the hub, by the run's name.

    Args:
        report: takes what is said of what can't be fetched.
        ended: no more is tried once it is set.
    """

    def __init__(self, report: Callable[[str], None], ended: threading.Event):
        self._report, self._ended = report, ended
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Hashable, threading.Event]] = {}

    def coming(self, name: str, folder: Path, state: Hashable) -> bool:
        """Whether a run's encoders aren't here yet; a thread then fetches them.

        Raises:
            UserError: the run can't be read.
        """
        with self._lock:
            known = self._known.get(name)
            if known is None or known[0] != state:
                remote = remote_inputs(folder)
                known = self._known[name] = (state, threading.Event())
                if remote:
                    threading.Thread(target=self._fetch, args=(name, folder, known), daemon=True).start()
                else:
                    known[1].set()
        return not known[1].is_set()

    def _fetch(self, name: str, folder: Path, known: tuple[Hashable, threading.Event]) -> None:
        said = ""
        while not self._ended.is_set() and self._known.get(name) is known:
            try:
                fetch(remote_inputs(folder))
                known[1].set()
                return
            except Exception as error:
                if str(error) != said:
                    said = str(error)
                    self._report(f"The encoders of the run '{name}' can't be fetched: {error}")
                self._ended.wait(RETRY_SECONDS)


def remote_inputs(folder: Path) -> dict[str, InputConfig]:
    """A run's inputs whose encoders come from the hub."""
    inputs = needed_inputs(read_run(folder)[0])
    return {
        name: entry
        for name, entry in inputs.items()
        if entry.encoder.weights is not None and is_remote(entry.encoder.weights)
    }


def fetch(inputs: Mapping[str, InputConfig]) -> None:
    """Bring what these inputs take from the hub to this machine; none of it is kept in memory."""
    for name, entry in inputs.items():
        build_readers({name: entry})  # its tokenizer and the like
        if entry.kind in ("image", "video"):
            image_settings(entry.encoder.weights, entry.encoder.revision, entry.encoder.architecture)
        load_input_encoder(entry)
