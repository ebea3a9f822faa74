"""What the theorems take for granted, on a trained run: its own rows, routers, experts and attention.

The optimal maps A*(x) of real rows aren't known. What is known is where a row's own loss would have a prompt
go: its gradient. So rows are given one and the same dynamic prompt, their mean, in every layer: the loss says
what that costs, and the gradients there whether rows want one change, or as many as there are experts.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from mope.data.dataset import RowDataset
from mope.data.table import evenly
from mope.device import autocast
from mope.encoders import TransformerEncoder
from mope.encoders.prefix import project
from mope.errors import UserError
from mope.fusion.sequential import Sequential
from mope.predictor import Predictor
from mope.prompts import FusionPrompts
from mope.studies.theory.layer import Layer, distance


@dataclass
class Seen:
    """What one layer did with N rows.

    Attributes:
        prompts: as the layer got them, (N, P, d).
        wishes: gradient of each row's own loss by these, (N, P, d).
        scores: routing scores (N, k).
        queries: (N, H, T, c), divided by the root of c; of the first rows alone.
        logits: (N, H, T, T), likewise.
    """

    prompts: list[Tensor] = field(default_factory=list)
    wishes: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


def routed_prompts(predictor: Predictor) -> tuple[FusionPrompts, TransformerEncoder]:
    """A run's prompts and its main encoder.

    Raises:
        UserError: it has no experts, or its main encoder is no plain transformer, or its attention can't be
            reached.
    """
    fusion = predictor.model.fusion
    if not isinstance(fusion, Sequential) or fusion.prompts.router is None:
        raise UserError(f"{predictor.run} has no experts: name a run of MoPE with two or more.")
    encoder = fusion.encoder(fusion.main).encoder
    if not isinstance(encoder, TransformerEncoder) or not encoder.plain or encoder.insertion != "prefix":
        raise UserError(
            f"The theorems are measured on plain transformers whose attention can be reached, which the main "
            f"encoder of {predictor.run} isn't."
        )
    return fusion.prompts, encoder


def watch_run(
    predictor: Predictor, rows: int, data: str | None, attended: int, fixed: Sequence[Tensor] | None = None
) -> tuple[list[Seen], float]:
    """Run rows with labels through a run, one loss each.

    Args:
        predictor: of a run with experts.
        rows: how many at most.
        data: their table; None for the run's test rows.
        attended: of how many the attention is kept.
        fixed: a dynamic prompt (l, d_i) of each layer for all rows; None for each row's own.

    Returns:
        What each layer saw, and the mean loss.

    Raises:
        UserError: see `routed_prompts`; or a row can't be used.
    """
    prompts, encoder = routed_prompts(predictor)
    layers = encoder.layers
    seen = [Seen() for _ in layers]
    losses = []
    table = predictor.table(data)
    table = table.select(evenly(len(table), rows))
    model = predictor.model
    dataset = RowDataset(table, predictor.readers, model.task, predictor.settings.data.label)
    for places, batch, errors in predictor.batches(dataset):
        if errors or batch is None:
            raise UserError(f"{table.name} has rows that can't be used: check it first.")
        with _Watch(prompts, encoder, fixed) as watch, autocast(predictor.precision, predictor.device):
            labels = batch.pop("labels")
            output = model(labels=labels.to(predictor.device), **predictor.to_device(batch))
        assert output.loss is not None
        losses += [float(output.loss.detach())] * len(places)
        # The loss is a mean over rows, none of which depends on another.
        wishes = torch.autograd.grad(output.loss * len(places), watch.prompts)
        for place, layer in enumerate(seen):
            layer.prompts.append(watch.prompts[place].detach())
            layer.wishes.append(wishes[place])
            layer.scores.append(output.scores[place].detach())
            if sum(map(len, layer.queries)) < attended:
                layer.queries.append(watch.queries[place][:attended])
                layer.logits.append(watch.logits[place][:attended])
    return seen, sum(losses) / len(losses)


def dynamic_part(prompts: FusionPrompts) -> slice:
    """Which of a layer's prompts are the dynamic one."""
    begin = 0 if prompts.added or prompts.static is None else prompts.length
    return slice(begin, begin + prompts.length)


class _Watch:
    """Takes down, within its block, each layer's prompts, as leaves, and what its tokens attend to."""

    def __init__(
        self, prompts: FusionPrompts, encoder: TransformerEncoder, fixed: Sequence[Tensor] | None = None
    ):
        self._fixed = fixed
        self.prompts: list[Tensor] = []
        self.queries: list[Tensor] = []
        self.logits: list[Tensor] = []
        self._parts, self._encoder, self._handles = prompts, encoder, []
        self._aside = prompts.projected.set_aside()

    def __enter__(self) -> "_Watch":
        self._aside.__enter__()
        # All prompts of a layer pass the dropout last.
        self._handles.append(self._parts.dropout.register_forward_hook(self._take))
        for layer in self._encoder.layers:
            attention = layer.get_submodule(self._encoder.family.attention)
            self._handles.append(attention.register_forward_pre_hook(self._hand_over, with_kwargs=True))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._aside.__exit__(None, None, None)

    def _take(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        given = output.detach()
        if self._fixed is not None:
            given = given.clone()
            given[:, dynamic_part(self._parts)] = self._fixed[len(self.prompts)].to(given)
        self.prompts.append(given.requires_grad_())
        return self.prompts[-1]

    def _hand_over(
        self, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, "mope_watch": self._watch}

    def _watch(self, query: Tensor, key: Tensor, mask: Tensor | None, before: int) -> None:
        query = query.detach().float() * query.shape[-1] ** -0.5
        logits = query @ key.detach().float()[:, :, before:].transpose(2, 3)
        if mask is not None:
            own = mask.detach()[..., before:]
            logits = logits.masked_fill(~own, -1e9) if own.dtype == torch.bool else logits + own.float()
        self.queries.append(query.cpu())
        self.logits.append(logits.cpu())


def run_layer(seen: Seen, encoder: TransformerEncoder, place: int) -> Layer:
    """A run's layer as the theorems see it, in float64, over the rows whose attention was kept."""
    layer, family = encoder.layers[place], encoder.family
    attention = copy.deepcopy(layer.get_submodule(family.attention)).double().cpu()
    has_norm = family.norm is not None and (
        family.norm_if is None or getattr(encoder.backbone.config, family.norm_if)
    )
    norm = copy.deepcopy(layer.get_submodule(family.norm or "")).double().cpu() if has_norm else None
    queries = torch.cat(seen.queries).double()
    heads, width = queries.shape[1], queries.shape[3]

    def keys(prompts: Tensor) -> Tensor:
        flat = prompts.flatten(0, -3)
        states = flat if norm is None else norm(flat)
        found = project(family, attention, states).keys
        return found.unflatten(0, prompts.shape[:-2]).unflatten(-1, (heads, width)).transpose(-3, -2)

    every = torch.cat(seen.prompts)
    return Layer(queries, torch.cat(seen.logits).double(), keys, every.shape[2], float(every.std()))


def mixing_error(layer: Layer, seen: Seen, prompts: FusionPrompts, place: int) -> dict[str, float]:
    """How far a map under mixed prompts (Eq. 4) is from the mixed maps of Theorem 2.

    Returns:
        `taken`: share of attention that all prompts take. `apart`: distance of the experts' maps from their
        mixture, weighted by the scores. `error`: that of the model's map from the same mixture.
    """
    assert prompts.experts is not None
    count = layer.instances
    given = torch.cat(seen.prompts)[:count].double().cpu()
    scores = torch.cat(seen.scores)[:count].double().cpu()
    scores = scores / scores.sum(dim=1, keepdim=True)
    experts = prompts.experts.prompts[place].detach().double().cpu()
    mixed = torch.einsum("mk,kld->mld", scores, experts)
    part = dynamic_part(prompts)
    bias = None if prompts.offsets is None else prompts.offsets(place)[0].detach().double().cpu()
    with torch.no_grad():
        model = layer.maps(given, bias)
        maps = []
        for expert in experts:
            alone = given.clone()
            alone[:, part] += expert - mixed
            maps.append(layer.maps(alone, bias))
        each = torch.stack(maps)
        mixture = torch.einsum("mk,kmhij->mhij", scores, each)
        apart = (scores.T * distance(each, mixture)).sum(dim=0)
        return {
            "taken": float(1 - model.sum(dim=-1).mean()),
            "apart": float(apart.mean()),
            "error": float(distance(model, mixture).mean()),
        }


def wishes_shared(seen: Seen, part: slice, seed: int = 0) -> dict[str, float]:
    """Which part of what rows want of a layer's dynamic prompt few directions hold: of the sum of squares.

    Every row's gradient is made 1 long, so that no row counts for more than another.

    Args:
        seen: of a pass in which all rows had one dynamic prompt. Where they have their own, training has
            used up what is linear in the scores: there the experts' gradients are 0.
        part: which prompts are the dynamic one.
        seed: of groups and shuffling.

    Returns:
        `one`: their mean, which a global prompt could follow. `k groups`: the means of k groups of like rows,
        which k experts could follow, each row knowing its own. `router`: what is linear in the run's own
        scores; `chance`: the same with the scores of other rows.
    """
    wishes = torch.cat(seen.wishes)[:, part].flatten(1).double().cpu().numpy()
    wishes = wishes / numpy.maximum(numpy.linalg.norm(wishes, axis=1, keepdims=True), 1e-30)
    scores = torch.cat(seen.scores).double().cpu().numpy()
    whole = float((wishes**2).sum()) or 1.0
    k = min(scores.shape[1], len(wishes))
    groups = KMeans(k, n_init="auto", random_state=seed).fit(wishes)
    other = numpy.random.default_rng(seed).permutation(scores)
    return {
        "one": float(len(wishes) * (wishes.mean(axis=0) ** 2).sum() / whole),
        "k groups": 1 - float(groups.inertia_ or 0.0) / whole,
        "router": _explained(scores, wishes) / whole,
        "chance": _explained(other, wishes) / whole,
    }


def _explained(scores: Any, wishes: Any) -> float:
    """Sum of squares of what is linear in the scores (N, k), which hold a constant as they sum to 1."""
    basis, sizes, _ = numpy.linalg.svd(scores, full_matrices=False)
    basis = basis[:, sizes > 1e-9 * sizes[0]]
    return float(((basis.T @ wishes) ** 2).sum())


def spread_of_prompts(seen: Seen, prompts: FusionPrompts) -> dict[str, float]:
    """How far dynamic prompts differ between rows.

    Returns:
        `directions`: effective number of directions in which they differ (exponential of the entropy of the
        squared singular values), at most k - 1; 0 for a global prompt. `relative`: size of the differences
        beside the size of the prompts.
    """
    given = torch.cat(seen.prompts)[:, dynamic_part(prompts)].flatten(1).double()
    offsets = given - given.mean(dim=0)
    energy = torch.linalg.svdvals(offsets).square()
    if float(energy.sum()) <= 1e-20 * float(given.square().sum()):
        return {"directions": 0.0, "relative": 0.0}
    shares = energy / energy.sum()
    return {
        "directions": float(torch.special.entr(shares).sum().exp()),
        "relative": float(offsets.norm() / given.norm()),
    }


def mean_prompts(seen: Sequence[Seen], prompts: FusionPrompts) -> list[Tensor]:
    """The rows' mean dynamic prompt of each layer, (l, d_i)."""
    return [torch.cat(one.prompts)[:, dynamic_part(prompts)].mean(dim=0) for one in seen]


def by_layer(
    seen: Sequence[Seen], alike: Sequence[Seen], prompts: FusionPrompts, encoder: TransformerEncoder
) -> list[Mapping[str, Any]]:
    """Every measure of every layer of a run.

    Args:
        seen: what layers saw of rows with dynamic prompts of their own.
        alike: the same of rows that all had the mean.
        prompts, encoder: the run's.
    """
    return [
        {
            "layer": place + 1,
            "mixing": mixing_error(run_layer(one, encoder, place), one, prompts, place),
            "wishes": wishes_shared(alike[place], dynamic_part(prompts)),
            "prompts": spread_of_prompts(one, prompts),
        }
        for place, one in enumerate(seen)
    ]
