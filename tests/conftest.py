"""Tiny encoders on disk, and a tiny table; a whole training run over them takes seconds."""

import csv
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from run_tester import tiny_run
from transformers import BertConfig, BertModel, BertTokenizer, Dinov2Config, Dinov2Model

from mope.config import Config

if "PYTEST_XDIST_WORKER" in os.environ:  # processes share the cores already
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 220)}
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "left",
    "right",
    "what",
    "is",
    "on",
    "the",
    "side",
    "?",
]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders with a random image and a random text encoder, as Hugging Face lays them out."""
    return make_weights(tmp_path_factory.mktemp("weights"))


def make_weights(root: Path) -> dict[str, str]:
    """What `weights` says, in a folder."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    Dinov2Model(Dinov2Config(**shape, image_size=28, patch_size=7)).save_pretrained(root / "image")
    processor = {
        "image_processor_type": "BitImageProcessor",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
        "crop_size": {"height": 28, "width": 28},
    }
    (root / "image" / "preprocessor_config.json").write_text(json.dumps(processor))
    text = BertConfig(**shape, intermediate_size=64, vocab_size=len(VOCABULARY), max_position_embeddings=32)
    BertModel(text, add_pooling_layer=False).save_pretrained(root / "text")
    BertTokenizer(vocab={word: i for i, word in enumerate(VOCABULARY)}, model_max_length=32).save_pretrained(
        root / "text"
    )
    return {"image": str(root / "image"), "text": str(root / "text")}


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with two colours side by side, and a question about one of them, in three splits."""
    return make_tables(tmp_path_factory.mktemp("tables"))


def make_tables(root: Path) -> Path:
    """What `tables` says, in a folder."""
    rng = numpy.random.default_rng(0)
    for split, count in (("train", 48), ("validation", 16), ("test", 20)):
        rows = []
        for number in range(count):
            left, right = rng.choice(list(COLOURS), 2, replace=False)
            pixels = numpy.zeros((28, 28, 3), dtype=numpy.uint8)
            pixels[:, :14], pixels[:, 14:] = COLOURS[left], COLOURS[right]
            Image.fromarray(pixels).save(root / f"{split}_{number}.png")
            side = rng.choice(["left", "right"])
            rows.append(
                {
                    "picture": f"{split}_{number}.png",
                    "question": f"what is on the {side} side ?" if number % 3 else f"what is {side} ?",
                    "colour": left if side == "left" else right,
                    "colours": f"{left}|{right}",
                    "number": str(number / 2),
                }
            )
        with (root / f"{split}.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return root


@pytest.fixture
def config(weights: dict[str, str], tables: Path, tmp_path: Path) -> Config:
    """MoPE over the tiny encoders and the tiny table, in float32 on the CPU."""
    content = tiny_run(weights, tables, tmp_path / "run")
    content["inputs"]["text"]["encoder"]["prompt_length"] = 2
    content["fusion"]["cross_dim"] = 4
    return Config.parse(content)


@pytest.fixture
def in_time() -> Iterator[None]:
    """Whatever waits for a pipe or reads a device is ended after two minutes."""

    def end(*_: object) -> None:
        raise TimeoutError("it is still waiting")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
