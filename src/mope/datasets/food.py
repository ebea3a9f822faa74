"""UPMC Food-101 (Wang et al. 2015)."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from mope.datasets.base import Dropped, Published, Rows, held_out

VALIDATION = 5000


class Food101(Published):
    """Pictures of dishes with the titles of the web pages they are from, 101 classes.

    The test split is the published one. There is no published validation split: 5,000 training rows are held
    out, as many as in MMBT's, by a hash of their file names.
    """

    name = "food101"
    title = "UPMC Food-101"
    where = (
        "https://www.kaggle.com/datasets/gianmarco96/upmcfood101, or its authors' page at visiir.isir.upmc.fr"
    )
    licence = "for research, see its authors' page"
    files: Mapping[str, str] = {
        "texts/train_titles.csv": "file, title and class of the training pictures, without a header",
        "texts/test_titles.csv": "the same for the test pictures",
        "images/train/CLASS/FILE.jpg": "the training pictures",
        "images/test/CLASS/FILE.jpg": "the test pictures",
    }
    counts: Mapping[str, int] = {"all": 90840}

    def splits(self, folder: Path, dropped: Dropped) -> dict[str, Rows]:
        tables = {
            split: self.need(folder, f"texts/{split}_titles.csv", f"{split}_titles.csv")
            for split in ("train", "test")
        }
        held = held_out([file for file, _, _ in read_titles(tables["train"])], VALIDATION)

        def rows(part: str, keep: bool | None) -> Rows:
            for file, title, label in read_titles(tables[part]):
                if keep is not None and (file in held) != keep:
                    continue
                path = self.image(folder / "images" / part / label / file, file, dropped)
                if path is not None and not title:
                    dropped.add("empty title", file)
                elif path is not None:
                    yield {"image": path, "text": title, "label": label}

        return {"train": rows("train", False), "validation": rows("train", True), "test": rows("test", None)}


def read_titles(file: Path) -> Iterator[tuple[str, str, str]]:
    """File, title and class of each line; a title has commas, which are quoted in some lines only."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        for line in stream:
            if not (text := line.strip("\r\n")):
                continue
            cells = next(csv.reader([text]))
            if len(cells) != 3:
                name, _, rest = text.partition(",")
                title, _, label = rest.rpartition(",")
                cells = [name, title.strip('"'), label]
            yield cells[0].strip(), cells[1].strip(), cells[2].strip()
