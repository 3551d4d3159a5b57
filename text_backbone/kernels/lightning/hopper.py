"""The walk of lightning attention for Hopper's tensor cores: bfloat16, head dimension 128.

What `forward.walk_kernel` computes, with all of a head's value columns in one program. SiLU takes as long as the
products or the memory do, so it has warps of its own, which run ahead of those that multiply: a division of work that
is said in Gluon, below Triton.

Decays are factors of q and k, not of scores and outputs. With m the middle of a chunk of C tokens, i a token's place in
it, and T = exp(s (C - 1 - m)) S the scaled state after the chunk before:

    q'_i = exp(-s (i - m)) q_i        k'_i = exp(s (i - m)) k_i
    o_i = sum over j <= i of (q'_i . k'_j) v_j + q'_i (exp(-s C) T)        T = exp(-s C) T + sum over j of k'_j^T v_j

The factors stay between exp(-s C / 2) and exp(s C / 2), which float32 and bfloat16 hold, as they do exp(-s C), for
slopes up to `STEEPEST`.
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

from text_backbone.kernels.lightning.forward import HALF_AND_TANH

STEEPEST = 1.25  # slope; the model's are at most 1. Beyond 1.36 exp(-s C) would be no normal float32 any more
HELPERS, REGISTERS = 8, 72  # warps that prepare what the others multiply, and what a thread of them may use

# Later versions of Triton renamed both.
_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
_copy = async_copy.async_load if hasattr(async_copy, "async_load") else async_copy.async_copy_global_to_shared


@gluon.jit
def _half_and_tanh(x):
    """x / 2 and tanh(x / 2), float32, of a bfloat16 tile."""
    return gl.inline_asm_elementwise(
        HALF_AND_TANH,
        "=f,=f,=f,=f,r", [x], dtype=(gl.float32, gl.float32), is_pure=True, pack=2,
    )  # fmt: skip


@gluon.jit
def _activate(tile, factor, TILE: gl.constexpr):
    """SiLU of a tile, times `factor` unless that is None, in its place in shared memory."""
    half, tanh = _half_and_tanh(tile.load(TILE))
    if factor is not None:
        half = half * factor
    tile.store((half * tanh + half).to(gl.bfloat16))


@gluon.jit
def _fetch(qs, ks, vs, stage, source, offsets, rows, filled, D: gl.constexpr):
    """Start copying a chunk; rows from `filled` on become zero."""
    live = (rows < filled)[:, None]
    _copy(qs.index(stage), source + offsets, live)
    _copy(ks.index(stage), source + D + offsets, live)
    _copy(vs.index(stage), source + 2 * D + offsets, live)
    async_copy.commit_group()


@gluon.jit
def _prepare(
    qs, ks, vs, ready, free, source, length, rate,
    H: gl.constexpr, D: gl.constexpr, C: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Bring chunk after chunk to shared memory as q', k' and SiLU(v)."""
    TILE: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [gl.num_warps(), 1], [1, 0])
    STEP: gl.constexpr = C * 3 * H * D
    rows, columns = gl.arange(0, C, gl.SliceLayout(1, TILE)), gl.arange(0, D, gl.SliceLayout(0, TILE))
    offsets = rows[:, None] * (3 * H * D) + columns[None, :]
    for i in gl.static_range(STAGES - 1):
        _fetch(qs, ks, vs, i, source + i * STEP, offsets, rows, length - i * C, D)
    fading = gl.exp(-rate * (rows - C // 2))[:, None]
    growing = gl.exp(rate * (rows - C // 2))[:, None]
    for i in range(gl.cdiv(length, C)):
        stage = i % STAGES
        async_copy.wait_group(STAGES - 2)
        _activate(qs.index(stage), fading, TILE)
        _activate(ks.index(stage), growing, TILE)
        _activate(vs.index(stage), None, TILE)
        fence_async_shared()
        _barrier()
        mbarrier.arrive(ready.index(stage), count=1)
        ahead = i + STAGES - 1
        target = ahead % STAGES  # where chunk i - 1 has been
        mbarrier.wait(free.index(target), (ahead // STAGES + 1) & 1)
        _fetch(qs, ks, vs, target, source + ahead.to(gl.int64) * STEP, offsets, rows, length - ahead * C, D)
    async_copy.wait_group(0)


@gluon.jit
def _multiply(
    qs, ks, vs, ready, free, weights, result, state, target, length, rate,
    H: gl.constexpr, D: gl.constexpr, C: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Write the output of every chunk; returns T after the last."""
    WARPS: gl.constexpr = gl.num_warps()
    TILE: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [WARPS, 1], [1, 0])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, C, 16])
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, WARPS // 4], [16, 4 * C // WARPS, 16])
    STEP: gl.constexpr = C * H * D
    rows, columns = gl.arange(0, C, gl.SliceLayout(1, TILE)), gl.arange(0, D, gl.SliceLayout(0, TILE))
    offsets = rows[:, None] * (H * D) + columns[None, :]
    key, query = gl.arange(0, C, gl.SliceLayout(1, SCORES)), gl.arange(0, C, gl.SliceLayout(0, SCORES))
    causal = key[:, None] <= query[None, :]
    chunks = gl.cdiv(length, C)
    for i in range(chunks):
        stage = i % STAGES
        before = gl.convert_layout(state.to(gl.bfloat16), gl.DotOperandLayout(0, OUT, 2))
        mbarrier.wait(ready.index(stage), i // STAGES & 1)
        q, k, v = qs.index(stage).permute((1, 0)), ks.index(stage), vs.index(stage).permute((1, 0))
        scores = gl.zeros([C, C], gl.float32, SCORES)
        scores = warpgroup_mma(k, q, scores, use_acc=False, is_async=True)
        o = gl.zeros([D, C], gl.float32, OUT)
        o = warpgroup_mma(before, q, o, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(1, [scores])
        weights.store(gl.where(causal, scores, 0.0).to(gl.bfloat16))
        fence_async_shared()
        _barrier()
        o = warpgroup_mma(v, weights, o, is_async=True)
        state = warpgroup_mma(v, k, state, is_async=True)
        o = warpgroup_mma_wait(1, [o])
        result.permute((1, 0)).store(o.to(gl.bfloat16))
        _barrier()
        live = (rows < length - i * C)[:, None]
        gl.store(target + i.to(gl.int64) * STEP + offsets, result.load(TILE), mask=live)  # type: ignore[attr-defined]
        state = warpgroup_mma_wait(0, [state])
        _barrier()
        mbarrier.arrive(free.index(stage), count=1)
        if i + 1 < chunks:
            state = state * gl.exp(-rate * C)
    return (state,)  # a tuple, as Triton 3.6 asks for


@gluon.jit
def walk_kernel(
    qkv, out, states, slots, cells, slopes, table,
    H: gl.constexpr, D: gl.constexpr, C: gl.constexpr, STAGES: gl.constexpr,
    HELPERS: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """Same as `forward.walk_kernel`, for one head of a segment; `states` is float32."""
    STATE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, D, 16])
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    qs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, D], SHARED)
    ks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, D], SHARED)
    vs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, D], SHARED)
    weights = gl.allocate_shared_memory(gl.bfloat16, [C, C], SHARED)
    result = gl.allocate_shared_memory(gl.bfloat16, [C, D], SHARED)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(free.index(i), count=1)
    gdc_wait()  # it is launched early, see `overlap`
    head = gl.program_id(0) % H
    row = table + (gl.program_id(0) // H).to(gl.int64) * 6
    start, length, cell = gl.load(row), gl.load(row + 1).to(gl.int32), gl.load(row + 3)
    rate = gl.load(slopes + head)
    values, keys = gl.arange(0, D, gl.SliceLayout(1, STATE)), gl.arange(0, D, gl.SliceLayout(0, STATE))
    state = gl.zeros([D, D], gl.float32, STATE)  # transposed: [values, keys]
    if cell >= 0:
        state = gl.load(cells + (cell * H + head) * (D * D) + (keys[None, :] * D + values[:, None]))
    elif states is not None:
        slot = gl.load(slots + gl.load(row + 2))
        state = gl.load(states + (slot * H + head) * (D * D) + (keys[None, :] * D + values[:, None]))
    source, target = qkv + start * (3 * H * D) + head * (3 * D), out + start * (H * D) + head * D
    state = state * gl.exp(-rate * (1 + C // 2))
    (state,) = gl.warp_specialize(
        [
            (_multiply, (qs, ks, vs, ready, free, weights, result, state, target, length, rate, H, D, C, STAGES)),
            (_prepare, (qs, ks, vs, ready, free, source, length, rate, H, D, C, STAGES)),
        ],
        [HELPERS],
        [REGISTERS],
    )
    if states is not None:
        last = gl.load(row + 5).to(gl.int32)
        if last != 0:
            slot = gl.load(slots + gl.load(row + 2))
            state = state * gl.exp(-rate * ((length - 1) % C - C // 2))
            # Times `last`, which is 1, or the addresses would be kept in registers from the first state's on.
            gl.store(states + (slot * H + head) * (D * D) + (keys[None, :] * (D * last) + values[:, None]), state)
