"""Softmax attention: prefill, and decode from paged keys and values, beside torch's own kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from text_backbone import Packed
from text_backbone.kernels.softmax import paged_attention, softmax_attention
from vl.bench.ops.lightning import by_reference
from vl.bench.records import OURS, REFERENCE, Call, Case, Contest, Setting, Work
from vl.bench.timing import rotations

PREFILL, CHUNK, DECODE = "softmax prefill", "softmax chunk", "softmax decode"
PAGE = 256


def cases(setting: Setting) -> list[Case]:
    prefills, decodes = [8192, 32768], [(1, 32768), (8, 32768), (64, 4096), (1, 2**20)]
    chunks = [(8192, 24576), (8192, 122880)]
    if setting.small:
        prefills, chunks, decodes = [256, 512], [(64, 192), (64, 448)], [(1, 512), (4, 512)]
    return [
        *(Case(PREFILL, f"1 x {n}", n, "tokens", partial(_prefill, setting, n), PREFILL) for n in prefills),
        *(
            Case(CHUNK, f"{n} after {past}", past, "cached tokens", partial(_chunk, setting, n, past), CHUNK)
            for n, past in chunks
        ),
        *(
            Case(DECODE, f"batch {n} x {size}", n * size, "cached tokens", partial(_decode, setting, n, size), DECODE)
            for n, size in decodes
        ),
    ]  # fmt: skip


def prefill_work(tokens: int, heads: int, kv_heads: int, d: int, itemsize: int, past: int = 0) -> Work:
    """Queries, keys and values read and the output written; of the two products the half below the diagonal."""
    moved = 2 * (tokens * heads + (tokens + past) * kv_heads) * d * itemsize
    return Work(moved, 2 * tokens * (tokens + 2 * past) * heads * d)


def decode_work(cached: int, batch: int, heads: int, kv_heads: int, d: int, itemsize: int) -> Work:
    """All keys and values read once."""
    return Work((2 * cached * kv_heads + 2 * batch * heads) * d * itemsize, 4 * cached * heads * d)


def _shape(setting: Setting) -> tuple[int, int, int]:
    """Heads, key/value heads, head dimension."""
    return (4, 2, 32) if setting.small else (64, 8, 128)


def _prefill(setting: Setting, tokens: int) -> Contest:
    (heads, kv_heads, d), device = _shape(setting), setting.device
    q, k, v = (torch.randn(tokens, n, d, device=device, dtype=setting.dtype) for n in (heads, kv_heads, kv_heads))
    packed = Packed.of([tokens], device=device)
    ours = partial(softmax_attention, q, k, v, packed)
    queries, keys, values = (x[None].transpose(1, 2) for x in (q, k, v))
    sdpa = partial(F.scaled_dot_product_attention, queries, keys, values, is_causal=True, enable_gqa=True)
    work = prefill_work(tokens, heads, kv_heads, d, q.element_size())
    return Contest(work.floor, _beside(ours, sdpa, device))


def _chunk(setting: Setting, tokens: int, past: int) -> Contest:
    """A part of a prompt whose earlier tokens are in the cache, as the engine reads long ones."""
    (heads, kv_heads, d), device = _shape(setting), setting.device
    q, k, v = (torch.randn(tokens, n, d, device=device, dtype=setting.dtype) for n in (heads, kv_heads, kv_heads))
    pages = -(-(past + tokens) // PAGE)
    kv = torch.randn(2, pages, PAGE, kv_heads, d, device=device, dtype=setting.dtype)
    table = torch.randperm(pages, device=device).to(torch.int32)[None]
    packed = Packed.of([tokens], past=[past], device=device)
    ours = partial(paged_attention, q, k, v, packed, kv[0], kv[1], table)
    keys, values = (x.flatten(0, 1)[None, : past + tokens].transpose(1, 2) for x in kv)
    sdpa = partial(
        F.scaled_dot_product_attention, q[None].transpose(1, 2), keys, values,
        attn_mask=causal_lower_right(tokens, past + tokens), enable_gqa=True,
    )  # fmt: skip
    work = prefill_work(tokens, heads, kv_heads, d, q.element_size(), past)
    contenders: dict[str, Callable[[], Sequence[Call]]] = {
        OURS: lambda: [ours],
        REFERENCE: lambda: [by_reference(ours)],
        "torch SDPA, no pages": lambda: [sdpa],
    }
    return Contest(work.floor, contenders)


def _decode(setting: Setting, batch: int, length: int) -> Contest:
    (heads, kv_heads, d), device = _shape(setting), setting.device
    pages = -(-length // PAGE)
    layers = rotations(2 * batch * length * kv_heads * d * setting.dtype.itemsize, device)
    kv = torch.empty(layers, 2, batch * pages, PAGE, kv_heads, d, device=device, dtype=setting.dtype).normal_()
    table = torch.randperm(batch * pages, device=device).to(torch.int32).view(batch, pages)
    q = torch.randn(batch, heads, d, device=device, dtype=setting.dtype)
    k, v = (torch.randn(batch, kv_heads, d, device=device, dtype=setting.dtype) for _ in range(2))
    packed = Packed.of([1] * batch, past=[length - 1] * batch, device=device)
    ours = [partial(paged_attention, q, k, v, packed, keys, values, table) for keys, values in kv]

    def sdpa(layer: Tensor) -> Call:
        # The same memory as if a sequence's pages followed one another; the peer is spared the page table.
        keys, values = (x.view(batch, pages * PAGE, kv_heads, d)[:, :length].transpose(1, 2) for x in layer)
        return partial(F.scaled_dot_product_attention, q[:, :, None], keys, values, enable_gqa=True)

    work = decode_work(batch * length, batch, heads, kv_heads, d, q.element_size())
    contenders: dict[str, Callable[[], Sequence[Call]]] = {
        OURS: lambda: ours,
        REFERENCE: lambda: [by_reference(call) for call in ours],
        "torch SDPA, no pages": lambda: [sdpa(layer) for layer in kv],
    }
    return Contest(work.floor, contenders, how="graph")


def _beside(ours: Call, sdpa: Call, device: torch.device) -> dict[str, Callable[[], Sequence[Call]]]:
    contenders: dict[str, Callable[[], Sequence[Call]]] = {
        OURS: lambda: [ours],
        REFERENCE: lambda: [by_reference(ours)],
    }
    if device.type != "cuda":
        return contenders | {"torch SDPA": lambda: [sdpa]}
    return contenders | {
        "SDPA cuDNN": lambda: [_on(SDPBackend.CUDNN_ATTENTION, sdpa)],
        "SDPA flash": lambda: [_on(SDPBackend.FLASH_ATTENTION, sdpa)],
    }


def _on(backend: SDPBackend, call: Call) -> Call:
    def run() -> object:
        with sdpa_kernel(backend):
            return call()

    return run
