"""The folder of a run: whose it is, and whether a resumed run is the one that began there."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any

from vl.errors import CheckpointError, ConfigError
from vl.files import write_file
from vl.training.config import TrainConfig
from vl.training.corpus import check_apart, expand
from vl.training.dimensions import ParallelConfig

RUN = "run.json"
_LOCK = ".lock"
# What a run writes beside `RUN`, and a new one deletes.
_FILES = ("log.jsonl", "skipped.jsonl", "loss.png")
_FOLDERS = ("checkpoints", "tensorboard", "data", "model", "adapter")
_RESULTS = ("checkpoints", "log.jsonl", "model", "adapter")  # what would be lost
# How closely a run is watched and how its work is laid out, but not what comes of it.
_FREE = {
    *("run.log_steps", "run.save_minutes", "run.eval_minutes", "run.eval_samples", "run.peak_tflops"),
    *("run.compile", "run.recompute", "run.max_tiles", "data.workers"),
    *(f"parallel.{f.name}" for f in fields(ParallelConfig)),
}


class FolderLock:
    """Keeps other processes from writing a run to `out`, from `take` to the end of a `with` or of this process."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._file: IO[bytes] | None = None

    def take(self) -> None:
        """Take the folder, if it is there and not taken. Raises ConfigError if another process has it."""
        if self._file or not self.out.is_dir():
            return
        try:
            file = (self.out / _LOCK).open("ab")
        except OSError:  # nothing can be written there, which is said where something is
            return
        try:
            # POSIX's lock: workers do not inherit it, which outlive a run that is killed by some seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            raise ConfigError(
                f"another process is writing a run to {self.out}: wait for it or stop it, or choose another folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        self._file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        if self._file:
            self._file.close()
            self._file = None


def check_folder(out: Path, config: TrainConfig, processes: int = 1, *, resume: bool, overwrite: bool) -> None:
    """Whether a run may begin in `out`, or go on there. Changes nothing.

    Raises:
        ConfigError: if a data file is missing, or both learnt from and held out; if `out` cannot be a folder, or holds
            a run and neither resuming nor overwriting is asked for; or if a new run would delete there what no run has
            written, or what it needs.
        CheckpointError: if the run to resume began with another recipe or other data; names the first keys that differ.
    """
    if resume and overwrite:
        raise ConfigError("a run is resumed or overwritten, not both: drop one of the two")
    check_apart(config.data.files, config.data.held_out)
    if any(place.exists() and not place.is_dir() for place in (out, *out.parents)):
        raise ConfigError(f"{out} cannot be a folder, as a file is there: choose another place for the run")
    if resume:
        if (out / RUN).exists():
            _compare(_read(out / RUN), _described(config, processes), out)
        return
    # Of a folder without a run, whatever bears these names is somebody's own.
    names = _RESULTS if (out / RUN).exists() else (*_FILES, *_FOLDERS)
    found = ", ".join(name for name in names if _holds_something(out / name))
    if found and not (out / RUN).exists():
        raise ConfigError(
            f"{out} holds {found}, and no run that wrote it ({RUN} is missing); a new run would delete it: choose "
            "another folder"
        )
    if found and not overwrite:
        raise ConfigError(
            f"{out} holds a run already ({found}): choose another folder, --resume to go on with it, or "
            "--overwrite to delete it and begin anew"
        )
    lost = [path for path in _inputs(config) if _is_inside(Path(path), [out / name for name in _FOLDERS])]
    if lost:
        raise ConfigError(f"the run needs {lost[0]}, and would begin by deleting it: choose another folder than {out}")


def begin_run(out: Path, config: TrainConfig, processes: int = 1, lock: FolderLock | None = None) -> None:
    """Make `out` the folder of a new run: what another left is deleted, and the recipe noted.

    Raises ConfigError if `out` cannot be written, or another process has it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if lock:
            lock.take()
        for name in _FILES:
            (out / name).unlink(missing_ok=True)
        for name in _FOLDERS:
            if (out / name).exists():
                shutil.rmtree(out / name)
        # Last: without it, what a kill leaves here would be nobody's.
        write_file(out / RUN, json.dumps(_described(config, processes), indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"no run can be written to {out} ({error.strerror or error}): choose another place") from None


def has_only_begun(out: Path) -> bool:
    """Whether a run was noted in `out` and ended before it had saved anything."""
    saved = (path for name in ("checkpoints", "model", "adapter") for path in (out / name).glob("*"))
    return (out / RUN).exists() and all(path.suffix == ".partial" for path in saved)


def _holds_something(place: Path) -> bool:
    return any(place.iterdir()) if place.is_dir() else place.exists() and place.stat().st_size > 0


def _inputs(config: TrainConfig) -> list[str]:
    """The files and folders that a run reads, as far as they are there."""
    return [*map(str, _data_files(config)), *filter(None, [config.run.init])]


def _data_files(config: TrainConfig) -> list[Path]:
    return sorted({*expand(config.data.files).files, *expand(config.data.held_out).files})


def _is_inside(path: Path, folders: list[Path]) -> bool:
    return path.exists() and any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)


def _described(config: TrainConfig, processes: int) -> dict[str, Any]:
    """The recipe as JSON would give it back, and the sizes of the files of records.

    A step's batches count, not how many processes share them.
    """
    sizes = {str(path): path.stat().st_size for path in _data_files(config)}
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
