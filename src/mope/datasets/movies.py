"""MM-IMDB (Arevalo et al. 2017)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mope.datasets.base import Dropped, Published, Rows, read_json
from mope.errors import UserError

# Genres with too few films to be among the 23 that results are reported on.
RARE = {"News", "Adult", "Talk-Show", "Reality-TV"}


class MmImdb(Published):
    """Film posters and plots, 23 genres, any number per film; the published splits.

    The longest plot of a film is its text, as in MMBT. Films of rare genres alone are left out; MMBT leaves
    out all of the genre News, which here keep their other genres.
    """

    name = "mm-imdb"
    title = "MM-IMDB"
    task = "multilabel"
    where = "http://lisi1.unal.edu.co/mmimdb (mmimdb.tar.gz), mirrored as archive.org/details/mmimdb"
    licence = "for research, see its authors' page; posters and plots are IMDb's"
    files: Mapping[str, str] = {
        "split.json": "identifiers of the films of train, dev and test",
        "dataset/ID.json": "a film: plot, genres and more",
        "dataset/ID.jpeg": "its poster",
    }
    counts: Mapping[str, int] = {"all": 25956, "train": 15552, "validation": 2608, "test": 7799}
    label = "genres"

    def splits(self, folder: Path, dropped: Dropped) -> dict[str, Rows]:
        if not (folder / "dataset").is_dir() and (folder / "multimodal_imdb.hdf5").is_file():
            raise UserError(
                "MM-IMDB: multimodal_imdb.hdf5 holds plots as word numbers and no words; take the folder "
                "dataset of mmimdb.tar.gz, a JSON and a JPEG file per film."
            )
        split = read_json(self.need(folder, "split.json"))
        films = self.need(folder, "dataset")
        return {ours: self._rows(films, split[theirs], dropped) for ours, theirs in _SPLITS.items()}

    def _rows(self, films: Path, identifiers: list[Any], dropped: Dropped) -> Rows:
        for identifier in map(str, identifiers):
            file = films / f"{identifier}.json"
            if not file.is_file():
                dropped.add("missing film", identifier)
                continue
            film = read_json(file)
            plot = film.get("plot") or ""
            text = max(plot, key=len) if isinstance(plot, list) else plot
            genres = [genre for genre in film.get("genres", []) if genre not in RARE]
            image = self.image(films / f"{identifier}.jpeg", identifier, dropped)
            if image is None:
                continue
            if not genres:
                dropped.add("rare genres alone", identifier)
            elif not str(text).strip():
                dropped.add("no plot", identifier)
            else:
                yield {"image": image, "text": text, "genres": genres, "identifier": identifier}


_SPLITS = {"train": "train", "validation": "dev", "test": "test"}
