"""VQAv2 (Goyal et al. 2017)."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mope.datasets.base import Dropped, Published, Rows, read_json
from mope.errors import UserError

LEAST = 9
"""An answer is a label if it is the most frequent one of at least so many training questions."""


class VqaV2(Published):
    """Questions about COCO's pictures. The label is the answer that most people gave.

    Test answers aren't published, so the published validation split stands for the test.
    """

    name = "vqav2"
    title = "VQAv2"
    where = "https://visualqa.org/download.html, and COCO's train2014 and val2014 pictures"
    licence = "CC BY 4.0"
    files: Mapping[str, str] = {
        "v2_OpenEnded_mscoco_train2014_questions.json": "training questions; the same for val2014",
        "v2_mscoco_train2014_annotations.json": "training answers; the same for val2014",
        "train2014/COCO_train2014_ID.jpg": "COCO's pictures; the same for val2014",
    }
    counts: Mapping[str, int] = {"train": 443757, "test": 214354}

    def splits(self, folder: Path, dropped: Dropped) -> dict[str, Rows]:
        questions, answers, images = {}, {}, {}
        for part in ("train2014", "val2014"):
            questions[part] = _entries(
                self.need(folder, f"v2_OpenEnded_mscoco_{part}_questions.json"), "questions"
            )
            answers[part] = {
                entry["question_id"]: entry["multiple_choice_answer"]
                for entry in _entries(self.need(folder, f"v2_mscoco_{part}_annotations.json"), "annotations")
            }
            images[part] = self.need(folder, part, f"images/{part}")
        counts = Counter(answers["train2014"].values())
        labels = {answer for answer, count in counts.items() if count >= LEAST}
        if len(labels) < 2:
            raise UserError(f"VQAv2: fewer than two answers come {LEAST} times in the training questions.")

        def rows(part: str) -> Rows:
            for entry in questions[part]:
                number = entry["question_id"]
                answer = answers[part].get(number)
                if answer not in labels:
                    reason = "no answer" if answer is None else f"an answer of fewer than {LEAST} questions"
                    dropped.add(reason, f"question {number}")
                    continue
                name = f"COCO_{part}_{entry['image_id']:012d}.jpg"
                image = self.image(images[part] / name, f"question {number}", dropped)
                if image is not None:
                    yield {"image": image, "question": entry["question"], "label": answer}

        return {"train": rows("train2014"), "test": rows("val2014")}


def _entries(file: Path, key: str) -> list[dict[str, Any]]:
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise UserError(f"{file} has no list of {key}.")
    return content[key]
