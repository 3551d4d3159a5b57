"""Attention to some keys, merged with that to others, and its gradients, against float64 attention to all of them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from text_backbone import Packed
from text_backbone.kernels.softmax import library, partial, reference, varlen
from text_backbone.kernels.softmax.library import Bounds

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw(tokens: int, keys: int, heads: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values and the gradient of the output."""
    generator = torch.Generator(DEVICE).manual_seed(tokens + keys)
    query_heads, kv_heads, d = heads
    shapes = (tokens, query_heads, d), (keys, kv_heads, d), (keys, kv_heads, d), (tokens, query_heads, d)
    return [torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.float64).to(dtype) for shape in shapes]


def exact(inputs: list[Tensor], seen: Tensor) -> tuple[list[Tensor], Tensor]:
    """float64: output, gradients of q, k and v; and logs. `seen` bool [L, S]."""
    kv_heads, found = inputs[1].shape[1], []
    for head in zip(*(x.chunk(kv_heads, dim=1) for x in inputs), strict=True):
        q, k, v = (x.detach().double().requires_grad_() for x in head[:3])
        scores = q.transpose(0, 1) @ k.permute(1, 2, 0) * q.shape[2] ** -0.5  # [group, L, S]
        scores = scores.masked_fill(~seen, float("-inf"))
        out = (scores.softmax(-1) @ v.transpose(0, 1)).transpose(0, 1)
        grads = torch.autograd.grad(out, (q, k, v), head[3].double())
        found.append((out.detach(), *grads, scores.detach().logsumexp(-1).T))
    out, dq, dk, dv, logs = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return [out, dq, dk, dv], logs.T


def check(got: list[Tensor], want: list[Tensor], bound: float) -> None:
    for i, (mine, true) in enumerate(zip(got, want, strict=True)):
        assert mine.shape == true.shape
        # Gradients of scores cancel where there are few of them: their error is held to the largest gradient.
        scale = true.norm() if i == 0 else max(x.norm() for x in want[1:])
        assert float((mine.double() - true).norm() / scale) < bound


def in_blocks(inputs: list[Tensor], cuts: list[int], packed: Packed) -> list[Tensor]:
    """Causal attention of the last tokens of one sequence among themselves, then to blocks of the keys before them."""
    q, k, v, grad = inputs
    before = len(k) - len(q)
    own = slice(before, len(k))
    first, logs = partial.causal_attention(q, k[own], v[own], packed)
    merged = partial.Merged(first, logs)
    blocks = [slice(a, b) for a, b in pairwise([0, *cuts, before])]
    for block in blocks:
        for rows, keys in partial.tiles(q, k[block]):
            merged.add(rows, *partial.block_attention(q[rows], k[block][keys], v[block][keys]))
    wide, logs = merged.result()
    out = wide.to(q.dtype)
    dq, dk, dv = (x.double() for x in partial.causal_backward(grad, q, k[own], v[own], out, logs, packed))
    dks, dvs = [dk], [dv]
    for block in reversed(blocks):
        dk, dv = (torch.zeros_like(k[block], dtype=torch.float64) for _ in range(2))
        for rows, keys in partial.tiles(q, k[block]):
            operands = grad[rows], q[rows], k[block][keys], v[block][keys], out[rows], logs[:, rows]
            for total, part in zip((dq[rows], dk[keys], dv[keys]), partial.block_backward(*operands), strict=True):
                total += part
        dks.insert(0, dk)
        dvs.insert(0, dv)
    return [out, dq, torch.cat(dks), torch.cat(dvs)]


@settings(deadline=None, max_examples=30)
@given(tokens=st.integers(1, 40), cuts=st.lists(st.integers(1, 30), min_size=1, max_size=4), heads=st.integers(1, 3))
def test_blocks_are_the_whole(tokens: int, cuts: list[int], heads: int) -> None:
    ends = torch.tensor(cuts).cumsum(0).tolist()
    inputs = draw(tokens, tokens + ends[-1], (2 * heads, heads, 8), torch.float64)
    seen = torch.ones(tokens, tokens + ends[-1], dtype=torch.bool, device=DEVICE).tril(ends[-1])
    got = in_blocks(inputs, ends[:-1], Packed.of([tokens], device=DEVICE))
    check(got, exact(inputs, seen)[0], 1e-12)


def test_logs_and_float32() -> None:
    inputs = draw(50, 70, (4, 2, 16), torch.float32)
    q, k, v, grad = inputs
    for past, diagonal in ((None, 70), (20, 20)):
        seen = torch.ones(50, 70, dtype=torch.bool, device=DEVICE).tril(diagonal)
        want, want_logs = exact(inputs, seen)
        out, logs = reference.partial_attention(q, k, v, past)
        check([out, *reference.partial_backward(grad, q, k, v, out, logs, past)], want, 1e-6)
        torch.testing.assert_close(logs.double(), want_logs, rtol=1e-6, atol=1e-6)


def test_scores_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same a few rows at a time."""
    inputs = draw(33, 20, (4, 2, 8), torch.float64)
    q, k, v, grad = inputs
    out, logs = reference.partial_attention(q, k, v, 3)
    grads = reference.partial_backward(grad, q, k, v, out, logs, 3)
    monkeypatch.setattr(reference, "MASK_ELEMENTS", 4 * 20 * 5)
    sliced, sliced_logs = reference.partial_attention(q, k, v, 3)
    torch.testing.assert_close((sliced, sliced_logs), (out, logs))
    torch.testing.assert_close(reference.partial_backward(grad, q, k, v, out, logs, 3), grads)


class Stand:
    """The library's kernels by the reference, where there are none: which shapes they get is written down."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.planned: list[tuple[int, int, bool]] = []
        for name in ("cudnn", "cudnn_backward", "flash", "flash_backward"):
            patch.setattr(library, name, getattr(self, name))
        patch.setattr(library, "cudnn_takes", lambda q, k: True)
        patch.setattr(varlen, "prefers_cudnn", lambda device: True)
        patch.setattr(varlen, "takes", lambda q: True)
        patch.setattr(varlen, "_LONG_TOKENS", 32)
        patch.setattr(varlen, "_LONG_WORK", 0)
        patch.setattr(partial, "_on_library", lambda q: True)

    def cudnn(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
        self.planned.append((len(q), len(k), causal))
        return reference.partial_attention(q, k, v, 0 if causal else None)

    def cudnn_backward(self, grad: Tensor, q: Tensor, k: Tensor, *rest: Tensor, causal: bool) -> tuple[Tensor, ...]:
        self.planned.append((len(q), len(k), causal))
        return reference.partial_backward(grad, q, k, *rest, 0 if causal else None)  # type: ignore[call-arg]

    def flash(self, q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, *, causal: bool) -> tuple[Tensor, Tensor]:
        found = [
            reference.partial_attention(q[rows], k[keys], v[keys], past if causal else None)
            for rows, keys, past in self._each(bounds)
        ]
        outs, logs = zip(*found, strict=True)
        return torch.cat(outs), torch.cat(logs, dim=1)

    def flash_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logs: Tensor, bounds: Bounds, *, causal: bool
    ) -> tuple[Tensor, ...]:
        found = [
            reference.partial_backward(
                grad[rows], q[rows], k[keys], v[keys], out[rows], logs[:, rows], past if causal else None
            )
            for rows, keys, past in self._each(bounds)
        ]
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def _each(self, bounds: Bounds) -> list[tuple[slice, slice, int]]:
        rows, keys = ([slice(*pair) for pair in pairwise(offsets.tolist())] for offsets in bounds[:2])
        assert bounds.longest_q == max(r.stop - r.start for r in rows)
        assert bounds.longest_k == max(r.stop - r.start for r in keys)
        return [(r, s, (s.stop - s.start) - (r.stop - r.start)) for r, s in zip(rows, keys, strict=True)]


@pytest.mark.parametrize("tokens", [64, 70, 37])
def test_shapes_that_cudnn_sees(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of long sequences and of blocks go to it, what is left to FlashAttention: the same result."""
    inputs = draw(tokens, tokens + 45 + 64 + 5, (4, 2, 8), torch.float32)
    seen = torch.ones(tokens, len(inputs[1]), dtype=torch.bool, device=DEVICE).tril(45 + 64 + 5)
    stand = Stand(monkeypatch)
    check(in_blocks(inputs, [45, 45 + 64], Packed.of([tokens], device=DEVICE)), exact(inputs, seen)[0], 1e-5)
    head = {64: 64, 70: 64, 37: 36}[tokens]
    assert stand.planned[:3] == [(head, head, True), (head, 44, False), (head, 64, False)]
    assert len(stand.planned) == 6


def test_sequences_of_a_batch_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short ones together, and long ones by themselves, with or without a tail."""
    lengths = [5, 9, 70, 3, 64, 1]
    inputs = draw(sum(lengths), sum(lengths), (4, 2, 8), torch.float32)
    seen = torch.block_diag(*(torch.ones(n, n).tril() for n in lengths)).to(DEVICE).bool()
    want, want_logs = exact(inputs, seen)
    for stand in (None, Stand):
        planned = stand(monkeypatch).planned if stand else None
        q, k, v, grad = inputs
        packed = Packed.of(lengths, device=DEVICE)
        out, logs = partial.causal_attention(q, k, v, packed)
        check([out, *partial.causal_backward(grad, q, k, v, out, logs, packed)], want, 1e-5)
        torch.testing.assert_close(logs.double(), want_logs, rtol=1e-5, atol=1e-5)
        assert planned is None or planned == 2 * [(64, 64, True), (64, 64, True)]


def test_tiles_cover_every_pair_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Stand(monkeypatch)
    for rows, keys in ((1, 1), (31, 500), (32, 32), (33, 47), (100, 64), (777, 1000)):
        found = torch.zeros(rows, keys)
        for queries, seen in partial.tiles(torch.empty(rows, 1, 8), torch.empty(keys, 1, 8)):
            found[queries, seen] += 1
        assert (found == 1).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("tokens", "cuts", "heads"),
    [
        (1, [1, 3], (4, 2, 64)),
        (700, [100, 1, 999], (4, 2, 64)),
        (4096, [4096], (64, 8, 128)),
        (4500, [4400, 9], (64, 8, 128)),
    ],
    ids=str,
)
def test_on_a_gpu(tokens: int, cuts: list[int], heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    """bfloat16 and float16 through FlashAttention and cuDNN; float32 by the reference, merged by our kernel."""
    ends = torch.tensor(cuts).cumsum(0).tolist()
    inputs = draw(tokens, tokens + ends[-1], heads, dtype)
    seen = torch.ones(tokens, tokens + ends[-1], dtype=torch.bool, device=DEVICE).tril(ends[-1])
    got = in_blocks(inputs, ends[:-1], Packed.of([tokens], device=DEVICE))
    check(got, exact(inputs, seen)[0], {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float32: 1e-5}[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_ragged_batch_on_a_gpu(dtype: torch.dtype) -> None:
    lengths = [5, 4097, 1, 300, 64, 2000]
    inputs = draw(sum(lengths), sum(lengths), (64, 8, 128), dtype)
    q, k, v, grad = inputs
    packed = Packed.of(lengths, device=DEVICE)
    out, logs = partial.causal_attention(q, k, v, packed)
    got = [out, *partial.causal_backward(grad, q, k, v, out, logs, packed)]
    for i, (start, length) in enumerate(zip(packed.starts, lengths, strict=True)):
        rows = slice(start, start + length)
        seen = torch.ones(length, length, dtype=torch.bool, device=DEVICE).tril()
        want, want_logs = exact([x[rows] for x in inputs], seen)
        check([x[rows] for x in got], want, {torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype])
        torch.testing.assert_close(logs[:, rows].double(), want_logs, rtol=1e-3, atol=1e-3, msg=str(i))
