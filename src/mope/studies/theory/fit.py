"""The best prompts for wanted maps of attention, by L-BFGS from several starts.

The problem isn't convex: what is found can be reached, and is an upper bound of the least error.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mope.prompts import Router
from mope.studies.theory.layer import Layer, distance

_TINY = 1e-16  # keeps the norm's gradient finite where an error is zero


def minimise(errors: Callable[[], Tensor], variables: Sequence[Tensor], steps: int) -> Tensor:
    """Change variables in place until the sum of errors is small; the errors then, (M,).

    First their squares, which are smooth, then the errors themselves, which the theorems add up.
    """
    for power in (2.0, 1.0):
        optimizer = torch.optim.LBFGS(
            list(variables), max_iter=steps, history_size=20, line_search_fn="strong_wolfe"
        )

        def closure(power: float = power, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = (errors().square() + _TINY).pow(power / 2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
    with torch.no_grad():
        return errors()


def fit_prompts(layer: Layer, wanted: Tensor, starts: Sequence[Tensor], share: int, steps: int) -> Tensor:
    """Errors of the best prompts (l = 1), where each is shared by so many instances that follow one another.

    Args:
        layer: with M instances.
        wanted: maps (M, H, N, N).
        starts: prompts to begin from, (M / share, d) each; each group of instances keeps its best.
        share: 1 for a prompt of each instance's own, M for a global one.
        steps: of L-BFGS.

    Returns:
        (M,); of each group those whose sum is least.
    """
    best = wanted.new_full((layer.instances // share, share), float("inf"))
    for start in starts:
        prompts = start.clone().requires_grad_()

        def errors(prompts: Tensor = prompts) -> Tensor:
            each = prompts.repeat_interleave(share, dim=0).unsqueeze(1)
            return distance(layer.maps(each), wanted)

        found = minimise(errors, [prompts], steps).unflatten(0, (-1, share))
        better = found.sum(dim=1, keepdim=True) < best.sum(dim=1, keepdim=True)
        best = torch.where(better, found, best)
    return best.flatten()


def mixed_maps(layer: Layer, experts: Tensor, scores: Tensor, mixing: str) -> Tensor:
    """Maps of k experts (k, d) under scores (M, k).

    Args:
        layer: with M instances.
        experts: a prompt each.
        scores: of each instance; they sum to 1.
        mixing: "prompts", as the model does (Eq. 4), or "maps", as Theorem 2 defines it.
    """
    if mixing == "prompts":
        return layer.maps((scores @ experts).unsqueeze(1))
    each = experts.unsqueeze(1).expand(-1, layer.instances, -1).unsqueeze(2)
    return torch.einsum("mk,kmhij->mhij", scores, layer.maps(each))


def fit_experts(
    layer: Layer, wanted: Tensor, starts: Sequence[Tensor], mixing: str, steps: int
) -> tuple[Tensor, Tensor]:
    """Errors (M,) of the best k experts with free scores of each instance, and those scores (M, k).

    Args:
        layer, wanted, mixing: see `mixed_maps`.
        starts: experts to begin from, (k, d) each; the start that ends best counts.
        steps: of L-BFGS.
    """
    found: list[tuple[Tensor, Tensor]] = []
    for start in starts:
        experts = start.clone().requires_grad_()
        free = torch.zeros(layer.instances, len(start), dtype=start.dtype).requires_grad_()

        def errors(experts: Tensor = experts, free: Tensor = free) -> Tensor:
            return distance(mixed_maps(layer, experts, free.softmax(dim=1), mixing), wanted)

        found.append((minimise(errors, [experts, free], steps), free.detach().softmax(dim=1)))
    return min(found, key=lambda pair: float(pair[0].sum()))


def fit_routed(
    layer: Layer,
    wanted: Tensor,
    guides: tuple[Tensor, Tensor],
    starts: Sequence[Tensor],
    steps: int,
    rows: int,
) -> Tensor:
    """Errors (M,) of k experts that the library's router mixes (Eq. 3), learned on the first rows.

    Args:
        layer, wanted: see `mixed_maps`.
        guides: what the router sees: psi (M, d_y) and x0 (M, d_x).
        starts: experts to begin from, (k, d) each; what ends best on the rows it learned from counts.
        steps: of L-BFGS.
        rows: how many instances it learns from; the others are new to it.
    """
    psi, x0 = guides
    found: list[Tensor] = []
    for start in starts:
        experts = start.clone().requires_grad_()
        features = {"guide": psi.shape[1]}
        router = Router([x0.shape[1]], features, experts=len(start), standardise=True, similarity="cosine")
        router.temperature = 0.2
        router.to(start.dtype).eval().begin({"guide": psi[:rows]}, [x0[:rows]])

        def every(router: Router = router, experts: Tensor = experts) -> Tensor:
            scores = router(0, router.embed({"guide": psi}), x0)
            return distance(mixed_maps(layer, experts, scores, "prompts"), wanted)

        learned = [experts, *router.parameters()]
        minimise(lambda every=every: every()[:rows], learned, steps)
        with torch.no_grad():
            found.append(every())
    return min(found, key=lambda errors: float(errors[:rows].sum()))
