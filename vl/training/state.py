"""Checkpoints of a run: written atomically, resumed exactly, no pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vl.errors import CheckpointError
from vl.files import replace_file, sync_folder, write_file

_FOLDER, _TENSORS, _PROGRESS = "checkpoints", "state.safetensors", "progress.json"


@dataclass
class Progress:
    """Where a run stands, all parts added up: finished steps, samples and tokens seen, seconds, records skipped."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0


def save_state(out: Path, progress: Progress, tensors: Mapping[str, Tensor]) -> Path:
    """Writes a checkpoint under `out` and then removes the older ones; a kill or a power cut leaves a whole one.

    `tensors` is the optimizer's state; torch's random state goes with it.
    """
    home = out / _FOLDER
    home.mkdir(parents=True, exist_ok=True)
    final = home / f"step-{progress.step:08d}"
    noted = json.dumps(asdict(progress)) + "\n"
    if final.exists():  # saved again without a step between, as when a run that is over is resumed
        write_file(final / _PROGRESS, noted)
        return final
    partial = final.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    random = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["random/cuda"] = torch.cuda.get_rng_state()
    with replace_file(partial / _TENSORS) as draft:
        save_file({name: t.detach().cpu().contiguous() for name, t in (*tensors.items(), *random.items())}, draft)
    write_file(partial / _PROGRESS, noted)  # both on the disk before the older ones go: a power cut leaves one too
    os.replace(partial, final)
    sync_folder(home)
    for old in _checkpoints(out)[:-1]:
        shutil.rmtree(old)
    return final


def load_state(out: Path) -> tuple[Progress, dict[str, Tensor]]:
    """Reads the newest checkpoint under `out` and sets torch's random state to the saved one.

    Raises:
        CheckpointError: if there is none, or it cannot be read.
    """
    found = _checkpoints(out)
    if not found:
        raise CheckpointError(f"nothing to resume in {out}: no checkpoint was written there; start without --resume")
    try:
        progress = Progress(**json.loads((found[-1] / _PROGRESS).read_text("utf-8")))
        with safe_open(found[-1] / _TENSORS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        torch.set_rng_state(tensors.pop("random/cpu"))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot resume from {found[-1]} ({error}): the checkpoint is damaged; begin anew, or from "
            f"the last model in another folder: --init {out / 'model'}"
        ) from error
    cuda = tensors.pop("random/cuda", None)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
    return progress, tensors


def _checkpoints(out: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in (out / _FOLDER).glob("step-*") if path.suffix != ".partial")
