"""How the weights are stored: what a format quantises, and the bytes that it takes."""

from __future__ import annotations

from dataclasses import dataclass

from vl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Storage:
    """How a matrix [rows, columns] is stored: bytes of a value, scales of its block included, of a row, and once.

    `block`: so many columns are quantised together, and a part of a matrix has whole ones.
    """

    name: str
    value: float
    row: float = 0
    once: float = 0
    block: int = 1

    def bytes(self, rows: int, columns: int) -> float:
        return rows * (columns * self.value + self.row) + self.once


BF16 = Storage("bf16", 2)
INT8 = Storage("int8", 1, row=4)  # a float32 scale per output channel
FP8 = Storage("fp8", 1, row=4)  # e4m3, scaled likewise
# Blocks of 64 values with a scale of eight bits, and of those blocks of 256 with a float32 one: 4.127 bits a value. The
# scales' mean is stored beside them.
NF4 = Storage("nf4", 1 / 2 + 1 / 64 + 4 / (64 * 256), once=4, block=64)


@dataclass(frozen=True, slots=True)
class Format:
    """A format of the decoder's large matrices: the experts and the attention projections.

    Everything else (router, norms, embeddings, `lm_head`, vision tower, projector) stays in bfloat16, as do keys and
    values; lightning states are float32.
    """

    name: str
    experts: Storage
    attention: Storage


FORMATS = {storage.name: Format(storage.name, storage, storage) for storage in (BF16, INT8, FP8, NF4)}


def find_format(name: str) -> Format:
    """Raises ConfigError if there is no such format."""
    if name.lower() not in FORMATS:
        raise ConfigError(f"quantization {name!r} is not known: known are {', '.join(FORMATS)}")
    return FORMATS[name.lower()]
