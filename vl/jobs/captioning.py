"""From sources to rows: images are prepared by threads while the model writes the captions of the batch before."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from preprocessing import Inputs
from vl.engine import Generation, SamplingParams
from vl.errors import Error, InputError
from vl.jobs.rowfile import Row, RowFile
from vl.jobs.sources import expand_sources, source_key
from vl.model import DEFAULT_PROMPT

if TYPE_CHECKING:
    from vl.model import MiniMaxVL


@dataclass
class Tally:
    """What a run has done so far. `skipped` counts sources that had a row already; `seconds` runs from the start."""

    captions: int = 0
    errors: int = 0
    skipped: int = 0
    started: float = field(default_factory=time.monotonic, repr=False)

    @property
    def images(self) -> int:
        return self.captions + self.errors

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / max(self.seconds, 1e-9)

    def count(self, row: Row) -> None:
        if "error" in row:
            self.errors += 1
        else:
            self.captions += 1


OnRow = Callable[[Row, Tally], None]


def caption_images(
    model: MiniMaxVL,
    sources: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    prompt: str = DEFAULT_PROMPT,
    batch_size: int = 8,
    workers: int | None = None,
    overwrite: bool = False,
    retry_errors: bool = False,
    on_row: OnRow | None = None,
    **sampling: Any,
) -> Tally:
    """Caption many images into a JSON Lines file, one row for each; running it again does what is left.

    Rows reach the disk batch by batch, so the process may be killed at any moment. See `caption_rows` for the rows,
    `expand_sources` for the sources and `RowFile` for the file.

    Args:
        model: from `vl.load`, with a vision encoder.
        sources: files, folders and http(s) or data URLs; may be a generator of any length.
        out: the `.jsonl` file, created or continued.
        batch_size: images per batch; about two batches are held in memory.
        workers: threads that read images; by default a few more than there are cores.
        overwrite: start again instead of continuing.
        retry_errors: try the images of error rows again.
        on_row: called after each row is safe on disk.
        sampling: as in `MiniMaxVL.generate`.

    Raises:
        JobError: if `out` cannot be used. InputError: if the model is text-only or `sampling` is out of range.
    """
    with RowFile(out, model=model.name, prompt=prompt, overwrite=overwrite, retry_errors=retry_errors) as rows:
        pending = rows.pending(expand_sources(sources))
        return write_rows(model, pending, rows, batch_size=batch_size, workers=workers, on_row=on_row, **sampling)


def write_rows(
    model: MiniMaxVL,
    pending: Iterable[str],
    rows: RowFile,
    *,
    batch_size: int = 8,
    workers: int | None = None,
    on_row: OnRow | None = None,
    **sampling: Any,
) -> Tally:
    """The job on an open `RowFile`: caption the `pending` sources and append their rows."""
    tally = Tally()
    options = {"prompt": rows.prompt, "batch_size": batch_size, "workers": workers, **sampling}
    with contextlib.closing(caption_rows(model, pending, **options)) as batches:
        for batch in batches:
            rows.append(batch)
            for row in batch:
                tally.count(row)
                tally.skipped = rows.skipped
                if on_row is not None:
                    on_row(row, tally)
    tally.skipped = rows.skipped
    return tally


def caption_rows(
    model: MiniMaxVL,
    sources: Iterable[str],
    *,
    prompt: str = DEFAULT_PROMPT,
    batch_size: int = 8,
    workers: int | None = None,
    **sampling: Any,
) -> Generator[list[Row], None, None]:
    """Rows of `sources`, a list per batch, in order.

    A row holds `image` (the source), then `caption`, or `error` if the image cannot be used; `width` and `height`
    (pixels), `resolution` (`[width, height]` of the chosen pinpoint), `tiles`, `prompt_tokens`, `image_tokens`,
    `completion_tokens` and `finish_reason`, null where an error came first; `model` and `prompt`.

    Raises:
        InputError: at once if the model takes no images or `sampling` is out of range. A bad image never raises.
    """
    SamplingParams(**sampling)
    if model.config.vision is None:
        raise InputError(f"{model.name} is a text-only checkpoint and cannot caption: use one with a vision encoder")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    return _caption_rows(model, sources, prompt, batch_size, workers, sampling)


def _caption_rows(
    model: MiniMaxVL,
    sources: Iterable[str],
    prompt: str,
    batch_size: int,
    workers: int | None,
    sampling: dict[str, Any],
) -> Generator[list[Row], None, None]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vl-images")
    try:
        prepared = _in_order(pool, lambda source: _prepare(model, source, prompt), sources, ahead=2 * batch_size)
        while batch := list(islice(prepared, batch_size)):
            _generate(model, batch, sampling)
            yield [item.row for item in batch]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass
class _Item:
    """An image on its way to a row: `inputs` until it is captioned, None once its row says how it ended."""

    row: Row
    inputs: Inputs | None = None

    def fail(self, error: BaseException) -> None:
        self._finish("error", str(error) or type(error).__name__)

    def succeed(self, generation: Generation) -> None:
        usage = generation.usage
        self._finish("caption", generation.text.strip())
        self.row.update(
            prompt_tokens=usage.prompt_tokens,
            image_tokens=usage.image_tokens,
            completion_tokens=usage.completion_tokens,
            finish_reason=generation.finish_reason,
        )

    def _finish(self, key: str, text: str) -> None:
        """Readers of the file see the image and what came of it first, so these two keys lead."""
        self.inputs = None
        self.row = {"image": self.row["image"], key: text} | self.row


def _prepare(model: MiniMaxVL, source: str, prompt: str) -> _Item:
    """Read and cut one image. Whatever goes wrong with it is its own row's error."""
    empty = ("width", "height", "resolution", "tiles", "prompt_tokens", "image_tokens", "completion_tokens")
    row = {"image": source_key(source)} | dict.fromkeys((*empty, "finish_reason"))
    item = _Item(row | {"model": model.name, "prompt": prompt})
    content = [{"type": "image", "image": source}, {"type": "text", "text": prompt}]
    try:
        item.inputs = model.processor([{"role": "user", "content": content}])
    except Error as error:
        item.fail(error)
    except Exception as error:
        item.fail(RuntimeError(f"cannot prepare {row['image']}: {type(error).__name__}: {error}"))
    else:
        grid = item.inputs.grids[0]
        item.row.update(
            width=grid.width,
            height=grid.height,
            resolution=list(grid.resolution),
            tiles=grid.tiles,
            prompt_tokens=item.inputs.input_ids.numel(),
            image_tokens=grid.tokens,
        )
    return item


def _generate(model: MiniMaxVL, batch: list[_Item], sampling: dict[str, Any]) -> None:
    """Caption what could be prepared; if the batch fails as a whole, one by one, to find whose fault it is."""
    ready = [item for item in batch if item.inputs is not None]
    if not ready:
        return
    try:
        generations = model.generate([item.inputs for item in ready if item.inputs is not None], **sampling)
    except (Error, MemoryError, torch.OutOfMemoryError) as error:
        if len(ready) == 1:
            ready[0].fail(error)
        else:
            for item in ready:
                _generate(model, [item], sampling)
        return
    for item, generation in zip(ready, generations, strict=True):
        item.succeed(generation)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[str], _Item], sources: Iterable[str], *, ahead: int
) -> Iterator[_Item]:
    """`map(work, sources)` by threads, at most `ahead` sources ahead of the reader."""
    running: deque[Future[_Item]] = deque()
    for source in sources:
        running.append(pool.submit(work, source))
        if len(running) > ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
