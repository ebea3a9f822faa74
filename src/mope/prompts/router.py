"""The multimodal router of every layer (Eq. 3)."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mope.prompts.clusters import place_keys
from mope.prompts.norm import BatchNorm

KeyInit = Literal["learned", "normal", "xavier", "orthogonal", "clusters"]
Similarity = Literal["dot", "cosine"]

_KEY_INITS = {
    "learned": nn.init.orthogonal_,
    "normal": nn.init.normal_,
    "xavier": nn.init.xavier_normal_,
    "orthogonal": nn.init.orthogonal_,
    "clusters": nn.init.orthogonal_,  # until `begin` has seen rows
}


class Embedded(NamedTuple):
    """What the routing of every layer has of a batch before the first layer runs, see `Router.embed`.

    Attributes:
        cross: what the complementary features give, (L, B, ...).
        layers: the same by layer, (B, ...) each.
        keys: by layer, what the rest is multiplied with, (d, k) each.
    """

    cross: Tensor
    layers: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]


class Router(nn.Module):
    """Scores the k experts of each layer from all modalities (Eq. 3, section III-C).

    For layer i, `q = [psi_y W_y^i, x0 W_x^i]` and `r = softmax(q K^T / tau + eps)`, with
    `eps ~ N(0, 1/k^2)` drawn per score while training, and only then.

    The projections `W_y^i` of all layers are stored as one matrix per complementary modality, since psi_y is
    the same for every layer: `embed` computes them in one go.

    What the paper's router lacks, and why experts collapse: pooled features share a large common part, so all
    rows have nearly the same logits, of several units; at tau = 0.1 the softmax is one-hot for all of them
    alike, where it has no gradient. `standardise` takes the common part away, `similarity="cosine"` bounds
    logits by 1 / tau, and `keys="clusters"` begins with experts that see different rows.

    Args:
        layer_dims: width d_i of each layer of the main encoder.
        features: width d_y of each complementary modality's feature, by name.
        experts: number of experts k.
        cross_dim: width d_c of each cross-modal routing embedding; 0 leaves it out.
        intra_dim: width d_i of the intra-modal routing embedding; 0 leaves it out.
        temperature: tau.
        keys: how the routing embeddings K start, and whether they learn. All but `learned` are frozen: a
            buffer, saved with the weights. With k > d_r, `orthogonal` gives orthonormal columns. `clusters`
            are set by `begin`.
        top: keep only the n largest scores, as they are, without renormalising ("hard" routing, section V-F);
            None keeps all ("soft").
        standardise: whether psi and x0 are standardised first, as a batch norm does: by a batch's statistics
            while training, by running ones afterwards.
        similarity: of q and K: their product (Eq. 3), or the cosine of their angle.
        expert_dropout: while training, the probability that a row goes without an expert in a layer.

    Attributes:
        noise: gives a layer's eps (B, k) while training; None to draw it here.
    """

    keys: Tensor
    noise: Callable[[int], Tensor] | None = None

    def __init__(
        self,
        layer_dims: Sequence[int],
        features: Mapping[str, int],
        *,
        experts: int,
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
        if top is not None and not 1 <= top <= experts:
            raise ValueError(f"top must be between 1 and the number of experts ({experts}), not {top}")
        self.experts, self.temperature, self.top = experts, temperature, top
        self.expert_dropout = expert_dropout
        self.cross_dim, self.layers, self.cosine = cross_dim, len(layer_dims), similarity == "cosine"
        self.cross = nn.ModuleDict(
            {name: nn.Linear(dim, self.layers * cross_dim, bias=False) for name, dim in features.items()}
            if cross_dim
            else {}
        )
        self.intra = nn.ModuleList(
            [nn.Linear(dim, intra_dim, bias=False) for dim in layer_dims] if intra_dim else []
        )
        routing_dim = len(features) * cross_dim + intra_dim
        table = torch.empty(self.layers, experts, routing_dim)
        if routing_dim:
            for layer_keys in table:
                _KEY_INITS[keys](layer_keys)
        if keys == "learned":
            self.keys = nn.Parameter(table)
        else:
            self.register_buffer("keys", table)
        self.by_clusters = keys == "clusters" and routing_dim > 0
        self.cross_norms = nn.ModuleDict(
            {name: _norm(features[name]) for name in self.cross} if standardise else {}
        )
        self.intra_norms = nn.ModuleList(
            [_norm(dim) for dim in layer_dims] if standardise and intra_dim else []
        )

    @property
    def shape(self) -> Hashable:
        """What routers have in common that one computation can stand for, each with its own tensors."""
        return (
            self.experts,
            self.temperature,
            self.top,
            self.cosine,
            self.cross_dim,
            len(self.cross),
            tuple(cast(nn.Linear, project).out_features for project in self.intra),
            len(self.intra_norms),
        )

    def embed(self, psi: Mapping[str, Tensor]) -> Embedded:
        """What doesn't depend on a layer's x0, for all layers at once: on a GPU a layer's small steps take as
        long as large ones.

        Args:
            psi: features by name, (B, d_y) each, in float32.

        Returns:
            As `cross` `psi_y W_y^i K_y^T / tau` of every layer, (L, B, k), and as keys `K_x^T`; where the
            cosine needs the queries' length, the queries `psi_y W_y^i` themselves, (L, B, n d_c), and as keys
            `K^T / (|K| tau)`.
        """
        cross, keys = self._of_features(psi), self.keys
        if self.cosine:
            keys = functional.normalize(keys, dim=-1) / self.temperature
        else:
            keys = keys[..., len(self.cross) * self.cross_dim :]
        return Embedded(cross, cross.unbind(0), keys.transpose(1, 2).unbind(0))

    def _of_features(self, psi: Mapping[str, Tensor]) -> Tensor:
        batch = next(iter(psi.values())).shape[0] if psi else 1
        queries = [
            project(self.cross_norms[name](psi[name]) if self.cross_norms else psi[name])
            .unflatten(-1, (self.layers, self.cross_dim))
            .transpose(0, 1)
            for name, project in self.cross.items()
        ]
        if self.cosine:
            return torch.cat(queries, dim=-1) if queries else self.keys.new_zeros(self.layers, batch, 0)
        logits = self.keys.new_zeros(self.layers, batch, self.experts)
        for place, query in enumerate(queries):
            keys = self.keys[..., place * self.cross_dim : (place + 1) * self.cross_dim]
            logits = logits + query @ keys.transpose(1, 2)
        return logits / self.temperature

    def forward(self, layer: int, embedded: Embedded, x0: Tensor) -> Tensor:
        """Routing scores r of one layer. Not under autocast: tau = 0.1 makes a rounding ten times as large.

        Args:
            layer: its index, from 0.
            embedded: what `embed` returned.
            x0: global feature entering the layer, (B, d_i), in float32.

        Returns:
            Scores (B, k); they sum to 1 unless `top` drops some.
        """
        found, keys = embedded.layers[layer], embedded.keys[layer]
        if self.intra and self.intra_norms:
            x0 = self.intra_norms[layer](x0)
        if self.cosine:
            query = found
            if self.intra:
                query = torch.cat([found.expand(x0.shape[0], -1), self.intra[layer](x0)], dim=-1)
            logits = functional.normalize(query, dim=-1) @ keys
        elif self.intra:
            logits = torch.addmm(found, self.intra[layer](x0), keys, alpha=1 / self.temperature)
        else:
            logits = found
        if self.training and self.noise is not None:
            logits = logits + self.noise(layer)
        elif self.training:
            logits = logits + self.draw(x0.shape[0], device=x0.device)
        return self.keep_top(logits.expand(x0.shape[0], -1).softmax(dim=-1))

    def keep_top(self, scores: Tensor) -> Tensor:
        """Scores (..., k) without all but the `top` largest of each row."""
        if self.top is None:
            return scores
        kept = torch.zeros_like(scores).scatter_(-1, scores.topk(self.top, dim=-1).indices, 1.0)
        return scores * kept

    def draw(
        self, *shape: int, device: torch.device | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Noise on logits (*shape, k): eps of Eq. 3; minus infinity for an expert that a row goes without.

        A row that would go without all of them keeps all.
        """
        size = (*shape, self.experts)
        found = torch.randn(size, device=device, generator=generator) / self.experts
        if not self.expert_dropout:
            return found
        left = torch.rand(size, device=device, generator=generator) < self.expert_dropout
        return found.masked_fill(left & ~left.all(dim=-1, keepdim=True), float("-inf"))

    @torch.no_grad()
    def begin(self, psi: Mapping[str, Tensor], x0: Sequence[Tensor]) -> None:
        """Start from the features of some rows: running statistics, and with `keys="clusters"` projections
        and keys, see `place_keys`.

        Args:
            psi: complementary features by name, (N, d_y) each.
            x0: global feature entering each layer, (N, d_i).

        Raises:
            UserError: the rows are fewer than the experts.
        """
        with torch.autocast(self.keys.device.type, enabled=False):
            self._begin(psi, x0)

    def _begin(self, psi: Mapping[str, Tensor], x0: Sequence[Tensor]) -> None:
        if self.cross_norms:
            psi = {name: _begin_norm(self.cross_norms[name], feature) for name, feature in psi.items()}
        x0 = self.begin_norms(x0)
        if self.by_clusters:
            cross = [(psi[name], self.cross[name].weight) for name in self.cross]
            intra = [(x0[layer], project.weight) for layer, project in enumerate(self.intra)]
            place_keys(self.keys, cross, intra)  # type: ignore[arg-type]

    def begin_norms(self, x0: Sequence[Tensor]) -> Sequence[Tensor]:
        """Let the running statistics of what enters each layer be those of some rows, (N, d_i) each.

        Returns:
            The features, standardised where the router standardises them.
        """
        if not self.intra_norms:
            return x0
        return [_begin_norm(norm, feature) for norm, feature in zip(self.intra_norms, x0, strict=True)]


def _norm(dim: int) -> BatchNorm:
    """What standardises a feature. The class token hardly varies in the first layers, but tells much."""
    return BatchNorm(dim, eps=1e-6, affine=False)


def _begin_norm(norm: nn.Module, features: Tensor) -> Tensor:
    """Let a norm's running statistics be those of some rows (N, D), and norm these by them."""
    assert isinstance(norm, BatchNorm)
    norm.begin(features)
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    return (features - mean) * (variance + norm.eps).rsqrt()
