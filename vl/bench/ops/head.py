"""The output head, beside one whose logits are rounded to 16 bits."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from text_backbone.head import logits
from vl.bench.records import OURS, Case, Contest, Setting, Work

OP = "output head"


def cases(setting: Setting) -> list[Case]:
    tokens = (64, 1) if setting.small else (8192, 64, 1)
    return [Case(OP, f"{n} tokens", n, "tokens", partial(_head, setting, n), OP) for n in tokens]


def shape(*, small: bool) -> tuple[int, int]:
    """Hidden size and vocabulary."""
    return (64, 4096) if small else (6144, 200064)


def make(tokens: int, hidden: int, vocab: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Random final states [tokens, hidden] and the head's weight [vocab, hidden], whose logits are of size 1."""
    x = torch.randn(tokens, hidden, device=device, dtype=dtype)
    return x, torch.empty(vocab, hidden, device=device, dtype=dtype).normal_(std=hidden**-0.5)


def rounded(x: Tensor, weight: Tensor) -> Tensor:
    """Logits as most models have them: of 16 bits, and then float32."""
    return F.linear(x, weight).float()


def _head(setting: Setting, tokens: int) -> Contest:
    hidden, vocab = shape(small=setting.small)
    x, weight = make(tokens, hidden, vocab, setting.device, setting.dtype)
    work = Work((vocab + tokens) * hidden * weight.element_size() + tokens * vocab * 4, 2 * tokens * hidden * vocab)
    return Contest(
        work.floor,
        {OURS: lambda: [partial(logits, x, weight)], "rounded to 16 bits": lambda: [partial(rounded, x, weight)]},
    )
