"""How an encoder is tuned: frozen, by vanilla deep prompts, in full, or by another way to train a little."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mope.encoders.adapters import add_adapters, add_lora, train_biases
from mope.encoders.base import Encoder, EncoderOutput
from mope.encoders.blackbox import BlackBoxEncoder
from mope.encoders.features import FeatureCache, with_known
from mope.encoders.stack import LayerStack
from mope.encoders.transformer import TransformerEncoder
from mope.encoders.video import VideoEncoder
from mope.errors import UserError
from mope.prompts import DeepPrompts, PromptSource, Start

Tuning = Literal["frozen", "prompt", "full", "lora", "bitfit", "adaptformer"]


PRESENT = "present"
"""Key of an input's mask of rows that are there, (B,), boolean."""

_ADD: dict[str, Callable[[TransformerEncoder], None]] = {
    "lora": add_lora,
    "bitfit": train_biases,
    "adaptformer": add_adapters,
}


class TunedEncoder(nn.Module):
    """An encoder, what of it is trained, and its own prompts if that is how it's tuned.

    An encoder that isn't tuned in full stays in eval mode while training: no dropout, no drop path, and its
    weights stay as they are, bit for bit (section 6 of the method).

    Args:
        encoder: the pre-trained encoder.
        tuning: "frozen", "prompt" (vanilla deep prompts, Eq. 1), "full", "lora", "bitfit" or "adaptformer".
        prompt_length: length l' of the deep prompts.
        dropout: dropout probability on the deep prompts.
        start: how loud the deep prompts begin.
        stand_in: whether a learned vector stands in for the feature of an input that isn't there, as inputs
            with `present` (B,), boolean, say.

    Raises:
        UserError: it takes no prompts, and is to be tuned neither in full nor not at all.
    """

    def __init__(
        self,
        encoder: Encoder,
        tuning: Tuning,
        *,
        prompt_length: int = 4,
        dropout: float = 0.1,
        start: Start = "published",
        stand_in: bool = False,
    ):
        super().__init__()
        self.encoder = encoder.requires_grad_(tuning == "full")
        if isinstance(encoder, BlackBoxEncoder) and encoder.projection is not None:
            encoder.projection.requires_grad_(True)
        if tuning not in ("frozen", "full") and not encoder.layer_dims:
            raise UserError(
                f"A black-box encoder can't be tuned by '{tuning}': set its tuning to frozen or full."
            )
        if tuning in _ADD:
            inner = encoder.frames if isinstance(encoder, VideoEncoder) else encoder
            assert isinstance(inner, TransformerEncoder)  # whatever has layers is one
            _ADD[tuning](inner)
        self._leave_out_unused()
        self.tuning = tuning
        self.stand_in = nn.Parameter(torch.zeros(encoder.pooled_dim)) if stand_in else None
        self.cache: FeatureCache | None = None
        self._known: dict[bytes, Tensor] | None = None
        self.prompts = (
            DeepPrompts(
                encoder.layer_dims,
                length=prompt_length,
                patch_area=encoder.patch_area,
                dropout=dropout,
                start=start,
            )
            if tuning == "prompt"
            else None
        )

    @property
    def pooled_dim(self) -> int:
        """Width D of the global feature."""
        return self.encoder.pooled_dim

    def _leave_out_unused(self) -> None:
        """Don't train what nothing depends on: several processes would wait for its gradient."""
        for parameter in self.encoder.unused_parameters():
            parameter.requires_grad_(False)

    def give_maps(self) -> None:
        """Give feature maps from now on, which are all that is read then."""
        self.encoder.give_maps()
        self._leave_out_unused()

    def train(self, mode: bool = True) -> "TunedEncoder":
        """Set the training mode of the prompts; of the encoder only if it is tuned in full."""
        super().train(mode)
        self.encoder.train(mode and self.tuning == "full")
        return self

    def forward(
        self, inputs: Mapping[str, Tensor], prompts: PromptSource | None = None, maps: bool = False
    ) -> EncoderOutput:
        """Encode a batch; without a source the encoder's own prompts are used, if it has any.

        With one the encoder is the main one: where its input isn't there it sees a blank, and what the source
        tells it. Without, the stand-in takes the place of its feature and tokens. With `maps` there are
        feature maps too.
        """
        return self.call(inputs, prompts, maps).run()

    def call(
        self, inputs: Mapping[str, Tensor], prompts: PromptSource | None = None, maps: bool = False
    ) -> "Call":
        """A pass that is still to be run; see `forward` for the arguments."""
        inputs, present = _split(inputs)
        if maps:
            inputs["stages"] = True
        is_main = prompts is not None
        return Call(self, inputs, prompts if is_main else self.prompts, None if is_main else present)

    def settle(self, output: EncoderOutput, present: Tensor | None) -> EncoderOutput:
        """An encoder's output with the stand-in in the rows that aren't there."""
        if self.stand_in is None or present is None:
            return output
        return replace(
            output,
            pooled=self._stand_in(output.pooled, present),
            tokens=self._stand_in(output.tokens, present),
        )

    def settle_prompts(self) -> None:
        """Project the encoder's own prompts, if it has any, see `KeptPrompts.keep`."""
        if self.prompts is not None:
            self.prompts.settle(self.encoder)

    def make_steppable(self) -> None:
        """Let `stack` run the layers of a plain transformer one at a time."""
        assert isinstance(self.encoder, TransformerEncoder)
        self.encoder.make_steppable()

    def stack(self, inputs: Mapping[str, Tensor]) -> LayerStack:
        """The encoder's layers one at a time over a batch, without prompts of its own."""
        assert isinstance(self.encoder, TransformerEncoder)
        return self.encoder.stack(**_split(inputs)[0])

    def _stand_in(self, found: Tensor, present: Tensor) -> Tensor:
        """The learned vector in the rows that aren't there."""
        assert self.stand_in is not None
        rows = present.view(-1, *[1] * (found.ndim - 1))
        return torch.where(rows, found, self.stand_in.to(found.dtype))

    def keep_features(self, folder: Path | None) -> None:
        """Keep features on disk from now on, if nothing that is trained bears on them; None for no longer."""
        if folder is None:
            self.cache = None
        elif self.tuning == "frozen" and self._may_be_kept():
            self.cache = FeatureCache(folder, self.encoder)

    def _may_be_kept(self) -> bool:
        """Whether the encoder is known by its weights and settings, which a function isn't."""
        encoder = self.encoder.frames if isinstance(self.encoder, VideoEncoder) else self.encoder
        if not isinstance(encoder, BlackBoxEncoder):
            return True
        return isinstance(encoder.module, nn.Module) and not callable(encoder.output)

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Remember features in the block, where nothing learns: a row that comes again isn't encoded."""
        self._known = {}
        try:
            yield
        finally:
            self._known = None

    def feature(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The global feature (B, D) alone; from disk, if it is kept there, or remembered."""
        return (
            self._feature(inputs) if self._known is None else with_known(self._known, inputs, self._feature)
        )

    def _feature(self, inputs: Mapping[str, Tensor]) -> Tensor:
        if self.cache is None:
            return self(inputs).pooled
        inputs, present = _split(inputs)
        feature = self.encoder.project(self.cache.feature(self.encoder, inputs))
        if self.stand_in is None or present is None:
            return feature
        return self._stand_in(feature, present)


@dataclass(frozen=True)
class Call:
    """A pass through an encoder that is still to be run, alone or together with others.

    Attributes:
        tuned: whose encoder.
        inputs: keyword arguments of the encoder.
        prompts: what its layers ask; None for the bare encoder.
        present: rows (B,), boolean, that are there; None where all are, or a source tells of the others.
    """

    tuned: TunedEncoder
    inputs: dict[str, Any]
    prompts: PromptSource | None
    present: Tensor | None

    def run(self) -> EncoderOutput:
        """Encode the batch."""
        return self.settle(self.tuned.encoder(**self.inputs, prompts=self.prompts))

    def settle(self, output: EncoderOutput) -> EncoderOutput:
        """What the encoder made of the batch, with what stands in for what isn't there."""
        return self.tuned.settle(output, self.present)


def _split(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
    """The encoder's inputs, and which rows are there."""
    rest = dict(inputs)
    present = rest.pop(PRESENT, None)
    return rest, present
