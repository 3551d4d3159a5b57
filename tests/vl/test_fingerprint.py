"""What tells checkpoints apart: their weights, wherever they are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy as copy_of
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import vl
from vl.errors import CheckpointError
from vl.fingerprint import fingerprint
from vl.jobs import JobError
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


@torch.no_grad()
def _written(model: vl.MiniMaxVL) -> None:
    weight = model.language_model.lm_head.weight
    weight.view(-1)[1:2] += 1  # one value that no sample has


@torch.no_grad()
def _past_counting(model: vl.MiniMaxVL) -> None:
    for parameter in model.parameters():
        parameter.data *= 1.5


def _adapted(model: vl.MiniMaxVL) -> None:
    model.language_model.lm_head.weight = nn.Parameter(torch.ones_like(model.language_model.lm_head.weight))


@pytest.mark.parametrize("change", [_written, _past_counting, _adapted])
def test_weights_that_were_changed_in_memory(
    tiny_checkpoint: Path, tmp_path: Path, change: Callable[[vl.MiniMaxVL], None]
) -> None:
    """A job does not go on with them where it began with others, unless told."""
    image = tmp_path / "a.png"
    Image.new("RGB", (20, 20)).save(image)
    job = partial(vl.caption_images, sources=[image], out=tmp_path / "out.jsonl", max_new_tokens=1)
    model = vl.load(tiny_checkpoint, device="cpu")
    known = model.fingerprint
    assert known == fingerprint(tiny_checkpoint)
    assert job(model).captions == 1
    assert [model.fingerprint, copy_of(model).fingerprint, model.to("cpu").fingerprint] == [known] * 3
    change(model)
    changed = model.fingerprint
    assert changed not in (None, known)
    with pytest.raises(JobError, match=r"weights.*not 'changed.*--mix"):
        job(model)
    job(model, mix=True)
    if change is not _written:
        assert copy_of(model).fingerprint == changed
    assert vl.load(tiny_checkpoint, device="cpu").fingerprint == known


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
