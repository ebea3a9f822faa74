"""MUStARD (Castro et al. 2019)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mope.datasets.base import Dropped, Published, Rows, held_out, read_json
from mope.datasets.pickles import read_pickle
from mope.errors import UserError

INDEPENDENT, HELD_OUT_SHOW = "independent", "FRIENDS"


class Mustard(Published):
    """Clips of TV shows, sarcastic or not: text, sound and film.

    The published five folds, in folders `fold0` to `fold4`, are in the speaker-dependent setting: the
    speaker's name stands before the utterance (the paper's appendix B). In the folder `independent` is the
    authors' speaker-independent split, whose test clips are those of Friends, whom no other show has; there
    no names are given. A tenth of the training clips is held out for validation, by a hash of their
    identifiers. `audio` names the clip itself, whose sound track is read.
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
    counts: Mapping[str, int] = {"all": 690, "independent/test": 356}
    label = "sarcasm"
    train = "fold0/train"
    paths = ("video", "audio")

    def splits(self, folder: Path, dropped: Dropped) -> dict[str, Rows]:
        clips = read_json(self.need(folder, "sarcasm_data.json", "data/sarcasm_data.json"))
        films = self.need(folder, "utterances_final", "mmsd_raw_data/utterances_final")
        file = self.need(folder, "split_indices.p", "data/split_indices.p")
        names = list(clips)
        try:
            folds = [[[names[int(place)] for place in part] for part in fold] for fold in read_pickle(file)]
            parts = {f"fold{number}": (train, test) for number, (train, test) in enumerate(folds)}
        except (TypeError, ValueError, IndexError, KeyError):
            raise UserError(
                f"{file} doesn't hold folds of train and test positions of {len(clips)} clips."
            ) from None
        shows = {name: clip.get("show") for name, clip in clips.items()}
        if HELD_OUT_SHOW in shows.values():
            parts[INDEPENDENT] = (
                [name for name in names if shows[name] != HELD_OUT_SHOW],
                [name for name in names if shows[name] == HELD_OUT_SHOW],
            )
        there = set(self._there(names, films, dropped))
        found: dict[str, Rows] = {}
        for setting, (train, test) in parts.items():
            held = held_out(train, round(len(train) / 10))
            chosen = {
                "train": [name for name in train if name not in held],
                "validation": [name for name in train if name in held],
                "test": test,
            }
            for split, some in chosen.items():
                kept = [name for name in some if name in there]
                found[f"{setting}/{split}"] = self._rows(clips, kept, films, setting != INDEPENDENT)
        return found

    def _there(self, names: list[str], films: Path, dropped: Dropped) -> Iterator[str]:
        """Clips whose film is there; the others are noted, once for all folds."""
        for name in names:
            if (films / f"{name}.mp4").is_file():
                yield name
            else:
                dropped.add("missing clip", name)

    def _rows(self, clips: dict[str, Any], names: list[str], films: Path, says_speaker: bool) -> Rows:
        for name in names:
            clip, film = clips[name], str(films / f"{name}.mp4")
            yield {
                "video": film,
                "audio": film,
                "utterance": f"{clip['speaker']}: {clip['utterance']}" if says_speaker else clip["utterance"],
                "sarcasm": "true" if clip["sarcasm"] else "false",
                "show": clip.get("show"),
                "identifier": name,
            }
