"""The built-in data: every picture, its conversation and its ground truth as a function of (seed, index)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from vl.errors import ConfigError
from vl.model import DEFAULT_PROMPT
from vl.training.kinds import KINDS, Facts, Kind
from vl.training.pictures.asked import Asked
from vl.training.pictures.canvas import COLOURS, SizeRange, pick
from vl.training.pictures.damage import Boxes, damage
from vl.training.pictures.fonts import FACES, Fonts
from vl.training.pictures.scenes import MAX_OBJECTS, SHAPES
from vl.training.pictures.words import MAX_WORDS

# Seeds from here on are for evaluation; training refuses them, so that no held-out picture is ever trained on.
EVALUATION_SEED = 1 << 31

SMALL = (SizeRange(64, 336, 1.0),)
MIXED = (SizeRange(64, 336, 0.8), SizeRange(337, 1008, 0.16), SizeRange(1009, 2016, 0.04))


@dataclass(frozen=True)
class Mix:
    """What to draw: how often each kind of picture relative to the others, on which canvas sizes, and how.

    Attributes:
        scenes, words, counts, emoji, pages, charts, tables: relative frequencies of the kinds in `KINDS`.
        sizes: canvases.
        page_sizes: those of pages, if they have others.
        questions: the share of pictures that are asked about instead of described, where their kind has questions.
        turns: questions and answers about a picture, at most; any number up to it is as likely. All but the first are
            questions, or descriptions of what was not described yet.
        damaged: the share of pictures that are turned, blurred, noisy or compressed.
        textures: the share of backdrops behind shapes, words and emoji that are striped, checked or dotted.
        faces: "all", "learnt" or "held-out": the faces to print in. The embedded model learns from the second and is
            tested on the third.
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
    sizes: tuple[SizeRange, ...] = MIXED
    page_sizes: tuple[SizeRange, ...] | None = None
    questions: float = 0.0
    turns: int = 1
    damaged: float = 0.0
    textures: float = 0.0
    faces: str = "all"
    max_objects: int = MAX_OBJECTS
    max_words: int = MAX_WORDS
    shapes: tuple[str, ...] = tuple(SHAPES)
    colours: tuple[str, ...] = tuple(COLOURS)
    fonts: str | None = None

    def __post_init__(self) -> None:
        weights = self.weights.values()
        if min(weights) < 0 or not sum(weights):
            raise ConfigError(f"data.mix needs a positive frequency for at least one of {', '.join(KINDS)}")
        if not all(0 <= share <= 1 for share in (self.questions, self.damaged, self.textures)):
            raise ConfigError("data.mix.questions, damaged and textures are shares, from 0 to 1")
        if self.turns < 1:
            raise ConfigError(f"data.mix.turns {self.turns} must be at least 1")
        if self.faces not in FACES:
            raise ConfigError(f"data.mix.faces {self.faces!r} must be one of {', '.join(FACES)}")

    @property
    def weights(self) -> dict[str, float]:
        """Relative frequencies by kind."""
        return {kind: getattr(self, kind) for kind in KINDS}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of picture that it draws."""
        return tuple(kind for kind, weight in self.weights.items() if weight)

    @property
    def typeface(self) -> Fonts:
        """The fonts that renderers print with."""
        return Fonts(self.fonts, self.faces)

    def only(self, kind: str) -> Mix:
        """The same mix with pictures of one kind alone."""
        return self._weighing({kind: 1.0})

    def easy(self) -> Mix:
        """The same mix with at most two objects or one word to a picture, nothing harder, and no questions."""
        known = {kind: weight for kind, weight in self.weights.items() if KINDS[kind].easy}
        mix = self._weighing(known) if any(known.values()) else self
        return replace(mix, max_objects=min(2, self.max_objects), max_words=1, questions=0.0)

    def within(self, sizes: tuple[SizeRange, ...]) -> Mix:
        """The same mix on other canvas sizes."""
        return replace(self, sizes=sizes, page_sizes=None)

    def _weighing(self, weights: dict[str, float]) -> Mix:
        shares: dict[str, Any] = {kind: weights.get(kind, 0.0) for kind in KINDS}
        return replace(self, **shares)


@dataclass(frozen=True)
class Sample:
    """A picture with what is asked about it and what a perfect model would answer.

    `facts` is what the answer follows from, `boxes` where each thing and character of the picture is, `metric` the name
    of the metric that judges answers. `later` are the questions and answers after the first.
    """

    image: Image.Image  # RGB
    kind: str
    prompt: str
    answer: str
    metric: str
    facts: Facts
    boxes: Boxes
    later: tuple[tuple[str, str], ...] = ()

    @property
    def question(self) -> list[dict[str, Any]]:
        """The user's first turn, image first."""
        return [
            {
                "role": "user",
                "content": [{"type": "image", "image": self.image}, {"type": "text", "text": self.prompt}],
            }
        ]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The whole conversation: the user's turns and the answers to learn."""
        talk = self.question
        for role, text in (("assistant", self.answer), *(turn for pair in self.later for turn in _turns(*pair))):
            talk.append({"role": role, "content": [{"type": "text", "text": text}]})
        return talk


def render(seed: int, index: int, mix: Mix | None = None) -> Sample:
    """Renders sample `index` of the stream `seed`: the same arguments (and fonts) give the same sample anywhere."""
    mix = mix or Mix()
    rng = np.random.default_rng((seed, index))
    name = _draw_kind(rng, mix)
    kind = KINDS[name]
    image, facts = kind.draw(rng, mix)
    asked = kind.ask and mix.questions and rng.random() < mix.questions
    prompt, answer, metric = _ask(rng, kind, facts) if asked else _describe(rng, kind, facts)
    boxes = facts.boxes
    if mix.damaged and rng.random() < mix.damaged:
        image, boxes = damage(rng, image, boxes)
    later = _later_turns(rng, mix, kind, facts, prompt, answer) if mix.turns > 1 else ()
    return Sample(image, name, prompt, answer, metric, facts, boxes, later)


def _ask(rng: np.random.Generator, kind: Kind, facts: Any) -> Asked:
    assert kind.ask
    return kind.ask(rng, facts)


def _describe(rng: np.random.Generator, kind: Kind, facts: Any) -> Asked:
    return Asked(_prompt(rng, kind), kind.caption(facts), kind.metric)


def _later_turns(
    rng: np.random.Generator, mix: Mix, kind: Kind, facts: Any, prompt: str, answer: str
) -> tuple[tuple[str, str], ...]:
    """More questions about a picture, like the first ones; none comes twice, nor does the whole description."""
    turns: dict[str, str] = {}
    description = kind.caption(facts)
    for _ in range(int(rng.integers(mix.turns)) if kind.ask and mix.questions else 0):
        described = description in (answer, *turns.values())
        again = described or rng.random() < mix.questions
        asked = _ask(rng, kind, facts) if again else _describe(rng, kind, facts)
        if asked.prompt != prompt and not (described and asked.answer == description):
            turns.setdefault(asked.prompt, asked.answer)
    return tuple(turns.items())


def _turns(question: str, answer: str) -> tuple[tuple[str, str], ...]:
    return ("user", question), ("assistant", answer)


def _draw_kind(rng: np.random.Generator, mix: Mix) -> str:
    weights = mix.weights
    point = rng.random() * sum(weights.values())
    for name, weight in weights.items():
        point -= weight
        if point < 0:
            return name
    return mix.kinds[-1]


def _prompt(rng: np.random.Generator, kind: Kind) -> str:
    """The default prompt half of the time, where it is one of the kind's, else another of its phrasings."""
    if kind.default and rng.random() < 0.5:
        return DEFAULT_PROMPT
    return pick(rng, kind.prompts)
