from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest
from forkserver import run_together

from vl.cli import app as vl_app


def test_two_processes_share_the_experts_in_every_way(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    environments = [common | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    figures, logs = tmp_path / "figures.json", [tmp_path / f"{rank}.log" for rank in range(2)]
    command = [sys.executable, "-m", "vl.cli", "bench", "experts", "--device", "cpu", "--json", str(figures)]
    run_together([command] * 2, environments, logs, 120)
    rows = json.loads(figures.read_text())
    ways = ("none", "expert = 2", "expert = 2, expert_groups = 2", "expert_tensor = 2")
    assert list(dict.fromkeys(row["sharing"] for row in rows)) == list(ways)
    assert {(row["tokens"], row["uneven"]) for row in rows if row["sharing"] != "none"} == {
        (tokens, uneven) for tokens in (64, 128) for uneven in (False, True)
    }
    assert all(row["forward"] > 0 and row["trained"] > 0 for row in rows)
    assert "2 processes" in logs[0].read_text()
    assert "2 processes" not in logs[1].read_text()


def test_one_process_measures_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert vl_app.run(["bench", "experts", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "1 process" in said
    assert "none" in said
    assert "expert_tensor" not in said
