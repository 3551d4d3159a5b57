"""Products with one row-scaled matrix, in Triton: what `reference.linear` specifies.

Few rows are a matter of reading the codes once, and many of keeping the tensor cores busy: for those int8 is unpacked
to 16 bits first, which costs little beside the product, and e4m3 goes to the tensor cores as it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from text_backbone.kernels.moe.configs import Tile, fit, fit_inner
from text_backbone.kernels.moe.grouped import linear_tile, place_tile, precision
from text_backbone.kernels.moe.operands import Scales, readable
from text_backbone.kernels.overlap import early, wait
from text_backbone.kernels.row_scaled.configs import VECTOR, Vector, dense_tile, unpacks
from text_backbone.kernels.row_scaled.rounding import row_codes


@triton.jit(do_not_specialize=["rows"])
def _vector_kernel(
    x, weight, scales, row_scales, y, rows,
    K: tl.constexpr, N: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """y[row] = weight x[row] for BN units of one row; programs of the same weights start next to each other."""
    wait(EARLY)
    row = (tl.program_id(0) % rows).to(tl.int64)
    unit = tl.program_id(0) // rows * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    ws = weight + unit.to(tl.int64)[:, None] * K + depth[None, :]
    total = tl.zeros([BN, BK], tl.float32)
    for k in tl.range(0, K, BK, num_stages=STAGES):
        deep = k + depth < K
        some = tl.load(ws + k, mask=(unit < N)[:, None] & deep[None, :], other=0.0).to(tl.float32)
        total += some * tl.load(x + row * K + k + depth, mask=deep, other=0.0).to(tl.float32)[None, :]
    out = tl.sum(total, 1) * tl.load(scales + unit, mask=unit < N, other=0.0)
    if row_scales is not None:
        out *= tl.load(row_scales + row)
    tl.store(y + row * N + unit, out.to(y.dtype.element_ty), mask=unit < N)


@triton.jit(do_not_specialize=["rows"])
def _matrix_kernel(
    x, weight, scales, row_scales, y, rows,
    K: tl.constexpr, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    SWAP: tl.constexpr, TMA: tl.constexpr, PACK: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """y = x weight^T, BM rows by BN units; as an expert's product in `grouped`, with one expert."""
    wait(EARLY)
    ACROSS: tl.constexpr = (N + BN - 1) // BN
    m, n = place_tile(tl.program_id(0), rows, BM, ACROSS, GROUP)
    expert = tl.program_id(1)  # 0
    linear_tile(
        x, weight, scales, row_scales, y, expert, m * BM, rows, n,
        K, N, False, BM, BN, BK, SWAP, TMA, PACK, PRECISION,
    )  # fmt: skip


@triton.jit
def _unpack_kernel(codes, scales, out, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """out[row] = codes[row] * scales[row], BLOCK columns."""
    wait(EARLY)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    some = tl.load(codes + row * COLUMNS + column, mask=column < COLUMNS, other=0).to(tl.float32)
    tl.store(
        out + row * COLUMNS + column, (some * tl.load(scales + row)).to(out.dtype.element_ty), mask=column < COLUMNS
    )


def linear(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """Same as `reference.linear`, without gradients."""
    tokens = len(x)
    x, codes, scales = x.contiguous(), codes.contiguous(), scales.contiguous()
    if not x.numel() or not codes.numel():
        return x.new_zeros(tokens, len(codes))
    if unpacks(tokens, x.dtype, codes.dtype):
        return F.linear(x, unpack(codes, scales, x.dtype))
    rows, by = (x, Scales(scales)) if codes.dtype == torch.int8 else _rounded(x, scales)
    if tokens <= VECTOR.most:
        return vector(rows, codes, by, VECTOR)
    return matrix(rows, codes, by, dense_tile(tokens, len(codes), x.dtype, codes.dtype, x.device))


def _rounded(x: Tensor, scales: Tensor) -> tuple[Tensor, Scales]:
    codes, row_scales = row_codes(x)
    return codes, Scales(scales, row_scales, x.dtype)


def vector(x: Tensor, codes: Tensor, scales: Scales, tile: Vector) -> Tensor:
    """[T, N] from x [T, K] and codes [N, K], row by row of x without tensor cores."""
    (tokens, k), n = x.shape, len(codes)
    y = x.new_empty(tokens, n, dtype=scales.out or x.dtype)
    _vector_kernel[(tokens * triton.cdiv(n, tile.n),)](
        x, codes, scales.weight, scales.x, y, tokens, k, n, tile.n, min(tile.k, triton.next_power_of_2(k)), tile.stages,
        num_warps=tile.warps, **early(x.device),
    )  # fmt: skip
    return y


def matrix(x: Tensor, codes: Tensor, scales: Scales, tile: Tile) -> Tensor:
    """[T, N] from x [T, K] and codes [N, K] on the tensor cores."""
    (tokens, k), n = x.shape, len(codes)
    y = x.new_empty(tokens, n, dtype=scales.out or x.dtype)
    bn, bk = fit(n, tile.n), fit_inner(k, tile.k)
    weight, tma, pack = readable(codes[None], [1, bn, bk], x, tile)
    _matrix_kernel[triton.cdiv(tokens, tile.m) * triton.cdiv(n, bn), 1](
        x, weight, scales.weight, scales.x, y, tokens,
        k, n, tile.m, bn, bk, tile.group, tile.swap, tma, pack, precision(x.dtype),
        num_warps=tile.warps, num_stages=tile.stages, **early(x.device),
    )  # fmt: skip
    return y


def unpack(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, K] in `dtype`: the same as `reference.values`, in one pass."""
    n, k = codes.shape
    out = torch.empty_like(codes, dtype=dtype)
    block = min(4096, triton.next_power_of_2(k))
    _unpack_kernel[n, triton.cdiv(k, block)](codes, scales, out, k, block, num_warps=4, **early(codes.device))
    return out
