"""Pictures of everyday things: cut-outs on varied grounds, or a photograph of one; names, and questions about them.

A photograph that shows one of the things large is named by it; any other photograph is one of nothing, see `nothing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from numpy.random import Generator
from PIL import Image, ImageOps

from vl.nano.pictures.canvas import Background, Box, Boxes, SizeRange, draw_size, inner, pick
from vl.nano.pictures.cutouts import Cutout, Thing, find_cutouts, open_cutout, thing_list
from vl.nano.pictures.nothing import draw_ground
from vl.nano.pictures.photographs import NONE, Photographs, crop_photo
from vl.nano.pictures.placing import Disc, place_in_cells
from vl.nano.pictures.questions import Asked, Questions, listed, sorts
from vl.nano.pictures.variety import vary_cutout, vary_photo

MAX_THINGS = 3
_ALONE = 0.7  # of the pictures, those of one thing
_LARGEST = (0.96, 0.5, 0.44)  # of the shorter side, by how many there are
_MIN_SIZE, _MIN_SHARE = 32, 0.12  # px, of the longer side
_TURN, _TURNED = 15.0, 0.4  # degrees
_ASPECT = 2.2
_VISIBLE, _MIN_CONTRAST = 0.6, 90.0  # this share of a thing stands out from the backdrop by so much
# What its colour tells from others.
_COLOURED_KINDS = ("fruit", "vegetable", "food", "plant")
_COLOURED = (
    *("taxi", "fire engine", "police car", "ambulance", "chick", "dove", "fire", "panda", "zebra", "tiger", "leopard"),
    *("globe", "basketball"),
)
# What one could be called by the other's name: neither is said to be absent where the other is.
_ALIKE = tuple(
    frozenset(names.split(", "))
    for names in (
        "car, taxi, police car, racing car, ambulance",
        "truck, fire engine, ambulance",
        "boat, ship, sailing boat, canoe",
        "ball, basketball, balloon, globe",
        "bicycle, motorcycle, scooter",
        "train, tram, bus",
        "chicken, rooster, chick, turkey",
        "dove, duck, bird",
        "flower, rose, tulip",
        "bear, panda, teddy bear, koala",
        "monkey, gorilla",
        "mouse, rat, hamster, squirrel",
        "pig, boar",
        "dog, wolf, fox",
        "lion, tiger, leopard",
        "horse, zebra, donkey",
        "sheep, goat",
        "crocodile, lizard",
        "shark, whale, dolphin",
        "shrimp, crab, scorpion",
        "bee, fly",
        "melon, watermelon",
        "bell pepper, chilli",
        "cake, cupcake",
        "cookie, doughnut",
        "orange, lemon, peach",
        "pen, pencil, brush",
        "knife, sword, saw",
        "guitar, violin",
        "trumpet, saxophone",
        "clock, watch",
        "cup, coffee, beer, wine, trophy, teapot",
        "glasses, wine, beer, magnifying glass",
        "bottle, wine, beer",
        "house, castle, church, tent",
        "crown, hat",
        "fire, candle",
        "computer, television, keyboard, telephone, printer",
        "camera, telephone",
        "microscope, telescope",
    )
)
# What others are, or have about them: it is not said to be absent where one of them is.
_INCLUDES = {
    name: frozenset(others.split(", "))
    for name, others in {
        "bird": "chick, chicken, rooster, turkey, dove, duck, eagle, owl, parrot, penguin",
        "cat": "lion, tiger, leopard",
        "fish": "shark, whale, dolphin",
        "tree": "palm tree",
        "leaf": "tree, palm tree, flower, rose, tulip, apple, cherries, lemon, orange, pear, strawberry, carrot, corn",
        "flower": "cactus, tree",
        "wheel": (
            "car, taxi, police car, racing car, ambulance, truck, fire engine, bus, bicycle, motorcycle, scooter, "
            "tractor, train, tram, plane"
        ),
        "keyboard": "piano",
        "mouse": "computer",
        "shell": "snail, turtle, egg",
        "door": "house, castle, church, car, taxi, police car, bus, ambulance, truck, train, tram",
        "bread": "sandwich, hamburger, hot dog, croissant",
        "cheese": "pizza, hamburger, sandwich, taco",
        "lettuce": "hamburger, sandwich, taco",
        "tomato": "pizza, hamburger, sandwich, taco",
        "chocolate": "cake, cupcake, cookie, doughnut, ice cream",
        "fire": "rocket",
        "light bulb": "candle",
        "clock": "church",
        "bell": "church",
        "key": "keyboard, piano, padlock",
        "coffee": "cup",
    }.items()
}
_KINDS = ("animal", "fruit", "vegetable", "vehicle", "tool", "plant")  # by which one would ask
_KINDS_ALIKE = (("fruit", "vegetable", "plant", "food"), ("tool", "thing"))


@dataclass(frozen=True)
class Shown:
    """One thing of a picture: where its middle is, on the grid, and the box around its ink in pixels."""

    thing: Thing
    source: str
    position: str
    ink: Box


@dataclass(frozen=True)
class ThingFacts:
    """Ground truth of a picture of things, in reading order."""

    width: int
    height: int
    items: tuple[Shown, ...]

    @property
    def boxes(self) -> Boxes:
        """(name, the middle of where it is) of each thing."""
        return tuple((item.thing.name, inner(item.ink)) for item in self.items)


def draw_things(
    rng: Generator,
    sizes: Sequence[SizeRange],
    folder: str | None,
    *,
    max_things: int = MAX_THINGS,
    textures: float = 0.0,
    grounds: float = 0.0,
    photographs: Photographs = NONE,
) -> tuple[Image.Image, ThingFacts]:
    """Draws 1 to `max_things` different things of a folder, see `find_cutouts`.

    The share `grounds` of them lie on a picture of nothing; see `draw_nothing`, also for `photographs`, whose part and
    share that is varied (see `variety`) are also those of the things.

    Raises:
        ConfigError: as `find_cutouts`.
    """
    part, varied = photographs.part, photographs.varied
    chosen = _choose(rng, folder, part, 1 if rng.random() < _ALONE else int(rng.integers(1, max_things + 1)))
    width, height = draw_size(sizes, _ASPECT, rng)
    if chosen[0].whole:
        take = vary_photo if varied and rng.random() < varied else crop_photo
        image = take(rng, width, height, chosen[0].image.convert("RGB"), 0.8)
        box = (0.2 * width, 0.2 * height, 0.8 * width, 0.8 * height)
        return image, ThingFacts(width, height, (Shown(chosen[0].thing, chosen[0].source, "in the center", box),))
    width, height = max(width, 3 * _MIN_SIZE), max(height, 3 * _MIN_SIZE)
    if varied:
        chosen = [_varied(rng, one) if rng.random() < varied else one for one in chosen]
    if grounds and rng.random() < grounds:
        image = draw_ground(rng, width, height, photographs)
    else:
        image = _backdrop(rng, chosen, textures).paint(width, height, rng)
    largest = _LARGEST[min(len(chosen), len(_LARGEST)) - 1] * min(width, height)
    placed = place_in_cells(rng, width, height, [partial(_room, one, width, height, largest) for one in chosen])
    return image, ThingFacts(width, height, tuple(_paint(rng, image, chosen[which], disc) for which, disc in placed))


def caption_things(facts: ThingFacts) -> str:
    """The canonical caption, such as "A cat." or "A cat on the left and an apple at the bottom right."."""
    if len(facts.items) == 1:
        text = facts.items[0].thing.phrase
    else:
        text = listed([f"{item.thing.phrase} {item.position}" for item in facts.items])
    return f"{text[0].upper()}{text[1:]}."


def _choose(rng: Generator, folder: str | None, part: str, count: int) -> list[Cutout]:
    """Pictures of different things; one that is shown whole is alone."""
    found = find_cutouts(folder, part)
    assert folder is not None
    things = list(found)
    chosen: list[Cutout] = []
    for index in rng.permutation(len(things))[:count]:
        thing = things[int(index)]
        cutout = open_cutout(folder, thing, pick(rng, found[thing]))
        if cutout.whole:
            return chosen or [cutout]
        chosen.append(cutout)
    return chosen


def _varied(rng: Generator, one: Cutout) -> Cutout:
    keep = one.thing.kind in _COLOURED_KINDS or one.thing.name in _COLOURED
    return one._replace(image=vary_cutout(rng, one.image, keep))


def _backdrop(rng: Generator, chosen: Sequence[Cutout], textures: float) -> Background:
    """One of eight backdrops from which the things stand out, or the best of them."""
    colours = [colour for one in chosen for colour in one.colours]
    best, most = Background.draw(rng, textures), -1.0
    for _ in range(8):
        background = Background.draw(rng, textures)
        share = sum(background.contrast(colour) >= _MIN_CONTRAST for colour in colours) / max(1, len(colours))
        if share > most:
            best, most = background, share
        if share >= _VISIBLE:
            break
    return best


def _room(one: Cutout, width: int, height: int, largest: float, share: float) -> tuple[float, float]:
    """Size and radius between the smallest and `largest`, as `place_in_cells` asks for them; the large more often."""
    smallest = max(_MIN_SIZE, _MIN_SHARE * max(width, height)) if largest > _MIN_SIZE else _MIN_SIZE
    size = smallest + max(0.0, largest - smallest) * share**0.5
    wide, high = one.image.size
    return size, 0.5 * size * float((wide * wide + high * high) ** 0.5) / max(wide, high) * 0.9 + 1


def _paint(rng: Generator, image: Image.Image, what: Cutout, disc: Disc) -> Shown:
    scale = disc.size / max(what.image.size)
    picture = what.image.resize(
        (max(1, round(what.image.width * scale)), max(1, round(what.image.height * scale))), Image.Resampling.BICUBIC
    )
    if rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
    if rng.random() < _TURNED:
        angle = float(rng.uniform(-_TURN, _TURN))
        picture = picture.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    left, top = round(disc.x - picture.width / 2), round(disc.y - picture.height / 2)
    image.paste(picture, (left, top), picture)
    x0, y0, x1, y1 = picture.getchannel("A").point(lambda v: 255 * (v > 64)).getbbox() or (0, 0, *picture.size)
    ink = (
        float(max(0, left + x0)),
        float(max(0, top + y0)),
        float(min(image.width, left + x1)),
        float(min(image.height, top + y1)),
    )
    return Shown(what.thing, what.source, disc.position(*image.size), ink)


@lru_cache(maxsize=1 << 16)  # of every two
def _is_also(thing: Thing, other: Thing) -> bool:
    """Whether who sees the first could say that the other is there."""
    one, asked = thing.name, other.name
    named = set(asked.split()) <= set(one.split()) or one in _INCLUDES.get(asked, ())
    return named or any({one, asked} <= group for group in _ALIKE)


class _ThingQuestions(Questions[ThingFacts]):
    kind = "things"

    def name(self) -> Asked:
        item = pick(self.rng, self.facts.items)
        topic = "name-alone" if len(self.facts.items) == 1 else "name"
        return self.say(topic, item.thing.name, place=item.position)

    def kind_named(self) -> Asked | None:
        """What animal, fruit and so on it is, where one is shown."""
        single = [item for item in self.facts.items if item.thing.kind in _KINDS and self._alone_of_kind(item)]
        if not single:
            return None
        item = pick(self.rng, single)
        return self.say("kind", item.thing.name, kind=item.thing.kind)

    def place(self) -> Asked | None:
        items = self.facts.items
        single = [item for item in items if not any(_is_also(o.thing, item.thing) for o in items if o is not item)]
        if len(items) == 1 or not single:
            return None
        item = pick(self.rng, single)
        return self.say("place", item.position, thing=item.thing.name)

    def presence(self) -> Asked:
        yes = self.chance(0.5)
        thing = pick(self.rng, self.facts.items).thing if yes else self._absent()
        return self.whether("presence", yes, thing=thing.phrase)

    def _alone_of_kind(self, item: Shown) -> bool:
        """Whether no other thing is of its kind, or of one that not all tell from it: a tomato is a fruit, too."""
        alike = next((group for group in _KINDS_ALIKE if item.thing.kind in group), (item.thing.kind,))
        return sum(other.thing.kind in alike for other in self.facts.items) == 1

    def _absent(self) -> Thing:
        """A thing that is not there; half of the time of the same kind as one that is."""
        there = [item.thing for item in self.facts.items]
        others = [thing for thing in thing_list() if not any(_is_also(one, thing) for one in there)]
        alike = [thing for thing in others if thing.kind == pick(self.rng, there).kind]
        return pick(self.rng, alike if alike and self.chance(0.5) else others)


THING_KINDS = tuple(sorts("things"))
"""The sorts of question: which thing, which animal or fruit, where, is there."""


def ask_things(rng: Generator, facts: ThingFacts, part: str = "all", *, kinds: Sequence[str] = THING_KINDS) -> Asked:
    """Asks a question of one of `kinds`, each as likely of those that the picture admits.

    Raises:
        ValueError: for a sort that does not exist, or when the picture admits none.
    """
    return _ThingQuestions(rng, facts, part).ask(kinds)
