"""Ranks that hold the whole model each, and some that fail: what the processes do is tested apart from how it is cut.

Imported by the ranks too: by its name, from this folder.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

import vl
from vl.config import read_config
from vl.loading import load_folder


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
