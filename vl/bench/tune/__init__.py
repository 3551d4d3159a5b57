"""Which tile configurations are fastest here: `vl bench tune OP` times an op's candidates on the shapes that matter.

Kernels are compiled ahead, in as many processes as there are CPUs: compiling takes far longer than measuring.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vl.bench.records import reason
from vl.bench.timing import measure
from vl.bench.tune.compile import compile_ahead
from vl.bench.tune.sweeps import OPS, Sweep, matching, sweeps_of
from vl.errors import DeviceError, InputError


@dataclass(frozen=True, slots=True)
class Result:
    """Milliseconds of every candidate of a sweep that runs here, fastest first; and why the others do not."""

    name: str
    now: Any
    times: list[tuple[float, Any]]
    failed: list[tuple[str, Any]]


def tune(op: str, *, only: str = "", say: Callable[[str], None] = lambda _: None) -> Iterator[Result]:
    """Measure every candidate of the sweeps that have `only` in their name.

    Raises:
        DeviceError: without a CUDA GPU.
        InputError: as `sweeps_of`.
    """
    if op not in OPS:
        raise InputError(f"nothing is tuned for {op!r}: choose one of {', '.join(OPS)}")
    if not torch.cuda.is_available():
        raise DeviceError("tile configurations are measured on a CUDA GPU, and there is none")
    device, began = torch.device("cuda"), time.monotonic()
    say("compiling")
    compiled = compile_ahead(op, only)
    say(f"compiled {compiled} kernels in {time.monotonic() - began:.0f} s")
    torch.manual_seed(0)
    for sweep in matching(sweeps_of(op, device), only):
        say(sweep.name)
        yield _measure(sweep, device)


def _measure(sweep: Sweep, device: torch.device) -> Result:
    result = Result(sweep.name, sweep.now, [], [])
    expected: Tensor | None = None  # what the first that runs computes, which is the table's entry if that does
    for candidate in dict.fromkeys((sweep.now, *sweep.candidates)):
        try:
            found = _first(sweep.run(candidate))
            expected = found if expected is None else expected
            if not _close(found, expected):
                result.failed.append(("computes something else", candidate))
                continue
            calls = [partial(sweep.run, candidate)]
            timing = measure(calls, device, how="graph" if sweep.graph else "device", budget=0.1)
        except Exception as error:  # more shared memory than this GPU has, for instance
            result.failed.append((reason(error), candidate))
            torch.cuda.synchronize(device)  # a lost context ends the tuning here
        else:
            result.times.append((timing.seconds * 1e3, candidate))
    result.times.sort(key=lambda pair: pair[0])
    return result


def _first(found: Any) -> Tensor:
    tensor: Tensor = found[0] if isinstance(found, tuple) else found
    return tensor


def _close(found: Tensor, expected: Tensor) -> bool:
    """Up to the rounding of another order of sums. A NaN is not close to anything."""
    difference = torch.linalg.vector_norm(found - expected, dtype=torch.float32)
    return bool(difference <= 1e-2 * torch.linalg.vector_norm(expected, dtype=torch.float32))


def as_python(results: Iterable[Result]) -> str:
    """The fastest candidate of every sweep, as data to paste into the op's table."""
    lines = ["BEST = {"]
    for result in results:
        if not result.times:
            continue
        best, entry = result.times[0]
        now = next((f"{ms:.4f}" for ms, candidate in result.times if candidate == result.now), "cannot run")
        lines.append(f"    {result.name!r}: {entry!r},  # {best:.4f} ms; now {now}")
    return "\n".join([*lines, "}"])
