"""What a training begins with: what mappers, routers and heads see of rows, and what methods share."""

import re

import pytest
import torch
from run_tester import changed, config_of, enlarged

from mope.fusion.guiding import entering, prompts_begin
from mope.heads import LinearHead
from mope.model import FusionModel
from mope.prompts import FusionPrompts
from mope.prompts.mapper import Mapper
from mope.training.rows import drawn, first_batches, prepare
from mope.training.steps import StepBatches

DIMS, FEATURES = [8, 8, 12], {"text": 6, "audio": 5}


@pytest.mark.parametrize(
    "fusion",
    [
        {"method": "sequential", "prompts": ["static", "mapped"]},
        {"method": "sequential", "experts": 1},
        {"method": "sequential"},
        {"method": "mutual", "length": 2},
    ],
    ids=["no experts", "one expert", "routed", "mutual"],
)
def test_what_a_head_begins_with_is_what_a_training_step_makes_of_the_rows(weights, tables, tmp_path, fusion):
    """A step norms by its batch; running statistics have to be as if they had seen some already."""
    large = enlarged(weights, tmp_path)  # so that prompts matter to what enters the layers behind
    config = changed(config_of(large, tables, tmp_path), fusion={**fusion, "dropout": 0.0})
    torch.manual_seed(0)
    model, rows = prepare(config, None, report=lambda line: None)
    (batch,) = first_batches(rows["train"], 512, 512, 0, model.task)
    labels = batch.pop("labels")
    assert len(labels) > 20
    model.begin(lambda: iter([batch]))
    for guided in model.fusion.guided.values():
        assert all(mapper.down[1].running_var.std() > 0 for mapper in guided.mappers.values())
        if guided.router is not None:
            guided.router.noise = lambda layer: torch.zeros(1)
    with torch.no_grad():
        begun = model.eval().features(batch)
        model.train()
        for encoder in model.fusion.encoders:
            model.fusion.encoder(encoder).eval()  # of its prompts' dropout nothing is asked
        stepped = model.features(batch)
    spread = stepped.std(dim=0).mean()
    assert (begun - stepped).abs().mean() < 0.1 * spread


def test_a_router_begins_with_the_features_that_its_own_prompts_let_in(weights, tables, tmp_path):
    config = config_of(enlarged(weights, tmp_path), tables, tmp_path, length=8, experts=8, temperature=0.05)
    torch.manual_seed(0)
    model, rows = prepare(config, None, report=lambda line: None)
    (batch,) = first_batches(rows["train"], 512, 512, 0, model.task)
    model.begin(lambda: iter([batch]))
    model.eval()
    fusion, batch = model.fusion, model.normed({name: batch[name] for name in ("image", "text")})
    with torch.no_grad():
        psi = {"text": fusion.feature("text", batch).float()}
        x0 = entering(fusion, "image", fusion.prompts, psi, [batch])
    for norm, feature in zip(fusion.prompts.router.intra_norms, x0, strict=True):
        off = (norm.running_mean - feature.mean(dim=0)) * (norm.running_var + norm.eps).rsqrt()
        assert off.square().mean().sqrt() < 0.05


def test_methods_of_one_seed_begin_alike_in_all_but_their_experts(weights, tables, tmp_path):
    """So that what is paired by seed differs in what is compared, and not in luck."""
    config = config_of(weights, tables, tmp_path)
    states = {}
    for name, fusion in {
        "none": {"prompts": ["static", "mapped"]},
        "three": {},
        "many": {"experts": 7},
        "long": {"length": 5},
    }.items():
        torch.manual_seed(3)
        model = FusionModel.build(changed(config, fusion=fusion), ["blue", "green", "red"])
        states[name] = {key: value for key, value in model.named_parameters() if value.requires_grad}
    for name in ("three", "many", "long"):
        shared = [key for key in states["none"] if re.search(r"mappers|encoders", key)]
        assert len(shared) > 4
        if name != "long":
            shared += [key for key in states["none"] if ".static." in key]
        for key in shared:
            assert torch.equal(states["none"][key], states[name][key]), key


def test_a_head_begins_with_other_rows_than_the_first_steps():
    for seed in range(3):
        (steps,) = StepBatches(4000, 4000, seed=seed)
        assert len(set(steps[:1024]) & set(drawn(4000, 1024, seed))) < 400  # 262 by chance


def test_a_bias_in_front_of_a_norm_stays_where_it_is():
    """It has no gradient but roundings, of which Adam makes whole steps."""
    mapper = Mapper(6, [8])
    before = mapper.down[0].bias.clone()
    optimizer = torch.optim.AdamW(mapper.parameters(), lr=0.1, weight_decay=0.0)
    for _ in range(5):
        optimizer.zero_grad()
        mapper(torch.randn(12, 6))[0].square().sum().backward()
        optimizer.step()
    assert torch.equal(mapper.down[0].bias, before)


def test_a_linear_head_is_in_float32_under_autocast():
    head, features = LinearHead(40, 3), torch.randn(5, 40)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(features)
    assert torch.equal(found, head(features))


def test_a_router_of_standardised_features_of_its_own_input_begins_from_rows():
    parts = ("static", "dynamic")
    for intra, cross in ((2, 0), (0, 4), (2, 4)):
        prompts = FusionPrompts(
            DIMS,
            FEATURES,
            parts=parts,
            length=2,
            experts=3,
            cross_dim=cross,
            intra_dim=intra,
            standardise=True,
        )
        assert prompts_begin(prompts)
    assert not prompts_begin(FusionPrompts(DIMS, FEATURES, parts=parts, length=2, experts=3))
    assert prompts_begin(FusionPrompts(DIMS, FEATURES, parts=("mapped",), length=2))
