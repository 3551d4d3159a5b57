"""The kernels for Hopper against the reference in float64, without a GPU; with one, `test_lightning` runs them there.

Triton interprets its own language, but not Gluon. Here the Python of a kernel runs on tensors: partitions of warps are
threads that wait for each other at mbarriers, shared memory is NaN at first, an asynchronous copy arrives when it is
waited for and not before, and an address outside of its tensor is an error. What needs a GPU to be seen: layouts,
proxies and the order of memory accesses within a partition.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from text_backbone import Packed
from text_backbone.kernels.lightning import configs, hopper, hopper_backward, reference
from text_backbone.kernels.lightning import triton as kernels
from text_backbone.kernels.lightning.configs import Tiles
from text_backbone.kernels.lightning.segments import Segments, cut

if torch.cuda.is_available():
    pytest.skip("the kernels themselves run in test_lightning", allow_module_level=True)

PATIENCE = 60  # seconds that a partition waits for another one, before it is called a deadlock
HERE = threading.local()  # of a partition: pid, warps, copies not yet committed, groups of copies not yet arrived


class Value(torch.Tensor):
    """What a kernel computes with: scalars are tensors too."""

    def to(self, dtype: torch.dtype, bitcast: bool = False) -> Tensor:  # type: ignore[override]
        return self.view(dtype) if bitcast else super().to(dtype)


def value(x: Any) -> Value:
    return torch.as_tensor(x).as_subclass(Value)


class Pointer:
    def __init__(self, tensor: Tensor, offsets: Tensor) -> None:
        self.tensor, self.offsets = tensor, offsets

    def __add__(self, step: Any) -> Pointer:
        return Pointer(self.tensor, self.offsets + torch.as_tensor(step).long())

    def places(self, mask: Tensor | None) -> Tensor:
        """The addresses that are not masked; the others are -1."""
        places = self.offsets if mask is None else torch.where(mask, self.offsets, -1)
        live = places[places >= 0] if mask is not None else places
        assert ((live >= 0) & (live < self.tensor.numel())).all(), "out of bounds"
        return places

    def load(self, mask: Tensor | None = None) -> Value:
        places = self.places(mask)
        loaded = self.tensor.flatten()[places.clamp(min=0)]
        return value(torch.where(places >= 0, loaded, torch.zeros_like(loaded)))

    def store(self, x: Tensor, mask: Tensor | None = None) -> None:
        places = self.places(mask).expand(x.shape)
        assert x.dtype == self.tensor.dtype
        self.tensor.view(-1)[places[places >= 0]] = x.as_subclass(Tensor)[places >= 0]


class Shared:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.shape = tensor, list(tensor.shape)

    def index(self, i: int) -> Shared:
        assert 0 <= i < len(self.tensor)
        return Shared(self.tensor[int(i)])

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.tensor.permute(order))

    def load(self, layout: object) -> Value:
        return value(self.tensor.clone())

    def store(self, x: Tensor) -> None:
        assert x.dtype == self.tensor.dtype
        self.tensor.copy_(x)


class Barriers:
    def __init__(self, count: int) -> None:
        self.phases, self.changed = [0] * count, threading.Condition()

    def index(self, i: int) -> tuple[Barriers, int]:
        return self, int(i)


def arrive(barrier: tuple[Barriers, int], count: int) -> None:
    """Every barrier here awaits one arrival."""
    barriers, i = barrier
    with barriers.changed:
        barriers.phases[i] += count
        barriers.changed.notify_all()


def wait(barrier: tuple[Barriers, int], parity: int) -> None:
    barriers, i = barrier
    with barriers.changed:
        assert barriers.changed.wait_for(lambda: barriers.phases[i] % 2 != parity, PATIENCE), "deadlock"


def copy(target: Shared, source: Pointer, mask: Tensor) -> None:
    HERE.copies.append((target, source, mask))


def commit_group() -> None:
    HERE.groups.append(HERE.copies)
    HERE.copies = []


def wait_group(left: int) -> None:
    while len(HERE.groups) > left:
        for target, source, mask in HERE.groups.pop(0):
            target.store(source.load(mask))


def product(a: Any, b: Any, acc: Tensor, use_acc: bool = True, is_async: bool = False) -> Tensor:
    left, right = (x.tensor if isinstance(x, Shared) else x for x in (a, b))
    result = value(left.float() @ right.float())
    return acc + result if use_acc else result


def enter(pid: int, warps: int) -> None:
    HERE.pid, HERE.warps, HERE.copies, HERE.groups = pid, warps, [], []


def warp_specialize(partitions: list[Any], worker_warps: list[int], worker_registers: list[int]) -> Any:
    pid, results, failures = HERE.pid, {}, []

    def run(i: int, warps: int) -> None:
        enter(pid, warps)
        try:
            results[i] = partitions[i][0](*partitions[i][1])
        except BaseException as failure:
            failures.append(failure)

    warps = [HERE.warps, *worker_warps]
    threads = [threading.Thread(target=run, args=(i, warps[i]), daemon=True) for i in range(len(partitions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
    if failures:
        raise failures[0]
    return results[0]


def allocate(dtype: torch.dtype, shape: list[int], layout: object) -> Shared | Barriers:
    return Barriers(shape[0]) if layout == "barriers" else Shared(torch.full(shape, torch.nan, dtype=dtype))


def half_and_tanh(text: str, constraints: str, args: list[Tensor], **options: object) -> tuple[Tensor, Tensor]:
    """The only assembly in these kernels."""
    half = args[0].float() / 2
    return half, torch.tanh(half)


def counting(*bounds: Any) -> Iterator[Value]:
    return (value(i) for i in range(*map(int, bounds)))


def layout(*args: object) -> None:
    return None


MBARRIER = SimpleNamespace(
    MBarrierLayout=lambda: "barriers", init=lambda barrier, count: None, arrive=arrive, wait=wait
)
ASYNC_COPY = SimpleNamespace(commit_group=commit_group, wait_group=wait_group)
GL = SimpleNamespace(
    bfloat16=torch.bfloat16, float16=torch.float16, float32=torch.float32, int32=torch.int32, int64=torch.int64,
    BlockedLayout=layout, SliceLayout=layout, DotOperandLayout=layout, NVMMADistributedLayout=layout,
    NVMMASharedLayout=layout, allocate_shared_memory=allocate, warp_specialize=warp_specialize,
    arange=lambda start, end, layout: value(torch.arange(start, end)),
    zeros=lambda shape, dtype, layout: value(torch.zeros(shape, dtype=dtype)),
    exp=lambda x: torch.exp(x.float()),
    where=lambda condition, a, b: torch.where(condition, torch.as_tensor(a), torch.as_tensor(b)),
    cdiv=lambda a, b: (a + b - 1) // b,
    to_tensor=value, static_range=range, convert_layout=lambda x, layout: x,
    load=lambda pointer, mask=None: pointer.load(mask),
    store=lambda pointer, x, mask=None: pointer.store(x, mask),
    program_id=lambda axis: value(HERE.pid), num_warps=lambda: HERE.warps,
    inline_asm_elementwise=half_and_tanh,
)  # fmt: skip
STANDINS = {
    "gl": GL, "range": counting, "mbarrier": MBARRIER, "async_copy": ASYNC_COPY, "_copy": copy,
    "_barrier": lambda: None, "fence_async_shared": lambda: None, "gdc_wait": lambda: None,
    "warpgroup_mma": product, "warpgroup_mma_wait": lambda left, results: results[0],
}  # fmt: skip


class Launcher:
    """A kernel that is launched as Triton's are."""

    def __init__(self, kernel: Callable[..., object]) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*args: Any, num_warps: int, launch_pdl: bool) -> None:
            start = torch.zeros((), dtype=torch.int64)
            given = [Pointer(arg, start) if isinstance(arg, Tensor) else arg for arg in args]
            for pid in range(grid[0]):
                enter(pid, num_warps)
                self.kernel(*given)

        return launch


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (hopper, hopper_backward):
        for name, thing in list(vars(module).items()):
            if name in STANDINS:
                monkeypatch.setattr(module, name, STANDINS[name])
            elif hasattr(thing, "fn"):
                monkeypatch.setattr(module, name, Launcher(thing.fn) if name.endswith("_kernel") else thing.fn)
        monkeypatch.setattr(module, "range", counting, raising=False)
    monkeypatch.setattr(kernels, "_hopper", lambda *args: kernels._Hopper(hopper, hopper_backward))
    monkeypatch.setattr(kernels, "_states_between", states_between)


def states_between(
    qkv: Tensor,
    grad: Tensor | None,
    states: Tensor | None,
    slopes: Tensor,
    packed: Packed,
    segments: Segments,
    tiles: Tiles,
) -> Tensor:
    """Same as the kernels', which Triton's interpreter cannot run in bfloat16, from all tokens before (or after)."""
    heads = len(slopes)
    q, k, v = torch.nn.functional.silu(qkv.double()).unflatten(1, (heads, 3, -1)).unbind(2)  # [T, heads, d]
    cells = torch.full((segments.cells, heads, D, D), torch.nan)
    for start, tokens, sequence, cell, final, _ in segments.table.tolist():
        if cell < 0:
            continue
        begin, end = packed.starts[sequence], packed.starts[sequence] + packed.lengths[sequence]
        if grad is None:
            others = slice(begin, start)
            age, left, right = start - 1 - torch.arange(begin, start), k[others], v[others]
        else:
            others = slice(start + tokens, end)
            age, left = torch.arange(end - start - tokens), q[others]
            right = grad.double().unflatten(1, (heads, -1))[others]
        decay = torch.exp(-slopes.double() * age[:, None])[..., None]
        state = torch.einsum("thi,thj->hij", left * decay, right)
        if states is not None:
            state += torch.exp(-slopes.double() * (start - begin))[:, None, None] * states[packed.slots[sequence]]
        cells[cell if grad is None else final] = state
    return cells


D = 128
SLOPES = torch.tensor([hopper.STEEPEST, 0.03])
LENGTHS = [1, 63, 130, 64, 257]


def error(got: Tensor, want: Tensor) -> float:
    """The largest of the heads': got, want [T, heads, ...]."""
    differences = (got.double() - want).transpose(0, 1).flatten(1).norm(dim=1)
    return float((differences / want.transpose(0, 1).flatten(1).norm(dim=1)).max())


def sample(segment: int | None, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Packed]:
    """A batch to be cut into segments of so many tokens, and pieces of half as many."""
    if segment:
        monkeypatch.setattr(kernels, "cut", lambda packed, size, piece, link: cut(packed, segment, segment // 2, link))
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(LENGTHS), len(SLOPES) * 3 * D, generator=generator).bfloat16()
    return qkv, Packed.of(LENGTHS, slots=[2 * i + 1 for i in range(len(LENGTHS))][::-1])


@pytest.mark.parametrize("segment", [None, 128])
def test_forward(segment: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, packed = sample(segment, monkeypatch)
    states = torch.randn(2 * len(LENGTHS) + 1, len(SLOPES), D, D)
    before, wide = states.clone(), states.double()
    want = reference.lightning_attention(qkv.double(), SLOPES, packed, wide)
    got, _, segments = kernels.forward(qkv, SLOPES, packed, states)
    assert (segments.chained > 0) == bool(segment)
    assert error(got.unflatten(1, (-1, D)), want.unflatten(1, (-1, D))) < 4e-3
    assert error(states[1::2], wide[1::2]) < 4e-3
    assert torch.equal(states[::2], before[::2])  # the slots of no sequence


@pytest.mark.parametrize("segment", [None, 128])
@pytest.mark.parametrize("stages", [2, 3])
def test_backward(segment: int | None, stages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "HOPPER_BACKWARD", configs.HOPPER_BACKWARD._replace(stages=stages))
    qkv, packed = sample(segment, monkeypatch)
    grad = torch.randn(len(qkv), len(SLOPES) * D).bfloat16()
    exact = qkv.double().requires_grad_()
    (want,) = torch.autograd.grad(reference.lightning_attention(exact, SLOPES, packed), exact, grad.double())
    _, cells, segments = kernels.forward(qkv, SLOPES, packed, None)
    got = kernels.backward(grad, qkv, SLOPES, packed, cells, segments)
    for part in range(3):
        ours, right = (x.unflatten(1, (len(SLOPES), 3, D))[:, :, part] for x in (got, want))
        assert error(ours, right) < 4e-3
