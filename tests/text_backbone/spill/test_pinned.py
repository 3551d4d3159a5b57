"""Pinned host memory in its own size. A stand-in for CUDA's runtime hears what is pinned and given back."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from text_backbone import MiniMaxText, TextConfig
from text_backbone.moe import SparseMoE
from text_backbone.quantization import FORMATS, quantize_backbone
from text_backbone.spill import host_bytes, modules
from text_backbone.spill.pinned import pinned


class Runtime:
    """`torch.cuda.cudart()`: bytes by address."""

    cudaError = SimpleNamespace(success=0)

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.answer = 0

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        if not self.answer:
            assert address not in self.held
            self.held[address] = size
        return self.answer

    def cudaHostUnregister(self, address: int) -> int:
        del self.held[address]
        return 0

    def cudaGetErrorString(self, code: int) -> str:
        return "out of memory"


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    made = Runtime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: made)
    return made


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(
    shape=st.lists(st.integers(0, 40), max_size=3).map(tuple),
    dtype=st.sampled_from([torch.uint8, torch.int8, torch.float8_e4m3fn, torch.bfloat16, torch.float32]),
)
def test_pages_of_its_own_and_no_more(runtime: Runtime, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = pinned(shape, dtype)
    assert tensor.shape == shape
    assert tensor.dtype == dtype
    assert tensor.is_contiguous()
    assert runtime.held == ({tensor.data_ptr(): tensor.nbytes} if tensor.nbytes else {})
    assert tensor.data_ptr() % mmap.PAGESIZE == 0
    tensor.fill_(1)
    del tensor
    assert not runtime.held


def test_a_view_keeps_it(runtime: Runtime) -> None:
    part = pinned((4, 1000), torch.float32)[2].fill_(3)
    assert list(runtime.held.values()) == [16000]
    assert part.eq(3).all()
    del part
    assert not runtime.held


def test_what_cuda_refuses_is_an_error(runtime: Runtime) -> None:
    runtime.answer = 2
    with pytest.raises(RuntimeError, match="cannot pin 64 bytes of host memory: out of memory"):
        pinned((16,), torch.float32)


def test_more_than_there_is() -> None:
    with pytest.raises(MemoryError, match="the host has no memory for"):
        pinned((2**60,), torch.uint8)


@pytest.mark.parametrize("form", [None, *FORMATS])
def test_experts_are_pinned_in_their_size(
    runtime: Runtime, form: str | None, config: Callable[..., TextConfig]
) -> None:
    one = config(attn_type_list=(0,))
    model = MiniMaxText(one, device="meta")
    if form is not None:
        quantize_backbone(model, form)
    experts = cast(SparseMoE, model.layers[0].get_submodule("block_sparse_moe")).experts
    held = [modules._in_host(weight, torch.device("cuda")) for weight in (experts.w13, experts.w2)]
    parts = {part.data_ptr(): part.nbytes for weight in held for part in modules._parts(weight)}
    assert runtime.held == parts
    assert sum(parts.values()) == host_bytes(one, form, torch.float32)
