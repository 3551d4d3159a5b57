"""What a source of training data is that makes its data on the way; `vl.nano.source` is one."""

from __future__ import annotations

from typing import Protocol

from tokenizers import Tokenizer
from torch import Tensor

from preprocessing import Grid
from preprocessing.chat import Messages


class Sample(Protocol):
    """A conversation that a source made."""

    @property
    def kind(self) -> str: ...

    @property
    def messages(self) -> Messages: ...

    def label(self, grid: Grid) -> Tensor:
        """What each patch of an image shows: int64 [tiles, patches**2, points**2], see `vl.training.dense`.

        Asked of samples with images alone.
        """
        ...


class DataSource(Protocol):
    """Conversations that are made on the way, without end, each a function of its arguments alone.

    Attributes:
        kinds: of conversations that it makes.
        classes: of patches, the background among them; 0 for a source of text alone.

    A source may have `reasons`: whether assistants' messages have `reasoning_content`, so that a model without them is
    given the tokens and the template for it.

    It may have `ask_again(sample, seed, index, time, stage)`, which `data.reuse` needs: another conversation, the
    `time`th after the first, about the image of `sample`, which is what `draw(seed, index, stage)` gives.
    """

    kinds: tuple[str, ...]
    classes: int

    def draw(self, seed: int, index: int, stage: int) -> Sample:
        """Sample `index` of the stream `seed`, for a stage of `DataConfig.stage`."""
        ...

    def draw_held_out(self, kind: str, index: int) -> Sample:
        """Sample `index` of a kind, which no run trains on."""
        ...

    def train_tokenizer(self, vocab_size: int) -> Tokenizer:
        """For a model from scratch; `SPECIAL_TOKENS` are its first entries."""
        ...
