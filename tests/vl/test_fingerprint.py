"""What tells checkpoints apart: their weights, wherever they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import vl
from vl.errors import CheckpointError
from vl.fingerprint import fingerprint
from vl.jobs.recipe import Recipe


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoint, tmp_path / "copy", copy_function=shutil.copyfile)


def test_copies_are_equal(tiny_checkpoint: Path, copy: Path) -> None:
    assert fingerprint(copy) == fingerprint(tiny_checkpoint)
    assert vl.load(copy, device="cpu").fingerprint == fingerprint(copy)


def test_any_tensor_that_was_trained_tells(copy: Path) -> None:
    known = fingerprint(copy)
    path = next(copy.glob("*.safetensors"))
    weights = load_file(path)
    for name in weights:
        save_file(weights | {name: weights[name] + 1}, path, {"format": "pt"})
        assert fingerprint(copy) != known, name


def test_workers_with_another_checkpoint_are_refused(copy: Path) -> None:
    recipe = Recipe.of(copy, {}, "cpu")
    path = next(copy.glob("*.safetensors"))
    weights = load_file(path)
    save_file({name: tensor * 2 for name, tensor in weights.items()}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="other weights"):
        recipe.load(device="cpu")


def test_damaged_files_are_left_to_the_loader(copy: Path) -> None:
    for content in (b"", b"\xff" * 20, (100).to_bytes(8, "little") + b"[1, 2]", b"\x02" + bytes(7) + b"{}"):
        next(copy.glob("*.safetensors")).write_bytes(content)
        assert len(fingerprint(copy)) == 16
