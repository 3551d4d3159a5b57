"""Ranks are processes of their own, which meet over gloo; they run all cases of a file at once."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from meeting import run_together

HERE = Path(__file__).parent
TIMEOUT = 250  # seconds

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def worker() -> ModuleType:
    """The ranks' own code, to do the same in one process."""
    return load("worker")


@pytest.fixture(scope="session")
def context_worker() -> ModuleType:
    return load("context_worker")


@pytest.fixture(scope="session")
def expert_worker() -> ModuleType:
    return load("expert_worker")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def run_ranks() -> Run:
    """What each of so many ranks has for every case. A rank that fails, or all if they hang, end the others."""

    def run(
        ranks: int, cases: Mapping[str, dict[str, Any]], folder: Path, device: str = "cpu", worker: str = "worker"
    ) -> list[dict[str, Any]]:
        torch.save(dict(cases), folder / "cases.pt")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, str(HERE / f"{worker}.py")]
        commands = [[*command, str(rank), str(ranks), str(folder), device] for rank in range(ranks)]
        logs = [folder / f"{rank}.log" for rank in range(ranks)]
        run_together(commands, [environment] * ranks, logs, TIMEOUT)
        return [torch.load(folder / f"{rank}.pt", map_location="cpu") for rank in range(ranks)]

    return run
