"""Questions about a scene, whose answers neither picture nor text gives alone."""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mope.scenes.compose import COLOURS, TEXTURES, Cell, Scene, Thing
from mope.scenes.words import NUMBERS, a, place_name, place_words

Allowed = Callable[[Sequence[str]], bool]
"""Whether these kinds may be seen together."""


class Question(NamedTuple):
    """A question about a scene.

    Attributes:
        text: as it is put.
        type: position, neighbour, count, colour or size.
        asks: what it asks, however it is put: a place, a direction, or as `type`.
        answer: the right one.
    """

    text: str
    type: str
    asks: str
    answer: str


POSITION = (
    "what is in the {place}?",
    "what do you see in the {place}?",
    "which thing is in the {place}?",
    "name the thing in the {place}.",
    "look at the {place}: what is there?",
    "in the {place}, what is there?",
)
CORNER = tuple(text.replace("{place}", "{place} corner") for text in POSITION)
NEIGHBOUR = {
    (0, 1): ("what is to the right of the {kind}?", "what stands right of the {kind}?"),
    (0, -1): ("what is to the left of the {kind}?", "what stands left of the {kind}?"),
    (1, 0): ("what is below the {kind}?", "what is directly under the {kind}?"),
    (-1, 0): ("what is above the {kind}?", "what is directly over the {kind}?"),
}
_DIRECTIONS = {(0, 1): "right", (0, -1): "left", (1, 0): "below", (-1, 0): "above"}
COUNT = (
    "how many things like {a} are there?",
    "count them: how often is there {a}?",
    "how often do you see {a}?",
)
COLOUR = ("what colour is behind the {kind}?", "what is the colour of the {kind}'s tile?")
SIZE = ("how big is the {kind}?", "is the {kind} big or small?")


def easy_scene(rng: random.Random, kinds: Sequence[str], allowed: Allowed) -> Scene:
    """Four things of different kinds, one in each quarter."""
    chosen = draw_kinds(rng, kinds, 4, allowed)
    cells = [(row, column) for row in range(2) for column in range(2)]
    things = tuple(Thing(kind, cell) for kind, cell in zip(chosen, cells, strict=True))
    return Scene(2, things, texture=rng.choice(TEXTURES))


def easy_question(rng: random.Random, scene: Scene) -> Question:
    """What is in one corner."""
    thing = rng.choice(scene.things)
    return _of_place(rng, scene, thing, CORNER)


def full_scene(rng: random.Random, kinds: Sequence[str], allowed: Allowed) -> Scene:
    """Four to six things on coloured tiles in a grid of nine cells; one kind may come several times."""
    count = rng.randint(4, 6)
    repeated = rng.randint(1, 4)
    chosen = draw_kinds(rng, kinds, max(2, count - repeated + 1), allowed)
    names = [chosen[0]] * repeated + chosen[1:]
    cells = rng.sample([(row, column) for row in range(3) for column in range(3)], len(names))
    things = [
        Thing(kind, cell, rng.choice(list(COLOURS)), rng.random() < 0.5)
        for kind, cell in zip(names, cells, strict=True)
    ]
    return Scene(3, tuple(things), texture=rng.choice(TEXTURES))


def full_question(rng: random.Random, scene: Scene) -> Question:
    """A question by position, neighbour, count, colour or size."""
    makers = [_position, _neighbour, _count, _colour, _size]
    rng.shuffle(makers)
    return next(found for maker in makers if (found := maker(rng, scene)) is not None)


def _position(rng: random.Random, scene: Scene) -> Question:
    return _of_place(rng, scene, rng.choice(scene.things), POSITION)


def _of_place(rng: random.Random, scene: Scene, thing: Thing, texts: Sequence[str]) -> Question:
    text = rng.choice(texts).format(place=place_words(rng, thing.cell, scene.grid))
    return Question(text, "position", place_name(thing.cell, scene.grid), thing.kind)


def _neighbour(rng: random.Random, scene: Scene) -> Question | None:
    pairs = [
        (thing, step, beside)
        for thing in _single(scene)
        for step in NEIGHBOUR
        if (beside := scene.at(moved(thing.cell, step))) is not None
    ]
    if not pairs:
        return None
    thing, step, beside = rng.choice(pairs)
    text = rng.choice(NEIGHBOUR[step]).format(kind=thing.kind)
    return Question(text, "neighbour", _DIRECTIONS[step], beside.kind)


def _count(rng: random.Random, scene: Scene) -> Question:
    kind = rng.choice(sorted({thing.kind for thing in scene.things}))
    number = sum(thing.kind == kind for thing in scene.things)
    return Question(rng.choice(COUNT).format(a=a(kind)), "count", "count", NUMBERS[number])


def _colour(rng: random.Random, scene: Scene) -> Question | None:
    single = [thing for thing in _single(scene) if thing.colour is not None]
    if not single:
        return None
    thing = rng.choice(single)
    return Question(rng.choice(COLOUR).format(kind=thing.kind), "colour", "colour", thing.colour or "")


def _size(rng: random.Random, scene: Scene) -> Question | None:
    single = _single(scene)
    if not single:
        return None
    thing = rng.choice(single)
    return Question(rng.choice(SIZE).format(kind=thing.kind), "size", "size", "big" if thing.big else "small")


def _single(scene: Scene) -> list[Thing]:
    """Things that "the ..." can name: the only ones of their kind."""
    names = [thing.kind for thing in scene.things]
    return [thing for thing in scene.things if names.count(thing.kind) == 1]


def moved(cell: Cell, step: Cell) -> Cell:
    """The cell one step away."""
    return cell[0] + step[0], cell[1] + step[1]


def draw_kinds(rng: random.Random, kinds: Sequence[str], count: int, allowed: Allowed) -> list[str]:
    """Different kinds that may be seen together, every such set equally likely."""
    while True:
        chosen = rng.sample(kinds, count)
        if allowed(chosen):
            return chosen
