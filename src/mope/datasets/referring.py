"""RefCOCO and RefCOCO+ (Yu et al. 2016), with the splits of UNC."""

from pathlib import Path
from typing import Any

from mope.datasets.base import Dropped, Published, Rows, read_json
from mope.datasets.pickles import read_pickle
from mope.errors import UserError
from mope.media.cells import BadCell
from mope.media.masks import encode_mask, open_mask

_COUNTS = {
    "refcoco": {"train": 120624, "validation": 10834, "testA": 5657, "testB": 5095},
    "refcoco+": {"train": 120191, "validation": 10758, "testA": 5726, "testB": 4889},
}


class RefCoco(Published):
    """A phrase about one thing in a picture, and that thing's mask; a row per phrase.

    COCO's polygons and run lengths are both written as run lengths. testA has people, testB other things.
    """

    task = "referring-segmentation"
    where = "https://github.com/lichengunc/refer (refs), and COCO's train2014 pictures"
    licence = "Apache-2.0 (refs); COCO's annotations CC BY 4.0, pictures under Flickr's terms"
    label = "category"

    def __init__(self, name: str):
        self.name = name
        self.title = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+"}[name]
        self.files = {
            f"{name}/refs(unc).p": "phrases and splits, a pickle that is read as plain data",
            f"{name}/instances.json": "COCO's annotations of the pictures that are used",
            "train2014/COCO_train2014_ID.jpg": "COCO's training pictures of 2014",
        }
        self.counts = _COUNTS[name]

    def splits(self, folder: Path, dropped: Dropped) -> dict[str, Rows]:
        own = folder / self.name if (folder / self.name).is_dir() else folder
        refs = read_pickle(self.need(own, "refs(unc).p"))
        coco = read_json(self.need(own, "instances.json"))
        images = self.need(folder, "train2014", "images/train2014", "images/mscoco/images/train2014")
        try:
            annotations = {entry["id"]: entry for entry in coco["annotations"]}
            sizes = {entry["id"]: entry for entry in coco["images"]}
            kinds = {entry["id"]: entry["name"] for entry in coco["categories"]}
            splits = {ref["split"] for ref in refs}
        except (KeyError, TypeError):
            raise UserError(
                f"{self.title}: instances.json or refs(unc).p lacks what they should hold."
            ) from None
        order = {"train": "train", "validation": "val", "testA": "testA", "testB": "testB"}
        if unknown := splits - set(order.values()):
            dropped.add(f"unknown split {sorted(unknown)[0]}", "some refs")

        def rows(split: str) -> Rows:
            for ref in refs:
                if ref["split"] == split:
                    yield from self._rows(ref, annotations, sizes, kinds, images, dropped)

        return {ours: rows(theirs) for ours, theirs in order.items() if theirs in splits}

    def _rows(
        self,
        ref: dict[str, Any],
        annotations: dict[int, Any],
        sizes: dict[int, Any],
        kinds: dict[int, str],
        images: Path,
        dropped: Dropped,
    ) -> Rows:
        entry = annotations.get(ref["ann_id"])
        picture = sizes.get(ref["image_id"])
        if entry is None or picture is None:
            dropped.add("missing annotation", f"ref {ref['ref_id']}")
            return
        image = self.image(images / picture["file_name"], f"ref {ref['ref_id']}", dropped)
        if image is None:
            return
        outline = {"segmentation": entry["segmentation"], "size": [picture["height"], picture["width"]]}
        try:
            mask = encode_mask(open_mask(outline, images))
        except BadCell as error:
            dropped.add(str(error), f"ref {ref['ref_id']}")
            return
        for sentence in ref["sentences"]:
            yield {
                "image": image,
                "phrase": sentence["sent"],
                "mask": mask,
                "category": kinds.get(ref["category_id"], ""),
                "ref": ref["ref_id"],
            }
