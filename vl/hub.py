"""From what the user names to a local folder: the embedded model, a folder, or a repository of the hub."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from vl.errors import CheckpointError

NANO = Path(__file__).parent / "pretrained" / "nano"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Configuration, tokenizer, chat template and weights. Pickled weights and remote code are never fetched.
FILES = ("*.json", "merges.txt", "*.jinja", "*.safetensors")


def resolve_source(source: str | os.PathLike[str]) -> Path:
    """The folder that holds a checkpoint, downloaded first if need be.

    Args:
        source: "nano" for the embedded model, a folder, or a hub id "owner/name". A folder of that name wins over
            the hub; the hub's cache is used when there is no network.

    Raises:
        CheckpointError: if there is no such folder, or the download failed; says which and what to do.
    """
    if source == "nano":
        if not any(NANO.glob("*.safetensors")):
            raise CheckpointError(
                f"the embedded model's weights are missing from {NANO}: reinstall minimax-vl, or make them with "
                "`vl train nano --out runs/nano` and use --model runs/nano/model"
            )
        return NANO
    if source == "":
        raise CheckpointError("the model's name is empty: give 'nano', a folder (. is the current one), or a hub id")
    try:
        folder = Path(source).expanduser()
        if stat.S_ISDIR(folder.stat().st_mode):
            return folder
        raise CheckpointError(f"{folder} is a file: give the folder that holds config.json and the safetensors files")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (TypeError, ValueError, OSError, RuntimeError) as error:  # no path, a NUL in it, no rights, no such user
        raise CheckpointError(
            f"{source!r:.200} cannot be a model's folder ({error}): give 'nano', a folder, or a hub id"
        ) from error
    if not isinstance(source, str) or not HUB_ID.fullmatch(source):
        raise CheckpointError(
            f"there is no folder {str(source)!r}: check the path, or give 'nano' or a hub id such as "
            "'MiniMaxAI/MiniMax-VL-01'"
        )
    return _download(source)


def lasting_name(source: str) -> str:
    """What names the same model from another working directory too: a folder by its whole path."""
    if source == "nano" or not source or not Path(source).expanduser().is_dir():
        return source
    return str(Path(source).expanduser().absolute())


def _download(repository: str) -> Path:
    # Imported here: a local model needs no HTTP client.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=list(FILES), ignore_patterns=["*/*"]))
    except Exception as error:  # network, hub, cache, disk: each library below raises its own
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"there is no folder {repository!r} here, and taken as a hub id it could not be downloaded ({cause}): "
            "check the spelling and the network, log in with `hf auth login` if it is private, or give a local folder"
        ) from error
