"""The kernels against the reference in float64: in Triton's interpreter, and at real sizes on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from text_backbone import Packed
from text_backbone.kernels.lightning import configs, decode, reference
from text_backbone.kernels.lightning import triton as kernels
from text_backbone.kernels.lightning.configs import Tiles

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# Triton's interpreter multiplies bfloat16 wrongly; on a GPU most of the time is spent compiling, for each pair anew.
DTYPES = [torch.bfloat16] if CUDA else [torch.float32]
CASES = [(dtype, d) for dtype in DTYPES for d in (32, 64, 128)] + [(torch.float32 if CUDA else torch.float16, 64)]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 3e-3}
SLOPES = (0.0, 0.917, 1e-6, 0.03, 3.0, 50.0)
GENTLE = (0.0, 0.917, 1e-6, 0.03, 1.25)  # that the kernels for Hopper take
HOPPER = CUDA and torch.cuda.get_device_capability() == (9, 0)


def error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want).norm() / want.norm().clamp(min=1e-30)).item()


def sample(
    lengths: list[int], heads: int, d: int, dtype: torch.dtype, rates: tuple[float, ...] = SLOPES
) -> tuple[Tensor, Tensor, Packed]:
    generator = torch.Generator(DEVICE).manual_seed(0)
    # Undecayed sums over 70 000 tokens would pass the largest float16.
    scale = 0.2 if dtype == torch.float16 else 1.0
    qkv = (scale * torch.randn(sum(lengths), heads * 3 * d, generator=generator, device=DEVICE)).to(dtype)
    slopes = torch.tensor([rates[h % len(rates)] for h in range(heads)], device=DEVICE)
    slots = [2 * i + 1 for i in range(len(lengths))][::-1]
    return qkv, slopes, Packed.of(lengths, slots=slots, device=DEVICE)


def small_segments(monkeypatch: pytest.MonkeyPatch, segment: int, piece: int) -> None:
    """Whatever the batch, cut it into segments and pieces of about these many tokens."""
    cut = kernels.cut
    monkeypatch.setattr(kernels, "cut", lambda packed, size, piece_, link: cut(packed, segment, piece, link))


def check_forward(
    lengths: list[int],
    heads: int,
    d: int,
    dtype: torch.dtype,
    rates: tuple[float, ...] = SLOPES,
    tolerance: float | None = None,
) -> None:
    tolerance = tolerance or TOLERANCE[dtype]
    qkv, slopes, packed = sample(lengths, heads, d, dtype, rates)
    states = torch.randn(2 * len(lengths) + 1, heads, d, d, device=DEVICE)
    before, wide = states.clone(), states.double()
    want = reference.lightning_attention(qkv.double(), slopes, packed, wide)
    with torch.inference_mode():
        got = kernels.lightning_attention(qkv, slopes, packed, states)
    assert got.dtype == dtype
    assert error(got, want) < tolerance
    for head in range(heads):  # those that keep least have the smallest outputs
        assert error(got.unflatten(1, (heads, d))[:, head], want.unflatten(1, (heads, d))[:, head]) < 1.5 * tolerance
    assert error(states, wide) < tolerance
    assert torch.equal(states[::2], before[::2])  # the slots of no sequence
    got = kernels.lightning_attention(qkv, slopes, packed)
    assert error(got, reference.lightning_attention(qkv.double(), slopes, packed)) < tolerance


def check_backward(
    lengths: list[int], heads: int, d: int, dtype: torch.dtype, rates: tuple[float, ...] = SLOPES
) -> None:
    qkv, slopes, packed = sample(lengths, heads, d, dtype, rates)
    by_out = torch.randn(sum(lengths), heads * d, device=DEVICE).to(dtype)
    exact, ours = qkv.double().requires_grad_(), qkv.requires_grad_()
    (want,) = torch.autograd.grad(reference.lightning_attention(exact, slopes, packed), exact, by_out.double())
    out = kernels.lightning_attention(ours, slopes, packed)
    (got,) = torch.autograd.grad(out, ours, by_out)
    assert got.dtype == dtype
    assert error(got, want) < 1.5 * TOLERANCE[dtype]
    three, wanted = got.unflatten(-1, (heads, 3, d)), want.unflatten(-1, (heads, 3, d))
    for part in range(3):
        assert error(three[:, :, part], wanted[:, :, part]) < 2 * TOLERANCE[dtype]
        for head in range(heads):
            assert error(three[:, head, part], wanted[:, head, part]) < 2 * TOLERANCE[dtype]


SMALL = {32: [5, 64, 1, 150], 64: [3, 130], 128: [70, 1]}  # lengths, by head dim


@pytest.mark.parametrize(("dtype", "d"), CASES)
def test_single_segments(dtype: torch.dtype, d: int) -> None:
    check_forward(SMALL[d], 2, d, dtype)
    check_backward(SMALL[d], 2, d, dtype)


@pytest.mark.parametrize(("dtype", "d"), CASES)
def test_chains(dtype: torch.dtype, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small_segments(monkeypatch, *{32: (64, 32), 64: (64, 64), 128: (32, 16)}[d])
    check_forward(SMALL[d], 2, d, dtype)
    check_backward(SMALL[d], 2, d, dtype)


@pytest.mark.parametrize(("dtype", "d"), CASES)
def test_decode(dtype: torch.dtype, d: int) -> None:
    check_forward([1] * 3, 2, d, dtype)


@pytest.mark.parametrize("values", sorted({columns.values for columns in decode.CANDIDATES}))
def test_every_split_of_decode_is_the_same_op(values: int) -> None:
    qkv, slopes, packed = sample([1, 1], 2, 128, torch.float32)
    states = torch.randn(4, 2, 128, 128, device=DEVICE)
    wide = states.double()
    want = reference.lightning_attention(qkv.double(), slopes, packed, wide)
    got = decode.decode(qkv, slopes, packed, states, decode.Columns(values, 4))
    assert error(got, want) < 1e-5
    assert error(states, wide) < 1e-5


def test_segments_fill_the_gpu_and_few_tokens_are_not_cut() -> None:
    walk, gain = Tiles(64, 64, 4, 3, 256), Tiles(64, 128, 8, 3, 512)

    def cut(lengths: list[int], heads: int = 64, d: int = 128) -> tuple[int, int, int]:
        segments = kernels.segments_for(Packed.of(lengths), heads, d, walk, gain)
        return segments.size, segments.piece, segments.cells

    assert cut([2048])[2] == 0
    assert cut([2048] * 16)[2] == 0
    assert cut([32768]) == (16384, 4096, 8)
    assert cut([1]) == (512, 512, 0)
    assert cut([1024], heads=32)[2] == 0
    assert cut([2048], heads=32)[0] == 512
    size, piece, _ = cut([1000] * 60 + [10_000] * 3, heads=4, d=64)
    assert (size, piece) == (1024, 512)


LARGE = [
    ([1000] * 20 + [10_000, 1, 63, 64, 65, 1025, 4097], 4, 64),
    ([70_000, 1, 300], 2, 128),
    ([2048] * 3, 16, 128),
    ([20_000, 7], 6, 32),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("lengths", "heads", "d"), LARGE)
def test_real_sizes(lengths: list[int], heads: int, d: int) -> None:
    check_forward(lengths, heads, d, torch.bfloat16)
    check_backward(lengths, heads, d, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
@pytest.mark.parametrize("segment", [None, 512, 1024])
@pytest.mark.parametrize(
    "lengths", [[1, 63, 64, 65, 2048, 4097, 700], [70_000, 1, 300], [64], [2048] * 16, [130] * 300]
)
def test_the_kernels_for_hopper(lengths: list[int], segment: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = 3
    qkv, slopes, _ = sample([2], heads, 128, torch.bfloat16, GENTLE)
    assert kernels._hopper(qkv, slopes, 128, None)
    assert not kernels._hopper(qkv, slopes + 2, 128, None)  # decays that bfloat16 could not hold
    if segment:
        small_segments(monkeypatch, segment, 256)
    for rates in (GENTLE[:3], GENTLE[2:]):
        check_forward(lengths, heads, 128, torch.bfloat16, rates)
    check_backward(lengths, heads, 128, torch.bfloat16, GENTLE)


@pytest.mark.gpu
@pytest.mark.parametrize("d", [32, 64, 128])
def test_a_handful_of_tokens(d: int) -> None:
    """So few values are no mean over roundings: multiplied in bfloat16, five tokens have come to 4.3e-3."""
    for lengths in ([5], [2, 3]):
        check_forward(lengths, 3, d, torch.bfloat16, GENTLE[2:])


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
def test_the_kernels_for_hopper_stay_inside_their_arguments() -> None:
    """Rows before and after the inputs are NaN, the slots of no sequence too."""
    lengths, heads, d = [700 + 11 * i for i in range(20)] + [9888], 4, 128
    qkv, slopes, packed = sample(lengths, heads, d, torch.bfloat16, GENTLE)
    padded = torch.full((len(qkv) + 256, qkv.shape[1]), torch.nan, dtype=torch.bfloat16, device=DEVICE)
    inner = padded[128:-128].copy_(qkv)
    states = torch.full((2 * len(lengths) + 1, heads, d, d), torch.nan, device=DEVICE)
    states[1::2] = 0
    got = kernels.forward(inner, slopes, packed, states)[0]
    assert torch.equal(got, kernels.forward(qkv, slopes, packed, None)[0])
    assert states[1::2].isfinite().all()
    assert states[::2].isnan().all()
    by_out = torch.full((len(qkv) + 256, heads * d), torch.nan, dtype=torch.bfloat16, device=DEVICE)
    by_out[128:-128].normal_()
    _, cells, segments = kernels.forward(inner, slopes, packed, None)
    gradient = kernels.backward(by_out[128:-128], inner, slopes, packed, cells, segments)
    assert torch.equal(gradient, kernels.backward(by_out[128:-128].clone(), qkv, slopes, packed, cells, segments))
    assert gradient.isfinite().all()


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from text_backbone.kernels.lightning import configs, hopper, hopper_backward

for module, kernel, tiles in (
    (hopper, hopper.walk_kernel, configs.HOPPER),
    (hopper_backward, hopper_backward.walk_back_kernel, configs.HOPPER_BACKWARD),
):
    sizes = {"H": 64, "D": 128, "C": tiles.chunk, "STAGES": tiles.stages}
    sizes |= {"HELPERS": module.HELPERS, "REGISTERS": module.REGISTERS}
    types = dict.fromkeys(("qkv", "out", "grad", "dqkv"), "*bf16") | dict.fromkeys(("slots", "table", "back"), "*i64")
    types |= dict.fromkeys(sizes, "constexpr") | {"pairs": "i32"}
    signature = {name: types.get(name, "*fp32") for name in kernel.arg_names}
    constants = {(kernel.arg_names.index(name),): value for name, value in sizes.items()}
    pointers = [i for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*")]
    aligned = {(i,): [["tt.divisibility", 16]] for i in pointers}
    source = GluonASTSource(kernel, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": tiles.warps})
    assert compiled.metadata.shared <= 227 * 1024
    assert "wgmma" in compiled.asm["ptx"]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings its compiler on Linux only")
def test_the_kernels_for_hopper_compile() -> None:
    """Gluon may change from one Triton to the next, and compiling for a GPU needs none."""
    # A process of its own: this one has Triton's language replaced by the interpreter's.
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("sequences", [1, 37, 256])
def test_decode_in_a_graph(sequences: int) -> None:
    heads, d = 16, 128
    qkv, slopes, packed = sample([1] * sequences, heads, d, torch.bfloat16)
    states = torch.zeros(2 * sequences, heads, d, d, device=DEVICE)
    kernels.lightning_attention(qkv, slopes, packed, states)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernels.lightning_attention(qkv, slopes, packed, states)
    qkv.copy_(torch.randn_like(qkv))
    states.normal_()
    packed.slots.copy_(torch.randperm(2 * sequences, device=DEVICE)[:sequences])
    wide = states.double()
    want = reference.lightning_attention(qkv.double(), slopes, packed, wide)
    graph.replay()
    assert error(out, want) < 3e-3
    assert error(states, wide) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("tiles", [Tiles(64, 32, 4, 2), configs.WALK[64][0]])
def test_nothing_outside_the_arguments_is_touched(tiles: Tiles) -> None:
    """Rows before and after the inputs are NaN, and must not show."""
    lengths = [700 + 11 * i for i in range(60)] + [7000, 9888, 10_000]
    heads, d = 4, 64
    qkv, slopes, packed = sample(lengths, heads, d, torch.bfloat16)
    padded = torch.full((len(qkv) + 256, qkv.shape[1]), torch.nan, dtype=torch.bfloat16, device=DEVICE)
    inner = padded[128:-128].copy_(qkv)
    for segment in (512, 1024, 2048):
        tiles = tiles._replace(programs=sum(lengths) * heads * d // (tiles.values * segment))
        want, _, _ = kernels.forward(qkv, slopes, packed, None)
        got, cells, segments = kernels.forward(inner, slopes, packed, None, tiles, tiles)
        assert segments.size == segment
        assert error(got, want.double()) < 4e-3
        by_out = torch.full((len(qkv) + 256, heads * d), torch.nan, dtype=torch.bfloat16, device=DEVICE)
        by_out[128:-128].normal_()
        gradient = kernels.backward(by_out[128:-128], inner, slopes, packed, cells, segments)
        assert gradient.isfinite().all()


@pytest.mark.gpu
def test_offsets_beyond_31_bits() -> None:
    heads, d = 16, 128
    tokens = 2**31 // (heads * 3 * d) + 5000
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of GPU memory")
    qkv = torch.randn(tokens, heads * 3 * d, device=DEVICE, dtype=torch.bfloat16)
    slopes = torch.full((heads,), 0.05, device=DEVICE)  # nothing older than a few hundred tokens is felt
    out = kernels.lightning_attention(qkv, slopes, Packed.of([tokens], device=DEVICE))
    tail = 4096
    want = reference.lightning_attention(qkv[-tail:].double(), slopes, Packed.of([tail], device=DEVICE))
    assert error(out[-2048:], want[-2048:]) < TOLERANCE[torch.bfloat16]


@pytest.mark.gpu
@pytest.mark.parametrize("d", [64, 128])
def test_four_million_tokens(d: int) -> None:
    """One head forgets within a few hundred tokens, the other keeps everything."""
    tokens, tail = 2**22, 2048
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of free GPU memory")
    qkv = torch.randn(tokens, 2 * 3 * d, device=DEVICE, dtype=torch.bfloat16)
    slopes = torch.tensor([0.05, 0.0], device=DEVICE)
    states = torch.zeros(1, 2, d, d, device=DEVICE)
    with torch.inference_mode():
        out = kernels.lightning_attention(qkv, slopes, Packed.of([tokens], device=DEVICE), states)
    last = Packed.of([2 * tail], device=DEVICE)
    want = reference.lightning_attention(qkv[-2 * tail :].double(), slopes, last).unflatten(1, (2, d))
    assert error(out.unflatten(1, (2, d))[-tail:, 0], want[-tail:, 0]) < TOLERANCE[torch.bfloat16]
    kept = torch.zeros(d, d, dtype=torch.float64, device=DEVICE)
    for part in qkv.split(2**18):
        k, v = torch.nn.functional.silu(part[:, 4 * d :].double()).split(d, dim=1)
        kept += k.T @ v
    assert error(states[0, 1], kept) < TOLERANCE[torch.bfloat16]
