"""The backbone's ops, one by one, at the released sizes or at scaled ones."""

from __future__ import annotations

from vl.bench.ops import attention, head, lightning, moe, norms, quantized, ring
from vl.bench.records import Case, Setting


def cases(setting: Setting) -> list[Case]:
    return [case for op in (lightning, moe, quantized, attention, ring, norms, head) for case in op.cases(setting)]
