"""Visual entailment: sentences that a picture entails, contradicts or leaves open.

Every picture has one crate. A sentence about a region without the crate is true or false of the picture; one
that only the crate could decide is neutral. The same sentence can have any of the three labels, and kinds,
places, templates and negation are drawn alike for each, so that its words don't tell its label; every picture
comes with one sentence per label, so that the picture doesn't either.
"""

import random
from collections.abc import Sequence

from mope.scenes.compose import TEXTURES, Cell, Scene, Thing
from mope.scenes.questions import Allowed, draw_kinds
from mope.scenes.words import a, place_words

LABELS = ("entailed", "neutral", "contradicted")

HALVES = {
    "on the left": ((0, 0), (1, 0)),
    "on the right": ((0, 1), (1, 1)),
    "at the top": ((0, 0), (0, 1)),
    "at the bottom": ((1, 0), (1, 1)),
}
REGION = {
    False: ("there is {a} {where}.", "{where} there is {a}.", "you can find {a} {where}."),
    True: ("there is no {kind} {where}.", "{where} there is no {kind}.", "you can't find {a} {where}."),
}
BESIDE = {
    False: ("next to the {other} there is {a}.", "{a} is beside the {other}."),
    True: ("next to the {other} there is no {kind}.", "no {kind} is beside the {other}."),
}


def entailment_scene(rng: random.Random, kinds: Sequence[str], allowed: Allowed) -> Scene:
    """Three things of different kinds and a crate, one in each quarter."""
    cells = [(row, column) for row in range(2) for column in range(2)]
    rng.shuffle(cells)
    chosen = draw_kinds(rng, kinds, 3, allowed)
    things = tuple(Thing(kind, cell) for kind, cell in zip(chosen, cells[:3], strict=True))
    return Scene(2, things, covered=(cells[3],), texture=rng.choice(TEXTURES))


def entailment_sentence(
    rng: random.Random, scene: Scene, label: str, kinds: Sequence[str], allowed: Allowed
) -> tuple[str, str]:
    """(type, sentence) with the given label.

    Args:
        rng: decides everything that is open.
        scene: as `entailment_scene` makes it.
        label: one of `LABELS`.
        kinds: kinds that a sentence may name.
        allowed: whether kinds may come together, here the scene's and the one that the sentence names.
    """
    negated = rng.random() < 0.5
    # A negated sentence is entailed where the plain one is contradicted, and the other way round.
    status = (
        label if not negated else {"entailed": "contradicted", "contradicted": "entailed"}.get(label, label)
    )
    template = rng.choice(("quarter", "half", "beside"))
    if template == "beside":
        kind, other = _beside(rng, scene, status, kinds, allowed)
        text = rng.choice(BESIDE[negated]).format(a=a(kind), kind=kind, other=other)
    else:
        cells, where = _region(rng, scene, status, template)
        kind = _kind_for(rng, scene, status, cells, kinds, allowed)
        text = rng.choice(REGION[negated]).format(a=a(kind), kind=kind, where=where)
    return f"{template}, negated" if negated else template, text


def _region(rng: random.Random, scene: Scene, status: str, template: str) -> tuple[Sequence[Cell], str]:
    """Cells of a region, and its words, in which a sentence of that status is possible."""
    if template == "half":
        regions = [(cells, words) for words, cells in HALVES.items()]
    else:
        quarters = [(row, column) for row in range(2) for column in range(2)]
        regions = [((cell,), f"in the {place_words(rng, cell, 2)}") for cell in quarters]
    covered = scene.covered[0]
    if status == "neutral":
        regions = [region for region in regions if covered in region[0]]
    elif status == "contradicted":
        regions = [region for region in regions if covered not in region[0]]
    else:
        regions = [region for region in regions if any(scene.at(cell) for cell in region[0])]
    return rng.choice(regions)


def _kind_for(
    rng: random.Random,
    scene: Scene,
    status: str,
    cells: Sequence[Cell],
    kinds: Sequence[str],
    allowed: Allowed,
) -> str:
    """A kind that is among the cells, or one that isn't to be seen there."""
    there = [thing.kind for cell in cells if (thing := scene.at(cell))]
    return rng.choice(there) if status == "entailed" else _absent(rng, scene, there, kinds, allowed)


def _beside(
    rng: random.Random, scene: Scene, status: str, kinds: Sequence[str], allowed: Allowed
) -> tuple[str, str]:
    """(kind, other) for "there is a KIND beside the OTHER", which stands in the same row."""
    covered = scene.covered[0]
    alone = scene.at((covered[0], 1 - covered[1]))
    pair = [thing for thing in scene.things if thing.cell[0] != covered[0]]
    if alone is None:
        raise ValueError("the scene has an empty cell beside its crate")
    if status == "neutral":
        return _absent(rng, scene, [alone.kind], kinds, allowed), alone.kind
    rng.shuffle(pair)
    kind, other = pair[0].kind, pair[1].kind
    return (kind if status == "entailed" else _absent(rng, scene, [kind, other], kinds, allowed)), other


def _absent(
    rng: random.Random, scene: Scene, there: Sequence[str], kinds: Sequence[str], allowed: Allowed
) -> str:
    """A kind that isn't there; half of the time one from elsewhere in the picture."""
    elsewhere = [thing.kind for thing in scene.things if thing.kind not in there]
    if elsewhere and rng.random() < 0.5:
        return rng.choice(elsewhere)
    shown = {thing.kind for thing in scene.things}
    while True:
        kind = rng.choice(kinds)
        if kind not in shown and allowed([*shown, kind]):
            return kind
