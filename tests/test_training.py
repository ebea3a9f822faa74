"""Whole runs over tiny encoders: what is trained, what is kept, and what a run gives back."""

import json
import re
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from run_tester import changed, enlarge, losses, quiet
from safetensors.torch import load_file

from mope.bulk import evaluate
from mope.data.table import open_table
from mope.errors import UserError
from mope.methods import find_method
from mope.model import FusionModel
from mope.predictor import Predictor
from mope.training import train

MOPE = {
    "fusion.experts",
    "fusion.mappers",
    "fusion.router",
    "fusion.static",
    "head",
    "text prompts",
}


def trained_parts(model: FusionModel) -> set[str]:
    counts = model.count_parameters()
    return {part.replace("fusion ", "fusion.") for part, count in counts.items() if count["trainable"]}


def test_mope_learns_only_what_it_declares_and_keeps_the_rest_bit_for_bit(config):
    # A head that begins as a probe knows most of so few rows already.
    rates = {"learning_rate": 5e-3, "complementary_learning_rate": 5e-3}
    config = changed(config, training={"epochs": 20, "patience": 20, "head_start": "random", **rates})
    torch.manual_seed(config.training.seed)
    before = FusionModel.build(config, ["blue", "green", "red"])
    frozen = {n: p.clone() for n, p in before.named_parameters() if not p.requires_grad}
    lines = []
    result = train(config, report=lines.append)
    history = losses(result)
    assert history[-1] < 0.8 * history[0]
    model = FusionModel.from_pretrained(config.output)
    assert trained_parts(model) == MOPE
    after = dict(model.named_parameters())
    assert len(frozen) > 20
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert result["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert "48 training rows, 16 validation rows, 3 labels" in lines[0]
    assert "experts used" in lines[1]
    assert "learning rate" in lines[1]


def test_only_declared_parameters_get_gradients_and_frozen_encoders_stay_in_eval_mode(config):
    model = FusionModel.build(config, ["blue", "green", "red"]).train()
    batch = {
        "image": {"pixel_values": torch.randn(4, 3, 28, 28)},
        "text": {
            "input_ids": torch.randint(5, 12, (4, 6)),
            "attention_mask": torch.ones(4, 6, dtype=torch.long),
        },
    }
    output = model(labels=torch.tensor([0, 1, 2, 0]), **batch)
    output.loss.backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    declared = {name for name, p in model.named_parameters() if p.requires_grad}
    # What enters the first layer is the class token, the same in every row: standardised, it is zero. What a
    # norm takes away again has no gradient.
    none = {"fusion.prompts.router.intra.0.weight", "fusion.prompts.mappers.text.down.0.bias"}
    assert got == declared - none
    for name in model.fusion.encoders:
        assert not any(module.training for module in model.fusion.encoder(name).encoder.modules())
    assert model.fusion.prompts.training
    assert [tuple(s.shape) for s in output.scores] == [(4, 3)] * 2
    weight, parts = config.fusion.importance_weight, output.losses
    torch.testing.assert_close(output.loss, parts["task"] + weight * parts["importance"])


def test_what_is_trained_is_what_is_saved(config):
    train(config, report=quiet)
    folder = Path(config.output)
    saved = load_file(folder / "model.safetensors")
    model = FusionModel.from_pretrained(folder)
    buffers = {name for name, _ in model.named_buffers() if not name.startswith("fusion.encoders.")}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(saved) == trained | (buffers - {"task.weight"})
    assert any(name.endswith("router.keys") for name in saved)
    assert any(name.endswith("running_mean") for name in saved)
    checkpoint = next((folder / "checkpoints").glob("checkpoint-*"))
    assert set(load_file(checkpoint / "model.safetensors")) == set(saved)
    assert (folder / "model.safetensors").stat().st_size < 200_000
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["run"]["labels"] == ["blue", "green", "red"]
    assert {"mope", "torch", "transformers", "python"} <= set(settings["run"]["versions"])
    assert "Validation" in (folder / "README.md").read_text()
    assert list((folder / "tensorboard").iterdir())


def test_two_runs_with_one_seed_are_the_same_and_another_seed_differs(config, tmp_path):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run = changed(config, output=str(tmp_path / name), training={"seed": seed})
        train(run, report=quiet)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["head.linear.weight"], weights[2]["head.linear.weight"])


def test_early_stopping_keeps_the_best_epoch(config):
    config = changed(config, training={"epochs": 30, "patience": 1, "learning_rate": 0.3, "warmup": 0.0})
    result = train(config, report=quiet)
    assert len(result["history"]) < 30
    best = max(entry["eval_accuracy"] for entry in result["history"])
    assert result["validation"]["accuracy"] == best
    again = evaluate(config.output, config.data.validation, report=quiet)
    assert again["accuracy"] == pytest.approx(best)


PRESETS = {
    "p_seqfuse": (
        {"prompts": ["static", "mapped"]},
        "frozen",
        "prompt",
        {"fusion.static", "fusion.mappers", "text prompts", "head"},
    ),
    "seqfuse": (
        {"prompts": ["mapped"]},
        "full",
        "full",
        {"image encoder", "text encoder", "fusion.mappers", "head"},
    ),
    "static_only": ({"prompts": ["static"]}, "frozen", "frozen", {"fusion.static", "head"}),
    "dynamic_only": (
        {"prompts": ["dynamic"]},
        "frozen",
        "frozen",
        {"fusion.experts", "fusion.router", "head"},
    ),
    "hard": ({"top": 1}, "frozen", "prompt", MOPE),
    "one_expert": ({"experts": 1}, "frozen", "prompt", MOPE - {"fusion.router"}),
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_prompt_subset_and_tuning(config, name):
    fusion, image, text, expected = PRESETS[name]
    config = changed(
        config,
        fusion=fusion,
        inputs__image__encoder={"tuning": image},
        inputs__text__encoder={"tuning": text},
        training={
            "epochs": 8,
            "learning_rate": 2e-3,
            "complementary_learning_rate": 2e-3,
            "patience": 9,
            "head_start": "random",
        },
    )
    history = losses(result := train(config, report=quiet))
    assert history[-1] < history[0]
    model = FusionModel.from_pretrained(config.output)
    assert trained_parts(model) == expected
    assert result["trainable"] + result["frozen"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("tuning", ["prompt", "full"])
@pytest.mark.parametrize("name", ["image", "text"])
def test_unimodal_reads_its_own_input_alone(config, name, tuning, tmp_path):
    config = changed(
        config,
        fusion={"method": "unimodal", "main": name},
        **{f"inputs__{name}__encoder": {"tuning": tuning}},
    )
    train(config, report=quiet)
    model = FusionModel.from_pretrained(config.output)
    assert list(model.fusion.encoders) == [name]
    assert trained_parts(model) == {"head", f"{name} {'prompts' if tuning == 'prompt' else 'encoder'}"}
    column = config.inputs[name].column
    rows = [{column: row[column]} for row in open_table(config.data.test)]
    if name == "image":
        rows = [{column: str(Path(config.data.test).parent / row[column])} for row in rows]
    assert all(
        p.error is None and not p.routing for p in Predictor(config.output, device="cpu").predict(rows)
    )


@pytest.mark.parametrize(("task", "label"), [("multilabel", "colours"), ("regression", "number")])
def test_other_tasks(config, task, label):
    config = changed(
        config, task=task, data={"label": label}, training={"epochs": 8, "learning_rate": 5e-3, "patience": 9}
    )
    history = losses(result := train(config, report=quiet))
    assert history[-1] < history[0]
    predictor = Predictor(config.output, device="cpu")
    prediction = predictor.predict(open_table(config.data.test))[0]
    if task == "multilabel":
        above = result["calibration"]["thresholds"]
        assert prediction.label == [name for name, p in prediction.probabilities.items() if p > above[name]]
        assert result["metric"] == "f1_macro"
    else:
        assert isinstance(prediction.label, float)
        assert prediction.probabilities == {}
        metrics = evaluate(config.output, report=quiet)
        errors = [
            p.label - float(row["number"])
            for p, row in zip(
                Predictor(config.output, device="cpu").predict(open_table(config.data.test)),
                open_table(config.data.test),
                strict=True,
            )
        ]
        assert metrics["rmse"] == pytest.approx(numpy.sqrt(numpy.mean(numpy.square(errors))), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusion": {"method": "concatenate"}}, "no fusion.method 'concatenate': take one of"),
        ({"inputs__image": {"column": "photo"}}, "no column 'photo': it has picture"),
        ({"data": {"label": "animal"}}, "no column 'animal'"),
        ({"data": {"train": "none.csv"}}, "There is no table none.csv"),
        ({"data": {"train": None}}, "no train rows: name a table in data.train"),
        ({"training": {"metric": "bleu"}}, "no metric 'bleu'"),
        ({"training": {"device": "tpu"}}, "no device 'tpu' here"),
        ({"inputs__text": {"kind": "image"}}, "inputs.text holds images, but its encoder reads texts"),
        (
            {"inputs__image__encoder": {"tuning": "prompt"}},
            "set inputs.image.encoder.tuning to frozen or full",
        ),
        ({"inputs__image__encoder": {"weights": "./nowhere"}}, "There are no weights nowhere"),
        ({"inputs__image__encoder": {"weights": "package:nothing"}}, "No weights named package:nothing"),
        ({"inputs__image__encoder": {"weights": None}}, "needs weights, or an architecture"),
        (
            {"inputs__image__encoder": {"architecture": {"hidden_size": 64}}},
            "have hidden_size = 32, but the config's",
        ),
        ({"data": {"labels": ["red", "blue"]}}, "unknown label 'green'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(config, change, message):
    with pytest.raises(UserError, match=message) as error:
        train(changed(config, **change), report=quiet)
    assert "\n" not in str(error.value)
    assert not Path(config.output).exists()


def test_text_may_be_main(config):
    config = changed(
        config,
        fusion={"main": "text"},
        inputs__text__encoder={"tuning": "frozen"},
        inputs__image__encoder={"tuning": "prompt", "prompt_length": 2},
        training={"epochs": 8, "learning_rate": 5e-3, "complementary_learning_rate": 5e-3, "patience": 9},
    )
    config = changed(config, training={"head_start": "random"})
    history = losses(train(config, report=quiet))
    assert history[-1] < history[0]
    model = FusionModel.from_pretrained(config.output)
    assert trained_parts(model) == (MOPE - {"text prompts"}) | {"image prompts"}
    groups = model.parameter_groups()
    assert {name.split(".")[2] for name, _ in groups["complementary"]} == {"image"}


@pytest.mark.parametrize("method", ["SeqFuse", "LateConcat", "MMBT", "Frozen", "ImgOnly", "MoPE"])
def test_only_weights_of_encoders_tuned_in_full_have_their_rate(config, method):
    """What is new (head, mapper, projection) learns at the rate of what is new."""
    model = FusionModel.build(find_method(method).apply(config), ["red", "green"])
    groups = {group: {name for name, _ in members} for group, members in model.parameter_groups().items()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set.union(*groups.values()) == trained
    assert sum(map(len, groups.values())) == len(trained)
    full = {name for name in trained if re.match(r"fusion\.encoders\.\w+\.encoder\.", name)}
    assert groups["encoder"] == full
    assert bool(full) == (method != "MoPE")
    assert {name for name in trained if name.startswith("head.")} <= groups["main"]


@pytest.mark.parametrize("setting", ["gradient_checkpointing", "compile"])
def test_what_saves_memory_or_time_leaves_the_losses_as_they_are(config, tmp_path, monkeypatch, setting):
    """The graph is captured as for any backend; making machine code of it takes minutes."""
    compiled, build = [], torch.nn.Module.compile

    def capture(self):
        compiled.append(self)
        build(self, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", capture)
    config = changed(config, training={"epochs": 1, "batch_size": 16})
    enlarge(config, tmp_path)
    plain = train(config, report=quiet)
    other = config.with_settings({f"training.{setting}": True, "output": str(tmp_path / "other")})
    found = train(other, report=quiet)
    close = 1e-4 if setting == "compile" else 1e-6  # a graph's operations are rounded otherwise
    assert losses(found) == pytest.approx(losses(plain), rel=close)
    assert found["history"][0]["eval_loss"] == pytest.approx(plain["history"][0]["eval_loss"], rel=close)
    assert len(compiled) == (setting == "compile")


def test_weights_of_another_model_are_refused(config):
    train(config, report=quiet)
    folder = Path(config.output)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["fusion"]["experts"] = 4
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match="The weights are another model's: 3 tensors differ"):
        FusionModel.from_pretrained(folder)
    with pytest.raises(UserError, match="holds no finished run"):
        FusionModel.from_pretrained(folder / "checkpoints")


def test_a_run_that_was_copied_in_part_says_so(config):
    train(config, report=quiet)
    folder = Path(config.output)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors can't be read .*: copy the run anew"):
        Predictor(folder)
    for text, reason in (("", "is empty"), ("a: [", "isn't YAML"), (config.dump(), "names no labels")):
        (folder / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=reason):
            Predictor(folder)


def test_metrics_json_is_what_train_returns(config):
    result = train(config, report=quiet)
    assert json.loads((Path(config.output) / "metrics.json").read_text()) == result
    importance = torch.tensor(result["history"][0]["importance"])
    assert importance.shape == (2, 3)
    torch.testing.assert_close(importance.sum(dim=1), torch.ones(2))
