"""Whole runs over tiny encoders: what is trained, what is kept, and what a run gives back."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from datasets import Dataset
from PIL import Image
from run_tester import SPLITS
from safetensors.torch import load_file

from mope.config import Config
from mope.data.table import open_table
from mope.errors import UserError
from mope.methods import find_method
from mope.model import FusionModel
from mope.predictor import Predictor, evaluate
from mope.training import train
from mope.training.rows import prepare
from mope.training.trainer import effective_experts


def changed(config: Config, **sections) -> Config:
    """The config with other settings; `inputs__text` stands for `inputs.text`."""
    settings = config.model_dump()
    for path, values in sections.items():
        *parts, last = path.split("__")
        target = settings
        for part in parts:
            target = target[part]
        if last == "fusion" and "method" in values:
            target[last] = {"main": target[last]["main"]}  # another method's settings are refused
        target[last] = {**target[last], **values} if isinstance(values, dict) and target.get(last) else values
    return Config.model_validate(settings)


def quiet(line: str) -> None:
    """Say nothing."""


def losses(result: dict) -> list[float]:
    return [entry["train_task_loss"] for entry in result["history"]]


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
    config = changed(
        config,
        training={"epochs": 20, "learning_rate": 5e-3, "complementary_learning_rate": 5e-3, "patience": 20},
    )
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
    assert got == declared
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


def test_a_resumed_run_ends_where_an_unbroken_one_does(config, tmp_path):
    steady = {"schedule": "constant_with_warmup", "warmup": 0.0, "patience": 9}
    whole = changed(config, output=str(tmp_path / "whole"), training={**steady, "epochs": 4})
    broken = changed(config, output=str(tmp_path / "broken"), training={**steady, "epochs": 2})
    full = train(whole, report=quiet)
    train(broken, report=quiet)
    (tmp_path / "broken" / "metrics.json").unlink()  # as if it had been killed, while it wrote a checkpoint
    (tmp_path / "broken" / "checkpoints" / "checkpoint-999").mkdir()
    continued = train(changed(broken, training={"epochs": 4}), resume=True, report=quiet)
    assert [entry["epoch"] for entry in continued["history"]] == [1, 2, 3, 4]
    assert losses(continued) == pytest.approx(losses(full), rel=1e-6)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_run_is_left_as_it_is_and_another_is_refused(config):
    first = train(config, report=quiet)
    stamp = (Path(config.output) / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(UserError, match=r"holds a finished run: add --resume .* to keep it"):
        train(config, report=quiet)
    lines = []
    assert train(config, resume=True, report=lines.append) == first
    assert "is finished" in lines[0]
    assert (Path(config.output) / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match=r"trained with another fusion\.experts"):
        train(changed(config, fusion={"experts": 5}), resume=True, report=quiet)
    (Path(config.output) / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"holds an unfinished run: add --resume .* to continue it"):
        train(config, report=quiet)


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
        training={"epochs": 8, "learning_rate": 2e-3, "complementary_learning_rate": 2e-3, "patience": 9},
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
    prediction = Predictor(config.output, device="cpu").predict(open_table(config.data.test))[0]
    if task == "multilabel":
        assert prediction.label == [name for name, p in prediction.probabilities.items() if p > 0.5]
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


def test_bad_rows_are_refused_or_skipped_and_counted(config, tables, tmp_path):
    text = (tables / "train.csv").read_text().splitlines()
    bad = [*text[:5], "none.png,what is left ?,red,red,0", *text[5:], "train_0.png,,red,red,0"]
    file = tables / f"bad_{tmp_path.name}.csv"
    file.write_text("\n".join(bad))
    config = changed(config, data={"train": str(file), "labels": ["blue", "green", "red"]})
    with pytest.raises(
        UserError, match=r"2 of 50 rows can't be used, such as row 5, column 'picture': missing file"
    ):
        train(config, report=quiet)
    assert not Path(config.output).exists()
    lines = []
    train(changed(config, data={"bad_rows": "skip"}), report=lines.append)
    assert "skipped 2 of 50 rows" in lines[0]
    assert "48 training rows" in lines[1]


def test_datasets_in_memory_and_rows_held_out(config, tables):
    rows = [{**row, "picture": str(tables / row["picture"])} for row in open_table(tables / "train.csv")]
    config = changed(config, data={"train": None, "validation": None, "test": None})
    lines = []
    result = train(config, {"train": Dataset.from_list(rows)}, report=lines.append)
    assert "5 of 48 training rows are held out" in lines[0]
    assert result["validation"]["accuracy"] >= 0
    with pytest.raises(UserError, match="names no test rows"):
        evaluate(config.output, report=quiet)


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
    assert any(name.startswith("head.") for name in groups["main"])


def test_effective_experts():
    importance = torch.tensor([[1.0, 1.0, 1.0, 1.0], [5.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(effective_experts(importance), torch.tensor([4.0, 1.0, 2.0]))


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


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant_with_warmup"])
def test_another_number_of_epochs_is_refused_where_the_rate_would_jump(config, schedule):
    config = changed(config, training={"schedule": schedule, "warmup": 0.5})
    train(config, report=quiet)
    weights = (Path(config.output) / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"begun for 2 epochs, not 6, .*resume it with --training\.epochs 2"):
        train(changed(config, training={"epochs": 6}), resume=True, report=quiet)
    assert (Path(config.output) / "model.safetensors").read_bytes() == weights


def test_a_run_that_stopped_early_goes_on_with_more_patience(config, tmp_path):
    """It ends as one that had the patience from the beginning."""
    hopeless = {"epochs": 6, "learning_rate": 1e-9, "complementary_learning_rate": 1e-9}
    config = changed(config, training={**hopeless, "patience": 1})
    first = train(config, report=quiet)
    assert len(first["history"]) == 2
    lines = []
    assert train(config, resume=True, report=lines.append) == first
    assert "is finished" in lines[0]
    patient = changed(config, training={"patience": 3})
    resumed = train(patient, resume=True, report=quiet)
    unbroken = train(changed(patient, output=str(tmp_path / "unbroken")), report=quiet)
    assert len(resumed["history"]) == len(unbroken["history"]) == 4
    assert losses(resumed) == losses(unbroken)
    one, other = (load_file(f"{run}/model.safetensors") for run in (config.output, tmp_path / "unbroken"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_training_reads_headers_and_finds_broken_pixels_on_the_way(config, tables, tmp_path, monkeypatch):
    """A picture that is whole up to its header is found broken when it is read, and then as its row says."""
    folder = tmp_path / "broken"
    shutil.copytree(tables, folder)
    noise = numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=numpy.uint8)
    Image.fromarray(noise).save(folder / "train_7.png")
    whole = (folder / "train_7.png").read_bytes()
    (folder / "train_7.png").write_bytes(whole[: len(whole) // 2])
    config = changed(config, data={split: str(folder / f"{split}.csv") for split in SPLITS})
    with pytest.raises(
        UserError, match=r"can't be used: .*train\.csv, row 8, column 'picture': broken image"
    ):
        train(config, report=quiet)
    for workers in (0, 1):
        lines = []
        skipping = changed(
            config, data={"bad_rows": "skip", "workers": workers}, output=str(tmp_path / f"run{workers}")
        )
        train(skipping, report=lines.append)
        assert "48 training rows" in lines[0]
        assert re.search(r"train\.csv: 2 rows were skipped, over all epochs; the first is row 8", lines[-1])
    # Validation rows are the same in every evaluation.
    shutil.copy(folder / "train_7.png", folder / "validation_3.png")
    lines = []
    train(changed(skipping, output=str(tmp_path / "third")), report=lines.append)
    assert "validation.csv: skipped 1 of 16 rows" in lines[0]


def test_no_picture_is_decoded_before_the_first_step(config, monkeypatch):
    decoded = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda image: decoded.append(1) or load(image))
    datasets = prepare(config, None, quiet)[1]
    assert len(datasets["train"]) == 48
    assert not decoded
    assert datasets["train"][0]
    assert decoded


def test_control_characters_are_left_out_of_texts_and_counted(config, tables, tmp_path):
    """As a file in Windows-1252 has them that was read as Latin-1."""
    rows = list(csv.DictReader((tables / "train.csv").open(newline="")))
    for row in rows[:5]:
        row["question"] = row["question"].replace("what", "\x93what\x94")
    results = []
    for number, texts in enumerate((rows, list(csv.DictReader((tables / "train.csv").open(newline=""))))):
        folder = tmp_path / str(number)
        shutil.copytree(tables, folder)
        write_table(folder / "train.csv", texts)
        lines = []
        own = changed(
            config, data={"train": str(folder / "train.csv")}, output=str(tmp_path / f"run{number}")
        )
        results.append(losses(train(own, report=lines.append)))
        said = [line for line in lines if "control characters" in line]
        assert len(said) == (1 if texts is rows else 0)
        assert not said or "train.csv: 5 of 48 texts of 'text' have control characters" in said[0]
    assert results[0] == results[1]


def write_table(file: Path, rows: list[dict]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
