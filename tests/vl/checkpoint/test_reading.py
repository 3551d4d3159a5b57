"""Tensors read from files: the very bytes, in the order of the file, to where they are kept if that is possible."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import vl
from vl.bench.load import bench_load
from vl.errors import CheckpointError
from vl.manifest import read_header
from vl.reading import DTYPES, Buffer, read_tensors

Kind = tuple[torch.dtype, tuple[int, ...], int]
kinds = st.tuples(
    st.sampled_from(list(DTYPES.values())), st.lists(st.integers(0, 5), max_size=3).map(tuple), st.integers(0, 2**16)
)


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty(shape, dtype=dtype).nbytes
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator).view(dtype).view(shape)


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).numpy())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(drawn=st.lists(kinds, min_size=1, max_size=6), placed=st.sets(st.integers(0, 5)))
def test_the_very_bytes(tmp_path: Path, drawn: list[Kind], placed: set[int]) -> None:
    made = {f"t{i}": random_tensor(*kind) for i, kind in enumerate(drawn)}
    path = tmp_path / "model.safetensors"
    save_file(made, path)
    header = read_header(path)
    places = {f"t{i}": torch.zeros_like(made[f"t{i}"]) for i in placed if i < len(made)}
    seen = []
    for name, tensor in read_tensors(path, header, Buffer(), places.get):
        assert tensor.dtype == made[name].dtype
        assert tensor.shape == made[name].shape
        assert raw(tensor) == raw(made[name])
        assert name not in places or tensor is places[name]
        seen.append(name)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    offsets = json.loads(path.read_bytes()[8 : 8 + length])
    assert sorted(seen) == sorted(made)
    assert seen == sorted(seen, key=lambda name: offsets[name]["data_offsets"][0])


def test_a_place_of_another_dtype_or_shape_is_not_written_to(tmp_path: Path) -> None:
    save_file({"w": torch.arange(6.0)}, tmp_path / "f")
    for place in (torch.zeros(6, dtype=torch.bfloat16), torch.zeros(2, 3), torch.zeros(7)):
        ((_, tensor),) = read_tensors(tmp_path / "f", read_header(tmp_path / "f"), Buffer(), lambda name: place)  # noqa: B023
        assert torch.equal(tensor, torch.arange(6.0))
        assert not place.any()


def test_one_buffer_for_all(tmp_path: Path) -> None:
    save_file({f"w{i}": torch.full((100 - i,), i) for i in range(5)}, tmp_path / "f")
    header = {name: ("F32", shape) for name, (_, shape) in read_header(tmp_path / "f").items()}
    save_file({name: torch.ones(shape) for name, (_, shape) in header.items()}, tmp_path / "f")
    addresses = {tensor.data_ptr() for _, tensor in read_tensors(tmp_path / "f", header, Buffer())}
    assert len(addresses) == 1


def test_a_file_that_is_cut_short_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "f"
    save_file({"w": torch.ones(100)}, path)
    header = read_header(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="it ends too early"):
        list(read_tensors(path, header, Buffer()))


@pytest.mark.parametrize("answer", [0, 2])
def test_a_buffer_is_pinned_where_that_can_be(monkeypatch: pytest.MonkeyPatch, answer: int) -> None:
    asked: list[int] = []
    runtime = SimpleNamespace(
        cudaHostRegister=lambda address, size, flags: asked.append(size) or answer,
        cudaHostUnregister=lambda address: 0,
        cudaGetErrorString=lambda code: "not permitted",
        cudaError=SimpleNamespace(success=0),
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    buffer = Buffer(pin=True)
    assert buffer.room((3, 4), torch.float32).fill_(1).sum() == 12
    assert buffer.room((2,), torch.float32).fill_(2).sum() == 4
    assert asked == [48]


@pytest.mark.parametrize("form", [None, "int8", "fp8", "nf4"])
def test_a_model_on_the_host_is_read_into_as_it_is(
    form: str | None, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what it is saved as only NF4's maps and the states of matrices are not kept in the same form."""
    saved = vl.load(tiny_checkpoint, device="cpu", quantization=form)
    saved.save(tmp_path)
    sizes: list[int] = []
    room = Buffer.room

    def spy(self: Buffer, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        found = room(self, shape, dtype)
        sizes.append(found.nbytes)
        return found

    monkeypatch.setattr(Buffer, "room", spy)
    again = vl.load(tmp_path, device="cpu")
    assert sum(sizes) < (2000 if form != "nf4" else 2000 * len(sizes))
    assert (len(sizes) > 0) is (form == "nf4")
    kept, loaded = saved.stored_tensors(), again.stored_tensors()
    assert all(torch.equal(kept[name].read(), loaded[name].read()) for name in kept)


def test_reading_and_loading_are_timed(tiny_checkpoint: Path) -> None:
    found = bench_load(tiny_checkpoint, device="cpu", repeats=1, cold=True)
    assert found.size == sum(path.stat().st_size for path in tiny_checkpoint.glob("*.safetensors"))
    assert found.read > 0
    assert found.load > 0
    assert found.share == found.read / found.load
