"""Packed batches: sequences end to end, with what is to be learnt of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from preprocessing import Grid, Inputs, Processor
from preprocessing.chat import Conversation, Messages
from text_backbone import Packed
from text_backbone.parallel import ContextShard
from vl.training.dense import supervised

IGNORE = -100


@dataclass(frozen=True)
class Skipped:
    """A record that is not learnt from: where it is, and why not."""

    record: str
    cause: str


@dataclass(frozen=True)
class Batch:
    """Packed sequences: T tokens end to end, no padding.

    Attributes:
        input_ids: int64 [T].
        labels: int64 [T], the token that has to follow each position, or -100 where none is learnt: everything but
            the assistant's text and its end token.
        scored: int64 [m], the positions with a label, so that logits are made for these alone.
        answer_lengths: int64 [m], how many tokens the answer has that a scored position is of, its end token included.
        image_rows: int64 [image tokens], the positions of image tokens.
        tiles: uint8 [n, 3, S, S].
        patch_points, patch_labels: int64 [p] each, points of the tiles' patches, counted through, and what they show,
            see `vl.training.dense`; None where nobody knows.
        grids: one per image.
        lengths: tokens of each sequence.
        kinds: "scenes", "words" or "records" for each sequence.
        skipped: records that were to be here and could not be read.
        part: of a part of a batch, which one and of how many, see `vl.training.context`: T is then what it has.
        features: int64 [image tokens], of a part, which of the features that its tiles make its image tokens are.
    """

    input_ids: Tensor
    labels: Tensor
    scored: Tensor
    answer_lengths: Tensor
    image_rows: Tensor
    tiles: Tensor
    patch_points: Tensor | None
    patch_labels: Tensor | None
    grids: tuple[Grid, ...]
    lengths: tuple[int, ...]
    kinds: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()
    part: tuple[int, int] = (0, 1)
    features: Tensor | None = None

    def packed(self, device: torch.device) -> Packed:
        """Where the sequences lie."""
        if self.part[1] > 1:
            return ContextShard.share(self.lengths, *self.part, device=device)
        return Packed.of(self.lengths, device=device)

    def sequences(self) -> Tensor:
        """int64 [m], which sequence each scored position is of."""
        packed, rows = self.packed(self.scored.device), self.scored
        if isinstance(packed, ContextShard):
            rows = packed.rows[rows]
        return torch.bucketize(rows, torch.tensor(self.lengths, device=rows.device).cumsum(0), right=True)

    def pin_memory(self) -> Batch:
        return self.map(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """A copy on `device`; asynchronous from pinned memory."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same with every tensor changed."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True)
class Encoded:
    """One sequence before it is packed.

    Attributes:
        inputs: T tokens and the tiles of their images.
        labels: int64 [T], as in `Batch`.
        kind: as in `Batch`.
        patch_labels: int64 [tiles, patches**2, points**2] or None.
    """

    inputs: Inputs
    labels: Tensor
    kind: str
    patch_labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)


def encode(messages: Messages | Conversation, processor: Processor, kind: str) -> Encoded:
    """A conversation as a sequence to learn from. Raises what `Processor.training` raises."""
    inputs, learnt = processor.training(messages)
    # Position t predicts token t + 1.
    following = torch.where(learnt, inputs.input_ids, IGNORE)[1:]
    return Encoded(inputs, torch.cat((following, following.new_tensor([IGNORE]))), kind)


def join(
    sequences: Iterable[Encoded],
    image_token: int | None,
    skipped: Iterable[Skipped] = (),
    shown: Batch | None = None,
) -> Batch:
    """Lays sequences, one at least, end to end.

    Of an earlier batch with the same images, `shown`, the tiles and what their patches show are shared.
    """
    sequences = list(sequences)
    ids = torch.cat([sequence.inputs.input_ids for sequence in sequences])
    labels = torch.cat([sequence.labels for sequence in sequences])
    tiles, points, patch_labels = (
        _stack(sequences) if shown is None else (shown.tiles, shown.patch_points, shown.patch_labels)
    )
    scored = (labels != IGNORE).nonzero().flatten()
    # Tokens of one answer follow each other, so their position less their rank is the same.
    _, answer, counts = (scored - torch.arange(len(scored))).unique_consecutive(return_inverse=True, return_counts=True)
    places = torch.zeros_like(ids, dtype=torch.bool) if image_token is None else ids == image_token
    return Batch(
        input_ids=ids,
        labels=labels,
        scored=scored,
        answer_lengths=counts[answer],
        image_rows=places.nonzero().flatten(),
        tiles=tiles,
        patch_points=points,
        patch_labels=patch_labels,
        grids=tuple(grid for sequence in sequences for grid in sequence.inputs.grids),
        lengths=tuple(len(sequence) for sequence in sequences),
        kinds=tuple(sequence.kind for sequence in sequences),
        skipped=tuple(skipped),
    )


def _stack(sequences: list[Encoded]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The tiles of all sequences, the points of their patches to learn from, and what these show, as in `Batch`."""
    tiles = torch.cat([sequence.inputs.tiles[:] for sequence in sequences])
    labels = [sequence.patch_labels.flatten() for sequence in sequences if sequence.patch_labels is not None]
    if not labels:
        return tiles, None, None
    patches = torch.cat(labels)
    points = supervised(patches)
    return tiles, points, patches[points]
