"""A job's engines as actors of Ray Data, on a cluster or on this machine; rows come back here, where they are kept.

Ray places the actors, streams blocks of sources to them, holds back what is too much, and repeats what a lost worker
had not finished. What is repeated may arrive twice, and a block may get lost: here each source is crossed off when its
row arrives, so that a row goes on once, and what is left over is sent again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
from collections.abc import Generator, Iterable, Iterator
from types import TracebackType
from typing import Any

from vl.engine import SamplingParams
from vl.errors import ConfigError, DeviceError, Error
from vl.jobs.elsewhere import Elsewhere
from vl.jobs.errors import JobError
from vl.jobs.recipe import Recipe
from vl.jobs.rowfile import Row, encode_row
from vl.jobs.sources import Source, row_key, work_key

try:
    import ray
    import ray.data
    from ray import cloudpickle
except ImportError:
    raise ConfigError("this needs Ray: pip install 'minimax-vl[jobs]'") from None

WINDOW_SOURCES, WINDOW_BYTES = 100_000, 1 << 28  # that are with Ray at once; images may be among them
BLOCK = 16  # batches of a task: between tasks an engine runs empty


class RayEngines(Elsewhere):
    """Engines on Ray: `caption_images` takes them as a model. A context manager that is connected to the cluster.

    That is the one that this process uses already, that RAY_ADDRESS names, or that runs on this machine; else one is
    started here, and ended.

    Args:
        model: as `vl.load` takes it, as the workers see it.
        engines: how many; None: as many as the cluster's GPUs allow, or one without GPUs.
        devices: GPUs of each; None: one if the cluster has any. Several hold a model together.
        loading: the other arguments of `vl.load`.

    Raises:
        CheckpointError, ConfigError: as `vl.load`, as far as the model's config tells.
        DeviceError: if Ray cannot be reached or started, or has not so many GPUs.
    """

    def __init__(
        self, model: str | os.PathLike[str], engines: int | None = None, *, devices: int | None = None, **loading: Any
    ) -> None:
        self.name = os.fspath(model)
        self._loading = loading
        self._asked = engines, devices
        self._connected = contextlib.ExitStack()

    def __enter__(self) -> RayEngines:
        self._connected.enter_context(_connected())
        try:
            self._engines, self._gpus = _share(*self._asked)
            self._recipe = Recipe.of(self.name, self._loading, "cuda" if self._gpus else "cpu")
        except BaseException:
            self._connected.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._connected.close()

    def settings(self, params: SamplingParams) -> dict[str, Any]:
        return self._recipe.settings(params)

    def rows(self, sources: Iterable[Source], **options: Any) -> Generator[list[Row], None, None]:
        """Rows as they come, each source's once.

        Raises:
            Error: if the model cannot be loaded or captioning fails. Rows that were yielded before are whole.
            JobError: if Ray loses the same sources again and again.
        """
        recipe = self._recipe.asking(options)
        block = BLOCK * options.get("batch_size", 8)
        for waiting in _windows(sources):
            while waiting:
                before = len(waiting)
                with _explained():
                    for rows in _run(recipe, list(waiting.values()), self._engines, self._gpus, block):
                        if fresh := [row for row in rows if waiting.pop(row_key(row), None) is not None]:
                            yield fresh
                if len(waiting) == before:
                    raise JobError(
                        f"Ray gave no row back for {before:,} images, of which the first is {next(iter(waiting))}: "
                        "see Ray's logs. The rows so far are safe, and the same command does the rest"
                    )


def _share(engines: int | None, gpus: int | None) -> tuple[int, int]:
    """Engines, and GPUs of each, on the cluster that is connected. Raises DeviceError if it has not so many."""
    there = int(ray.cluster_resources().get("GPU", 0))
    each = min(there, 1) if gpus is None else gpus
    engines = engines or max(there // each if each else 1, 1)
    if engines * each > there:
        raise DeviceError(f"{engines} engines of {each} GPUs need {engines * each}; Ray's cluster has {there}")
    return engines, each


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Ray itself finds RAY_ADDRESS and a cluster of this machine. Raises DeviceError."""
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
        except Exception as error:
            raise DeviceError(f"Ray cannot be reached or started: {error}") from error
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def _windows(sources: Iterable[Source]) -> Iterator[dict[str, bytes]]:
    """Sources by their keys, pickled, as many at a time as may be with Ray."""
    window: dict[str, bytes] = {}
    size = 0
    for source in sources:
        data = cloudpickle.dumps(source)
        window[work_key(source)] = data
        size += len(data)
        if len(window) >= WINDOW_SOURCES or size >= WINDOW_BYTES:
            yield window
            window, size = {}, 0
    if window:
        yield window


def _run(recipe: Recipe, sources: list[bytes], engines: int, gpus: int, block: int) -> Iterator[list[Row]]:
    blocks = -(-len(sources) // block)
    data = ray.data.from_items([{"source": source} for source in sources], override_num_blocks=blocks)
    data.context.enable_progress_bars = False
    data.context.print_on_execution_start = False
    rows = data.map_batches(
        _Engine,
        fn_constructor_args=(recipe, gpus, os.getcwd()),
        batch_size=None,  # a block at a time
        compute=ray.data.ActorPoolStrategy(size=min(engines, blocks)),
        num_gpus=gpus or None,
        num_cpus=1,
    )
    for batch in rows.iter_batches(batch_size=None, prefetch_batches=0):
        yield [json.loads(row) for row in batch["row"]]


class _Engine:
    """An actor. Makes rows of pickled sources, as the bytes that a file would have.

    It works in the job's `folder`, where its machine has that, and not where Ray was started: paths may be relative.
    """

    def __init__(self, recipe: Recipe, gpus: int, folder: str) -> None:
        self._recipe = recipe
        with contextlib.suppress(OSError):
            os.chdir(folder)
        self._model = recipe.load(**({"devices": gpus} if gpus > 1 else {"device": "cuda" if gpus else "cpu"}))

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        sources = (pickle.loads(source) for source in batch["source"])
        for rows in self._recipe.rows(self._model, sources):
            yield {"row": [encode_row(row) for row in rows]}


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What an actor raised, as it raised it; what Ray itself raises, as a DeviceError."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, Error):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is not None:
            raise cause from error
        raise DeviceError(f"Ray: {error}") from error
