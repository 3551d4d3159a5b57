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

PREFILL, DECODE = "lightning prefill", "lightning decode"


def cases(setting: Setting) -> list[Case]:
    prefills = [(1, 2048), (1, 8192), (1, 32768), (1, 131072), (16, 2048)]
    decodes = [1, 8, 64, 256]
    if setting.small:
        prefills, decodes = [(1, 256), (1, 512), (1, 1024), (4, 256)], [1, 8]
    return [
        *(
            Case(PREFILL, f"{n} x {tokens}", n * tokens, "tokens", partial(_prefill, setting, n, tokens), PREFILL)
            for n, tokens in prefills
        ),
        *(Case(DECODE, f"batch {n}", n, "sequences", partial(_decode, setting, n), DECODE) for n in decodes),
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
    """What the peer wants and gets for free: q, k and v [batch, tokens, heads, d] after SiLU, each by itself."""
    x = F.silu(qkv).view(batch, len(qkv) // batch, heads, 3, -1)
    return tuple(part.contiguous() for part in x.unbind(3))


def by_reference(call: Call) -> Call:
    def run() -> object:
        with reference_kernels():
            return call()

    return run
