"""The table of what it takes to run the release, in README.md and docs/plan.md, is what the planner says."""

from __future__ import annotations

from pathlib import Path

import pytest

import vl
from vl.config import VLConfig
from vl.plan import Machine, find_gpu, plan
from vl.plan.gpus import GIB
from vl.plan.share import SPILLED, TENSOR

ROOT = Path(vl.__file__).parents[1]
ROWS = [
    ("bf16, sharded", 8, "H200", "bf16", TENSOR),
    ("int8", 8, "H100-80GB", "int8", TENSOR),
    ("FP8", 8, "H100-80GB", "fp8", TENSOR),
    ("NF4", 4, "H100-80GB", "nf4", TENSOR),
    ("NF4", 2, "H200", "nf4", TENSOR),
    ("NF4, experts in host memory", 1, "H200", "nf4", SPILLED),
    ("NF4, experts in host memory", 1, "RTX-4090", "nf4", SPILLED),
]


def row(config: VLConfig, label: str, count: int, gpu: str, form: str, kind: str) -> str:
    options = plan(config, Machine(find_gpu(gpu), count), formats=[form]).options
    option = next(option for option in options if option.placement == kind)
    assert option.speed is not None
    memory, speed = option.memory, option.speed
    host = f" + {memory.host / GIB:.0f} GiB of the host's" if memory.host else ""
    used = f"{memory.total / GIB:.0f} of {memory.available / GIB:.0f} GiB a GPU{host}"
    return (
        f"| {label} | {option.machine.name} | {used} | "
        f"{option.max_context / 2**20:.1f} M | {rounded(speed.prefill_tokens)} | {rounded(speed.decode_tokens)} |"
    )


def rounded(value: float) -> str:
    """Two digits: predictions are no better."""
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.1f}"


@pytest.mark.parametrize("page", ["README.md", "docs/plan.md"])
def test_pages_hold_the_table(vl01: VLConfig, page: str) -> None:
    text = (ROOT / page).read_text()
    missing = [line for line in (row(vl01, *each) for each in ROWS) if line not in text]
    assert not missing, "\n".join(missing)
