"""How an encoder is tuned: frozen, by vanilla deep prompts, or in full."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from mope.encoders.transformer import EncoderOutput, TransformerEncoder
from mope.prompts import DeepPrompts, PromptSource

Tuning = Literal["frozen", "prompt", "full"]


class TunedEncoder(nn.Module):
    """An encoder, what of it is trained, and its own prompts if that is how it's tuned.

    An encoder that isn't tuned in full stays in eval mode while training: no dropout, no drop path, and its
    weights stay as they are, bit for bit (section 6 of the method).

    Args:
        encoder: the pre-trained encoder.
        tuning: "frozen", "prompt" (vanilla deep prompts, Eq. 1) or "full".
        prompt_length: length l' of the deep prompts.
        dropout: dropout probability on the deep prompts.
    """

    def __init__(
        self, encoder: TransformerEncoder, tuning: Tuning, *, prompt_length: int = 4, dropout: float = 0.1
    ):
        super().__init__()
        self.encoder = encoder.requires_grad_(tuning == "full")
        self.tuning = tuning
        self.prompts = (
            DeepPrompts(
                encoder.layer_dims, length=prompt_length, patch_area=encoder.patch_area, dropout=dropout
            )
            if tuning == "prompt"
            else None
        )

    @property
    def pooled_dim(self) -> int:
        """Width D of the global feature."""
        return self.encoder.pooled_dim

    def train(self, mode: bool = True) -> "TunedEncoder":
        """Set the training mode of the prompts; of the encoder only if it is tuned in full."""
        super().train(mode)
        self.encoder.train(mode and self.tuning == "full")
        return self

    def forward(self, inputs: Mapping[str, Tensor], prompts: PromptSource | None = None) -> EncoderOutput:
        """Encode a batch; without a source the encoder's own prompts are used, if it has any."""
        return self.encoder(**inputs, prompts=self.prompts if prompts is None else prompts)
