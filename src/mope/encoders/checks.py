"""Whether an encoder takes prompts as it should: the exactness checks of the tests, on real weights."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mope.encoders.base import Encoder, EncoderOutput
from mope.encoders.transformer import TransformerEncoder
from mope.errors import UserError
from mope.prompts import PromptFunction, PromptSource

_LENGTH = 3


@dataclass(frozen=True)
class Check:
    """What was compared, and how far it was off.

    Attributes:
        name: what should be the same.
        difference: largest difference, over the largest value.
        allowed: how much rounding explains.
    """

    name: str
    difference: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.allowed


def sample_inputs(encoder: Encoder, batch: int) -> dict[str, Tensor]:
    """Random inputs of an encoder's kind, of unequal lengths where it takes a mask."""
    config: Any = model_of(encoder).config
    generator = torch.Generator().manual_seed(0)
    if encoder.kind == "image":
        size = getattr(config, "image_size", None) or _timm_size(model_of(encoder))
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.randn(batch, 3, height, width, generator=generator)}
    if encoder.kind == "text":
        mask = torch.ones(batch, 16, dtype=torch.long)
        for row in range(1, batch):
            mask[row, 16 - 3 * row :] = 0
        ids = torch.randint(5, min(config.vocab_size, 1000), (batch, 16), generator=generator)
        return {"input_ids": ids, "attention_mask": mask}
    if hasattr(config, "max_source_positions"):
        shape: tuple[int, ...] = (config.num_mel_bins, 2 * config.max_source_positions)
        return {"input_features": torch.randn(batch, *shape, generator=generator)}
    shape = (config.max_length, config.num_mel_bins) if hasattr(config, "num_mel_bins") else (16000,)
    return {"input_values": torch.randn(batch, *shape, generator=generator)}


def model_of(encoder: Encoder) -> Any:
    """The transformers model in an encoder."""
    return encoder.backbone if isinstance(encoder, TransformerEncoder) else encoder.module


def _timm_size(model: Any) -> int:
    inner = getattr(model, "timm_model", None)
    return getattr(inner, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1]


@torch.inference_mode()
def run_checks(encoder: Encoder, report: Callable[[str], Any] = print) -> list[Check]:
    """Compare an encoder with its bare model, with itself by tokens, and a row with the row in its batch.

    Args:
        encoder: as `load_encoder` gives it.
        report: takes the name of what is being compared.
    """
    encoder, batch = encoder.eval(), 2
    inputs = sample_inputs(encoder, batch)
    prompts = [0.5 * torch.randn(batch, _LENGTH, dim) for dim in encoder.layer_dims]
    checks: list[Check] = []

    def compare(name: str, one: Tensor, other: Tensor, allowed: float) -> None:
        report(name)
        checks.append(Check(name, float((one - other).abs().max() / other.abs().max()), allowed))

    def source(rows: slice) -> PromptSource | None:
        if not prompts:
            return None
        return PromptFunction(lambda layer, x0: prompts[layer][rows] + x0.unsqueeze(1))

    together = encoder(**inputs, prompts=source(slice(None)))
    if isinstance(encoder, TransformerEncoder):
        _compare_with_bare(encoder, inputs, source(slice(None)), together, compare)
    for row in range(batch):
        rows = slice(row, row + 1)
        alone = encoder(**{name: value[rows] for name, value in inputs.items()}, prompts=source(rows))
        compare(f"row {row + 1} alone, the row in its batch", alone.pooled, together.pooled[rows], 1e-4)
    return checks


def _compare_with_bare(
    encoder: TransformerEncoder,
    inputs: dict[str, Tensor],
    source: PromptSource | None,
    together: EncoderOutput,
    compare: Callable[[str, Tensor, Tensor, float], None],
) -> None:
    """Without prompts with the bare model, and with prompts with the same by tokens."""
    bare: Any = copy.deepcopy(encoder.backbone)
    bare.set_attn_implementation("sdpa")
    plain = bare(**encoder.family.call, **inputs).last_hidden_state
    compare("without prompts, the bare model", encoder(**inputs).tokens, plain, 0.0)
    if encoder.insertion == "prefix":
        try:
            reference = TransformerEncoder(_fresh(encoder), "tokens").eval()
        except UserError:
            reference = None
        if reference is not None:
            tokens = reference(**inputs, prompts=source).tokens
            compare("prompts in front of keys, prompts as tokens", together.tokens, tokens, 1e-4)


def _fresh(encoder: TransformerEncoder) -> Any:
    """The encoder's model without hooks."""
    # A copy: the attention implementation is a setting, and the encoder's must stay its own.
    config = copy.deepcopy(encoder.backbone.config)
    model = type(encoder.backbone)(config, **encoder.family.options)
    model.load_state_dict(encoder.backbone.state_dict())
    model.set_attn_implementation("sdpa")
    return model
