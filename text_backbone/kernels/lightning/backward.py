"""Backward kernel of lightning attention: from the gradient of the output to that of the fused projection.

    dq_t = do_t S_t^T        dk_j = v_j R_j^T        dv_j = k_j R_j        R_j = exp(-s) R_{j+1} + q_j^T do_j

Each has the form of the output itself, o_t = q_t S_t, with other operands, and the last two run from the last token to
the first. S before the segments is the forward's, R after them comes from the same kernels run in reverse.
"""

from __future__ import annotations

import triton
import triton.language as tl

from text_backbone.kernels.lightning.forward import load_cell, walk


@triton.jit
def walk_back_kernel(
    qkv, grad, dqkv, before, after, slopes, table,
    H: tl.constexpr, D: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dqkv [T, 3 * H * D]: of three programs one writes dq, one dk and one dv, BV columns of a segment and head.

    before, after: [., H, D, D], S before the first and R after the last piece of each segment of a chain; others start
    from zero.
    """
    BLOCKS: tl.constexpr = D // BV
    HD: tl.constexpr = H * D
    pid = tl.program_id(0)
    part, block, head = pid % 3, pid // 3 % BLOCKS, pid // (3 * BLOCKS) % H
    row = table + (pid // (3 * H * BLOCKS)).to(tl.int64) * 6
    start, length, first, final = tl.load(row), tl.load(row + 1).to(tl.int32), tl.load(row + 3), tl.load(row + 4)
    rate = tl.load(slopes + head)
    q = qkv + start * (3 * HD) + head * (3 * D)
    k, v = q + D, q + 2 * D
    do = grad + start * HD + head * D
    dq = dqkv + start * (3 * HD) + head * (3 * D) + block * BV
    mine = block * BV
    if part == 0:
        state = load_cell(before, first, block, head, False, H, D, BV)
        walk(
            state, do, v, k + mine, q + mine, dq, rate, length, "a", False,
            HD, D, BV, C, FAST, OPERAND, PRECISION, STAGES,
        )  # fmt: skip
    elif part == 1:
        state = load_cell(after, final, block, head, False, H, D, BV)
        walk(
            state, v, do, q + mine, k + mine, dq + D, rate, length, "b", True,
            HD, D, BV, C, FAST, OPERAND, PRECISION, STAGES,
        )  # fmt: skip
    else:
        state = load_cell(after, final, block, head, True, H, D, BV)
        walk(
            state, k, q, do + mine, v + mine, dq + 2 * D, rate, length, "c", True,
            HD, D, BV, C, FAST, OPERAND, PRECISION, STAGES,
        )  # fmt: skip
