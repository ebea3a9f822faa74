"""One encoder alone: ImgOnly, TextOnly and their prompted twins (section IV-C)."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mope.config import Config
from mope.encoders import Encoder, EncoderOutput, TunedEncoder
from mope.fusion.base import Batch, FusionOutput, InRounds, Last, tune


class Unimodal(InRounds):
    """The main input alone, tuned as its encoder says; other inputs aren't read."""

    has_maps = True
    reentrant = True
    guides = ()

    def __init__(self, encoder: TunedEncoder, main: str):
        super().__init__()
        self.main = main
        self.encoders = nn.ModuleDict({main: encoder})

    @classmethod
    def needs(cls, config: Config) -> list[str]:
        return [config.fusion.main]

    @classmethod
    def build(cls, config: Config, encoders: Mapping[str, Encoder]) -> "Unimodal":
        main = config.fusion.main
        return cls(tune(config, {main: encoders[main]})[main], main)

    def last(self, batch: Batch, psi: Mapping[str, Tensor]) -> Last:
        def finish(outputs: Sequence[EncoderOutput]) -> FusionOutput:
            (output,) = outputs
            return FusionOutput(output.pooled, output.tokens, maps=output.stages)

        return Last([self.encoder(self.main).call(batch[self.main], maps=self.gives_maps)], finish)
