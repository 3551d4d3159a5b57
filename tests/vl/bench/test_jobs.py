"""`vl bench jobs`: both are measured, of the same images."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vl
from vl.bench.busy import Busy
from vl.bench.jobs import bench_jobs


def test_a_job_and_the_engine_alone(tiny_checkpoint: Path) -> None:
    model = vl.load(tiny_checkpoint, device="cpu", max_batch_size=2)
    found = bench_jobs(model, 2, batch_size=1, max_new_tokens=2)
    assert found.images == 2
    assert 1 <= found.tokens <= 2
    assert min(run.rate for run in found.alone) <= found.alone_rate <= max(run.rate for run in found.alone)
    assert [*found.jobs] == [0], "a model on the CPU has no processes by default"
    assert found.jobs[0].rate > 0
    assert 0 < found.jobs[0].cpu < 60
    assert model.engine.image_counts == (0, 2 + 2 * 4), "nothing that was kept of an image helped the next run"  # type: ignore[attr-defined]


def test_a_gpu_is_watched_while_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for `nvidia-smi`: 40 and 60%, then a line that it could not fill."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '40\\n60\\n[N/A]\\n'; touch \"$0.said\"; exec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    with Busy(torch.device("cuda", 0)) as busy:
        while not (tmp_path / "nvidia-smi.said").exists():
            time.sleep(0.01)
    assert busy.fraction == 0.5
    with Busy(torch.device("cpu")) as none:
        pass
    assert none.fraction is None
