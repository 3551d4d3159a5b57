"""A model of a few weights, with ways to save, load, compare and damage it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import text_backbone
import vision_encoder
import vl.checkpoint
from text_backbone import MiniMaxText, TextConfig
from vision_encoder import VisionConfig, VisionEncoder
from vl.checkpoint import Slot, write_weights
from vl.manifest import read_manifest
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


def edit(folder: Path, **changes: Tensor | None) -> None:
    """Rewrite model.safetensors with tensors replaced, added or (None) left out."""
    tensors: dict[str, Tensor | None] = {**load_file(folder / "model.safetensors"), **changes}
    save_file({name: t for name, t in tensors.items() if t is not None}, folder / "model.safetensors")
