"""Referring segmentation: masks in and out, their metrics, and the head."""

import io
import json
from pathlib import Path

import numpy
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco
from torch import nn
from torchvision import tv_tensors

from mope.config import Config
from mope.data.readers import _RandAugment
from mope.encoders import TransformerEncoder
from mope.errors import UserError
from mope.heads import MaskHead
from mope.media.cells import BadCell
from mope.media.masks import encode_mask, fit_masks, open_mask, overlay, save_mask
from mope.methods import find_method
from mope.model import empty_model
from mope.prompts import PromptFunction
from mope.tasks import ReferringSegmentation
from mope.tasks.metrics import compute_metrics
from mope.tasks.segmentation import dice_loss


def random_masks(seed: int, rows: int = 12, side: int = 9) -> numpy.ndarray:
    generator = numpy.random.default_rng(seed)
    return generator.random((rows, side, side)) < generator.random((rows, 1, 1))


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_metrics_agree_with_a_slow_reference(seed):
    guess, truth = random_masks(seed), random_masks(seed + 1)
    truth[:, 0, 0] = True
    ious, inter, union = [], 0, 0
    for one, other in zip(guess, truth, strict=True):
        both = either = 0
        for y in range(one.shape[0]):
            for x in range(one.shape[1]):
                both += bool(one[y, x] and other[y, x])
                either += bool(one[y, x] or other[y, x])
        ious.append(both / either)
        inter, union = inter + both, union + either
    task = ReferringSegmentation(["mask"])
    logits = torch.from_numpy(guess).float() - 0.5
    targets = task.targets([torch.from_numpy(mask) for mask in truth])
    parts = [task.condense(logits[i : i + 5], targets[i : i + 5]) for i in range(0, 12, 5)]
    found = compute_metrics(task, *(torch.cat(part) for part in zip(*parts, strict=True)))
    assert found["miou"] == pytest.approx(numpy.mean(ious), abs=1e-6)
    assert found["overall_iou"] == pytest.approx(inter / union, abs=1e-6)
    for percent in (50, 70, 90):
        expected = numpy.mean([iou > percent / 100 for iou in ious])
        assert found[f"precision_{percent}"] == pytest.approx(expected, abs=1e-6)


def test_metrics_at_the_pictures_own_sizes():
    """Logits are resized to each picture's size, and compared with the mask as it was."""
    task, generator = ReferringSegmentation(["mask"]), numpy.random.default_rng(3)
    logits, sizes = torch.randn(5, 8, 8), [(9, 12), (40, 20), (8, 8), (5, 7), (30, 31)]
    originals = [generator.random(size) < 0.5 for size in sizes]
    targets = (torch.rand(5, 8, 8) > 0.5).float()
    parts = [task.condense(logits[i : i + 2], targets[i : i + 2], originals[i : i + 2]) for i in (0, 2, 4)]
    found = compute_metrics(task, *(torch.cat(part) for part in zip(*parts, strict=True)))
    guesses = fit_masks(logits, sizes)
    ious = [(g & m).sum() / (g | m).sum() for g, m in zip(guesses, originals, strict=True)]
    assert found["miou_original"] == pytest.approx(numpy.mean(ious), abs=1e-6)
    pixels = [((g & m).sum(), (g | m).sum()) for g, m in zip(guesses, originals, strict=True)]
    both, either = numpy.sum(pixels, axis=0)
    assert found["overall_iou_original"] == pytest.approx(both / either, abs=1e-6)
    expected = compute_metrics(task, *task.condense(logits, targets))
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert set(found) == set(expected) | set(task.evaluated)


def test_losses_written_out():
    logits, targets = torch.randn(3, 4, 4), (torch.rand(3, 4, 4) > 0.5).float()
    p = logits.sigmoid()
    crossed = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    torch.testing.assert_close(ReferringSegmentation(["m"]).loss(logits, targets), crossed)
    dice = 0.0
    for row in range(3):
        both = (p[row] * targets[row]).sum()
        dice += 1 - (2 * both + 1) / (p[row].sum() + targets[row].sum() + 1)
    torch.testing.assert_close(dice_loss(logits, targets), dice / 3)
    torch.testing.assert_close(
        ReferringSegmentation(["m"], "bce-dice").loss(logits, targets), crossed + dice / 3
    )


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_every_way_to_write_a_mask_reads_the_same(tmp_path_factory, seed, height, width):
    folder = tmp_path_factory.mktemp("masks")
    mask = numpy.random.default_rng(seed).random((height, width)) < 0.5
    mask[0, 0] = True
    save_mask(mask, folder / "m.png")
    encoded = encode_mask(mask)
    runs, last = [0], False
    for value in mask.T.flatten():
        if value != last:
            runs.append(0)
            last = value
        runs[-1] += 1
    grey = io.BytesIO()
    Image.fromarray((mask * 7).astype(numpy.uint8)).save(grey, "PNG")
    for cell in (
        "m.png",
        str(folder / "m.png"),
        (folder / "m.png").read_bytes(),
        grey.getvalue(),
        encoded,
        json.dumps(encoded),
        {"segmentation": encoded, "size": [height, width]},
        {"counts": runs, "size": [height, width]},
        {"segmentation": {"counts": runs, "size": [height, width]}},
    ):
        assert numpy.array_equal(open_mask(cell, folder), mask), cell


def test_polygons_are_cocos():
    polygon = [1.0, 1.0, 8.0, 1.0, 8.0, 6.0, 1.0, 6.0]
    hole = [2.0, 7.0, 4.0, 7.0, 4.0, 9.0]
    found = open_mask({"segmentation": [polygon, hole], "size": [10, 12]}, None)
    expected = coco.decode(coco.merge(coco.frPyObjects([polygon, hole], 10, 12)))
    assert numpy.array_equal(found, expected.astype(bool))
    assert found.shape == (10, 12)


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8), 255).save(stream, "JPEG")
    return stream.getvalue()


def png(mode: str, value) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (8, 8), value).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (None, "the cell is empty"),
        ("", "the cell is empty"),
        ("gone.png", "missing file gone.png"),
        (b"nothing", "no mask this library reads"),
        (jpeg(), "write it as PNG"),
        (png("RGB", (1, 1, 1)), "mode is RGB"),
        (png("L", 0), "empty mask"),
        (png("L", 1)[:45], "broken mask"),
        ('{"counts": ', "not JSON"),
        ({"counts": "0Q1", "size": [9, 9]}, "run lengths cover"),
        ({"counts": "\x7f~~~~~~~~~~", "size": [9, 9]}, "aren't COCO's|cover"),
        ({"counts": [5, 5], "size": [2, 2]}, "cover 10 pixels"),
        ({"counts": [1, -1], "size": [0, 2]}, "its size is"),
        ({"counts": [1], "size": "big"}, "its size is"),
        ({"counts": [1], "size": [10**6, 10**6]}, "huge mask"),
        ({"counts": None, "size": [2, 2]}, "no run lengths and no polygons"),
        ({"segmentation": [], "size": [2, 2]}, "cover 0 pixels"),
        ({"segmentation": [[1, 2]], "size": [2, 2]}, "three points"),
        ({"segmentation": [[1, 2, 3, 4, "x", 6]], "size": [9, 9]}, "numbers near"),
        ({"segmentation": [[1, 2, 3, float("nan"), 5, 6]], "size": [9, 9]}, "numbers near"),
    ],
    ids=str,
)
def test_a_mask_that_cannot_be_read_says_why(tmp_path, cell, reason):
    with pytest.raises(BadCell, match=reason):
        open_mask(cell, tmp_path)


@given(st.binary(min_size=1, max_size=30), st.integers(1, 20), st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_no_run_lengths_crash(counts, height, width):
    try:
        mask = open_mask({"counts": counts, "size": [height, width]}, None)
    except BadCell:
        return
    assert mask.shape == (height, width)


def test_masks_at_other_sizes_and_laid_over_pictures():
    logits = torch.full((1, 4, 4), -1.0)
    logits[0, 1:3, 1:3] = 1.0
    (mask,) = fit_masks(logits, [(40, 20)])
    assert mask.shape == (40, 20)
    assert mask[20, 10]
    assert not mask[0, 0]
    shown = numpy.asarray(overlay(Image.new("RGB", (20, 40), "white"), mask))
    assert (shown[0, 0] == 255).all()
    assert shown[20, 10, 1] < 200
    assert shown.shape == (40, 20, 3)


def test_augmentation_moves_a_mask_with_its_picture():
    """A picture whose red channel is its mask: whatever moves one moves the other."""
    augment = _RandAugment(num_ops=2, magnitude=20)
    moved = 0
    for seed in range(60):
        torch.manual_seed(seed)
        mask = torch.zeros(1, 32, 32, dtype=torch.uint8)
        mask[:, 8:24, 10:20] = 1
        picture, inside = augment(tv_tensors.Image(255 * mask.expand(3, -1, -1)), tv_tensors.Mask(mask))
        moved += not torch.equal(inside, mask)
        bright = picture[0].float()
        if bright.max() - bright.min() > 60 and bool(inside.any()):  # colours may be inverted
            means = bright[inside[0] > 0].mean(), bright[inside[0] == 0].mean()
            assert abs(means[0] - means[1]) > 0.5 * (bright.max() - bright.min()), seed
    assert moved > 10
    single = augment(tv_tensors.Image(torch.zeros(3, 8, 8, dtype=torch.uint8)))
    assert single.shape == (3, 8, 8)


@pytest.mark.parametrize("insertion", ["prefix", "tokens"])
def test_maps_of_a_plain_transformer_are_its_layers_patches(insertion):
    shape = {"hidden_size": 32, "num_hidden_layers": 8, "num_attention_heads": 4}
    bare = hf.Dinov2Model(hf.Dinov2Config(**shape, image_size=28, patch_size=7)).eval()
    pixels = torch.randn(2, 3, 28, 42)
    expected = bare(pixels, output_hidden_states=True).hidden_states
    encoder = TransformerEncoder(bare, insertion).eval()
    with pytest.raises(UserError, match="hasn't been asked to by `give_maps`"):
        encoder(pixel_values=pixels, stages=True)
    encoder.give_maps()
    maps = encoder(pixel_values=pixels, stages=True).stages
    assert encoder.map_dims == (32,) * 4
    for found, hidden in zip(maps, (expected[2], expected[4], expected[6], expected[8]), strict=True):
        assert found.shape == (2, 32, 4, 6)
        patches = found.flatten(2).transpose(1, 2)
        torch.testing.assert_close(patches, hidden[:, 1:], atol=1e-5, rtol=1e-4)
    prompts = PromptFunction(lambda layer, x0: torch.ones(2, 3, 32))
    guided = encoder(pixel_values=pixels, prompts=prompts, stages=True).stages
    assert guided[0].shape == (2, 32, 4, 6)
    assert (guided[0] - maps[0]).abs().max() > 1e-4
    assert encoder(pixel_values=pixels).stages == ()


@pytest.mark.parametrize("plain", [True, False])
def test_the_head_gives_a_logit_per_pixel(plain):
    dims = (16, 16, 16, 16) if plain else (8, 16, 32, 64)
    head = MaskHead(dims, 12, plain).eval()
    sizes = [(7, 5)] * 4 if plain else [(16, 12), (8, 6), (4, 3), (2, 2)]
    maps = [torch.randn(2, dim, *size) for dim, size in zip(dims, sizes, strict=True)]
    logits = head(maps, (49, 35))
    assert logits.shape == (2, 49, 35)
    assert torch.allclose(head([m[:1] for m in maps], (49, 35)), logits[:1], atol=1e-5)
    assert sum(isinstance(m, nn.ConvTranspose2d) for m in head.modules()) == (3 if plain else 0)


@pytest.mark.parametrize(
    ("name", "paper"), [("SeqFuse", 231.0), ("P-SeqFuse", 35.1), ("PromptFuse-deep", 35.1), ("MoPE", 35.5)]
)
def test_parameters_are_those_of_table_2(name, paper):
    base = Config.load(Path(__file__).parent.parent / "configs" / "refcoco_swin.yaml")
    counts = empty_model(find_method(name).apply(base), ["mask"]).count_parameters()
    trained = sum(part["trainable"] for part in counts.values()) / 1e6
    assert trained == pytest.approx(paper, rel=0.1)
