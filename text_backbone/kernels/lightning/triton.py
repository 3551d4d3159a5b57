"""Lightning attention on Triton kernels: when they run, with what tiles, and the autograd function around them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from text_backbone.kernels.lightning.backward import reverse_gain_kernel, walk_back_kernel
from text_backbone.kernels.lightning.forward import gain_kernel, scan_kernel, walk_kernel
from text_backbone.packed import Packed, Segments

PROGRAMS = 264  # enough to fill a large GPU: two for each of 132 multiprocessors
SHORTEST, LONGEST = 512, 8192  # tokens of a segment


class Tiles(NamedTuple):
    """Tokens of a chunk, value columns of a program, warps, pipeline stages."""

    chunk: int
    values: int
    warps: int
    stages: int


# By head dim; the first entry for bfloat16, the second for float32 operands.
FORWARD = {
    32: (Tiles(64, 32, 4, 2), Tiles(32, 32, 4, 1)),
    64: (Tiles(64, 64, 4, 2), Tiles(32, 32, 4, 1)),
    128: (Tiles(64, 128, 8, 2), Tiles(32, 32, 8, 1)),
}
BACKWARD = {
    32: (Tiles(64, 32, 4, 2), Tiles(32, 32, 4, 1)),
    64: (Tiles(64, 64, 4, 2), Tiles(32, 64, 8, 1)),
    128: (Tiles(64, 128, 8, 1), Tiles(16, 128, 8, 1)),
}


def lightning_attention(qkv: Tensor, slopes: Tensor, packed: Packed, states: Tensor | None = None) -> Tensor:
    """Same as `reference.lightning_attention`, but differentiable only without `states`."""
    qkv = qkv.contiguous()
    if torch.is_grad_enabled() and qkv.requires_grad:
        return _LightningAttention.apply(qkv, slopes, packed)
    return forward(qkv, slopes, packed, states)[0]


class _LightningAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, slopes: Tensor, packed: Packed) -> Tensor:
        out, cells = forward(qkv, slopes, packed, None)
        ctx.save_for_backward(qkv, slopes, cells)
        ctx.packed = packed
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        qkv, slopes, cells = ctx.saved_tensors
        return backward(grad.contiguous(), qkv, slopes, ctx.packed, cells), None, None


def segments_for(packed: Packed, heads: int) -> Segments:
    """Segments as long as they may be while there are enough of them to fill the GPU."""
    share = packed.tokens * heads // PROGRAMS
    return packed.segments(min(max(1 << share.bit_length() - 1 if share else 0, SHORTEST), LONGEST))


def forward(qkv: Tensor, slopes: Tensor, packed: Packed, states: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The output [T, heads * d], and the states before the segments that have a cell, float32 [cells, heads, d, d]."""
    heads = len(slopes)
    d = qkv.shape[1] // (3 * heads)
    tiles, options = _options(FORWARD[d], heads, d, qkv.dtype)
    options["BV"] = tiles.values
    segments, blocks = segments_for(packed, heads), d // tiles.values
    out = qkv.new_empty(qkv.shape[0], heads * d)
    cells = None
    if segments.cells:
        cells = qkv.new_empty(segments.cells, heads, d, d, dtype=torch.float32)
        gain_kernel[(segments.cells * heads * blocks,)](qkv, cells, slopes, segments.table, **options)
        _scan(cells, states, slopes, packed, segments, reverse=False)
    walk_kernel[(segments.count * heads * blocks,)](
        qkv, out, states, packed.slots, cells, slopes, segments.table, **options
    )
    return out, cells


def backward(grad: Tensor, qkv: Tensor, slopes: Tensor, packed: Packed, cells: Tensor | None) -> Tensor:
    """The gradient [T, heads * 3 * d] of `qkv` from that of the output and the forward's `cells`."""
    heads = len(slopes)
    d = qkv.shape[1] // (3 * heads)
    tiles, options = _options(BACKWARD[d], heads, d, qkv.dtype)
    segments, after = segments_for(packed, heads), None
    dqkv = torch.empty_like(qkv)
    if cells is not None:
        after = torch.empty_like(cells)
        reverse_gain_kernel[(segments.cells * heads * (d // tiles.values),)](
            qkv, grad, after, slopes, segments.table, BV=tiles.values, **options
        )
        _scan(after, None, slopes, packed, segments, reverse=True)
    walk_back_kernel[(segments.count * heads * 2,)](qkv, grad, dqkv, cells, after, slopes, segments.table, **options)
    return dqkv


def _scan(
    cells: Tensor, states: Tensor | None, slopes: Tensor, packed: Packed, segments: Segments, *, reverse: bool
) -> None:
    heads, d = cells.shape[1], cells.shape[2]
    block = 512
    grid = (segments.chained * heads * (d * d // block),)
    scan_kernel[grid](
        cells, states, packed.slots, slopes, segments.chains,
        H=heads, D=d, SIZE=segments.size, REVERSE=reverse, BLOCK=block, num_warps=4,
    )  # fmt: skip


def _options(choices: tuple[Tiles, Tiles], heads: int, d: int, dtype: torch.dtype) -> tuple[Tiles, dict[str, Any]]:
    half = dtype == torch.bfloat16
    # float16 could not hold a state, so its products are tf32: as many bits, and the range of float32.
    exact = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    tiles = choices[0] if half else choices[1]
    return tiles, {
        "H": heads,
        "D": d,
        "C": tiles.chunk,
        "FAST": half,
        "OPERAND": tl.bfloat16 if half else tl.float32,
        "PRECISION": "ieee" if exact else "tf32",
        "STAGES": tiles.stages,
        "num_warps": tiles.warps,
    }
