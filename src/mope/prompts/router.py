"""The multimodal router of every layer (Eq. 3)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

KeyInit = Literal["learned", "normal", "xavier", "orthogonal"]

_KEY_INITS = {
    "learned": nn.init.orthogonal_,
    "normal": nn.init.normal_,
    "xavier": nn.init.xavier_normal_,
    "orthogonal": nn.init.orthogonal_,
}


class Router(nn.Module):
    """Scores the k experts of each layer from all modalities (Eq. 3, section III-C).

    For layer i, `q = [psi_y W_y^i, x0 W_x^i]` and `r = softmax(q K^T / tau + eps)`, with
    `eps ~ N(0, 1/k^2)` drawn per score while training, and only then.

    The projections `W_y^i` of all layers are stored as one matrix per complementary modality, since psi_y is
    the same for every layer: `embed` computes their part of all layers' logits in one go.

    Args:
        layer_dims: width d_i of each layer of the main encoder.
        features: width d_y of each complementary modality's feature, by name.
        experts: number of experts k.
        cross_dim: width d_c of each cross-modal routing embedding; 0 leaves it out.
        intra_dim: width d_i of the intra-modal routing embedding; 0 leaves it out.
        temperature: tau.
        keys: how the routing embeddings K start, and whether they learn. All but `learned` are frozen: a
            buffer, saved with the weights. With k > d_r, `orthogonal` gives orthonormal columns.
        top: keep only the n largest scores, as they are, without renormalising ("hard" routing, section V-F);
            None keeps all ("soft").
    """

    keys: Tensor

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
    ):
        super().__init__()
        if top is not None and not 1 <= top <= experts:
            raise ValueError(f"top must be between 1 and the number of experts ({experts}), not {top}")
        self.experts, self.temperature, self.top = experts, temperature, top
        self.cross_dim, self.layers = cross_dim, len(layer_dims)
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

    def embed(self, psi: Mapping[str, Tensor]) -> Tensor:
        """What the complementary features alone add to the logits of every layer, in one product each.

        Args:
            psi: features by name, (B, d_y) each, in float32.

        Returns:
            `[psi_y W_y^i] K_y^T / tau` of every layer, (L, B, k).
        """
        batch = next(iter(psi.values())).shape[0] if psi else 1
        logits = self.keys.new_zeros(self.layers, batch, self.experts)
        for place, (name, project) in enumerate(self.cross.items()):
            query = project(psi[name]).unflatten(-1, (self.layers, self.cross_dim)).transpose(0, 1)
            keys = self.keys[..., place * self.cross_dim : (place + 1) * self.cross_dim]
            logits = logits + query @ keys.transpose(1, 2)
        return logits / self.temperature

    def forward(self, layer: int, cross: Tensor, x0: Tensor) -> Tensor:
        """Routing scores r of one layer. Not under autocast: tau = 0.1 makes a rounding ten times as large.

        Args:
            layer: its index, from 0.
            cross: what `embed` returned, (L, B, k).
            x0: global feature entering the layer, (B, d_i), in float32.

        Returns:
            Scores (B, k); they sum to 1 unless `top` drops some.
        """
        logits = cross[layer]
        if self.intra:
            keys = self.keys[layer, :, len(self.cross) * self.cross_dim :]
            logits = torch.addmm(logits, self.intra[layer](x0), keys.T, alpha=1 / self.temperature)
        if self.training:
            logits = logits + torch.randn(x0.shape[0], self.experts, device=x0.device) / self.experts
        scores = logits.expand(x0.shape[0], -1).softmax(dim=-1)
        if self.top is None:
            return scores
        kept = torch.zeros_like(scores).scatter_(-1, scores.topk(self.top, dim=-1).indices, 1.0)
        return scores * kept
