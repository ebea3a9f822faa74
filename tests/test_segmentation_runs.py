"""Referring segmentation: whole runs, from tables with masks to predicted masks."""

import csv
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from run_tester import masks_run

from mope.bulk import evaluate
from mope.cli import main
from mope.config import Config
from mope.data.table import open_table
from mope.errors import UserError
from mope.media.masks import open_mask
from mope.methods import find_method
from mope.model import FusionModel
from mope.predictor import Predictor
from mope.scenes.build import SceneSettings, build_scenes
from mope.training import train


@pytest.fixture
def masks(config: Config, tmp_path):
    """Scenes of two sizes, with tiny encoders."""
    build_scenes(tmp_path / "scenes", SceneSettings("easy", "segmentation", 20, 4, 5, 56))
    file = tmp_path / "scenes" / "test.csv"
    with file.open(newline="") as stream:
        first = next(csv.DictReader(stream))
    stem = Path(first["image"]).stem
    for path in (tmp_path / "scenes").glob(f"*/{stem}*.png"):
        Image.open(path).resize((84, 70), Image.Resampling.NEAREST).save(path)
    content = masks_run(config, tmp_path / "scenes")
    content["segmentation"]["loss"] = "bce-dice"
    content["training"] |= {"epochs": 4, "learning_rate": 1e-2, "batch_size": 13}  # a last batch of one
    return Config.model_validate(content)


@pytest.mark.parametrize("method", [None, "P-SeqFuse", "PromptFuse-deep", "SeqFuse", "ImgOnly", "PromptFuse"])
def test_a_run_learns_masks_and_gives_them_at_the_pictures_own_size(masks, method, tmp_path, capsys):
    if method is not None:
        masks = find_method(method).apply(masks)
        masks.training.encoder_learning_rate = 3e-3  # the usual one is too small for four epochs
    result = train(masks, report=lambda line: None)
    history = [entry["train_task_loss"] for entry in result["history"]]
    assert history[-1] < history[0]
    assert set(result["validation"]) == {
        "loss", "miou", "overall_iou", "precision_50", "precision_70", "precision_90"
    }  # fmt: skip
    predictor = Predictor(masks.output, batch_size=3)
    table = open_table(masks.data.test)
    predictions = predictor.predict(table)
    found = [open_mask(p.label, None, empty=True) for p in predictions]
    assert [mask.shape for mask in found[:3]] == [(70, 84), (70, 84), (56, 56)]
    alone = predictor.predict([{**table[2], "image": str(table.folder / table[2]["image"])}])
    assert alone[0].label == predictions[2].label
    assert evaluate(masks.output, report=lambda line: None)["rows"] == len(table)


def test_the_command_writes_masks_and_a_page(masks, tmp_path, capsys):
    train(masks, report=lambda line: None)
    out = tmp_path / "out"
    command = ["predict", masks.output, masks.data.test, "--out", str(out / "p.csv")]
    pictures = ["--masks", str(out / "masks"), "--overlays", str(out / "page"), "--beside", masks.output]
    assert main([*command, *pictures]) == 0
    rows = list(csv.DictReader((out / "p.csv").open()))
    assert len(list((out / "masks").iterdir())) == len(rows)
    first = numpy.asarray(Image.open(out / "masks" / "row000001.png"))
    assert first.shape == (70, 84)
    assert numpy.array_equal(first, open_mask(rows[0]["label"], out, empty=True))
    page = (out / "page" / "index.html").read_text()
    assert page.count("<img") == 2 * len(rows)  # the right one and the run's, whose name it shares
    assert "the " in page
    assert main(["predict", masks.output, masks.data.test, "--beside", masks.output]) == 2
    assert "--overlays FOLDER" in capsys.readouterr().err


def test_the_rows_of_a_table_are_checked(masks, tmp_path, capsys):
    folder = tmp_path / "scenes"
    Image.new("1", (10, 10), 1).save(folder / "masks" / "other.png")
    table = (folder / "train.csv").read_text().splitlines()
    table[1] = table[1].rsplit(",", 1)[0] + ",masks/other.png"
    table[2] = table[2].rsplit(",", 1)[0] + ","
    (folder / "train.csv").write_text("\n".join(table) + "\n")
    reason = "2 of 40 rows can't be used, such as row 1, column 'mask': the mask has 10 x 10 pixels"
    with pytest.raises(UserError, match=reason):
        train(masks, report=lambda line: None)
    (tmp_path / "c.yaml").write_text(masks.dump())
    assert main(["data", "check", str(tmp_path / "c.yaml")]) == 2
    assert main(["data", "describe", str(tmp_path / "c.yaml")]) == 0
    assert "the cell is empty" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fusion.main": "text"}, "a mask is of a picture"),
        ({"inputs.image.resize": 64}, "its mask is wanted whole"),
        ({"inputs.image.missing": "learn"}, "there's no mask"),
        ({"segmentation.loss": "focal"}, "segmentation.loss"),
    ],
)
def test_settings_that_make_no_mask(masks, changes, reason):
    with pytest.raises(UserError, match=reason):
        masks.with_settings(changes)


@pytest.mark.parametrize("method", ["LateConcat", "PMF", "MoPE-both"])
def test_a_method_with_more_than_the_main_encoders_feature_makes_no_mask(masks, method):
    with pytest.raises(UserError, match="whose feature is the main encoder's own"):
        FusionModel.build(find_method(method).apply(masks), ["mask"])


def test_a_swin_gives_its_stages(masks):
    swin = {"model_type": "swin", "image_size": 32, "patch_size": 2, "embed_dim": 8, "window_size": 2}
    swin |= {"depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}
    encoder = {"inputs.image.encoder.weights": None, "inputs.image.encoder.architecture": swin}
    config = masks.with_settings({**encoder, "inputs.image.size": 32})
    model = FusionModel.build(config, ["mask"]).eval()
    batch = {
        "image": {"pixel_values": torch.randn(2, 3, 32, 32)},
        "text": {"input_ids": torch.tensor([[2, 5, 3], [2, 6, 3]])},
    }
    logits = model(**batch).logits
    assert logits.shape == (2, 32, 32)
    first = {name: {key: t[:1] for key, t in inputs.items()} for name, inputs in batch.items()}
    torch.testing.assert_close(model(**first).logits, logits[:1], atol=1e-4, rtol=1e-3)
    other = {**batch, "text": {"input_ids": batch["text"]["input_ids"].flip(0)}}
    assert (logits - model(**other).logits).abs().max() > 1e-6


def test_refcoco_as_prepared_is_trained_on(config, tmp_path):
    """From the published files to masks, with both kinds of outline in a split."""
    from miniatures import refcoco

    refcoco("refcoco")(tmp_path / "raw")
    assert (
        main(["data", "prepare", "refcoco", "--from", str(tmp_path / "raw"), "--out", str(tmp_path / "rc")])
        == 0
    )
    content = masks_run(config, tmp_path / "rc")
    content["data"] |= {
        split: str(tmp_path / "rc" / f"{name}.jsonl")
        for split, name in (("train", "train"), ("validation", "validation"), ("test", "testA"))
    }
    content["training"] |= {"epochs": 1, "batch_size": 3}
    result = train(Config.model_validate(content), report=lambda line: None)
    assert 0 <= result["validation"]["miou"] <= 1
    assert evaluate(content["output"], tmp_path / "rc" / "testB.jsonl", report=lambda line: None)["rows"] == 2
