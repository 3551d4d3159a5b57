"""`vl bench jobs`: both are measured, of the same images."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import vl
from vl.bench.jobs import bench_jobs


def test_a_job_and_the_engine_alone(tiny_checkpoint: Path) -> None:
    load = partial(vl.load, tiny_checkpoint, device="cpu", max_batch_size=2)
    found = bench_jobs(load, 2, batch_size=1, max_new_tokens=2)
    assert found.images == 2
    assert 1 <= found.tokens <= 2
    assert found.alone > 0
    assert [*found.jobs] == [0], "a model on the CPU has no processes by default"
    assert found.jobs[0] > 0
