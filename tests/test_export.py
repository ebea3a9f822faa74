"""An exported file gives what the run gives, where this library isn't."""

import csv
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy
import onnx
import pytest
import soundfile
import torch
import transformers as hf
from export_tester import LABELS, check, feed_of, run_elsewhere, save_run
from run_tester import masks_run

import mope.export
from mope.cli import main
from mope.config import Config
from mope.errors import UserError
from mope.export import export_run, formats
from mope.export.description import describe
from mope.methods import find_method
from mope.model import FusionModel
from mope.predictor import Predictor
from mope.scenes.build import SceneSettings, build_scenes


@pytest.mark.parametrize("to", ["onnx", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_run_with_experts_runs_without_this_library(config, to):
    file = check(config, to)
    feed = feed_of(config, 0, 2)
    longer = {
        name: torch.nn.functional.pad(tensor, (0, 6)) if name.startswith("text") else tensor
        for name, tensor in feed.items()
    }
    inverted = {**feed, "image_pixel_values": 255 - feed["image_pixel_values"]}
    one, padded, other = (found["logits"] for found in run_elsewhere(file, feed, longer, inverted, to=to))
    numpy.testing.assert_allclose(padded, one, atol=1e-5)
    assert numpy.abs(other - one).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        "MoPE",
        "SeqFuse",
        "ImgOnly",
        "LateConcat",
        "PromptFuse-deep",
        "BlindPrompt",
        "MMBT",
        "PMF",
        "MoPE-both",
    ],
)
def test_other_methods(config, method):
    check(find_method(method).apply(config))


@pytest.mark.slow
def test_quiet_prompts_and_a_head_that_sees_all(config):
    check(config.with_settings({"fusion.start": "quiet", "fusion.head_sees": "all"}))


@pytest.mark.slow
def test_experts_added_to_the_static_prompt(config):
    check(config.with_settings({"fusion.joining": "added"}))


@pytest.mark.slow
def test_text_as_the_main_input_with_hard_routing(config):
    changes = {"fusion.main": "text", "inputs.text.encoder.tuning": "frozen", "fusion.top": 2}
    check(config.with_settings(changes))


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["lora", "adaptformer"])
def test_other_tunings(config, tuning):
    check(config.with_settings({"inputs.text.encoder.tuning": tuning}))


@pytest.mark.slow
def test_many_labels(config):
    file = check(config.with_settings({"task": "multilabel", "data.label": "colours"}))
    (found,) = run_elsewhere(file, feed_of(config, 0, 3))
    numpy.testing.assert_allclose(found["probabilities"], 1 / (1 + numpy.exp(-found["logits"])), atol=1e-6)


@pytest.mark.slow
def test_a_regression_gives_values_in_the_labels_own_units(config):
    config = config.with_settings({"task": "regression", "data.label": "number"})
    file = check(config)
    (found,) = run_elsewhere(file, feed_of(config, 0, 3))
    assert found["values"].shape == (3,)
    numpy.testing.assert_allclose(found["values"], 700 + 250 * found["logits"][:, 0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, "LateConcat"])
def test_inputs_that_may_be_missing(config, tables, tmp_path, method):
    folder = tmp_path / "gaps"
    shutil.copytree(tables, folder)
    rows = list(csv.DictReader((folder / "test.csv").open(newline="")))
    for number, row in enumerate(rows):
        row["question"] = "" if number % 2 else row["question"]
    with (folder / "test.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    config = config if method is None else find_method(method).apply(config)
    config = config.with_settings({"inputs.text.missing": "learn", "data.test": str(folder / "test.csv")})
    file = check(config)
    feed = feed_of(config, 0, 4)
    assert feed["text_present"].tolist() == [True, False, True, False]
    unseen = {name: tensor.clone() for name, tensor in feed.items()}
    for name in ("text_input_ids", "text_attention_mask"):
        unseen[name][1] = unseen[name][0]
    there = {**unseen, "text_present": torch.tensor([True, True, True, False])}
    one, same, other = (found["logits"] for found in run_elsewhere(file, feed, unseen, there))
    numpy.testing.assert_allclose(same, one, atol=1e-5)
    assert numpy.abs(other - one).max(axis=1).argmax() == 1
    assert numpy.abs(other - one)[1].max() > 1e-4


@pytest.mark.slow
def test_sound_of_any_length(config, tables, tmp_path):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    shape |= {
        "feat_extract_norm": "layer",
        "conv_dim": [16, 16],
        "conv_stride": [4, 4],
        "conv_kernel": [8, 4],
    }
    shape |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}
    hf.Wav2Vec2Model(hf.Wav2Vec2Config(**shape)).save_pretrained(tmp_path / "waves")
    hf.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(tmp_path / "waves")
    rows = list(csv.DictReader((tables / "test.csv").open(newline="")))
    for number, row in enumerate(rows):
        wave = 0.5 * numpy.sin(numpy.arange(2000 + 200 * number) / (3 + number))
        soundfile.write(tmp_path / f"{number}.wav", wave, 16000)
        row["picture"] = f"{number}.wav"
    with (tmp_path / "test.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    content = config.model_dump()
    content["inputs"]["image"] |= {"kind": "audio", "encoder": {"weights": str(tmp_path / "waves")}}
    content["inputs"]["sound"] = content["inputs"].pop("image")
    content["fusion"]["main"], content["data"]["test"] = "sound", str(tmp_path / "test.csv")
    file = check(Config.model_validate(content))
    shapes = {entry.name: entry.type.tensor_type.shape.dim for entry in onnx.load(file).graph.input}
    assert [d.dim_param for d in shapes["sound_input_values"]] == ["batch", "sound_length"]


def swin(config: Config, size: int = 32) -> Config:
    shape = {"model_type": "swin", "image_size": size, "patch_size": 2, "embed_dim": 8, "window_size": 2}
    shape |= {"depths": [2, 2, 1, 1], "num_heads": [1, 2, 2, 4]}
    encoder = {"inputs.image.encoder.weights": None, "inputs.image.encoder.architecture": shape}
    return config.with_settings({**encoder, "inputs.image.size": size})


def fixed(config: Config, tmp_path: Path) -> Config:
    """The config with its random encoder's weights on disk, so that they are the same when it's loaded."""
    architecture = dict(config.inputs["image"].encoder.architecture)
    del architecture["model_type"]
    model = hf.SwinModel(hf.SwinConfig(**architecture), add_pooling_layer=False)
    model.save_pretrained(tmp_path / "swin")
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "swin" / "preprocessor_config.json").write_text(json.dumps(settings))
    weights = {"inputs.image.encoder.weights": str(tmp_path / "swin")}
    return config.with_settings({**weights, "inputs.image.encoder.architecture": None})


@pytest.mark.slow
@pytest.mark.parametrize("start", ["published", "quiet"])
def test_a_swin_as_the_main_encoder(config, tmp_path, start):
    check(fixed(swin(config), tmp_path).with_settings({"fusion.start": start}))


@pytest.fixture
def masks(config: Config, tmp_path: Path) -> Config:
    """Scenes and phrases, with tiny encoders."""
    build_scenes(tmp_path / "scenes", SceneSettings("easy", "segmentation", 4, 4, 8, 56))
    content = masks_run(config, tmp_path / "scenes")
    content["segmentation"]["loss"] = "bce-dice"
    return Config.model_validate(content)


@pytest.mark.slow
@pytest.mark.parametrize("windowed", [False, True])
def test_a_segmentation_gives_a_logit_per_pixel(masks, tmp_path, windowed):
    config = fixed(swin(masks), tmp_path) if windowed else masks
    file = check(config)
    outputs = onnx.load(file).graph.output
    assert [output.name for output in outputs] == ["logits"]
    side = 32 if windowed else 28
    assert [d.dim_param or d.dim_value for d in outputs[0].type.tensor_type.shape.dim] == [
        "batch", side, side
    ]  # fmt: skip


@pytest.mark.slow
def test_what_a_file_says_of_itself(config, weights, tmp_path):
    save_run(config)
    report = export_run(config.output, rows=4)
    file = Path(config.output) / "model.onnx"
    assert report["file"] == str(file)
    assert report["batches"] == [1, 3]
    model = onnx.load(file)
    details = json.loads({entry.key: entry.value for entry in model.metadata_props}["mope"])
    assert details["task"] == "classification"
    assert details["labels"] == LABELS["classification"]
    assert details["modalities"]["image"]["size"] == [28, 28]
    assert details["modalities"]["image"]["mean"] == [0.5, 0.5, 0.5]
    assert details["modalities"]["image"]["std"] == [0.25, 0.25, 0.25]
    assert details["modalities"]["text"]["tokenizer"] == weights["text"]
    assert details["modalities"]["text"]["max_length"] == 16
    for entry in model.graph.input:
        kind = entry.type.tensor_type
        shape = [d.dim_param or d.dim_value for d in kind.shape.dim]
        assert shape == details["inputs"][entry.name]["shape"] == report["inputs"][entry.name]
        wanted = numpy.dtype(details["inputs"][entry.name]["dtype"])
        assert onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) == wanted
    assert report["inputs"] == {
        "image_pixel_values": ["batch", 3, 28, 28],
        "text_input_ids": ["batch", "text_length"],
        "text_token_type_ids": ["batch", "text_length"],
        "text_attention_mask": ["batch", "text_length"],
    }
    assert report["outputs"] == {"logits": ["batch", 3], "probabilities": ["batch", 3]}
    assert model.opset_import[0].version >= 18
    assert [entry.name for entry in Path(config.output).iterdir() if "onnx" in entry.name] == ["model.onnx"]


@pytest.mark.slow
def test_the_command(config, tables, tmp_path, capsys):
    save_run(config)
    out = tmp_path / "deep" / "m.pt2"
    command = ["export", config.output, "--to", "torch", "--out", str(out), "--rows", "5"]
    assert main([*command, "--data", str(tables / "validation.csv")]) == 0
    said = capsys.readouterr().out
    assert "text_attention_mask (batch, text_length)" in said
    assert "on 5 rows in batches of 1, 3 (1e-04 is allowed)" in said
    extra = {"mope.json": ""}
    torch.export.load(out, extra_files=extra)
    assert json.loads(extra["mope.json"])["labels"] == LABELS["classification"]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 5


@pytest.mark.slow
def test_a_file_that_differs_is_not_kept(config, tmp_path, monkeypatch, capsys):
    save_run(config)
    out = tmp_path / "out" / "m.onnx"
    real = formats.open_onnx

    def wrong(file):
        call = real(file)
        return lambda tensors: {name: array + 0.01 for name, array in call(tensors).items()}

    monkeypatch.setattr(formats, "open_onnx", wrong)
    assert main(["export", config.output, "--to", "onnx", "--out", str(out), "--rows", "2"]) == 2
    assert "differs from the run by 0.01 where 1e-04 is allowed" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []
    monkeypatch.setattr(
        formats, "open_onnx", lambda file: lambda t: {k: v * numpy.nan for k, v in real(file)(t).items()}
    )
    with pytest.raises(UserError, match="differs from the run by nan"):
        export_run(config.output, out=out, rows=2)
    assert list(out.parent.iterdir()) == []


def test_mistakes(config, tables, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="holds no finished run"):
        export_run(tmp_path)
    save_run(config)
    with pytest.raises(UserError, match="isn't exported to 'tflite': take one of onnx, torch"):
        export_run(config.output, "tflite")
    with pytest.raises(UserError, match=r"name a \.onnx file"):
        export_run(config.output, out=tmp_path / "m.pt2")
    with pytest.raises(UserError, match="one row at least, not 0"):
        export_run(config.output, rows=0)
    table = tmp_path / "bad.csv"
    table.write_text("picture,question\nnone.png,what ?\n")
    with pytest.raises(UserError, match="no row to compare the file on: name another with --data FILE"):
        export_run(config.output, data=table)
    monkeypatch.setattr(formats, "_ONNX_LIMIT", 1000)
    with pytest.raises(UserError, match="one ONNX file holds 2 GB at most: export it --to torch"):
        export_run(config.output)
    monkeypatch.setattr(formats, "_ONNX_PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(UserError, match=r"the package no_such_package: pip install 'mope-fusion\[export\]'"):
        export_run(config.output)
    config.data.test = None
    save_run(config)
    with pytest.raises(UserError, match="names no test rows: say which with --data FILE"):
        export_run(config.output, "torch")
    assert not list(Path(config.output).glob("model.[op]*"))


def test_a_file_says_above_which_probability_each_label_is_decided_for(config):
    config = config.with_settings({"task": "multilabel", "data.label": "colours"})
    model = FusionModel.build(config, LABELS[config.task])
    model.task.threshold.copy_(torch.tensor([0.25, 0.5, 0.75]))
    model.save_pretrained(config.output)
    graph = SimpleNamespace(names={}, axes={}, example={}, outputs=["logits"])
    details = describe(Predictor(config.output, device="cpu"), graph)
    assert details["labels"] == LABELS["multilabel"]
    assert details["thresholds"] == [0.25, 0.5, 0.75]
    save_run(config.with_settings({"task": "classification", "data.label": "colour"}))
    assert "thresholds" not in describe(Predictor(config.output, device="cpu"), graph)


def test_rows_that_cannot_be_read_are_left_out(config, tables, tmp_path):
    save_run(config)
    lines = (tables / "test.csv").read_text().splitlines()
    lines = [line.replace("test_", f"{tables}/test_") for line in lines]
    lines[1] = lines[1].replace("test_0.png", "gone.png")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    report = export_run(config.output, "torch", data=tmp_path / "t.csv", rows=30)
    assert report["rows"] == 19


def test_tracing_leaves_the_modules_as_they_were(config):
    save_run(config)
    export_run(config.output, "torch", rows=2)
    assert not [
        name for name, module in sys.modules.items() if name.startswith("mope") and "len" in vars(module)
    ]
    assert mope.export.TOLERANCE == 1e-4
