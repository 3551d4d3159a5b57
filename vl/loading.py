"""`vl.load`: from a name, a folder or a hub id to a model ready to use."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

import torch

from preprocessing import Background, Patcher, Processor
from preprocessing.alpha import read_background
from vl.checkpoint import load_weights, resolve_source
from vl.config import VLConfig, read_config
from vl.engine import Engine, EngineConfig
from vl.errors import ConfigError, DeviceError
from vl.model import MiniMaxVL

_LARGE = 1_000_000_000  # parameters


def load(
    source: str | os.PathLike[str] = "nano",
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    quantization: str | None = None,
    background: Background = None,
    progress: Callable[[int, int], None] | None = None,
    **options: int,
) -> MiniMaxVL:
    """Load a model in the released layout.

    Args:
        source: "nano" (embedded), a folder, or a hub id such as "MiniMaxAI/MiniMax-VL-01".
        device: where the weights go; by default the first GPU, else the CPU.
        dtype: how they are held ("bfloat16", "float16", "float32" or the torch dtype); by default bfloat16 on a GPU
            and float32 on a CPU.
        quantization: must be None in this version.
        background: what transparent images are laid on: a colour such as "white", "#rrggbb" or (r, g, b). None drops
            the transparency, as the released recipe does.
        progress: called after each tensor with the numbers of values loaded and in all.
        options: the fields of `vl.engine.EngineConfig`.

    Raises:
        CheckpointError: if the files are missing, incomplete or damaged.
        ConfigError: if the config asks for what this family does not have, or an option is unknown or out of range.
        DeviceError: if the device or dtype is not available.
        InputError: if `background` is not a colour.
    """
    if quantization is not None:
        raise ConfigError(f"quantization={quantization!r} is not available in this version: use None")
    engine = EngineConfig.of(options)
    read_background(background)
    place = pick_device(device)
    folder = resolve_source(source)
    config = read_config(folder)
    model = build_model(
        config,
        Processor.load(folder, patcher_of(config), background=background),
        name=os.fspath(source),
        device=place,
        dtype=pick_dtype(dtype, place),
        engine=engine,
    )
    check_image_token(model)
    if device is None and place.type == "cpu":
        warn_of_slowness(model)
    load_weights(model.released_tensors(), folder, progress=progress)
    return model.eval()


def build_model(
    config: VLConfig,
    processor: Processor,
    *,
    name: str = "",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    engine: EngineConfig | None = None,
) -> MiniMaxVL:
    """A model that can generate, its weights uninitialised; arguments as of `MiniMaxVL`, and the engine's config."""
    model = MiniMaxVL(config, processor, name=name, device=device, dtype=dtype)
    model.engine = Engine(model, engine)
    return model


def patcher_of(config: VLConfig) -> Patcher | None:
    """The patcher that fits the vision tower; None for a text-only model."""
    if config.vision is None:
        return None
    return Patcher(config.pinpoints, config.vision.image_size, config.vision.patch_size)


def warn_of_slowness(model: MiniMaxVL) -> None:
    """Says that there is no GPU, where a user would wait for it; small models do well without."""
    parameters = sum(p.numel() for p in model.parameters())
    if parameters >= _LARGE:
        warnings.warn(
            f"no GPU was found: {model.name}, of {parameters / 1e9:.1f} billion parameters, runs on the CPU by the "
            'slower PyTorch references. device="cpu" says that this is meant.',
            stacklevel=3,
        )


def check_image_token(model: MiniMaxVL) -> None:
    """The config and the tokenizer must mean the same `<image>`, or images would land on other tokens."""
    processor, config = model.processor, model.config
    token_id = processor.tokenizer.token_id(processor.image_token)
    if config.vision is not None and token_id != config.image_token_index:
        raise ConfigError(
            f"image_token_index is {config.image_token_index} in config.json, but the tokenizer gives "
            f"{processor.image_token} the id {token_id}: use the tokenizer that belongs to this checkpoint"
        )


def pick_device(device: torch.device | str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(
            f"device {str(device)!r} cannot be used here ({first_line(error)}); try device='cpu'"
        ) from error
    return place


def pick_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    names = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
    chosen = names.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in names.values():
        raise DeviceError(f"dtype {dtype!r} cannot hold the weights: use one of {', '.join(names)}")
    return chosen


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
