"""`vl.load`: from a name, a folder or a hub id to a model ready to use."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from preprocessing import Background, Patcher, Processor
from preprocessing.alpha import read_background
from vl.checkpoint import check_range, load_weights, weight_dtype
from vl.config import VLConfig, read_config
from vl.engine import Engine, EngineConfig
from vl.engine.identity import Origin
from vl.errors import ConfigError, DeviceError
from vl.fingerprint import fingerprint
from vl.hub import resolve_source
from vl.manifest import Manifest, expected_shapes, read_manifest
from vl.model import MiniMaxVL
from vl.quantization import Quantization, read_quantization
from vl.ranks.devices import TENSOR, Devices, Placed, exact_device, read_devices, read_timeout
from vl.ranks.model import SplitVL
from vl.ranks.processes import Ranks
from vl.room import check_host
from vl.spill import Spill, place_experts, read_spill

_LARGE = 1_000_000_000  # parameters


def load(
    source: str | os.PathLike[str] = "nano",
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    quantization: Quantization = None,
    devices: Devices = None,
    placement: str | None = None,
    step_timeout: float | None = None,
    spill: Spill = None,
    background: Background = None,
    progress: Callable[[int, int], None] | None = None,
    warm_up: bool = False,
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
        devices: put the model on several: a number of this host's GPUs (of processes, with device="cpu" or without a
            GPU), a list such as ["cuda:0", "cuda:1"] or [0, 1], or "auto": the number that `vl plan` predicts to be
            fastest of those that it fits. Each has a process of its own, which ends with the model (`close`), with this
            process, or with an error of one of them. Such a model generates; it is not trained, moved or saved.
        placement: how it is cut over them: "tensor" (a part of every matrix; the default), "expert" (whole experts),
            "layers" (runs of layers), "context" (all of it on each: they share the tokens of a prompt), or "auto".
        step_timeout: seconds after which a step of several devices that has not ended counts as hung; by default 600.
        spill: keep the experts in host memory, and so many of every layer on each device, the most used; the others
            are copied when they are chosen, which is slow: a warning says how fast to expect it to be. "auto" keeps as
            many as fit beside the cache, all of them if they do. Such a model generates; it is not trained or moved.
        background: what transparent images are laid on: a colour such as "white", "#rrggbb" or (r, g, b). None drops
            the transparency, as the released recipe does.
        progress: called after each tensor with the numbers of values loaded and in all.
        warm_up: do once what the first requests would wait for (`Engine.warm_up`): on a GPU, compile kernels, record
            graphs and take the cache's memory. `progress` hears of its parts then, too: how many are done, and of all.
        options: the fields of `vl.engine.EngineConfig`.

    Raises:
        CheckpointError: if the files are missing, incomplete or damaged.
        ConfigError: if the config asks for what this family does not have, or an option is unknown or out of range.
        DeviceError: if the device or dtype is not available, or the device's memory does not suffice.
        InputError: if `background` is not a colour.
    """
    if progress is not None and not callable(progress):
        raise ConfigError(f"progress={progress!r} cannot be called: give a function of two numbers, or None")
    if not isinstance(warm_up, bool):
        raise ConfigError(f"warm_up must be True or False, not {warm_up!r:.80}")
    settings = EngineConfig.of(options)
    read_background(background)
    spilling = read_spill(spill, devices, placement)
    asked = read_devices(devices, placement, device)
    timeout = read_timeout(step_timeout, devices)
    place = pick_device(device if asked is None or asked.devices is None else asked.devices[0])
    kind = pick_dtype(dtype, place)
    stored_as = read_quantization(quantization, kind)
    folder = resolve_source(source)
    config, name, files = read_config(folder), os.fspath(source), fingerprint(folder)
    placed = Placed((place,), TENSOR) if asked is None else asked.place(config, stored_as, settings)
    place = placed.devices[0]
    if device is None and len(placed.devices) == 1 and place.type == "cpu":
        warn_of_slowness(name, config)
    slots = None
    if spilling is not None:
        format = config.quantization or stored_as
        spilled = place_experts(spilling, config, placed, name=name, format=format, dtype=kind, engine=settings)
        if spilled is not None:
            warnings.warn(spilled.note, stacklevel=2)
            slots = spilled.slots
    if len(placed.devices) > 1:
        split = load_split(
            folder,
            config,
            placed,
            settings,
            name=name,
            dtype=kind,
            quantization=stored_as,
            slots=slots,
            background=background,
            progress=progress,
            timeout=timeout,
        )
        split.origin = Origin(files)
        if warm_up:
            split.engine.warm_up(progress)
        return split
    model = load_folder(
        folder,
        config,
        name=name,
        device=place,
        dtype=kind,
        quantization=stored_as,
        slots=slots,
        background=background,
        progress=progress,
    )
    model.origin = Origin(files) if slots is not None else Origin.of(files, model, model)
    engine = model.engine = Engine(model.eval(), settings)
    if warm_up:
        engine.warm_up(progress)
    return model


def weights_as(
    source: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    quantization: Quantization = None,
) -> tuple[torch.dtype, str | None]:
    """The dtype and the quantization that the model would have if `load` were given the same; reads its config alone.

    Raises:
        CheckpointError, ConfigError, DeviceError: as `load` does.
    """
    kind = pick_dtype(dtype, pick_device(device))
    quantised = read_quantization(quantization, kind)
    return kind, read_config(resolve_source(source)).quantization or quantised


def load_split(
    folder: Path,
    config: VLConfig,
    placed: Placed,
    engine: EngineConfig,
    *,
    name: str,
    dtype: torch.dtype,
    quantization: str | None,
    slots: int | None,
    background: Background,
    progress: Callable[[int, int], None] | None,
    timeout: float,
) -> SplitVL:
    """The model in a folder over several devices, each with a process that reads its part of the files.

    What can be wrong with the files but their values is found here, before any process is started.

    Raises:
        CheckpointError, ConfigError, DeviceError: as `load` does; what a process raised is said to be of its rank.
    """
    opened = open_folder(folder, config, quantization=quantization, background=background)
    check_host(opened.config, placed, name=name, dtype=dtype)
    build = partial(
        load_part,
        folder,
        config,
        name=name,
        dtype=dtype,
        quantization=quantization,
        placement=placed.placement,
        slots=slots,
    )
    ranks = Ranks(build, placed.devices, engine, timeout=timeout, progress=progress)
    return SplitVL(opened.config, opened.processor, ranks, name=name, dtype=dtype, engine=engine).eval()


def load_part(
    folder: Path, config: VLConfig, device: torch.device, progress: Callable[[int, int], None] | None, **how: Any
) -> MiniMaxVL:
    """A rank's part: `load_folder` as `Ranks` calls it."""
    return load_folder(folder, config, device=device, progress=progress, **how)


@dataclass(frozen=True)
class Opened:
    """A folder whose files were checked: all but the values in them.

    Attributes:
        config: of the model to build, in the format that is to be had.
        stored: the format that the files are in.
    """

    config: VLConfig
    stored: str | None
    manifest: Manifest
    processor: Processor


def open_folder(
    folder: Path,
    config: VLConfig,
    *,
    quantization: str | None = None,
    threads: int | None = None,
    background: Background = None,
) -> Opened:
    """Check what a folder holds, before memory is asked for; arguments and errors as of `load_folder`."""
    if quantization is not None and config.quantization not in (None, quantization):
        raise ConfigError(
            f"quantization={quantization!r}: {folder} is quantised to {config.quantization} already; leave it out, or "
            "load the released bf16 checkpoint"
        )
    try:
        manifest = read_manifest(folder, expected_shapes(config), config.quantization)
    except ValueError as error:
        raise ConfigError(f"{folder} cannot be quantised to {config.quantization}: {error}") from error
    processor = Processor.load(folder, patcher_of(config, threads), background=background)
    check_tokenizer(processor, config)
    wanted = replace(config, quantization=config.quantization or quantization)
    return Opened(wanted, config.quantization, manifest, processor)


def load_folder(
    folder: Path,
    config: VLConfig,
    *,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    quantization: str | None = None,
    placement: str | None = None,
    slots: int | None = None,
    threads: int | None = None,
    background: Background = None,
    progress: Callable[[int, int], None] | None = None,
) -> MiniMaxVL:
    """The model in a folder, without an engine.

    Everything that can be wrong with the files but their values is found before memory is asked for.

    Args:
        folder, config: a local checkpoint and its config.
        quantization: the format to quantise to; None leaves the weights as they are in the files.
        placement: None for the whole model; else this process' part, as `MiniMaxVL` has it.
        slots: None for all experts on the device; else as `MiniMaxVL` has it.
        name: what to call the model in results.
        threads: to cut one image with; see `preprocessing.Patcher`.
        device, dtype, background, progress: as of `load`.

    Raises:
        CheckpointError, ConfigError, DeviceError: as `load` does.
    """
    opened = open_folder(folder, config, quantization=quantization, threads=threads, background=background)
    if placement is None:  # of a part, who starts its process has looked at the whole
        check_host(opened.config, Placed((device,), TENSOR), name=name, dtype=dtype)
    try:
        model = MiniMaxVL(
            opened.config,
            opened.processor,
            name=name,
            device=device,
            dtype=dtype,
            placement=placement,
            slots=slots,
        )
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):  # as all of torch's allocators say
            raise
        raise DeviceError(
            f"{device} has no room for {name} ({first_line(error)}): free memory, or use another device, a narrower "
            "dtype or quantization"
        ) from error
    places = model.stored_tensors() if opened.stored else model.released_tensors()
    load_weights(places, opened.manifest, pin=device.type == "cuda", progress=progress)
    if opened.stored and dtype == torch.float16:  # the others hold what the files' float32 scales can make
        check_range(model, folder)
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
        place = exact_device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise DeviceError(
            f"device {str(device)!r} cannot be used here ({first_line(error)}); try device='cpu'"
        ) from error
    if place.type == "meta":
        raise DeviceError("device 'meta' holds no values, so nothing can be computed on it; try device='cpu'")
    return place


def pick_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return weight_dtype(dtype)


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
