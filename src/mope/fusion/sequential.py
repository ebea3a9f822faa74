"""Sequential fusion: complementary inputs first, whose features guide the main encoder (section III-B)."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mope.config import Config, SequentialConfig
from mope.encoders import Encoder, EncoderOutput, TunedEncoder
from mope.fusion.base import Batch, FusionOutput, InRounds, Last, require_guided, tune
from mope.prompts import FusionPrompts, PromptSource


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
        guides: names of the inputs that guide it; none where no prompt depends on them, and then they aren't
            encoded.
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
        self.guides = [name for name in self.encoders if name != main] if prompts.reads_features else []
        for name in self.encoders:
            if name != main and name not in self.guides:
                self.encoder(name).requires_grad_(False)

    @classmethod
    def build(cls, config: Config, encoders: Mapping[str, Encoder]) -> "Sequential":
        settings = config.fusion
        assert isinstance(settings, SequentialConfig)
        main = settings.main
        require_guided(config, encoders)
        prompts = FusionPrompts(
            encoders[main].layer_dims,
            {name: encoders[name].pooled_dim for name in config.complementary},
            parts=settings.prompts,
            length=settings.length,
            experts=settings.experts,
            patch_area=encoders[main].patch_area,
            dropout=settings.dropout,
            start=settings.start,
            joining=settings.joining,
            cross_dim=settings.cross_dim,
            intra_dim=settings.intra_dim,
            temperature=settings.tau,
            keys=settings.keys,
            top=settings.top,
            standardise=settings.standardise,
            similarity=settings.similarity,
        )
        tuned = tune(config, encoders, without_stand_in=[main])
        return cls(tuned, main, prompts, settings.head_sees == "all")

    @property
    def feature_dim(self) -> int:
        widths = {name: self.encoder(name).pooled_dim for name in [self.main, *self.guides]}
        return sum(widths.values()) if self.sees_all else widths[self.main]

    def settle_prompts(self) -> None:
        super().settle_prompts()
        self.prompts.settle(self.encoder(self.main).encoder)

    def last(self, batch: Batch, psi: Mapping[str, Tensor]) -> Last:
        source = self.prompts.bind(psi, self.missing(batch))

        def finish(output: EncoderOutput) -> FusionOutput:
            features = output.pooled
            if self.sees_all:
                features = torch.cat([features.float(), *(psi[name].float() for name in self.guides)], dim=1)
            return FusionOutput(features, output.tokens, source.scores, output.stages)

        return Last(self.encoder(self.main).call(batch[self.main], source, self.gives_maps), finish)

    @property
    def begins_from_rows(self) -> bool:
        router = self.prompts.router
        return router is not None and (router.by_clusters or len(router.cross_norms) > 0)

    @torch.no_grad()
    def begin(self, batches: Iterable[Batch]) -> None:
        """Start the router from the features of some rows, see `Router.begin`."""
        router = self.prompts.router
        assert router is not None
        found: dict[str, list[Tensor]] = {name: [] for name in self.guides}
        entering: list[list[Tensor]] = [[] for _ in range(router.layers)]
        for batch in batches:
            psi = {name: self.feature(name, batch) for name in self.guides}
            source = _Listening(self.prompts.bind(psi, self.missing(batch)))
            self.encoders[self.main](batch[self.main], prompts=source)
            for name, feature in psi.items():
                found[name].append(feature.float())
            for layer, x0 in source.heard.items():
                entering[layer].append(x0.float())
        router.begin(
            {name: torch.cat(features) for name, features in found.items()},
            [torch.cat(features) for features in entering],
        )


class _Listening(PromptSource):
    """A source that keeps the global features it is asked with.

    Attributes:
        heard: x0 (B, d_i) by layer.
    """

    def __init__(self, source: PromptSource):
        self.source = source
        self.heard: dict[int, Tensor] = {}

    def __call__(self, layer: int, x0: Tensor) -> Tensor | None:
        self.heard[layer] = x0
        return self.source(layer, x0)

    def bias(self, layer: int) -> Tensor | None:
        return self.source.bias(layer)
