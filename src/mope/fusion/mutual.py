"""Fusion in both directions: every encoder is guided by the others, and the head is given all of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mope.config import Config, MutualConfig
from mope.encoders import Encoder, EncoderOutput, TunedEncoder
from mope.fusion.base import Batch, FusionOutput, InRounds, Last, require_guided, tune
from mope.fusion.guiding import begin_prompts, guiding_prompts, prompts_begin
from mope.prompts import FusionPrompts


class Mutual(InRounds):
    """Two directed fusions over the same two encoders, features side by side: the paper's has one of them.

    Each encoder runs twice with the same weights. First alone, with the deep prompts of its own if it has
    any: that feature guides. Then guided by what the other said alone, as the main encoder of `Sequential`
    is: that feature goes to the head. So neither direction waits for the other. Of more than two inputs each
    is guided by all others. An input whose encoder takes no prompts guides, but isn't guided: the head is
    given what it says alone.

    Args:
        encoders: tuned encoders by input name.
        main: name of the main input; it matters for the learning rates, and comes first.
        prompts: the prompts of each encoder that is guided, by input name.

    Attributes:
        guides: names of the inputs that guide any other; the rest are encoded once.
        alone: names of those that aren't guided.
    """

    reentrant = True

    def __init__(self, encoders: Mapping[str, TunedEncoder], main: str, prompts: Mapping[str, FusionPrompts]):
        super().__init__()
        self.main = main
        self.encoders = nn.ModuleDict(dict(encoders))
        self.prompts = nn.ModuleDict(dict(prompts))
        self._guides_of = {
            name: [other for other in encoders if other != name] if own.reads_features else []
            for name, own in prompts.items()
        }
        self.guides = [name for name in encoders if any(name in of for of in self._guides_of.values())]
        self.alone = [name for name in self.guides if name not in prompts]
        for name, encoder in encoders.items():
            if name not in self.guides and name in prompts:
                _leave_out_own(encoder)
            elif name not in self.guides:
                encoder.requires_grad_(False)

    @classmethod
    def build(cls, config: Config, encoders: Mapping[str, Encoder]) -> "Mutual":
        settings = config.fusion
        assert isinstance(settings, MutualConfig)
        require_guided(config, encoders, guides_too=True)
        order = [settings.main, *config.complementary]
        tuned = tune(config, encoders)  # first, as in `Sequential`
        prompts = {
            name: guiding_prompts(settings, encoders, name, [other for other in encoders if other != name])
            for name in order
            if encoders[name].layer_dims
        }
        return cls(tuned, settings.main, prompts)

    @property
    def feature_dim(self) -> int:
        return sum(self.encoder(name).pooled_dim for name in [*self.prompts, *self.alone])

    @property
    def guided(self) -> Mapping[str, FusionPrompts]:
        return {name: cast(FusionPrompts, prompts) for name, prompts in self.prompts.items()}

    def last(self, batch: Batch, psi: Mapping[str, Tensor]) -> Last:
        missing = self.missing(batch)
        sources = {
            name: prompts.bind({guide: psi[guide] for guide in self._guides_of[name]}, missing)
            for name, prompts in self.guided.items()
        }

        def finish(outputs: Sequence[EncoderOutput]) -> FusionOutput:
            guided = [output.pooled for output in reversed(outputs)]
            features = torch.cat([f.float() for f in (*guided, *(psi[name] for name in self.alone))], dim=1)
            scores = [layer for source in sources.values() for layer in source.scores]
            return FusionOutput(features, outputs[-1].tokens, scores)

        calls = [self.encoder(name).call(batch[name], source) for name, source in sources.items()]
        # The main input last: of two that share an encoder, who watches it is left with the main one's.
        return Last(calls[::-1], finish)

    @property
    def begins_from_rows(self) -> bool:
        return any(map(prompts_begin, self.guided.values()))

    def begin(self, batches: Callable[[], Iterable[Batch]]) -> None:
        """Start the mappers and routers from the features of some rows, see `begin_prompts`."""
        begin_prompts(self, self._guides_of, batches)


def _leave_out_own(encoder: TunedEncoder) -> None:
    """Don't train what only an encoder that guides has, which nobody would hear."""
    if encoder.prompts is not None:
        encoder.prompts.requires_grad_(False)
    if encoder.stand_in is not None:
        encoder.stand_in.requires_grad_(False)
