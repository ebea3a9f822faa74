"""The paper's core against slow, obvious references."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mope.prompts import DeepPrompts, Experts, FusionPrompts, Mapper, Router, importance_loss, prompt_bound

DIMS = [8, 8, 16]
FEATURES = {"text": 6, "audio": 5}


def features(batch: int) -> dict[str, torch.Tensor]:
    return {name: torch.randn(batch, dim) for name, dim in FEATURES.items()}


def reference_scores(router: Router, layer: int, psi: dict, x0: torch.Tensor) -> torch.Tensor:
    """Eq. 3, one sample, one expert, one number at a time."""
    rows = []
    for b in range(len(x0)):
        query = []
        for name in router.cross:
            weight = router.cross[name].weight[layer * router.cross_dim : (layer + 1) * router.cross_dim]
            query += [(psi[name][b] @ row).item() for row in weight]
        if len(router.intra):
            query += [(x0[b] @ row).item() for row in router.intra[layer].weight]
        exponents = [
            math.exp(sum(q * float(k) for q, k in zip(query, key, strict=True)) / router.temperature)
            for key in router.keys[layer]
        ]
        rows.append([e / sum(exponents) for e in exponents])
    return torch.tensor(rows)


@settings(max_examples=25, deadline=None)
@given(
    experts=st.integers(2, 12),
    cross=st.integers(0, 5),
    intra=st.integers(0, 4),
    batch=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_router_is_eq_3(experts, cross, intra, batch, seed):
    torch.manual_seed(seed)
    router = Router(DIMS, FEATURES, experts=experts, cross_dim=cross, intra_dim=intra, temperature=1.0).eval()
    psi = features(batch)
    embedded = router.embed(psi)
    for layer, dim in enumerate(DIMS):
        x0 = torch.randn(batch, dim)
        scores = router(layer, embedded, x0)
        assert scores.shape == (batch, experts)
        torch.testing.assert_close(scores, reference_scores(router, layer, psi, x0), atol=1e-5, rtol=1e-4)


def test_router_without_embeddings_scores_all_experts_alike():
    router = Router(DIMS, FEATURES, experts=4, cross_dim=0, intra_dim=0).eval()
    assert torch.equal(router(0, router.embed(features(2)), torch.randn(2, 8)), torch.full((2, 4), 0.25))


def test_noise_is_drawn_in_training_only_and_has_std_1_over_k():
    router = Router([8], {}, experts=4, cross_dim=0, intra_dim=0)
    x0 = torch.randn(20000, 8)
    nothing = router.embed({})
    noisy = router.train()(0, nothing, x0)
    # Softmax takes a constant from each row, which leaves the centred noise: std sqrt(1 - 1/k) / k.
    logits = noisy.log() - noisy.log().mean(dim=1, keepdim=True)
    assert logits.std().item() == pytest.approx(math.sqrt(1 - 1 / 4) / 4, rel=0.02)
    router.eval()
    assert torch.equal(router(0, nothing, x0), router(0, nothing, x0))


@pytest.mark.parametrize("top", [1, 2, 5])
def test_hard_routing_keeps_the_largest_scores_as_they_are(top):
    soft = Router([8], {"text": 6}, experts=5).eval()
    hard = Router([8], {"text": 6}, experts=5, top=top).eval()
    hard.load_state_dict(soft.state_dict())
    psi, x0 = {"text": torch.randn(7, 6)}, torch.randn(7, 8)
    full, kept = soft(0, soft.embed(psi), x0), hard(0, hard.embed(psi), x0)
    for row, expected in zip(kept, full, strict=True):
        largest = sorted(expected.tolist(), reverse=True)[:top]
        assert sorted(row[row > 0].tolist(), reverse=True) == pytest.approx(largest)
    kept.sum().backward()
    assert hard.cross["text"].weight.grad.abs().sum() > 0


def test_frozen_keys_are_buffers_orthogonal_and_per_layer():
    router = Router(DIMS, {"text": 6}, experts=4, cross_dim=6, intra_dim=2)
    assert "keys" not in dict(router.named_parameters())
    assert "keys" in router.state_dict()
    for keys in router.keys:
        torch.testing.assert_close(keys @ keys.T, torch.eye(4), atol=1e-5, rtol=0)
    assert not torch.equal(router.keys[0], router.keys[1])
    many = Router(DIMS, {"text": 6}, experts=32, cross_dim=6, intra_dim=2).keys[0]
    torch.testing.assert_close(many.T @ many, torch.eye(8), atol=1e-5, rtol=0)
    learned = Router(DIMS, {"text": 6}, experts=4, keys="learned")
    assert "keys" in dict(learned.named_parameters())
    with pytest.raises(ValueError, match="top must be"):
        Router(DIMS, {}, experts=2, top=3)


@pytest.mark.parametrize("keys", ["normal", "xavier"])
def test_other_frozen_keys(keys):
    router = Router(DIMS, {"text": 6}, experts=4, keys=keys)
    assert "keys" not in dict(router.named_parameters())
    assert router.keys.std() > 0


def test_experts_mix_as_eq_4():
    experts = Experts(DIMS, experts=3, length=2, bound=0.5)
    scores = torch.rand(4, 3)
    for layer, dim in enumerate(DIMS):
        mixed = experts(layer, scores)
        assert mixed.shape == (4, 2, dim)
        for b in range(4):
            expected = sum(scores[b, j] * experts.prompts[layer][j] for j in range(3))
            torch.testing.assert_close(mixed[b], expected)


@settings(max_examples=50, deadline=None)
@given(batch=st.integers(1, 6), experts=st.integers(2, 6), layers=st.integers(1, 3), gamma=st.floats(0, 1))
def test_importance_loss_is_eq_5_and_6(batch, experts, layers, gamma):
    scores = [torch.rand(batch, experts, dtype=torch.float64).softmax(dim=1) for _ in range(layers)]
    terms = []
    for layer in scores:
        importance = [sum(float(row[j]) for row in layer) for j in range(experts)]
        mean = sum(importance) / experts
        variation = sum((i - mean) ** 2 for i in importance) / experts / mean**2
        terms.append(variation if variation > gamma else 0.0)
    assert float(importance_loss(scores, gamma)) == pytest.approx(sum(terms) / layers, abs=1e-9)


def test_importance_loss_of_one_dominant_expert_has_a_gradient_that_spreads():
    logits = torch.tensor([[4.0, 0.0, 0.0]], requires_grad=True)
    importance_loss([logits.softmax(dim=1)]).backward()
    assert logits.grad[0, 0] > 0 > logits.grad[0, 1]
    assert importance_loss([]) == 0


def test_mapper_shares_its_bottleneck_and_maps_to_each_width():
    mapper = Mapper(7, [4, 4, 6]).eval()
    assert mapper.down[0].out_features == 4  # ceil(7 / 2)
    mapped = mapper(torch.randn(3, 7))
    assert [tuple(p.shape) for p in mapped] == [(3, 1, 4), (3, 1, 4), (3, 1, 6)]
    assert mapped[0] is mapped[1]
    count = 7 * 4 + 4 + 2 * 4 + (4 * 4 + 4) + (4 * 6 + 6)
    assert sum(p.numel() for p in mapper.parameters()) == count


def test_mapper_trains_on_a_batch_of_one():
    mapper = Mapper(6, [4]).train()
    mean = mapper.down[1].running_mean.clone()
    assert torch.isfinite(mapper(torch.randn(1, 6))[0]).all()
    assert torch.equal(mapper.down[1].running_mean, mean)
    mapper(torch.randn(5, 6))
    assert not torch.equal(mapper.down[1].running_mean, mean)


PARTS = [
    ("static", "dynamic", "mapped"),
    ("static", "dynamic"),
    ("static", "mapped"),
    ("dynamic", "mapped"),
    ("static",),
    ("dynamic",),
    ("mapped",),
]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("experts", [0, 1, 3])
def test_prompts_are_eq_2(parts, experts):
    prompts = FusionPrompts(DIMS, FEATURES, parts=parts, length=2, experts=experts).eval()
    psi = features(3)
    source = prompts.bind(psi)
    for layer, dim in enumerate(DIMS):
        x0 = torch.randn(3, dim)
        expected = []
        if "static" in parts:
            expected.append(prompts.static[layer].expand(3, -1, -1))
        if "dynamic" in parts and experts:
            scores = reference_scores(prompts.router, layer, psi, x0) if experts > 1 else torch.ones(3, 1)
            expected.append(torch.einsum("bk,kld->bld", scores, prompts.experts.prompts[layer]))
        if "mapped" in parts:
            expected += [prompts.mappers[name](psi[name])[layer] for name in FEATURES]
        if expected:
            torch.testing.assert_close(source(layer, x0), torch.cat(expected, dim=1), atol=1e-4, rtol=1e-3)
        else:
            assert source(layer, x0) is None
    routed = "dynamic" in parts and experts > 1
    assert [tuple(s.shape) for s in source.scores] == ([(3, experts)] * 3 if routed else [])


def test_no_parts_no_prompts():
    prompts = FusionPrompts(DIMS, FEATURES, parts=())
    assert prompts.bind(features(2))(0, torch.randn(2, 8)) is None
    assert sum(p.numel() for p in prompts.parameters()) == 0


def test_prompts_start_as_vpt_does_and_drop_out_in_training_only():
    bound = math.sqrt(6 / (3 * 14 * 14 + 384))
    assert prompt_bound(384, 14 * 14) == pytest.approx(bound)
    deep = DeepPrompts([384], length=200, patch_area=14 * 14)
    assert deep.prompts[0].abs().max() <= bound
    assert deep.prompts[0].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    x0 = torch.randn(2, 384)
    dropped = (deep.train()(0, x0) == 0).float().mean().item()
    assert dropped == pytest.approx(0.1, abs=0.01)
    assert torch.equal(deep.eval()(0, x0)[1], deep.prompts[0])


def test_layers_of_a_width_share_a_cast_of_the_mapped_prompt():
    """Under autocast a mapper gives bf16, and layers may be in float32: nothing changes but the steps."""
    torch.manual_seed(0)
    prompts = FusionPrompts(DIMS, FEATURES, length=2, experts=1, dropout=0.0)
    psi = features(3)
    x0 = [torch.randn(3, dim) for dim in DIMS]

    def run(shared):
        prompts.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            source = prompts.bind(psi)
            found = []
            for layer, feature in enumerate(x0):
                found.append(source(layer, feature))
                if not shared:
                    source._cast.clear()
        sum(one.square().sum() for one in found).backward()
        return found, [parameter.grad.clone() for parameter in prompts.mappers.parameters()], source

    found, gradients, source = run(shared=True)
    assert len(source._cast) == len(set(DIMS)) * len(FEATURES)
    alone, expected, _ = run(shared=False)
    assert all(one.dtype == torch.float32 for one in found)
    assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-3 * float(other.abs().max()) + 1e-6)


def test_scores_of_two_batches_are_kept_apart():
    prompts = FusionPrompts([8], {"text": 6}, experts=3).eval()
    one, other = prompts.bind({"text": torch.randn(2, 6)}), prompts.bind({"text": torch.randn(4, 6)})
    one(0, torch.randn(2, 8)), other(0, torch.randn(4, 8))
    assert one.scores[0].shape == (2, 3)
    assert other.scores[0].shape == (4, 3)


def _worker(rank: int, file: str, results) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    logits = (torch.arange(6.0).view(2, 3) ** 2 * (rank + 1) / 5).requires_grad_()
    loss = importance_loss([logits.softmax(dim=1)])
    loss.backward()
    results.put((rank, float(loss), logits.grad.tolist()))
    torch.distributed.destroy_process_group()


def test_importance_is_summed_over_workers_first(tmp_path):
    """Two workers with half a batch each get the loss and (as DDP averages it) the gradient of the whole."""
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_worker, args=(rank, tmp_path / "init", results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = sorted(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    halves = [torch.arange(6.0).view(2, 3) ** 2 * (rank + 1) / 5 for rank in range(2)]
    whole = torch.cat(halves).requires_grad_()
    loss = importance_loss([whole.softmax(dim=1)])
    loss.backward()
    assert loss > 0.1
    for rank, value, gradient in found:
        assert value == pytest.approx(loss.item())
        torch.testing.assert_close(torch.tensor(gradient) / 2, whole.grad[2 * rank : 2 * rank + 2])
