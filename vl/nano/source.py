"""The embedded model's data source: pictures that are drawn on the way, without end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from vl.nano.mix import SMALL, Mix
from vl.nano.patches import CLASSES
from vl.nano.render import Sample, ask_again, render
from vl.nano.tokenizer import train_tokenizer
from vl.training.config import EVALUATION_SEED


class NanoSource:
    """Pictures of a mix, as a `vl.training.source.DataSource`.

    Args:
        table: `data.mix` of the recipe, see `Mix`.
    """

    classes = 1 + len(CLASSES)

    def __init__(self, table: Mapping[str, Any]) -> None:
        mix = Mix.of(table)
        self.mixes = (mix.within(SMALL).easy(), mix.within(SMALL), mix)  # by stage
        self.kinds = mix.kinds
        self.reasons = mix.scratch > 0

    def draw(self, seed: int, index: int, stage: int) -> Sample:
        return render(seed, index, self.mixes[stage])

    def ask_again(self, sample: Sample, seed: int, index: int, time: int, stage: int) -> Sample:
        return ask_again(sample, (seed, index, time), self.mixes[stage])

    def draw_held_out(self, kind: str, index: int) -> Sample:
        return render(EVALUATION_SEED, index, self.mixes[-1].only(kind))

    def train_tokenizer(self, vocab_size: int) -> Tokenizer:
        return train_tokenizer(vocab_size)
