"""A Hugging Face transformer that asks a prompt source for its prompts."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from mope.encoders import prefix
from mope.encoders.families import FAMILIES, Pooling, follow
from mope.errors import UserError
from mope.prompts import PromptSource

Insertion = Literal["prefix", "tokens"]


@dataclass
class EncoderOutput:
    """What an encoder makes of a batch.

    Attributes:
        pooled: global feature (B, D).
        tokens: all tokens of the last layer, normed as the model does, without prompts (B, N, D).
    """

    pooled: Tensor
    tokens: Tensor


class TransformerEncoder(nn.Module):
    """Any supported Hugging Face encoder, with prompts in every layer.

    The model is taken over: its attention implementation is set and hooks are installed. Without a source its
    outputs are the bare model's, bit for bit.

    Args:
        model: the bare model, as `AutoModel` loads it.
        insertion: "prefix" puts prompts in front of keys and values; "tokens" concatenates them to the
            layer's tokens and strips them after it, which is slower and the same function.
        pooling: global feature: "cls" or "mean"; by default the family's.

    Raises:
        UserError: the model's family isn't supported.
    """

    def __init__(
        self, model: PreTrainedModel, insertion: Insertion = "prefix", pooling: Pooling | None = None
    ):
        super().__init__()
        name = model.config.model_type
        if name not in FAMILIES:
            raise UserError(
                f"Models of type '{name}' aren't supported: add a row with its attribute paths to "
                f"mope/encoders/families.py, or take one of {', '.join(FAMILIES)}."
            )
        self.family = FAMILIES[name]
        if insertion == "tokens" and not self.family.tokens:
            raise UserError(f"Models of type '{name}' take prompts by insertion 'prefix' only.")
        self.backbone = model
        self.insertion = insertion
        self.pooling: Pooling = pooling or self.family.pooling
        layers = list(follow(model, self.family.layers))
        attentions = [layer.get_submodule(self.family.attention) for layer in layers]
        self.layer_dims: list[int] = [getattr(module, self.family.key).in_features for module in attentions]
        if insertion == "prefix":
            model.set_attn_implementation(prefix.ATTENTION)
        install = prefix.install_prefix if insertion == "prefix" else prefix.install_tokens
        for index, layer in enumerate(layers):
            install(layer, index, self.family)

    @property
    def pooled_dim(self) -> int:
        """Width D of the global feature."""
        return self.layer_dims[-1]

    @property
    def patch_area(self) -> int:
        """Pixels of a patch; 1 for an encoder without patches."""
        size = getattr(self.backbone.config, "patch_size", 1)
        return size * size if isinstance(size, int) else size[0] * size[1]

    def forward(self, prompts: PromptSource | None = None, **inputs: Any) -> EncoderOutput:
        """Encode a batch.

        Args:
            prompts: asked once per layer for that layer's prompts; None for the bare model.
            inputs: the model's own inputs: `pixel_values` (B, 3, H, W), or `input_ids` and
                `attention_mask` (B, N).
        """
        if prompts is not None:
            inputs[prefix.SOURCE] = prompts
        output = self.backbone(**self.family.call, **inputs)
        tokens = output.last_hidden_state
        return EncoderOutput(
            prefix.global_feature(tokens, self.pooling, inputs.get("attention_mask")), tokens
        )
