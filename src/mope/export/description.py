"""What a file's user must know, as JSON: the task, its labels, and how inputs are made."""

import json
from typing import Any

from mope.data.readers import AudioReader, ImageReader, Reader, TextReader
from mope.encoders.preparation import image_settings
from mope.export.graph import Graph
from mope.media.video import FRAMES
from mope.predictor import Predictor
from mope.tasks.labels import MultiLabel
from mope.versions import installed


def describe(predictor: Predictor, graph: Graph) -> dict[str, Any]:
    """What a file's user must know: the task, its labels, and how inputs are made.

    Returns:
        `mope` (the version), `task`, `labels`, `main`; of a multilabel run `thresholds`, the probability
        above which each label is decided for, in the labels' order; `modalities` by input name, with how a
        cell is made into tensors; `inputs` and `outputs` by name, with `shape`, whose free axes are names.
    """
    settings, task = predictor.settings, predictor.model.task
    logits: list[Any] = ["batch", *_size(predictor)] if task.dense else ["batch", task.outputs]
    shapes = {"logits": logits, "probabilities": logits, "values": ["batch"]}
    inputs = {}
    for name, (modality, argument) in graph.names.items():
        tensor = graph.example[name]
        shape = [graph.axes[name].get(axis, size) for axis, size in enumerate(tensor.shape)]
        dtype = str(tensor.dtype).removeprefix("torch.")
        inputs[name] = {"modality": modality, "argument": argument, "dtype": dtype, "shape": shape}
    return {
        "mope": installed(),
        "task": settings.task,
        "labels": task.labels,
        "main": settings.fusion.main,
        **({"thresholds": task.threshold.tolist()} if isinstance(task, MultiLabel) else {}),
        "modalities": {
            name: _modality(predictor, name, reader) for name, reader in predictor.readers.items()
        },
        "inputs": inputs,
        "outputs": {name: {"shape": shapes[name]} for name in graph.outputs},
    }


def _size(predictor: Predictor) -> tuple[int, int]:
    """(height, width) of the main input's pictures."""
    reader = predictor.readers[predictor.settings.fusion.main]
    assert isinstance(reader, ImageReader)
    return reader.size[0], reader.size[1]


def _modality(predictor: Predictor, name: str, reader: Reader) -> dict[str, Any]:
    """How one input's cells are made into tensors."""
    entry = predictor.settings.inputs[name]
    encoder = entry.encoder
    facts: dict[str, Any] = {"kind": entry.kind, "column": entry.column, "encoder": encoder.weights}
    if entry.kind == "table":
        fields = {column: field.model_dump(exclude_defaults=True) for column, field in entry.columns.items()}
        facts = {
            "kind": "table",
            "columns": fields,
            "numbers": "(value - centre) / scale of each number and date, in order, at most 10 either way; "
            "NaN for a missing one; after a date sine and cosine of its place in 365.25, 7 and 1 days",
            "categories": "a value's place among `values`, from 2; 0 for a missing one, 1 for another",
        }
    if entry.missing == "learn":
        facts["missing"] = (
            f"{name}_present is false where the input isn't there; its tensors may then be blank"
        )
    if isinstance(reader, ImageReader):
        norm = image_settings(encoder.weights, encoder.revision, encoder.architecture)
        facts |= {
            "size": list(reader.size),
            "resize": entry.resize,
            "interpolation": "bilinear, antialiased",
            "mean": list(norm.mean),
            "std": list(norm.std),
            "normalised": "in the graph: give RGB bytes as they are",
        }
        if entry.kind == "video":
            facts["frames"] = FRAMES
    elif isinstance(reader, TextReader):
        tokenizer: Any = reader.tokenizer
        facts |= {"tokenizer": encoder.weights, "revision": encoder.revision, "max_length": reader.max_length}
        facts |= {"pad_token_id": tokenizer.pad_token_id, "padding_side": tokenizer.padding_side}
    elif isinstance(reader, AudioReader):
        extractor = type(reader.extractor).__name__
        facts |= {"rate": reader.rate, "seconds": reader.seconds, "denoise": reader.denoise}
        facts |= {"extractor": extractor, "settings": json.loads(reader.extractor.to_json_string())}
    return facts
