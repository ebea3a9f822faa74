"""Masks of things in pictures: read from PNG, run lengths or polygons, written as run lengths or PNG."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mope.config import MAX_PIXELS, MediaLimits
from mope.errors import UserError, shown
from mope.files import parse_json
from mope.media.cells import BadCell, is_missing
from mope.media.safety import limits_of, media_of, open_picture, reason_of

Mask = NDArray[numpy.bool_]
"""(height, width), True inside."""


def open_mask(cell: Any, folder: Path, empty: bool = False) -> Mask:
    """Decode a mask cell.

    It is a PNG of one channel, by path or bytes, in which nonzero is inside; or COCO's run lengths,
    `{"counts": ..., "size": [height, width]}`; or polygons, `{"segmentation": [[x, y, ...], ...],
    "size": [height, width]}`, where `segmentation` may be run lengths too. The last two may be JSON in a
    text cell.

    Args:
        cell: the mask.
        folder: what relative paths are relative to.
        empty: whether a mask may have nothing inside, as a prediction may.

    Raises:
        BadCell: it is none of these, broken, huge, or nothing is inside.
    """
    if is_missing(cell) and not (isinstance(cell, Mapping) and ("counts" in cell or "segmentation" in cell)):
        raise BadCell("no mask: the cell is empty")
    if isinstance(cell, str) and cell.lstrip().startswith("{"):
        try:
            cell = parse_json(cell)
        except ValueError as error:
            raise BadCell(f"broken mask: {error}") from None
    if isinstance(cell, Mapping) and ("counts" in cell or "segmentation" in cell):
        mask = _from_coco(cell, limits_of(folder))
    else:
        mask = _from_picture(cell, folder)
    if not empty and not mask.any():
        raise BadCell("empty mask: no pixel is inside")
    return mask


def mask_size(cell: Any, folder: Path) -> tuple[int, int]:
    """(height, width) of a mask cell; of a picture its header is read alone. See `open_mask`.

    Raises:
        BadCell: it is none of what `open_mask` takes, or huge.
    """
    if is_missing(cell) or isinstance(cell, Mapping) or (isinstance(cell, str) and cell.lstrip()[:1] == "{"):
        return open_mask(cell, folder).shape
    return _from_picture(cell, folder, lambda image: (image.height, image.width))


def _pixels(image: Image.Image) -> Mask:
    return numpy.asarray(image) != 0


def _from_picture(cell: Any, folder: Path, read: Callable[[Image.Image], Any] = _pixels) -> Any:
    """What is read of a mask's picture, by default the mask."""
    source = media_of(cell, folder, "mask")
    try:
        with open_picture(source) as image:
            if image.format == "JPEG":
                raise BadCell("a mask as JPEG, which blurs its edge: write it as PNG")
            if image.mode not in ("1", "L", "P", "I", "I;16"):
                raise BadCell(f"a mask has one channel, nonzero inside; this picture's mode is {image.mode}")
            if image.width * image.height > MAX_PIXELS:
                raise BadCell(f"huge mask: {image.width} x {image.height} pixels")
            return read(image)
    except BadCell:
        raise
    except UnidentifiedImageError:
        raise BadCell("wrong type: no mask this library reads") from None
    except Image.DecompressionBombError:
        raise BadCell(f"huge mask: at most {MAX_PIXELS:,} pixels are decoded") from None
    except Exception as error:  # Pillow's readers raise whatever they stumble over
        raise BadCell(f"broken mask: {reason_of(error)}") from None


def _from_coco(cell: Mapping[str, Any], limits: MediaLimits | None) -> Mask:
    """A mask as COCO writes it. Everything is checked before pycocotools, written in C, sees it."""
    size: Any = cell.get("size")
    content: Any = cell.get("segmentation", cell.get("counts"))
    if isinstance(content, Mapping):
        size, content = content.get("size", size), content.get("counts")
    whole = isinstance(size, Sequence) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    if not whole:
        raise BadCell(f"broken mask: its size is {shown(size)}, not [height, width]")
    height, width = size
    if height * width > (MAX_PIXELS if limits is None else limits.pixels):
        raise BadCell(f"huge mask: {width} x {height} pixels")
    tools = _tools()
    if isinstance(content, list) and content and isinstance(content[0], list):
        if not all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in content):
            raise BadCell("broken mask: a polygon is x, y of three points at least")
        if not all(_is_number(n) and abs(n) <= 4 * max(size) for polygon in content for n in polygon):
            raise BadCell("broken mask: a polygon's points are numbers near the picture")
        return tools.decode(tools.merge(tools.frPyObjects(content, height, width))).astype(bool)
    counts = _run_lengths(content)
    if sum(counts) != height * width:
        raise BadCell(
            f"broken mask: its run lengths cover {sum(counts)} pixels, its size is {width} x {height}"
        )
    return tools.decode(tools.frPyObjects({"counts": counts, "size": [height, width]}, height, width)).astype(
        bool
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _run_lengths(content: Any) -> list[int]:
    """Run lengths, from a list or from COCO's text: five bits a character, differences from the third on.

    Raises:
        BadCell: it is neither.
    """
    if isinstance(content, list) and all(type(n) is int and n >= 0 for n in content):
        return content
    if isinstance(content, str):
        content = content.encode("ascii", "replace")
    if not isinstance(content, bytes) or not content:
        raise BadCell("broken mask: no run lengths and no polygons")
    counts: list[int] = []
    value = shift = 0
    for byte in content:
        digit = byte - 48
        if not 0 <= digit < 64 or shift > 60:
            raise BadCell("broken mask: its run lengths aren't COCO's")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift or any(n < 0 for n in counts):
        raise BadCell("broken mask: its run lengths aren't COCO's")
    return counts


def encode_mask(mask: Mask) -> dict[str, Any]:
    """A mask as COCO's run lengths: `{"size": [height, width], "counts": "..."}`."""
    encoded = _tools().encode(numpy.asfortranarray(mask, dtype=numpy.uint8))
    return {"size": list(map(int, encoded["size"])), "counts": encoded["counts"].decode("ascii")}


def save_mask(mask: Mask, file: Path) -> None:
    """A mask as a PNG of one bit per pixel."""
    Image.fromarray(mask).save(file)


def require_size(mask: tuple[int, ...], picture: tuple[int, int]) -> None:
    """Make sure that a mask's (height, width) is its picture's.

    Raises:
        BadCell: it isn't.
    """
    if mask != picture:
        raise BadCell(f"the mask has {mask[1]} x {mask[0]} pixels, its picture {picture[1]} x {picture[0]}")


def fit_masks(logits: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Mask]:
    """Masks at other sizes: bilinear, then what is above zero.

    Args:
        logits: (B, H, W).
        sizes: (height, width) for each row.
    """
    found = []
    for row, size in zip(logits.float(), sizes, strict=True):
        fitted = torch.nn.functional.interpolate(row[None, None], size=size, mode="bilinear")
        found.append((fitted[0, 0] > 0).cpu().numpy())
    return found


def overlay(picture: Image.Image, mask: Mask, colour: tuple[int, int, int] = (230, 30, 60)) -> Image.Image:
    """A picture with a mask laid over it, its edge drawn in full."""
    tint = Image.blend(picture.convert("RGB"), Image.new("RGB", picture.size, colour), 0.45)
    shown = Image.composite(tint, picture.convert("RGB"), Image.fromarray(mask))
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    shown.paste(Image.new("RGB", picture.size, colour), mask=Image.fromarray(mask & ~inner))
    return shown


def _tools() -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise UserError(
            "Masks as run lengths or polygons take the package pycocotools: pip install "
            "'mope-fusion[segmentation]'."
        ) from None
    return mask
