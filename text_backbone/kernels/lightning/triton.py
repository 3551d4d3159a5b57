"""Lightning attention on Triton kernels: when they run, with what tiles, and the autograd function around them."""

from __future__ import annotations

import warnings
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from text_backbone.kernels.device import HOPPER as HOPPER_GPU
from text_backbone.kernels.device import capability, float32_precision
from text_backbone.kernels.lightning.backward import walk_back_kernel
from text_backbone.kernels.lightning.configs import (
    BACKWARD,
    CANDIDATES,
    GAIN,
    HOPPER,
    HOPPER_BACKWARD,
    WALK,
    Tiles,
    pick,
)
from text_backbone.kernels.lightning.decode import decode
from text_backbone.kernels.lightning.forward import gain_kernel, scan_kernel, sum_kernel, walk_kernel
from text_backbone.kernels.lightning.link import Link
from text_backbone.kernels.lightning.segments import Segments, cut
from text_backbone.kernels.overlap import early
from text_backbone.packed import Packed

__all__ = ["BACKWARD", "CANDIDATES", "GAIN", "WALK", "backward", "decode", "forward", "lightning_attention"]

SHORTEST = 512  # tokens of a piece of a sequence; shorter ones would move more state than tokens
FEW = 2048  # tokens that are not worth the two more launches, if whole sequences make BUSY programs
BUSY = 128  # programs, or half of them if each has half of the tokens, and so on
SCAN_BLOCK = 512  # elements of a state in one program
SUM_ROWS = 8  # states that it adds at a time
HANDFUL = 64  # tokens whose rounding would show, as few of them average out; in bfloat16 they are multiplied as float16


def lightning_attention(
    qkv: Tensor, slopes: Tensor, packed: Packed, states: Tensor | None = None, link: Link | None = None
) -> Tensor:
    """Same as `reference.lightning_attention`, but differentiable only without `states`."""
    qkv = qkv.contiguous()
    if torch.is_grad_enabled() and qkv.requires_grad:
        return _LightningAttention.apply(qkv, slopes, packed, link)
    if packed.longest == 1 and states is not None and link is None:
        return decode(qkv, slopes, packed, states)
    return forward(qkv, slopes, packed, states, link=link)[0]


class _LightningAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, slopes: Tensor, packed: Packed, link: Link | None) -> Tensor:
        out, cells, segments = forward(qkv, slopes, packed, None, link=link)
        ctx.save_for_backward(qkv, slopes, cells)
        ctx.packed, ctx.segments = packed, segments
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        qkv, slopes, cells = ctx.saved_tensors
        return backward(grad.contiguous(), qkv, slopes, ctx.packed, cells, ctx.segments), None, None, None


def segments_for(packed: Packed, heads: int, d: int, walk: Tiles, gain: Tiles, link: Link | None = None) -> Segments:
    """Segments and pieces as long as they may be while there are enough of them to fill the GPU."""
    whole = max(1 << (packed.longest - 1).bit_length(), SHORTEST)  # longer segments would all be the same
    if whole <= FEW and packed.sequences * heads * d * FEW >= BUSY * walk.values * whole:
        return packed.memo(cut, whole, whole, link)
    size, piece = (
        min(max(_power_of_two(packed.tokens * heads * d // (tiles.values * tiles.programs)), SHORTEST), whole)
        for tiles in (walk, gain)
    )
    return packed.memo(cut, size, min(piece, size), link)


def forward(
    qkv: Tensor,
    slopes: Tensor,
    packed: Packed,
    states: Tensor | None,
    walk: Tiles | None = None,
    gain: Tiles | None = None,
    link: Link | None = None,
) -> tuple[Tensor, Tensor | None, Segments]:
    """The output [T, heads * d], the states before pieces of segments, and the segments, which the backward needs.

    The states, float32 [cells, heads, d, d], are None where no sequence is longer than a segment. `walk` and `gain`
    are the tiles to use instead of the tables'; with `walk` it is the kernel for every GPU that runs. With a `link` the
    `states` are for its exchange alone.
    """
    heads = len(slopes)
    d = qkv.shape[1] // (3 * heads)
    dtype = torch.float16 if qkv.dtype == torch.bfloat16 and packed.tokens <= HANDFUL else qkv.dtype
    hopper = _hopper(qkv, slopes, d, states) if walk is None and dtype == torch.bfloat16 else None
    walk = walk or (HOPPER if hopper else pick(WALK, d, dtype, qkv.device))
    gain = gain or pick(GAIN, d, qkv.dtype, qkv.device)
    segments = segments_for(packed, heads, d, walk, gain, link)
    out = qkv.new_empty(qkv.shape[0], heads * d)
    cells = None
    if segments.cells:
        cells = _states_between(qkv, None, states, slopes, packed, segments, gain)
    grid = (segments.count * heads * (d // walk.values),)
    pointers = qkv, out, None if link else states, packed.slots, _pointer(cells, slopes), slopes, segments.table
    if hopper:
        module = hopper.forward
        module.walk_kernel[grid](
            *pointers, heads, d, walk.chunk, walk.stages, module.HELPERS, module.REGISTERS,
            num_warps=walk.warps, launch_pdl=True,
        )  # fmt: skip
    else:
        walk_kernel[grid](*pointers, **_options(walk, heads, d, dtype))
    return out, cells, segments


class _Hopper(NamedTuple):
    """The modules of the kernels for Hopper GPUs."""

    forward: ModuleType
    backward: ModuleType


def _hopper(qkv: Tensor, slopes: Tensor, d: int, states: Tensor | None) -> _Hopper | None:
    """The kernels for Hopper GPUs, if they can do this."""
    if qkv.dtype != torch.bfloat16 or d != 128 or not qkv.is_cuda or qkv.data_ptr() % 16:
        return None  # rows are copied 16 bytes at a time
    if states is not None and states.dtype != torch.float32:
        return None
    modules = _hopper_modules(qkv.device)
    if modules and slopes not in _steepest:
        _steepest[slopes] = float(slopes.max())  # waits for the GPU, but once: a model keeps its slopes
    return modules if modules and _steepest[slopes] <= modules.forward.STEEPEST else None


_steepest = WeakTensorKeyDictionary()


@cache
def _hopper_modules(device: torch.device) -> _Hopper | None:
    if capability(device) != HOPPER_GPU:
        return None
    try:
        from text_backbone.kernels.lightning import hopper, hopper_backward
    except (ImportError, AttributeError) as error:  # Gluon is not yet as settled as Triton
        warnings.warn(f"lightning attention runs on its slower kernels: Gluon has changed ({error})", stacklevel=2)
        return None
    return _Hopper(hopper, hopper_backward)


def backward(
    grad: Tensor,
    qkv: Tensor,
    slopes: Tensor,
    packed: Packed,
    cells: Tensor | None,
    segments: Segments,
    walk: Tiles | None = None,
    gain: Tiles | None = None,
) -> Tensor:
    """The gradient [T, heads * 3 * d] of `qkv` from that of the output and the forward's `cells` and `segments`.

    `walk` and `gain` are the tiles to use instead of the tables'; with `walk` it is the kernel for every GPU that runs.
    """
    heads = len(slopes)
    d = qkv.shape[1] // (3 * heads)
    hopper = _hopper(qkv, slopes, d, None) if walk is None and not grad.data_ptr() % 16 else None
    gain = gain or pick(GAIN, d, qkv.dtype, qkv.device)
    # Of dk and dv; on Hopper it need not be that of dq, which starts from the forward's states.
    back = segments_for(packed, heads, d, HOPPER_BACKWARD, gain, segments.link) if hopper else segments
    dqkv, after = torch.empty_like(qkv), None
    if back.cells:
        after = _states_between(qkv, grad, None, slopes, packed, back, gain)
    if hopper:
        module, tiles, pairs = hopper.backward, HOPPER_BACKWARD, back.count * heads
        module.walk_back_kernel[(2 * pairs + segments.count * heads,)](
            qkv, grad, dqkv, _pointer(cells, slopes), _pointer(after, slopes), slopes, segments.table, back.table,
            pairs, heads, d, tiles.chunk, tiles.stages, module.HELPERS, module.REGISTERS,
            num_warps=tiles.warps, launch_pdl=True,
        )  # fmt: skip
        return dqkv
    walk = walk or pick(BACKWARD, d, qkv.dtype, qkv.device)
    walk_back_kernel[(segments.count * heads * (d // walk.values) * 3,)](
        qkv,
        grad,
        dqkv,
        _pointer(cells, slopes),
        _pointer(after, slopes),
        slopes,
        segments.table,
        **_options(walk, heads, d, qkv.dtype),
    )
    return dqkv


def _states_between(
    qkv: Tensor,
    grad: Tensor | None,
    states: Tensor | None,
    slopes: Tensor,
    packed: Packed,
    segments: Segments,
    tiles: Tiles,
) -> Tensor:
    """The state before every piece that begins a segment; given `grad`, the reverse one after those that end one.

    With a link, the sequences start from what its exchange makes of the sums over all of their pieces.
    """
    heads = len(slopes)
    d = qkv.shape[1] // (3 * heads)
    reverse = grad is not None
    cells = qkv.new_empty(segments.cells, heads, d, d, dtype=torch.float32)
    gain_kernel[(segments.cells * heads * (d // tiles.values),)](
        qkv,
        grad,
        cells,
        slopes,
        segments.pieces,
        REVERSE=reverse,
        **_options(tiles, heads, d, qkv.dtype),
        **early(qkv.device),
    )
    grid = (segments.chained * heads * (d * d // SCAN_BLOCK),)
    slots: Tensor | None = packed.slots
    if link := segments.link:
        given = cells.new_empty(len(link.takes if reverse else link.gives), heads, d, d)
        sum_kernel[grid](
            cells, given, slopes, segments.chains, segments.piece,
            H=heads, D=d, REVERSE=reverse, BLOCK=SCAN_BLOCK, ROWS=SUM_ROWS, num_warps=4, **early(qkv.device),
        )  # fmt: skip
        states, slots = link.exchange(given, slopes, reverse, states), None
    scan_kernel[grid](
        cells, states, slots, slopes, segments.chains, segments.piece, segments.size // segments.piece,
        H=heads, D=d, REVERSE=reverse, BLOCK=SCAN_BLOCK, num_warps=4, **early(qkv.device),
    )  # fmt: skip
    return cells


def _pointer(cells: Tensor | None, other: Tensor) -> Tensor:
    """Cells, or what a kernel that will read none may be given: with None it would be compiled once more."""
    return other if cells is None else cells


def _power_of_two(share: int) -> int:
    """The largest one up to `share`, or 0."""
    return 1 << share.bit_length() - 1 if share else 0


def _options(tiles: Tiles, heads: int, d: int, dtype: torch.dtype) -> dict[str, Any]:
    half = dtype == torch.bfloat16
    # float16 could not hold a state, so its products are tf32: as many bits, and the range of float32.
    return {
        "H": heads,
        "D": d,
        "BV": tiles.values,
        "C": tiles.chunk,
        "FAST": half,
        "OPERAND": tl.bfloat16 if half else tl.float32,
        "PRECISION": float32_precision() if dtype == torch.float32 else "tf32",
        "STAGES": tiles.stages,
        "num_warps": tiles.warps,
    }
