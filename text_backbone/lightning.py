"""The lightning attention sub-layer."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from text_backbone.cache import MarkedStates
from text_backbone.config import TextConfig
from text_backbone.kernels.lightning import lightning_attention
from text_backbone.linear import linear, project
from text_backbone.norms import GatedNorm
from text_backbone.packed import Packed

NORM_EPS = 1e-6  # the released model's, whatever rms_norm_eps says for the other norms


@cache
def decay_slopes(heads: int, layer: int, layers: int, device: torch.device) -> Tensor:
    """float32 [heads], `s = 2^(-8(h+1)/heads) * (1 - layer/(layers - 1 + 1e-5) + 1e-5)`: deeper layers forget less."""
    depth = 1 - layer / (layers - 1 + 1e-5) + 1e-5
    slopes = [2 ** (-8 * (h + 1) / heads) * depth for h in range(heads)]
    with torch.inference_mode(False):  # the cached tensor has to serve training too
        return torch.tensor(slopes, dtype=torch.float32, device=device)


def attend(qkv: Tensor, slopes: Tensor, packed: Packed, memory: Tensor | MarkedStates | None) -> Tensor:
    """`lightning_attention`, which also keeps copies of the states where `packed` has marks.

    The rows are gone through in parts, each of which ends at a mark: the states are those of the mark in between.
    """
    if not isinstance(memory, MarkedStates):
        return lightning_attention(qkv, slopes, packed, memory)
    outs, start = [], 0
    for number, part in enumerate(packed.memo(_parts)):
        outs.append(lightning_attention(qkv[start : start + part.tokens], slopes, part, memory.states))
        start += part.tokens
        if number < len(packed.marks):
            memory.kept[number].copy_(memory.states[packed.marks[number].slot], non_blocking=True)
    return torch.cat(outs)


def _parts(packed: Packed) -> list[Packed]:
    """The rows up to each mark, and those behind the last one."""
    ends = [0, *(mark.row for mark in packed.marks)]
    ends += [packed.tokens] if ends[-1] < packed.tokens else []
    return [packed.part(start, stop) for start, stop in pairwise(ends)]


class LightningAttention(nn.Module):
    """Linear attention with decay; `sigmoid(output_gate x) * rms_norm(o)` goes through `out_proj`.

    Attributes:
        heads: how many are here, of `all_heads` from `first_head` on: all of them, but where ranks share them out.
    """

    def __init__(
        self,
        config: TextConfig,
        layer: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.layer, self.layers = config.num_attention_heads, layer, config.num_hidden_layers
        self.first_head, self.all_heads = 0, self.heads
        hidden, inner = config.hidden_size, config.num_attention_heads * config.head_dim
        self.qkv_proj = linear(hidden, 3 * inner, device=device, dtype=dtype)
        self.output_gate = linear(hidden, inner, device=device, dtype=dtype)
        self.out_proj = linear(inner, hidden, device=device, dtype=dtype)
        self.norm = GatedNorm(inner, NORM_EPS, device=device, dtype=dtype)

    def forward(self, x: Tensor, packed: Packed, table: Tensor, states: Tensor | MarkedStates | None) -> Tensor:
        """x [T, hidden] -> [T, hidden]; `states` [slots, heads, d, d] is updated in place; `table` is not used."""
        projected = project(x, self.qkv_proj, self.output_gate)
        out = attend(next(projected), self.slopes(x.device), packed, states)  # [T, heads * d]
        return self.out_proj(self.norm(out, next(projected)))

    def slopes(self, device: torch.device) -> Tensor:
        """float32 [heads]."""
        slopes = decay_slopes(self.all_heads, self.layer, self.layers, device)
        return slopes[self.first_head : self.first_head + self.heads]
