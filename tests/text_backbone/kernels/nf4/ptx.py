"""The inline PTX of our kernels, executed in Triton's interpreter, which has none, as NVIDIA's PTX ISA describes it.

A block of assembly is parsed and its instructions are done in order by all threads at once, on registers that hold
bits: uint32 or uint64, one element per thread. What a GPU answers with a fault or at random is an error here: an
address that is not aligned, shared memory that nothing has written, an output that may share a register with an input
which is read later.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime.interpreter import TensorHandle

Bits = NDArray[Any]  # uint32 or uint64 [threads], what a register holds

WARP = 32
SHARED = 4096  # the address at which shared memory begins: not 0, so that what is added twice is seen
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")
_SHARED = re.compile(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\]")


@dataclass(frozen=True)
class Instruction:
    guard: str
    name: str
    operands: tuple[str, ...]


@cache
def parsed(asm: str) -> tuple[Instruction, ...]:
    body = asm.strip()
    if body.startswith("{\n"):
        body = body[1:-1]
    instructions = []
    for line in filter(None, map(str.strip, body.split(";"))):
        if line.startswith(".reg"):
            continue
        guard = ""
        if line.startswith("@"):
            guard, line = line[1:].split(maxsplit=1)
        name, rest = line.split(maxsplit=1)
        instructions.append(Instruction(guard, name, (rest,) if name == ".shared" else tuple(_OPERAND.findall(rest))))
    return tuple(instructions)


@dataclass
class Results:
    """What the interpreter asks of an operation with several results."""

    handles: list[TensorHandle]

    def get_result(self, index: int) -> TensorHandle:
        return self.handles[index]


@dataclass
class Machine:
    """Shared memory of the program that runs, and what all programs did.

    Attributes:
        load: reads global memory: (addresses, mask, dtype of Triton) -> values.
        conflicts: times that lanes of a warp, loading 4 bytes each, wanted different words of one bank.
        counts: how often each instruction was executed.
    """

    load: Callable[[Bits, NDArray[np.bool_], tl.dtype], NDArray[Any]]
    shared: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    written: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    conflicts: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def run(self, asm: str, constraints: str, values: list[TensorHandle], types: list[tl.dtype], pack: int) -> Results:
        """As `create_inline_asm` of Triton's builder."""
        assert pack == 1, "one element of every tensor per thread"
        kinds = constraints.split(",")
        outputs = [kind for kind in kinds if kind.startswith("=")]
        assert len(kinds) == len(outputs) + len(values)
        assert len(outputs) == len(types)
        check_registers(parsed(asm), kinds)
        registers: dict[str, Bits] = {}
        for i, (kind, value) in enumerate(zip(kinds[len(outputs) :], values, strict=True), len(outputs)):
            registers[f"${i}"] = bits(value.data, kind)
        threads = registers[f"${len(outputs)}"].size
        assert threads % WARP == 0, "whole warps"
        for instruction in parsed(asm):
            self.counts[instruction.name] = self.counts.get(instruction.name, 0) + 1
            Step(self, registers, threads, instruction).do()
        handles = []
        for i, (kind, to) in enumerate(zip(outputs, types, strict=True)):
            word = registers[f"${i}"]
            assert word.itemsize == (8 if "l" in kind else 4), f"${i} is not of the width of {kind}"
            number = {tl.float32: np.float32, tl.int32: np.int32, tl.int64: np.int64}[to.scalar]
            handles.append(TensorHandle(word.view(number), to.scalar))
        return Results(handles)


def bits(values: NDArray[Any], kind: str) -> Bits:
    width = 8 if kind == "l" else 4
    assert values.itemsize == width, f"an operand of {values.itemsize} bytes in a register of {width}"
    return np.ascontiguousarray(values).view(np.uint64 if width == 8 else np.uint32)


def check_registers(instructions: tuple[Instruction, ...], kinds: list[str]) -> None:
    """An output that is written before the last input is read must be marked `&`, or may be the same register."""
    late = {f"${i}" for i, kind in enumerate(kinds) if kind.startswith("=") and "&" not in kind}
    inputs = {f"${i}" for i, kind in enumerate(kinds) if not kind.startswith("=")}
    written: set[str] = set()
    for instruction in instructions:
        named = [re.findall(r"\$\d+", operand) for operand in instruction.operands]
        stores = instruction.name.startswith("st.")
        read = {name for names in named[0 if stores else 1 :] for name in names}
        assert not (written and read & inputs), f"{written} may be overwritten: {instruction}"
        written |= set() if stores else set(named[0]) & late


@dataclass
class Step:
    """One instruction on the threads of a program."""

    machine: Machine
    registers: dict[str, Bits]
    threads: int
    instruction: Instruction

    def do(self) -> None:
        name, operands = self.instruction.name, self.instruction.operands
        if name == ".shared":
            self._allocate(operands[0])
        elif name.startswith("bar.warp.sync"):
            assert operands == ("0xffffffff",), "all lanes"
        elif name in ("mov.u32", "mov.b32", "mov.f32"):
            self._set(operands[0], self._word(operands[1]))
        elif name == "mov.b64":
            self._move_wide(*operands)
        elif name == "add.u32":
            self._set(operands[0], self._word(operands[1]) + self._word(operands[2]))
        elif name == "mad.lo.u32":
            self._set(operands[0], self._word(operands[1]) * self._word(operands[2]) + self._word(operands[3]))
        elif name == "setp.ne.b32":
            self._set(operands[0], self._word(operands[1]) != self._word(operands[2]))
        elif name == "prmt.b32":
            self._set(operands[0], permuted(*map(self._word, operands[1:])))
        elif name == "shfl.sync.idx.b32":
            self._shuffle(*operands)
        elif name in ("st.shared.v4.b32", "st.shared.v2.b64"):
            self._store_shared(*operands)
        elif name == "ld.shared.v2.b64":
            self._load_shared_pair(*operands)
        elif name == "ld.shared.b32":
            self._load_shared(*operands)
        elif name.startswith("ld.global.") and name.endswith("v2.b64"):
            self._load_pair(*operands)
        elif name.startswith("mma.sync.aligned.m16n8k16.row.col.f32."):
            self._multiply(name.split(".")[7:9], *operands)
        else:
            raise NotImplementedError(f"PTX instruction {name}")

    def _word(self, operand: str) -> Bits:
        """A 32-bit operand: a register or a number."""
        if operand in self.registers:
            return self.registers[operand]
        return np.full(self.threads, int(operand, 0), np.uint32)

    def _set(self, register: str, value: Bits) -> None:
        if self.instruction.guard:
            value = np.where(self.registers[self.instruction.guard], value, self.registers[register])
        self.registers[register] = value

    def _move_wide(self, to: str, what: str) -> None:
        """Between 64 bits and two registers, the first of which is the lower half."""
        if to.startswith("{"):
            halves = self.registers[what].view(np.uint32).reshape(-1, 2)
            for i, register in enumerate(names(to)):
                self._set(register, halves[:, i].copy())
        elif what.startswith("{"):
            halves = np.stack([self._word(register) for register in names(what)], axis=1)
            self._set(to, halves.view(np.uint64)[:, 0])
        else:
            self._set(to, np.full(self.threads, int(what, 0), np.uint64))

    def _shuffle(self, to: str, what: str, source: str, clamp: str, members: str) -> None:
        assert (clamp, members) == ("0x1f", "0xffffffff"), "among all lanes of a warp"
        thread = np.arange(self.threads)
        self._set(to, self._word(what)[thread // WARP * WARP + self._word(source) % WARP])

    def _allocate(self, what: str) -> None:
        found = _SHARED.fullmatch(f".shared {what}")
        assert found, what
        assert SHARED % int(found[1]) == 0
        self.machine.shared = np.zeros(int(found[3]), np.uint8)
        self.machine.written = np.zeros(int(found[3]), np.bool_)
        self.registers[found[2]] = np.full(self.threads, SHARED, np.uint32)

    def _places(self, address: Bits, width: int) -> NDArray[np.int64]:
        """int64 [threads, width]: bytes of shared memory."""
        start = address.astype(np.int64) - SHARED
        assert (start % width == 0).all(), "shared memory is not aligned"
        assert (start >= 0).all(), "before shared memory"
        assert (start + width <= self.machine.shared.size).all(), "past the end of shared memory"
        return start[:, None] + np.arange(width)

    def _store_shared(self, address: str, values: str) -> None:
        at = self._places(self._word(address[1:-1]), 16)
        words = np.stack([self.registers[register] for register in names(values)], axis=1)
        self.machine.shared[at] = words.view(np.uint8)
        self.machine.written[at] = True

    def _load_shared(self, to: str, address: str) -> None:
        at = self._places(self._word(address[1:-1]), 4)
        assert self.machine.written[at].all(), "shared memory that nothing has written"
        word = at[:, 0] // 4
        apart = np.diff(np.sort((word % WARP * self.machine.shared.size + word).reshape(-1, WARP), axis=1), axis=1)
        self.machine.conflicts += int(((apart > 0) & (apart < self.machine.shared.size // 2)).sum())
        self._set(to, self.machine.shared[at].view(np.uint32)[:, 0])

    def _load_shared_pair(self, to: str, address: str) -> None:
        guard = self.instruction.guard
        mask = self.registers[guard] if guard else np.ones(self.threads, np.bool_)
        start = np.where(mask, self.registers[address[1:-1]], np.uint32(SHARED))  # those left out load what is there
        at = self._places(start, 16)
        assert self.machine.written[at].all(), "shared memory that nothing has written"
        words = self.machine.shared[at].view(np.uint64)
        for i, register in enumerate(names(to)):
            self._set(register, words[:, i].copy())

    def _load_pair(self, to: str, address: str) -> None:
        start = self.registers[address[1:-1]]
        guard = self.instruction.guard
        mask = self.registers[guard] if guard else np.ones(self.threads, np.bool_)
        assert (start[mask] % 16 == 0).all(), "16 bytes that are not aligned"
        for i, register in enumerate(names(to)):
            self._set(register, self.machine.load(start + np.uint64(8 * i), mask, tl.int64).view(np.uint64))

    def _multiply(self, dtypes: list[str], to: str, left: str, right: str, sums: str) -> None:
        """D = A B + C by warp. Of a lane, g = lane / 4 and t = lane % 4, and h the half of a register:

        A [16, 16]: register i has row g + 8 (i % 2), columns 2 t + h + 8 (i / 2); B [16, 8]: register i has rows
        2 t + h + 8 i of column g; C and D [16, 8]: register i has row g + 8 (i / 2), column 2 t + i % 2.
        """
        assert dtypes[0] == dtypes[1]
        lane = np.arange(WARP)
        g, t = lane // 4, lane % 4
        warps = self.threads // WARP
        a, b = np.empty((warps, 16, 16), np.float64), np.empty((warps, 16, 8), np.float64)
        for i, register in enumerate(names(left)):
            for h, value in enumerate(halves_of(self._word(register), dtypes[0])):
                a[:, g + 8 * (i % 2), 2 * t + h + 8 * (i // 2)] = value.reshape(warps, WARP)
        for i, register in enumerate(names(right)):
            for h, value in enumerate(halves_of(self._word(register), dtypes[0])):
                b[:, 2 * t + h + 8 * i, g] = value.reshape(warps, WARP)
        product = a @ b
        for i, (register, start) in enumerate(zip(names(to), names(sums), strict=True)):
            mine = product[:, g + 8 * (i // 2), 2 * t + i % 2].reshape(self.threads)
            self._set(register, (mine + self._word(start).view(np.float32)).astype(np.float32).view(np.uint32))


def names(vector: str) -> list[str]:
    """Of `{a, b}` or of a single register."""
    return [name.strip() for name in vector.strip("{}").split(",")]


def permuted(a: Bits, b: Bits, selector: Bits) -> Bits:
    """Bytes of b and a (a's are the lower four), one for each of four digits of the selector."""
    pool = np.stack([a, b], axis=1).view(np.uint8)  # [threads, 8]
    digits = (selector[:, None] >> np.arange(0, 16, 4, dtype=np.uint32)) & 15
    assert (digits < 8).all(), "a byte's sign"
    return np.take_along_axis(pool, digits.astype(np.int64), axis=1).copy().view(np.uint32)[:, 0]


def halves_of(words: Bits, dtype: str) -> list[NDArray[np.float32]]:
    """float32, what the lower and the upper 16 bits stand for."""
    parts = [(words & np.uint32(0xFFFF)), words >> np.uint32(16)]
    if dtype == "bf16":
        return [(part << np.uint32(16)).view(np.float32) for part in parts]
    assert dtype == "f16"
    return [part.astype(np.uint16).view(np.float16).astype(np.float32) for part in parts]
