"""Broken rows of every kind: each gets the right row, column and reason, and the others are read."""

import csv
import io
import json
import struct
import zlib
from pathlib import Path

import numpy
import pytest
import soundfile
import torch
from PIL import Image

from mope.cli import main
from mope.data.table import open_table
from mope.errors import UserError
from mope.media.audio import open_audio
from mope.media.cells import BadCell, UntrustedFolder
from mope.media.images import open_image, open_pixels
from mope.media.texts import open_text


def png(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def wav(samples, rate: int = 8000, **options) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", **options)
    return buffer.getvalue()


def bomb(side: int = 30000) -> bytes:
    """A PNG of a few hundred kilobytes that says it is 30000 x 30000."""
    row = b"\0" + b"\0" * (side // 8)
    data = zlib.compress(row * side, 9)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


RED = Image.new("RGB", (20, 10), (200, 30, 30))
NOISE = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=numpy.uint8))
TONE = numpy.sin(numpy.arange(4000) / 5)

# Files by name: content, and the reason why their row is bad; None where it is sound.
FILES: dict[str, tuple[bytes, str | None]] = {
    "good.png": (png(RED), None),
    "jpeg_named.png": (jpeg(RED), None),
    "single.png": (png(RED.resize((1, 1))), None),
    "cmyk.jpg": (jpeg(RED.convert("CMYK")), None),
    "grey16.png": (png(Image.fromarray(numpy.full((8, 8), 40000, dtype=numpy.uint16))), None),
    "animated.gif": (b"", None),  # written below
    "palette.png": (png(RED.convert("P", palette=Image.Palette.ADAPTIVE), transparency=0), None),
    "truncated.png": (png(NOISE)[:-900], "broken image"),
    "truncated.jpg": (jpeg(NOISE)[:400], "broken image"),
    "empty.png": (b"", "broken image: the file is empty"),
    "text.png": (b"this is a text", "not an image this library reads"),
    "bomb.png": (bomb(), "huge image"),
}
SOUNDS: dict[str, tuple[bytes, str | None]] = {
    "good.wav": (wav(TONE), None),
    "silent.wav": (wav(numpy.zeros(500)), "silent audio"),
    "nan.wav": (wav(numpy.full(500, numpy.nan), subtype="FLOAT"), "samples that are no numbers"),
    "none.wav": (wav(numpy.zeros(0)), "no samples"),
    "empty.wav": (b"", "broken audio: the file is empty"),
    "text.wav": (b"this is a text", "broken audio"),
}
TEXTS: dict[str, str | None] = {
    "a sound text\nof two lines\twith a tab": None,
    "名前 🙂 naïve": None,
    "it\x92s a bell \x07": None,
    "\x00\x93": "nothing but control characters",
    "   ": "empty text",
}
OUTSIDE = ["../secret.png", "/etc/hostname", "a/../../secret.png", "link.png", "nul\0.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    where = tmp_path / "table"
    where.mkdir()
    for name, (content, _) in (FILES | SOUNDS).items():
        (where / name).write_bytes(content)
    RED.save(where / "animated.gif", save_all=True, append_images=[NOISE.resize((20, 10))], duration=50)
    RED.save(tmp_path / "secret.png")
    (where / "link.png").symlink_to(tmp_path / "secret.png")
    return where


def table(folder: Path, rows: list[dict]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_each_bad_row_gets_its_row_column_and_reason(folder, capsys):
    rows, expected = [], {}
    for column, cells in (
        ("image", {name: reason for name, (_, reason) in FILES.items()}),
        ("audio", {name: reason for name, (_, reason) in SOUNDS.items()}),
        ("text", TEXTS),
    ):
        for cell, reason in cells.items():
            rows.append({"image": "good.png", "audio": "good.wav", "text": "fine", column: cell})
            if reason:
                expected[len(rows)] = (column, reason)
    columns = ["--image", "image", "--audio", "audio", "--text", "text"]
    assert main(["data", "check", str(table(folder, rows)), *columns, "--json"]) == 2
    output = capsys.readouterr()
    found = {p["row"]: p for p in json.loads(output.out)[0]["problems"]}
    assert set(found) == set(expected)
    for row, (column, reason) in expected.items():
        assert found[row]["column"] == column
        assert reason in found[row]["reason"], (row, reason)
    assert f"{len(expected)} of {len(rows)} rows can't be used" in output.err


def test_the_reader_agrees_with_the_check(folder):
    """Pictures are checked by one decoder and may be read by another."""
    for name, (_, reason) in FILES.items():
        if reason is None:
            seen = torch.from_numpy(numpy.array(open_image(name, folder))).permute(2, 0, 1)
            read = open_pixels(name, folder)
            assert read.shape == seen.shape
            assert (read.int() - seen.int()).abs().max() <= 3, name
        else:
            with pytest.raises(BadCell, match=reason):
                open_pixels(name, folder)
    turned = Image.new("L", (10, 20), 99)
    exif = turned.getexif()
    exif[0x0112] = 6
    assert open_pixels(jpeg(turned, exif=exif), folder).shape == (3, 10, 20)


def test_unusual_images_look_as_they_should(folder):
    def colour(name):
        return numpy.asarray(open_image(name, folder)).reshape(-1, 3).mean(axis=0)

    for name in ("jpeg_named.png", "single.png", "cmyk.jpg", "animated.gif"):
        assert colour(name) == pytest.approx([200, 30, 30], abs=6), name
    assert colour("grey16.png") == pytest.approx([40000 / 256] * 3, abs=1)
    assert colour("palette.png") == pytest.approx([255, 255, 255], abs=1)  # all of it transparent
    turned = Image.new("RGB", (10, 20), (0, 0, 0))
    exif = turned.getexif()
    exif[0x0112] = 6
    assert open_image(jpeg(turned, exif=exif), folder).size == (20, 10)


@pytest.mark.parametrize("cell", OUTSIDE)
def test_an_untrusted_table_names_nothing_outside_its_folder(folder, cell, capsys):
    for opened in (open_image, open_audio):
        with pytest.raises(BadCell, match="leaves the table's folder"):
            opened(cell, UntrustedFolder(folder))
    file = table(folder, [{"image": cell}, {"image": "good.png"}])
    assert main(["data", "check", str(file), "--image", "image", "--untrusted", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)[0]["problems"][0]["row"] == 1
    assert open_image("good.png", UntrustedFolder(folder)).size == (20, 10)
    if cell == "link.png":
        assert open_image(cell, folder).size == (20, 10)


def test_names_that_no_file_can_have_are_missing_files(folder):
    for cell in ("x" * 5000 + ".png", "nul\0.png", "new\nline.png"):
        with pytest.raises(BadCell, match="missing file"):
            open_image(cell, folder)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_tables_in_unicode_are_found(tmp_path, encoding, suffix):
    text = {"csv": "text,label\n名前 é,a\n", "jsonl": '{"text": "名前 é", "label": "a"}\n'}[suffix]
    (tmp_path / f"t.{suffix}").write_bytes(text.encode(encoding))
    assert list(open_table(tmp_path / f"t.{suffix}")) == [{"text": "名前 é", "label": "a"}]


def test_other_encodings_are_refused_with_the_line_or_read_as_said(tmp_path, capsys):
    file = tmp_path / "t.csv"
    file.write_bytes("text,label\nplain,a\n名前,b\n".encode("gb18030"))
    with pytest.raises(UserError, match=r"line 3: not UTF-8 .*set data.encoding"):
        open_table(file)
    assert open_table(file, encoding="gb18030")[1] == {"text": "名前", "label": "b"}
    assert main(["data", "check", str(file), "--text", "text", "--encoding", "gb18030"]) == 0
    with pytest.raises(UserError, match="There is no encoding 'klingon'"):
        open_table(file, encoding="klingon")


def test_texts_of_every_kind():
    for text, reason in TEXTS.items():
        if reason is None:
            assert open_text(text, Path()) == text.replace("\x92", "").replace("\x07", "")
    assert open_text("half \ud800", Path()) == "half "


def test_the_sound_track_of_a_video_is_audio(tmp_path):
    import av

    tone = (0.5 * numpy.sin(2 * numpy.pi * 440 * numpy.arange(32000) / 16000)).astype(numpy.float32)
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        pictures = container.add_stream("mpeg4", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 32, 32, "yuv420p"
        sound = container.add_stream("aac", rate=16000)
        for shade in range(20):
            frame = av.VideoFrame.from_image(Image.new("RGB", (32, 32), (shade, shade, shade)))
            container.mux(pictures.encode(frame))
        frame = av.AudioFrame.from_ndarray(tone[None], format="flt", layout="mono")
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
        container.mux(pictures.encode())
    samples = open_audio("clip.mp4", tmp_path, rate=8000, seconds=1.0)
    assert len(samples) == pytest.approx(8000, abs=10)
    assert numpy.argmax(numpy.abs(numpy.fft.rfft(samples))) == pytest.approx(440, abs=2)
    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        pictures = container.add_stream("mpeg4", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 32, 32, "yuv420p"
        container.mux(pictures.encode(av.VideoFrame.from_image(Image.new("RGB", (32, 32)))))
        container.mux(pictures.encode())
    with pytest.raises(BadCell, match="broken audio, or none this library reads"):
        open_audio("mute.mp4", tmp_path)


def test_a_csv_with_commas_says_what_to_do(tmp_path):
    with (tmp_path / "t.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["text", "label"], ["one, two", "a"]])
    assert open_table(tmp_path / "t.csv")[0]["text"] == "one, two"
    (tmp_path / "t.csv").write_text("text,label\none, two, three,a\n")
    with pytest.raises(UserError, match="quote cells that hold commas"):
        open_table(tmp_path / "t.csv")
