"""A shop's table: photos, titles, prices, brands and dates; the department takes all of them to tell."""

import csv
import random
from datetime import date, timedelta
from pathlib import Path

from tqdm import tqdm

from mope.errors import UserError
from mope.files import replacing_folder
from mope.scenes.compose import COLOURS, TEXTURES, Scene, Thing, compose

FAMILIES = {
    "animal": "cat, dog, fox, owl, bear, rabbit, penguin, elephant, frog, horse, duck, koala",
    "food": "apple, banana, pizza, lemon, carrot, cupcake, strawberry, pear, taco, waffle, doughnut, melon",
    "vehicle": "car, bus, tractor, train, bicycle, rocket, ship, taxi, helicopter, scooter, ambulance, tram",
}
"""What photos show, by family: whether a plush animal or an animal's poster, the title says."""

DEPARTMENTS = {
    ("animal", "plush"): "stuffed animals",
    ("food", "plush"): "play kitchen",
    ("vehicle", "plush"): "toy cars",
    ("animal", "poster"): "nature art",
    ("food", "poster"): "kitchen art",
    ("vehicle", "poster"): "garage art",
}
GALLERY = "gallery"
"""The department of whatever an artist's brand sells for more than `_DEAR`."""

_TITLES = {
    "plush": (
        "soft and cuddly, {size}, for children from 3",
        "a {size} plush friend, washable",
        "{size} plush toy, hand sewn",
        "to hug and to carry: {size}, filled with cotton",
    ),
    "poster": (
        "{size} print on thick paper, unframed",
        "wall poster, {size}, matt",
        "a {size} print to hang up, ready to frame",
        "art print, {size}, signed by the artist",
    ),
}
_SIZES = ("small", "medium", "large")
_BRANDS = ("Northwind", "Atelier Bleu", "Pinecone", "Studio Otto")
_ARTISTS = _BRANDS[1::2]
_DEAR = 80.0
_MISSING = 0.03
_SIDE = 112


def build_shop(folder: str | Path, train: int = 1200, test: int = 400, seed: int = 0) -> dict[str, int]:
    """Write `train.csv`, `test.csv` and `photos/` into a new folder.

    Columns: `id`, `photo`, `title`, `price` (sometimes empty), `brand`, `listed` (a date), `currency`, always
    the same, and `department`, the label.

    Returns:
        Rows by table.

    Raises:
        UserError: the folder holds something.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} isn't empty: name a new folder for the shop.")
    if min(train, test) < 1:
        raise UserError("A shop has one product at least in each table.")
    with replacing_folder(folder) as draft:
        (draft / "photos").mkdir()
        for name, count in {"train": train, "test": test}.items():
            rng = random.Random(f"{seed} {name}")
            rows = [
                _product(rng, draft, name, n) for n in tqdm(range(count), name, leave=False, disable=None)
            ]
            with (draft / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    return {"train": train, "test": test}


def _product(rng: random.Random, folder: Path, table: str, number: int) -> dict[str, str]:
    family, form = rng.choice(list(DEPARTMENTS))
    kind = rng.choice(FAMILIES[family].split(", "))
    thing = Thing(kind, (0, 0), rng.choice(list(COLOURS)))
    photo = f"photos/{table}_{number:05d}.png"
    compose(Scene(1, (thing,), texture=rng.choice(TEXTURES)), _SIDE, rng).save(
        folder / photo, compress_level=4
    )
    brand, size = rng.choice(_BRANDS), rng.choice(_SIZES)
    price = rng.lognormvariate(4.1, 0.6)
    dear = price > _DEAR and brand in _ARTISTS
    return {
        "id": f"P{rng.randrange(10**8):08d}",
        "photo": photo,
        "title": rng.choice(_TITLES[form]).format(size=size),
        "price": "" if rng.random() < _MISSING else f"{price:.2f}",
        "brand": brand,
        "listed": (date(2025, 1, 1) + timedelta(days=rng.randrange(600))).isoformat(),
        "currency": "EUR",
        "department": GALLERY if dear else DEPARTMENTS[family, form],
    }
