"""Predict a million rows: how much memory that takes beside a thousand, and whether kills lose any.

The model is a stand-in, and the one picture is decoded once: what is measured is what goes around them. Some
rows can't be used.

    python dev/bulk.py --rows 1000000 --kills 10 --out .parquet
    python dev/bulk.py --rows 1000000 --evaluate
"""

import argparse
import csv
import hashlib
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "left", "?"]
PART_SECONDS = 3.0
BATCH = 256
EVALUATE = "evaluate"


def make_run(folder: Path) -> Path:
    """A run over tiny encoders, which nothing was trained of."""
    from transformers import BertConfig, BertModel, BertTokenizer, Dinov2Config, Dinov2Model

    from mope.config import Config
    from mope.model import FusionModel

    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**shape, image_size=14, patch_size=7)).save_pretrained(folder / "image")
    size = {"height": 14, "width": 14}
    processor = {
        "image_processor_type": "BitImageProcessor",
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "crop_size": size,
    }
    (folder / "image" / "preprocessor_config.json").write_text(json.dumps(processor))
    BertModel(BertConfig(**shape, intermediate_size=8, vocab_size=len(WORDS))).save_pretrained(
        folder / "text"
    )
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    BertTokenizer(vocab=vocabulary, model_max_length=32).save_pretrained(folder / "text")
    encoders = {name: {"weights": str(folder / name)} for name in ("image", "text")}
    config = Config.parse(
        {
            "inputs": {
                "image": {"kind": "image", "column": "picture", "encoder": encoders["image"]},
                "text": {"kind": "text", "column": "question", "max_length": 8, "encoder": encoders["text"]},
            },
            "fusion": {"main": "image", "length": 2, "experts": 2},
            "data": {"label": "colour", "train": "none.csv"},
            "training": {"precision": "fp32"},
        }
    )
    FusionModel.build(config, ["blue", "green", "red"]).save_pretrained(folder / "run")
    return folder / "run"


def make_table(folder: Path, rows: int) -> Path:
    """A CSV file of so many rows."""
    from PIL import Image

    Image.new("RGB", (8, 8), (200, 30, 30)).save(folder / "picture.png")
    with (folder / f"{rows}.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "picture", "question", "colour"])
        for number in range(rows):
            text = "" if number % 1000 == 7 else "what is left ?"[: 6 + number % 9]
            writer.writerow([number, "picture.png", text, ("blue", "green", "red")[number % 3]])
    return folder / f"{rows}.csv"


def stand_in() -> None:
    """Let predictors of this process do hardly anything, and decode a picture once."""
    import torch

    from mope.data.readers import ImageReader
    from mope.predictor import Predictor

    def forward(self, batch):
        sums = batch["text"]["input_ids"].sum(1).float()
        logits = torch.stack(
            [sums.sin(), sums.cos(), batch["image"]["pixel_values"].float().mean((1, 2, 3))], 1
        )
        return logits, [torch.full((len(sums), 2), 0.5)]

    Predictor.forward_batch = forward
    decode, decoded = ImageReader.read, {}

    def read(self, cell, folder, train=False):
        if cell not in decoded:
            decoded[cell] = decode(self, cell, folder)
        return decoded[cell]

    ImageReader.read = read


def say(line: str) -> None:
    """To standard error."""
    print(line, file=sys.stderr, flush=True)


def work(run: str, table: str, out: str, workers: int) -> None:
    """Predict into a file, or evaluate where there is none, and print its peak of memory, in MB."""
    from mope.bulk import Wanted, evaluate, predict_file
    from mope.bulk import run as bulk

    stand_in()
    options = {"device": "cpu", "batch_size": BATCH, "workers": workers, "report": say}
    if out == EVALUATE:
        say(str(evaluate(run, table, skip_bad_rows=True, by_pattern=True, **options)))
    else:
        bulk._PART_SECONDS = PART_SECONDS
        predict_file(run, table, out, Wanted(["id", "question"], routing=True), resume=True, **options)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def child(*words: object) -> subprocess.Popen:
    """This script in another process, as `work`."""
    command = [sys.executable, __file__, "--child", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def measured(*words: object) -> tuple[float, float]:
    """Its peak of memory and its seconds."""
    begun = time.monotonic()
    process = child(*words)
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit("It failed.")
    return float(said.split()[-1]), time.monotonic() - begun


def digest(file: Path) -> str:
    """What a file holds."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def measure(folder: Path, options: argparse.Namespace) -> tuple[Path, float]:
    """Print what many rows take beside a thousand; the run, and the seconds of the many."""
    run, peaks, seconds = make_run(folder), {}, 0.0
    for rows in (1000, options.rows):
        out = EVALUATE if options.evaluate else folder / f"whole{rows}{options.out}"
        peaks[rows], seconds = measured(run, make_table(folder, rows), out, options.workers)
        print(f"{rows:,} rows: {peaks[rows]:.0f} MB, {seconds:.0f} s", flush=True)
    print(f"memory: {peaks[options.rows] / peaks[1000]:.2f} times", flush=True)
    return run, seconds


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--out", default=".csv", help="the format's ending")
    parser.add_argument(
        "--evaluate", action="store_true", help="measure `mope evaluate`, which writes nothing"
    )
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        work(*options.child[:3], int(options.child[3]))
        return
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, seconds = measure(folder, options)
        if options.evaluate:
            return
        table, whole = folder / f"{options.rows}.csv", folder / f"whole{options.rows}{options.out}"
        out, kills = folder / f"out{options.out}", 0
        while kills < options.kills and not out.exists():
            process = child(run, table, out, options.workers)
            time.sleep(chance.uniform(0.2, 1.8) * seconds / (options.kills + 1) + 8)
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
            print(f"{kills} killed", flush=True)
        if not out.exists():
            measured(run, table, out, options.workers)
        print("files are equal" if digest(out) == digest(whole) else "FILES DIFFER", f"after {kills} kills")


if __name__ == "__main__":
    main()
