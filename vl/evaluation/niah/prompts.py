"""Prompts of exactly so many tokens, with needles at the depths asked for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from preprocessing import Conversation, Processor
from vl.errors import InputError
from vl.evaluation.niah.haystack import take_tokens

_PLACE = "\ue000"  # of the private use area: in no template and no text of ours


@dataclass(frozen=True)
class Frame:
    """The token ids around a haystack: the chat's beginning, and the question with the beginning of the answer."""

    head: tuple[int, ...]
    tail: tuple[int, ...]

    @classmethod
    def of(cls, processor: Processor, before: str, after: str) -> Frame:
        """The frame that the checkpoint's template makes of a user's message with text before and after the hay.

        Raises:
            InputError: if the template does not write the message as it is.
        """
        conversation = Conversation.of([{"role": "user", "content": f"{before}{_PLACE}{after}"}])
        parts = processor.template.render(conversation, True).split(_PLACE)
        if len(parts) != 2:
            raise InputError(
                f"the chat template writes a user's message {len(parts) - 1} times, and a haystack is put into one: "
                "use the default template"
            )
        head, tail = (tuple(processor.tokenizer.encode(part)) for part in parts)
        return cls(head, tail)

    def __len__(self) -> int:
        return len(self.head) + len(self.tail)


def hide(
    processor: Processor, frame: Frame, hay: Iterator[str], needles: Sequence[tuple[str, float]], length: int
) -> Tensor:
    """A prompt of exactly `length` tokens: hay in a frame, with needles in it.

    Each needle is put before the sentence that begins nearest to its depth, so that the last, which may be cut, is hay.

    Args:
        needles: sentences with the white space before them, and their depths from 0 (first) to 1 (last).

    Returns:
        int64 [length].

    Raises:
        InputError: if the frame and the needles alone are longer.
    """
    hidden = [(processor.tokenizer.encode_plain(sentence), depth) for sentence, depth in needles]
    room = length - len(frame) - sum(len(ids) for ids, _ in hidden)
    if room < 0:
        raise InputError(
            f"{length:,} tokens are too few: the question and the needles alone take {length - room:,}; ask for longer "
            "prompts or fewer distractors"
        )
    ids, starts = take_tokens(hay, processor.tokenizer, room)
    # From the last on, so that the places of those before it stay as they are.
    for needle, depth in sorted(hidden, key=lambda item: item[1], reverse=True):
        place = _nearest(starts, depth * room)
        ids[place:place] = needle
    return torch.tensor([*frame.head, *ids, *frame.tail], dtype=torch.int64)


def _nearest(starts: Sequence[int], place: float) -> int:
    """The member of the rising `starts` that is nearest to `place`."""
    after = bisect_left(starts, place)
    return min(starts[max(0, after - 1) : after + 1], key=lambda start: abs(start - place))
