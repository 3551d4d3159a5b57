"""Captioning jobs: many images to rows of a file."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from preprocessing import Inputs
from preprocessing.alpha import Background, read_background
from vl.engine import Generation, SamplingParams
from vl.errors import Error, InputError
from vl.jobs.outputs import Rows, open_rows
from vl.jobs.pipeline import answered
from vl.jobs.rowfile import Row
from vl.jobs.sources import Picture, Source, expand_sources, source_key
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
    column: str | None = None,
    on_row: OnRow | None = None,
    **sampling: Any,
) -> Tally:
    """Caption many images into JSON Lines or Parquet, one row for each; running it again does what is left.

    Rows reach the disk batch by batch, so the process may be killed at any moment. See `caption_rows` for the rows,
    `expand_sources` for the sources, `RowFile` and `PartFolder` for the output.

    Args:
        model: from `vl.load`, with a vision encoder.
        sources: files, folders, globs, tar shards, tables and URLs; may be a generator of any length.
        out: the `.jsonl` file, or the `.parquet` folder of part files, created or continued.
        batch_size: images captioned at once; as many again are read ahead, and rows reach the file in such batches.
        workers: threads that read images; by default a few more than there are cores.
        overwrite: start again instead of continuing; what the file holds is cut when the first rows are there.
        retry_errors: try the images of error rows again.
        column: where the tables among the sources have their images; by default the first of `COLUMNS` that they have.
        on_row: called after each row is safe on disk.
        sampling: as in `MiniMaxVL.generate`.

    Raises:
        JobError: if `out` cannot be used, or holds rows that were made with another model, prompt or setting.
        InputError: if the model takes no images or `sampling` is out of range.
    """
    settings = settings_of_model(model, SamplingParams.of(sampling))
    with open_rows(
        out, model=model.name, prompt=prompt, settings=settings, overwrite=overwrite, retry_errors=retry_errors
    ) as rows:
        pending = rows.pending(expand_sources(sources, column=column))
        return write_rows(model, pending, rows, batch_size=batch_size, workers=workers, on_row=on_row, **sampling)


def write_rows(
    model: MiniMaxVL,
    pending: Iterable[Source],
    rows: Rows,
    *,
    batch_size: int = 8,
    workers: int | None = None,
    on_row: OnRow | None = None,
    **sampling: Any,
) -> Tally:
    """The job on an open `RowFile` or `PartFolder`: caption the `pending` sources and append their rows."""
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
    sources: Iterable[Source],
    *,
    prompt: str = DEFAULT_PROMPT,
    batch_size: int = 8,
    workers: int | None = None,
    **sampling: Any,
) -> Generator[list[Row], None, None]:
    """Rows of `sources`, up to `batch_size` at a time, in order.

    A row holds `image` (the source), then `caption`, or `error` if the image cannot be used; `width` and `height`
    (pixels), `resolution` (`[width, height]` of the chosen pinpoint), `tiles`, `prompt_tokens`, `image_tokens`,
    `completion_tokens`, `finish_reason` and `seconds` (in the engine, where work shared with others counts in full),
    null where an error came first; `model`, `prompt` and `settings`.

    Raises:
        InputError: at once if the model takes no images or `sampling` is out of range. A bad image never raises.
    """
    params = SamplingParams.of(sampling)
    if model.config.vision is None:
        raise InputError(f"{model.name} is a text-only checkpoint and cannot caption: use one with a vision encoder")
    model.engine.check(params)
    known = {"model": model.name, "prompt": prompt, "settings": settings_of_model(model, params)}
    items = answered(model, sources, partial(_prepare, model, known), params, batch_size=batch_size, workers=workers)
    return _batches(items, batch_size)


def settings_of_model(model: MiniMaxVL, params: SamplingParams) -> dict[str, Any]:
    """`settings_of` what `model` will write with `params`."""
    return settings_of(
        params,
        background=model.processor.background,
        dtype=model.dtype,
        quantization=model.config.quantization,
        control_tokens_in_text=model.processor.control_tokens_in_text,
    )


def settings_of(
    params: SamplingParams,
    *,
    background: Background,
    dtype: torch.dtype,
    quantization: str | None,
    control_tokens_in_text: bool = False,
) -> dict[str, Any]:
    """What else than the model and the prompt decides a caption, as JSON: rows made otherwise are another run's.

    Args:
        params: how it is written.
        background, control_tokens_in_text: as of the model's processor.
        dtype, quantization: how the model's weights are held; `vl.loading.weights_as` knows before they are read.
    """
    colour = read_background(background)
    sampling = dataclasses.asdict(params)
    del sampling["priority"]  # it changes when a caption comes, not the caption
    return sampling | {
        "stop": list(params.stops),
        "background": None if colour is None else "#{:02x}{:02x}{:02x}".format(*colour),
        "dtype": str(dtype).removeprefix("torch."),
        "quantization": quantization,
        "control_tokens_in_text": control_tokens_in_text,
    }


def _batches(items: Generator[_Item, None, None], size: int) -> Generator[list[Row], None, None]:
    with contextlib.closing(items):
        while batch := list(islice(items, size)):
            yield [item.row for item in batch]


@dataclass
class _Item:
    """An image on its way to a row: `inputs` until it is captioned, None once its row says how it ended."""

    row: Row
    inputs: Inputs | None = None

    def fail(self, error: Exception) -> None:
        self._finish("error", str(error) or type(error).__name__)

    def succeed(self, generation: Generation) -> None:
        usage = generation.usage
        self._finish("caption", generation.text.strip())
        self.row.update(
            prompt_tokens=usage.prompt_tokens,
            image_tokens=usage.image_tokens,
            completion_tokens=usage.completion_tokens,
            finish_reason=generation.finish_reason,
            seconds=round(sum(dataclasses.astuple(generation.timings)), 4),
        )

    def _finish(self, key: str, text: str) -> None:
        """Readers of the file see the image and what came of it first, so these two keys lead."""
        self.inputs = None
        self.row = {"image": self.row["image"], key: text} | self.row


def _prepare(model: MiniMaxVL, known: Row, source: Source) -> _Item:
    """Read and cut one image. Whatever goes wrong with it is its own row's error."""
    empty = ("width", "height", "resolution", "tiles", "prompt_tokens", "image_tokens", "completion_tokens")
    item = _Item({"image": source_key(source)} | dict.fromkeys((*empty, "finish_reason", "seconds")) | known)
    try:
        image = {"bytes": source.read(), "path": source.name} if isinstance(source, Picture) else source
        content = [{"type": "image", "image": image}, {"type": "text", "text": known["prompt"]}]
        item.inputs = model.processor([{"role": "user", "content": content}])
    except Error as error:
        item.fail(error)
    except Exception as error:
        item.fail(RuntimeError(f"cannot prepare {item.row['image']}: {type(error).__name__}: {error}"))
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
