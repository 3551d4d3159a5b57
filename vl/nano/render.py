"""The built-in data: every picture, its conversation and its ground truth as a function of (seed, index)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from preprocessing import Grid
from vl.model import DEFAULT_PROMPT
from vl.nano.kinds import KINDS, Facts, Kind
from vl.nano.mix import Mix
from vl.nano.patches import patch_labels
from vl.nano.pictures.canvas import Boxes, pick
from vl.nano.pictures.damage import damage
from vl.nano.pictures.questions import Asked


@dataclass(frozen=True)
class Sample:
    """A picture with what is asked about it and what a perfect model would answer.

    `facts` is what the answer follows from, `boxes` where each thing and character of the picture is, `metric` the name
    of the metric that judges answers. `thought` is what is looked at before the answer, if that is to be learnt.
    `later` are the questions after the first, with their answers.
    """

    image: Image.Image | None  # RGB; None where only the question is there
    kind: str
    prompt: str
    answer: str
    metric: str
    facts: Facts
    boxes: Boxes
    later: tuple[Asked, ...] = ()
    thought: str = ""

    @property
    def question(self) -> list[dict[str, Any]]:
        """The user's first turn, image first."""
        shown = [] if self.image is None else [{"type": "image", "image": self.image}]
        return [{"role": "user", "content": [*shown, {"type": "text", "text": self.prompt}]}]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The whole conversation: the user's turns and the answers to learn."""
        talk = [*self.question, _said("assistant", self.answer, self.thought)]
        for asked in self.later:
            talk += [_said("user", asked.prompt), _said("assistant", asked.answer, asked.thought)]
        return talk

    def label(self, grid: Grid) -> Tensor:
        """The class under each point of every patch, as `patch_labels` gives it."""
        return patch_labels(self.boxes, grid)


def render(seed: int, index: int, mix: Mix | None = None) -> Sample:
    """Renders sample `index` of the stream `seed`: the same arguments (and fonts) give the same sample anywhere."""
    mix = mix or Mix()
    rng = np.random.default_rng((seed, index))
    name = _draw_kind(rng, mix)
    kind = KINDS[name]
    image, facts = kind.draw(rng, mix)
    first = _first_turn(rng, mix, kind, facts)
    boxes = facts.boxes
    if image is not None and mix.damaged and rng.random() < mix.damaged:
        image, boxes = damage(rng, image, boxes)
    later = _later_turns(rng, mix, kind, facts, first) if mix.turns > 1 else ()
    return Sample(image, name, first.prompt, first.answer, first.metric, facts, boxes, later, first.thought)


def ask_again(sample: Sample, seed: tuple[int, ...], mix: Mix) -> Sample:
    """The same picture with another conversation, drawn from `seed` as the first was from the sample's own."""
    rng, kind, facts = np.random.default_rng(seed), KINDS[sample.kind], sample.facts
    first = _first_turn(rng, mix, kind, facts)
    later = _later_turns(rng, mix, kind, facts, first) if mix.turns > 1 else ()
    return replace(
        sample, prompt=first.prompt, answer=first.answer, metric=first.metric, thought=first.thought, later=later
    )


def _first_turn(rng: np.random.Generator, mix: Mix, kind: Kind, facts: Any) -> Asked:
    asked = kind.ask and mix.questions and rng.random() < mix.questions
    return _ask(rng, mix, kind, facts) if asked else _describe(rng, kind, facts)


def _ask(rng: np.random.Generator, mix: Mix, kind: Kind, facts: Any) -> Asked:
    assert kind.ask
    asked = kind.ask(rng, facts, mix.faces)
    if mix.scratch and asked.thought and rng.random() < mix.scratch:
        return asked
    return asked._replace(thought="")


def _describe(rng: np.random.Generator, kind: Kind, facts: Any) -> Asked:
    return Asked(_prompt(rng, kind), kind.caption(facts), kind.metric)


def _later_turns(rng: np.random.Generator, mix: Mix, kind: Kind, facts: Any, first: Asked) -> tuple[Asked, ...]:
    """More questions about a picture, like the first ones; none comes twice, nor does the whole description."""
    turns = {first.prompt: first}
    description = kind.caption(facts)
    for _ in range(int(rng.integers(mix.turns)) if kind.ask and mix.questions else 0):
        described = any(description == turn.answer for turn in turns.values())
        again = described or rng.random() < mix.questions
        asked = _ask(rng, mix, kind, facts) if again else _describe(rng, kind, facts)
        if not (described and asked.answer == description):
            turns.setdefault(asked.prompt, asked)
    return tuple(turns.values())[1:]


def _said(role: str, text: str, thought: str = "") -> dict[str, Any]:
    before = {"reasoning_content": thought} if thought else {}
    return {"role": role, "content": [{"type": "text", "text": text}], **before}


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
