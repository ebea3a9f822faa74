"""More experts for a trained model: the old ones are kept, new ones begin as their copies."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mope.errors import UserError
from mope.prompts.router import Router

_APART = 0.1
"""Standard deviation of what is added to a new key's elements, beside keys of length 1; less where a small
temperature makes more of it."""


def grow(
    state: Mapping[str, Tensor], router: Router, prefix: str = "", top: int | None = None
) -> dict[str, Tensor]:
    """A state whose prompts have more experts.

    The first k are as they were. Each of the others is the copy of one of them, so the model begins nearly as
    it was: a row's mixture changes by as much as the new keys lie apart from the old. That lets the router
    tell them apart from the first step on; with keys alike, copies would be given the same rows forever.

    Args:
        state: tensors by name; those of `Experts` and `Router` that have an axis of experts are grown.
        router: of the grown model; it has a multiple of the experts there are.
        prefix: what the names of `FusionPrompts`' tensors begin with.
        top: how many experts a row was given; None for all. Copies share their row's score, so with as few
            as before part of a row's mixture would be lost.

    Raises:
        UserError: the number isn't a multiple, or the router's `top` hasn't grown as well.
    """
    keys = f"{prefix}router.keys"
    if keys not in state:
        raise UserError(
            "training.begin_from: a run of fewer than two experts has no router, and nothing to be grown: "
            "train anew."
        )
    there, experts = state[keys].shape[1], router.experts
    if experts % there:
        raise UserError(
            f"fusion.experts is {experts}, but the run to begin from has {there}: take a multiple of it."
        )
    grown = dict(state)
    copies = experts // there
    given = (top or there) * copies
    if router.top is not None and copies > 1 and router.top < given:
        raise UserError(
            f"fusion.top is {router.top}, and the run to begin from gives a row {top or there} of "
            f"its {there} experts: with {experts} set it to {given}, since copies share their row's score."
        )
    added = state[keys].repeat(1, copies, 1)
    noise = min(_APART, router.temperature / 2) * torch.randn_like(added)
    noise[:, :there] = 0
    grown[keys] = added + noise
    for name, tensor in state.items():
        if name.startswith(f"{prefix}experts.prompts."):
            grown[name] = tensor.repeat(copies, 1, 1)
    return grown
