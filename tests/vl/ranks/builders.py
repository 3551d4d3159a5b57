"""Ranks that hold the whole model each, and some that fail: what the processes do is tested apart from how it is cut.

Imported by the ranks too: by its name, from this folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

import vl
from preprocessing import Processor
from vl.checkpoint import write_weights
from vl.config import read_config
from vl.loading import load_folder, load_part, patcher_of


def whole(folder: Path, device: torch.device, progress: Any) -> vl.MiniMaxVL:
    return load_folder(folder, read_config(folder), name="", device=device, dtype=torch.float32, progress=progress)


class Troubled(torch.nn.Module):
    """In the place of a model's first norm: on one rank something happens at a batch of so many tokens."""

    def __init__(self, norm: torch.nn.Module, trouble: str, tokens: int) -> None:
        super().__init__()
        self.norm, self.trouble, self.tokens = norm, trouble, tokens

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == self.tokens and torch.distributed.get_rank() == 1:
            if self.trouble == "raises":
                raise RuntimeError("a kernel went wrong")
            if self.trouble == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(3600)
        torch.distributed.barrier()
        return self.norm(x)


def troubled(folder: Path, trouble: str, tokens: int, device: torch.device, progress: Any) -> vl.MiniMaxVL:
    model = whole(folder, device, progress)
    first = model.language_model.layers[0]
    first.input_layernorm = Troubled(first.input_layernorm, trouble, tokens)
    return model


def failing(ranks: tuple[int, ...], error: Exception, device: torch.device, progress: Any) -> vl.MiniMaxVL:
    """Loading fails on some ranks, while the others go on for ever."""
    if torch.distributed.get_rank() in ranks:
        raise error
    time.sleep(3600)
    raise AssertionError


def dying(folder: Path, device: torch.device, progress: Any) -> vl.MiniMaxVL:
    if torch.distributed.get_rank() == 1:
        os._exit(3)
    torch.distributed.barrier()
    raise AssertionError


def short(folder: Path, placement: str, limits: Mapping[str, int], device: torch.device, progress: Any) -> vl.MiniMaxVL:
    """Split. Rank 1 has memory for so many tokens, or tiles, in the last of the modules whose names end so."""
    how = {"name": "", "dtype": torch.float32, "quantization": None, "placement": placement, "slots": None}
    model = load_part(folder, read_config(folder), device, progress, **how)

    def check(most: int, module: torch.nn.Module, args: Any) -> None:
        if len(args[0]) > most:
            raise torch.OutOfMemoryError("out of memory: a test's")

    for where, most in limits.items() if torch.distributed.get_rank() == 1 else ():
        found = [module for name, module in model.named_modules() if name.endswith(where)]
        found[-1].register_forward_pre_hook(partial(check, most))
    return model


def wide(folder: Path, tiny_checkpoint: Path) -> Path:
    """The tiny model with heads and experts for four ranks, its weights random."""
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"num_attention_heads": 8, "num_key_value_heads": 4}
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "config.json").write_text(json.dumps(config))
    read = read_config(folder)
    model = vl.MiniMaxVL(read, Processor.load(folder, patcher_of(read)))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    write_weights(model.released_tensors(), folder, max_shard_bytes=100_000)
    return folder
