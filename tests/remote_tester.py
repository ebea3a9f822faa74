"""Contents for files elsewhere, for the tests of rows from anywhere."""

import io

from PIL import Image


def png(colour: str = "red") -> bytes:
    """A picture of 28 x 28 pixels."""
    stream = io.BytesIO()
    Image.new("RGB", (28, 28), colour).save(stream, "PNG")
    return stream.getvalue()
