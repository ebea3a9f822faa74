"""SNLI-VE (Xie et al. 2019)."""

from collections.abc import Mapping
from pathlib import Path

from mope.datasets.base import Dropped, Published, Rows, read_jsonl


class SnliVe(Published):
    """Does a picture entail a sentence? Picture as premise and text as hypothesis, never the text premise."""

    name = "snli-ve"
    title = "SNLI-VE"
    where = "https://github.com/necla-ml/SNLI-VE (texts), and Flickr30k's pictures from its authors"
    licence = "BSD-3 (texts); Flickr30k's pictures for research"
    files: Mapping[str, str] = {
        "snli_ve_train.jsonl": "the training pairs",
        "snli_ve_dev.jsonl": "the validation pairs",
        "snli_ve_test.jsonl": "the test pairs",
        "flickr30k-images/ID.jpg": "the pictures",
    }
    counts: Mapping[str, int] = {"all": 565286, "train": 529527, "validation": 17858, "test": 17901}

    def splits(self, folder: Path, dropped: Dropped) -> dict[str, Rows]:
        images = self.need(folder, "flickr30k-images", "flickr30k_images")
        files: Mapping[str, str] = {"train": "train", "validation": "dev", "test": "test"}
        return {
            ours: self._rows(self.need(folder, f"snli_ve_{theirs}.jsonl"), images, dropped)
            for ours, theirs in files.items()
        }

    def _rows(self, file: Path, images: Path, dropped: Dropped) -> Rows:
        for pair in read_jsonl(file):
            name = str(pair["Flickr30K_ID"]).removesuffix(".jpg")
            image = self.image(images / f"{name}.jpg", str(pair.get("pairID")), dropped)
            if image is None:
                continue
            if pair["gold_label"] not in ("entailment", "neutral", "contradiction"):
                dropped.add("no gold label", str(pair.get("pairID")))
            else:
                yield {"image": image, "hypothesis": pair["sentence2"], "label": pair["gold_label"]}
