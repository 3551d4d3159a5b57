"""How near our kernels come to the rooflines, as data, and the time of an operation.

An operation takes bytes from memory and operations from the tensor cores, which overlap in part: its time is the root
of the sum of the squares of both, and a fixed part for its launch, its start and its end. The figures are fitted to
the operations of docs/benchmarks.md (one H200, 23 November 2026), whose floors and times stand in the comments. Shares
above 1 are of operations that only read: the bandwidth is a copy's, which writes half of its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot

from vl.plan.gpus import Gpu


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of the GPU's bandwidth and bf16 rate that a kernel reaches, and its fixed seconds."""

    bandwidth: float
    rate: float
    fixed: float = 0.0

    def seconds(self, gpu: Gpu, nbytes: float, flops: float = 0.0, rate: float | None = None) -> float:
        """Time of one operation; `rate`: operations/s of the GPU, if not bf16's."""
        return hypot(nbytes / (gpu.bandwidth * self.bandwidth), flops / ((rate or gpu.bf16) * self.rate)) + self.fixed


# Mixture of experts: 1 token 0.161 -> 0.162 ms, 512 2.58 -> 2.49, 4096 3.55 -> 4.63, 16384 14.2 -> 15.5.
EXPERTS = Efficiency(1.05, 0.92, 8e-6)
# Attention projections and the head have no row of their own. The rate is what is left of the slice's prefill of 8192
# tokens (127 ms) after all else; it holds the clocks that fall during a whole prefill. The bandwidth is batch 1's.
DENSE = Efficiency(0.95, 0.70, 2e-6)
# Lightning prefill: 2048 tokens 0.034 -> 0.073 ms, 8192 0.129 -> 0.211, 32768 0.511 -> 0.733, 131072 2.04 -> 2.81.
LIGHTNING_PREFILL = Efficiency(0.72, 1.0, 30e-6)
# Lightning decode: batch 1 2.0 -> 3.6 us, 8 16 -> 19, 64 128 -> 136, 256 513 -> 529.
LIGHTNING_DECODE = Efficiency(0.97, 1.0, 1.6e-6)
# Softmax prefill: 8192 tokens 1.40 -> 1.71 ms, 32768 22.5 -> 29.1; chunks of 8192 9.82 -> 11.6, 43.5 -> 55.4.
SOFTMAX_PREFILL = Efficiency(1.0, 0.80, 30e-6)
# Softmax decode: 1 x 32768 31.8 -> 38.1 us, 8 x 32768 255 -> 244, 64 x 4096 255 -> 262, 1 x 1048576 1020 -> 938.
SOFTMAX_DECODE = Efficiency(1.07, 1.0, 7e-6)
# Norms and rotary of 32768 tokens: 0.191 -> 0.197 ms, 0.287 -> 0.282, 0.382 -> 0.430, 0.334 -> 0.360.
ELEMENTWISE = Efficiency(0.95, 1.0, 2e-6)
# The vision tower: 76 tiles 37.0 -> 53.0 ms, 8 3.90 -> 6.75, 1 0.49 -> 1.86.
VISION = Efficiency(1.0, 0.73, 1.1e-3)

# Factors on bandwidth and rate of the products of a quantised format. Assumed, until they are measured: they are what
# the kernels are meant to reach. FP8's rate is of the GPU's FP8 rate.
QUANTISED = {"bf16": (1.0, 1.0), "int8": (0.9, 0.9), "fp8": (0.9, 0.85), "nf4": (0.75, 0.8)}
