"""Routers that begin with experts for different rows: keys at the centres of clusters."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mope.errors import UserError

_LEAST = 0.05
"""Standard deviation, of standardised features, below which a direction isn't blown up to unit length."""


def place_keys(
    keys: Tensor, cross: Sequence[tuple[Tensor, Tensor]], intra: Sequence[tuple[Tensor, Tensor]]
) -> None:
    """Set projections to whitened principal components, and keys to the centres of what they make of rows.

    So each expert of a layer begins with a share of the rows that are like one another. Layers begin with
    much the same clusters: each turns the complementary features by a rotation of its own, which leaves
    angles as they are, and differs by what enters it, and by which of several good solutions k-means finds.

    Args:
        keys: routing embeddings K of every layer, (L, k, d_r), written to.
        cross: for each complementary modality its features (N, d_y), and the projections of all layers
            (L * d_c, d_y), written to.
        intra: for each layer its features (N, d_i), and its projection (d_i', d_i), written to; or empty.

    Raises:
        UserError: there are fewer rows than experts.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    layers, experts, _ = keys.shape
    rows = (intra or cross)[0][0].shape[0]
    if rows < experts:
        raise UserError(
            f"fusion.keys: clusters finds {experts} clusters, but there are {rows} training rows: "
            "give more rows, fewer fusion.experts, or fusion.keys: orthogonal."
        )
    for features, weight in cross:
        width = weight.shape[0] // layers
        components = _components(features, width)
        rotations = [nn.init.orthogonal_(torch.empty(width, len(components))) for _ in range(layers)]
        weight.copy_(torch.cat(rotations).to(components) @ components)
    for features, weight in intra:
        components = _components(features, weight.shape[0])
        weight.zero_()[: len(components)] = components
    queries = (
        torch.cat([_by_layer(features @ weight.T, layers) for features, weight in cross], -1)
        if cross
        else None
    )
    for layer in range(layers):
        parts = [] if queries is None else [queries[layer]]
        if intra:
            features, weight = intra[layer]
            parts.append(features @ weight.T)
        query = functional.normalize(torch.cat(parts, dim=-1), dim=-1)
        seed = int(torch.randint(2**31, ()))
        found: Any = KMeans(experts, random_state=seed)  # its stubs know one type of each argument
        with warnings.catch_warnings():
            # Rows may have fewer different features than there are experts: then some begin alike.
            warnings.simplefilter("ignore", ConvergenceWarning)
            centres = found.fit(query.cpu().numpy()).cluster_centers_
        keys[layer] = functional.normalize(torch.from_numpy(centres).to(keys), dim=-1)


def _by_layer(queries: Tensor, layers: int) -> Tensor:
    """(N, L * d) -> (L, N, d)."""
    return queries.unflatten(-1, (layers, -1)).transpose(0, 1)


def _components(features: Tensor, count: int) -> Tensor:
    """Directions of largest variance of features (N, D), as long as makes their variance 1: (<= count, D)."""
    centred = features - features.mean(dim=0)
    _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)
    lengths = (sizes / len(features) ** 0.5).clamp(min=_LEAST)
    return (directions / lengths.unsqueeze(1))[:count]
