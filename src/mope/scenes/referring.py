"""Phrases that mean one thing in a picture of several alike: where it is, or what it looks like.

As in RefCOCO a phrase may say where ("the dog on the left"), as in RefCOCO+ it may not ("the dog on the red
tile"). The thing that is meant is one of two or three of its kind, so that its kind alone doesn't say which.
"""

import random
from collections.abc import Callable, Iterator, Sequence

from mope.scenes.compose import COLOURS, TEXTURES, Scene, Thing
from mope.scenes.questions import Allowed, draw_kinds, moved
from mope.scenes.words import place_words

POSITION, APPEARANCE = "position", "appearance"
_SIDES: tuple[tuple[tuple[str, ...], Callable[[Thing, int], bool]], ...] = (
    (("on the left", "on the left side"), lambda thing, grid: thing.cell[1] == 0),
    (("on the right", "on the right side"), lambda thing, grid: thing.cell[1] == grid - 1),
    (("at the top", "in the upper row"), lambda thing, grid: thing.cell[0] == 0),
    (("at the bottom", "in the lower row"), lambda thing, grid: thing.cell[0] == grid - 1),
)
_BESIDE = {
    (0, 1): "right of the {other}",
    (0, -1): "left of the {other}",
    (1, 0): "below the {other}",
    (-1, 0): "above the {other}",
}
_PATTERNS = {2: ((2, 1, 1), (2, 2), (3, 1)), 3: ((2, 1, 1), (2, 2, 1), (3, 1, 1), (2, 2, 2), (3, 2, 1))}


def referring_scene(rng: random.Random, kinds: Sequence[str], allowed: Allowed, grid: int) -> Scene:
    """Things on tiles, some of them alike; those of one kind have different colours.

    Args:
        rng: decides everything.
        kinds: what things may be.
        allowed: whether kinds may come together.
        grid: cells per side; with three, things are big or small and some cells stay empty.
    """
    counts = rng.choice(_PATTERNS[grid])
    chosen = draw_kinds(rng, kinds, len(counts), allowed)
    cells = rng.sample([(row, column) for row in range(grid) for column in range(grid)], sum(counts))
    things = []
    for kind, count in zip(chosen, counts, strict=True):
        for colour in rng.sample(list(COLOURS), count):
            big = grid == 2 or rng.random() < 0.5
            things.append(Thing(kind, cells[len(things)], colour, big))
    return Scene(grid, tuple(things), texture=rng.choice(TEXTURES))


def referring_phrases(rng: random.Random, scene: Scene, count: int) -> Iterator[tuple[str, str, Thing]]:
    """(type, phrase, what it means), about things that aren't the only ones of their kind.

    Args:
        rng: decides what is open.
        scene: as `referring_scene` makes it.
        count: how many of each type.
    """
    names = [thing.kind for thing in scene.things]
    alike = [thing for thing in scene.things if names.count(thing.kind) > 1]
    for kind, phrases_of in ((POSITION, positions), (APPEARANCE, looks)):
        for thing in rng.sample(alike, min(count, len(alike))):
            yield kind, rng.choice(phrases_of(rng, scene, thing)), thing


def positions(rng: random.Random, scene: Scene, thing: Thing) -> list[str]:
    """Phrases that say where a thing is, and are true of no other thing of its kind."""
    others = [other for other in scene.things if other.kind == thing.kind and other != thing]
    place = place_words(rng, thing.cell, scene.grid)
    found = [f"the {place} {thing.kind}", f"the {thing.kind} in the {place}"]
    for words, is_there in _SIDES:
        if is_there(thing, scene.grid) and not any(is_there(other, scene.grid) for other in others):
            found += [f"the {thing.kind} {text}" for text in words]
    if scene.grid == 2:
        return found
    names = [other.kind for other in scene.things]
    for step, text in _BESIDE.items():
        # A thing lies to the right of what is one step to its left.
        beside = scene.at(moved(thing.cell, (-step[0], -step[1])))
        if beside is not None and names.count(beside.kind) == 1:
            found.append(f"the {thing.kind} {text.format(other=beside.kind)}")
    return found


def looks(rng: random.Random, scene: Scene, thing: Thing) -> list[str]:
    """Phrases that say what a thing looks like, and are true of no other thing of its kind."""
    others = [other for other in scene.things if other.kind == thing.kind and other != thing]
    found = [f"the {thing.kind} on {thing.colour}", f"the {thing.kind} on the {thing.colour} tile"]
    if scene.grid > 2 and not any(other.big == thing.big for other in others):
        found += [f"the {'big' if thing.big else 'small'} {thing.kind}"]
    return found
