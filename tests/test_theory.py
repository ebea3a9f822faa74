"""Appendix C's theorems in numbers, against slow, obvious references."""

import json
import math

import pytest
import torch

from mope.cli import main
from mope.predictor import Predictor
from mope.studies.theory import TheorySettings, study_theory
from mope.studies.theory.fit import fit_experts, fit_prompts, mixed_maps
from mope.studies.theory.layer import distance, floor, random_layer
from mope.studies.theory.runs import (
    Seen,
    dynamic_part,
    routed_prompts,
    run_layer,
    spread_of_prompts,
    watch_run,
    wishes_shared,
)
from mope.studies.theory.theorems import draw, theorem_one, theorem_two
from mope.training import train

TINY = TheorySettings(instances=4, experts=(1, 2), dimensions=(1,), pairs=2, steps=5, rows=8)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_map_is_a_softmax_over_prompts_and_tokens():
    layer = random_layer(2, seeded(), tokens=3)
    prompts = draw(layer, 2, 2, generator=seeded())
    maps, keys = layer.maps(prompts), layer.keys(prompts)
    for row in range(2):
        for head in range(2):
            for token in range(3):
                query = layer.queries[row, head, token]
                beside = [math.exp(float(query @ keys[row, head, p])) for p in range(2)]
                own = [math.exp(float(one)) for one in layer.logits[row, head, token]]
                for other in range(3):
                    expected = own[other] / (sum(beside) + sum(own))
                    assert float(maps[row, head, token, other]) == pytest.approx(expected)


def test_prompts_only_scale_rows_and_nothing_goes_below_the_floor():
    layer = random_layer(3, seeded(), tokens=4)
    maps = layer.maps(draw(layer, 3, 5, generator=seeded()))
    torch.testing.assert_close(maps / maps.sum(dim=-1, keepdim=True), layer.bare)
    wanted = torch.rand(maps.shape, generator=seeded(), dtype=torch.float64)
    wanted = 0.5 * wanted / wanted.sum(dim=-1, keepdim=True)
    least = floor(layer.bare, wanted)
    grid = torch.linspace(0, 1, 501, dtype=torch.float64)
    for row in range(3):
        total = 0.0
        for head in range(2):
            for token in range(4):
                errors = [(s * layer.bare - wanted)[row, head, token].square().sum() for s in grid]
                total += float(min(errors))
        assert float(least[row]) == pytest.approx(total**0.5, rel=1e-4)
    assert (distance(maps, wanted) >= least - 1e-12).all()


def test_the_best_global_prompt_is_as_good_as_a_grid_finds():
    layer = random_layer(2, seeded(), tokens=4, heads=1, head_width=2)
    wanted = layer.maps(draw(layer, 2, generator=seeded()).unsqueeze(1))
    starts = [torch.zeros(1, 2, dtype=torch.float64), draw(layer, 1, generator=seeded())]
    found = float(fit_prompts(layer, wanted, starts, 2, 60).sum())
    axis = torch.linspace(-12, 12, 241, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    maps = layer.maps(grid[:, None, None, :].expand(-1, 2, 1, -1))
    best = float(distance(maps, wanted).sum(dim=1).min())
    assert found <= best * 1.02 + 1e-6
    assert float(fit_prompts(layer, wanted, [starts[1].repeat(2, 1)], 1, 60).sum()) <= found


def test_theorem_one_and_its_counterexample():
    found = theorem_one(random_layer(6, seeded()), seeded(), steps=40)
    assert found["each its own prompt's"]["least_gap"] > 0.01
    same = found["one prompt's"]
    assert same["separation"] > 0.1  # the optimal maps differ ...
    assert same["gap"] == pytest.approx(0, abs=1e-6)  # ... and one global prompt has both
    half = found["half the tokens"]
    assert half["floor"] <= half["own"] + 1e-9
    assert half["own"] <= half["shared"] <= half["bare"]


def test_mixing_is_a_sum_by_hand():
    layer = random_layer(2, seeded(), tokens=3)
    experts = draw(layer, 3, generator=seeded())
    scores = torch.rand(2, 3, generator=seeded(), dtype=torch.float64)
    scores = scores / scores.sum(dim=1, keepdim=True)
    for row in range(2):
        one = layer.maps(sum(scores[row, j] * experts[j] for j in range(3)).expand(2, 1, -1))[row]
        torch.testing.assert_close(mixed_maps(layer, experts, scores, "prompts")[row], one)
        many = sum(scores[row, j] * layer.maps(experts[j].expand(2, 1, -1))[row] for j in range(3))
        torch.testing.assert_close(mixed_maps(layer, experts, scores, "maps")[row], many)


def test_theorem_two_as_many_experts_as_instances_or_dimensions_are_enough():
    layer = random_layer(3, seeded())
    own = draw(layer, 3, generator=seeded())
    wanted = layer.maps(own.unsqueeze(1))
    errors, scores = fit_experts(layer, wanted, [own], "prompts", 80)
    assert float(errors.max()) < 1e-3  # case 1: an expert for each
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(3, dtype=torch.float64))
    layer = random_layer(12, seeded())
    guide = torch.randn(12, 3, generator=seeded(), dtype=torch.float64)
    one, two = theorem_two(layer, guide, 1, [1, 2], seeded(), 60)
    assert "router" not in one
    assert one["prompts"] == pytest.approx(one["global"], rel=1e-3)
    assert two["prompts"] < 0.1 * two["global"]  # m + 1 experts
    assert two["prompts"] < two["maps"]  # what Theorem 2 mixes isn't what the model mixes


def test_wishes_are_shared_as_a_regression_by_hand_says():
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    wishes = torch.tensor(
        [[[9.0], [2.0], [0.0]], [[9.0], [5.0], [0.0]], [[9.0], [0.0], [3.0]], [[9.0], [0.6], [0.8]]]
    )
    found = wishes_shared(Seen(wishes=[wishes], scores=[scores]), slice(1, 3))
    # One unit long: (1, 0), (1, 0), (0, 1) and (0.6, 0.8); the first prompt isn't the dynamic one.
    assert found["one"] == pytest.approx(0.65**2 + 0.45**2)
    assert found["router"] == pytest.approx((2 * 1 + 2 * (0.3**2 + 0.9**2)) / 4)
    assert found["k groups"] == pytest.approx((2 * 1 + 2 * (0.3**2 + 0.9**2)) / 4)
    assert found["chance"] <= found["router"]


@pytest.fixture
def run(config):
    train(config.with_settings({"training.epochs": 1}), report=lambda line: None)
    return config.output


def test_a_run_is_watched_without_being_changed(run):
    predictor = Predictor(run, precision="fp32")
    prompts, encoder = routed_prompts(predictor)
    table = predictor.table().select(range(6))
    before = [one.probabilities for one in predictor.predict(table)]
    seen, loss = watch_run(predictor, 6, None, 4)
    assert [one.probabilities for one in predictor.predict(table)] == before
    assert len(seen) == 2
    given = torch.cat(seen[1].prompts)
    assert given.shape == torch.cat(seen[1].wishes).shape == (6, 2 + 2 + 1, 32)
    scores, begin = torch.cat(seen[1].scores), prompts.length
    for row in range(6):  # Eq. 4 by hand
        dynamic = sum(scores[row, j] * prompts.experts.prompts[1][j] for j in range(3))
        torch.testing.assert_close(given[row, begin : begin + 2], dynamic)
    layer = run_layer(seen[1], encoder, 1)
    assert layer.instances == 4
    maps = layer.maps(given[:4].double())
    torch.testing.assert_close(maps / maps.sum(dim=-1, keepdim=True), layer.bare)
    alike, same = watch_run(predictor, 6, None, 0, [expert[0] for expert in prompts.experts.prompts])
    given = torch.cat(alike[1].prompts)[:, dynamic_part(prompts)]
    torch.testing.assert_close(given, prompts.experts.prompts[1][0].expand(6, -1, -1))
    assert same != loss
    spread = spread_of_prompts(seen[1], prompts)
    assert 1 <= spread["directions"] <= 2 + 1e-6


def test_gradients_of_rows_are_those_of_one_row_alone(run):
    predictor = Predictor(run, precision="fp32", batch_size=3)
    together = torch.cat(watch_run(predictor, 5, None, 2)[0][1].wishes)
    predictor.batch_size = 1
    alone = torch.cat(watch_run(predictor, 5, None, 2)[0][1].wishes)
    # What is near zero beside the others is so by cancelling out, and is mostly roundings.
    torch.testing.assert_close(together, alone, atol=1e-4 * float(alone.abs().max()), rtol=1e-4)


def test_the_command_writes_json_a_table_and_a_picture(run, tmp_path, capsys):
    out = tmp_path / "theory"
    sizes = ["--instances", "4", "--experts", "1,2", "--dimensions", "1", "--pairs", "2", "--steps", "5"]
    assert main(["study", "theory", run, "--out", str(out), "--rows", "8", *sizes]) == 0
    said = capsys.readouterr().out
    assert "one global" in said
    result = json.loads((out / "theory.json").read_text())
    assert [entry["layer"] for entry in result["layers"]] == [1, 2]
    assert set(result["theorem_1_of_run"]) == {"1", "2"}
    assert (out / "theory.png").stat().st_size > 10_000
    assert "| m | k |" in (out / "table.md").read_text()


def test_what_does_not_fit_is_said_in_a_sentence(config, tmp_path, capsys):
    assert main(["study", "theory", "--experts", "1,x"]) == 2
    assert "--experts is '1,x'" in capsys.readouterr().err
    assert main(["study", "theory", "--pairs", "1"]) == 2
    assert "at least 2 instances" in capsys.readouterr().err
    plain = config.with_settings({"training.epochs": 1, "fusion.experts": 1})
    train(plain, report=lambda line: None)
    assert main(["study", "theory", plain.output, "--out", str(tmp_path / "t")]) == 2
    assert "has no experts" in capsys.readouterr().err


def test_the_study_is_the_same_for_the_same_seed(tmp_path):
    first, second = (study_theory(TINY, tmp_path / name, report=lambda line: None) for name in "ab")
    assert first == second
