"""Untrained runs of many methods over the same tiny encoders."""

from pathlib import Path

import torch
from run_tester import tiny_run

from mope.config import Config
from mope.model import FusionModel

LABELS = ["blue", "green", "red"]
RUNS = {
    "mope": {},
    "longer": {"length": 3, "experts": 5, "joining": "added", "start": "quiet"},
    "static": {"prompts": ["static", "mapped"]},
    "sees_all": {"head_sees": "all", "prompts": ["dynamic"], "similarity": "cosine", "standardise": True},
    "mutual": {"method": "mutual", "length": 2, "experts": 3},
    "concat": {"method": "concat"},
    "image": {"method": "unimodal"},
    "words": {"method": "unimodal", "main": "text"},
    "text_main": {"main": "text"},
    "inputs": {"method": "inputs", "deep": True},
    "pmf": {"method": "pmf", "exchange_layers": 1},
    "may_miss": {},
    "twins": {"prompts": ["static", "mapped"]},
    "full": {},
}
"""Each run's fusion; all but the last share both encoders, `pmf` and `inputs` not the passes."""

SERVED = ("mope", "longer", "static", "concat", "words", "pmf", "full")
"""Those that are served together."""


def make_run(name: str, weights: dict[str, str], tables: Path, folder: Path) -> Path:
    """A run of `RUNS`, with prompts loud enough to matter, in a folder of its name."""
    torch.manual_seed(len(name))
    content = tiny_run(weights, tables, folder / name)
    content["fusion"] |= RUNS[name]
    if content["fusion"].get("method", "sequential") != "sequential":
        content["fusion"] = {"main": content["fusion"]["main"], **RUNS[name]}
    if RUNS[name].get("method") in ("mutual", "concat", "unimodal", "pmf"):
        content["inputs"]["image"]["encoder"]["tuning"] = "prompt"
    if name == "text_main":
        content["inputs"]["image"]["encoder"]["tuning"] = "prompt"
        content["inputs"]["text"]["encoder"]["tuning"] = "frozen"
    if name == "pmf":
        content["inputs"]["image"]["encoder"]["tuning"] = "frozen"
        content["inputs"]["text"]["encoder"]["tuning"] = "frozen"
    if name == "twins":  # two inputs with one encoder
        content["inputs"]["second"] = {**content["inputs"]["image"]}
    if name == "may_miss":
        content["inputs"]["text"]["missing"] = content["inputs"]["image"]["missing"] = "learn"
    if name == "full":
        content["inputs"]["text"]["encoder"]["tuning"] = "full"
    model = FusionModel.build(Config.parse(content), LABELS)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder / name)
    return folder / name
