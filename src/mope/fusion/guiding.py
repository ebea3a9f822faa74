"""What fusions share in which inputs guide an encoder by prompts: its prompts, and where they begin."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from mope.config import GuidedConfig
from mope.encoders import Encoder
from mope.fusion.base import Batch, Fusion
from mope.prompts import FusionPrompts, PromptSource
from mope.prompts.mapper import Mapper


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


def prompts_begin(prompts: FusionPrompts) -> bool:
    """Whether some prompts are to see training rows before the first step: those with a mapper, whose norm
    has statistics, and those of a router that begins from rows."""
    return len(prompts.mappers) > 0 or _router_begins(prompts)


def _router_begins(prompts: FusionPrompts) -> bool:
    router = prompts.router
    if router is None:
        return False
    return router.by_clusters or len(router.cross_norms) + len(router.intra_norms) > 0


@torch.no_grad()
def begin_prompts(
    fusion: Fusion, guides: Mapping[str, Sequence[str]], batches: Callable[[], Iterable[Batch]]
) -> None:
    """Start mappers and routers from the features of some rows, see `Mapper.begin` and `Router.begin`.

    Args:
        fusion: whose `guided` prompts they are of; those with neither are left as they are.
        guides: names of the inputs that guide an input, by its name.
        batches: gives the rows, the same ones at each call. Mappers begin first: what enters the layers of a
            guided encoder depends on the mapped prompts.
    """
    begun = {name: prompts for name, prompts in fusion.guided.items() if prompts_begin(prompts)}
    found: dict[str, list[Tensor]] = {guide: [] for name in begun for guide in guides[name]}
    for batch in batches():
        for name, features in found.items():
            features.append(fusion.feature(name, batch).float())
    psi = {name: torch.cat(features) for name, features in found.items()}
    for prompts in begun.values():
        for name, mapper in prompts.mappers.items():
            cast(Mapper, mapper).begin(psi[name])
    for guided, prompts in begun.items():
        if _router_begins(prompts):
            assert prompts.router is not None
            own = {name: psi[name] for name in guides[guided]}
            prompts.router.begin(own, entering(fusion, guided, prompts, own, batches()))
            if prompts.router.intra_norms:  # rows get other prompts now, so that other features enter
                prompts.router.begin_norms(entering(fusion, guided, prompts, own, batches()))


def entering(
    fusion: Fusion,
    guided: str,
    prompts: FusionPrompts,
    psi: Mapping[str, Tensor],
    batches: Iterable[Batch],
) -> list[Tensor]:
    """What enters each layer of a guided encoder for some rows, (N, d_i) each.

    Args:
        fusion: whose it is.
        guided: the encoder's input.
        prompts: its prompts.
        psi: features (N, d_y) of the inputs that guide it, by name.
        batches: the rows.
    """
    found: dict[int, list[Tensor]] = {}
    row = 0
    for batch in batches:
        count = len(next(iter(batch[guided].values())))
        features = {name: feature[row : row + count] for name, feature in psi.items()}
        source = _Listening(prompts.bind(features, fusion.missing(batch)))
        fusion.encoder(guided)(batch[guided], prompts=source)
        for layer, x0 in source.heard.items():
            found.setdefault(layer, []).append(x0.float())
        row += count
    return [torch.cat(found[layer]) for layer in sorted(found)]


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
