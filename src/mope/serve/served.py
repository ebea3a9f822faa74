"""A run as a server has it: how its rows are read, and which runs' rows may go with them."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mope.config import Config, InputConfig
from mope.data.readers import ImageReader
from mope.encoders.pool import own_because
from mope.fusion import FUSIONS
from mope.fusion.base import InRounds
from mope.media.cells import BadCell
from mope.media.images import picture_size
from mope.model import needed_inputs
from mope.predictor import Predictor
from mope.serve.limits import Refusal
from mope.serve.media import check_media, decode_base64, require_packages
from mope.serve.queue import Lane
from mope.serve.rows import Row, RowParser
from mope.serve.settings import ServeSettings

_NOWHERE = Path()


class Served:
    """A run that is served.

    Args:
        name: what requests call it.
        predictor: the run; from now on it keeps no pictures on disk.
        settings: the limits.

    Attributes:
        kinds: of its inputs, by name.
        parser: makes rows of requests.
        lane: where its rows wait, of callers without a name.

    Raises:
        UserError: a package that reads the run's inputs isn't installed.
    """

    def __init__(self, name: str, predictor: Predictor, settings: ServeSettings):
        self.name, self.predictor, self.settings = name, predictor, settings
        self.kinds = {key: predictor.settings.inputs[key].kind for key in predictor.readers}
        require_packages(self.kinds.values())
        for reader in predictor.readers.values():
            if isinstance(reader, ImageReader):
                reader.cache = None  # strangers' pictures aren't kept, and it is for one thread
        for key, kind in self.kinds.items():
            if kind in ("image", "video"):  # what its pictures are normed by is read now, not in a batch
                pixels = torch.zeros(1, 3, 1, 1, dtype=torch.uint8, device=predictor.device)
                predictor.model.normed({key: {"pixel_values": pixels}})
        self.parser = RowParser({key: predictor.settings.inputs[key] for key in self.kinds}, settings)
        self.lane = Lane(name, self._group(), serial=not predictor.model.fusion.may_share_time)

    def lane_of(self, caller: str | None) -> Lane:
        """Where a caller's rows wait."""
        return self.lane._replace(caller=caller)

    def _group(self) -> Hashable:
        predictor = self.predictor
        if alone_because(predictor.settings) is not None:
            return self.name, id(self)
        fusion = predictor.model.fusion
        entries = predictor.settings.inputs
        inputs = {
            (id(fusion.encoder(key).encoder), str(entries[key].size), entries[key].seconds)
            for key in fusion.encoders
        }
        return predictor.device, predictor.arithmetic, frozenset(inputs)

    def sample(self, row: Row, place: str) -> "Sample":
        """A row as the readers make it.

        Args:
            row: its cells.
            place: what a refusal calls it.

        Raises:
            BadCell: it can't be used.
            Refusal: something in it is larger than the limits.
        """
        inputs, size = {}, None
        for name, reader in self.predictor.readers.items():
            try:
                cell = self.cell(name, row.get(name))
                inputs[name] = reader.sample(cell, _NOWHERE)
                if name == self.predictor.settings.picture:
                    size = picture_size(cell, _NOWHERE)
            except BadCell as error:
                raise BadCell(f"{name}: {error}") from None
            except Refusal as refusal:
                raise Refusal(
                    refusal.status_code, refusal.reason, f"{place}{name}: {refusal.detail}"
                ) from None
        return Sample(self, inputs, size)

    def cell(self, name: str, value: Any) -> Any:
        """What a reader is given: never a text for media, which it would take for a path."""
        kind = self.kinds[name]
        if kind == "table":
            return self.predictor.readers[name].cell(value or {})
        if value is None:
            return value
        if kind == "text":
            # The API's schema says so as well; what the page sends comes here unchecked.
            if len(value) > (limit := self.settings.characters):
                raise Refusal(422, "shape", f"longer than {limit:,} characters.")
            return value
        content = decode_base64(value) if isinstance(value, str) else value
        check_media(kind, content, self.settings)
        return content

    def cells(self, row: Row) -> dict[str, Any]:
        """A row's cells by column."""
        found: dict[str, Any] = {}
        for name, kind in self.kinds.items():
            cell = self.cell(name, row.get(name))
            found |= cell if kind == "table" else {self.predictor.readers[name].columns[0]: cell}
        return found


@dataclass(frozen=True)
class Sample:
    """A row that was read.

    Attributes:
        served: the run that it is for, as it was when the request came.
        inputs: by name, as the readers gave them.
        size: (height, width) of its picture, where a mask is wanted.
    """

    served: Served
    inputs: dict[str, Any]
    size: tuple[int, int] | None


def alone_because(config: Config) -> str | None:
    """Why no other run's rows go through the model with those of a run; None if they may."""
    for key, entry in needed_inputs(config).items():
        if (why := own_because(entry)) is not None:
            return f"the encoder of '{key}' is the run's own ({why})"
    if not issubclass(FUSIONS[config.fusion.method], InRounds):
        return f"the fusion '{config.fusion.method}' works among its encoders' layers or tokens"
    return None


def describe(config: Config, labels: Sequence[str]) -> dict[str, Any]:
    """What a server says of a run: what it is asked with, and what it answers."""
    alone = alone_because(config)
    return {
        "task": config.task,
        "labels": list(labels) if config.has_classes else [],
        "inputs": {key: _input(entry) for key, entry in needed_inputs(config).items()},
        "method": config.fusion.method,
        "shares_passes": alone is None,
        "alone_because": alone,
    }


def _input(entry: InputConfig) -> dict[str, Any]:
    known = {"kind": entry.kind, "may_be_left_out": entry.missing == "learn"}
    columns = {column: field.kind for column, field in entry.columns.items()}
    return {**known, "columns": columns} if columns else known
