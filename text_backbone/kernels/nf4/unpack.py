"""NF4 matrices written out in 16 or 32 bits, to the bit as the reference does, for products of many rows."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def unpack_kernel(
    codes, scales, nested, offset, levels, steps, out, blocks, nested_blocks, first, stride,
    ACROSS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """BLOCKS blocks of 64 values of matrix `program_id(1)`, whose rows have ACROSS blocks."""
    matrix = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < blocks
    place = first + block // ACROSS * stride + block % ACROSS
    code = tl.load(scales + matrix * blocks + block, mask=inside, other=0).to(tl.int32)
    step = tl.load(nested + matrix * nested_blocks + place // 256, mask=inside, other=0.0)
    scale = (tl.load(steps + code) * step + tl.load(offset + matrix))[:, None]
    at = (matrix * blocks + block)[:, None] * 32 + tl.arange(0, 32)[None, :]
    byte = tl.load(codes + at, mask=inside[:, None], other=0, eviction_policy="evict_first").to(tl.int32)
    left, right = tl.load(levels + (byte >> 4)) * scale, tl.load(levels + (byte & 15)) * scale
    values = tl.reshape(tl.join(left, right), [BLOCKS, 64]).to(out.dtype.element_ty)
    at = (matrix * blocks + block)[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(out + at, values, mask=inside[:, None])
