"""Attention to a cache that comes in parts, against float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch

from text_backbone.kernels import softmax
from text_backbone.kernels.device import reference_kernels

from .paged import DTYPES, TOLERANCE, Case, assert_near, make

decode = pytest.importorskip("text_backbone.kernels.softmax.decode", reason="Triton is not installed")

GPU = pytest.mark.gpu


@dataclass
class Parts:
    """The cached tokens of the one sequence of a case, cut up: in the pages of a pool, and in order in buffers."""

    case: Case
    cuts: list[int]

    def __post_init__(self) -> None:
        (self.past,), (slot,), page_size = self.case.packed.pasts, self.case.packed.slot_ids, self.case.keys.shape[1]
        self.pages = self.case.table[slot, : -(-self.past // page_size)]
        self.current: int | None = None

    def bring(self, i: int) -> softmax.Cached:
        """The part between two cuts, which count pages; every second one in a buffer that the next one takes."""
        assert self.current == (i - 1 if i else None), "parts are asked for in their order, and once"
        self.current = i
        bounds = [0, *self.cuts, len(self.pages)]
        some, page_size = self.pages[bounds[i] : bounds[i + 1]], self.case.keys.shape[1]
        tokens = min(self.past - bounds[i] * page_size, len(some) * page_size)
        keys, values = self.case.keys, self.case.values
        if i % 2:
            return softmax.Cached(keys, values, tokens, some)
        self.buffers = keys[some.long()], values[some.long()]
        return softmax.Cached(*self.buffers, tokens)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("length", "past", "cuts", "heads", "page_size"),
    [
        (1, 23, [2, 4], (4, 2, 16), 4),
        (5, 24, [1], (6, 2, 24), 4),
        (9, 0, [], (4, 2, 16), 4),
        pytest.param(1, 100_001, [7, 100, 256], (64, 8, 128), 256, marks=GPU),
        pytest.param(700, 70_000, [1, 257], (64, 8, 128), 256, marks=GPU),
        pytest.param(5000, 50_000, [3, 40], (64, 8, 128), 256, marks=GPU),
        pytest.param(8192, 70_000, [256], (64, 8, 128), 256, marks=GPU),
    ],
    ids=str,
)
def test_attention_in_parts(
    length: int, past: int, cuts: list[int], heads: tuple[int, int, int], page_size: int, dtype: torch.dtype
) -> None:
    case = make([length], [past], heads, page_size, dtype)
    parts = Parts(case, cuts)
    bring = [partial(parts.bring, i) for i in range(len(cuts) + bool(past))]
    with torch.inference_mode():
        assert_near(softmax.attention_in_parts(case.q, case.k, case.v, case.packed, bring), case.want())


def test_attention_in_parts_a_slice_of_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax.reference, "MASK_ELEMENTS", 100)
    case = make([37], [24], (4, 2, 16), 4, torch.float32)
    parts = Parts(case, [4])
    with reference_kernels():
        bring = [partial(parts.bring, i) for i in range(2)]
        assert_near(softmax.attention_in_parts(case.q, case.k, case.v, case.packed, bring), case.want())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "page_size", "paged"), [(1, 4, True), (23, 4, True), (130, 64, False)])
def test_partial_attention(tokens: int, page_size: int, paged: bool, dtype: torch.dtype) -> None:
    """Of one token to keys that it is not among, and the log of the softmax's denominator."""
    case = make([1], [tokens + 9], (6, 2, 24), page_size, dtype)
    pages = case.table[case.packed.slot_ids[0], : -(-tokens // page_size)]
    held = softmax.Cached(case.keys, case.values, tokens, pages)
    if not paged:
        held = softmax.Cached(case.keys[pages.long()], case.values[pages.long()], tokens)
    with torch.inference_mode():
        mean, logs = decode.partial_attention(case.q, held.keys, held.values, held.pages, tokens)
    k, v = (x.double().repeat_interleave(3, dim=1) for x in held.rows(0, tokens))  # [S, heads, d]
    scores = torch.einsum("lhd,shd->hls", case.q.double(), k) * 24**-0.5
    torch.testing.assert_close(logs.double(), scores.logsumexp(-1), rtol=1e-3, atol=1e-3)
    want = torch.einsum("hls,shd->lhd", scores.softmax(-1), v)
    assert mean.dtype == torch.float32
    assert (mean.double() - want).norm() <= TOLERANCE[dtype] * want.norm()
