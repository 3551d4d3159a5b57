"""Weights that are damaged, missing or of another model: what is wrong is said before memory is taken."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vl.config import VLConfig
from vl.errors import CheckpointError
from vl.manifest import expected_shapes, read_manifest

from .tiny import INDEX, TEXT, VISION, edit, load_weights, model, same, save_weights

NEWLINE, HEAD = "image_newline", "language_model.lm_head.weight"


def test_a_config_beyond_all_memory_is_held_to_the_files_first(tmp_path: Path) -> None:
    save_weights(model(1), tmp_path)
    far = VLConfig(TEXT, replace(VISION, num_hidden_layers=10**9), ((28, 28),), 3)
    wide = VLConfig(replace(TEXT, num_local_experts=10**9, intermediate_size=10**9), VISION, ((28, 28),), 3)
    start = time.process_time()
    for config in (far, wide):
        with pytest.raises(CheckpointError, match="missing tensors, counting no further"):
            read_manifest(tmp_path, expected_shapes(config))
    assert time.process_time() - start < 30  # to count them all takes hours


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
