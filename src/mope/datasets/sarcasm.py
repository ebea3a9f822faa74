"""MUStARD (Castro et al. 2019)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mope.datasets.base import Dropped, Published, Rows, held_out, read_json
from mope.datasets.pickles import read_pickle
from mope.errors import UserError

FOLD = 0


class Mustard(Published):
    """Clips of TV shows, sarcastic or not: text, sound and film, in the speaker-dependent setting.

    The speaker's name stands before the utterance. The first of the published five folds; a tenth of its
    training clips is held out for validation, by a hash of their identifiers. `audio` names the clip itself,
    whose sound track is read.
    """

    name = "mustard"
    title = "MUStARD"
    where = "https://github.com/soujanyaporia/MUStARD (texts, folds), and the clips linked there"
    licence = "MIT (texts); clips for research"
    files: Mapping[str, str] = {
        "sarcasm_data.json": "utterance, speaker, context and label by clip",
        "split_indices.p": "five folds of train and test, read as plain data",
        "utterances_final/ID.mp4": "the clips",
    }
    counts: Mapping[str, int] = {"all": 690}
    label = "sarcasm"
    paths = ("video", "audio")

    def splits(self, folder: Path, dropped: Dropped) -> dict[str, Rows]:
        clips = read_json(self.need(folder, "sarcasm_data.json", "data/sarcasm_data.json"))
        films = self.need(folder, "utterances_final", "mmsd_raw_data/utterances_final")
        file = self.need(folder, "split_indices.p", "data/split_indices.p")
        try:
            train, test = ([int(place) for place in part] for part in read_pickle(file)[FOLD])
            names = list(clips)
            parts = {"train": [names[i] for i in train], "test": [names[i] for i in test]}
        except (TypeError, ValueError, IndexError, KeyError):
            raise UserError(
                f"{file} doesn't hold folds of train and test positions of {len(clips)} clips."
            ) from None
        held = held_out(parts["train"], round(len(parts["train"]) / 10))
        parts = {
            "train": [name for name in parts["train"] if name not in held],
            "validation": [name for name in parts["train"] if name in held],
            "test": parts["test"],
        }
        return {split: self._rows(clips, chosen, films, dropped) for split, chosen in parts.items()}

    def _rows(self, clips: dict[str, Any], names: list[str], films: Path, dropped: Dropped) -> Rows:
        for name in names:
            clip, film = clips[name], films / f"{name}.mp4"
            if not film.is_file():
                dropped.add("missing clip", name)
                continue
            yield {
                "video": str(film),
                "audio": str(film),
                "utterance": f"{clip['speaker']}: {clip['utterance']}",
                "sarcasm": "true" if clip["sarcasm"] else "false",
                "show": clip.get("show"),
                "identifier": name,
            }
