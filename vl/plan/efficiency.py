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
# What those timings do not show, as they repeat one kernel, which starts while the one before it ends. A step of
# writing is a graph of short kernels of many kinds, and each takes this much more to start. From the step of one
# sequence of the whole model in NF4 on two H200s (docs/benchmarks.md): 9.44 ms, of which 15 us a layer are not in
# single timings of its operations.
START = 1e-6
# Kernels of a layer: 2 products or one more, attention, its norm or rotary, 2 norms, 2 of the router, 2 of the experts;
# and where ranks share it 2 sums, and one more to divide by the norm.
KERNELS, SPLIT_KERNELS = 11, 3
# Of each pass that ranks take: what goes between the caller's process and theirs. Measured in that run.
MESSAGES = 0.5e-3
# The vision tower: 76 tiles 37.0 -> 53.0 ms, 8 3.90 -> 6.75, 1 0.49 -> 1.86.
VISION = Efficiency(1.0, 0.73, 1.1e-3)


@dataclass(frozen=True, slots=True)
class Codes:
    """How products with the codes of a format compare with those with bf16.

    Attributes:
        bandwidth, rate: factors on the shares of an operation that reads the codes; FP8's is of the GPU's FP8 rate.
        written: the share of the bandwidth at which matrices are written out in bf16 beforehand, which large products
            do where they gain by it; 0 if they never do.
    """

    bandwidth: float
    rate: float
    written: float = 0.0

    def of(self, plain: Efficiency) -> Efficiency:
        return Efficiency(plain.bandwidth * self.bandwidth, plain.rate * self.rate, plain.fixed)


# Of experts and of projections. One H200, 28 November 2026.
# Layers and projections are in docs/benchmarks.md, "Products with quantised weights". Look-ups of NF4's codes limit it,
# not memory, hence the rate: more rows take more of them.
QUANTISED = {
    "bf16": (Codes(1.0, 1.0), Codes(1.0, 1.0)),
    "int8": (Codes(0.85, 0.7), Codes(0.9, 0.95)),
    "fp8": (Codes(0.85, 0.8), Codes(0.9, 0.95)),
    "nf4": (Codes(0.6, 0.044, written=0.9), Codes(0.63, 0.095, written=0.9)),
}
