"""Exported files beside the runs that they are of, in processes without this library."""

import subprocess
import sys
from pathlib import Path

import numpy
import torch

from mope.config import Config
from mope.data.dataset import RowDataset, collate
from mope.data.table import open_table
from mope.export import export_run, formats
from mope.model import FusionModel
from mope.predictor import Predictor

LABELS = {
    "classification": ["red", "green", "blue"],
    "multilabel": ["red", "green", "blue"],
    "regression": ["number"],
    "referring-segmentation": ["mask"],
}
_BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} isn't to be imported here")
file, blocked, batches = sys.argv[1], set(sys.argv[2].split(",")), sys.argv[3:]
sys.meta_path.insert(0, Block())
import numpy
"""
_RUN = {
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
for batch in batches:
    found = session.run(names, dict(numpy.load(batch)))
    numpy.savez(batch, **dict(zip(names, found)))
""",
    "torch": """
import torch
module = torch.export.load(file).module()
for batch in batches:
    found = module(**{name: torch.from_numpy(value) for name, value in numpy.load(batch).items()})
    numpy.savez(batch, **{name: tensor.detach().numpy() for name, tensor in found.items()})
""",
}
_BLOCKED = {"onnx": "mope,torch,transformers", "torch": "mope,transformers"}


def save_run(config: Config) -> FusionModel:
    """A run's folder whose model learned nothing, and in which every part makes a difference."""
    model = FusionModel.build(config, LABELS[config.task])
    with torch.no_grad():
        for tensor in model.trained_state().values():
            if tensor.is_floating_point() and tensor.ndim:
                tensor.add_(0.02 * torch.rand_like(tensor))
    if config.task == "regression":
        model.task.mean.fill_(700.0)
        model.task.scale.fill_(250.0)
    model.save_pretrained(config.output)
    return model.eval()


Feed = dict[str, torch.Tensor]


def run_elsewhere(file: Path, *feeds: Feed, to: str = "onnx") -> list[dict[str, numpy.ndarray]]:
    """The file's outputs of each feed, in a process that can't import this library."""
    batches = [file.with_name(f"batch{number}.npz") for number in range(len(feeds))]
    for batch, feed in zip(batches, feeds, strict=True):
        numpy.savez(batch, **{name: tensor.numpy() for name, tensor in feed.items()})
    command = [sys.executable, "-c", _BLOCK + _RUN[to], str(file), _BLOCKED[to], *map(str, batches)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [dict(numpy.load(batch)) for batch in batches]


def batch_of(config: Config, start: int, count: int) -> dict[str, dict[str, torch.Tensor]]:
    predictor = Predictor(config.output, device="cpu")
    rows = RowDataset(open_table(config.data.test), predictor.readers)
    return collate([rows[place] for place in range(start, start + count)], predictor.readers, None)


def feed_of(config: Config, start: int, count: int) -> Feed:
    batch = batch_of(config, start, count)
    return {f"{name}_{key}": tensor for name, inputs in batch.items() for key, tensor in inputs.items()}


def check(config: Config, to: str = "onnx") -> Path:
    """Export a run and compare it with the model in another process; the file."""
    model = save_run(config)
    file = Path(config.output).parent / f"out{formats.SUFFIXES[to]}"
    report = export_run(config.output, to, file)
    assert report["difference"] < 1e-4
    assert {1, 3} <= set(report["batches"])
    places = [(0, 1), (3, 4)]
    outputs = run_elsewhere(file, *(feed_of(config, *place) for place in places), to=to)
    for place, found in zip(places, outputs, strict=True):
        with torch.inference_mode():
            expected = model(**batch_of(config, *place)).logits
        numpy.testing.assert_allclose(found["logits"], expected.numpy(), atol=1e-4)
        assert numpy.abs(found["logits"]).max() > 1e-2
        if model.task.classes:
            probabilities = model.task.probabilities(expected).numpy()
            numpy.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-4)
    return file
