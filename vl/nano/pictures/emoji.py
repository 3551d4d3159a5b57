"""Pictures of emoji: one to five glyphs on a backdrop, what they are called, and questions about them.

The colours come from Noto Color Emoji, whose bitmaps are scaled; Symbola and DejaVu Sans have outlines, drawn in one
ink. A colour glyph is at least 24 px long, an outlined one 48 px, and either at least 3% of the canvas's longer side;
the canvas grows where not one would fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vl.nano.pictures.canvas import RGB, Background, Box, Boxes, SizeRange, draw_size, pick
from vl.nano.pictures.emoji_faces import (
    BITMAP_EM,
    Emoji,
    EmojiFace,
    Glyph,
    draw_glyph,
    emoji_list,
    find_emoji_faces,
)
from vl.nano.pictures.placing import Disc, place_in_cells
from vl.nano.pictures.questions import Asked, Question, ask_one_of, listed, say
from vl.nano.pictures.scenes import COUNTS

MAX_EMOJI = 5
EMOJI_KINDS = ("name", "place", "counting", "presence")
"""The kinds of question: which emoji, where, how many, is there."""

_OUTLINE_EMS = (128, 384)  # px; outlines are scaled from these, as every size of a font that is open takes memory
_MIN_COLOUR, _MIN_OUTLINE, _MIN_SHARE = 24, 48, 0.03  # px, px, of the longer side
_LARGEST = (0.97, 0.6, 0.46, 0.4, 0.36)  # of the shorter side, by how many there are
_TURN = 15.0  # degrees
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

    @property
    def middle(self) -> Box:
        """The box around the ink, four fifths as wide and as high."""
        left, top, right, bottom = self.ink
        dx, dy = 0.1 * (right - left), 0.1 * (bottom - top)
        return left + dx, top + dy, right - dx, bottom - dy


@dataclass(frozen=True)
class EmojiFacts:
    """Ground truth of a picture of emoji: they are in reading order, row of the 3 x 3 grid by row."""

    width: int
    height: int
    items: tuple[Item, ...]

    @property
    def boxes(self) -> Boxes:
        """(name, the middle of where it is) of each emoji."""
        return tuple((item.name, item.middle) for item in self.items)


def draw_emoji(
    rng: np.random.Generator,
    sizes: Sequence[SizeRange],
    *,
    max_emoji: int = MAX_EMOJI,
    fonts: str | Path | None = None,
    require_colour: bool = False,
    textures: float = 0.0,
) -> tuple[Image.Image, EmojiFacts]:
    """Draws 1 to `max_emoji` emoji that do not overlap, each in its own cell of the 3 x 3 grid.

    Raises:
        ConfigError: as `find_emoji_faces`, of which `fonts` is the folder.
    """
    faces = find_emoji_faces(fonts, require_colour=require_colour)
    width, height = draw_size(sizes, _ASPECT, rng)
    background = Background.draw(rng, textures)
    chosen = [_choose(rng, faces, background)]
    for _ in range(int(rng.integers(max_emoji))):
        again = chosen[int(rng.integers(len(chosen)))].emoji if rng.random() < 0.2 else None
        chosen.append(_choose(rng, faces, background, again))
    room = 2 * round(chosen[0].reach * chosen[0].smallest(width, height)) + 6
    width, height = max(width, room), max(height, room)
    image = background.paint(width, height, rng)
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
        em = BITMAP_EM if self.face.colour else next((e for e in _OUTLINE_EMS if e >= size), _OUTLINE_EMS[-1])
        return draw_glyph(self.face, self.emoji.code, em)

    def smallest(self, width: int, height: int) -> float:
        return max(_MIN_COLOUR if self.face.colour else _MIN_OUTLINE, _MIN_SHARE * max(width, height))

    def room(self, width: int, height: int, largest: float, share: float) -> tuple[float, float]:
        """Size and radius between those of the smallest and `largest`, as `place_in_cells` asks for them."""
        smallest = self.smallest(width, height)
        size = round(smallest + max(0.0, largest - smallest) * share)
        return size, self.reach * size + 1


def _choose(
    rng: np.random.Generator, faces: Sequence[EmojiFace], background: Background, emoji: Emoji | None = None
) -> _Chosen:
    """Any emoji, or the given one, in a face that has it and in colours that stand out, if any do."""
    drawable = _drawable(tuple(faces))
    best, most = None, -1.0
    for _ in range(8):
        drawn = emoji or pick(rng, drawable)
        having = [face for face in faces if drawn.code in face.codes]
        colour, plain = [face for face in having if face.colour], [face for face in having if not face.colour]
        if plain and not (colour and rng.random() < _COLOUR_SHARE):
            return _Chosen(drawn, pick(rng, plain), background.draw_ink(rng))
        chosen = _Chosen(drawn, colour[0], None)
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


def _paint(rng: np.random.Generator, image: Image.Image, what: _Chosen, disc: Disc) -> Item:
    size = int(disc.size)
    picture = what.glyph(size).picture
    scale = size / max(picture.size)
    wide, high = (max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
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


def ask_emoji(rng: np.random.Generator, facts: EmojiFacts, *, kinds: Sequence[str] = EMOJI_KINDS) -> Asked:
    """Asks a question of one of `kinds` (some of `EMOJI_KINDS`), each as likely of those that the picture admits.

    Raises:
        ValueError: for a kind that does not exist, or when the picture admits none: "place" wants an emoji that is
            there once.
    """
    return ask_one_of(rng, facts, _ASK, kinds)


def _ask_name(rng: np.random.Generator, facts: EmojiFacts) -> Asked:
    item = pick(rng, facts.items)
    alone = len(facts.items) == 1 and rng.random() < 0.7
    return say(rng, "emoji.name-alone" if alone else "emoji.name", item.name, place=item.position)


def _ask_place(rng: np.random.Generator, facts: EmojiFacts) -> Asked | None:
    names = [item.name for item in facts.items]
    single = [item for item in facts.items if names.count(item.name) == 1 and not _disputed(item.name, facts)]
    if not single:
        return None
    item = pick(rng, single)
    return say(rng, "emoji.place", item.position, name=item.name)


def _ask_count(rng: np.random.Generator, facts: EmojiFacts) -> Asked:
    """All of them, or one kind: an absent one at times, and any number of the others as likely."""
    counts: dict[int, list[str]] = {}
    names = [item.name for item in facts.items]
    for name in dict.fromkeys(names):
        if not _disputed(name, facts):
            counts.setdefault(names.count(name), []).append(name)
    if rng.random() < 0.5 or not counts:
        return say(rng, "emoji.all", str(len(names)))
    name = _absent(rng, facts) if rng.random() < 0.2 else pick(rng, counts[pick(rng, sorted(counts))])
    return say(rng, "emoji.counting", str(names.count(name)), name=name)


def _ask_presence(rng: np.random.Generator, facts: EmojiFacts) -> Asked:
    yes = rng.random() < 0.5
    name = pick(rng, facts.items).name if yes else _absent(rng, facts)
    return say(rng, "emoji.presence", "yes" if yes else "no", name=name)


_ASK: dict[str, Question[EmojiFacts]] = {
    "name": _ask_name,
    "place": _ask_place,
    "counting": _ask_count,
    "presence": _ask_presence,
}


def _absent(rng: np.random.Generator, facts: EmojiFacts) -> str:
    """An emoji that is not in the picture; half of the time a neighbour in Unicode of one that is, so of its sort."""
    names = [emoji.name for emoji in emoji_list()]
    present = {item.name for item in facts.items}
    while True:
        near = names.index(pick(rng, facts.items).name) + int(rng.integers(-8, 9))
        name = names[near % len(names)] if rng.random() < 0.5 else pick(rng, names)
        if name not in present and not _disputed(name, facts):
            return name


def _disputed(name: str, facts: EmojiFacts) -> bool:
    """Whether another emoji of the picture could be meant: a "dog face" is a dog, too."""
    words = set(name.split())
    others = (set(item.name.split()) for item in facts.items if item.name != name)
    return any(words <= other or other <= words for other in others)
