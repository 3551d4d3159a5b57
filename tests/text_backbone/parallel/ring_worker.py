"""What one rank of a ring takes, and one process for the whole; the process of a rank. See `conftest.py`."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from text_backbone import Packed
from text_backbone.kernels.softmax.partial import causal_attention, causal_backward
from text_backbone.parallel import ContextShard, ring


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median of three after a warm-up, of the rank that takes longest."""
    times = []
    for _ in range(4):
        dist.barrier()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    worst = torch.tensor([statistics.median(times[1:])], dtype=torch.float64, device=device)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return float(worst)


def measured(told: dict[str, Any], rank: int, ranks: int, device: torch.device) -> dict[str, float]:
    """Seconds of the whole batch in one process, and of a rank's part with its messages: forward and backward."""
    lengths, (heads, kv_heads, d) = told["lengths"], told["sizes"]
    generator = torch.Generator(device).manual_seed(0)
    q, k, v, grad = (
        torch.randn(sum(lengths), n, d, generator=generator, device=device).to(told["dtype"])
        for n in (heads, kv_heads, kv_heads, heads)
    )
    packed = Packed.of(lengths, device=device)
    out, logs = causal_attention(q, k, v, packed)
    found = {
        "whole forward": seconds(lambda: causal_attention(q, k, v, packed), device),
        "whole backward": seconds(lambda: causal_backward(grad, q, k, v, out, logs, packed), device),
    }
    shard, messages = ContextShard.share(lengths, rank, ranks, device=device), ring.Messages(None, device)
    q, k, v, grad = map(shard.take, (q, k, v, grad))
    out, logs = ring.forward(q, k, v, shard, messages)
    found["forward"] = seconds(lambda: ring.forward(q, k, v, shard, messages), device)
    found["backward"] = seconds(lambda: ring.backward(grad, q, k, v, out, logs, shard, messages), device)
    return found


def main(rank: int, ranks: int, folder: Path, kind: str) -> None:
    from worker import meeting  # beside this file, which is a script here

    with meeting(rank, ranks, folder, kind) as device, torch.inference_mode():
        cases = torch.load(folder / "cases.pt")
        torch.save({name: measured(told, rank, ranks, device) for name, told in cases.items()}, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
