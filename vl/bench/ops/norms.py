"""What is bound by memory: the norms with their neighbours, and rotary embedding with the write to cache pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from text_backbone.kernels.norms import gated_norm, residual_norm, rms_norm
from text_backbone.kernels.rotary import rotary_table, rotary_to_pages
from vl.bench.ops.lightning import by_reference
from vl.bench.records import OURS, REFERENCE, Call, Case, Contest, Setting, Work

ALPHA, BETA, EPS = 3.5565588200778455, 1.0, 1e-5
NORMS = ("rms norm", "residual norm", "gated norm")
PAGE = 256


def cases(setting: Setting) -> list[Case]:
    tokens = (256,) if setting.small else (64, 32768)
    norms = [
        Case(op, f"{n} tokens", n, "tokens", partial(_norm, setting, op, n), "norms") for op in NORMS for n in tokens
    ]
    rotary = [
        Case("rotary to pages", f"{n} tokens", n, "tokens", partial(_rotary, setting, n), "rotary") for n in tokens
    ]
    return norms + rotary


def _norm(setting: Setting, op: str, tokens: int) -> Contest:
    hidden = 128 if setting.small else {"gated norm": 8192}.get(op, 6144)
    x, y = (torch.randn(tokens, hidden, device=setting.device, dtype=setting.dtype) for _ in range(2))
    weight = torch.rand(hidden, device=setting.device, dtype=setting.dtype)
    calls: dict[str, tuple[Call, Call, int]] = {  # ours, torch's, tensors read and written
        "rms norm": (partial(rms_norm, x, weight, EPS), lambda: F.rms_norm(x, weight.shape, weight, EPS), 2),
        "residual norm": (
            partial(residual_norm, x, y, ALPHA, BETA, weight, EPS),
            lambda: F.rms_norm(torch.add(y, x, alpha=ALPHA), weight.shape, weight, EPS),
            3,
        ),
        "gated norm": (
            partial(gated_norm, x, y, weight, EPS),
            lambda: torch.sigmoid(y) * F.rms_norm(x, weight.shape, weight, EPS),
            3,
        ),
    }
    ours, plain, tensors = calls[op]
    work = Work(tensors * tokens * hidden * x.element_size(), 0)
    contenders: dict[str, Callable[[], Sequence[Call]]] = {
        OURS: lambda: [ours],
        REFERENCE: lambda: [by_reference(ours)],
        "torch": lambda: [plain],
    }
    return Contest(work.floor, contenders)


def _rotary(setting: Setting, tokens: int) -> Contest:
    heads, kv_heads, d, turning = (4, 2, 32, 16) if setting.small else (64, 8, 128, 64)
    device = setting.device
    pages = -(-tokens // PAGE)
    q, k, v = (torch.randn(tokens, n, d, device=device, dtype=setting.dtype) for n in (heads, kv_heads, kv_heads))
    keys, values = (torch.empty(pages, PAGE, kv_heads, d, device=device, dtype=setting.dtype) for _ in range(2))
    rows = torch.arange(tokens, device=device)
    table: Tensor = rotary_table(rows, turning, 1e7)
    ours = partial(rotary_to_pages, q, k, v, table, keys, values, rows)
    # q and k read and written, v read, and keys and values written to their pages
    work = Work(tokens * (2 * heads + 5 * kv_heads) * d * q.element_size(), 0)
    contenders: dict[str, Callable[[], Sequence[Call]]] = {
        OURS: lambda: [ours],
        REFERENCE: lambda: [by_reference(ours)],
    }
    return Contest(work.floor, contenders)
