"""A scene, and its picture."""

import random
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mope.scenes.glyphs import glyph

Cell = tuple[int, int]
"""(row, column) in the scene's grid, from the upper left."""

COLOURS = {
    "red": (231, 111, 97),
    "green": (132, 193, 118),
    "blue": (117, 165, 222),
    "yellow": (246, 219, 108),
    "purple": (184, 140, 208),
    "grey": (170, 170, 170),
}
"""Colours of the tiles that things may stand on."""

TEXTURES = ("plain", "stripes", "checks", "dots", "noise", "gradient")


@dataclass(frozen=True)
class Thing:
    """Something in a scene.

    Attributes:
        kind: what it is.
        cell: where it is.
        colour: of the tile it stands on; None for no tile.
        big: whether it fills its cell.
    """

    kind: str
    cell: Cell
    colour: str | None = None
    big: bool = True


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        grid: cells per side.
        things: at most one per cell.
        covered: cells behind a crate, in which anything might be.
        texture: of the ground.
    """

    grid: int
    things: tuple[Thing, ...]
    covered: tuple[Cell, ...] = ()
    texture: str = "plain"

    def at(self, cell: Cell) -> Thing | None:
        """What is in a cell, if anything is to be seen there."""
        return next((thing for thing in self.things if thing.cell == cell), None)


def compose(scene: Scene, size: int, rng: random.Random) -> Image.Image:
    """Draw a scene as an RGB picture of `size` x `size` pixels; place, scale and tilt vary a little."""
    return compose_with_masks(scene, size, rng)[0]


def compose_with_masks(
    scene: Scene, size: int, rng: random.Random
) -> tuple[Image.Image, list[NDArray[numpy.bool_]]]:
    """The picture of `compose`, and the mask of each thing (size, size): where its glyph is half there."""
    masks = []
    picture = _ground(scene.texture, size, rng)
    side = size / scene.grid
    for thing in scene.things:
        top, left = thing.cell[0] * side, thing.cell[1] * side
        if thing.colour is not None:
            box = [left + 0.03 * side, top + 0.03 * side, left + 0.97 * side, top + 0.97 * side]
            ImageDraw.Draw(picture).rounded_rectangle(box, side / 8, fill=COLOURS[thing.colour])
        scale = rng.uniform(0.72, 0.88) if thing.big else rng.uniform(0.38, 0.46)
        image = glyph(thing.kind).rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True)
        factor = scale * side / max(image.size)
        image = image.resize([max(1, round(n * factor)) for n in image.size], Image.Resampling.LANCZOS)
        room = [side - n for n in image.size]
        place = (round(left + rng.uniform(0.1, 0.9) * room[0]), round(top + rng.uniform(0.1, 0.9) * room[1]))
        picture.paste(image, place, image)
        alpha = Image.new("L", picture.size)
        alpha.paste(image.getchannel("A"), place)
        masks.append(numpy.asarray(alpha) >= 128)
    for row, column in scene.covered:
        _crate(picture, column * side, row * side, side)
    return picture, masks


def _ground(texture: str, size: int, rng: random.Random) -> Image.Image:
    """A light ground, so that glyphs of any colour stand out."""
    light = numpy.array([rng.randint(205, 250) for _ in range(3)], dtype=numpy.float64)
    darker = light - rng.randint(12, 32)
    y, x = numpy.mgrid[0:size, 0:size]
    step = max(2, round(size / rng.uniform(6, 16)))
    if texture == "stripes":
        mix = ((x + rng.choice((-1, 0, 1)) * y) // step) % 2
    elif texture == "checks":
        mix = (x // step + y // step) % 2
    elif texture == "dots":
        mix = ((x % step - step / 2) ** 2 + (y % step - step / 2) ** 2) < (step / 3.5) ** 2
    elif texture == "noise":
        mix = numpy.random.default_rng(rng.getrandbits(32)).random((size, size))
    elif texture == "gradient":
        mix = (x if rng.random() < 0.5 else y) / size
    else:
        mix = numpy.zeros((size, size))
    mix = mix.astype(numpy.float64)[..., None]
    return Image.fromarray((light * (1 - mix) + darker * mix).round().astype(numpy.uint8), "RGB")


def _crate(picture: Image.Image, left: float, top: float, side: float) -> None:
    """A closed crate over a cell."""
    draw = ImageDraw.Draw(picture)
    edge = 0.06 * side
    box = (left + edge, top + edge, left + side - edge, top + side - edge)
    width = max(1, round(side / 22))
    draw.rectangle(box, fill=(168, 124, 82), outline=(92, 62, 38), width=width)
    draw.line((box[0], box[1], box[2], box[3]), fill=(92, 62, 38), width=width)
    draw.line((box[0], box[3], box[2], box[1]), fill=(92, 62, 38), width=width)
