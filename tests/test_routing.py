"""Routers that begin with clusters of rows, and prompts that begin quiet or added."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_tester import changed, config_of, tiny_run
from torch.nn import functional

from mope.config import Config
from mope.errors import UserError
from mope.model import FusionModel
from mope.prompts import DeepPrompts, FusionPrompts, Offsets, Router, make_offsets
from mope.prompts.clusters import place_keys
from mope.prompts.grow import grow
from mope.training import train

DIMS, FEATURES = [8, 8, 12], {"text": 6, "audio": 5}


def grouped(rows: int, groups: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of rows in groups with a large common part, as pooled features have it; and the groups."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, width, generator=generator)
    group = torch.arange(rows) % groups
    noise = 0.05 * torch.randn(rows, width, generator=generator)
    return 30 + centres[group] + noise, group


@settings(max_examples=30, deadline=None)
@given(experts=st.integers(2, 6), cross=st.integers(0, 3), intra=st.integers(0, 3), batch=st.integers(1, 4))
def test_cosine_routing_written_out(experts, cross, intra, batch):
    router = Router(
        DIMS,
        FEATURES,
        experts=experts,
        cross_dim=cross,
        intra_dim=intra,
        similarity="cosine",
        temperature=0.3,
    ).eval()
    psi = {name: torch.randn(batch, dim) for name, dim in FEATURES.items()}
    for layer, dim in enumerate(DIMS):
        x0 = torch.randn(batch, dim)
        scores = router(layer, router.embed(psi), x0)
        parts = [
            psi[name] @ router.cross[name].weight[layer * cross : (layer + 1) * cross].T
            for name in router.cross
        ]
        parts += [x0 @ router.intra[layer].weight.T] if intra else []
        query = torch.cat(parts, dim=1) if parts else torch.zeros(batch, 0)
        angle = functional.cosine_similarity(query[:, None], router.keys[layer][None], dim=-1, eps=1e-12)
        torch.testing.assert_close(scores, (angle / 0.3).softmax(dim=1))


def test_standardised_routing_forgets_what_all_rows_share():
    """What all rows share neither counts nor, as it does as published, sends them all to one expert."""
    psi, _ = grouped(64, 4, 6)
    psi, x0 = 10 * psi, torch.randn(64, 8)  # beside which the norm's eps is nothing
    torch.manual_seed(0)
    router = Router([8], {"text": 6}, experts=4, standardise=True, temperature=1.0).eval()
    scores = []
    for feature in (psi, 3 * psi + 100):
        router.begin({"text": feature}, [x0])
        scores.append(router(0, router.embed({"text": feature}), x0))
    torch.testing.assert_close(*scores, atol=0.01, rtol=0)
    assert scores[0].mean(dim=0).max() < 0.6
    published = Router([8], {"text": 6}, experts=4, temperature=1.0).eval()
    assert published(0, published.embed({"text": psi}), x0).mean(dim=0).max() > 0.99


def test_running_statistics_follow_in_training_alone():
    router = Router([8], {"text": 6}, experts=4, standardise=True)
    norm = router.cross_norms["text"]
    router.eval().embed({"text": torch.randn(16, 6) + 5})
    assert not norm.running_mean.any()
    router.train().embed({"text": torch.randn(16, 6) + 5})
    assert (norm.running_mean > 0.2).all()
    assert not list(norm.parameters())
    assert "cross_norms.text.running_mean" in router.state_dict()


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_clusters_give_each_group_its_expert(similarity):
    psi, group = grouped(200, 4, 6)
    router = Router(
        [8, 8],
        {"text": 6},
        experts=4,
        cross_dim=3,
        temperature=0.1,
        standardise=True,
        keys="clusters",
        similarity=similarity,
        intra_dim=0,
    )
    router.begin({"text": psi}, [torch.randn(200, 8)] * 2)
    router.eval()
    for layer in range(2):
        chosen = router(layer, router.embed({"text": psi}), torch.randn(200, 8)).argmax(dim=1)
        found = [chosen[group == one].unique() for one in range(4)]
        assert all(len(experts) == 1 for experts in found)
        assert len(torch.cat(found).unique()) == 4
    assert not torch.equal(router.keys[0], router.keys[1])
    torch.testing.assert_close(router.keys.norm(dim=-1), torch.ones(2, 4))
    unclustered = Router([8, 8], {"text": 6}, experts=4, temperature=0.1).eval()
    assert (
        len(unclustered(0, unclustered.embed({"text": psi}), torch.randn(200, 8)).argmax(dim=1).unique()) < 4
    )


def test_a_feature_that_never_changes_is_no_cluster():
    """The class token that enters the first layer is the same in every row: it mustn't be blown up."""
    keys = torch.empty(1, 2, 3)
    weight, inner = torch.empty(2, 6), torch.empty(1, 8)
    place_keys(keys, [(grouped(20, 2, 6)[0], weight)], [(torch.ones(20, 8), inner)])
    assert all(tensor.isfinite().all() for tensor in (keys, weight, inner))
    assert inner.norm() <= 1 / 0.05 + 1e-3


def test_too_few_rows_for_clusters_are_said():
    router = Router([8], {"text": 6}, experts=4, keys="clusters")
    with pytest.raises(UserError, match=r"4 clusters, but there are 3 training rows.*orthogonal"):
        router.begin({"text": torch.randn(3, 6)}, [torch.randn(3, 8)])


def test_offsets_stand_over_their_prompts():
    offsets = Offsets(2, [3, 1], value=-2.0)
    offsets.values.data = torch.tensor([[-1.0, 2.0], [0.5, -3.0]])
    assert offsets(1).tolist() == [[0.5, 0.5, 0.5, -3.0]]
    assert make_offsets("published", 2, [3]) is None
    assert make_offsets("quiet", 2, []) is None
    assert make_offsets("quiet", 2, [3])(0).exp().max().item() == pytest.approx(math.exp(-3))


def test_quiet_prompts_of_each_kind_and_missing_inputs():
    prompts = FusionPrompts(DIMS, FEATURES, length=2, experts=3, start="quiet").eval()
    prompts.offsets.values.data = torch.arange(12.0).view(3, 4)  # static, dynamic, two mapped
    psi = {name: torch.randn(2, dim) for name, dim in FEATURES.items()}
    assert prompts.bind(psi).bias(1).tolist() == [[4, 4, 5, 5, 6, 7]]
    hidden = prompts.bind(psi, {"audio": torch.tensor([False, True])}).bias(1)
    assert hidden.tolist() == [[4, 4, 5, 5, 6, 7], [4, 4, 5, 5, 6, -math.inf]]
    assert DeepPrompts([8, 8], length=2, start="quiet").bias(0).tolist() == [[-3, -3]]
    assert DeepPrompts([8, 8], length=2).bias(0) is None


def test_added_experts_begin_as_the_static_prompt_alone():
    torch.manual_seed(0)
    prompts = FusionPrompts(DIMS, FEATURES, length=2, experts=3, joining="added").eval()
    psi = {name: torch.randn(2, dim) for name, dim in FEATURES.items()}
    source, x0 = prompts.bind(psi), torch.randn(2, 12)
    found = source(2, x0)
    assert found.shape == (2, 2 + 2, 12)
    torch.testing.assert_close(found[:, :2], prompts.static[2].expand(2, -1, -1))
    for expert in prompts.experts.prompts:
        expert.data.normal_()
    mixed = prompts.experts(2, prompts.router(2, source.embedded, x0))
    torch.testing.assert_close(source(2, x0)[:, :2], prompts.static[2] + mixed)
    # Without a static prompt there is nothing to be added to.
    alone = FusionPrompts(DIMS, FEATURES, parts=["dynamic"], length=2, experts=3, joining="added")
    assert not alone.added
    assert alone.experts.prompts[0].any()


def test_training_begins_from_rows_and_a_run_holds_what_it_found(weights, tables, tmp_path):
    config = config_of(weights, tables, tmp_path)
    assert (config.fusion.keys, config.fusion.similarity, config.fusion.tau) == ("clusters", "cosine", 0.2)
    train(config, report=lambda line: None)
    router = FusionModel.from_pretrained(tmp_path / "run").fusion.prompts.router
    torch.testing.assert_close(router.keys.norm(dim=-1), torch.ones(router.keys.shape[:2]))
    products = router.keys[0] @ router.keys[0].T - torch.eye(3)
    assert products.abs().max() > 1e-3  # orthogonal before it began
    assert router.cross_norms["text"].running_var.std() > 0
    same = changed(config, output=str(tmp_path / "again"))
    train(same, report=lambda line: None)
    again = FusionModel.from_pretrained(tmp_path / "again")
    assert torch.equal(again.fusion.prompts.router.keys, router.keys)


def test_head_and_router_learn_at_multiples_of_the_rate(weights, tables, tmp_path):
    config = changed(config_of(weights, tables, tmp_path), training={"head_factor": 5})
    groups = FusionModel.build(config, ["red", "blue"]).parameter_groups()
    assert {name for name, _ in groups["head"]} == {"head.linear.weight", "head.linear.bias"}
    assert all(name.startswith("fusion.prompts.router.") for name, _ in groups["router"])
    assert not any("router" in name or "head" in name for name, _ in groups["main"])
    plain = changed(config, training={"head_factor": 1, "router_factor": 1})
    assert set(FusionModel.build(plain, ["red", "blue"]).parameter_groups()) == {
        "main",
        "complementary",
        "encoder",
    }


@pytest.mark.parametrize(
    "fusion",
    [
        {"method": "sequential", "joining": "added"},
        {"method": "mutual", "length": 2, "joining": "added"},
        {"method": "unimodal"},
        {"method": "concat"},
        {"method": "inputs", "length": 2},
        {"method": "inputs", "length": 2, "deep": True},
        {"method": "inputs", "length": 2, "blind": True},
        {"method": "pmf", "length": 2, "exchange_layers": 2},
    ],
    ids=lambda fusion: "-".join(map(str, fusion.values())),
)
def test_every_prompted_method_can_begin_quiet(weights, tables, tmp_path, fusion):
    """Offsets of -infinity are no prompts at all, of 0 those as published; and they learn."""
    content = tiny_run(weights, tables, tmp_path / "run")
    content["fusion"] = {"main": "image", **fusion, "start": "quiet"}
    content["inputs"]["text"]["encoder"]["tuning"] = "frozen" if fusion["method"] == "pmf" else "prompt"
    if fusion["method"] in ("mutual", "unimodal", "concat"):
        content["inputs"]["image"]["encoder"]["tuning"] = "prompt"
    quiet = Config.parse(content, "a test")
    content["fusion"]["start"] = "published"
    published = Config.parse(content, "a test")
    torch.manual_seed(0)
    loud = FusionModel.build(published, ["red", "blue"]).eval()
    model = FusionModel.build(quiet, ["red", "blue"]).eval()
    missing = model.load_state_dict(loud.state_dict(), strict=False).missing_keys
    assert missing
    assert all("offsets" in key for key in missing)
    batch = {
        "image": {"pixel_values": torch.randn(2, 3, 32, 32)},
        "text": {
            "input_ids": torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]),
            "attention_mask": torch.ones(2, 4).long(),
        },
    }
    batch = {name: batch[name] for name in model.fusion.encoders}
    parameters = dict(model.named_parameters())
    begun = model(**batch).logits
    expected = loud(**batch).logits
    assert (begun - expected).abs().max() > 1e-6
    begun.square().sum().backward()
    assert all(parameters[key].grad.abs().sum() > 0 for key in missing)
    with torch.no_grad():
        for key in missing:
            parameters[key].zero_()
    torch.testing.assert_close(model(**batch).logits, expected, atol=2e-6, rtol=1e-5)


def test_a_grown_model_keeps_its_experts_and_begins_as_it_was(weights, tables, tmp_path):
    config = config_of(weights, tables, tmp_path)
    train(config, report=lambda line: None)
    old = FusionModel.from_pretrained(config.output)
    wanted = changed(config, fusion={"experts": 6}, training={"begin_from": config.output})
    model = FusionModel.build(wanted, old.task.labels)
    model.begin_from(config.output)
    model.eval()
    before, after = old.fusion.prompts, model.fusion.prompts
    assert torch.equal(after.router.keys[:, :3], before.router.keys)
    for layer, experts in enumerate(after.experts.prompts):
        assert torch.equal(experts[:3], before.experts.prompts[layer])
        assert torch.equal(experts[3:], before.experts.prompts[layer])
    apart = (after.router.keys[:, 3:] - before.router.keys).abs()
    assert 0.02 < apart.mean() < 0.3
    # With the keys of the copies where they were, a row's mixture is the same.
    with torch.no_grad():
        after.router.keys[:, 3:] = before.router.keys
    batch = {
        "image": {"pixel_values": torch.randn(2, 3, 28, 28)},
        "text": {
            "input_ids": torch.tensor([[2, 5, 3], [2, 7, 3]]),
            "attention_mask": torch.ones(2, 3).long(),
        },
    }
    torch.testing.assert_close(model(**batch).logits, old(**batch).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("similarity", "temperature"), [("cosine", 0.2), ("dot", 1.0), ("dot", 0.1)])
def test_a_grown_router_mixes_rows_nearly_as_before(similarity, temperature):
    torch.manual_seed(0)
    routing = {"similarity": similarity, "temperature": temperature, "keys": "orthogonal"}
    prompts = [FusionPrompts(DIMS, FEATURES, length=2, experts=k, **routing).eval() for k in (4, 8)]
    state = grow(prompts[0].state_dict(), prompts[1].router)
    prompts[1].load_state_dict(state)
    psi = {name: torch.randn(64, width) for name, width in FEATURES.items()}
    x0 = torch.randn(64, DIMS[0])
    before, after = (p.router(0, p.router.embed(psi), x0) for p in prompts)
    moved = (after.view(64, 2, 4).sum(dim=1) - before).abs().sum(dim=1) / 2
    assert 0 < moved.mean() < 0.08


def test_growing_trains_on_and_says_what_does_not_fit(weights, tables, tmp_path):
    config = config_of(weights, tables, tmp_path)
    first = train(config, report=lambda line: None)
    grown = changed(
        config,
        fusion={"experts": 6},
        training={"begin_from": config.output, "epochs": 1, "learning_rate": 1e-6, "head_factor": 1.0},
        output=str(tmp_path / "grown"),
    )
    assert train(grown, report=lambda line: None)["validation"]["loss"] == pytest.approx(
        first["validation"]["loss"], rel=0.05
    )
    for fusion, said in (
        ({"experts": 4}, "has 3: take a multiple"),
        ({"length": 3}, "another model's"),
        ({"joining": "added"}, "has fusion.joining beside, not added: .* Set fusion.joining to beside"),
        ({"similarity": "dot"}, "has fusion.similarity cosine, not dot"),
        ({"standardise": False}, "has fusion.standardise true, not false"),
        ({"top": 1}, "fusion.top is 1, .* gives a row 3 of its 3 experts: with 6 set it to 6"),
    ):
        wrong = changed(grown, fusion=fusion, output=str(tmp_path / "wrong"))
        with pytest.raises(UserError, match=said):
            train(wrong, report=lambda line: None)
    wrong = changed(grown, output=str(tmp_path / "wrong"))
    wrong.inputs["text"].encoder.pooling = "mean"
    with pytest.raises(UserError, match=r"has inputs\.text\.encoder\.pooling null, not mean"):
        train(wrong, report=lambda line: None)


def test_what_has_no_router_cannot_be_grown(weights, tables, tmp_path):
    config = changed(config_of(weights, tables, tmp_path), fusion={"experts": 1})
    FusionModel.build(config, ["blue", "green", "red"]).save_pretrained(config.output)
    model = FusionModel.build(changed(config, fusion={"experts": 2}), ["blue", "green", "red"])
    with pytest.raises(UserError, match="fewer than two experts has no router, and nothing to be grown"):
        model.begin_from(config.output)


def test_a_grown_model_gives_a_row_as_many_copies(weights, tables, tmp_path):
    """With one of three experts to a row before, two of six, which share its score, make the same prompt."""
    config = changed(config_of(weights, tables, tmp_path), fusion={"top": 1})
    train(config, report=lambda line: None)
    wanted = changed(config, fusion={"experts": 6, "top": 2}, training={"begin_from": config.output})
    old, model = (
        FusionModel.from_pretrained(config.output),
        FusionModel.build(wanted, ["blue", "green", "red"]),
    )
    model.begin_from(config.output)
    before, after = old.fusion.prompts.eval(), model.fusion.prompts.eval()
    with torch.no_grad():
        after.router.keys[:, 3:] = before.router.keys
    psi, x0 = {"text": torch.randn(5, 32)}, torch.randn(5, 32)
    mixed = [
        prompts.experts(0, prompts.router(0, prompts.router.embed(psi), x0)) for prompts in (before, after)
    ]
    torch.testing.assert_close(mixed[1], mixed[0], atol=1e-6, rtol=1e-4)


def test_what_was_fitted_to_validation_rows_is_left_behind(weights, tables, tmp_path):
    """A run that goes on is judged as one that begins anew: without the other's temperature."""
    config = config_of(weights, tables, tmp_path)
    model = FusionModel.build(config, ["blue", "green", "red"])
    model.task.temperature.fill_(3.0)
    model.save_pretrained(config.output)
    assert FusionModel.from_pretrained(config.output).task.temperature == 3.0
    wanted = changed(config, training={"begin_from": config.output})
    again = FusionModel.build(wanted, ["blue", "green", "red"])
    again.begin_from(config.output)
    assert again.task.temperature == 1.0


def test_expert_dropout_leaves_a_row_without_some_experts_in_training_only():
    router = Router(DIMS, FEATURES, experts=4, expert_dropout=0.5)
    torch.manual_seed(0)
    psi = {name: torch.randn(400, dim) for name, dim in FEATURES.items()}
    x0, embedded = torch.randn(400, DIMS[0]), router.embed(psi)
    scores = router.train()(0, embedded, x0)
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(400))
    without = (scores == 0).float()
    # Each is left out by half of the rows, but for the one row in sixteen that would be left with none.
    torch.testing.assert_close(without.mean(dim=0), torch.full((4,), 0.5 - 0.5**4), atol=0.08, rtol=0)
    assert without.sum(dim=1).max() < 4
    assert (router.eval()(0, embedded, x0) > 0).all()


def test_expert_dropout_draws_the_same_noise_beside_it():
    drawn = []
    for dropout in (0.0, 0.5):
        router = Router(DIMS, FEATURES, experts=4, expert_dropout=dropout)
        drawn.append(router.draw(2, 9, generator=torch.Generator().manual_seed(3)))
    assert drawn[1].isneginf().any()
    torch.testing.assert_close(drawn[1], drawn[0].masked_fill(drawn[1].isneginf(), float("-inf")))


def test_a_model_learns_with_expert_dropout(weights, tables, tmp_path):
    config = Config.parse(tiny_run(weights, tables, tmp_path / "run"))
    config = changed(config, fusion={"expert_dropout": 0.3}, training={"epochs": 1})
    assert train(config)["history"][-1]["eval_loss"] > 0
