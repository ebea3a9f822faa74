"""Inputs that aren't there: refused, dropped, or stood in for, from table to prediction."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf

from mope.bulk import evaluate
from mope.cli import main
from mope.config import Config
from mope.data.readers import build_readers
from mope.encoders import TransformerEncoder, TunedEncoder
from mope.errors import UserError
from mope.fusion import Sequential
from mope.model import FusionModel
from mope.predictor import Predictor
from mope.prompts import FusionPrompts
from mope.training import train

QUIET = {"report": lambda line: None}


@pytest.fixture
def gaps(tables: Path, tmp_path: Path) -> Path:
    """The tiny tables with every third question and every fifth picture taken out."""
    folder = tmp_path / "gaps"
    folder.mkdir()
    for file in tables.glob("*.png"):
        shutil.copy(file, folder)
    for split in ("train", "validation", "test"):
        rows = list(csv.DictReader((tables / f"{split}.csv").open(newline="")))
        for number, row in enumerate(rows):
            row["question"] = "" if number % 3 == 0 else row["question"]
            row["picture"] = "" if number % 5 == 1 else row["picture"]
        with (folder / f"{split}.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


@pytest.fixture
def gapped(config: Config, gaps: Path) -> Config:
    for split in ("train", "validation", "test"):
        setattr(config.data, split, str(gaps / f"{split}.csv"))
    config.training.epochs = 1
    return config


def test_empty_cells_are_refused_unless_it_is_said_otherwise(gapped):
    with pytest.raises(
        UserError, match=r"23 of 48 rows can't be used, such as row 1, .*`missing` of an input"
    ):
        train(gapped, **QUIET)


def test_rows_with_empty_cells_are_dropped_and_counted(gapped):
    gapped.inputs["image"].missing = gapped.inputs["text"].missing = "drop"
    lines = []
    train(gapped, report=lines.append)
    assert any("skipped 23 of 48 rows" in line for line in lines)
    assert evaluate(gapped.output, **QUIET)["rows"] == 20 - 10
    predictor = Predictor(gapped.output)
    assert (
        predictor.predict([{"picture": "", "question": "what ?"}])[0].error == "no image: the cell is empty"
    )
    # Other bad rows are refused all the same.
    file = Path(gapped.data.train)
    file.write_text(file.read_text().replace("train_0.png", "nowhere.png"))
    gapped.output += "-other"
    lines.clear()
    train(gapped, report=lines.append)  # its question is empty as well, so the row goes
    file.write_text(file.read_text().replace("train_4.png", "nowhere.png"))
    gapped.output += "-again"
    with pytest.raises(UserError, match="1 of 48 rows can't be used, such as row 5"):
        train(gapped, **QUIET)


@pytest.mark.parametrize("method", ["MoPE", "MoPE-both", "LateConcat", "PromptFuse", "P-MMBT", "PMF"])
def test_a_stand_in_is_learned_and_used(gapped, method, tmp_path):
    from mope.methods import METHODS

    gapped.inputs["image"].missing = gapped.inputs["text"].missing = "learn"
    config = METHODS[method].apply(gapped)
    train(config, **QUIET)
    result = evaluate(config.output, by_pattern=True, **QUIET)
    assert set(result["patterns"]) == {"image+text", "image", "text", "none"}
    assert sum(entry["rows"] for entry in result["patterns"].values()) == result["rows"] == 20
    predictor = Predictor(config.output)
    whole = {"picture": str(Path(config.data.test).parent / "test_0.png"), "question": "what is left ?"}
    rows = [whole, {**whole, "question": None}, {**whole, "picture": float("nan")}, {"question": "what ?"}]
    together = predictor.predict(rows[:3])
    for row, expected in zip(rows, together, strict=False):
        assert predictor.predict([row])[0].probabilities == pytest.approx(expected.probabilities, abs=1e-4)
    assert predictor.predict([rows[3]])[0].error is None  # a column that isn't there at all


def test_training_learns_the_stand_in(gapped):
    gapped.inputs["text"].missing = "learn"
    gapped.inputs["image"].missing = "drop"
    train(gapped, **QUIET)
    stand_in = FusionModel.from_pretrained(gapped.output).fusion.encoder("text").stand_in
    assert stand_in.abs().sum() > 0
    counts = FusionModel.from_pretrained(gapped.output).count_parameters()
    assert counts["text stand_in"]["trainable"] == 32


def test_a_missing_modality_s_mapped_prompt_is_not_seen():
    """Whatever a missing row's mapper says, nothing changes; in a row that has it, it does."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    image = hf.ViTModel(hf.ViTConfig(**shape, image_size=16, patch_size=8), add_pooling_layer=False)
    text = hf.BertModel(hf.BertConfig(**shape, vocab_size=50), add_pooling_layer=False)
    encoders = {
        "image": TunedEncoder(TransformerEncoder(image), "frozen"),
        "text": TunedEncoder(TransformerEncoder(text), "frozen", stand_in=True),
    }
    prompts = FusionPrompts([32, 32], {"text": 32}, length=2, experts=3)
    fusion = Sequential(encoders, "image", prompts).eval()
    present = torch.tensor([True, False, True])
    batch = {
        "image": {"pixel_values": torch.randn(3, 3, 16, 16)},
        "text": {"input_ids": torch.randint(5, 50, (3, 6)), "present": present},
    }
    before = fusion(batch).features
    other = {**batch, "text": {**batch["text"], "input_ids": torch.randint(5, 50, (3, 6))}}
    changed = (fusion(other).features - before).abs().amax(dim=1) > 1e-6
    assert changed.tolist() == [True, False, True]
    with torch.no_grad():
        for parameter in prompts.mappers.parameters():
            parameter.add_(1.0)
    changed = (fusion(batch).features - before).abs().amax(dim=1) > 1e-6
    assert changed.tolist() == [True, False, True]


def test_modalities_are_dropped_in_training_only(config):
    config = config.with_settings({"inputs.text.missing": "learn", "inputs.text.drop": 0.5})
    reader = build_readers(config.inputs)["text"]
    kept = sum(reader.sample("what is left ?", Path(), train=True) is not None for _ in range(400))
    assert 140 < kept < 260
    assert all(reader.sample("what is left ?", Path()) is not None for _ in range(50))
    batch = reader.batch(["what ?", None])
    assert batch["present"].tolist() == [True, False]


def test_on_the_command_line(config, tmp_path, capsys):
    (tmp_path / "base.yaml").write_text(config.dump())
    arguments = ["train", str(tmp_path / "base.yaml"), "--training.epochs", "1"]
    assert main([*arguments, "--drop-modality", "text=0.3"]) == 0
    assert main(["evaluate", config.output, "--by-pattern", "--json"]) == 0
    output = capsys.readouterr().out
    result = json.loads(output[output.rindex('{\n  "accuracy') :])
    assert list(result["patterns"]) == ["image+text"]
    assert main(["evaluate", config.output, "--by-pattern"]) == 0
    assert "image+text" in capsys.readouterr().out
    for word in ("text", "sound=0.3"):
        assert main([*arguments, "--drop-modality", word]) == 2
        assert "is NAME=SHARE, such as image=0.3" in capsys.readouterr().err
    assert main([*arguments, "--inputs.text.drop", "0.2"]) == 2
    assert "inputs.text.drop takes inputs.text.missing: learn" in capsys.readouterr().err
