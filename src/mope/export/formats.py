"""The formats of a file: how each is written, and how it is run."""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from mope.errors import UserError
from mope.export.graph import Graph, refusal
from mope.model import FusionModel

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
"""Endings of the file, by format."""
METADATA = "mope"
"""Key of the metadata in an ONNX model; in a torch.export file it is `extra_files["mope.json"]`."""
OPSET = 18
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
# A protobuf message holds 2 GiB; the graph around the weights takes some of it.
_ONNX_LIMIT = 2**31 - 2**24

Arrays = dict[str, NDArray[Any]]
Runner = Callable[[Mapping[str, Tensor]], Arrays]
"""A file as a function of flat tensors."""


def write_onnx(graph: Graph, draft: Path, details: Mapping[str, Any]) -> None:
    """Write a graph as an ONNX model, weights and all in one file.

    Args:
        graph: the model.
        draft: the file.
        details: kept in the model's metadata.

    Raises:
        UserError: it can't be traced, or something in it has no counterpart in ONNX.
    """
    program = graph.trace()
    try:
        # The axes' names: of a program that is traced already, nothing else is taken from its shapes.
        made = torch.onnx.export(
            program,
            input_names=list(graph.names),
            output_names=graph.outputs,
            opset_version=OPSET,
            dynamic_shapes=graph.axes,
            custom_translation_table={torch.ops.aten.where.self: _where},
            dynamo=True,
            verbose=False,
        )
    except Exception as error:  # whatever has no counterpart in ONNX
        raise UserError(refusal(graph.model, error)) from error
    assert made is not None
    made.model.metadata_props[METADATA] = json.dumps(details, ensure_ascii=False)
    made.save(draft, external_data=False)


def _where(condition: Any, chosen: Any, other: Any) -> Any:
    """`torch.where` in ONNX, whose `Where` ONNX Runtime has not for booleans."""
    import onnx_ir
    from onnxscript import opset18

    op: Any = opset18
    if chosen.dtype == onnx_ir.DataType.BOOL:
        return op.Or(op.And(condition, chosen), op.And(op.Not(condition), other))
    return op.Where(condition, chosen, other)


def write_torch(graph: Graph, draft: Path, details: Mapping[str, Any]) -> None:
    """Write a graph for `torch.export.load`; otherwise as `write_onnx`."""
    text = json.dumps(details, ensure_ascii=False)
    torch.export.save(graph.trace(), draft, extra_files={f"{METADATA}.json": text})


def open_onnx(file: Path) -> Runner:
    """The file as a function of flat tensors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    wanted = {entry.name for entry in session.get_inputs()}
    names = [entry.name for entry in session.get_outputs()]

    def call(tensors: Mapping[str, Tensor]) -> Arrays:
        # An argument that a model takes and doesn't use is no input of the graph.
        feed = {name: tensor.numpy() for name, tensor in tensors.items() if name in wanted}
        found: list[Any] = list(session.run(names, feed))
        return dict(zip(names, found, strict=True))

    return call


def open_torch(file: Path) -> Runner:
    """The file as a function of flat tensors."""
    module = torch.export.load(file).module()

    def call(tensors: Mapping[str, Tensor]) -> Arrays:
        with torch.no_grad():
            return {name: tensor.numpy() for name, tensor in module(**tensors).items()}

    return call


def require_packages(to: str) -> None:
    """Make sure that the packages of a format are there.

    Raises:
        UserError: one is missing.
    """
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if to == "onnx" and missing:
        raise UserError(
            f"An export to ONNX takes the package {missing[0]}: pip install 'mope-fusion[export]', or take "
            "--to torch."
        )


def require_size(model: FusionModel) -> None:
    """Make sure that a model fits into one ONNX file.

    Raises:
        UserError: it holds 2 GB or more.
    """
    held = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    if held > _ONNX_LIMIT:
        raise UserError(
            f"The model holds {held / 1e9:.1f} GB; one ONNX file holds 2 GB at most: export it --to torch."
        )
