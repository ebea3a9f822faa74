"""A run's folder: what is in it, and whether two runs are one."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mope.config import Config, of_older_version
from mope.errors import UserError, shown
from mope.files import parse_json, read_yaml, write_json

CONFIG = "config.yaml"
WEIGHTS = "model.safetensors"
METRICS = "metrics.json"
CHECKPOINTS = "checkpoints"

DIGEST = "weights_sha256"
"""What a run's settings call the digest of its weights, by which they know each other."""


def read_run(folder: str | Path, finished: bool = True) -> tuple[Config, dict[str, Any]]:
    """The settings of a run's folder, and what is known of the run (`labels`, `versions`, ...).

    Args:
        folder: the run's.
        finished: whether it must be.

    Raises:
        UserError: the folder holds no run, or no finished one.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS) if finished else (CONFIG,):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} holds no finished run: there is no {name}; name what `mope train` wrote."
            )
    settings = read_yaml(folder / CONFIG, "config", "a run's settings")
    run = settings.pop("run", {})
    settings = of_older_version(settings)
    if finished and "labels" not in run:
        raise UserError(f"{folder} holds no finished run: its {CONFIG} names no labels.")
    return Config.parse(settings, str(folder / CONFIG)), run


def read_metrics(folder: Path, trained: bool = False) -> dict[str, Any]:
    """The content of a run's `metrics.json`; empty if there is none.

    Args:
        folder: the run's.
        trained: whether it must say what a training says.

    Raises:
        UserError: it is damaged.
    """
    file = folder / METRICS
    if not file.is_file():
        return {}
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
        if (wrong := _wrong_metrics(found, trained)) is not None:
            raise ValueError(wrong)
    except OSError as error:
        raise UserError(f"Can't read {file}: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(
            f"{file} is damaged ({shown(str(error), 100)}): put a whole copy in its place, or move it away; "
            "the run predicts without it."
        ) from None
    return found


def _wrong_metrics(found: Any, trained: bool) -> str | None:
    """Why what a `metrics.json` says isn't what training and evaluation write; None if it is."""
    if not isinstance(found, dict):
        return "no mapping"
    kinds = {
        "metric": str,
        "best_epoch": int | float,
        "trainable": int,
        "frozen": int,
        "history": list,
        "validation": dict,
        "test": dict,
    }
    for name, kind in kinds.items():
        if trained and name != "test" and name not in found:
            return f"it has no '{name}'"
        if name in found and not isinstance(found[name], kind):
            return f"'{name}' is {shown(found[name])}"
        if name in ("validation", "test"):
            for metric, value in found.get(name, {}).items():
                if metric != "patterns" and not isinstance(value, int | float | None):
                    return f"'{name}.{shown(metric)}' is {shown(value)}"
    if not all(isinstance(entry, dict) for entry in found.get("history", [])):
        return "'history' has entries that are no mappings"
    return None


def add_metrics(folder: Path, name: str, metrics: Mapping[str, Any]) -> None:
    """Keep an evaluation's metrics in a run's `metrics.json`, under the name of what was measured."""
    write_json(folder / METRICS, {**read_metrics(folder), name: dict(metrics)})


# None of it changes what is learned.
_FREE = (
    "output",
    "data.workers",
    "data.cache_features",
    *(f"training.{key}" for key in ("device", "save_minutes", "gradient_checkpointing", "compile", "fsdp")),
)


def difference(before: Config, now: Config, free: Collection[str] = ()) -> str | None:
    """Dotted key of the first setting in which two runs' configs differ; None if they are of the same run.

    Where a run is, on which device, and how its rows are read doesn't count. A file that isn't where it was
    any more, since the run was moved to another machine, is known by its name and its folder's.

    Args:
        before: as it was kept with the run.
        now: as it is now.
        free: more keys that may differ.
    """
    one, other = _comparable(before), _comparable(now)
    for name in one["inputs"].keys() & other["inputs"].keys():
        _fill_kinds(one["inputs"][name]["columns"], other["inputs"][name]["columns"])
    return _first_difference(one, other, {*_FREE, *free}, "")


def require_same_columns(before: Config, now: Config, folder: str | Path) -> None:
    """Make sure that table inputs' columns hold what they held in a run.

    Raises:
        UserError: they don't.
    """
    for name, entry in now.inputs.items():
        if name in before.inputs and entry.columns != before.inputs[name].columns:
            raise UserError(
                f"The columns of '{name}' hold other values than in {folder}: take inputs.{name}.columns "
                "from its config.yaml."
            )


def require_same_routing(before: Config, now: Config, folder: str | Path) -> None:
    """Make sure that prompts mean what they meant in a run, where their shapes wouldn't tell.

    `fusion.temperature`, `top` and what bears on training alone may be others.

    Raises:
        UserError: they don't.
    """
    names = ("main", "method", "joining", "standardise", "similarity", "blind")
    parts: dict[str, tuple[Any, Any]] = {f"fusion.{name}": (before.fusion, now.fusion) for name in names}
    for name in before.inputs.keys() & now.inputs.keys():
        parts[f"inputs.{name}.encoder.pooling"] = (before.inputs[name].encoder, now.inputs[name].encoder)
    for key, pair in parts.items():
        there, wanted = (getattr(part, key.rpartition(".")[2], None) for part in pair)
        if there != wanted:
            raise UserError(
                f"training.begin_from: {folder} has {key} {_plain(there)}, not {_plain(wanted)}: "
                f"what it learned means something else with another. Set {key} to {_plain(there)}."
            )


def _plain(value: Any) -> str:
    """As YAML has it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _fill_kinds(one: dict[str, Any], other: dict[str, Any]) -> None:
    """What a table's columns hold is found when a run begins: where it isn't said, it is as in the other."""
    for column in one.keys() & other.keys():
        one[column] = one[column] or other[column]
        other[column] = other[column] or one[column]


def _comparable(config: Config) -> dict[str, Any]:
    settings = config.model_dump()
    for place in ("train", "validation", "test", "folder"):
        if settings["data"][place] is not None:
            settings["data"][place] = Path(settings["data"][place]).resolve()
    for values in settings["inputs"].values():
        values["columns"] = {name: field["kind"] for name, field in values["columns"].items()}
        encoder = values["encoder"]
        encoder.pop("revision")  # pinned when the run began
        if (encoder["weights"] or "").startswith((".", "~", "/")):
            encoder["weights"] = Path(encoder["weights"]).expanduser().resolve()
    return settings


def _first_difference(one: Any, other: Any, free: Collection[str], key: str) -> str | None:
    if key in free:
        return None
    if isinstance(one, dict) and isinstance(other, dict):
        for name in [*one, *(name for name in other if name not in one)]:
            inner = f"{key}.{name}" if key else name
            if found := _first_difference(one.get(name), other.get(name), free, inner):
                return found
        return None
    if isinstance(one, Path) and isinstance(other, Path) and not one.exists():
        return None if one.parts[-2:] == other.parts[-2:] else key
    return None if one == other else key


def model_card(model: Any, metrics: Mapping[str, Any]) -> str:
    """The README of a run's folder: what it is, how good, and how to use it."""
    settings = model.settings
    inputs = "\n".join(
        f"| {name}{' (main)' if name == settings.fusion.main else ''} | {entry.kind} | "
        f"{', '.join(f'`{column}`' for column in entry.cells)} | "
        f"`{entry.encoder.weights or 'no weights'}` | {entry.encoder.tuning} |"
        for name, entry in settings.inputs.items()
    )
    validation = "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics["validation"].items())
    labels = ", ".join(f"`{label}`" for label in model.task.labels[:30])
    more = ", ..." if len(model.task.labels) > 30 else ""
    share = metrics["trainable"] / (metrics["trainable"] + metrics["frozen"])
    row = {column: "..." for entry in settings.inputs.values() for column in entry.cells}
    return f"""---
library_name: mope
tags: [multimodal, prompt-tuning, {settings.task}]
---

# A multimodal model trained with mope

Task: {settings.task}. Labels: {labels}{more}.
Fusion: {settings.fusion.method}; {metrics["trainable"]:,} trained parameters ({share:.2%} of all), in
`model.safetensors`. The encoders' own weights are loaded from where `config.yaml` says.

| input | kind | column | encoder | tuning |
|---|---|---|---|---|
{inputs}

Validation, best epoch ({metrics["best_epoch"]:.3g}):

| metric | value |
|---|---|
{validation}

```python
from mope import Predictor

predictor = Predictor("this folder")
print(predictor.predict([{row}]))
```
"""
