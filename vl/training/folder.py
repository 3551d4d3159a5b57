"""The folder of a run: whose it is, and whether a resumed run is the one that began there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from glob import glob
from pathlib import Path
from typing import Any

from vl.errors import CheckpointError, ConfigError
from vl.files import write_file
from vl.training.config import TrainConfig
from vl.training.dimensions import ParallelConfig

RUN = "run.json"
# What a run writes, beside the curve: without these there is none.
_FILES = (RUN, "log.jsonl", "skipped.jsonl", "loss.png")
_FOLDERS = ("checkpoints", "tensorboard", "data", "model", "adapter")
_RESULTS = ("checkpoints", "log.jsonl", "model", "adapter")  # what would be lost
# How closely a run is watched and how its work is laid out, but not what comes of it.
_FREE = {
    *("run.log_steps", "run.save_minutes", "run.eval_minutes", "run.eval_samples", "run.peak_tflops"),
    *("run.compile", "run.recompute", "run.max_tiles", "data.workers"),
    *(f"parallel.{f.name}" for f in fields(ParallelConfig)),
}


def check_folder(out: Path, config: TrainConfig, processes: int = 1, *, resume: bool, overwrite: bool) -> None:
    """Whether a run may begin in `out`, or go on there. Changes nothing.

    Raises:
        ConfigError: if `out` cannot be a folder, or holds a run and neither resuming nor overwriting is asked for.
        CheckpointError: if the run to resume began with another recipe or other data; names the first keys that differ.
    """
    if resume and overwrite:
        raise ConfigError("a run is resumed or overwritten, not both: drop one of the two")
    if any(place.exists() and not place.is_dir() for place in (out, *out.parents)):
        raise ConfigError(f"{out} cannot be a folder, as a file is there: choose another place for the run")
    found = [name for name in _RESULTS if _holds_something(out / name)]
    if found and not resume and not overwrite:
        raise ConfigError(
            f"{out} holds a run already ({', '.join(found)}): choose another folder, --resume to go on with it, or "
            "--overwrite to delete it and begin anew"
        )
    if resume and (out / RUN).exists():
        _compare(_read(out / RUN), _described(config, processes), out)


def begin_run(out: Path, config: TrainConfig, processes: int = 1) -> None:
    """Make `out` the folder of a new run: what another left is deleted, and the recipe noted."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            (out / name).unlink(missing_ok=True)
        for name in _FOLDERS:
            if (out / name).exists():
                shutil.rmtree(out / name)
        write_file(out / RUN, json.dumps(_described(config, processes), indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"no run can be written to {out} ({error.strerror or error}): choose another place") from None


def _holds_something(place: Path) -> bool:
    return any(place.iterdir()) if place.is_dir() else place.exists() and place.stat().st_size > 0


def _described(config: TrainConfig, processes: int) -> dict[str, Any]:
    """The recipe as JSON would give it back, and the sizes of the files of records.

    A step's batches count, not how many processes share them.
    """
    files = sorted({path for name in (*config.data.files, *config.data.held_out) for path in (glob(name) or [name])})
    sizes = {path: Path(path).stat().st_size for path in files if Path(path).is_file()}
    described: dict[str, Any] = json.loads(json.dumps({**asdict(config), "bytes": sizes}, default=list))
    sharers = config.parallel.context * config.parallel.tensor
    described["batches_per_step"] = described["run"].pop("accumulate") * (processes // sharers)
    return described


def _read(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text("utf-8"))
        return dict(described)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): start anew with --overwrite") from None


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    old, new = dict(_leaves(before)), dict(_leaves(now))
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and key not in _FREE)
    if not differing:
        return
    shown = "; ".join(f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in differing[:3])
    more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise CheckpointError(
        f"the run in {out} began with another recipe or other data: {shown}{more}. Resume it with its own, or begin "
        f"another from its weights: --init {out / 'model'} and another --out"
    )


def _leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no table, by its dotted key."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
