"""Pages in page-locked memory, their copies beside the GPU's work, against a cache on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from text_backbone import HybridCache, MiniMaxText, Packed, TextConfig, init_weights
from text_backbone.offload import OffloadedCache, host

pytestmark = pytest.mark.gpu
PAGE = 64
# Of each of three sequences the lengths in which it is fed.
CUTS = [[5000, 1200, 1, 1, 300, 1, 1], [3, 1, 1, 900, 1, 1, 1], [700, 4200, 1, 1, 1]]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of the worst token
DEVICE = "cuda"


def feed(model: MiniMaxText, cache: HybridCache, ids: list[Tensor]) -> Tensor:
    """Hidden states of all tokens, sequence by sequence; the host is not held up in between."""
    slots, done = [cache.acquire() for _ in ids], [0] * len(ids)
    outs: list[list[Tensor]] = [[] for _ in ids]
    for step in range(max(map(len, CUTS))):
        live = [i for i in range(len(ids)) if step < len(CUTS[i])]
        lengths = [CUTS[i][step] for i in live]
        for i, length in zip(live, lengths, strict=True):
            cache.reserve(slots[i], done[i] + length)
        tokens = torch.cat([ids[i][done[i] : done[i] + n] for i, n in zip(live, lengths, strict=True)])
        packed = Packed.of(lengths, past=[done[i] for i in live], slots=[slots[i] for i in live], device=DEVICE)
        hidden = model(model.embed(tokens), packed, cache)
        for i, piece in zip(live, hidden.split(lengths), strict=True):
            outs[i].append(piece)
            done[i] += len(piece)
    for slot in slots:
        cache.release(slot)
    return torch.cat([piece for pieces in outs for piece in pieces])


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(("pages", "buffer"), [(1, 7), (40, 1000), (130, 20)])
@torch.inference_mode()
def test_the_same_numbers_come_out(
    config: Callable[..., TextConfig],
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    pages: int,
    buffer: int,
) -> None:
    # Every token has both experts: rounding changes no choice.
    shape = config(hidden_size=256, num_attention_heads=16, num_key_value_heads=2, head_dim=64, rotary_dim=32,
                   intermediate_size=64, num_local_experts=2, attn_type_list=(1, 0, 0, 1, 1))  # fmt: skip
    model = MiniMaxText(shape)
    init_weights(model, std=256**-0.5, generator=torch.Generator().manual_seed(0))
    for layer in (0, 3, 4):
        model.get_submodule(f"layers.{layer}.self_attn.q_proj").weight.mul_(3)  # a query sees few keys
    model.to(DEVICE, dtype)
    ids = [torch.randint(0, 50, (sum(lengths),), device=DEVICE) for lengths in CUTS]
    sizes: dict[str, Any] = {"slots": 3, "page_size": PAGE, "device": DEVICE, "dtype": dtype}
    expected = feed(model, HybridCache(shape, pages=250, **sizes), ids)
    monkeypatch.setattr(host, "BUFFER_TOKENS", buffer * PAGE)
    cache = OffloadedCache(shape, pages=pages, host_pages=250 - pages, **sizes)
    for tensor in (cache.host.buffers, *(segment for layer in cache.host.segments for segment in layer)):
        tensor.fill_(torch.nan)
    assert all(segment.is_pinned() for layer in cache.host.segments for segment in layer)
    for _ in range(2):  # the second time into pages that other tokens had
        found = feed(model, cache, ids)
        errors = (found - expected).float().norm(dim=1) / expected.float().norm(dim=1)
        assert float(errors.max()) <= TOLERANCE[dtype]
        assert cache.on_device(range(3))
        assert cache.free_pages == 250


@torch.inference_mode()
def test_kept_pages_move_out_and_in_again(config: Callable[..., TextConfig]) -> None:
    shape = config(num_key_value_heads=2, head_dim=64, attn_type_list=(1, 0, 1))
    cache = OffloadedCache(
        shape, slots=2, pages=60, host_pages=100, page_size=PAGE, device=DEVICE, dtype=torch.bfloat16
    )
    slot = cache.acquire()
    cache.reserve(slot, 60 * PAGE)
    pages = list(cache.pages_of(slot))
    keys, values = (pool[:, pages].normal_().clone() for pool in (cache.keys, cache.values))
    cache.keys[:, pages], cache.values[:, pages] = keys, values
    cache.retain(pages)
    cache.release(slot)
    for taken in (50, 60, 7):
        other = cache.acquire()
        cache.reserve(other, taken * PAGE)
        assert cache.on_device([other])
        cache.keys[:, [cache.place(page) for page in cache.pages_of(other)]] = torch.nan
        cache.release(other)
        slot = cache.acquire()
        cache.share(slot, pages, 60 * PAGE)
        assert cache.on_device([slot])
        places = [cache.place(page) for page in pages]
        assert torch.equal(cache.keys[:, places], keys)
        assert torch.equal(cache.values[:, places], values)
        cache.release(slot)
