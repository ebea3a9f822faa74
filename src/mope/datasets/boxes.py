"""NLVR (Suhr et al. 2017)."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from mope.datasets.base import Dropped, Published, Rows, held_out, read_jsonl, words_of
from mope.media.cells import BadCell
from mope.media.images import open_image

BOXES = ("left", "middle", "right")


class Nlvr(Published):
    """Sentences that people wrote about three boxes of things, true or false; each example in six box orders.

    A row has the picture of all three, `image`, and each box as a picture of its own, `left`, `middle` and
    `right`, for models that take them as three inputs.

    From the published JSON and PNG files, or from Parquet files with the pictures in them. Without the
    published test split the dev split stands for it. A tenth of the training examples is held out for
    validation, all examples of a sentence together, by a hash of its words: it was written for up to four
    pictures, and several people wrote some sentences.
    """

    name = "nlvr"
    title = "NLVR"
    where = "https://github.com/lil-lab/nlvr (the folder nlvr)"
    licence = "CC BY 4.0"
    files: Mapping[str, str] = {
        "train/train.json": "an example per line: sentence, label, identifier, directory",
        "dev/dev.json, test/test.json": "the same",
        "SPLIT/images/DIRECTORY/SPLIT-IDENTIFIER-ORDER.png": "six pictures per example",
        "train.parquet, dev.parquet": "instead: rows with sentence, label, identifier, image",
    }
    counts: Mapping[str, int] = {"all": 92244}
    paths: tuple[str, ...] = ("image", *BOXES)

    def splits(self, folder: Path, dropped: Dropped) -> dict[str, Rows]:
        if (folder / "train.parquet").is_file():
            return self._embedded(folder, dropped)
        train = list(read_jsonl(self.need(folder, "train/train.json", "train.json")))
        held = _held_out(example["sentence"] for example in train)
        tables = {"train": "train", "validation": "train", "test": "test"}
        if not (folder / "test" / "test.json").is_file():
            tables["test"] = "dev"

        def rows(ours: str, theirs: str) -> Rows:
            file = self.need(folder, f"{theirs}/{theirs}.json", f"{theirs}.json")
            for example in read_jsonl(file):
                identifier = example["identifier"]
                if theirs == "train" and (words_of(example["sentence"]) in held) != (ours == "validation"):
                    continue
                if "label" not in example:
                    dropped.add("no label", identifier)
                    continue
                pictures = folder / theirs / "images" / str(example["directory"])
                for order in range(6):
                    image = self.image(pictures / f"{theirs}-{identifier}-{order}.png", identifier, dropped)
                    if image is None or (boxes := _boxes(image, identifier, dropped)) is None:
                        continue
                    yield {
                        "image": image,
                        **boxes,
                        "sentence": example["sentence"],
                        "label": str(example["label"]).lower(),
                        "identifier": identifier,
                    }

        return {ours: rows(ours, theirs) for ours, theirs in tables.items()}

    def _embedded(self, folder: Path, dropped: Dropped) -> dict[str, Rows]:
        """Rows of Parquet files; their pictures are written beside the tables by `prepare`."""
        import pyarrow.parquet

        tables = {
            name: pyarrow.parquet.read_table(self.need(folder, f"{name}.parquet"))
            for name in ("train", "dev")
        }
        held = _held_out(tables["train"].column("sentence").to_pylist())

        def rows(name: str, keep: bool | None) -> Rows:
            for batch in tables[name].to_batches(1000):
                for row in batch.to_pylist():
                    if keep is not None and (words_of(row["sentence"]) in held) != keep:
                        continue
                    content = row["image"]["bytes"]
                    boxes = _boxes(content, row["identifier"], dropped)
                    if boxes is not None:
                        yield {**row, "image": content, **boxes}

        return {"train": rows("train", False), "validation": rows("train", True), "test": rows("dev", None)}


def _boxes(picture: str | bytes, row: str, dropped: Dropped) -> dict[str, bytes] | None:
    """Each box as a PNG file: a square as high as the picture, at its ends and in its middle.

    None of a picture that can't be read, or isn't wide enough for three; that is noted.
    """
    try:
        whole = open_image(picture, Path())
    except BadCell as error:
        dropped.add(str(error), row)
        return None
    side, room = whole.height, whole.width - whole.height
    if whole.width < len(BOXES) * side:
        dropped.add("the picture isn't three boxes wide", row)
        return None
    starts = zip(BOXES, (0, room // 2, room), strict=True)
    return {box: _png(whole.crop((start, 0, start + side, side))) for box, start in starts}


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _held_out(sentences: Iterable[str]) -> set[str]:
    """A tenth of them, each once."""
    different = sorted(set(map(words_of, sentences)))
    return held_out(different, round(len(different) / 10))
