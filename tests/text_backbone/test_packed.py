from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from text_backbone import Packed
from text_backbone.kernels.lightning.chunks import chunked


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 1000)), min_size=1, max_size=6))
def test_positions(shape: list[tuple[int, int]]) -> None:
    lengths, past = [s[0] for s in shape], [s[1] for s in shape]
    packed = Packed.of(lengths, past=past)
    assert packed.tokens == sum(lengths)
    assert packed.positions.tolist() == [p + t for n, p in shape for t in range(n)]
    assert packed.sequence_ids.tolist() == [i for i, n in enumerate(lengths) for _ in range(n)]


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([], {}, "at least one sequence"),
        ([3, 0], {}, "at least one token"),
        ([3, 2], {"past": [1]}, "one per sequence"),
        ([3], {"past": [-1]}, "cannot be negative"),
        ([3, 2], {"slots": [1, 1]}, "slot of its own"),
        ([3], {"slots": [-1]}, "slot of its own"),
        ([3, 2], {"marks": [(1, 3, 0)]}, "after 3 tokens of sequence 1 is not within lengths"),
        ([3], {"marks": [(0, 0, 0)]}, "after 0 tokens of sequence 0 is not within lengths"),
        ([3], {"marks": [(1, 1, 0)]}, "of sequence 1 is not within lengths"),
        ([3], {"marks": [(0, 2, 0), (0, 2, 1)]}, "two marks are at the same token"),
    ],
)
def test_bad_batches_are_refused(lengths: list[int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Packed.of(lengths, **options)


@given(data=st.data())
def test_parts_are_what_lies_between_two_rows(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 50)), min_size=1, max_size=5))
    packed = Packed.of([n for n, _ in shape], past=[p for _, p in shape], slots=range(10, 10 + len(shape)))
    start = data.draw(st.integers(0, packed.tokens - 1))
    stop = data.draw(st.integers(start + 1, packed.tokens))
    part = packed.part(start, stop)
    assert part.positions.tolist() == packed.positions[start:stop].tolist()
    assert part.slots[part.sequence_ids].tolist() == packed.slots[packed.sequence_ids][start:stop].tolist()


def test_positions_are_64_bit() -> None:
    packed = Packed.of([2], past=[2**31])
    assert packed.positions.dtype == torch.int64
    assert packed.positions.tolist() == [2**31, 2**31 + 1]


def doubled(packed: Packed, times: int = 2) -> torch.Tensor:
    return packed.past * times


def test_memo_makes_things_once_for_each_key() -> None:
    packed, other = (Packed.of([1, 2], past=[3, 4]) for _ in range(2))
    made = packed.memo(doubled)
    assert made.tolist() == [6, 8]
    assert packed.memo(doubled) is made
    assert packed.memo(doubled, 5).tolist() == [15, 20]
    assert packed.memo(lambda batch: batch.past).tolist() == [3, 4]
    assert other.memo(doubled) is not made


def test_what_inference_memoised_serves_training() -> None:
    with torch.inference_mode():
        packed = Packed.of([3])
        rows = packed.memo(lambda batch: batch.past * 0)
    weight = torch.ones(2, 2, requires_grad=True)
    weight.index_select(0, rows).sum().backward()  # keeps the index for its backward
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1, 1], [0, 0]]


def test_a_batch_is_let_go_with_what_was_made_of_it() -> None:
    packed = Packed.of([300, 2])
    kept = weakref.ref(packed.memo(chunked))
    gone = weakref.ref(packed)
    del packed
    gc.collect()
    assert gone() is None
    assert kept() is None
