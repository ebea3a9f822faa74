"""Trained parameters of every method at the paper's sizes: the Param column of Tab. I and IX."""

from typing import Any

from mope.config import Config
from mope.errors import UserError
from mope.methods import METHODS
from mope.model import empty_model

SWIN_B: dict[str, Any] = {
    "model_type": "swin",
    "image_size": 224,
    "patch_size": 4,
    "embed_dim": 128,
    "depths": [2, 2, 18, 2],
    "num_heads": [4, 8, 16, 32],
    "window_size": 7,
}
_BASE: dict[str, Any] = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
VIT_B: dict[str, Any] = {"model_type": "vit", **_BASE}
BERT_BASE: dict[str, Any] = {"model_type": "bert", **_BASE}
_LABELS = ["entailment", "neutral", "contradiction"]


def paper_config(image: dict[str, Any] = SWIN_B, text: dict[str, Any] | None = None) -> Config:
    """The paper's main setting, image and text, without data: Swin-B and BERT-base."""
    return Config.parse(
        {
            "inputs": {
                "image": {"kind": "image", "column": "image", "encoder": {"architecture": image}},
                "text": {
                    "kind": "text",
                    "column": "text",
                    "encoder": {"architecture": text or BERT_BASE},
                },
            },
            "fusion": {"main": "image"},
        }
    )


def paper_counts() -> dict[str, float | None]:
    """Trained parameters in millions by method; None for one that doesn't take these encoders.

    A method that needs plain transformers is counted with ViT-B in the place of Swin-B.
    """
    counts: dict[str, float | None] = {}
    for method in METHODS.values():
        counts[method.name] = None
        for image in (SWIN_B, VIT_B):
            try:
                model = empty_model(method.apply(paper_config(image)), _LABELS)
            except UserError:
                continue
            trained = sum(part["trainable"] for part in model.count_parameters().values())
            counts[method.name] = trained / 1e6
            break
    return counts
