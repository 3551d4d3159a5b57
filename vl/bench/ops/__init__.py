"""The backbone's ops, one by one, at the released sizes or at scaled ones."""

from __future__ import annotations

from vl.bench.ops import attention, lightning, moe, norms
from vl.bench.records import Case, Setting


def cases(setting: Setting) -> list[Case]:
    return [case for op in (lightning, moe, attention, norms) for case in op.cases(setting)]
