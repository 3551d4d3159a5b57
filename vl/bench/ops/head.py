"""The output head, beside one whose logits are rounded to 16 bits; run as a module, how often each is right.

python -m vl.bench.ops.head        # on a GPU
"""

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


def _shape(setting: Setting) -> tuple[int, int]:
    """Hidden size and vocabulary."""
    return (64, 4096) if setting.small else (6144, 200064)


def _made(tokens: int, hidden: int, vocab: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = torch.randn(tokens, hidden, device=device, dtype=dtype)
    return x, torch.empty(vocab, hidden, device=device, dtype=dtype).normal_(std=hidden**-0.5)


def _rounded(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight).float()


def _head(setting: Setting, tokens: int) -> Contest:
    hidden, vocab = _shape(setting)
    x, weight = _made(tokens, hidden, vocab, setting.device, setting.dtype)
    work = Work((vocab + tokens) * hidden * weight.element_size() + tokens * vocab * 4, 2 * tokens * hidden * vocab)
    return Contest(
        work.floor,
        {OURS: lambda: [partial(logits, x, weight)], "rounded to 16 bits": lambda: [partial(_rounded, x, weight)]},
    )


def agreement(device: torch.device, tokens: int = 4096, hidden: int = 6144, vocab: int = 200064) -> tuple[float, float]:
    """Of random tokens, the shares whose best one is that of float64 sums: by our head, and by the rounded one."""
    torch.manual_seed(0)
    x, weight = _made(tokens, hidden, vocab, device, torch.bfloat16)
    right = torch.zeros(2, dtype=torch.int64)
    for some in x.split(256):
        ours, rounded = logits(some, weight), _rounded(some, weight)
        # Whatever may be best is summed again in float64.
        near = ours.topk(64, dim=1).indices  # [tokens, 64]
        exact = torch.einsum("th,tch->tc", some.double(), weight[near].double())
        best = near.gather(1, exact.argmax(dim=1, keepdim=True))[:, 0]
        right += torch.stack([(found.argmax(dim=1) == best).sum() for found in (ours, rounded)]).cpu()
    return right[0].item() / tokens, right[1].item() / tokens


if __name__ == "__main__":
    ours, rounded = agreement(torch.device("cuda"))
    print(f"best token as by float64: float32 logits {ours:.2%}, logits rounded to bfloat16 {rounded:.2%}")
