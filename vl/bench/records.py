"""What a benchmark compares, and what it finds: work, floors, records and their ratios."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

OURS, REFERENCE = "ours", "reference"
ABSENT = "not installed"

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this machine reaches: bytes a second read and written by a copy, and operations a second of a matmul."""

    bandwidth: float
    rate: float


@dataclass(frozen=True, slots=True)
class Work:
    """What an op cannot avoid: bytes between memory and processor, and floating-point operations."""

    bytes: float
    flops: float

    def floor(self, ceilings: Ceilings) -> float:
        """Seconds that no implementation can beat on a machine with these ceilings."""
        return max(self.bytes / ceilings.bandwidth, self.flops / ceilings.rate)


@dataclass(frozen=True, slots=True)
class Setting:
    """How a run measures. `dtype`: bfloat16 on a GPU, float32 on a CPU, whose bfloat16 is no faster.

    quantization: the format of the model's weights; None leaves them in `dtype`.
    """

    device: torch.device
    small: bool
    quick: bool
    memory: int = 0
    quantization: str | None = None

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


@dataclass(frozen=True, slots=True)
class Contest:
    """One shape of one op, its inputs made.

    Attributes:
        floor: seconds, from the machine's ceilings.
        contenders: by name, what makes the calls to time; made one after another, so that their inputs need not fit
            into memory together. `ImportError` says that a peer is not installed.
        how: `device` for the device's time of one call, `graph` for that of short calls in a CUDA graph, `wall` for
            what a caller waits.
        held: bytes on the device that do not count as the contenders' memory; None for those held when they start.
    """

    floor: Callable[[Ceilings], float]
    contenders: dict[str, Callable[[], Sequence[Call]]]
    how: str = "device"
    held: int | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """A row of a table before it is measured.

    Attributes:
        op, name: the table and the row.
        size, unit: the row's place on a chart's axis, as in 2048 tokens.
        build: makes the inputs.
        group: cases of one group share a process.
    """

    op: str
    name: str
    size: int
    unit: str
    build: Callable[[], Contest]
    group: str


@dataclass(frozen=True, slots=True)
class Record:
    """One contender on one case. `seconds` is None where it failed, and `error` then says why.

    `floor`: seconds; `peak`: bytes on the device beyond what was there before, 0 on a CPU; `method`: how the time was
    taken.
    """

    op: str
    name: str
    size: int
    unit: str
    contender: str
    seconds: float | None = None
    floor: float | None = None
    peak: int = 0
    method: str = ""
    error: str = ""

    @property
    def over_floor(self) -> float | None:
        return self.seconds / self.floor if self.seconds and self.floor else None

    @property
    def rate(self) -> float | None:
        """Units a second."""
        return self.size / self.seconds if self.seconds else None


@dataclass(slots=True)
class Report:
    """A run's findings, in the order they came."""

    machine: dict[str, Any]
    ceilings: Ceilings
    records: list[Record] = field(default_factory=list)

    def ops(self) -> list[str]:
        return list(dict.fromkeys(record.op for record in self.records))

    def of(self, op: str) -> list[Record]:
        return [record for record in self.records if record.op == op]

    def find(self, record: Record, contender: str) -> Record | None:
        """The record of `contender` on the same case."""
        same = (r for r in self.records if (r.op, r.name, r.contender) == (record.op, record.name, contender))
        return next(same, None)

    def ours_over(self, record: Record) -> float | None:
        """Our time over this contender's on the same case: below 1 we are faster."""
        ours = self.find(record, OURS)
        if ours is None or ours.seconds is None or not record.seconds:
            return None
        return ours.seconds / record.seconds

    def as_json(self) -> dict[str, Any]:
        records = [
            asdict(record) | {"over_floor": record.over_floor, "ours_over": self.ours_over(record), "rate": record.rate}
            for record in self.records
        ]
        return {"machine": self.machine, "ceilings": asdict(self.ceilings), "records": records}


def reason(error: Exception) -> str:
    """An exception in one line."""
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first[:300]}"
