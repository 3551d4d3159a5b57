from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from text_backbone import HybridCache, MiniMaxText, Packed, TextConfig
from text_backbone.kernels.lightning.chunks import CHUNK

TOLERANCE = 2e-5


def alone(model: MiniMaxText, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(model.embed(ids), Packed.of([len(ids)]))


def close(got: Tensor, want: Tensor) -> None:
    assert (got - want).abs().max().item() < TOLERANCE * max(1.0, want.abs().max().item())


cuts = st.lists(st.integers(1, 9) | st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1]), min_size=1, max_size=5)


@settings(deadline=None, max_examples=40)
@given(
    pieces=st.lists(cuts, min_size=1, max_size=4), page_size=st.sampled_from([1, 4, 16, 256]), seed=st.integers(0, 99)
)
def test_any_chunking_in_any_company_equals_one_shot_alone(
    model: MiniMaxText, feed: Callable[..., list[Tensor]], pieces: list[list[int]], page_size: int, seed: int
) -> None:
    """Prefill, chunked prefill and decode mixed in one batch, over pages of any size."""
    torch.manual_seed(seed)
    ids = [torch.randint(0, 50, (sum(lengths),)) for lengths in pieces]
    pages = sum(-(-len(i) // page_size) for i in ids)
    cache = HybridCache(model.config, slots=len(ids) + 1, pages=pages, page_size=page_size)
    for got, tokens in zip(feed(model, cache, ids, pieces), ids, strict=True):
        close(got, alone(model, tokens))
    assert cache.free_pages == pages


@pytest.mark.parametrize("length", [1, 15, 16, 17])
def test_token_by_token_and_prefill_then_decode(
    model: MiniMaxText, feed: Callable[..., list[Tensor]], length: int
) -> None:
    ids = torch.randint(0, 50, (length,))
    cache = HybridCache(model.config, slots=2, pages=4, page_size=16)
    one_shot = alone(model, ids)
    close(feed(model, cache, [ids], [[1] * length])[0], one_shot)
    if length > 3:
        close(feed(model, cache, [ids], [[length - 3, 1, 1, 1]])[0], one_shot)


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(1, 30) | st.just(CHUNK + 7), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_batch_mates_do_not_matter_without_a_cache(model: MiniMaxText, lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    ids = [torch.randint(0, 50, (n,)) for n in lengths]
    with torch.no_grad():
        hidden = model(model.embed(torch.cat(ids)), Packed.of(lengths))
    for got, tokens in zip(hidden.split(lengths), ids, strict=True):
        close(got, alone(model, tokens))


def test_a_broken_batch_mate_stays_alone(model: MiniMaxText) -> None:
    ids = torch.randint(0, 50, (20,))
    embeds = model.embed(ids).detach()
    embeds[8:] = float("nan")
    with torch.no_grad():
        hidden = model(embeds, Packed.of([8, 12]))
    close(hidden[:8], alone(model, ids[:8]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(config: Callable[..., TextConfig], build: Callable[..., MiniMaxText], dtype: torch.dtype) -> None:
    smooth = config(num_experts_per_tok=4)  # rounding cannot change which experts a token goes to
    model = build(smooth, dtype=dtype)
    hidden = alone(model, torch.arange(10))
    assert hidden.dtype == dtype
    logits = model.logits(hidden)
    assert logits.dtype == torch.float32
    assert logits.shape == (10, 50)
    reference = build(smooth, dtype=torch.float64)
    reference.load_state_dict(model.state_dict())
    exact = alone(reference, torch.arange(10))
    assert exact.dtype == torch.float64
    error = (hidden.double() - exact).norm() / exact.norm()
    assert error.item() < (1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("kinds", [(0,), (1,), (1, 1), (0, 0)])
def test_layers_of_one_kind(
    config: Callable[..., TextConfig],
    build: Callable[..., MiniMaxText],
    feed: Callable[..., list[Tensor]],
    kinds: tuple[int, ...],
) -> None:
    model = build(config(attn_type_list=kinds))
    ids = torch.randint(0, 50, (12,))
    cache = HybridCache(model.config, slots=1, pages=3, page_size=4)
    close(feed(model, cache, [ids], [[7, 1, 4]])[0], alone(model, ids))


def test_contradictions_are_refused(model: MiniMaxText) -> None:
    embeds = model.embed(torch.arange(5))
    with pytest.raises(ValueError, match="5 tokens but packed describes 6"):
        model(embeds, Packed.of([6]))
    with pytest.raises(ValueError, match="no cache was given"):
        model(embeds, Packed.of([5], past=[3]))
