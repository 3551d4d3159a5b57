"""Loading and saving weights: the released names, any shards, any dtype, whatever is interrupted."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import text_backbone
from preprocessing import PINPOINTS
from text_backbone import MiniMaxText, TextConfig
from vision_encoder import VisionConfig, VisionEncoder
from vl.config import VLConfig
from vl.errors import CheckpointError
from vl.manifest import expected_shapes

from .tiny import INDEX, TEXT, VISION, load_weights, model, released, same, save_weights, size_of


def test_the_8637_released_names() -> None:
    shapes = dict(expected_shapes(VLConfig(TextConfig(), VisionConfig(), PINPOINTS, 200025)))
    assert len(shapes) == 8637
    digest = hashlib.sha256("\n".join(sorted(shapes)).encode()).hexdigest()
    assert digest == "d0caf1b714cdfc4caa65b56cbec591668d77b0e2a5d6cf3b5af169531311c886"
    assert round(sum(map(math.prod, shapes.values())) / 1e9) == 456


@pytest.mark.parametrize("vision", [VISION, VisionConfig(), None], ids=["tiny", "released", "text-only"])
def test_a_model_has_the_slots_that_its_config_asks_for(vision: VisionConfig | None) -> None:
    config = TEXT if vision in (VISION, None) else TextConfig()
    text = MiniMaxText(config, device="meta")
    tower = VisionEncoder(vision, device="meta") if vision else None
    slots = released(text, tower)
    whole = VLConfig(config, vision, ((336, 336),) if vision else (), 3 if vision else None)
    assert {name: slot.shape for name, slot in slots.items()} == dict(expected_shapes(whole))
    assert all(slot.shape == tuple(slot.read().shape) for slot in slots.values())


@pytest.mark.parametrize("vision", [True, False], ids=["vl-01", "text-01"])
@pytest.mark.parametrize("max_shard_bytes", [5e9, 30_000, 1])
def test_round_trip(tmp_path: Path, vision: bool, max_shard_bytes: float) -> None:
    saved, loaded = model(1, vision=vision), model(2, vision=vision)
    assert not same(saved, loaded)
    save_weights(saved, tmp_path, max_shard_bytes=max_shard_bytes)
    calls: list[tuple[int, int]] = []
    load_weights(loaded, tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert same(saved, loaded)
    size = size_of(saved)
    assert len(calls) == len(saved)
    assert calls[-1] == (size, size)


def test_shards_and_index_have_the_released_form(tmp_path: Path) -> None:
    saved = model(1)
    save_weights(saved, tmp_path, max_shard_bytes=30_000, dtype=torch.bfloat16)
    index = json.loads((tmp_path / INDEX).read_text())
    count = len(set(index["weight_map"].values()))
    assert count > 2
    names = {f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)}
    assert {path.name for path in tmp_path.iterdir()} == names | {INDEX}
    assert index["metadata"]["total_size"] == 2 * size_of(saved)
    for name in names:
        shard = load_file(tmp_path / name)
        assert shard.keys() == {key for key, file in index["weight_map"].items() if file == name}
        assert {tensor.dtype for tensor in shard.values()} == {torch.bfloat16}
        assert len(shard) == 1 or sum(tensor.nbytes for tensor in shard.values()) <= 30_000


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64, None])
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
def test_dtypes_convert_on_the_way(tmp_path: Path, stored: torch.dtype | None, held: torch.dtype) -> None:
    saved, loaded = model(1), model(2, dtype=held)
    save_weights(saved, tmp_path, dtype=stored)
    load_weights(loaded, tmp_path)
    for name, slot in saved.items():
        assert torch.equal(loaded[name].read(), slot.read().to(stored or torch.float32).to(held))


def test_saving_again_leaves_nothing_stale(tmp_path: Path) -> None:
    """Whatever the earlier save was, the folder ends up with the new weights alone; other files stay."""
    (tmp_path / "adapter.safetensors").write_bytes(b"mine")
    loaded = model(0)
    for seed, max_shard_bytes in enumerate((30_000, 5e9, 20_000, 60_000, 5e9)):
        saved = model(seed + 1)
        save_weights(saved, tmp_path, max_shard_bytes=max_shard_bytes)
        load_weights(loaded, tmp_path)
        assert same(saved, loaded)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter.safetensors", "model.safetensors"}


def test_saved_files_have_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save_weights({"weight": text_backbone.Slot.of(torch.ones(2))}, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_interrupted_save_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, loaded = model(1), model(2)
    save_weights(saved, tmp_path, max_shard_bytes=30_000)
    before = sorted(path.name for path in tmp_path.iterdir())
    writes = 0

    def full_disk(*args: Any, **kwargs: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == 3:
            raise OSError(28, "No space left on device")
        save_file(*args, **kwargs)

    monkeypatch.setattr("vl.checkpoint.save_file", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        save_weights(model(3), tmp_path, max_shard_bytes=30_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    load_weights(loaded, tmp_path)
    assert same(saved, loaded)


UNUSED = {
    **{f"language_model.model.layers.{i}.self_attn.slope_rate": torch.ones(4, 1, 1) for i in range(2)},
    "language_model.model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4),
    "language_model.model.rotary_emb.cos_cached": torch.ones(4),
    "vision_tower.vision_model.embeddings.position_ids": torch.arange(5)[None],
    "vision_tower.vision_model.post_layernorm.weight": torch.ones(32),
    "vision_tower.vision_model.post_layernorm.bias": torch.ones(32),
}


def test_what_older_files_hold_besides_is_passed_over_in_one_line(tmp_path: Path) -> None:
    saved, loaded = model(1), model(2)
    save_weights(
        saved | {name: text_backbone.Slot(tuple(t.shape), t.copy_, t.clone) for name, t in UNUSED.items()}, tmp_path
    )
    with pytest.warns(UserWarning, match="passed over") as caught:
        load_weights(loaded, tmp_path)
    assert same(saved, loaded)
    (line,) = (str(warning.message) for warning in caught)
    assert "\n" not in line
    for name in UNUSED:
        assert re.sub(r"\.\d+\.", ".*.", name) in line
    assert "language_model.model.layers.*.self_attn.slope_rate (2)" in line


def test_a_slot_may_keep_something_else_than_the_tensor(tmp_path: Path) -> None:
    """As a quantised or sharded weight does: released names and shapes in the files, any layout in the model."""

    class Packed:
        shape = (4, 6)
        exact = False
        room = None

        def load(self, tensor: Tensor, /) -> None:
            self.scale = tensor.float().abs().amax(1, keepdim=True) / 127
            self.codes = (tensor.float() / self.scale).round().to(torch.int8)

        def read(self) -> Tensor:
            return self.codes.float() * self.scale

    class Half:
        shape = (4, 6)
        exact = False
        room = None

        def load(self, tensor: Tensor, /) -> None:
            self.rows = tensor[2:].clone()

        def read(self) -> Tensor:
            return torch.cat([torch.zeros(2, 6), self.rows])

    weight = torch.randint(-127, 128, (4, 6)) / 8
    weight[:, 0] = 127 / 8
    save_weights({"w": text_backbone.Slot.of(weight)}, tmp_path)
    packed, half = Packed(), Half()
    load_weights({"w": packed}, tmp_path)
    load_weights({"w": half}, tmp_path)
    assert packed.codes.dtype == torch.int8
    assert torch.equal(half.rows, weight[2:])
    save_weights({"w": packed}, tmp_path)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["w"], weight)
