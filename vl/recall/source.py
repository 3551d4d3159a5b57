"""Training data of the recall models: text with codes in it, and questions about some of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from tokenizers import Tokenizer

from vl.evaluation.niah.text import INTRODUCTION, Needle, draw_needles, draw_sentences
from vl.recall.tokenizer import train_tokenizer
from vl.training.checks import at_least, build_table
from vl.training.config import EVALUATION_SEED

KIND = "recall"


@dataclass(frozen=True)
class Mix:
    """What is drawn, the table `data.mix` of a recipe.

    Attributes:
        shortest, longest: sentences of a text, needles among them; their number is drawn evenly on a logarithmic scale.
        needles: codes in a text, at most; any number up to it is as likely.
        questions: about different codes of a text, one after the other, at most.
    """

    shortest: int = 8
    longest: int = 64
    needles: int = 8
    questions: int = 8

    def __post_init__(self) -> None:
        at_least("data.mix", self, shortest=1, longest=self.shortest, needles=1, questions=1)


@dataclass(frozen=True)
class Recall:
    """A text and the needles that are asked for, in order."""

    text: str
    asked: tuple[Needle, ...]
    kind: str = KIND

    @property
    def messages(self) -> list[dict[str, Any]]:
        first, *others = self.asked
        turns = [(f"{INTRODUCTION} {self.text}\n\n{first.question}", first.value)]
        turns += [(needle.question, needle.value) for needle in others]
        return [
            {"role": role, "content": content}
            for turn in turns
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]


class RecallSource:
    """Texts of a mix, as a `vl.training.source.DataSource` that shows no pictures.

    The stages are lengths: in the first, texts are a quarter as long at most, in the second half as long.
    """

    kinds = (KIND,)
    classes = 0

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.mix = build_table(Mix, table, "data.mix")

    def draw(self, seed: int, index: int, stage: int) -> Recall:
        mix, rng = self.mix, Random(f"{seed} {index}")
        longest = max(mix.shortest, mix.longest >> (2 - stage))
        count = round(mix.shortest * (longest / mix.shortest) ** rng.random())
        needles = draw_needles(rng, rng.randint(1, min(mix.needles, count)))
        hay = draw_sentences(rng)
        sentences = [needle.sentence for needle in needles] + [next(hay) for _ in range(count - len(needles))]
        rng.shuffle(sentences)
        asked = rng.sample(needles, rng.randint(1, min(mix.questions, len(needles))))
        return Recall(" ".join(sentences), tuple(asked))

    def draw_held_out(self, kind: str, index: int) -> Recall:
        return self.draw(EVALUATION_SEED, index, stage=2)

    def train_tokenizer(self, vocab_size: int) -> Tokenizer:
        return train_tokenizer(vocab_size)
