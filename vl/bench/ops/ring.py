"""Ring attention: what one of several ranks computes, with the messages there as soon as they are waited for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from text_backbone import Packed
from text_backbone.kernels.softmax.partial import causal_attention, causal_backward
from text_backbone.parallel import ContextShard, ring
from vl.bench.records import OURS, Call, Case, Contest, Setting, Work

FORWARD, TRAINED = "ring attention", "ring attention forward + backward"
AS_MUCH = "as much causal attention, without a ring"
RAGGED = (41000, 300, 23011, 17, 16384, 12001, 9005, 800, 7003, 5200, 4100, 64, 3333, 2900, 1777, 1024, 900, 700, 1553)


class Delivered:
    """A transport whose messages have arrived: keys are a copy of some, gradients 0."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys

    def exchange(self, send: Tensor | None, to: int, receive: Tensor | None, source: int) -> ring.Wait:
        if receive is not None and receive.dtype == self.keys.dtype:
            receive.copy_(self.keys[: receive.shape[1]].expand_as(receive))
        elif receive is not None:
            receive.zero_()
        return lambda: None


def cases(setting: Setting) -> list[Case]:
    batches: dict[str, Sequence[int]] = {"1 x 131072": [131072], "ragged 131072": RAGGED}
    if setting.small:
        batches = {"1 x 512": [512], "ragged 512": [300, 9, 150, 53]}
    return [
        Case(
            op,
            f"{name}, rank of {ranks}",
            sum(lengths) // ranks,
            "tokens",
            partial(_contest, setting, lengths, ranks, op == TRAINED),
            op,
        )
        for op in (FORWARD, TRAINED)
        for name, lengths in batches.items()
        for ranks in (2, 8)
    ]


def _contest(setting: Setting, lengths: Sequence[int], ranks: int, trained: bool) -> Contest:
    """Of the rank that has most to do, beside a batch of shorter sequences with the mean work of all ranks."""
    heads, kv_heads, d = (4, 2, 32) if setting.small else (64, 8, 128)
    shards = [ContextShard.share(lengths, rank, ranks, device=setting.device) for rank in range(ranks)]
    shard = max(shards, key=lambda shard: sum(chunk.cost for chunk in shard.own))

    def inputs(tokens: int) -> list[Tensor]:
        return [
            torch.randn(tokens, n, d, device=setting.device, dtype=setting.dtype)
            for n in (heads, kv_heads, kv_heads, heads)
        ]

    def ours() -> Sequence[Call]:
        q, k, v, grad = inputs(shard.tokens)
        transport = Delivered(torch.randn_like(k[:1]).expand(sum(lengths), -1, -1))

        def call() -> object:
            out, logs = ring.forward(q, k, v, shard, transport)
            return ring.backward(grad, q, k, v, out, logs, shard, transport) if trained else out

        return [call]

    def without() -> Sequence[Call]:
        packed = Packed.of([max(1, round(n / ranks**0.5)) for n in lengths], device=setting.device)
        q, k, v, grad = inputs(packed.tokens)

        def call() -> object:
            out, logs = causal_attention(q, k, v, packed)
            return causal_backward(grad, q, k, v, out, logs, packed) if trained else out

        return [call]

    # Below the diagonal two products forward and five backward; q, k, v and out once, then with their gradients twice.
    pairs = sum(n * n for n in lengths) / ranks / 2
    moved = 2 * shard.tokens * (heads + kv_heads) * d * setting.dtype.itemsize
    work = Work((3 if trained else 1) * moved, 2 * (7 if trained else 2) * pairs * heads * d)
    contenders: dict[str, Callable[[], Sequence[Call]]] = {OURS: ours, AS_MUCH: without}
    return Contest(work.floor, contenders)
