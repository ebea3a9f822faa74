"""Whole models of the paper's sizes with random weights, which no time depends on, and a batch for them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mope.bench.turns import clock_of
from mope.config import Config
from mope.device import arithmetic_name, frozen_dtype, use_bf16
from mope.encoders.weights import build_backbone, read_architecture
from mope.methods import Method
from mope.model import FusionModel
from mope.studies.counts import BERT_BASE, SWIN_B, VIT_B, paper_config

_TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "swin-b": (SWIN_B, BERT_BASE),
    "vit-b": (VIT_B, BERT_BASE),
    # The demo's: DINOv2-small at 98 pixels, and a text encoder of MiniLM's size.
    "demo": (
        {
            "model_type": "dinov2",
            "hidden_size": 384,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
            "image_size": 98,
            "patch_size": 14,
        },
        {
            "model_type": "bert",
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        },
    ),
    # For trying a command out.
    "tiny": (
        {"model_type": "vit", "image_size": 28, "patch_size": 7, **_TINY},
        {"model_type": "bert", "vocab_size": 64, **_TINY},
    ),
}
"""Image and text encoder by name; with BERT-base the paper's."""


class One(NamedTuple):
    """A single encoder.

    Attributes:
        architecture: as a config has it.
        size: pixels of a picture's side, or tokens of a text.
    """

    architecture: dict[str, Any]
    size: int


MODELS: dict[str, One] = {
    "swin-b": One(SWIN_B, 224),
    "vit-b": One(VIT_B, 224),
    "bert-base": One(BERT_BASE, 64),
    "dinov2-s": One({**SIZES["demo"][0], "image_size": 518}, 112),
    # For trying a command out.
    "tiny": One(SIZES["tiny"][0], 28),
    "tiny-bert": One(SIZES["tiny"][1], 16),
}
"""Encoders by name whose prompts are measured on their own."""

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


def bare_model(name: str, device: torch.device) -> Any:
    """One of `MODELS` as transformers has it, with random weights, in eval mode."""
    model: Any = build_backbone(read_architecture(MODELS[name].architecture))
    return model.to(device).eval()


def hold(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Hold weights of linear layers in `dtype`, as `Encoder.freeze` does; None leaves them as they are."""
    for part in model.modules():
        if dtype is not None and type(part) is nn.Linear:
            part.to(dtype)
    return model


def random_inputs(name: str, rows: int, device: torch.device) -> dict[str, Tensor]:
    """A batch for one of `MODELS`."""
    architecture, size = MODELS[name]
    config = read_architecture(architecture)
    if config.model_type != "bert":
        return {"pixel_values": torch.randn(rows, 3, size, size, device=device)}
    tokens = torch.randint(10, config.vocab_size, (rows, size), device=device)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


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
        "arithmetic": arithmetic_name(precision, device),
        "threads": torch.get_num_threads(),
        "clock": clock_of(device),
        "torch": torch.__version__,
    }
