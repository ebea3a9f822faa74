"""Pictures: from a cell to upright RGB."""

import io
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mope.config import MAX_PIXELS
from mope.media.cells import BadCell
from mope.media.safety import PICTURES, media_of, open_picture, reason_of

_ORIENTATION = 0x0112
"""Tag of EXIF's note which way is up; from 5 on the picture lies on its side."""


def open_image(cell: Any, folder: Path) -> Image.Image:
    """Decode an image cell to RGB.

    Raises:
        BadCell: it is missing, no image, too large or broken.
    """
    file = None if isinstance(cell, Image.Image) else media_of(cell, folder, "image")
    try:
        if file is None:
            return _to_rgb(cell)
        # Pillow's own bomb check would warn at half its limit and raise at twice that; ours is one limit.
        with open_picture(file) as image:
            _require_pixels(*image.size)
            image.load()
            return _to_rgb(image)
    except Exception as error:  # Pillow's readers raise whatever they stumble over
        raise _told(error) from None


def _told(error: Exception) -> BadCell:
    """Why a picture can't be used."""
    if isinstance(error, BadCell):
        return error
    if isinstance(error, UnidentifiedImageError):
        return BadCell(f"wrong type: not an image this library reads ({', '.join(PICTURES)})")
    if isinstance(error, Image.DecompressionBombError):
        return BadCell(f"huge image: at most {MAX_PIXELS:,} pixels are decoded")
    return BadCell(f"broken image: {reason_of(error)}")


def open_pixels(cell: Any, folder: Path) -> Tensor:
    """Decode an image cell to RGB, uint8 (3, height, width): as `open_image`, and faster for a JPEG file.

    Raises:
        BadCell: see `open_image`.
    """
    if not isinstance(cell, Image.Image):
        source = media_of(cell, folder, "image")
        try:
            content = source.read_bytes() if isinstance(source, Path) else source.getvalue()
        except OSError as error:
            raise _told(error) from None
        if content.startswith(b"\xff\xd8") and (found := _decode_jpeg(content)) is not None:
            return found
        # Its bytes were looked at, and are no path.
        cell, folder = content, Path()
    return torch.from_numpy(numpy.array(open_image(cell, folder))).permute(2, 0, 1)


def _decode_jpeg(content: bytes) -> Tensor | None:
    """A plain JPEG by torchvision; None for what Pillow had better look at, broken ones too."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:  # announced to move to another package
        return None
    try:
        with open_picture(io.BytesIO(content)) as header:
            plain = header.format == "JPEG" and header.mode in ("RGB", "L")
            if not plain or header.width * header.height > MAX_PIXELS:
                return None
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        found = decode_jpeg(data, mode=ImageReadMode.RGB, apply_exif_orientation=True)
        return found if isinstance(found, Tensor) else None
    except Exception:
        return None


def picture_size(cell: Any, folder: Path) -> tuple[int, int]:
    """(height, width) of an image cell, upright; its header is read, its pixels aren't decoded.

    Raises:
        BadCell: it is missing, no image or too large.
    """
    if isinstance(cell, Image.Image):
        upright = ImageOps.exif_transpose(cell)
        return upright.height, upright.width
    source = media_of(cell, folder, "image")
    try:
        with open_picture(source) as image:
            _require_pixels(image.width, image.height)
            turned = _exif(image).get(_ORIENTATION, 1) in range(5, 9)
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:
        raise _told(error) from None


def _exif(image: Image.Image) -> Image.Exif:
    """A picture's note, as far as it stands before its pixels: Pillow decodes a PNG to look behind them."""
    if image.format != "PNG":
        return image.getexif()
    found = Image.Exif()
    found.load(image.info.get("exif", b""))
    return found


def _require_pixels(width: int, height: int) -> None:
    """Raise a BadCell for a picture that is too large."""
    if width * height > MAX_PIXELS:
        raise BadCell(f"huge image: {width} x {height} pixels, at most {MAX_PIXELS:,} are decoded")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB, with transparency laid on white, of 8 bits per channel; the first picture of several."""
    image = ImageOps.exif_transpose(image) or image
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8; `convert` would cut off what is above 255."""
    values = numpy.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise BadCell(f"pixels of a kind this library doesn't read: mode {image.mode}")
    return Image.fromarray((values.astype(numpy.uint32) >> 8).astype(numpy.uint8))
