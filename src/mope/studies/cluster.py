"""A study's runs on the machines of a Ray cluster."""

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mope.errors import UserError
from mope.studies.runs import AGAIN, After, LocalRunner, Outcome, Runner, outcome_of, run_config


def make_runner(workers: int | None, plugins: Sequence[str], address: str | None) -> Runner:
    """What runs a study: processes of this machine, or a cluster; a context that gives it back.

    Args:
        workers: runs at a time; None for as many as there is room for.
        plugins: Python files that register methods.
        address: of the cluster; None for this machine.
    """
    return LocalRunner(workers, plugins) if address is None else RayRunner(address, workers, plugins)


class RayRunner(Runner):
    """Runs configs on a Ray cluster, each in a process of its own, with a GPU where the cluster has any.

    A run whose process or machine dies goes on elsewhere from its last checkpoint. So the machines share the
    file system that data, plugins and runs are on, and see it at the same paths.

    This machine alone needs no cluster: `LocalRunner` starts at once and opens no port, which Ray does on
    every address of the machine.

    Args:
        address: as `ray.init` takes it: `HOST:PORT`, or `auto` for the cluster that this machine is part of.
        workers: runs at a time; None for one per GPU, or one per core.
        plugins: Python files that register methods, for every process to load.

    Raises:
        UserError: Ray isn't installed, or no cluster is there.
    """

    def __init__(self, address: str, workers: int | None = None, plugins: Sequence[str] = ()):
        super().__init__()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise UserError("A cluster takes the package ray: pip install 'mope-fusion[studies]'.") from None
        try:
            _require_listening(address)
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (OSError, ValueError, RuntimeError) as error:
            cause = str(error).strip().partition("\n")[0][:200]
            raise UserError(
                f"There is no Ray cluster at '{address}' ({cause}): start one with `ray start --head`, or "
                "leave --address out."
            ) from None
        found = ray.cluster_resources()
        self._gpus = int(found.get("GPU", 0))
        self.workers = workers or self._gpus or max(1, int(found.get("CPU", 1)))
        self._plugins = tuple(str(Path(plugin).absolute()) for plugin in plugins)
        # A process per run, as nothing of one is to be seen by the next.
        self._task = ray.remote(num_cpus=1, num_gpus=1 if self._gpus else 0, max_calls=1, max_retries=AGAIN)(
            _run_here
        )

    def close(self) -> None:
        """Leave the cluster."""
        import ray

        ray.shutdown()

    def run(self, settings: dict[str, Any], after: After) -> Outcome:
        """See `Runner.run`."""
        import ray
        from ray.exceptions import RayError

        started, folder = time.monotonic(), Path(settings["output"])
        try:
            ray.get(self._task.remote(str(Path.cwd()), settings, self._plugins, after))
            died = "it left no metrics"
        except RayError as error:
            died = f"its process died ({type(error).__name__}), {1 + AGAIN} times"
        return outcome_of(folder, after, time.monotonic() - started, died)


def _require_listening(address: str) -> None:
    """Make sure that somebody listens there: Ray itself would wait for minutes.

    Raises:
        OSError: nobody does.
        ValueError: it is no address.
    """
    if address == "auto":
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError("an address is HOST:PORT, or auto")
    socket.create_connection((host, int(port)), timeout=10).close()


def _run_here(home: str, settings: dict[str, Any], plugins: Sequence[str], after: After) -> None:
    """A run, in a process of the cluster."""
    os.chdir(home)
    run_config(settings, None, 1, plugins, after, None)
