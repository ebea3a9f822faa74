"""Prompts of several models of one shape, given at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mope.prompts import BoundPrompts, FusionPrompts, MixedPrompts, Projected
from mope.prompts.stacked import StackedPrompts

DIMS, FEATURES = [6, 6, 8], {"text": 5, "sound": 3}

SHAPES = st.fixed_dictionaries(
    {
        "parts": st.sampled_from(
            [("static", "dynamic", "mapped"), ("static", "mapped"), ("dynamic",), ("static", "dynamic")]
        ),
        "length": st.integers(1, 3),
        "experts": st.integers(0, 5),
        "start": st.sampled_from(["published", "quiet"]),
        "joining": st.sampled_from(["beside", "added"]),
        "cross_dim": st.integers(0, 3),
        "intra_dim": st.integers(0, 2),
        "top": st.sampled_from([None, 1]),
        "standardise": st.booleans(),
        "similarity": st.sampled_from(["dot", "cosine"]),
        "temperature": st.sampled_from([0.1, 1.0]),
    }
)


def model(shape: dict) -> FusionPrompts:
    """Prompts that have learned, as it were: nothing is left as it began."""
    found = FusionPrompts(DIMS, FEATURES, keys="learned" if shape["cross_dim"] else "normal", **shape)
    with torch.no_grad():
        for tensor in [*found.parameters(), *found.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1)  # above zero, as a variance is
    return found.eval()


def same(found, expected) -> None:
    assert (found is None) == (expected is None)
    if expected is not None:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    shape=SHAPES,
    counts=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    seed=st.integers(0, 99),
    data=st.data(),
)
@torch.no_grad()
def test_each_model_s_rows_get_what_it_gives_alone(shape, counts, seed, data):
    torch.manual_seed(seed)
    models = [model(shape) for _ in counts]
    psi = [{name: torch.randn(count, dim) for name, dim in FEATURES.items()} for count in counts]
    missing = [
        {"text": torch.rand(count) < 0.5} if data.draw(st.booleans(), "some are missing") else {}
        for count in counts
    ]
    bound = [[one.bind(*given) for one, *given in zip(models, psi, missing, strict=True)] for _ in range(2)]
    alone, together = bound
    mixed = MixedPrompts(together, counts)
    assert len(mixed.sources) == (1 if sum(models[0].lengths) else len(counts))
    for layer, dim in enumerate(DIMS):
        x0 = torch.randn(sum(counts), dim)
        each = [one(layer, rows) for one, rows in zip(alone, x0.split(counts), strict=True)]
        prompts = [one for one in each if one is not None]
        same(mixed(layer, x0), torch.cat(prompts) if prompts else None)
        biases = [one.bias(layer) for one in alone]
        bias = mixed.bias(layer)
        if bias is None:
            assert all(one is None for one in biases)
            continue
        for one, count, part in zip(biases, counts, bias.split(counts), strict=True):
            same(part, torch.zeros_like(part) if one is None else one.expand(count, -1))
    compare_scores(alone, together)


class Projects:
    """An encoder whose keys and values of prompts are multiples of them."""

    def project_prompts(self, layer: int, prompts: torch.Tensor) -> Projected:
        return Projected(2 * prompts, 3 * prompts)

    def projecting(self, layer: int) -> list:
        return []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", [[1, 1], [3, 1, 2]])
@torch.no_grad()
def test_what_is_kept_of_static_prompts_is_each_model_s_own(counts, dtype):
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        sources = []
        for count in counts:
            prompts = FusionPrompts([6, 6], {"text": 5}, length=2).eval().requires_grad_(False)
            prompts.settle(Projects())
            sources.append(prompts.bind({"text": torch.randn(count, 5)}))
        mixed = MixedPrompts(sources, counts)
        for layer in range(2):
            x0 = torch.randn(sum(counts), 6, dtype=dtype)
            kept, rest = mixed.kept(layer, x0), mixed.rest(layer, x0)
            assert kept is not None
            whole = torch.cat([one(layer, rows) for one, rows in zip(sources, x0.split(counts), strict=True)])
            torch.testing.assert_close(kept.keys, 2 * whole[:, :2])
            torch.testing.assert_close(kept.values, 3 * whole[:, :2])
            torch.testing.assert_close(rest, whole[:, 2:])


def compare_scores(alone: list[BoundPrompts], together: list[BoundPrompts]) -> None:
    for one, other in zip(alone, together, strict=True):
        assert len(one.scores) == len(other.scores)
        for scores, others in zip(one.scores, other.scores, strict=True):
            assert len(scores) == len(others)
            same(others, scores)


def bound(experts: int, **settings) -> BoundPrompts:
    torch.manual_seed(experts)
    prompts = FusionPrompts([6], {"text": 5}, length=2, experts=experts, **settings).eval()
    return prompts.bind({"text": torch.randn(1, 5)})


def test_only_neighbours_of_one_shape_are_stacked():
    sources = [bound(4), bound(4), bound(2), None, bound(4), bound(4), bound(4)]
    mixed = MixedPrompts(sources, [1] * 7)
    assert mixed.counts == [2, 1, 1, 3]
    assert [type(source) for source in mixed.sources].count(StackedPrompts) == 2
    assert mixed.sources[1:3] == sources[2:4]


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 1.0}, {"top": 1}, {"similarity": "cosine"}, {"standardise": True}, {"intra_dim": 1}],
)
def test_another_arithmetic_is_another_shape(settings):
    assert len(MixedPrompts([bound(4), bound(4, **settings)], [1, 1]).sources) == 2


def test_prompts_that_learn_stay_by_themselves():
    sources = [bound(4), bound(4)]
    for source in sources:
        nn.Module.train(source.prompts)
    assert MixedPrompts(sources, [1, 1]).sources == sources
