"""What is said of a run that makes masks: where its patches look, and which input mattered."""

import json
from pathlib import Path

import torch
import transformers as hf
from PIL import Image
from run_tester import masks_run

from mope.cli import main
from mope.config import Config
from mope.data.dataset import RowReader, collate
from mope.data.table import open_table
from mope.encoders import TransformerEncoder
from mope.insight.attention import attention_maps
from mope.insight.shuffle import Shuffled, _moved, shuffle_inputs
from mope.methods import find_method
from mope.model import FusionModel
from mope.predictor import Predictor
from mope.scenes.build import SceneSettings, build_scenes
from mope.training import train


def _predictor_of_masks(config: Config, folder: Path) -> Predictor:
    """A run of one epoch on the scenes in a folder."""
    content = masks_run(config, folder / "scenes")
    content["training"]["epochs"] = 1
    train(Config.model_validate(content), report=lambda line: None)
    return Predictor(content["output"], workers=1)


def test_the_report_of_masks_shows_them(config, tmp_path):
    build_scenes(tmp_path / "scenes", SceneSettings("easy", "segmentation", 12, 3, 6, 56))
    run = str(_predictor_of_masks(config, tmp_path).run)
    assert main(["explain", run, "--beside", run]) == 0
    folder = Path(run) / "explain" / "figures"
    made = {path.stem for path in folder.glob("*.png")}
    assert {"masks", "shuffled", "attention"} <= made
    assert "confusion" not in made
    numbers = json.loads((folder / "attention.json").read_text())
    assert len(numbers) == 4 * 3 * 2  # rows, phrases of each, runs
    assert len({entry["text"] for entry in numbers[:3]}) == 3
    shuffled = json.loads((folder / "shuffled.json").read_text())["shuffled"]
    assert [entry["inputs"] for entry in shuffled] == [["image"], ["text"], ["image", "text"]]
    picture = open_table(Predictor(run).settings.data.test)[0][
        "image"
    ]  # has a second phrase, which comes first
    phrases = [
        row["phrase"] for row in open_table(Predictor(run).settings.data.test) if row["image"] == picture
    ]
    assert {entry["text"] for entry in numbers[:2]} <= set(phrases)


def _masked(config: Config, main: hf.PreTrainedModel) -> FusionModel:
    text = hf.BertModel(
        hf.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=20), False
    )
    settings = {"task": "referring-segmentation", "data.label": "mask", "segmentation.channels": 8}
    encoders = {"image": TransformerEncoder(main), "text": TransformerEncoder(text)}
    return FusionModel.build(config.with_settings(settings), ["mask"], encoders).eval()


def test_attention_of_a_mask_is_its_patches(config, monkeypatch):
    """A mask of one patch and a quarter of the next one's: what these two look at."""
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    make = hf.ViTConfig(**shape, image_size=24, patch_size=8, attn_implementation="eager")
    bare = hf.ViTModel(make, add_pooling_layer=False).eval()
    pixels = torch.randn(2, 3, 24, 24)
    weights = bare(pixels, output_attentions=True).attentions[-1].mean(dim=1)[:, 1:, 1:]
    model = _masked(find_method("ImgOnly").apply(config), bare)
    logits = torch.full((2, 24, 24), -1.0)
    logits[0, :8, :8] = logits[0, :4, 8:12] = 1.0  # the other row has nothing inside
    monkeypatch.setattr(model, "decode", lambda output, batch: logits)
    found = attention_maps(model, {"image": {"pixel_values": pixels}})
    expected = torch.stack([0.8 * weights[0, 0] + 0.2 * weights[0, 1], weights[1].mean(dim=0)])
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-5, rtol=1e-4)


def test_attention_of_a_mask_in_a_swin_stays_in_its_windows(config, monkeypatch):
    make = hf.SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[1, 1, 1, 2], num_heads=[1, 1, 2, 2], window_size=1,
        attn_implementation="eager",
    )  # fmt: skip
    model = _masked(find_method("ImgOnly").apply(config), hf.SwinModel(make).eval())
    logits = torch.full((1, 32, 32), -1.0)
    logits[0, 16:, :16] = 1.0  # a quarter of the last stage's 2 x 2 tokens, each a window of its own
    monkeypatch.setattr(model, "decode", lambda output, batch: logits)
    found = attention_maps(model, {"image": {"pixel_values": torch.randn(1, 3, 32, 32)}})
    torch.testing.assert_close(found, torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]))


def test_another_rows_picture_is_held_against_the_rows_own_mask(config, tmp_path):
    """Also where pictures have other sizes: at the encoder's."""
    build_scenes(tmp_path / "scenes", SceneSettings("easy", "segmentation", 12, 3, 6, 56))
    predictor = _predictor_of_masks(config, tmp_path)
    table = predictor.table()
    first = table.folder / table[0]["image"]
    shared = [place for place in range(len(table)) if table[place]["image"] == table[0]["image"]]
    for file in (first, *(table.folder / table[place]["mask"] for place in shared)):
        Image.open(file).resize((84, 70), Image.Resampling.NEAREST).save(file)
    plain = predictor.outcomes(table)
    losses = shuffle_inputs(predictor, table, plain, resamples=5)
    assert [loss.inputs for loss in losses] == [("image",), ("text",), ("image", "text")]
    moved = Shuffled(table, ["image"])
    found = predictor.outcomes(_moved(predictor, table, ["image"]))
    assert torch.equal(found[1], plain[1])  # the same masks
    logits = []
    for place in range(len(table)):
        row = table[int(moved.source[place])] | {"phrase": table[place]["phrase"]}
        reader = RowReader(predictor.readers)
        batch = collate([reader(row, table.folder)], predictor.readers, None)
        logits.append(predictor.forward_batch(batch)[0])
    assert torch.equal(found[0][:, 1], (torch.cat(logits) > 0).flatten(1).sum(dim=1))
