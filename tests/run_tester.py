"""Configs of tiny runs, which tests change as they need."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model

from mope.config import Config

SPLITS = ("train", "validation", "test")


def enlarged(weights: dict[str, str], folder: Path) -> dict[str, str]:
    """The tiny encoders anew, random on such a scale that features differ between rows as real ones do.

    Those of the fixture hardly differ between texts, so that what norms them makes much of roundings.
    """
    torch.manual_seed(0)
    for kind, settings, model in (("image", Dinov2Config, Dinov2Model), ("text", BertConfig, BertModel)):
        shutil.copytree(weights[kind], folder / kind)
        large = settings.from_pretrained(weights[kind], initializer_range=0.3)
        model(large).save_pretrained(folder / kind)
    return {kind: str(folder / kind) for kind in weights}


def enlarge(config: Config, folder: Path) -> None:
    """Let a tiny run's encoders be enlarged ones, see `enlarged`."""
    weights = {name: str(config.inputs[name].encoder.weights) for name in ("image", "text")}
    for name, large in enlarged(weights, folder).items():
        config.inputs[name].encoder.weights = large


def config_of(weights: dict[str, str], tables: Path, tmp_path: Path, **fusion: Any) -> Config:
    """The tiny run's config, with settings of its fusion."""
    content = tiny_run(weights, tables, tmp_path / "run")
    content["fusion"] |= fusion
    return Config.parse(content, "a test")


def tiny_run(weights: dict[str, str], tables: Path, output: Path, **training: Any) -> dict[str, Any]:
    """MoPE over the tiny encoders and the tiny table, in float32 on the CPU.

    Args:
        weights, tables: the fixtures.
        output: the run's folder.
        training: over the training's settings.
    """
    return {
        "inputs": {
            "image": {"kind": "image", "column": "picture", "encoder": {"weights": weights["image"]}},
            "text": {
                "kind": "text",
                "column": "question",
                "max_length": 16,
                "encoder": {"weights": weights["text"], "tuning": "prompt"},
            },
        },
        "fusion": {"main": "image", "length": 2, "experts": 3},
        "data": {
            **{split: str(tables / f"{split}.csv") for split in SPLITS},
            "label": "colour",
            "workers": 0,
        },
        "training": {"epochs": 2, "batch_size": 8, "precision": "fp32", "device": "cpu", **training},
        "output": str(output),
    }


def masks_run(config: Config, scenes: Path) -> dict[str, Any]:
    """A config's encoders on the masks of a folder that `build_scenes` made, with a small head."""
    content = config.model_dump()
    content["task"] = "referring-segmentation"
    content["inputs"]["image"]["column"], content["inputs"]["text"]["column"] = "image", "phrase"
    content["data"] |= {split: str(scenes / f"{split}.csv") for split in SPLITS}
    content["data"] |= {"label": "mask", "labels": None}
    content["segmentation"] = {"channels": 8}
    return content


def changed(config: Config, **sections) -> Config:
    """The config with other settings; `inputs__text` stands for `inputs.text`."""
    settings = config.model_dump()
    for path, values in sections.items():
        *parts, last = path.split("__")
        target = settings
        for part in parts:
            target = target[part]
        if last == "fusion" and "method" in values:
            target[last] = {"main": target[last]["main"]}  # another method's settings are refused
        target[last] = {**target[last], **values} if isinstance(values, dict) and target.get(last) else values
    return Config.model_validate(settings)


def quiet(line: str) -> None:
    """Say nothing."""


def losses(result: dict) -> list[float]:
    return [entry["train_task_loss"] for entry in result["history"]]
