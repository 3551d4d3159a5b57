"""The files of a model, replaced as a whole: what a folder holds is the old model, the new one, or none that loads.

New files are written into a hidden folder inside the target. When all of them are on the disk, the old files move into
that hidden folder, `config.json` first, and the new ones take their places, `config.json` last. Without that file
nothing loads, so there is no moment at which a mixture does; and until the end, the old files are still there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vl.errors import CheckpointError
from vl.files import sync, sync_folder

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
DRAFT, OLD = ".unfinished-save-", "old"
_TEMPLATES = "additional_chat_templates"  # the one folder of a model
# What belongs to a model, whoever wrote it: left beside a new one, it would be read as a part of it. All else stays.
MODEL_FILES = re.compile(
    r"(config|generation_config|(video_)?preprocessor_config|processor_config)\.json"
    r"|(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|merges\.txt"
    rf"|chat_template\.(jinja|json)|{_TEMPLATES}"
    r"|(quantize_config|quant_config|hf_quant_config|quanto_qmap)\.json"
    r"|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)


@contextlib.contextmanager
def replace_model(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A new, empty folder to write a model's files into, which replace those in `folder` when the block ends.

    After an error, the old model is as it was. Where even that is impossible (the rights changed meanwhile, the
    program was killed), `folder` has no `config.json`, and `unfinished` finds what was there.

    Raises:
        CheckpointError: if the folder or its files cannot be written.
    """
    target = target_path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        _discard_drafts(target)
        draft = target / f"{DRAFT}{secrets.token_hex(4)}"
        draft.mkdir()
        try:
            yield draft
            for path in draft.iterdir():
                sync(path)
            sync_folder(draft)
            _swap(draft, target)
            shutil.rmtree(draft, ignore_errors=True)
        finally:
            _discard_drafts(target)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"no model can be saved in {target!s:.200} ({error}): check free space and permissions"
        ) from error


def target_path(folder: Any) -> Path:
    """Where a model is to be written; `~` is the user's own. Raises CheckpointError if it is no path."""
    try:
        if isinstance(folder, str | os.PathLike) and os.fspath(folder) and "\0" not in os.fspath(folder):
            return Path(folder).expanduser()
    except (TypeError, RuntimeError):  # a path of bytes, no such user
        pass
    raise CheckpointError(f"a model is saved in a folder: give its path, not {folder!r:.100}")


def unfinished(folder: Path) -> Path | None:
    """Where a save that was cut short left the files of the earlier model; None if nothing is missing."""
    if (folder / CONFIG).exists():
        return None
    return next((draft / OLD for draft in sorted(folder.glob(f"{DRAFT}*")) if _holds_old(draft)), None)


def _discard_drafts(folder: Path) -> None:
    """Removes what saves left behind, except the files of an earlier model that has not been replaced."""
    replaced = (folder / CONFIG).exists()
    for draft in folder.glob(f"{DRAFT}*"):
        if replaced or not _holds_old(draft):
            shutil.rmtree(draft, ignore_errors=True)


def _holds_old(draft: Path) -> bool:
    return (draft / OLD).is_dir() and any((draft / OLD).iterdir())


def _swap(draft: Path, folder: Path) -> None:
    new = sorted((path.name for path in draft.iterdir()), key=lambda name: name == CONFIG)
    present = _model_files(folder)
    (draft / OLD).mkdir()
    moved: list[tuple[Path, Path]] = []

    def move(source: Path, target: Path) -> None:
        os.replace(source, target)
        moved.append((source, target))

    try:
        for name in present:
            move(folder / name, draft / OLD / name)
            if name == CONFIG:
                sync_folder(folder)  # nothing loads, whatever else the disk has taken when the power fails
        for name in new:
            if name == CONFIG:
                sync_folder(folder)
            move(draft / name, folder / name)
    except BaseException:
        for source, target in reversed(moved):
            os.replace(target, source)
        raise
    sync_folder(folder)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _model_files(folder: Path) -> list[str]:
    """Names of the files of the model in a folder, `config.json` first; among them, the shards that its index names."""
    shards: set[str] = set()
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        shards = set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values())
    # A folder of such a name is somebody's own: it is not moved, and a new file does not take its place.
    names = [path.name for path in folder.iterdir() if not _is_folder(path) or path.name == _TEMPLATES]
    owned = [n for n in names if MODEL_FILES.fullmatch(n) or (n in shards and n.endswith(".safetensors"))]
    return sorted(owned, key=lambda name: (name != CONFIG, name))
