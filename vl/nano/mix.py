"""What is drawn: how often each kind of picture, on which canvases, and how hard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vl.errors import ConfigError
from vl.nano.pictures.canvas import COLOURS, SizeRange
from vl.nano.pictures.fonts import FACES, Fonts
from vl.nano.pictures.photographs import SHARE, Photographs
from vl.nano.pictures.scenes import MAX_OBJECTS, SHAPES
from vl.nano.pictures.words import MAX_WORDS
from vl.training.checks import at_least, build_table, share

# In the order in which the renderer's stream tells them apart: a new kind comes last.
KIND_NAMES = ("words", "scenes", "counts", "emoji", "pages", "charts", "tables", "nothing", "things")
EASY_KINDS = ("words", "scenes")
"""Those that a model that knows nothing yet can begin with."""

_TABLE = "data.mix"
_SHARES = ("questions", "scratch", "damaged", "textures", "odd", "grounds", "absent", "photo_share", "varied")
_CANVAS = ("low", "high", "share")
_SIDES = 32, 8192  # px: no drawing fits less, and what is larger is a slip

SMALL = (SizeRange(64, 336, 1.0),)
MIXED = (SizeRange(64, 336, 0.8), SizeRange(337, 1008, 0.16), SizeRange(1009, 2016, 0.04))


@dataclass(frozen=True)
class Mix:
    """What to draw: how often each kind of picture relative to the others, on which canvas sizes, and how.

    Attributes:
        scenes, words, counts, emoji, pages, charts, tables, nothing, things: relative frequencies of the kinds.
        sizes: canvases.
        page_sizes: those of pages of running text and of screens, if they have others.
        questions: the share of pictures that are asked about instead of described, where their kind has questions.
        scratch: the share of questions whose answer comes after what was looked at for it, where there is something.
        turns: questions and answers about a picture, at most; any number up to it is as likely. All but the first are
            questions, or descriptions of what was not described yet.
        damaged: the share of pictures that are turned, blurred, noisy or compressed.
        textures: the share of backdrops behind shapes, words and emoji that are striped, checked or dotted.
        odd: the share of shapes that are outlines, mirrored, upside down or of a colour of CSS; and of scenes that have
            up to nine shapes anywhere, some of which touch or overlap.
        grounds: the share of pictures of emoji whose ground is a picture of nothing: clouds, hills, a photograph.
        absent: of the pictures of nothing, the share that are not there, so that the model says it sees none.
        photos: a folder with photographs, parts of which are pictures of nothing that the model knows.
        photo_share: the share of pictures of nothing, and of such grounds, that are photographs, where there are any.
        varied: the share of things, and of parts of photographs, that are made others: in other colours, bent,
            outlined, partly hidden, close up. Tasks of evaluation draw none of them.
        cutouts: a folder with the pictures of things, which `vl.nano.prepare_things` makes.
        faces: "all", "learnt" or "held-out": the faces to print in, the texts and the phrasings of questions. The
            embedded model learns from the second and is tested on the third.
        max_objects, max_words, shapes, colours: fewer make an easier task.
        fonts: a folder with more faces.

    Raises:
        ConfigError: if nothing is to be drawn, or a share is not one.
    """

    scenes: float = 0.5
    words: float = 0.5
    counts: float = 0.0
    emoji: float = 0.0
    pages: float = 0.0
    charts: float = 0.0
    tables: float = 0.0
    nothing: float = 0.0
    things: float = 0.0
    sizes: tuple[SizeRange, ...] = MIXED
    page_sizes: tuple[SizeRange, ...] | None = None
    questions: float = 0.0
    scratch: float = 0.0
    turns: int = 1
    damaged: float = 0.0
    textures: float = 0.0
    odd: float = 0.0
    grounds: float = 0.0
    absent: float = 0.0
    photos: str | None = None
    photo_share: float = SHARE
    varied: float = 0.0
    cutouts: str | None = None
    faces: str = "all"
    max_objects: int = MAX_OBJECTS
    max_words: int = MAX_WORDS
    shapes: tuple[str, ...] = tuple(SHAPES)
    colours: tuple[str, ...] = tuple(COLOURS)
    fonts: str | None = None

    def __post_init__(self) -> None:
        weights = self.weights.values()
        if min(weights) < 0 or not sum(weights):
            raise ConfigError(f"{_TABLE} needs a positive frequency for at least one of {', '.join(KIND_NAMES)}")
        share(_TABLE, self, *_SHARES)
        at_least(_TABLE, self, turns=1, max_objects=1, max_words=1)
        for key, most in (("max_objects", MAX_OBJECTS), ("max_words", MAX_WORDS)):
            if getattr(self, key) > most:
                raise ConfigError(f"{_TABLE}.{key} = {getattr(self, key)} must be at most {most}")
        for key, known in (("shapes", SHAPES), ("colours", COLOURS)):
            if not getattr(self, key) or set(getattr(self, key)) - set(known):
                raise ConfigError(f"{_TABLE}.{key} must be a list of some of {', '.join(known)}")
        _check_canvases("sizes", self.sizes)
        if self.page_sizes is not None:
            _check_canvases("page_sizes", self.page_sizes)
        if self.faces not in FACES:
            raise ConfigError(f"{_TABLE}.faces {self.faces!r} must be one of {', '.join(FACES)}")

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Mix:
        """The table `data.mix` of a recipe, in which `sizes` and `page_sizes` are lists of [shortest, longest, share].

        Raises:
            ConfigError: naming the key that is unknown or wrong.
        """
        sizes = {key: _canvases(key, table[key]) for key in ("sizes", "page_sizes") if key in table}
        return build_table(cls, {**table, **sizes}, _TABLE)

    @property
    def weights(self) -> dict[str, float]:
        """Relative frequencies by kind."""
        return {kind: getattr(self, kind) for kind in KIND_NAMES}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of picture that it draws."""
        return tuple(kind for kind, weight in self.weights.items() if weight)

    @property
    def typeface(self) -> Fonts:
        """The fonts that renderers print with."""
        return Fonts(self.fonts, self.faces)

    @property
    def photographs(self) -> Photographs:
        """Those that pictures of nothing and grounds are of."""
        return Photographs(self.photos, self.faces, self.photo_share, self.varied)

    def only(self, kind: str) -> Mix:
        """The same mix with pictures of one kind alone."""
        return self._weighing({kind: 1.0})

    def easy(self) -> Mix:
        """The same mix with at most two objects or one word to a picture, nothing harder, and no questions."""
        known = {kind: weight for kind, weight in self.weights.items() if kind in EASY_KINDS}
        mix = self._weighing(known) if any(known.values()) else self
        return replace(mix, max_objects=min(2, self.max_objects), max_words=1, questions=0.0)

    def within(self, sizes: tuple[SizeRange, ...]) -> Mix:
        """The same mix on other canvas sizes."""
        return replace(self, sizes=sizes, page_sizes=None)

    def _weighing(self, weights: dict[str, float]) -> Mix:
        shares: dict[str, Any] = {kind: weights.get(kind, 0.0) for kind in KIND_NAMES}
        return replace(self, **shares)


def _canvases(key: str, value: object) -> tuple[SizeRange, ...]:
    """`value` as parsed from TOML. Raises ConfigError naming the key if it is no list of canvases."""
    if isinstance(value, list) and all(isinstance(each, list) and len(each) == 3 for each in value):
        return tuple(build_table(SizeRange, dict(zip(_CANVAS, each, strict=True)), f"{_TABLE}.{key}") for each in value)
    raise ConfigError(f"{_TABLE}.{key} = {value!r:.80} must be a list of [shortest, longest, share]: [[64, 336, 1.0]]")


def _check_canvases(key: str, canvases: tuple[SizeRange, ...]) -> None:
    """Raises ConfigError if nothing can be drawn on them."""
    least, most = _SIDES
    for one in canvases:
        if not least <= one.low <= one.high <= most or one.share < 0:
            raise ConfigError(
                f"{_TABLE}.{key} has [{one.low}, {one.high}, {one.share:g}], and a canvas has a shortest and a longest "
                f"side of {least} to {most} px, and a share that is not negative"
            )
    if not sum(one.share for one in canvases):
        raise ConfigError(f"{_TABLE}.{key} needs at least one canvas whose share is above 0")
