"""`vl bench experts`: one layer's experts shared out over several processes."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from vl.cli.console import DeviceOption, FiguresOption, ScaleOption, printable, stderr_console, stdout_console
from vl.cli.torchrun import told_once

if TYPE_CHECKING:
    from vl.bench.experts import ExpertsRow


@told_once()
def experts(
    scale: ScaleOption = None,
    json: FiguresOption = None,
    device: DeviceOption = None,
) -> None:
    """One layer's experts shared out as in training, with an even router and an uneven one.

    Under torchrun, over its processes: torchrun --nproc-per-node 2 -m vl.cli bench experts. By itself it measures one.
    """
    import torch

    from vl.bench.experts import FULL_MEMORY, bench_experts
    from vl.bench.records import Setting
    from vl.files import write_file
    from vl.loading import pick_device
    from vl.training.parallelize import World, local_device

    own = local_device(pick_device(device))
    free = torch.cuda.mem_get_info(own)[0] if own.type == "cuda" else 0
    world = World.join(own)
    # All processes measure one size: that which the fullest device holds.
    small = scale == "small" if scale else world.slowest(FULL_MEMORY - free) > 0
    rows: list[ExpertsRow] = []

    def say(what: str) -> None:
        if world.first:
            stderr_console().print(Text(f"measuring experts, {printable(what)}"))

    for row in bench_experts(Setting(own, small, quick=False), world, say):
        rows.append(row)
        if json is not None and world.first:
            write_file(json, jsonlib.dumps([asdict(row) for row in rows], indent=2) + "\n")
    if world.first:
        stdout_console().print(experts_table(rows, world.size))
    world.leave()


def experts_table(rows: list[ExpertsRow], processes: int) -> Table:
    """Milliseconds by way of sharing, batch and router."""
    table = Table("shared out by", "tokens of all", "router", "forward", "with backward")
    table.title = f"experts of a layer, {processes} process{'es' * (processes > 1)}"
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        router = "uneven" if row.uneven else "even"
        times = (f"{1e3 * seconds:.1f} ms" for seconds in (row.forward, row.trained))
        table.add_row(row.sharing, f"{row.tokens:,}", router, *times)
    return table
