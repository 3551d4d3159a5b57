from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from text_backbone import Packed
from text_backbone.kernels.rotary import rotary, rotary_table, rotary_to_pages
from text_backbone.kernels.softmax import paged_attention, reference, softmax_attention


def naive_attention(q: Tensor, k: Tensor, v: Tensor, past: int) -> Tensor:
    """Query by query and head by head in float64: q [L, heads, d]; k, v [past + L, kv_heads, d]."""
    group = q.shape[1] // k.shape[1]
    out = torch.zeros(q.shape, dtype=torch.float64)
    for t in range(len(q)):
        for h in range(q.shape[1]):
            seen_k, seen_v = (x[: past + t + 1, h // group].double() for x in (k, v))
            out[t, h] = (seen_k @ q[t, h].double() / math.sqrt(q.shape[-1])).softmax(0) @ seen_v
    return out


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    heads=st.sampled_from([(4, 4), (4, 2), (4, 1)]),
    seed=st.integers(0, 2**16),
)
def test_attention_within_sequences(lengths: list[int], heads: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(sum(lengths), h, 8, generator=generator) for h in (heads[0], heads[1], heads[1]))
    got = softmax_attention(q, k, v, Packed.of(lengths))
    rows = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    want = [naive_attention(q_i, k_i, v_i, 0) for q_i, k_i, v_i in rows]
    torch.testing.assert_close(got.double(), torch.cat(want), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask_elements", [reference.MASK_ELEMENTS, 1])
@settings(deadline=None)
@given(
    shape=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 12)), min_size=1, max_size=4),
    page_size=st.sampled_from([1, 4, 5]),
    seed=st.integers(0, 2**16),
)
def test_attention_over_pages(mask_elements: int, shape: list[tuple[int, int]], page_size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths, past = [s[0] for s in shape], [s[1] for s in shape]
    needed = [-(-(n + p) // page_size) for n, p in shape]
    order = torch.randperm(sum(needed) + 3, generator=generator).to(torch.int32)
    table = torch.zeros(len(shape), len(order), dtype=torch.int32)
    for slot, pages in enumerate(order[: sum(needed)].split(needed)):
        table[slot, : len(pages)] = pages
    # unused rows are NaN: reading one shows
    keys, values = (torch.full((len(order), page_size, 2, 8), float("nan")) for _ in range(2))
    q, k_new, v_new, want = [], [], [], []
    for slot, (length, before) in enumerate(shape):
        k, v = torch.randn(2, before + length, 2, 8, generator=generator)
        query = torch.randn(length, 4, 8, generator=generator)
        for t in range(before + length):
            page = table[slot, t // page_size]
            keys[page, t % page_size], values[page, t % page_size] = k[t], v[t]
        q.append(query)
        k_new.append(k[before:])
        v_new.append(v[before:])
        want.append(naive_attention(query, k, v, before))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "MASK_ELEMENTS", mask_elements)
        packed = Packed.of(lengths, past=past)
        got = paged_attention(torch.cat(q), torch.cat(k_new), torch.cat(v_new), packed, keys, values, table)
    torch.testing.assert_close(got.double(), torch.cat(want), rtol=1e-5, atol=1e-5)


def turn(x: Tensor, position: int, rotary_dim: int, theta: float) -> Tensor:
    """One head vector as complex numbers in float64: pair (i, i + r/2) turns by position * theta^(-2i/r)."""
    out = x.double().clone()
    half = rotary_dim // 2
    for i in range(half):
        angle = (position * theta ** (-2 * i / rotary_dim)) % (2 * math.pi)
        z = complex(x[i], x[i + half]) * complex(math.cos(angle), math.sin(angle))
        out[i], out[i + half] = z.real, z.imag
    return out


@settings(deadline=None)
@given(
    positions=st.lists(st.integers(0, 4_194_304), min_size=1, max_size=4),
    rotary_dim=st.sampled_from([2, 4, 8, 12]),
    theta=st.sampled_from([1e4, 1e7]),
)
def test_partial_rotary_to_four_million(positions: list[int], rotary_dim: int, theta: float) -> None:
    q, k = torch.randn(len(positions), 3, 12), torch.randn(len(positions), 1, 12)
    table = rotary_table(torch.tensor(positions), rotary_dim, theta)
    assert table.dtype == torch.float32
    for got, x in zip(rotary(q, k, table), (q, k), strict=True):
        want = torch.stack(
            [torch.stack([turn(h, p, rotary_dim, theta) for h in t]) for t, p in zip(x, positions, strict=True)]
        )
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
        assert torch.equal(got[..., rotary_dim:], x[..., rotary_dim:])


def test_rotated_keys_and_values_land_in_their_rows() -> None:
    q, k, v = torch.randn(3, 4, 8), torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    table, rows = rotary_table(torch.tensor([5, 6, 7]), 4, 1e4), torch.tensor([9, 0, 4])
    keys, values = torch.zeros(4, 3, 2, 8), torch.zeros(4, 3, 2, 8)
    got_q, got_k = rotary_to_pages(q, k, v, table, keys, values, rows)
    want_q, want_k = rotary(q, k, table)
    assert torch.equal(got_q, want_q)
    assert torch.equal(got_k, want_k)
    assert torch.equal(keys.flatten(0, 1)[rows], want_k)
    assert torch.equal(values.flatten(0, 1)[rows], v)
    assert keys.flatten(0, 1).abs().sum((1, 2)).count_nonzero() == 3


def test_low_precision_keeps_its_dtype() -> None:
    q, k = torch.randn(2, 1, 8).bfloat16(), torch.randn(2, 1, 8).bfloat16()
    got = rotary(q, k, rotary_table(torch.arange(2), 4, 1e4))
    assert [x.dtype for x in got] == [torch.bfloat16] * 2
