"""Cells that can't be used, by what is wrong with them, and why that is said to be."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy
import soundfile
from PIL import Image

NOISE = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=numpy.uint8))
TONE = numpy.sin(numpy.arange(4000) / 5)


def picture(kind: str, image: Image.Image = NOISE, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def sound(samples: Any = TONE, rate: int = 8000, kind: str = "WAV", **options: Any) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format=kind, **options)
    return content.getvalue()


def film(frames: int = 4, side: int = 32) -> bytes:
    import av

    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        track = container.add_stream("mpeg4", rate=10)
        track.width, track.height, track.pix_fmt = side, side, "yuv420p"
        for shade in range(frames):
            pixels = numpy.full((side, side, 3), 20 * shade % 255, numpy.uint8)
            container.mux(track.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(track.encode())
    return content.getvalue()


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says of itself what one likes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def flac_of(samples: int) -> bytes:
    """A FLAC file whose header promises so many samples."""
    content = bytearray(sound(kind="FLAC"))
    content[21:26] = ((content[21] >> 4 << 36) | samples).to_bytes(5, "big")
    return bytes(content)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
BROKEN = "broken image: "
NO_IMAGE = "wrong type: not an image this library reads"
NO_SOUND = "broken audio, or none this library reads|wrong type: not audio"
NO_FILM = "broken video, or none this library reads|wrong type: not a video"

FILES: dict[str, tuple[str, bytes, str]] = {
    "an empty picture": ("image", b"", "broken image: the file is empty"),
    "text for a picture": ("image", b"this is a text", NO_IMAGE),
    "a web page for a picture": ("image", b"<!DOCTYPE html><html></html>", NO_IMAGE),
    "an SVG": ("image", b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', NO_IMAGE),
    "an EPS, for which a program would be started": ("image", EPS, NO_IMAGE),
    "an EPS behind a DOS header": ("image", b"\xc5\xd0\xd3\xc6" + bytes(28) + EPS, NO_IMAGE),
    "a PDF for a picture": ("image", b"%PDF-1.7\n", NO_IMAGE),
    "an icon": ("image", picture("ICO"), NO_IMAGE),
    "a PCX": ("image", picture("PCX"), NO_IMAGE),
    "a TGA": ("image", picture("TGA"), NO_IMAGE),
    "a sound for a picture": ("image", sound(), NO_IMAGE),
    "a video for a picture": ("image", film(), NO_IMAGE),
    "a Photoshop file": ("image", b"8BPS" + bytes(40), NO_IMAGE),
    "a picture's first bytes": ("image", b"\x89PNG\r\n\x1a\n", f"{BROKEN}|{NO_IMAGE}"),
    "a PNG cut off": ("image", picture("PNG")[:-900], BROKEN),
    "a PNG with a byte changed": (
        "image",
        picture("PNG")[:60] + b"\x00\xff\x00\xff" + picture("PNG")[64:],
        BROKEN,
    ),
    "a PNG without pixels": ("image", png(8, 8), BROKEN),
    "a PNG of no width": ("image", png(0, 8), f"{BROKEN}|{NO_IMAGE}"),
    "a PNG that promises 30,000 x 30,000": ("image", png(30_000, 30_000), "huge image|a picture of"),
    "a PNG that promises 9,000 x 8,000": ("image", png(9000, 8000), "huge image|a picture of"),
    "a JPEG cut off": ("image", picture("JPEG")[:400], BROKEN),
    "a JPEG's header alone": ("image", picture("JPEG")[:20], f"{BROKEN}|{NO_IMAGE}"),
    "a GIF cut off": ("image", picture("GIF")[:900], f"{BROKEN}|{NO_IMAGE}"),
    "a BMP cut off": ("image", picture("BMP")[:900], BROKEN),
    "a WebP cut off": ("image", picture("WEBP", lossless=True)[:300], f"{BROKEN}|{NO_IMAGE}"),
    "a TIFF cut off": ("image", picture("TIFF")[:900], f"{BROKEN}|{NO_IMAGE}"),
    "a TIFF of real numbers": ("image", picture("TIFF", Image.new("F", (4, 4))), "pixels of a kind"),
    "an empty sound": ("audio", b"", "broken audio: the file is empty"),
    "text for a sound": ("audio", b"this is a text", NO_SOUND),
    "a picture for a sound": ("audio", picture("PNG"), NO_SOUND),
    "a silent sound": ("audio", sound(numpy.zeros(500)), "silent audio"),
    "a sound of no numbers": ("audio", sound(numpy.full(500, numpy.nan), subtype="FLOAT"), "no numbers"),
    "a sound without samples": ("audio", sound(numpy.zeros(0)), "no samples"),
    "a sound's header alone": ("audio", sound()[:30], f"{NO_SOUND}|no samples"),
    "a FLAC that promises hours": ("audio", flac_of(2**36 - 1)[:300], f"{NO_SOUND}|seconds|no samples"),
    "an OGG cut off": ("audio", sound(kind="OGG")[:200], f"{NO_SOUND}|no samples"),
    "a video without a sound": ("audio", film(), NO_SOUND),
    "an empty video": ("video", b"", "broken video: the file is empty"),
    "text for a video": ("video", b"this is a text", NO_FILM),
    "a sound for a video": ("video", sound(), NO_FILM),
    "a video cut off": ("video", film()[:300], NO_FILM),
    "a video's mark alone": ("video", b"\x00\x00\x00\x18ftypmp42", NO_FILM),
    "an empty mask": ("mask", b"", "broken mask: the file is empty"),
    "text for a mask": ("mask", b"this is a text", "no mask this library reads|not an image"),
    "a mask of colours": ("mask", picture("PNG"), "this picture's mode is RGB"),
    "a mask as JPEG": ("mask", picture("JPEG", NOISE.convert("L")), "a mask as JPEG"),
    "a mask cut off": ("mask", picture("PNG", NOISE.convert("L"))[:-700], "broken mask"),
    "a mask with nothing inside": ("mask", picture("PNG", Image.new("L", (8, 8))), "no pixel is inside"),
    "an EPS for a mask": ("mask", EPS, "no mask this library reads|not an image"),
}
"""What is wrong: a file's kind, its content, and what is said."""

CELLS: dict[str, tuple[str, Any, str]] = {
    "no picture": ("image", None, "no image: the cell is empty"),
    "a blank for a picture": ("image", "  ", "no image: the cell is empty"),
    "no number for a picture": ("image", float("nan"), "no image: the cell is empty"),
    "a number for a picture": ("image", 7, "wrong type: int where an image is expected"),
    "a list for a picture": ("image", ["good.png"], "wrong type: list where an image is expected"),
    "a mapping without bytes": ("image", {"bytes": None, "path": None}, "the cell is empty"),
    "a mapping of something else": ("image", {"bytes": None, "path": 3}, "wrong type: int"),
    "bytes of no picture": ("image", b"\x01\x02", NO_IMAGE),
    "bytes of an EPS": ("image", EPS, NO_IMAGE),
    "a missing file": ("image", "none.png", "missing file none.png"),
    "a name of 5,000 letters": ("image", "x" * 5000 + ".png", r"missing file x+\.\.\."),
    "a name with a NUL": ("image", "nul\0.png", r"missing file nul\\x00|leaves the table's folder"),
    "a name with a line end": ("image", "new\nline.png", r"missing file new\\nline"),
    "half a character for a name": ("image", "half \ud83d.png", "missing file half"),
    "a folder": ("image", "folder", "a folder, not a file: folder"),
    "a pipe": ("image", "pipe", "a named pipe, not a file: pipe"),
    "a pipe for a sound": ("audio", "pipe", "a named pipe, not a file: pipe"),
    "a pipe for a video": ("video", "pipe", "a named pipe, not a file: pipe"),
    "an endless device": ("image", "zero", "a device, not a file: zero|leaves the table's folder"),
    "an endless device for a sound": ("audio", "zero", "a device, not a file|leaves the table's folder"),
    "an endless device for a video": ("video", "zero", "a device, not a file|leaves the table's folder"),
    "an endless device for a mask": ("mask", "zero", "a device, not a file|leaves the table's folder"),
    "a link to itself": ("image", "loop", "missing file loop"),
    "a file that can't be read": ("image", "memory", "broken image: .*rror|file is empty|leaves the table's"),
    "no sound": ("audio", None, "no audio: the cell is empty"),
    "a number for a sound": ("audio", 3.5, "wrong type: float where an audio is expected"),
    "no video": ("video", "", "no video: the cell is empty"),
    "no text": ("text", None, "empty text"),
    "blanks for a text": ("text", " \t\n", "empty text"),
    "control characters for a text": ("text", "\x00\x93", "nothing but control characters"),
    "halves of characters for a text": ("text", "\ud83d\ud83d", "nothing but control characters"),
    "a list for a text": ("text", ["a"], "wrong type: list where text is expected"),
    "bytes for a text": ("text", b"abc", "wrong type: bytes where text is expected"),
    "a mapping for a text, which has neither bytes nor path": ("text", {"a": 1}, "empty text"),
    "a word for a number": ("number", "many", "no number: 'many'"),
    "a long word for a number": ("number", "9" * 400 + "x" * 99_999, r"no number: '9+\.\.\."),
    "a price for a number": ("number", "1,299.00", "no number: '1,299.00'"),
    "an infinite number": ("number", "inf", "not finite: inf"),
    "a number of 400 digits": ("number", 10**400, "no number"),
    "a list for a number": ("number", [1], "no number"),
    "no date": ("date", "yesterday", "no date as 2026-11-26"),
    "a long text for a date": ("date", "2026-" * 9999, "no date as 2026-11-26"),
    "a day that isn't": ("date", "2026-02-30", "no date as 2026-11-26"),
    "a number for a date": ("date", 20261126, "wrong type: int where a date is expected"),
    "a list for a category": ("category", ["a"], "wrong type: list where a category is expected"),
    "no mask": ("mask", None, "no mask: the cell is empty"),
    "a mask that isn't JSON": ("mask", "{counts: 3}", "broken mask: not JSON"),
    "a mask nested 100,000 deep": ("mask", '{"counts": ' + "[" * 100_000, "broken mask: nested too deeply"),
    "a mask with a key twice": (
        "mask",
        '{"counts": [1], "counts": [2]}',
        "broken mask: two values of 'counts'",
    ),
    "a mask without a size": ("mask", {"counts": [4]}, "its size is None"),
    "a mask of a long size": ("mask", {"counts": [4], "size": ["x" * 9999]}, "its size is"),
    "a mask of a huge size": ("mask", {"counts": [4], "size": [99_999, 99_999]}, "huge mask"),
    "a mask of other lengths": ("mask", {"counts": [3, 3], "size": [2, 2]}, "cover 6 pixels"),
    "a mask of negative lengths": ("mask", {"counts": [-1, 5], "size": [2, 2]}, "no run lengths"),
    "a mask of strange letters": ("mask", {"counts": "\x07\x7f", "size": [2, 2]}, "aren't COCO's"),
    "a mask of two points": (
        "mask",
        {"segmentation": [[0, 0, 1, 1]], "size": [4, 4]},
        "three points at least",
    ),
    "a mask of points far away": (
        "mask",
        {"segmentation": [[0, 0, 1e30, 1, 1, 1]], "size": [4, 4]},
        "numbers near the picture",
    ),
}
"""What is wrong: a cell's kind, the cell, and what is said."""

STRANGERS: dict[str, tuple[str, Any, str]] = {
    "an address": ("image", "https://example.com/a.png", "a path that leaves the table.s folder: https:"),
    "a path upwards": ("image", "../secret.png", "leaves the table's folder"),
    "a path from the root": ("image", "/etc/hostname", "leaves the table's folder"),
    "a path upwards from below": ("image", "folder/../../secret.png", "leaves the table's folder"),
    "a link that leads out": ("image", "link.png", "leaves the table's folder"),
    "a long path upwards": ("image", "../" * 9999, "leaves the table's folder"),
    "a mapping with a path upwards": (
        "image",
        {"bytes": None, "path": "../secret.png"},
        "leaves the table's",
    ),
    "a picture of many pixels": (
        "image",
        picture("PNG", NOISE.resize((80, 80))),
        "a picture of 80 x 80 pixels",
    ),
    "a mask of many pixels": ("mask", picture("PNG", Image.new("L", (80, 80), 1)), "of 80 x 80 pixels"),
    "a mask of many pixels in words": ("mask", {"counts": [0, 6400], "size": [80, 80]}, "huge mask: 80 x 80"),
    "a sound that is long": ("audio", sound(numpy.tile(TONE, 8)), "4.0 seconds: at most 2 are taken"),
    "a FLAC that promises much": ("audio", flac_of(2**30), "seconds: at most 2 are taken"),
    "a video that is long": ("video", film(frames=40), "seconds: at most 2 are taken"),
    "a video of many pixels": ("video", film(side=96), "a picture of 96 x 96 pixels"),
    "a file of many bytes": ("image", "large.png", "larger than 0.25 MB"),
    "bytes that are many": ("image", picture("PNG") + bytes(2**18), "larger than 0.25 MB"),
    "a list of files for a sound": ("audio", PLAYLIST, "wrong type: not audio"),
    "a list of files for a video": ("video", PLAYLIST, "wrong type: not a video"),
    "a list of files in a video's coat": (
        "video",
        b"\x00\x00\x00\x18ftypmp42\n" + PLAYLIST,
        "a list of files",
    ),
    "a list of files behind a note": ("audio", b"ID3\x04\x00\x00\x00\x00\x00\x00" + PLAYLIST, "not audio"),
}
"""The same, of what is refused where the table is a stranger's, with limits of `STRANGE`."""

STRANGE = {"megabytes": 0.25, "pixels": 5000, "seconds": 2}


def write_files(folder: Path) -> None:
    """What the cells name, in a folder of its own."""
    for name, (kind, content, _) in FILES.items():
        (folder / f"{name}.{kind}").write_bytes(content)
    (folder / "good.png").write_bytes(picture("PNG"))
    (folder / "large.png").write_bytes(picture("PNG") + bytes(2**18))
    (folder / "good.wav").write_bytes(sound())
    (folder.parent / "secret.png").write_bytes(picture("PNG"))
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    links = {"zero": "/dev/zero", "loop": "loop", "memory": "/proc/self/mem", "link.png": "../secret.png"}
    for name, target in links.items():
        (folder / name).symlink_to(target)


def all_cells() -> dict[str, tuple[str, Any, str]]:
    """Every cell that can't be used, whoever it is from."""
    named = {name: (kind, f"{name}.{kind}", sentence) for name, (kind, _, sentence) in FILES.items()}
    return {**named, **CELLS}
