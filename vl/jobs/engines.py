"""Engines side by side on this host: each a process with a model of its own, usually on a GPU of its own."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import wait
from typing import Any

import torch

from preprocessing.container import available_cpus
from vl.engine import SamplingParams
from vl.errors import ConfigError, DeviceError, Error
from vl.jobs.children import Child, Pipe
from vl.jobs.elsewhere import Elsewhere
from vl.jobs.recipe import Recipe
from vl.jobs.rowfile import Row
from vl.jobs.sources import Source

Place = Mapping[str, Any]
"""Where an engine's model goes: `device` or `devices` of `vl.load`."""

_MORE, _END = "more", "end"  # what an engine asks for, and says when it is done


class Engines(Elsewhere):
    """Engines side by side on this host: `caption_images` takes them as a model.

    Args:
        model: as `vl.load` takes it.
        engines, device, devices: see `places`.
        loading: the other arguments of `vl.load`.

    Raises:
        CheckpointError, ConfigError, DeviceError: as `places`, and as `vl.load` as far as the model's config tells.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        engines: int | str = "auto",
        *,
        device: str | None = None,
        devices: int | Sequence[Any] | None = None,
        **loading: Any,
    ) -> None:
        self.places = places(engines, device, devices)
        on_cpu = self.places[0].get("device") == "cpu"
        self._recipe = Recipe.of(model, loading, "cpu" if on_cpu else "cuda")
        self.name = self._recipe.model

    def settings(self, params: SamplingParams) -> dict[str, Any]:
        return self._recipe.settings(params)

    def rows(self, sources: Iterable[Source], **options: Any) -> Generator[list[Row], None, None]:
        return engine_rows(self._recipe.asking(options), sources, self.places)


def places(engines: int | str, device: str | None = None, devices: int | Sequence[Any] | None = None) -> list[Place]:
    """Share a host's devices among engines.

    Args:
        engines: how many, or "auto": one for each GPU, or for each `devices`.
        device: "cpu", for processes on the CPU; by default the GPUs, if there are any.
        devices: those to share: a list, or how many each engine's model is cut over.

    Raises:
        ConfigError: if they cannot be shared equally, or the numbers are out of range.
        DeviceError: if there are not so many GPUs.
    """
    count = torch.cuda.device_count() if device is None or device.startswith("cuda") else 0
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(f"engines={engines!r} with device={device!r}: give devices= to say which, or leave it out")
    each = devices if isinstance(devices, int) else 1
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        pool = list(devices)
        number = len(pool) if engines == "auto" else engines
        if isinstance(number, str) or number < 1 or len(pool) % number:
            raise ConfigError(f"{len(pool)} devices cannot be shared equally among engines={engines!r}")
        each = len(pool) // number
    elif isinstance(devices, str):
        raise ConfigError(f"devices={devices!r} does not go with engines=: give a number or a list")
    else:
        number = max(count // each, 1) if engines == "auto" else engines
        if isinstance(number, str) or number < 1:
            raise ConfigError(f"engines={engines!r} is not known: give a number from 1, or 'auto'")
        if not count and each > 1:
            raise ConfigError(f"devices={devices} with engines= is for GPUs, of which none is used here")
        pool = list(range(number * each)) if count else ["cpu"] * number
        if count and len(pool) > count:
            raise DeviceError(f"{number} engines of {each} need {len(pool)} GPUs; this host has {count}: ask for less")
    shares = [pool[start : start + each] for start in range(0, len(pool), each)]
    return [{"device": _name(share[0])} if each == 1 else {"devices": share} for share in shares]


def _name(device: Any) -> str:
    return f"cuda:{device}" if isinstance(device, int) else str(device)


def engine_rows(recipe: Recipe, sources: Iterable[Source], where: Sequence[Place]) -> Generator[list[Row], None, None]:
    """Rows of `sources` by an engine at each of the places, as they come: each in order, all of them mixed.

    An engine asks for the next source when it has room, so that each works at its own speed.

    Raises:
        Error: if the model cannot be loaded, or captioning fails; DeviceError if an engine's process ends by itself.
            Rows that were yielded before are whole.
    """
    left = iter(sources)
    with ExitStack() as running:
        threads = _threads(where)
        children = {}
        for number, place in enumerate(where):
            child = running.enter_context(Child(partial(_work, recipe, place, threads)))
            children[child.pipe.connection] = f"engine {number} ({_told(place)})", child
        while children:
            for connection in wait(list(children)):
                name, child = children[connection]  # type: ignore[index]
                try:
                    said = child.pipe.receive()
                    if said == _MORE:
                        child.pipe.send(next(left, None))
                except (EOFError, OSError):
                    raise DeviceError(
                        f"{name} {child.ending()}: the rows so far are safe, and the same command does the rest. "
                        "Out of memory is the usual cause: give each engine less, or take fewer"
                    ) from None
                if isinstance(said, Exception):
                    raise said
                if isinstance(said, list):
                    yield said
                elif said == _END:
                    del children[connection]  # type: ignore[arg-type]


def _told(place: Place) -> str:
    return ", ".join(str(value) for value in place.values())


def _threads(where: Sequence[Place]) -> int | None:
    """Threads of an engine on the CPU, which several share."""
    on_cpu = sum(place.get("device") == "cpu" for place in where)
    return max(available_cpus() // on_cpu, 1) if on_cpu > 1 else None


def _work(recipe: Recipe, place: Place, threads: int | None, pipe: Pipe) -> None:
    """An engine's process."""
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        for batch in recipe.rows(recipe.load(**place), _asked(pipe)):
            pipe.send(batch)
        pipe.send(_END)
    except Error as error:
        pipe.send(type(error)(f"engine on {_told(place)}: {error}"))
    except Exception as error:
        pipe.send(RuntimeError(f"engine on {_told(place)}: {type(error).__name__}: {error}"))


def _asked(pipe: Pipe) -> Iterator[Source]:
    """Sources, each asked for when it is wanted: nothing else is on the way meanwhile, so no two sends can meet."""
    while True:
        pipe.send(_MORE)
        if (source := pipe.receive()) is None:
            return
        yield source
