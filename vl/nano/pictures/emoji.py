"""Pictures of emoji: one to five glyphs on a backdrop, what they are called, and questions about them.

The colours come from Noto Color Emoji, whose bitmaps are scaled, and from Twemoji where it is there; Symbola and DejaVu
Sans have outlines, drawn in one ink. A colour glyph is at least 24 px long, an outlined one 48 px, and either at least
3% of the canvas's longer side; the canvas grows where not one would fit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from numpy.random import Generator
from PIL import Image, ImageOps

from vl.nano.pictures.canvas import RGB, Background, Box, Boxes, SizeRange, draw_size, inner, pick
from vl.nano.pictures.emoji_faces import Emoji, EmojiFace, Glyph, draw_glyph, emoji_list, find_emoji_faces
from vl.nano.pictures.nothing import draw_ground
from vl.nano.pictures.photographs import NONE, Photographs
from vl.nano.pictures.placing import Disc, place_in_cells
from vl.nano.pictures.questions import Asked, Questions, listed, looked, numbered, sorts
from vl.nano.pictures.scenes import COUNTS

MAX_EMOJI = 5

_MIN_COLOUR, _MIN_OUTLINE, _MIN_SHARE = 24, 48, 0.03  # px, px, of the longer side
_LARGEST = (0.97, 0.6, 0.46, 0.4, 0.36)  # of the shorter side, by how many there are
_TURN = 15.0  # degrees
_MIRRORED = 0.15  # of the glyphs that do not say which way they point
_SIDED = re.compile("left|right|mark|sign|symbol|calendar|trend|squared")
_ASPECT = 2.2
_COLOUR_SHARE = 0.7  # of the glyphs that a colour face has
_VISIBLE, _MIN_CONTRAST = 0.6, 90.0  # this share of a colour glyph stands out from the backdrop by so much


@dataclass(frozen=True)
class Item:
    """One emoji of a picture: `x`, `y` its middle, `size` the longer side of its ink before it was turned, in pixels,
    `angle` in degrees, clockwise, `face` the name of its font and `ink` the box around its ink."""

    name: str
    position: str
    x: float
    y: float
    size: int
    angle: float
    face: str
    ink: Box


@dataclass(frozen=True)
class EmojiFacts:
    """Ground truth of a picture of emoji: they are in reading order, row of the 3 x 3 grid by row."""

    width: int
    height: int
    items: tuple[Item, ...]

    @property
    def boxes(self) -> Boxes:
        """(name, the middle of where it is) of each emoji."""
        return tuple((item.name, inner(item.ink)) for item in self.items)


def draw_emoji(
    rng: Generator,
    sizes: Sequence[SizeRange],
    *,
    max_emoji: int = MAX_EMOJI,
    fonts: str | Path | None = None,
    require_colour: bool = False,
    textures: float = 0.0,
    grounds: float = 0.0,
    photographs: Photographs = NONE,
) -> tuple[Image.Image, EmojiFacts]:
    """Draws 1 to `max_emoji` emoji that do not overlap, each in its own cell of the 3 x 3 grid.

    The share `grounds` of them lie on a picture of nothing, in their own colours; see `draw_nothing`, also for
    `photographs`.

    Raises:
        ConfigError: as `find_emoji_faces`, of which `fonts` is the folder.
    """
    faces = find_emoji_faces(fonts, require_colour=require_colour)
    width, height = draw_size(sizes, _ASPECT, rng)
    background = Background.draw(rng, textures)
    busy = bool(grounds) and bool(rng.random() < grounds)
    if busy:
        faces = tuple(face for face in faces if face.colour) or faces
    chosen = [_choose(rng, faces, background)]
    for _ in range(int(rng.integers(max_emoji))):
        again = pick(rng, chosen).emoji if rng.random() < 0.2 else None
        chosen.append(_choose(rng, faces, background, again))
    room = 2 * round(chosen[0].reach * chosen[0].smallest(width, height)) + 6
    width, height = max(width, room), max(height, room)
    image = background.paint(width, height, rng)
    if busy:
        image = draw_ground(rng, width, height, photographs)
    largest = _LARGEST[min(len(chosen), len(_LARGEST)) - 1] * min(width, height)
    placed = place_in_cells(rng, width, height, [partial(one.room, width, height, largest) for one in chosen])
    items = [_paint(rng, image, chosen[which], disc) for which, disc in placed]
    return image, EmojiFacts(width, height, tuple(items))


def caption_emoji(facts: EmojiFacts) -> str:
    """The canonical caption, such as "Two emoji: grinning face on the left and red heart at the bottom right."."""
    phrases = [f"{item.name} {item.position}" for item in facts.items]
    return f"{COUNTS[len(phrases)]} emoji: {listed(phrases)}."


class _Chosen(NamedTuple):
    """An emoji to draw; `ink` where it is drawn as outlines."""

    emoji: Emoji
    face: EmojiFace
    ink: RGB | None

    @property
    def reach(self) -> float:
        return self.glyph(0).reach

    def glyph(self, size: float) -> Glyph:
        """The glyph at an em that suits a drawing of `size` pixels."""
        return draw_glyph(self.face, self.emoji.code, self.face.em(size))

    def smallest(self, width: int, height: int) -> float:
        return max(_MIN_COLOUR if self.face.colour else _MIN_OUTLINE, _MIN_SHARE * max(width, height))

    def room(self, width: int, height: int, largest: float, share: float) -> tuple[float, float]:
        """Size and radius between those of the smallest and `largest`, as `place_in_cells` asks for them."""
        smallest = self.smallest(width, height)
        size = round(smallest + max(0.0, largest - smallest) * share)
        return size, self.reach * size + 1


def _choose(rng: Generator, faces: Sequence[EmojiFace], background: Background, emoji: Emoji | None = None) -> _Chosen:
    """Any emoji, or the given one, in a face that has it and in colours that stand out, if any do."""
    drawable = _drawable(tuple(faces))
    best, most = None, -1.0
    for _ in range(8):
        drawn = emoji or pick(rng, drawable)
        having = [face for face in faces if drawn.code in face.codes]
        colour, plain = [face for face in having if face.colour], [face for face in having if not face.colour]
        if plain and not (colour and rng.random() < _COLOUR_SHARE):
            return _Chosen(drawn, pick(rng, plain), background.draw_ink(rng))
        chosen = _Chosen(drawn, pick(rng, colour), None)
        samples = chosen.glyph(0).colours
        share = sum(background.contrast(sample) >= _MIN_CONTRAST for sample in samples) / max(1, len(samples))
        if share > most:
            best, most = chosen, share
        if share >= _VISIBLE:
            break
    assert best is not None
    return best


@lru_cache(maxsize=4)
def _drawable(faces: tuple[EmojiFace, ...]) -> tuple[Emoji, ...]:
    codes = {code for face in faces for code in face.codes}
    return tuple(emoji for emoji in emoji_list() if emoji.code in codes)


def _paint(rng: Generator, image: Image.Image, what: _Chosen, disc: Disc) -> Item:
    size = int(disc.size)
    picture = what.glyph(size).picture
    scale = size / max(picture.size)
    wide, high = (max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
    if rng.random() < _MIRRORED and not _SIDED.search(what.emoji.name):
        picture = ImageOps.mirror(picture)
    angle = float(rng.uniform(-_TURN, _TURN)) if rng.random() < 0.7 else 0.0
    if angle:
        picture = picture.rotate(-angle, Image.Resampling.BILINEAR, expand=True)
    left, top = round(disc.x - picture.width / 2), round(disc.y - picture.height / 2)
    mask = picture.getchannel("A") if what.ink is None else picture
    image.paste(picture if what.ink is None else what.ink, (left, top), mask)
    x0, y0, x1, y1 = mask.point(lambda value: 255 * (value > 64)).getbbox() or (0, 0, *mask.size)
    ink = (float(left + x0), float(top + y0), float(left + x1), float(top + y1))
    middle = left + picture.width / 2, top + picture.height / 2
    return Item(what.emoji.name, disc.position(*image.size), *middle, size, angle, what.face.name, ink)


class _EmojiQuestions(Questions[EmojiFacts]):
    kind = "emoji"

    def name(self) -> Asked:
        item = pick(self.rng, self.facts.items)
        alone = len(self.facts.items) == 1 and self.chance(0.7)
        return self.say("name-alone" if alone else "name", item.name, place=item.position)

    def place(self) -> Asked | None:
        names = self._names
        single = [one for one in self.facts.items if names.count(one.name) == 1 and not self._disputed(one.name)]
        if not single:
            return None
        item = pick(self.rng, single)
        return self.say("place", item.position, name=item.name, thought=looked(names, [names.index(item.name)]))

    def counting(self) -> Asked:
        """All of them, or one kind: an absent one at times, and any number of the others as likely."""
        counts: dict[int, list[str]] = {}
        names = self._names
        for name in dict.fromkeys(names):
            if not self._disputed(name):
                counts.setdefault(names.count(name), []).append(name)
        if self.chance(0.5) or not counts:
            return self.say("all", str(len(names)), thought=numbered(names))
        name = self._absent() if self.chance(0.2) else pick(self.rng, counts[pick(self.rng, sorted(counts))])
        thought = numbered(names, [one == name for one in names])
        return self.say("counting", str(names.count(name)), name=name, thought=thought)

    def presence(self) -> Asked:
        yes, names = self.chance(0.5), self._names
        name = pick(self.rng, names) if yes else self._absent()
        return self.whether("presence", yes, name=name, thought=looked(names, [names.index(name)] if yes else None))

    @property
    def _names(self) -> list[str]:
        return [item.name for item in self.facts.items]

    def _absent(self) -> str:
        """An emoji that is not there; half of the time a neighbour in Unicode of one that is, and so of its sort."""
        names = [emoji.name for emoji in emoji_list()]
        while True:
            near = names.index(pick(self.rng, self._names)) + int(self.rng.integers(-8, 9))
            name = names[near % len(names)] if self.chance(0.5) else pick(self.rng, names)
            if name not in self._names and not self._disputed(name):
                return name

    def _disputed(self, name: str) -> bool:
        """Whether another emoji of the picture could be meant: a "dog face" is a dog, too."""
        words = set(name.split())
        others = (set(other.split()) for other in self._names if other != name)
        return any(words <= other or other <= words for other in others)


EMOJI_KINDS = tuple(sorts("emoji"))
"""The kinds of question: which emoji, where, how many, is there."""


def ask_emoji(rng: Generator, facts: EmojiFacts, part: str = "all", *, kinds: Sequence[str] = EMOJI_KINDS) -> Asked:
    """Asks a question of one of `kinds` (some of `EMOJI_KINDS`), each as likely of those that the picture admits.

    Raises:
        ValueError: for a kind that does not exist, or when the picture admits none: "place" wants an emoji that is
            there once.
    """
    return _EmojiQuestions(rng, facts, part).ask(kinds)
