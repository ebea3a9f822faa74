"""Readers: one per kind of input, from a table's cell to an encoder's tensors.

A reader says why a cell can't be used (`problem`), turns one that can into a sample, and samples into a
batch. A new kind is a new reader in `READERS`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import Wav2Vec2FeatureExtractor

from mope.config import FieldConfig, InputConfig
from mope.encoders.preparation import image_settings, load_extractor, shared_tokenizer
from mope.encoders.tables import DATE_NUMBERS
from mope.encoders.tuning import PRESENT
from mope.errors import UserError
from mope.files import cache_folder
from mope.media.audio import open_audio, reduce_noise
from mope.media.cache import PixelCache, content_key
from mope.media.cells import BadCell, Cells, is_missing
from mope.media.images import open_pixels, picture_size
from mope.media.masks import Mask, require_size
from mope.media.texts import open_text
from mope.media.values import VALUES
from mope.media.video import FRAMES, open_video


class Reader(ABC):
    """Reads one named input.

    Args:
        config: the input.

    Attributes:
        columns: the table's columns that it reads, mostly one.
        learns: whether a stand-in is learned for missing cells.
        drop: share of training rows from which the input is taken away.
        augments: whether a training row is read in another way each time.
        names_files: whether a cell may be a file's name.
    """

    names_files: bool = True
    learns: bool = False
    drop: float = 0.0
    augments: bool = False

    def __init__(self, config: InputConfig):
        self.columns = list(config.cells)

    @property
    def draws(self) -> bool:
        """Whether reading a training row takes random numbers."""
        return self.augments or (self.learns and self.drop > 0)

    @property
    def required(self) -> list[str]:
        """Columns that must be there."""
        return [] if self.learns else self.columns

    def cell(self, row: Mapping[str, Any]) -> Any:
        """What a row has for it; None where it hasn't the column."""
        return row.get(self.columns[0])

    def sample(self, cell: Any, folder: Path, train: bool = False) -> Any:
        """A cell as a sample, as `read`; None for one that is missing, if a stand-in is learned for it."""
        if self.learns and (is_missing(cell) or (train and float(torch.rand(())) < self.drop)):
            return None
        return self.read(cell, folder, train)

    def batch(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        """Samples as the keyword arguments of the encoder; with `present` (B,), if some may be missing."""
        if not self.learns:
            return self.collate(samples)
        filled = [self.blank() if sample is None else sample for sample in samples]
        present = torch.tensor([sample is not None for sample in samples])
        return {**self.collate(filled), PRESENT: present}

    @abstractmethod
    def blank(self) -> Any:
        """A sample that says nothing."""

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

    A sample is uint8 (3, height, width): turned upright by its EXIF note, transparency laid on white.
    """

    def __init__(self, config: InputConfig):
        super().__init__(config)
        encoder = config.encoder
        published = image_settings(encoder.weights, encoder.revision, encoder.architecture)
        size = config.size or published.size
        self.size = (size, size) if isinstance(size, int) else size
        self.mean = torch.tensor(published.mean)
        steps: list[Any] = [
            v2.Resize([config.resize] * 2 if config.resize else list(self.size), antialias=True),
        ]
        if config.resize:
            steps.append(v2.CenterCrop(self.size))
        self.transform = v2.Compose(steps) if len(steps) > 1 else steps[0]
        name = f"{self.size[0]}x{self.size[1]}-{config.resize or 'whole'}"
        self.cache = PixelCache(cache_folder() / "images" / f"{name}.sqlite") if config.cache else None
        self.augment = _RandAugment(num_ops=2, magnitude=5) if config.augment == "randaugment" else None
        self.augments = self.augment is not None
        self.train_transform = v2.Compose([self.augment, *steps]) if self.augment else self.transform

    def read(self, cell: Any, folder: Path, train: bool = False) -> Tensor:
        if self.cache is not None and (key := content_key(cell, folder)) is not None:
            kept = self.cache.get(key)
            if kept is None:
                kept = self.transform(open_pixels(cell, folder))
                self.cache.put(key, kept)
            return kept
        transform = self.train_transform if train else self.transform
        return transform(open_pixels(cell, folder))

    def read_pair(self, cell: Any, mask: Mask, folder: Path, train: bool = False) -> tuple[Tensor, Tensor]:
        """A picture as `read`, and its mask (height, width) turned and resized as the picture was.

        Raises:
            BadCell: the picture can't be used, or the mask is of another size.
        """
        require_size(mask.shape, picture_size(cell, folder))
        inside = tv_tensors.Mask(torch.from_numpy(mask).to(torch.uint8)[None])
        if train and self.augment is not None:
            picture, inside = self.augment(tv_tensors.Image(open_pixels(cell, folder)), inside)
            pixels = self.transform(picture.as_subclass(Tensor))
        else:
            pixels = self.read(cell, folder)
        return pixels, self.transform(inside)[0].as_subclass(Tensor)

    def blank(self) -> Tensor:
        grey = (255 * self.mean).round().to(torch.uint8).view(3, 1, 1)
        return grey.expand(3, *self.size).contiguous()

    def collate(self, samples: Sequence[Tensor]) -> dict[str, Tensor]:
        """Pictures as they are, uint8 (B, 3, height, width): the model norms them, where it is."""
        # The decoder's memory has channels last: copied so, it takes half the time.
        return {"pixel_values": torch.stack([s.movedim(0, 2) for s in samples]).movedim(3, 1)}


_MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


class _RandAugment(v2.RandAugment):
    """torchvision's, which takes no masks, with a mask that is moved as its picture is."""

    def forward(self, *inputs: Any) -> Any:
        """A picture alone, or a picture and its mask."""
        if len(inputs) == 1:
            return super().forward(*inputs)
        picture: Any = inputs[0]
        mask: Any = inputs[1]
        for _ in range(self.num_ops):
            name, (magnitudes_of, signed) = self._get_random_item(self._AUGMENTATION_SPACE)
            magnitudes = magnitudes_of(self.num_magnitude_bins, *picture.shape[-2:])
            magnitude = 0.0 if magnitudes is None else float(magnitudes[self.magnitude])
            if signed and torch.rand(()) <= 0.5:
                magnitude = -magnitude
            step = partial(
                self._apply_image_or_video_transform, transform_id=name, magnitude=magnitude, fill={}
            )
            picture = step(picture, interpolation=self.interpolation)
            if name in _MOVES:
                mask = step(mask, interpolation=v2.InterpolationMode.NEAREST)
        return picture, mask


class TextReader(Reader):
    """Texts, tokenised as the encoder was trained."""

    names_files = False

    def __init__(self, config: InputConfig):
        super().__init__(config)
        self.max_length = config.max_length
        self.tokenizer = shared_tokenizer(config.encoder.weights, config.encoder.revision, self.max_length)
        limit = self.tokenizer.model_max_length
        if self.max_length > limit:
            raise UserError(
                f"The column '{config.column}' has max_length {self.max_length}; its encoder takes {limit}."
            )

    def read(self, cell: Any, folder: Path, train: bool = False) -> str:
        return open_text(cell, folder)

    def blank(self) -> str:
        return ""

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many of these texts are longer than `max_length` tokens, and are cut off."""
        count = 0
        for start in range(0, len(texts), 1000):
            ids = self.tokenizer(list(texts[start : start + 1000]), verbose=False)["input_ids"]
            count += sum(len(row) > self.max_length for row in ids)
        return count

    def collate(self, samples: Sequence[str]) -> dict[str, Tensor]:
        batch = self.tokenizer(
            list(samples), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return dict(batch)


class VideoReader(ImageReader):
    """Videos, as a path or as bytes, by evenly spaced frames.

    A sample is uint8 (T, 3, height, width); augmentation is the same for all frames of a video.
    """

    def read(self, cell: Any, folder: Path, train: bool = False) -> Tensor:
        frames = torch.stack([open_pixels(frame, folder) for frame in open_video(cell, folder)])
        return (self.train_transform if train else self.transform)(frames)

    def blank(self) -> Tensor:
        return super().blank().expand(FRAMES, -1, -1, -1)

    def collate(self, samples: Sequence[Tensor]) -> dict[str, Tensor]:
        pixels = super().collate([frame for sample in samples for frame in sample])["pixel_values"]
        return {"pixel_values": pixels.unflatten(0, (len(samples), -1))}


class AudioReader(Reader):
    """Audio, as a path or as bytes, in one channel at the encoder's rate; a sample is float32 (samples,)."""

    def __init__(self, config: InputConfig):
        super().__init__(config)
        self.seconds, self.denoise = config.seconds, config.denoise
        encoder = config.encoder
        self.extractor: Any = load_extractor(encoder.weights, encoder.revision, encoder.architecture)
        self.rate: int = self.extractor.sampling_rate

    def read(self, cell: Any, folder: Path, train: bool = False) -> NDArray[numpy.float32]:
        samples = open_audio(cell, folder, self.rate, self.seconds)
        return reduce_noise(samples, self.rate) if self.denoise else samples

    def blank(self) -> NDArray[numpy.float32]:
        return numpy.zeros(self.rate // 2, dtype=numpy.float32)

    def collate(self, samples: Sequence[NDArray[numpy.float32]]) -> dict[str, Tensor]:
        options: dict[str, Any] = {}
        if isinstance(self.extractor, Wav2Vec2FeatureExtractor):
            # An encoder that takes no mask sees padding: all clips get the same length, whatever their batch.
            options["padding"] = True if self.extractor.return_attention_mask else "max_length"
            options["max_length"] = round(self.seconds * self.rate)
        return dict(self.extractor(list(samples), sampling_rate=self.rate, return_tensors="pt", **options))


_UNSEEN = 0.02
"""Share of a table's training cells that are taken as missing, or as a category that isn't known, so that
these have learned embeddings wherever they turn up."""

_FAR = 10.0
"""Scales from the centre beyond which a number is as far as it gets."""


class TableReader(Reader):
    """Numbers, categories and dates of several columns, as what the training rows said of each.

    A sample is (numbers, categories): float32 (n,), NaN where one is missing, and int64 (m,), 0 for a missing
    one, 1 for one that isn't known.
    """

    names_files = False

    def __init__(self, config: InputConfig):
        super().__init__(config)
        self.fields, self.augments = config.columns, True
        self.places = {
            name: {value: place for place, value in enumerate(field.values or [], 2)}
            for name, field in self.fields.items()
        }

    def cell(self, row: Mapping[str, Any]) -> Any:
        return Cells({name: row.get(name) for name in self.columns})

    def read(self, cell: Any, folder: Path, train: bool = False) -> tuple[list[float], list[int]]:
        numbers: list[float] = []
        categories: list[int] = []
        for name, field in self.fields.items():
            try:
                value = VALUES[field.kind or "value"](cell[name], folder)
            except BadCell as error:
                raise BadCell(f"{name}: {error}") from None
            unseen = train and float(torch.rand(())) < _UNSEEN
            if field.kind == "category":
                known = self.places[name].get(value, 1) if value is not None else 0
                categories.append(int(torch.randint(2, ())) if unseen else known)
            else:
                numbers += _numbers(field, None if unseen else value)
        return numbers, categories

    def blank(self) -> tuple[list[float], list[int]]:
        return self.read(Cells(dict.fromkeys(self.columns)), Path())

    def collate(self, samples: Sequence[tuple[list[float], list[int]]]) -> dict[str, Tensor]:
        return {
            "numbers": torch.tensor([numbers for numbers, _ in samples], dtype=torch.float32),
            "categories": torch.tensor([categories for _, categories in samples], dtype=torch.int64),
        }


def _numbers(field: FieldConfig, value: float | None) -> list[float]:
    """What a number or a date becomes: standardised; of a date also where in year, week and day it is."""
    assert field.centre is not None
    assert field.scale is not None
    if value is None:
        return [math.nan] * (1 if field.kind == "number" else DATE_NUMBERS)
    found = [min(max((value - field.centre) / field.scale, -_FAR), _FAR)]
    if field.kind == "date":
        for days in (365.25, 7, 1):
            angle = 2 * math.pi * (value % days) / days
            found += [math.sin(angle), math.cos(angle)]
    return found


READERS: dict[str, Callable[[InputConfig], Reader]] = {
    "image": ImageReader,
    "text": TextReader,
    "audio": AudioReader,
    "video": VideoReader,
    "table": TableReader,
}
"""By the kind of an input."""


def build_readers(inputs: dict[str, InputConfig]) -> dict[str, Reader]:
    """The readers of a config's inputs, by name."""
    readers = {name: READERS[config.kind](config) for name, config in inputs.items()}
    for name, config in inputs.items():
        readers[name].learns, readers[name].drop = config.missing == "learn", config.drop
    return readers
