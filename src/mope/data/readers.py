"""Readers: one per kind of input, from a table's cell to an encoder's tensors.

A reader says why a cell can't be used (`problem`), turns one that can into a sample, and samples into a
batch. A new kind is a new reader in `READERS`.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import v2

from mope.config import InputConfig
from mope.encoders.weights import image_settings, load_tokenizer
from mope.errors import UserError

MAX_PIXELS = 64_000_000
"""Largest image that is decoded; above it a small file can take gigabytes of memory."""


class BadCell(ValueError):
    """A cell that can't be used; the message says why."""


class Reader(ABC):
    """Reads one named input.

    Attributes:
        column: the table's column.
    """

    column: str

    @abstractmethod
    def read(self, cell: Any, folder: Path, train: bool = False) -> Any:
        """A cell as a sample.

        Args:
            cell: the table's value.
            folder: what relative paths are relative to.
            train: whether to augment.

        Raises:
            BadCell: it can't be used.
        """

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        """Samples as the keyword arguments of the encoder."""


class ImageReader(Reader):
    """Images, as a path, as bytes, or as a mapping with `bytes` and `path`.

    A sample is uint8 (3, size, size): turned upright by its EXIF note, transparency laid on white.
    """

    def __init__(self, config: InputConfig):
        self.column = config.column
        encoder = config.encoder
        published = image_settings(encoder.weights, encoder.revision, encoder.architecture)
        self.size = config.size or published.size
        self.mean = torch.tensor(published.mean).view(1, 3, 1, 1)
        self.std = torch.tensor(published.std).view(1, 3, 1, 1)
        steps: list[Any] = [
            v2.PILToTensor(),
            v2.Resize((side := config.resize or self.size, side), antialias=True),
        ]
        if config.resize:
            steps.append(v2.CenterCrop(self.size))
        self.transform = v2.Compose(steps)
        augment = [v2.RandAugment(num_ops=2, magnitude=5)] if config.augment == "randaugment" else []
        self.train_transform = v2.Compose([*steps[:1], *augment, *steps[1:]])

    def read(self, cell: Any, folder: Path, train: bool = False) -> Tensor:
        transform = self.train_transform if train else self.transform
        return transform(open_image(cell, folder))

    def collate(self, samples: Sequence[Tensor]) -> dict[str, Tensor]:
        pixels = torch.stack(list(samples)).float().div_(255)
        return {"pixel_values": pixels.sub_(self.mean).div_(self.std)}


def open_image(cell: Any, folder: Path) -> Image.Image:
    """Decode an image cell to RGB.

    Raises:
        BadCell: it is missing, no image, too large or broken.
    """
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, Image.Image):
        return _to_rgb(cell)
    if cell is None or cell in ("", b""):
        raise BadCell("no image: the cell is empty")
    if isinstance(cell, bytes):
        file: Any = io.BytesIO(cell)
    elif isinstance(cell, str):
        file = folder / cell
        if not file.is_file():
            raise BadCell(f"missing file {cell}")
    else:
        raise BadCell(f"wrong type: {type(cell).__name__} where an image is expected")
    try:
        # Pillow's own bomb check would warn at half its limit and raise at twice that; ours is one limit.
        with Image.open(file) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadCell(f"huge image: {width} x {height} pixels, at most {MAX_PIXELS:,} are decoded")
            image.load()
            return _to_rgb(image)
    except UnidentifiedImageError:
        raise BadCell("wrong type: not an image this library reads") from None
    except Image.DecompressionBombError:
        raise BadCell(f"huge image: at most {MAX_PIXELS:,} pixels are decoded") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, BadCell):
            raise
        raise BadCell(f"broken image: {error}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB, with transparency laid on white."""
    image = ImageOps.exif_transpose(image) or image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


class TextReader(Reader):
    """Texts, tokenised as the encoder was trained."""

    def __init__(self, config: InputConfig):
        self.column = config.column
        self.max_length = config.max_length
        self.tokenizer = load_tokenizer(config.encoder.weights, config.encoder.revision)
        limit = self.tokenizer.model_max_length
        if self.max_length > limit:
            raise UserError(
                f"The column '{self.column}' has max_length {self.max_length}; its encoder takes {limit}."
            )

    def read(self, cell: Any, folder: Path, train: bool = False) -> str:
        return open_text(cell, folder)

    def collate(self, samples: Sequence[str]) -> dict[str, Tensor]:
        batch = self.tokenizer(
            list(samples), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return dict(batch)


def open_text(cell: Any, folder: Path) -> str:
    """A text cell as it is.

    Raises:
        BadCell: it is empty or no text.
    """
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        raise BadCell("empty text")
    if not isinstance(cell, str):
        raise BadCell(f"wrong type: {type(cell).__name__} where text is expected")
    return cell


OPENERS: dict[str, Callable[[Any, Path], Any]] = {"image": open_image, "text": open_text}
"""What opens a cell, or says why it can't, by the kind of an input."""

READERS: dict[str, Callable[[InputConfig], Reader]] = {"image": ImageReader, "text": TextReader}
"""By the kind of an input."""


def build_readers(inputs: dict[str, InputConfig]) -> dict[str, Reader]:
    """The readers of a config's inputs, by name."""
    return {name: READERS[config.kind](config) for name, config in inputs.items()}
