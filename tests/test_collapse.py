"""Whether experts are used: what an epoch's line says, and the end of a training."""

import pytest
import torch
from run_tester import changed, quiet

from mope.config import Config
from mope.training import train
from mope.training.collapse import Use, collapse, effective_experts

PUBLISHED = {"standardise": False, "similarity": "dot", "keys": "orthogonal"}


def use(used: list[float], uneven: list[float] | None = None) -> Use:
    """Of layers with four experts."""
    return Use(4, used, uneven or [0.0] * len(used), 0.1)


def entry(step: int, used: list[float], uneven: list[float] | None = None) -> dict:
    """What is kept of an epoch of ten steps, of four experts."""
    uneven = uneven or [4 / one - 1 for one in used]
    return {"step": step, "epoch": step / 10, "experts": 4, **use(used, uneven).logged()}


def test_effective_experts():
    importance = torch.tensor([[1.0, 1.0, 1.0, 1.0], [5.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(effective_experts(importance), torch.tensor([4.0, 1.0, 2.0]))


def test_layers_are_counted_that_a_mean_would_hide():
    assert use([1.0] * 5 + [3.9] * 7).in_short() == "experts used 2.69 of 4 (few in 5 of 12 layers)"
    assert use([1.0] * 3 + [3.9] * 9).few == 3
    assert use([1.0] * 2 + [3.9] * 10).in_short() == "experts used 3.42 of 4"  # a quarter isn't reached
    assert use([2.0] * 12).few == 0  # half of four is enough
    said = use([1.0] * 3 + [3.9] * 9, [3.0] * 3 + [0.2] * 2 + [0.1] * 7).in_short()
    assert said.endswith("(few in 3 of 12 layers, uneven in 5 of 12 layers)")
    assert Use(4, [3.9] * 4, [3.0] * 4).in_short() == "experts used 3.90 of 4"  # a fusion without that loss


def test_imbalance_is_that_of_the_loss_without_what_so_few_rows_have_by_chance(config):
    rows = torch.tensor([[700.0, 100.0, 100.0, 100.0], [250.0, 250.0, 250.0, 250.0]])
    found = Use.of(rows, config)
    expected = rows[0].var(correction=0) / rows[0].mean() ** 2  # Eq. 6
    assert found.uneven == pytest.approx([float(expected) - 3 / 1000, 0.0])
    assert (found.unbalanced, found.threshold) == (1, config.fusion.importance_threshold)
    generator = torch.Generator().manual_seed(0)
    of_few = torch.rand(12, 8, 4, generator=generator).argmax(dim=2)  # 12 layers, a row chooses one of four
    counts = torch.nn.functional.one_hot(of_few, 4).sum(dim=1).float()
    assert (counts.var(dim=1, correction=0) / counts.mean(dim=1) ** 2 > 0.1).sum() > 6
    assert Use.of(counts, config).unbalanced < 6


def test_the_end_says_in_how_many_layers_and_of_the_epoch_that_is_kept(config):
    collapsed, fine = [1.0] * 5 + [3.9] * 7, [3.9] * 12
    said = collapse([entry(10, collapsed), entry(20, fine)], 10, config)
    assert said is not None
    assert said.startswith(
        "Few of the experts are used: in 5 of 12 layers fewer than half of 4 (2.7 on average"
    )
    assert "This is of epoch 1, whose weights are kept." in said
    assert collapse([entry(10, fine), entry(20, collapsed)], 10, config) is None
    said = collapse([entry(10, fine), entry(20, collapsed)], 20, config)
    assert said is not None
    assert "whose weights are kept" not in said
    assert collapse([], 0, config) is None
    assert collapse([{"step": 10, "epoch": 1.0}], 10, config) is None  # no experts


def test_uneven_use_is_said_at_the_end(config):
    said = collapse([entry(10, [3.4] * 4, [0.25] + [0.05] * 3)], 10, config)
    assert said is not None
    assert said.startswith("Experts are used unevenly: in 1 of 4 layers the imbalance is above")
    assert "fusion.importance_threshold, 0.1 (0 is even use; 0.25 at most)" in said
    assert "Few of the experts" not in said


def advice(config: Config, **fusion) -> str:
    said = collapse([entry(10, [1.0, 1.0]), entry(20, [1.0, 1.0])], 10, changed(config, fusion=fusion))
    assert said is not None
    assert "--method" not in said  # `mope fit` has none
    return said


def test_only_what_would_change_something_is_advised(config):
    said = advice(config, experts=4)  # MoPE-clusters already
    assert "--fusion.keys" not in said
    assert (
        "a higher --fusion.temperature (it is 0.2); a larger --fusion.importance_weight (it is 0.01)" in said
    )
    assert "fewer --fusion.experts (they are 4)" in said
    assert f"`mope explain {config.output}`" in said
    assert "--fusion.experts 1, one prompt for all rows" in said
    untested = changed(config, data={"test": None})  # as of `mope fit`
    said = collapse([entry(10, [1.0, 1.0])], 10, untested)
    assert said is not None
    assert f"`mope explain {config.output} --data TABLE`" in said
    said = advice(config, experts=4)
    assert "--fusion.top" not in said
    assert "the last one was the best" not in said
    said = advice(config, **PUBLISHED)
    assert "--fusion.keys clusters --fusion.standardise true --fusion.similarity cosine, so that" in said
    assert "temperature (it is 0.1)" in said
    assert "--fusion.keys clusters, so that" in advice(config, keys="learned")
    said = advice(config, importance_threshold=5.0)  # above what even one expert alone has
    assert "a smaller --fusion.importance_threshold (it is 5)" in said
    assert "--fusion.importance_weight" not in said
    assert "--fusion.top null" in advice(config, top=1, experts=4)
    said = advice(config, temperature=1.0, importance_weight=1.0, experts=2)
    assert "What may help" not in said
    last = collapse([entry(10, [1.0, 1.0])], 10, config)
    assert last is not None
    assert "more epochs, for the last one was the best" in last
    last = collapse([entry(10, [1.0, 1.0])], 10, changed(config, training={"minutes": 1.0}))
    assert last is not None
    assert "more minutes, for the last epoch was the best" in last


def test_what_dropout_spreads_is_collapsed_all_the_same(config):
    """What counts is how rows are routed when it matters, not which experts training left them."""
    settings = {"temperature": 0.001, "experts": 8, "importance_weight": 0.0, "expert_dropout": 0.8}
    history = train(changed(config, fusion={**settings, **PUBLISHED}), report=quiet)["history"]
    shares = torch.tensor(history[-1]["importance"])
    assert float(effective_experts(shares).mean()) > 4 > history[-1]["experts_used"]
    assert collapse(history, history[-1]["step"], config) is not None


@pytest.mark.parametrize(("temperature", "collapsed"), [(0.001, True), (100.0, False)])
def test_collapsed_experts_are_seen(config, temperature, collapsed):
    """Each row's scores at a temperature near zero are all of one expert's, and here the same one's."""
    config = changed(
        config, fusion={"temperature": temperature, "experts": 8, "importance_weight": 0.0, **PUBLISHED}
    )
    lines = []
    history = train(config, report=lines.append)["history"]
    assert (history[-1]["experts_used"] < 4) == collapsed
    assert history[-1]["experts_used"] == pytest.approx(sum(history[-1]["used"]) / 2)
    assert lines[2].count("of 8 (few in 2 of 2 layers, uneven in 2 of 2 layers)") == collapsed
    said = [line for line in lines if "Few of the experts are used: in 2 of 2 layers" in line]
    assert len(said) == collapsed
    assert ("larger --fusion.importance_weight (it is 0)" in "".join(said)) == collapsed


def test_the_training_asks_the_epoch_that_is_kept(config, monkeypatch):
    asked = []
    monkeypatch.setattr("mope.training.launch.collapse", lambda *given: asked.append(given[:2]))
    rates = dict.fromkeys(("learning_rate", "complementary_learning_rate", "encoder_learning_rate"), 1e-9)
    result = train(changed(config, fusion=PUBLISHED, training={"epochs": 2, **rates}), report=quiet)
    (history, best), *others = asked
    assert not others
    assert [one["epoch"] for one in history if one["step"] == best] == [result["best_epoch"]]
    assert result["best_epoch"] < history[-1]["epoch"]  # nothing is learned, so the first is as good
    assert all({"used", "uneven"} <= set(one) for one in history)
