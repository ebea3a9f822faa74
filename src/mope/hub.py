"""Runs on the Hugging Face hub: uploaded without what this machine alone knows, read without running code."""

import re
import tempfile
from pathlib import Path

import yaml

from mope.config import Config, MediaLimits
from mope.errors import UserError
from mope.files import write_json
from mope.run import CONFIG, METRICS, WEIGHTS, read_metrics, read_run

_PREFIX = "hub:"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = [CONFIG, WEIGHTS, METRICS, "README.md"]
_PLACES = ("train", "validation", "test", "folder")
_OWN = (
    "metric",
    "validation",
    "test",
    "best_epoch",
    "seconds",
    "trainable",
    "frozen",
    "calibration",
    "history",
)
"""What is uploaded of the metrics: others are named by paths of tables."""


def is_on_hub(run: str | Path) -> bool:
    """Whether a run is named as a repository's."""
    return str(run).startswith(_PREFIX)


def forget_tables(config: Config) -> None:
    """Take out of a config where tables are: a stranger's may name any file of this machine."""
    for place in _PLACES:
        setattr(config.data, place, None)
    config.data.trusted, config.data.limits = False, MediaLimits()


def find_run(run: str | Path, revision: str | None = None) -> Path:
    """A run's folder: the one that is named, or a copy of a repository's, `hub:OWNER/NAME`.

    Args:
        run: a folder, or a repository.
        revision: commit, tag or branch of a repository.

    Raises:
        UserError: there is neither.
    """
    if not is_on_hub(run):
        return Path(run)
    repository = repository_of(run)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
        raise UserError(f"The hub has no repository {repository}, or can't be reached.") from None


def repository_of(run: str | Path) -> str:
    """The repository that a run on the hub names, `hub:OWNER/NAME`.

    Raises:
        UserError: it names none.
    """
    repository = str(run).removeprefix(_PREFIX)
    if not _REPOSITORY.fullmatch(repository):
        raise UserError(f"A run on the hub is {_PREFIX}OWNER/NAME, not '{run}'.")
    return repository


def push_run(run: str | Path, repository: str, *, private: bool = True) -> str:
    """Upload a finished run: settings, trained weights, metrics and model card; no encoder's weights.

    Where the tables were is left out. An encoder from a folder of this machine stays a folder: whoever loads
    the run needs it, too.

    Args:
        run: the run's folder.
        repository: `OWNER/NAME`; made if it isn't there.
        private: whether a new one is.

    Returns:
        The repository's address.

    Raises:
        UserError: the folder holds no finished run, the name is none, or the hub refuses.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise UserError(f"A repository is OWNER/NAME, not '{repository}'.")
    config, known = read_run(run)
    trusted, limits = config.data.trusted, config.data.limits
    forget_tables(config)
    config.data.trusted, config.data.limits = trusted, limits
    config.training.begin_from, config.output = None, "runs/run"
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    with tempfile.TemporaryDirectory() as draft:
        for name in (WEIGHTS, "README.md"):
            if (Path(run) / name).is_file():
                (Path(draft) / name).write_bytes((Path(run) / name).read_bytes())
        metrics = {name: value for name, value in read_metrics(Path(run)).items() if name in _OWN}
        write_json(Path(draft) / METRICS, metrics)
        settings = {**config.model_dump(mode="json"), "run": known}
        content = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        (Path(draft) / CONFIG).write_text(content, encoding="utf-8")
        try:
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=draft, commit_message="A run of mope")
        except (HfHubHTTPError, OSError) as error:
            raise UserError(f"The hub refuses {repository}: {str(error).strip().splitlines()[0]}") from None
    return str(address)
