"""Products with NF4 matrices, against the matrices that the reference writes out, in float64.

Without a GPU the kernels' inline PTX is executed by `ptx.Machine`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from text_backbone.kernels.moe import expert_mlp
from text_backbone.kernels.nf4 import linear, reference
from text_backbone.part import Part
from text_backbone.quantization.stored import Quantized

pytest.importorskip("triton")
import triton.language as tl
from triton.runtime import interpreter

from text_backbone.kernels.moe import nf4 as experts
from text_backbone.kernels.moe.sort import group
from text_backbone.kernels.nf4 import triton as kernels

from .ptx import Machine, check_registers, parsed

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float16
TOLERANCE = {torch.bfloat16: 5e-3, torch.float16: 1e-3, torch.float32: 1e-5}
SIXTEEN = [torch.bfloat16, torch.float16]
gpu = pytest.mark.gpu


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def machine(in_bounds: None, monkeypatch: pytest.MonkeyPatch) -> Machine | None:
    """Executes inline PTX where there is no GPU; what it loads from global memory is checked as all loads are."""
    if DEVICE == "cuda":
        return None
    builder = interpreter.interpreter_builder

    def load(addresses: Any, mask: Any, dtype: Any) -> Any:
        pointers = interpreter.TensorHandle(addresses, tl.pointer_type(dtype))
        return builder.create_masked_load(pointers, interpreter.TensorHandle(mask, tl.int1), None, "", "", False).data

    machine = Machine(load)
    monkeypatch.setattr(
        interpreter.InterpreterBuilder, "create_inline_asm",
        lambda self, asm, constraints, values, types, pure, pack: machine.run(asm, constraints, values, types, pack),
    )  # fmt: skip
    # What that gives is Triton's tuple; the interpreter's others are Python's.
    monkeypatch.setattr(tl.tuple, "__radd__", lambda self, other: tl.tuple([*other, *self]), raising=False)
    # A third of the time: every sum of integers once more in 64 bits.
    monkeypatch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
    general = interpreter.InterpretedFunction.__call__

    def call(self: Any, *args: Any, **options: Any) -> Any:
        """Another third: our functions find the language as their kernel left it, and need not patch it again."""
        ours = self.fn.__module__.startswith("text_backbone")
        return self.rewrite()(*args, **options) if ours else general(self, *args, **options)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
    for module in (kernels, experts):
        monkeypatch.setattr(module, "multiprocessors", lambda device: 1)
    return machine


def error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def stored(*shape: int) -> Quantized:
    return Quantized.of(torch.randn(*shape, device=DEVICE) * shape[-1] ** -0.5, "nf4")


def values(weight: Quantized) -> Tensor:
    weight.dtype = torch.float32
    return weight.read().double()


def part_of(whole: Quantized, *ranges: tuple[int, int]) -> Quantized:
    """A part of one quantised matrix."""
    part = Part((whole.rows, whole.columns), ranges)
    mine = Quantized("nf4", (), *part.shape, device=DEVICE, dtype=whole.dtype, part=part)
    for name, tensor in whole.at()._asdict().items():
        kept = getattr(mine, name)
        kept.copy_(mine.cut(name, tensor).reshape(kept.shape))
    return mine


def layer(x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """float64, what experts make of x [tokens, hidden] with weights w13 [E, 2, I, hidden] and w2 [E, hidden, I]."""
    out = torch.zeros(x.shape, device=DEVICE, dtype=torch.float64)
    for expert, ((w1, w3), down) in enumerate(zip(w13, w2, strict=True)):
        token, place = (chosen == expert).nonzero(as_tuple=True)
        h = F.silu(x[token].double() @ w1.T) * (x[token].double() @ w3.T)
        out.index_add_(0, token, weights[token, place, None].double() * (h @ down.T))
    return out


@pytest.mark.parametrize("dtype", [DTYPE, torch.float32])
@pytest.mark.parametrize("shape", [(5, 64), (3, 7, 192), (2, 70, 128), (2, 8, 40), (2, 128, 161)])
def test_matrices_are_written_out_to_the_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = stored(*shape)
    got = kernels.unpack(kernels.Weight(*weight.at(), 0, shape[-1] // 64), dtype, shape)
    assert torch.equal(got, reference.dequantize(*weight.at(), shape[-1], dtype))


@pytest.mark.parametrize("ranges", [((0, 300), (64, 320)), ((100, 200), (0, 384)), ((100, 300), (128, 192))])
def test_parts_of_a_matrix_are_written_out_as_they_are_in_the_whole(ranges: tuple[tuple[int, int], ...]) -> None:
    whole = stored(300, 384)
    part = part_of(whole, *ranges)
    got = kernels.unpack(kernels.Weight(*part.at(), part.first, part.stride), torch.float32, part.part.shape)
    whole.dtype = torch.float32
    assert torch.equal(got, part.part.of(whole.read()))


def test_arranged_rows_hold_every_value_once() -> None:
    x = torch.arange(2 * 256, device=DEVICE).to(torch.float32).view(2, 256)
    got = kernels.arrange(x)
    assert torch.equal(got.sort(dim=1).values, x)
    assert got[0, 8:16].tolist() == list(range(32, 40))
    assert got[1, 32:40].tolist() == list(range(264, 272))


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("count", [1, 3, 5, 9])
def test_few_rows(count: int, dtype: torch.dtype, machine: Machine | None) -> None:
    """Of a matrix whose rows do not fill tiles, and whose depth does not fill the warps."""
    weight, x = stored(40, 1536), torch.randn(count, 1536, device=DEVICE, dtype=dtype)
    got = kernels.linear(x, *weight.at())
    assert got.dtype == dtype
    assert error(got, x.double() @ values(weight).T) < TOLERANCE[dtype]
    if machine:
        # 16 look-ups for 4 products of a column tile: of the codes of 3 tiles, 2 chunks, 4 units.
        tiles = kernels.column_tiles(count)
        assert machine.conflicts == 0
        assert machine.counts["ld.shared.b32"] == 16 * 3 * 8
        assert sum(n for name, n in machine.counts.items() if name.startswith("mma")) == 4 * 3 * 8 * tiles


@pytest.mark.parametrize(("count", "depth"), [(1, 4608), (2, 4608), (1, 6656)])
def test_few_rows_of_a_deep_matrix(count: int, depth: int) -> None:
    """Warps have several parts of the depth each, and the last one has none; one row is kept in shared memory, unless
    it is too long."""
    weight, x = stored(16, depth), torch.randn(count, depth, device=DEVICE, dtype=DTYPE)
    assert error(kernels.linear(x, *weight.at()), x.double() @ values(weight).T) < TOLERANCE[DTYPE]


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("ranges", [((16, 56), (512, 1024)), ((7, 31), (0, 1536)), ((0, 24), (1024, 1536))])
def test_few_rows_with_a_part_of_a_matrix(ranges: tuple[tuple[int, int], ...], count: int) -> None:
    part = part_of(stored(60, 1536), *ranges)
    x = torch.randn(count, part.columns, device=DEVICE, dtype=DTYPE)
    got = kernels.linear(x, *part.at(), part.first, part.stride)
    assert error(got, x.double() @ values(part).T) < TOLERANCE[DTYPE]


@pytest.mark.parametrize("count", [1, 4])
def test_several_matrices_in_one_launch_are_each_as_alone(count: int) -> None:
    """To the bit; the first and the last do not fill their tiles, and what lies beside the results is not touched."""
    matrices = [stored(40, 512), stored(16, 512), stored(24, 512)]
    x = torch.randn(count, 512, device=DEVICE, dtype=DTYPE)
    weights = [kernels.Weight(*matrix.at(), 0, 8) for matrix in matrices]
    alone = [kernels.linear(x, *matrix.at()) for matrix in matrices]
    together = kernels.linears(x, weights)
    assert together is not None
    assert all(map(torch.equal, together, alone))
    beside = x.new_full((count, 48), 7.0)
    assert kernels.linear_to(beside[:, :40], x, weights[0])
    assert torch.equal(beside[:, :40], alone[0])
    assert (beside[:, 40:] == 7).all()


def test_parts_of_several_matrices_in_one_launch() -> None:
    """Whose first blocks have other numbers in their wholes, of which each has a different number of rows."""
    parts = [part_of(stored(96, 1024), (48, 96), (0, 1024)), part_of(stored(48, 1024), (24, 48), (0, 1024))]
    x = torch.randn(1, 1024, device=DEVICE, dtype=DTYPE)
    got = kernels.linears(x, [kernels.Weight(*part.at(), part.first, part.stride) for part in parts])
    assert got is not None
    for y, part in zip(got, parts, strict=True):
        assert error(y, x.double() @ values(part).T) < TOLERANCE[DTYPE]


def test_what_is_not_read_directly_is_not_computed_together() -> None:
    weights = [kernels.Weight(*stored(16, 512).at(), 0, stride) for stride in (8, 8, 16)]
    x = torch.randn(33, 512, device=DEVICE, dtype=DTYPE)
    assert kernels.linears(x, weights[:2]) is None  # too many rows
    assert kernels.linears(x[:1], weights) is None  # of wholes of unequal width
    assert kernels.linears(x[:1].float(), weights[:2]) is None
    assert not kernels.linear_to(x.new_empty(33, 16), x, weights[0])
    assert not kernels.linear_to(x.new_empty(1, 16, dtype=torch.float32), x[:1], weights[0])


@pytest.mark.parametrize("count", [1, 5, 9])
def test_rows_of_several_experts(count: int) -> None:
    """Sorted: the second expert has none, the last has most."""
    weight = stored(4, 24, 512)
    sizes = [count, 0, 1, 2 * count]
    bounds = torch.tensor([0, *sizes], device=DEVICE).cumsum(0).int()
    x = torch.randn(sum(sizes), 512, device=DEVICE, dtype=DTYPE)
    y = x.new_empty(len(x), 24)
    at = kernels.Weight(*weight.at(), 0, 8)
    kernels.few_linear(kernels.arrange(x), [at], [y], bounds, 4, True, kernels.column_tiles(count))
    wide = values(weight)
    want = [rows.double() @ wide[i].T for i, rows in enumerate(x.split(sizes))]
    assert error(y, torch.cat(want)) < TOLERANCE[DTYPE]


@pytest.mark.parametrize("ranges", [None, ((8, 24), (512, 1024))])
@pytest.mark.parametrize(("tokens", "top_k"), [(1, 1), (3, 2), (2, 4)])
def test_the_way_down_of_few_assignments(tokens: int, top_k: int, ranges: tuple[tuple[int, int], ...] | None) -> None:
    """Each by itself, summed over a token's experts."""
    count, (hidden, inner) = 9, (24, 512)
    weight = stored(count, hidden, inner)
    at, wide = kernels.Weight(*weight.at(), 0, inner // 64), values(weight)
    if ranges:
        parts = [part_of(stored(32, 1536), *ranges) for _ in range(count)]
        tensors = map(torch.stack, zip(*(part.at() for part in parts), strict=True))
        at = kernels.Weight(*tensors, parts[0].first, parts[0].stride)
        wide = torch.stack([values(part) for part in parts])
        hidden = wide.shape[1]
    h = torch.randn(tokens * top_k, inner, device=DEVICE, dtype=DTYPE)
    chosen = torch.rand(tokens, count, device=DEVICE).topk(top_k).indices
    weights = torch.rand(tokens, top_k, device=DEVICE).softmax(dim=1)
    got = experts.down(kernels.arrange(h), at, weights, chosen, hidden)
    want = torch.einsum("tki,tkhi,tk->th", h.double().view(tokens, top_k, inner), wide[chosen], weights.double())
    assert error(got, want) < TOLERANCE[DTYPE]


@pytest.mark.parametrize(("tokens", "count", "top_k", "columns"), [(1, 4, 2, 0), (5, 2, 2, 2), (9, 1, 1, 4)])
def test_the_way_up(tokens: int, count: int, top_k: int, columns: int) -> None:
    """Without column tiles each assignment by itself, else sorted."""
    hidden, inner = 512, 128
    weight = stored(count, 2, inner, hidden)
    x = torch.randn(tokens, hidden, device=DEVICE, dtype=DTYPE)
    chosen = torch.rand(tokens, count, device=DEVICE).topk(top_k).indices
    h = x.new_empty(tokens * top_k, inner)
    at = kernels.Weight(*weight.at(), 0, hidden // 64)
    order = torch.arange(tokens * top_k, device=DEVICE)
    if columns:
        groups = group(chosen, count)
        order = groups.order.long()
        experts.up(kernels.arrange(x), at, groups.order, groups.bounds, h, inner, columns)
    else:
        experts.up(x, at, chosen, None, h, inner, 1)
    w1, w3 = values(weight)[chosen.flatten()[order]].unbind(1)  # [assignments, inner, hidden] each
    rows = x.double()[order // top_k]
    want = F.silu(torch.einsum("rh,rih->ri", rows, w1)) * torch.einsum("rh,rih->ri", rows, w3)
    assert error(h, kernels.arrange(want.float())) < TOLERANCE[DTYPE]


@pytest.mark.parametrize("alone", [8, 0])
def test_a_layer_of_few_rows(alone: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way of a token and of two, unsorted and sorted."""
    monkeypatch.setattr(experts, "_ALONE", alone)
    tokens, count, top_k = (1, 2, 1) if alone else (2, 1, 1)
    w13, w2 = stored(count, 2, 512, 512), stored(count, 512, 512)
    x = torch.randn(tokens, 512, device=DEVICE, dtype=DTYPE)
    chosen, weights = torch.rand(tokens, count, device=DEVICE).topk(top_k).indices, torch.rand(tokens, top_k).to(DEVICE)
    got = experts.expert_mlp(x, w13, w2, weights, chosen)
    assert error(got, layer(x, values(w13), values(w2), weights, chosen)) < 2 * TOLERANCE[DTYPE]


@gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("rows", "columns"), [(48, 512), (40, 1536), (3, 1024), (96, 320)])
def test_linear(rows: int, columns: int, dtype: torch.dtype) -> None:
    weight = stored(rows, columns)
    for count in (1, 2, 3, 5, 8, 9, 31, 33, 200):
        x = torch.randn(count, columns, device=DEVICE, dtype=dtype)
        got = linear(x, *weight.at())
        assert got.dtype == dtype
        assert error(got, x.double() @ values(weight).T) < TOLERANCE[dtype], count


@gpu
@pytest.mark.parametrize("ranges", [((0, 300), (512, 1024)), ((144, 300), (0, 1536))])
def test_linear_with_a_part_of_a_matrix(ranges: tuple[tuple[int, int], ...]) -> None:
    part = part_of(stored(300, 1536), *ranges)
    for count in (1, 4, 40):
        x = torch.randn(count, part.columns, device=DEVICE, dtype=DTYPE)
        got = linear(x, *part.at(), part.first, part.stride)
        assert error(got, x.double() @ values(part).T) < TOLERANCE[DTYPE]


@gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("hidden", "inner", "count", "top_k"),
    [(512, 1024, 4, 2), (1024, 512, 5, 1), (512, 512, 12, 8), (128, 192, 6, 2), (1024, 576, 3, 2)],
)
def test_experts(hidden: int, inner: int, count: int, top_k: int, dtype: torch.dtype) -> None:
    w13, w2 = stored(count, 2, inner, hidden), stored(count, hidden, inner)
    wide13, wide2 = values(w13), values(w2)
    for tokens in (1, 2, 3, 7, 20, 64, 300):
        x = torch.randn(tokens, hidden, device=DEVICE, dtype=dtype)
        chosen = torch.rand(tokens, count, device=DEVICE).topk(top_k).indices
        if tokens == 20:
            chosen[:] = torch.arange(top_k, device=DEVICE)  # experts without a token
        weights = torch.rand(tokens, top_k, device=DEVICE).softmax(dim=1)
        got = expert_mlp(x, w13, w2, weights, chosen)
        assert error(got, layer(x, wide13, wide2, weights, chosen)) < 2 * TOLERANCE[dtype], tokens


@pytest.mark.parametrize(("hidden", "inner"), [(64, 40), (40, 64), (24, 16)])
def test_experts_whose_blocks_run_from_one_row_into_the_next(
    hidden: int, inner: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By kernels too: the reference reads sizes back, which no CUDA graph can record."""
    monkeypatch.delattr(experts.reference, "expert_mlp")
    w13, w2 = stored(3, 2, inner, hidden), stored(3, hidden, inner)
    x = torch.randn(5, hidden, device=DEVICE, dtype=DTYPE)
    chosen = torch.rand(5, 3, device=DEVICE).topk(2).indices
    weights = torch.rand(5, 2, device=DEVICE).softmax(dim=1)
    got = experts.expert_mlp(x, w13, w2, weights, chosen)
    assert error(got, layer(x, values(w13), values(w2), weights, chosen)) < 2 * TOLERANCE[DTYPE]


@gpu
def test_gradients_reach_what_is_multiplied() -> None:
    weight = stored(64, 512)
    x = torch.randn(3, 512, device=DEVICE, dtype=DTYPE, requires_grad=True)
    linear(x, *weight.at()).sum().backward()
    assert x.grad is not None
    assert error(x.grad, values(weight).sum(dim=0).expand(3, -1)) < 1e-2


@gpu
@pytest.mark.parametrize(("hidden", "inner"), [(512, 512), (256, 160)])
def test_a_decode_step_is_captured_in_a_graph(hidden: int, inner: int) -> None:
    w13, w2 = stored(4, 2, inner, hidden), stored(4, hidden, inner)
    for tokens in (1, 6, 400):
        x = torch.randn(tokens, hidden, device=DEVICE, dtype=DTYPE)
        chosen, weights = torch.rand(tokens, 4, device=DEVICE).topk(2).indices, torch.rand(tokens, 2, device=DEVICE)
        want = expert_mlp(x, w13, w2, weights, chosen)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = expert_mlp(x, w13, w2, weights, chosen)
        graph.replay()
        assert torch.equal(got, want)


def test_an_output_in_the_register_of_an_input_that_is_read_later_is_found() -> None:
    block = parsed("mov.u32 $0, 5;\nadd.u32 $0, $0, $1;")
    check_registers(block, ["=&r", "r"])
    with pytest.raises(AssertionError, match="may be overwritten"):
        check_registers(block, ["=r", "r"])


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from text_backbone.kernels.nf4 import few

sizes = {"NESTED": 2, "E": 1, "EP": 2, "NT": 2, "TOP_K": 2, "HIDDEN": 512, "INNER": 512, "K": 512, "N": 40}
sizes |= {"SORTED": False, "ONE": True, "ARRANGED": True, "WARPS": 4, "EARLY": True}
numbers = ("rows", "assignments", "tokens", "first", "stride", "apart")
types = dict.fromkeys(("codes", "scales"), "*u8") | dict.fromkeys(("nested", "offset", "weights"), "*fp32")
types |= {"pairs": "*i32", "bounds": "*i32"} | dict.fromkeys(numbers, "i32") | dict.fromkeys(sizes, "constexpr")
each = ("codes", "scales", "nested", "offset", "y", "apart", "first", "N", "NESTED")  # of several matrices
for kernel, experts in ((few.linear_kernel, ""), (few.up_kernel, "*i32"), (few.down_kernel, "*i64")):
    signature = {name: (types | {"experts": experts}).get(name, "*bf16") for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): sizes[name] for name in kernel.arg_names if name in sizes}
    for name in each if kernel is few.linear_kernel else ():
        signature[name] = (signature[name],) * 2
        if name in sizes:
            at = kernel.arg_names.index(name)
            del values[at,]
            values |= {(at, 0): sizes[name], (at, 1): sizes[name]}
    triton.compile(ASTSource(kernel, signature, values), target=GPUTarget("cuda", 90, 32))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings its compiler on Linux only")
def test_the_kernels_of_few_rows_compile() -> None:
    """Of the PTX that is executed here, the assembler has its own opinion."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
