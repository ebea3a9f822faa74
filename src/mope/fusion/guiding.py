"""What fusions share in which inputs guide an encoder by prompts: its prompts, and where routers begin."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mope.config import GuidedConfig
from mope.encoders import Encoder
from mope.fusion.base import Batch, Fusion
from mope.prompts import FusionPrompts, PromptSource


def guiding_prompts(
    settings: GuidedConfig, encoders: Mapping[str, Encoder], guided: str, guides: Sequence[str]
) -> FusionPrompts:
    """The prompts of one encoder, as a config says.

    Args:
        settings: the fusion's.
        encoders: by input name.
        guided: the input whose encoder gets them.
        guides: the inputs whose features make them.
    """
    return FusionPrompts(
        encoders[guided].layer_dims,
        {name: encoders[name].pooled_dim for name in guides},
        parts=settings.prompts,
        length=settings.length,
        experts=settings.experts,
        patch_area=encoders[guided].patch_area,
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
        expert_dropout=settings.expert_dropout,
    )


def router_begins(prompts: FusionPrompts) -> bool:
    """Whether the router of some prompts is to see training rows before the first step."""
    router = prompts.router
    if router is None:
        return False
    return router.by_clusters or len(router.cross_norms) + len(router.intra_norms) > 0


@torch.no_grad()
def begin_routers(fusion: Fusion, guides: Mapping[str, Sequence[str]], batches: Iterable[Batch]) -> None:
    """Start routers from the features of some rows, see `Router.begin`.

    Args:
        fusion: whose `guided` prompts they are of; those without a router are left as they are.
        guides: names of the inputs that guide an input, by its name.
        batches: the rows, gone through once.
    """
    begun = {name: prompts for name, prompts in fusion.guided.items() if router_begins(prompts)}
    needed = dict.fromkeys(guide for name in begun for guide in guides[name])
    found: dict[str, list[Tensor]] = {name: [] for name in needed}
    entering: dict[str, dict[int, list[Tensor]]] = {name: {} for name in begun}
    for batch in batches:
        psi = {name: fusion.feature(name, batch) for name in needed}
        for name, feature in psi.items():
            found[name].append(feature.float())
        for name, prompts in begun.items():
            own = {guide: psi[guide] for guide in guides[name]}
            source = _Listening(prompts.bind(own, fusion.missing(batch)))
            fusion.encoder(name)(batch[name], prompts=source)
            for layer, x0 in source.heard.items():
                entering[name].setdefault(layer, []).append(x0.float())
    for name, prompts in begun.items():
        assert prompts.router is not None
        prompts.router.begin(
            {guide: torch.cat(found[guide]) for guide in guides[name]},
            [torch.cat(entering[name][layer]) for layer in range(prompts.router.layers)],
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
