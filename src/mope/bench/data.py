"""How fast pictures are read: our readers beside a bare loop of torchvision's decoder and resize."""

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.io import decode_jpeg, read_file
from torchvision.transforms import v2

from mope.config import InputConfig
from mope.data.dataset import RowDataset, collate
from mope.data.readers import build_readers
from mope.data.table import Table, dataset_of

_BATCH = 32


def bench_data(rows: int = 256, repeats: int = 7, size: int = 224) -> dict[str, Any]:
    """Measure reading, decoding, resizing and batching JPEG pictures of 640 x 480, on one core.

    Args:
        rows: pictures per turn.
        repeats: turns of each variant, which take turns.
        size: side they are resized to.

    Returns:
        `variants`: by name `per_second`, and `ratio` to the bare loop; medians over turns.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    kept = os.environ.get("MOPE_CACHE")
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MOPE_CACHE"] = folder  # the cache of pictures goes with them
            return _measure(Path(folder), rows, repeats, size)
    finally:
        torch.set_num_threads(threads)
        if kept is None:
            os.environ.pop("MOPE_CACHE", None)
        else:
            os.environ["MOPE_CACHE"] = kept


def _measure(folder: Path, rows: int, repeats: int, size: int) -> dict[str, Any]:
    names = _write_pictures(folder, rows)
    table = Table(dataset_of([{"image": name} for name in names]), folder)
    variants: dict[str, Callable[[], Any]] = {
        "bare loop": lambda: _bare(folder, names, size),
        "mope": lambda: _read(table, size, cache=False),
        "mope, cached": lambda: _read(table, size, cache=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()  # warm, and the cache is filled
    for _ in range(repeats):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    ratios = {
        name: [bare / own for bare, own in zip(seconds["bare loop"], values, strict=True)]
        for name, values in seconds.items()
    }
    return {
        "rows": rows,
        "repeats": repeats,
        "size": size,
        "variants": {
            name: {
                "per_second": rows / statistics.median(values),
                "ratio": statistics.median(ratios[name]),
            }
            for name, values in seconds.items()
        },
    }


def _write_pictures(folder: Path, rows: int) -> list[str]:
    """JPEG files with smooth shapes and some noise, of the size of a photo's on a JPEG file's usual scale."""
    rng = numpy.random.default_rng(0)
    names = []
    for number in range(min(rows, 64)):
        coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=numpy.uint8))
        picture = numpy.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC)).astype(numpy.int16)
        picture += rng.integers(-6, 7, picture.shape, dtype=numpy.int16)
        buffer = io.BytesIO()
        Image.fromarray(picture.clip(0, 255).astype(numpy.uint8)).save(buffer, "JPEG", quality=90)
        (folder / f"{number}.jpg").write_bytes(buffer.getvalue())
        names.append(f"{number}.jpg")
    return [names[number % len(names)] for number in range(rows)]


def _bare(folder: Path, names: list[str], size: int) -> None:
    resize = v2.Resize([size, size], antialias=True)
    for name in names:
        resize(decode_jpeg(read_file(str(folder / name))))


def _read(table: Table, size: int, cache: bool) -> None:
    settings = {"kind": "image", "column": "image", "size": size, "cache": cache}
    config = InputConfig.model_validate({**settings, "encoder": {"architecture": {"model_type": "vit"}}})
    readers = build_readers({"image": config})
    rows = RowDataset(table, readers)
    for _ in DataLoader(rows, _BATCH, collate_fn=partial(collate, readers=readers, task=None)):
        pass
