from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from meeting import meet

import vl
from vl.bench.experts import bench_experts
from vl.bench.records import Setting
from vl.cli import app as vl_app
from vl.training.parallelize import World


def test_two_processes_share_the_experts_in_every_way(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    figures = tmp_path / "figures.json"
    command = ["-m", "vl.cli", "bench", "experts", "--device", "cpu", "--json", str(figures)]
    meet(2, command, environment, tmp_path, timeout=250)
    rows = json.loads(figures.read_text())
    ways = ("none", "expert = 2", "expert = 2, expert_groups = 2", "expert_tensor = 2")
    assert list(dict.fromkeys(row["sharing"] for row in rows)) == list(ways)
    assert {(row["tokens"], row["uneven"]) for row in rows if row["sharing"] != "none"} == {
        (tokens, uneven) for tokens in (64, 128) for uneven in (False, True)
    }
    assert all(row["forward"] > 0 and row["trained"] > 0 for row in rows)
    logs = [(tmp_path / f"rank{rank}.log").read_text() for rank in range(2)]
    assert ["2 processes" in log for log in logs] == [True, False]


def test_one_process_measures_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert vl_app.run(["bench", "experts", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "1 process" in said
    assert "none" in said
    assert "expert_tensor" not in said


def test_experts_that_processes_cannot_share_evenly_are_refused() -> None:
    setting, said = Setting(torch.device("cpu"), small=True, quick=False), list[str]()
    with pytest.raises(vl.ConfigError, match=r"expert = 3 shares out .* 8 cannot be divided"):
        list(bench_experts(setting, World(0, 3), said.append))
    assert not said
