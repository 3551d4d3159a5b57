"""Lightning attention: prefill and decode, beside flash-linear-attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from text_backbone import Packed
from text_backbone.kernels.device import reference_kernels
from text_backbone.kernels.lightning import lightning_attention
from text_backbone.lightning import decay_slopes
from vl.bench.records import OURS, REFERENCE, Call, Case, Contest, Setting, Work
from vl.bench.timing import rotations

PREFILL, DECODE, TRAINED = "lightning prefill", "lightning decode", "lightning forward + backward"


def cases(setting: Setting) -> list[Case]:
    prefills = [(1, 2048), (1, 8192), (1, 32768), (1, 131072), (16, 2048)]
    decodes, trained = [1, 8, 64, 256], [8192, 32768]
    if setting.small:
        prefills, decodes, trained = [(1, 256), (1, 512), (1, 1024), (4, 256)], [1, 8], [256]
    return [
        *(
            Case(PREFILL, f"{n} x {tokens}", n * tokens, "tokens", partial(_prefill, setting, n, tokens), PREFILL)
            for n, tokens in prefills
        ),
        *(Case(DECODE, f"batch {n}", n, "sequences", partial(_decode, setting, n), DECODE) for n in decodes),
        *(Case(TRAINED, f"1 x {n}", n, "tokens", partial(_trained, setting, n), TRAINED) for n in trained),
    ]  # fmt: skip


def prefill_work(tokens: int, sequences: int, heads: int, d: int, itemsize: int) -> Work:
    """The fused projection read and the output written once, as the states; two products with a state per token."""
    states = 2 * sequences * heads * d * d * 4
    return Work(tokens * 4 * heads * d * itemsize + states, 4 * tokens * heads * d * d)


def _shape(setting: Setting) -> tuple[int, int]:
    """Heads and head dimension."""
    return (4, 32) if setting.small else (64, 128)


def _prefill(setting: Setting, batch: int, tokens: int) -> Contest:
    (heads, d), device = _shape(setting), setting.device
    packed = Packed.of([tokens] * batch, device=device)
    qkv = torch.randn(batch * tokens, heads * 3 * d, device=device, dtype=setting.dtype)
    states = torch.zeros(batch, heads, d, d, device=device)
    slopes = decay_slopes(heads, 40, 80, device)
    ours = partial(lightning_attention, qkv, slopes, packed, states)

    def fla() -> Sequence[Call]:
        from fla.ops.simple_gla import chunk_simple_gla

        q, k, v = _split(qkv, batch, heads)
        return [partial(chunk_simple_gla, q, k, v, g_gamma=-slopes, scale=1.0, output_final_state=True)]

    work = prefill_work(batch * tokens, batch, heads, d, qkv.element_size())
    contenders: dict[str, Callable[[], Sequence[Call]]] = {
        OURS: lambda: [ours],
        REFERENCE: lambda: [by_reference(ours)],
        "fla chunk_simple_gla": fla,
    }
    return Contest(work.floor, contenders)


@torch.inference_mode(False)
def _trained(setting: Setting, tokens: int) -> Contest:
    """The output and the gradient of the fused projection."""
    (heads, d), device = _shape(setting), setting.device
    packed = Packed.of([tokens], device=device)
    qkv = torch.randn(tokens, heads * 3 * d, device=device, dtype=setting.dtype, requires_grad=True)
    grad = torch.randn(tokens, heads * d, device=device, dtype=setting.dtype)
    slopes = decay_slopes(heads, 40, 80, device)

    @torch.inference_mode(False)
    def ours() -> object:
        return torch.autograd.grad(lightning_attention(qkv, slopes, packed), qkv, grad)

    @torch.inference_mode(False)
    def fla() -> Sequence[Call]:
        from fla.ops.simple_gla import chunk_simple_gla

        parts = [part.detach().requires_grad_() for part in _split(qkv, 1, heads)]
        wanted = grad.view(1, tokens, heads, d)

        @torch.inference_mode(False)
        def run() -> object:
            out, _ = chunk_simple_gla(*parts, g_gamma=-slopes, scale=1.0)
            return torch.autograd.grad(out, parts, wanted)

        return [run]

    # Forward: projection in, output out. Backward: projection and gradient in, gradient out. Two products with a
    # state per token forward, and six backward: of dq, dk and dv, with the states that they need.
    bytes_moved = tokens * heads * d * (4 + 7) * qkv.element_size()
    work = Work(bytes_moved, 16 * tokens * heads * d * d)
    contenders: dict[str, Callable[[], Sequence[Call]]] = {
        OURS: lambda: [ours],
        REFERENCE: lambda: [by_reference(ours)],
        "fla chunk_simple_gla": fla,
    }
    return Contest(work.floor, contenders)


def _decode(setting: Setting, batch: int) -> Contest:
    (heads, d), device = _shape(setting), setting.device
    packed = Packed.of([1] * batch, past=[1000] * batch, device=device)
    layers = rotations(batch * heads * d * d * 4, device)  # other states every time, as from layer to layer
    qkv = torch.randn(batch, heads * 3 * d, device=device, dtype=setting.dtype)
    states = torch.randn(layers, batch, heads, d, d, device=device)
    slopes = decay_slopes(heads, 40, 80, device)
    ours = [partial(lightning_attention, qkv, slopes, packed, state) for state in states]

    def fla() -> Sequence[Call]:
        from fla.ops.simple_gla import fused_recurrent_simple_gla as step

        q, k, v = _split(qkv, batch, heads)
        options = {"g_gamma": -slopes, "scale": 1.0, "output_final_state": True}
        return [partial(step, q, k, v, initial_state=state, **options) for state in states]

    work = prefill_work(batch, batch, heads, d, qkv.element_size())
    contenders: dict[str, Callable[[], Sequence[Call]]] = {
        OURS: lambda: ours,
        REFERENCE: lambda: [by_reference(call) for call in ours],
        "fla fused_recurrent_simple_gla": fla,
    }
    return Contest(work.floor, contenders, how="graph")


def _split(qkv: Tensor, batch: int, heads: int) -> tuple[Tensor, ...]:
    """What the peer wants, which is not timed: q, k and v [batch, tokens, heads, d] after SiLU, each by itself."""
    x = F.silu(qkv).view(batch, len(qkv) // batch, heads, 3, -1)
    return tuple(part.contiguous() for part in x.unbind(3))


def by_reference(call: Call) -> Call:
    def run() -> object:
        with reference_kernels():
            return call()

    return run
