"""Loading and saving weights: the released names, every kind of damage, and how much memory it takes."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import text_backbone
import vision_encoder
import vl.checkpoint
from preprocessing import PINPOINTS
from text_backbone import MiniMaxText, TextConfig
from vision_encoder import VisionConfig, VisionEncoder
from vl.checkpoint import Slot, write_weights
from vl.config import VLConfig
from vl.errors import CheckpointError
from vl.manifest import expected_shapes, read_manifest
from vl.saving import replace_model

TEXT = TextConfig(
    vocab_size=50,
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=16,
    num_local_experts=4,
    rotary_dim=8,
    attn_type_list=(0, 1, 0),
)
VISION = VisionConfig(
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=28,
    patch_size=14,
    text_hidden_size=32,
)
INDEX = "model.safetensors.index.json"


def released(text: MiniMaxText, vision: VisionEncoder | None = None) -> dict[str, Slot]:
    """The slots of a text model, or of a vision-language one."""
    slots: dict[str, Slot] = dict(text_backbone.released_tensors(text))
    if vision is None:
        return slots
    return {f"language_model.{name}": slot for name, slot in slots.items()} | vision_encoder.released_tensors(vision)


def model(seed: int, *, vision: bool = True, dtype: torch.dtype = torch.float32) -> dict[str, Slot]:
    generator = torch.Generator().manual_seed(seed)
    text = MiniMaxText(TEXT, dtype=dtype)
    text_backbone.init_weights(text, generator=generator)
    if not vision:
        return released(text)
    tower = VisionEncoder(VISION, dtype=dtype)
    vision_encoder.init_weights(tower, generator=generator)
    return released(text, tower)


def save_weights(slots: Mapping[str, Slot], folder: Path, **options: Any) -> None:
    with replace_model(folder) as draft:
        write_weights(slots, draft, **options)


def load_weights(slots: Mapping[str, Slot], folder: Path, **options: Any) -> None:
    shapes = ((name, slot.shape) for name, slot in slots.items())
    vl.checkpoint.load_weights(slots, read_manifest(folder, shapes), **options)


def same(a: Mapping[str, Slot], b: Mapping[str, Slot]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name].read(), b[name].read()) for name in a)


def size_of(slots: Mapping[str, Slot]) -> int:
    return sum(math.prod(slot.shape) for slot in slots.values())


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


def test_a_config_beyond_all_memory_is_held_to_the_files_first(tmp_path: Path) -> None:
    save_weights(model(1), tmp_path)
    far = VLConfig(TEXT, replace(VISION, num_hidden_layers=10**9), ((28, 28),), 3)
    wide = VLConfig(replace(TEXT, num_local_experts=10**9, intermediate_size=10**9), VISION, ((28, 28),), 3)
    start = time.perf_counter()
    for config in (far, wide):
        with pytest.raises(CheckpointError, match="missing tensors, counting no further"):
            read_manifest(tmp_path, expected_shapes(config))
    assert time.perf_counter() - start < 1


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

        def load(self, tensor: Tensor, /) -> None:
            self.scale = tensor.float().abs().amax(1, keepdim=True) / 127
            self.codes = (tensor.float() / self.scale).round().to(torch.int8)

        def read(self) -> Tensor:
            return self.codes.float() * self.scale

    class Half:
        shape = (4, 6)
        exact = False

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


def edit(folder: Path, **changes: Tensor | None) -> None:
    """Rewrite model.safetensors with tensors replaced, added or (None) left out."""
    tensors: dict[str, Tensor | None] = {**load_file(folder / "model.safetensors"), **changes}
    save_file({name: t for name, t in tensors.items() if t is not None}, folder / "model.safetensors")


NEWLINE, HEAD = "image_newline", "language_model.lm_head.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({NEWLINE: None, HEAD: None}, r"missing tensors \(2\): .*lm_head"),
        ({"extra.weight": torch.ones(2)}, r"unexpected tensors \(1\): extra\.weight"),
        ({NEWLINE: torch.ones(33)}, r"wrong shape \(1\): image_newline \[33\] instead of \[32\]"),
        ({NEWLINE: torch.ones(32, dtype=torch.int8)}, r"unsupported dtype \(1\): image_newline I8"),
        ({NEWLINE: torch.ones(32).to(torch.float8_e4m3fn)}, r"unsupported dtype \(1\): image_newline F8_E4M3"),
    ],
)
def test_headers_are_checked_before_anything_is_copied(
    tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    save_weights(model(1), tmp_path)
    edit(tmp_path, **changes)
    loaded = model(2)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(loaded, tmp_path)
    assert "fix:" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert same(loaded, model(2))


def test_all_problems_at_once_with_counts(tmp_path: Path) -> None:
    save_weights(model(1), tmp_path)
    experts = [name for name in model(1) if "experts" in name]
    edit(tmp_path, **dict.fromkeys(experts), extra=torch.ones(1), image_newline=torch.ones(1))
    with pytest.raises(CheckpointError) as caught:
        load_weights(model(2), tmp_path)
    text = str(caught.value)
    assert f"missing tensors ({len(experts)})" in text
    assert f"and {len(experts) - 5} more" in text
    assert "unexpected tensors (1)" in text
    assert "wrong shape (1)" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_not_finite(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    save_weights(model(1), tmp_path)
    broken = torch.zeros(32)
    broken[17] = value
    edit(tmp_path, image_newline=broken)
    with pytest.raises(CheckpointError, match=r"NaN or infinite values \(1\): image_newline"):
        load_weights(model(2, dtype=dtype), tmp_path)


def test_values_too_large_for_the_dtype(tmp_path: Path) -> None:
    save_weights(model(1), tmp_path)
    edit(tmp_path, image_newline=torch.full((32,), 1e5))
    load_weights(model(2), tmp_path)
    with pytest.raises(CheckpointError, match=r"image_newline[\s\S]*try bfloat16 or float32"):
        load_weights(model(2, dtype=torch.float16), tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_files(tmp_path: Path, keep: int) -> None:
    save_weights(model(1), tmp_path, max_shard_bytes=100_000)
    path = sorted(tmp_path.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"unreadable files \(1\): {path.name}"):
        load_weights(model(2), tmp_path)


def test_index_inconsistencies(tmp_path: Path) -> None:
    save_weights(model(1), tmp_path, max_shard_bytes=100_000)
    good = json.loads((tmp_path / INDEX).read_text())
    first, second, *_ = sorted(set(good["weight_map"].values()))

    def broken(weight_map: dict[str, str]) -> str:
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError) as caught:
            load_weights(model(2), tmp_path)
        return str(caught.value)

    moved = next(name for name, file in good["weight_map"].items() if file == first)
    message = broken(good["weight_map"] | {moved: second})
    assert f"tensors that the index expects in {second} (1): {moved}" in message
    assert f"tensors of {first} that the index does not list (1): {moved}" in message
    message = broken({name: file for name, file in good["weight_map"].items() if name != moved})
    assert f"that the index does not list (1): {moved}" in message
    message = broken(good["weight_map"] | {moved: "model-00099.safetensors"})
    assert "files that the index names and that are missing (1): model-00099.safetensors" in message
    assert "plain file names" in broken(good["weight_map"] | {moved: f"../{first}"})
    for name in (3, f"/tmp/{first}", f"a/{first}", "n" * 5000, None, ["a"]):
        assert "plain file names" in broken({moved: name})  # type: ignore[dict-item]
    for name in ("", "..", "a\0b", "\ud800"):
        assert "that are missing (1)" in broken({moved: name})


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": []}'])
def test_damaged_index(tmp_path: Path, text: str) -> None:
    save_weights(model(1), tmp_path, max_shard_bytes=100_000)
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        load_weights(model(2), tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", "pickle is never read"),
        ("model-00001-of-00002.safetensors", "shards but no model.safetensors.index.json"),
        ("config.json", "neither model.safetensors nor"),
    ],
)
def test_folder_without_weights(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=message):
        load_weights(model(2), tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        load_weights(model(2), tmp_path / "absent")


# Tensors of 8 MiB; peak anonymous memory (file pages are the kernel's to drop) above what the model itself takes.
MEMORY = """
import sys, threading, time, torch
from pathlib import Path
from typing import Any
from safetensors.torch import load_file
from text_backbone import Slot
from vl.checkpoint import load_weights
from vl.manifest import read_manifest

def anonymous():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024

torch.set_num_threads(1)
folder, dtype = sys.argv[1], getattr(torch, sys.argv[3])
tensors = {f"t{i}": torch.ones(2 << 20, dtype=dtype) for i in range(10)}
slots = {name: Slot.of(tensor) for name, tensor in tensors.items()}
peak = start = anonymous()
running = True

def sample(*_):
    global peak
    peak = max(peak, anonymous())

def watch():
    while running:
        sample()
        time.sleep(0.0003)

watcher = threading.Thread(target=watch)
watcher.start()
if sys.argv[2] == "ours":
    manifest = read_manifest(folder, ((name, slot.shape) for name, slot in slots.items()))
    load_weights(slots, manifest, progress=sample)
else:
    whole = {name: tensor.clone() for name, tensor in load_file(f"{folder}/model.safetensors").items()}
    for name, tensor in whole.items():
        tensors[name].copy_(tensor)
        sample()
running = False
watcher.join()
assert all((tensor == 2).all() for tensor in tensors.values())
print(peak - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's count of anonymous memory")
@pytest.mark.parametrize(("how", "dtype"), [("ours", "bfloat16"), ("whole", "float32")])
def test_peak_memory_is_the_model_and_two_tensors(tmp_path: Path, how: str, dtype: str) -> None:
    size = 8.0  # MiB of one tensor in the file
    save_file({f"t{i}": torch.full((2 << 20,), 2.0) for i in range(10)}, tmp_path / "model.safetensors")
    command = [sys.executable, "-c", MEMORY, str(tmp_path), how, dtype]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    extra = float(done.stdout)
    assert (extra < 2 * size) is (how == "ours"), f"{extra:.1f} MiB above the model"
