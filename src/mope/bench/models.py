"""Whole models of the paper's sizes with random weights, which no time depends on, and a batch for them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mope.config import Config
from mope.device import frozen_dtype, use_bf16
from mope.encoders.weights import build_backbone, read_architecture
from mope.methods import Method
from mope.model import FusionModel
from mope.studies.counts import BERT_BASE, SWIN_B, VIT_B, paper_config

_TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "swin-b": (SWIN_B, BERT_BASE),
    "vit-b": (VIT_B, BERT_BASE),
    # For trying a command out.
    "tiny": (
        {"model_type": "vit", "image_size": 28, "patch_size": 7, **_TINY},
        {"model_type": "bert", "vocab_size": 64, **_TINY},
    ),
}
"""Image and text encoder by name; with BERT-base the paper's."""

LABELS = ["entailment", "neutral", "contradiction"]
TOKENS = 40
"""Of a text; SNLI-VE's hypotheses are shorter."""

Batch = dict[str, dict[str, Tensor]]


def sized_config(size: str) -> Config:
    """A config without data over encoders of `SIZES`."""
    return paper_config(*SIZES[size])


def build(method: Method, size: str, precision: str, device: torch.device, **settings: Any) -> FusionModel:
    """A method's model, its frozen parts settled as they are in training, in eval mode.

    Args:
        method: which.
        size: of `SIZES`.
        precision: arithmetic, as `training.precision`.
        device: where to.
        settings: over the method's, by key of `fusion`.

    Raises:
        UserError: the method doesn't take these encoders.
    """
    config = method.apply(sized_config(size))
    config = config.with_settings({f"fusion.{key}": value for key, value in settings.items()})
    model = FusionModel.build(config, LABELS).to(device)
    model.freeze(frozen_dtype(precision, device))
    return model.eval()


def bare_encoders(size: str, device: torch.device) -> dict[str, Any]:
    """The image and the text encoder as transformers has them."""
    found: dict[str, Any] = {}
    for name, architecture in zip(("image", "text"), SIZES[size], strict=True):
        model: Any = build_backbone(read_architecture(architecture))
        found[name] = model.to(device).eval().requires_grad_(False)
    return found


def random_batch(size: str, rows: int, device: torch.device) -> Batch:
    """A batch of pictures and texts."""
    image, text = (read_architecture(architecture) for architecture in SIZES[size])
    tokens = torch.randint(10, text.vocab_size, (rows, TOKENS), device=device)
    pixels = torch.randn(rows, 3, image.image_size, image.image_size, device=device)
    return {
        "image": {"pixel_values": pixels},
        "text": {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)},
    }


def inputs_of(model: FusionModel, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that a model reads."""
    return {name: batch[name] for name in model.fusion.encoders}


def machine_of(precision: str, device: torch.device) -> dict[str, Any]:
    """What a benchmark was run on, and in which arithmetic."""
    return {
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "bf16": use_bf16(precision, device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
