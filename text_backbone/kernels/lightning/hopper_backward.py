"""The backward walk of lightning attention for Hopper's tensor cores: bfloat16, head dimension 128.

What `backward.walk_back_kernel` computes, with all columns of a result in one program, built like `hopper.walk_kernel`:
warps of their own turn projections into operands ahead of the warps that multiply. With m the middle of a chunk of C
tokens, i a token's place in it, f_i = exp(-s (i - m)) and x'_i = f_i x_i, x"_i = x_i / f_i, each result is, but for the
derivative of SiLU,

    sum over j of (a_i . b_j) c_j + a_i T        T = exp(-s C) (T + sum over j of b_j^T c_j)

          a    b    c    over      T at first
    dq    do   v    k"   j <= i    exp(-s (1 + m)) S^T, S before the first chunk; and all of it times f_i
    dk    v"   do   q'   j >= i    exp(-s (n - m)) R^T, R after the last chunk, of n tokens
    dv    k"   q'   do   j >= i    exp(-s (n - m)) R

The programs of dk and dv of a head are neighbours that read the same tokens at the same time: the second to ask finds
them in the L2 cache. So each can walk a long segment, and a sequence of many heads needs no states in between.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_wait

from text_backbone.kernels.lightning.hopper import _activate, _barrier, _copy, _half_and_tanh

HELPERS, REGISTERS = 8, 72  # as in `hopper`


@gluon.jit
def _silu_slope(x):
    """The derivative of SiLU at a bfloat16 tile, float32."""
    half, tanh = _half_and_tanh(x)
    return (half * (1.0 - tanh * tanh) + tanh) * 0.5 + 0.5


@gluon.jit
def _fetch(
    qs, ks, vs, ds, stage, qkv, grad, fused, plain, n, live,
    H: gl.constexpr, D: gl.constexpr, C: gl.constexpr,
):  # fmt: skip
    """Start copying chunk n: q, k, v and the gradient. Rows that are not `live` become zero."""
    source = qkv + n.to(gl.int64) * (C * 3 * H * D)
    _copy(qs.index(stage), source + fused, live)
    _copy(ks.index(stage), source + D + fused, live)
    _copy(vs.index(stage), source + 2 * D + fused, live)
    _copy(ds.index(stage), grad + n.to(gl.int64) * (C * H * D) + plain, live)
    async_copy.commit_group()


@gluon.jit
def _prepare_part(
    qs, ks, vs, ds, first, second, ready, free, qkv, grad, length, rate,
    REVERSE: gl.constexpr, H: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Bring chunk after chunk to shared memory, two of the tiles as SiLU times a factor."""
    TILE: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [gl.num_warps(), 1], [1, 0])
    C: gl.constexpr = qs.shape[1]
    rows, columns = gl.arange(0, C, gl.SliceLayout(1, TILE)), gl.arange(0, D, gl.SliceLayout(0, TILE))
    fused = rows[:, None] * (3 * H * D) + columns[None, :]
    plain = rows[:, None] * (H * D) + columns[None, :]
    chunks = gl.cdiv(length, C)
    for i in gl.static_range(STAGES - 1):
        n = chunks - 1 - i if REVERSE else gl.to_tensor(i)
        live = (rows < gl.where(i < chunks, length - n * C, 0))[:, None]
        _fetch(qs, ks, vs, ds, i, qkv, grad, fused, plain, n, live, H, D, C)
    fading = gl.exp(-rate * (rows - C // 2))[:, None]
    growing = gl.exp(rate * (rows - C // 2))[:, None]
    for i in range(chunks):
        stage = i % STAGES
        async_copy.wait_group(STAGES - 2)
        _activate(first.index(stage), growing if REVERSE else None, TILE)
        _activate(second.index(stage), fading if REVERSE else growing, TILE)
        fence_async_shared()
        _barrier()
        mbarrier.arrive(ready.index(stage), count=1)
        ahead = i + STAGES - 1
        target = ahead % STAGES  # where chunk i - 1 has been
        mbarrier.wait(free.index(target), (ahead // STAGES + 1) & 1)
        n = chunks - 1 - ahead if REVERSE else ahead
        live = (rows < gl.where(ahead < chunks, length - n * C, 0))[:, None]
        _fetch(qs, ks, vs, ds, target, qkv, grad, fused, plain, n, live, H, D, C)
    async_copy.wait_group(0)


@gluon.jit
def _prepare(
    qs, ks, vs, ds, ready, free, qkv, grad, length, rate, part,
    H: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The table above, a line each."""
    if part == 0:
        _prepare_part(qs, ks, vs, ds, vs, ks, ready, free, qkv, grad, length, rate, False, H, D, STAGES)
    elif part == 1:
        _prepare_part(qs, ks, vs, ds, vs, qs, ready, free, qkv, grad, length, rate, True, H, D, STAGES)
    else:
        _prepare_part(qs, ks, vs, ds, ks, qs, ready, free, qkv, grad, length, rate, True, H, D, STAGES)


@gluon.jit
def _multiply_part(
    queries, keys, values, inputs, ready, free, weights, state, result, length, rate,
    REVERSE: gl.constexpr, H: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Write the result of every chunk from a, b, c, what SiLU was taken of, and T, transposed."""
    WARPS: gl.constexpr = gl.num_warps()
    C: gl.constexpr = queries.shape[1]
    TILE: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [WARPS, 1], [1, 0])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, C, 16])
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, WARPS // 4], [16, 4 * C // WARPS, 16])
    rows, columns = gl.arange(0, C, gl.SliceLayout(1, TILE)), gl.arange(0, D, gl.SliceLayout(0, TILE))
    offsets = rows[:, None] * (3 * H * D) + columns[None, :]
    key, query = gl.arange(0, C, gl.SliceLayout(1, SCORES)), gl.arange(0, C, gl.SliceLayout(0, SCORES))
    ages = key[:, None] - query[None, :] if REVERSE else query[None, :] - key[:, None]
    fading = gl.exp(-rate * (gl.arange(0, C, gl.SliceLayout(0, OUT)) - C // 2))[None, :]
    chunks = gl.cdiv(length, C)
    for i in range(chunks):
        stage = i % STAGES
        n = chunks - 1 - i if REVERSE else i
        before = gl.convert_layout(state.to(gl.bfloat16), gl.DotOperandLayout(0, OUT, 2))
        mbarrier.wait(ready.index(stage), i // STAGES & 1)
        a, b, c = queries.index(stage).permute((1, 0)), keys.index(stage), values.index(stage).permute((1, 0))
        x = inputs.index(stage)
        scores = gl.zeros([C, C], gl.float32, SCORES)
        scores = warpgroup_mma(b, a, scores, use_acc=False, is_async=True)
        o = gl.zeros([D, C], gl.float32, OUT)
        o = warpgroup_mma(before, a, o, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(1, [scores])
        weights.store(gl.where(ages >= 0, scores, 0.0).to(gl.bfloat16))
        fence_async_shared()
        _barrier()
        o = warpgroup_mma(c, weights, o, is_async=True)
        state = warpgroup_mma(c, b, state, is_async=True)
        slope = _silu_slope(x.permute((1, 0)).load(OUT))
        if not REVERSE:
            slope = slope * fading
        o = warpgroup_mma_wait(1, [o])
        x.permute((1, 0)).store((o * slope).to(gl.bfloat16))
        _barrier()
        live = (rows < length - n * C)[:, None]
        place = result + n.to(gl.int64) * (C * 3 * H * D) + offsets  # type: ignore[union-attr]
        gl.store(place, x.load(TILE), mask=live)
        state = warpgroup_mma_wait(0, [state])
        _barrier()
        mbarrier.arrive(free.index(stage), count=1)
        state = state * gl.exp(-rate * C)


@gluon.jit
def _multiply(
    qs, ks, vs, ds, ready, free, weights, state, result, length, rate, part,
    H: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The table above, a line each."""
    if part == 0:
        _multiply_part(ds, vs, ks, qs, ready, free, weights, state, result, length, rate, False, H, D, STAGES)
    elif part == 1:
        _multiply_part(vs, ds, qs, ks, ready, free, weights, state, result + D, length, rate, True, H, D, STAGES)
    else:
        _multiply_part(ks, qs, ds, vs, ready, free, weights, state, result + 2 * D, length, rate, True, H, D, STAGES)


@gluon.jit(do_not_specialize=["pairs"])
def walk_back_kernel(
    qkv, grad, dqkv, before, after, slopes, table, back, pairs,
    H: gl.constexpr, D: gl.constexpr, C: gl.constexpr, STAGES: gl.constexpr,
    HELPERS: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """dqkv [T, 3 * H * D]: the first 2 `pairs` programs write dk and dv of the segments of `back`, then dq of `table`.

    before, after: [., H, D, D], S before the first piece of each segment in `table`, R after the last of each in
    `back`, if they belong to a chain; others start from zero.
    """
    STATE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, D, 16])
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    qs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, D], SHARED)
    ks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, D], SHARED)
    vs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, D], SHARED)
    ds = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, D], SHARED)
    weights = gl.allocate_shared_memory(gl.bfloat16, [C, C], SHARED)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(free.index(i), count=1)
    gdc_wait()
    pid = gl.program_id(0)
    if pid < 2 * pairs:
        part, index, row = 1 + pid % 2, pid // 2, back
    else:
        part, index, row = gl.to_tensor(0), pid - 2 * pairs, table
    head = index % H
    row += (index // H).to(gl.int64) * 6
    start, length = gl.load(row), gl.load(row + 1).to(gl.int32)
    rate = gl.load(slopes + head)
    mine, others = gl.arange(0, D, gl.SliceLayout(1, STATE)), gl.arange(0, D, gl.SliceLayout(0, STATE))
    state = gl.zeros([D, D], gl.float32, STATE)  # T, transposed
    if part == 0:
        cell = gl.load(row + 3)
        if cell >= 0:
            state = gl.load(before + (cell * H + head) * (D * D) + (mine[:, None] * D + others[None, :]))
        state = state * gl.exp(-rate * (1 + C // 2))
    else:
        cell = gl.load(row + 4)
        if cell >= 0:
            turned = part == 2
            places = mine[:, None] * gl.where(turned, 1, D) + others[None, :] * gl.where(turned, D, 1)
            state = gl.load(after + (cell * H + head) * (D * D) + places)
        state = state * gl.exp(-rate * ((length - 1) % C + 1 - C // 2))
    source, target = qkv + start * (3 * H * D) + head * (3 * D), dqkv + start * (3 * H * D) + head * (3 * D)
    gradient = grad + start * (H * D) + head * D
    gl.warp_specialize(
        [
            (_multiply, (qs, ks, vs, ds, ready, free, weights, state, target, length, rate, part, H, D, STAGES)),
            (_prepare, (qs, ks, vs, ds, ready, free, source, gradient, length, rate, part, H, D, STAGES)),
        ],
        [HELPERS],
        [REGISTERS],
    )
