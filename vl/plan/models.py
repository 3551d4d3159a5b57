"""The configuration of what a user names, without its weights: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

from text_backbone.config import TextConfig
from vision_encoder.config import VisionConfig
from vl.config import VLConfig, read_config
from vl.errors import ConfigError
from vl.hub import HUB_ID, NANO

VISION_MODEL, TEXT_MODEL = "MiniMax-VL-01", "MiniMax-Text-01"
OWNER = "MiniMaxAI/"
IMAGE_TOKEN = 200025


def find_config(model: str) -> VLConfig:
    """The config of `MiniMax-VL-01` or `MiniMax-Text-01` (built in, also as hub ids), `nano`, a folder, or a file.

    Args:
        model: a folder needs a `config.json` in it, and no weights.

    Raises:
        ConfigError: if there is no such model here, or its config is not one of this family.
    """
    if not model:
        raise ConfigError(f"the model's name is empty: give {VISION_MODEL}, {TEXT_MODEL}, nano, a folder or a config")
    folder = Path(model)
    try:
        if folder.is_dir():
            return read_config(folder)
        if folder.is_file():
            return _of_file(folder)
    except (OSError, ValueError) as error:  # a name that the file system refuses
        raise ConfigError(f"{model!r:.200} cannot be a model's folder ({error})") from error
    if model == "nano":
        return read_config(NANO)
    name = model.removeprefix(OWNER)
    if name == TEXT_MODEL:
        return VLConfig(TextConfig())
    if name == VISION_MODEL:
        return released()
    fix = "download its config.json and give that file" if HUB_ID.fullmatch(model) else "check the path"
    raise ConfigError(
        f"there is no folder {model!r:.200}, and built in are {VISION_MODEL}, {TEXT_MODEL} and nano: {fix}"
    )


def released() -> VLConfig:
    """MiniMax-VL-01 as it was released."""
    from preprocessing.grid import PINPOINTS

    return VLConfig(TextConfig(), VisionConfig(), PINPOINTS, IMAGE_TOKEN)


def _of_file(file: Path) -> VLConfig:
    if file.name != "config.json":
        raise ConfigError(f"{file} is not a config.json: give that file, or its folder")
    return read_config(file.parent)
