"""`vl.load`: from a name, a folder or a hub id to a model ready to use."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from preprocessing import Background, Patcher, Processor
from preprocessing.alpha import read_background
from vl.checkpoint import load_weights, weight_dtype
from vl.config import VLConfig, read_config
from vl.engine import Engine, EngineConfig
from vl.errors import ConfigError, DeviceError
from vl.hub import resolve_source
from vl.manifest import expected_shapes, read_manifest
from vl.model import MiniMaxVL
from vl.quantization import Quantization, read_quantization

_LARGE = 1_000_000_000  # parameters


def load(
    source: str | os.PathLike[str] = "nano",
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    quantization: Quantization = None,
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
        quantization: "int8", "fp8" or "nf4" quantises the layers' matrices as they are read, whose 16-bit values are
            never all in memory. transformers' `BitsAndBytesConfig` or its dictionary is understood. A checkpoint that
            is quantised needs nothing here.
        background: what transparent images are laid on: a colour such as "white", "#rrggbb" or (r, g, b). None drops
            the transparency, as the released recipe does.
        progress: called after each tensor with the numbers of values loaded and in all.
        options: the fields of `vl.engine.EngineConfig`.

    Raises:
        CheckpointError: if the files are missing, incomplete or damaged.
        ConfigError: if the config asks for what this family does not have, or an option is unknown or out of range.
        DeviceError: if the device or dtype is not available, or the device's memory does not suffice.
        InputError: if `background` is not a colour.
    """
    if progress is not None and not callable(progress):
        raise ConfigError(f"progress={progress!r} cannot be called: give a function of two numbers, or None")
    settings = EngineConfig.of(options)
    read_background(background)
    place = pick_device(device)
    kind = pick_dtype(dtype, place)
    stored_as = read_quantization(quantization, kind)
    folder = resolve_source(source)
    config, name = read_config(folder), os.fspath(source)
    if device is None and place.type == "cpu":
        warn_of_slowness(name, config)
    model = load_folder(
        folder,
        config,
        name=name,
        device=place,
        dtype=kind,
        quantization=stored_as,
        background=background,
        progress=progress,
    )
    model.engine = Engine(model, settings)
    return model.eval()


def load_folder(
    folder: Path,
    config: VLConfig,
    *,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    quantization: str | None = None,
    threads: int | None = None,
    background: Background = None,
    progress: Callable[[int, int], None] | None = None,
) -> MiniMaxVL:
    """The model in a folder, without an engine.

    Everything that can be wrong with the files but their values is found before memory is asked for.

    Args:
        folder, config: a local checkpoint and its config.
        quantization: the format to quantise to; None leaves the weights as they are in the files.
        name: what to call the model in results.
        threads: to cut one image with; see `preprocessing.Patcher`.
        device, dtype, background, progress: as of `load`.

    Raises:
        CheckpointError, ConfigError, DeviceError: as `load` does.
    """
    if quantization is not None and config.quantization not in (None, quantization):
        raise ConfigError(
            f"quantization={quantization!r}: {folder} is quantised to {config.quantization} already; leave it out, or "
            "load the released bf16 checkpoint"
        )
    packed = config.quantization is not None
    try:
        manifest = read_manifest(folder, expected_shapes(config), config.quantization)
    except ValueError as error:
        raise ConfigError(f"{folder} cannot be quantised to {config.quantization}: {error}") from error
    processor = Processor.load(folder, patcher_of(config, threads), background=background)
    check_tokenizer(processor, config)
    config = replace(config, quantization=config.quantization or quantization)
    try:
        model = MiniMaxVL(config, processor, name=name, device=device, dtype=dtype)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):  # as all of torch's allocators say
            raise
        raise DeviceError(
            f"{device} has no room for {name} ({first_line(error)}): free memory, or use another device, a narrower "
            "dtype or quantization"
        ) from error
    load_weights(model.stored_tensors() if packed else model.released_tensors(), manifest, progress=progress)
    return model


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


def patcher_of(config: VLConfig, threads: int | None = None) -> Patcher | None:
    """The patcher that fits the vision tower; None for a text-only model."""
    if config.vision is None:
        return None
    return Patcher(config.pinpoints, config.vision.image_size, config.vision.patch_size, threads=threads)


def warn_of_slowness(name: str, config: VLConfig) -> None:
    """Says that there is no GPU, where a user would wait for it; small models do well without."""
    parameters = 0
    for _, shape in expected_shapes(config):
        parameters += math.prod(shape)
        if parameters >= _LARGE:
            warnings.warn(
                f"no GPU was found: {name}, of more than a billion parameters, runs on the CPU by the slower PyTorch "
                'references. device="cpu" says that this is meant.',
                stacklevel=3,
            )
            return


def check_tokenizer(processor: Processor, config: VLConfig) -> None:
    """The tokenizer's ids must be the model's: all in its vocabulary, and `<image>` where images are to land."""
    tokenizer = processor.tokenizer
    largest = max(tokenizer.backend.get_vocab().values(), default=0)
    if largest >= config.text.vocab_size:
        raise ConfigError(
            f"vocab_size is {config.text.vocab_size} in config.json, but the tokenizer has the id {largest}: use the "
            "tokenizer that belongs to this checkpoint"
        )
    token_id = tokenizer.token_id(processor.image_token)
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
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise DeviceError(
            f"device {str(device)!r} cannot be used here ({first_line(error)}); try device='cpu'"
        ) from error
    return place


def pick_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return weight_dtype(dtype)


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
