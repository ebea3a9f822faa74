"""A run as one file that ONNX Runtime or `torch.export.load` runs without this library.

The graph is the model's own forward pass, traced in float32 on the CPU; nothing of it is written again.
Before the file takes its name it is run on rows of a table and compared with the model it was made of.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mope.errors import UserError
from mope.export import formats
from mope.export.check import Samples, compare
from mope.export.description import describe
from mope.export.graph import Graph
from mope.files import replacing
from mope.predictor import Predictor

TOLERANCE = 1e-4
"""Largest difference that is allowed; it is absolute."""


def export_run(
    run: str | Path,
    to: str = "onnx",
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    rows: int = 100,
) -> dict[str, Any]:
    """Write a run as one file, once it gives what the run gives.

    Args:
        run: the run's folder.
        to: "onnx" or "torch".
        out: the file; None for `model.onnx` or `model.pt2` in the run's folder.
        data: table to compare on; None for the test rows of the run's config.
        rows: how many of its rows to compare on, at most; those that can't be read don't count.

    Returns:
        `file`, `format`, `bytes`, `rows` compared, `batches` (their sizes), the largest `difference` of
        outputs, absolute, and `inputs` and `outputs`, the shape of each by name.

    Raises:
        UserError: a package is missing, the run can't be exported, no row can be read, or the file gives
            something else than the run; then nothing is written.
    """
    file = _target(Path(run), to, out)
    if rows < 1:
        raise UserError(f"The file is compared on one row at least, not {rows}.")
    formats.require_packages(to)
    predictor = Predictor(run, device="cpu", precision="fp32")
    model = predictor.model.float()
    if to == "onnx":
        formats.require_size(model)
    samples = Samples(predictor, predictor.table(data), rows)
    graph = Graph(model, next(samples.batches((2,))))
    details = describe(predictor, graph)
    with _written(file) as draft, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter, about itself
        write, load = (
            (formats.write_onnx, formats.open_onnx)
            if to == "onnx"
            else (formats.write_torch, formats.open_torch)
        )
        write(graph, draft, details)
        difference, sizes = compare(graph, load(draft), samples)
        if not difference <= TOLERANCE:  # so that NaN fails too
            raise UserError(
                f"The exported file differs from the run by {difference:.2g} where {TOLERANCE:.0e} is "
                "allowed, so it isn't kept: please report this with the run's config."
            )
    return {
        "file": str(file),
        "format": to,
        "bytes": file.stat().st_size,
        "rows": sum(sizes),
        "batches": sizes,
        "difference": difference,
        "inputs": {name: entry["shape"] for name, entry in details["inputs"].items()},
        "outputs": {name: entry["shape"] for name, entry in details["outputs"].items()},
    }


@contextmanager
def _written(file: Path) -> Iterator[Path]:
    """A draft of a file, see `replacing`; a place where none can be written is said in a sentence."""
    try:
        with replacing(file) as draft:
            yield draft
    except OSError as error:
        raise UserError(f"Can't write {file}: {error.strerror or error}.") from None


def _target(run: Path, to: str, out: str | Path | None) -> Path:
    """The file to write."""
    if to not in formats.SUFFIXES:
        raise UserError(f"A run isn't exported to '{to}': take one of {', '.join(formats.SUFFIXES)}.")
    file = run / f"model{formats.SUFFIXES[to]}" if out is None else Path(out)
    if file.suffix.lower() != formats.SUFFIXES[to] or file.is_dir():
        raise UserError(f"Can't write {file}: name a {formats.SUFFIXES[to]} file.")
    return file
