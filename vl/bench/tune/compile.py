"""Compiling kernels in several processes: a launch on meta tensors becomes a compilation, kept in Triton's cache."""

from __future__ import annotations

from multiprocessing import get_context
from typing import Any

import torch

from preprocessing.container import available_cpus
from vl.bench.tune.sweeps import matching, sweeps_of


def compile_ahead(op: str, only: str, processes: int | None = None) -> int:
    """Compile every candidate of the op's sweeps for the GPU; the number of kernels launched in compiling them."""
    count = processes or max(1, min(16, available_cpus()))
    with get_context("spawn").Pool(count) as pool:
        return sum(pool.starmap(_compile_share, [(op, only, rank, count) for rank in range(count)]))


def _compile_share(op: str, only: str, rank: int, count: int) -> int:
    """Compile every `count`-th candidate, from number `rank` on."""
    from triton.runtime.jit import JITFunction

    compiled = 0

    def compiling(kernel: Any, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            nonlocal compiled
            kernel.run(*args, grid=grid, warmup=True, **options)
            compiled += 1

        return launch

    JITFunction.__getitem__ = compiling  # this process launches nothing
    number = 0
    for sweep in matching(sweeps_of(op, torch.device("meta")), only):
        for candidate in dict.fromkeys((sweep.now, *sweep.candidates)):
            number += 1
            if number % count != rank:
                continue
            try:
                sweep.run(candidate)
            except Exception:  # it will fail, and be reported, when it is measured
                continue
    return compiled
