"""The decomposed prompts of the main encoder (Eq. 2)."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mope.graphs import is_recorded
from mope.prompts.deep import prompt_bound
from mope.prompts.experts import Experts
from mope.prompts.kept import KeptPrompts, Projects
from mope.prompts.mapper import Mapper
from mope.prompts.offsets import Start, make_offsets
from mope.prompts.router import KeyInit, Router, Similarity
from mope.prompts.source import Projected, PromptSource

PromptPart = Literal["static", "dynamic", "mapped"]
Joining = Literal["beside", "added"]


class FusionPrompts(nn.Module):
    """The decomposed prompts `[P_s, P_d, P_m]` of every layer of the main encoder (Eq. 2).

    Any subset of the three parts, for any number of complementary modalities: one static prompt (l tokens),
    one dynamic prompt (l tokens, mixed from k experts), one mapped prompt (1 token) per modality.

    Args:
        layer_dims: width d_i of each layer of the main encoder.
        features: width d_y of each complementary modality's feature, by name.
        parts: which prompts to use.
        length: prompt length l, of the static prompt and of each expert.
        experts: k. With 1 the dynamic prompt is one vanilla prompt without a router; with 0 there is none.
        patch_area: pixels of a patch of the main encoder, for the start of the prompts.
        dropout: dropout probability on all prompts.
        start: how loud all prompts begin, see `Offsets`.
        joining: whether the dynamic prompt stands beside the static one (Eq. 2), or is added to it, its
            experts starting from zero: then training starts as without experts.
        cross_dim, intra_dim, temperature, keys, top, standardise, similarity, expert_dropout: see `Router`.
    """

    def __init__(
        self,
        layer_dims: Sequence[int],
        features: Mapping[str, int],
        *,
        parts: Sequence[PromptPart] = ("static", "dynamic", "mapped"),
        length: int = 6,
        experts: int = 4,
        patch_area: int = 1,
        dropout: float = 0.1,
        start: Start = "published",
        joining: Joining = "beside",
        cross_dim: int = 8,
        intra_dim: int = 2,
        temperature: float = 0.1,
        keys: KeyInit = "orthogonal",
        top: int | None = None,
        standardise: bool = False,
        similarity: Similarity = "dot",
        expert_dropout: float = 0.0,
    ):
        super().__init__()
        self.length, bound = length, prompt_bound(layer_dims[0], patch_area)
        # Drawn first: how many experts there are, and how long prompts, leaves mappers as they are.
        mapped = features if "mapped" in parts else {}
        mappers = nn.ModuleDict({name: Mapper(dim, layer_dims) for name, dim in mapped.items()})
        dynamic = "dynamic" in parts and experts > 0
        self.added = dynamic and joining == "added" and "static" in parts
        self.static = (
            nn.ParameterList(torch.empty(length, dim).uniform_(-bound, bound) for dim in layer_dims)
            if "static" in parts
            else None
        )
        self.experts = (
            Experts(layer_dims, experts=experts, length=length, bound=0.0 if self.added else bound)
            if dynamic
            else None
        )
        self.router = (
            Router(
                layer_dims,
                features,
                experts=experts,
                cross_dim=cross_dim,
                intra_dim=intra_dim,
                temperature=temperature,
                keys=keys,
                top=top,
                standardise=standardise,
                similarity=similarity,
                expert_dropout=expert_dropout,
            )
            if dynamic and experts > 1
            else None
        )
        self.mappers = mappers
        self.dropout = nn.Dropout(dropout)
        self.lengths = [length] * self._own + [1] * len(self.mappers)
        self.offsets = make_offsets(start, len(layer_dims), self.lengths)
        self.projected = KeptPrompts()

    @property
    def _own(self) -> int:
        """How many prompts of length l stand in front of the mapped ones."""
        return (self.static is not None) + (self.experts is not None and not self.added)

    @property
    def shape(self) -> Hashable:
        """What prompts have in common that `StackedPrompts` can give at once; None for those that learn, and
        where there are none."""
        if self.training or not sum(self.lengths):
            return None
        first = None if self.experts is None else tuple(self.experts.prompts[0].shape)
        router = None if self.router is None else self.router.shape
        return self.length, self.static is None, first, self.added, len(self.mappers), router

    @property
    def reads_features(self) -> bool:
        """Whether any prompt depends on the complementary features."""
        return len(self.mappers) > 0 or (self.router is not None and len(self.router.cross) > 0)

    def settle(self, encoder: Projects) -> None:
        """Project static prompts by the main encoder's layers, see `KeptPrompts.keep`.

        Of static prompts that dynamic ones are added to, nothing is the same for every row.
        """
        static = nn.ParameterList() if self.static is None or self.added else self.static
        self.projected.keep(static, encoder)

    def bind(self, psi: Mapping[str, Tensor], missing: Mapping[str, Tensor] | None = None) -> "BoundPrompts":
        """The prompt source for one batch.

        Args:
            psi: complementary features by name, (B, d_y) each.
            missing: rows (B,), boolean, whose feature stands in for an input that isn't there, by name: they
                don't see its mapped prompt.
        """
        return BoundPrompts(self, psi, missing)


class BoundPrompts(PromptSource):
    """`FusionPrompts` with the complementary features of one batch.

    What doesn't depend on the layer (mapped prompts, cross-modal routing embeddings) is computed once, here.

    Attributes:
        scores: routing scores by layer, (B, k) each, as the encoder's forward pass produced them; empty
            without a router.
    """

    def __init__(
        self, prompts: FusionPrompts, psi: Mapping[str, Tensor], missing: Mapping[str, Tensor] | None = None
    ):
        self.prompts = prompts
        self._hidden = self._hide(missing or {})
        self.mapped = [mapper(psi[name].float()) for name, mapper in prompts.mappers.items()]
        self._scores: dict[int, Tensor] = {}
        self._cast: dict[tuple[int, int, torch.dtype], Tensor] = {}
        if prompts.router is not None:
            features = {name: feature.float() for name, feature in psi.items()}
            device = next(iter(features.values())).device if features else prompts.router.keys.device
            with torch.autocast(device.type, enabled=False):
                self.embedded = prompts.router.embed(features)

    def _hide(self, missing: Mapping[str, Tensor]) -> Tensor | None:
        """Minus infinity for the mapped prompts of inputs that aren't there, (B, P); None where all are."""
        prompts = self.prompts
        found = [missing.get(name) for name in prompts.mappers]
        first = next((rows for rows in found if rows is not None), None)
        if first is None:
            return None
        # A graph can't depend on what is in a batch; there a bias that hides nothing does no harm.
        if not is_recorded() and not any(rows is not None and bool(rows.any()) for rows in found):
            return None
        before = first.new_zeros(first.shape[0], sum(prompts.lengths) - len(found))
        mapped = [torch.zeros_like(first) if rows is None else rows for rows in found]
        hidden = torch.cat([before, torch.stack(mapped, dim=1)], dim=1)
        return torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, float("-inf"))

    def bias(self, layer: int) -> Tensor | None:
        offsets = self.prompts.offsets
        if offsets is None:
            return self._hidden
        return offsets(layer) if self._hidden is None else offsets(layer) + self._hidden

    @property
    def scores(self) -> list[Tensor]:
        return [self._scores[layer] for layer in sorted(self._scores)]

    def take(self, layer: int, scores: Tensor) -> None:
        """Note a layer's routing scores (B, k)."""
        self._scores[layer] = scores

    def __call__(self, layer: int, x0: Tensor) -> Tensor | None:
        """Prompts (B, P, d_i) of one layer, in the order `[P_s, P_d, P_m]`; None if no part is on."""
        return self._prompts(layer, x0)

    def kept(self, layer: int, x0: Tensor) -> Projected | None:
        return None if self.prompts.static is None else self.prompts.projected.find(layer, x0)

    def rest(self, layer: int, x0: Tensor) -> Tensor | None:
        return self._prompts(layer, x0, static=False)

    def _mapped(self, place: int, layer: int, dtype: torch.dtype) -> Tensor:
        """A mapped prompt (B, 1, d_i) in a dtype; layers of one width share it, so it is cast once."""
        prompt = self.mapped[place][layer]
        key = place, prompt.shape[-1], dtype
        if key not in self._cast:
            self._cast[key] = prompt.to(dtype)
        return self._cast[key]

    def _prompts(self, layer: int, x0: Tensor, static: bool = True) -> Tensor | None:
        prompts, parts = self.prompts, []
        if static and prompts.static is not None:
            parts.append(prompts.static[layer].expand(x0.shape[0], -1, -1))
        if prompts.experts is not None:
            # In full precision: autocast would also round every expert anew in each pass, to mix a few.
            with torch.autocast(x0.device.type, enabled=False):
                if prompts.router is not None:
                    scores = prompts.router(layer, self.embedded, x0.float())
                    self.take(layer, scores)
                else:
                    scores = x0.new_ones(x0.shape[0], 1, dtype=torch.float32)
                mixed = prompts.experts(layer, scores)
            if prompts.added:
                parts[-1] = parts[-1] + mixed
            else:
                parts.append(mixed.to(x0.dtype))
        parts += [self._mapped(place, layer, x0.dtype) for place in range(len(self.mapped))]
        return prompts.dropout(torch.cat(parts, dim=1).to(x0.dtype)) if parts else None
