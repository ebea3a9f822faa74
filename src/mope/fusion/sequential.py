"""Sequential fusion: complementary inputs first, whose features guide the main encoder (section III-B)."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mope.config import Config, SequentialConfig
from mope.encoders import Encoder, EncoderOutput, TunedEncoder
from mope.fusion.base import Batch, FusionOutput, InRounds, Last, require_guided, tune
from mope.fusion.guiding import begin_prompts, guiding_prompts, prompts_begin
from mope.prompts import FusionPrompts


class Sequential(InRounds):
    """MoPE and its relatives: which prompts (Eq. 2) times how the encoders are tuned.

    MoPE is all three prompts over frozen encoders, the complementary ones with deep prompts of their own;
    P-SeqFuse is the same without the dynamic prompt; SeqFuse is the mapped prompt alone with every encoder
    tuned in full.

    Args:
        encoders: tuned encoders by input name; the main one's own prompts, if any, aren't used.
        main: name of the main input.
        prompts: the prompts of the main encoder.
        sees_all: whether the guides' features stand beside the main encoder's in the fused one, so that a
            linear head has at once what late fusion has.

    Attributes:
        guides: names of the inputs that guide it, or that the head sees; none where neither does, and then
            they aren't encoded.
    """

    has_maps = True
    reentrant = True

    def __init__(
        self,
        encoders: Mapping[str, TunedEncoder],
        main: str,
        prompts: FusionPrompts,
        sees_all: bool = False,
    ):
        super().__init__()
        self.main, self.sees_all = main, sees_all
        self.encoders = nn.ModuleDict(dict(encoders))
        self.prompts = prompts
        others = [name for name in self.encoders if name != main]
        self.guides = others if prompts.reads_features or sees_all else []
        for name in self.encoders:
            if name != main and name not in self.guides:
                self.encoder(name).requires_grad_(False)

    @classmethod
    def build(cls, config: Config, encoders: Mapping[str, Encoder]) -> "Sequential":
        settings = config.fusion
        assert isinstance(settings, SequentialConfig)
        main = settings.main
        require_guided(config, encoders)
        # Drawn in this order, methods that differ in their experts begin alike in all else.
        tuned = tune(config, encoders, without_stand_in=[main])
        prompts = guiding_prompts(settings, encoders, main, config.complementary)
        return cls(tuned, main, prompts, settings.head_sees == "all")

    @property
    def feature_dim(self) -> int:
        widths = {name: self.encoder(name).pooled_dim for name in [self.main, *self.guides]}
        return sum(widths.values()) if self.sees_all else widths[self.main]

    def last(self, batch: Batch, psi: Mapping[str, Tensor]) -> Last:
        source = self.prompts.bind(psi, self.missing(batch))

        def finish(outputs: Sequence[EncoderOutput]) -> FusionOutput:
            (output,) = outputs
            features = output.pooled
            if self.sees_all:
                features = torch.cat([features.float(), *(psi[name].float() for name in self.guides)], dim=1)
            return FusionOutput(features, output.tokens, source.scores, output.stages)

        return Last([self.encoder(self.main).call(batch[self.main], source, self.gives_maps)], finish)

    @property
    def guided(self) -> Mapping[str, FusionPrompts]:
        return {self.main: self.prompts}

    @property
    def begins_from_rows(self) -> bool:
        return prompts_begin(self.prompts)

    def begin(self, batches: Callable[[], Iterable[Batch]]) -> None:
        """Start the mappers and the router from the features of some rows, see `begin_prompts`."""
        begin_prompts(self, {self.main: self.guides}, batches)
