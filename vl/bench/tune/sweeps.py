"""What is tuned: a kernel on a shape, with the candidates of its table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from vl.errors import InputError

OPS = {
    "moe": "vl.bench.tune.moe",
    "row-scaled": "vl.bench.tune.row_scaled",
    "nf4": "vl.bench.tune.nf4",
    "lightning": "vl.bench.tune.lightning",
}


@dataclass(frozen=True, slots=True)
class Sweep:
    """One kernel on one shape.

    Attributes:
        name: of the kernel and the shape.
        candidates: entries of the kernel's table.
        run: launches the kernel as a candidate has it.
        now: the entry that the table has for this shape.
        graph: whether the kernel is so short that it is timed in a CUDA graph.
    """

    name: str
    candidates: tuple[Any, ...]
    run: Callable[[Any], object]
    now: Any
    graph: bool = False


def sweeps_of(op: str, device: torch.device) -> Iterator[Sweep]:
    """The sweeps of an op; on the meta device their inputs have shapes only, enough to compile.

    Raises:
        InputError: if there is no such op.
    """
    if op not in OPS:
        raise InputError(f"nothing is tuned for {op!r}: choose one of {', '.join(OPS)}")
    yield from import_module(OPS[op]).sweeps(device)


def matching(sweeps: Iterable[Sweep], only: str) -> Iterator[Sweep]:
    return (sweep for sweep in sweeps if only.casefold() in sweep.name.casefold())
