"""What Theorems 1 and 2 (Appendix C) state, measured on one layer.

Theorem 1: with separated optimal maps, a global prompt's errors on two instances add up to more than the two
least errors. Theorem 2: with experts whose maps' convex hull holds the optimal ones, some routing reaches the
least error on every instance.
"""

from typing import Any

import torch
from torch import Tensor

from mope.studies.theory.fit import fit_experts, fit_prompts, fit_routed
from mope.studies.theory.layer import Layer, distance, floor

WANTED = {
    "each its own prompt's": "what a prompt drawn for each instance gives",
    "one prompt's": "what one prompt gives for both: they differ, and a global prompt has them",
    "half the tokens": "attention spread over a half of the tokens, drawn for each instance",
}
"""Kinds of optimal maps A*(x) that pairs of instances are given."""

STARTS = 2


def draw(layer: Layer, *shape: int, generator: torch.Generator) -> Tensor:
    """Prompts (..., d) for a layer."""
    found = torch.randn(*shape, layer.width, generator=generator, dtype=torch.float64)
    return layer.scale * found.to(layer.queries.dtype)


def wanted_maps(layer: Layer, kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Optimal maps (M, H, N, N) of pairs of instances, and prompts (M, d) to begin a search from."""
    own = draw(layer, layer.instances, generator=generator)
    if kind == "one prompt's":
        own = own[::2].repeat_interleave(2, dim=0)
    if kind != "half the tokens":
        return layer.maps(own.unsqueeze(1)), own
    tokens = layer.logits.shape[-1]
    order = torch.rand(layer.instances, tokens, generator=generator).argsort(dim=1)
    chosen = (order < tokens // 2).to(own.dtype) / (tokens // 2)
    return chosen[:, None, None, :].expand_as(layer.logits), own


def theorem_one(layer: Layer, generator: torch.Generator, steps: int = 100) -> dict[str, dict[str, float]]:
    """Errors of the best global prompt and of each instance's own, over pairs of instances; l = 1.

    Returns:
        By kind of `WANTED`, means over pairs: `separation` (delta), `bare` (the errors without prompts),
        `floor` (what no prompts go below), `own` (the two least errors), `shared` (with a global prompt),
        `gap` (shared - own) and `least_gap`. Errors are sums over the two instances.
    """
    found = {}
    for kind in WANTED:
        wanted, start = wanted_maps(layer, kind, generator)
        more = [draw(layer, layer.instances, generator=generator) for _ in range(STARTS - 1)]
        own = fit_prompts(layer, wanted, [start, *more], 1, steps)
        pairs = [start[::2], start[1::2], (start[::2] + start[1::2]) / 2, *(one[::2] for one in more)]
        shared = fit_prompts(layer, wanted, pairs, 2, steps)
        own = torch.minimum(own, shared)  # a global prompt may be an instance's own
        both = {
            "bare": distance(layer.bare, wanted),
            "floor": floor(layer.bare, wanted),
            "own": own,
            "shared": shared,
        }
        sums = {name: errors.unflatten(0, (-1, 2)).sum(dim=1) for name, errors in both.items()}
        gap = sums["shared"] - sums["own"]
        found[kind] = {
            "separation": float(distance(wanted[::2], wanted[1::2]).mean()),
            **{name: float(value.mean()) for name, value in sums.items()},
            "gap": float(gap.mean()),
            "least_gap": float(gap.min()),
        }
    return found


MIXINGS = ("prompts", "maps", "router", "router, new instances")


def theorem_two(
    layer: Layer, guide: Tensor, dimension: int, ks: list[int], generator: torch.Generator, steps: int = 100
) -> list[dict[str, Any]]:
    """Errors of k experts, where instances' own prompts lie in an affine space of m dimensions.

    The optimal maps are those of the instances' own prompts `P_x = P_0 + B u_x`, so the least errors are 0.
    `u_x` is read from what guides the instance. The second half of the instances is new to the router.

    Args:
        layer: with M instances.
        guide: psi of each, (M, d_y).
        dimension: m; with d, nothing is known of them but that they are prompts.
        ks: numbers of experts.

    Returns:
        Of each k the mean errors over instances by `MIXINGS`, and `global`, that of one prompt for all.
    """
    half, dtype = layer.instances // 2, layer.queries.dtype
    reads = torch.randn(guide.shape[1], dimension, generator=generator, dtype=torch.float64).to(dtype)
    places = guide @ reads
    places = (places - places.mean(dim=0)) / places.std()
    basis = draw(layer, dimension, generator=generator) / dimension**0.5
    own = draw(layer, 1, generator=generator) / 2 + places @ basis
    wanted = layer.maps(own.unsqueeze(1))
    seen = layer.some(half)
    x0 = layer.queries.flatten(1, 1).mean(dim=2).flatten(1)
    one = [own[:half].mean(dim=0, keepdim=True), *(own[place : place + 1] for place in range(STARTS - 1))]
    shared = float(fit_prompts(seen, wanted[:half], one, half, steps).mean())
    found = []
    for k in ks:
        starts = one if k == 1 else [_experts(own[:half], k, generator) for _ in range(STARTS)]
        entry: dict[str, Any] = {"k": k, "global": shared}
        for mixing in MIXINGS[:2]:
            errors, _ = fit_experts(seen, wanted[:half], starts, mixing, steps)
            entry[mixing] = float(errors.mean())
        if k > 1:
            errors = fit_routed(layer, wanted, (guide, x0), starts, steps, half)
            entry["router"], entry["router, new instances"] = (
                float(part.mean()) for part in (errors[:half], errors[half:])
            )
        found.append(entry)
    return found


def _experts(own: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Where k experts begin: at some instances' own prompts, a little beyond their mean."""
    order = torch.randperm(len(own), generator=generator)[:k]
    chosen = own[order]
    if k > len(own):
        chosen = own[torch.randint(len(own), (k,), generator=generator)]
    return own.mean(dim=0) + 1.5 * (chosen - own.mean(dim=0))
