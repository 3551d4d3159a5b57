"""What happens between two log lines, summed up."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from vl.training.batch import Batch
from vl.training.losses import load_spread
from vl.training.parallelize import World
from vl.training.step import StepLosses


class Meters:
    """Sums between two log lines; losses stay on the device until they are printed.

    Args:
        world: whose processes' sums are joined in the summary.
        peak: operations per second of one device.
    """

    def __init__(self, world: World, peak: float) -> None:
        self.world, self.peak = world, peak
        self.start = time.perf_counter()
        self.wait = self.flops = 0.0
        self.steps = self.samples = self.tokens = 0
        self.sums: Tensor | None = None
        self.load: Tensor | None = None

    def add(self, batches: Sequence[Batch], result: StepLosses, norm: Tensor, flops: float) -> None:
        """One step: its batches, its losses and gradient norm, still on the device, and its operations."""
        values = torch.stack((result.tokens.detach(), result.balance.detach(), result.dense.detach(), norm.float()))
        self.sums = values if self.sums is None else self.sums + values
        self.load = result.load
        self.steps += 1
        self.flops += flops
        self.samples += sum(len(batch.lengths) for batch in batches)
        self.tokens += sum(len(batch.input_ids) for batch in batches)

    def summary(self) -> dict[str, float]:
        """Means per step, and rates over all processes; waits for the device."""
        assert self.sums is not None
        assert self.load is not None
        world = self.world
        loss, balance, dense, norm = (world.mean(self.sums) / self.steps).tolist()
        least, most = load_spread(world.mean(self.load))
        elapsed = time.perf_counter() - self.start
        return {
            "loss": loss,
            "balance": balance,
            "dense": dense,
            "expert_min": least,
            "expert_max": most,
            "grad_norm": norm,
            "samples_per_s": world.sum_of_batches(self.samples) / elapsed,
            "tokens_per_s": world.sum_of_batches(self.tokens) / elapsed,
            "mfu": world.sum_of_batches(self.flops) / world.size / elapsed / self.peak,
            "data_wait": self.wait / elapsed,
        }
