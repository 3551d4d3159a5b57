"""Captioning jobs: many images to rows of a file."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from preprocessing.alpha import Background, read_background
from vl.engine import SamplingParams
from vl.engine.config import whole
from vl.errors import InputError
from vl.jobs.beside import Beside, Texts, record_of
from vl.jobs.committing import UNDER_WAY, Committer
from vl.jobs.cutting import Cutters, default_workers
from vl.jobs.duplicates import Duplicates, Find
from vl.jobs.elsewhere import Elsewhere
from vl.jobs.errors import JobError
from vl.jobs.item import Item, ask_here, batches, prepare
from vl.jobs.outputs import Rows, open_rows
from vl.jobs.partfolder import PartFolder
from vl.jobs.pipeline import answered
from vl.jobs.prompts import Prompt, Prompts
from vl.jobs.rowfile import Row, RowFile
from vl.jobs.schema import Schema, SchemaSource
from vl.jobs.sources import Source, expand_sources, several
from vl.model import DEFAULT_PROMPT

if TYPE_CHECKING:
    from vl.model import MiniMaxVL


_READERS = 4  # threads that read files while others wait for processes
_REFUSED = ("n", "logprobs", "top_logprobs", "calls")  # what a row has no place for


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
    model: MiniMaxVL | Elsewhere,
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    prompt: Prompt = DEFAULT_PROMPT,
    schema: SchemaSource | None = None,
    batch_size: int = 8,
    workers: int | None = None,
    overwrite: bool = False,
    retry_errors: bool = False,
    mix: bool = False,
    column: str | None = None,
    on_row: OnRow | None = None,
    beside: Beside | None = None,
    **sampling: Any,
) -> Tally:
    """Caption many images into JSON Lines or Parquet, one row for each; running it again does what is left.

    Rows reach the disk batch by batch, so the process may be killed at any moment; a thread of its own writes them. See
    `caption_rows` for the rows, `expand_sources` for the sources, `RowFile` and `PartFolder` for the output.

    Args:
        model: from `vl.load`, with a vision encoder; or what captions elsewhere: `Engines`, `RayEngines`, `Served`.
        sources: files, folders, globs, tar shards, tables and URLs, or one of them; may be a generator of any length.
        out: the `.jsonl` file, or the `.parquet` folder of part files, created or continued.
        prompt: what to ask about each image, or several prompts by the column of their answers. A table's columns may
            be in it, as in "Describe this {category}": see `Prompts`.
        schema: a JSON schema, or a file of one, that all answers are held to: its properties are columns of the rows,
            of several prompts named after both (`short_colour`), beside the answers' texts. An answer that was cut
            within its JSON is an error, and its row has the text.
        batch_size: images captioned at once; as many again are read ahead, and rows reach the file in such batches.
        workers: processes that decode and cut images; 0 is threads of this one. By default a few where the model is on
            a GPU, and none where it is on the CPU, which they would take from it.
        overwrite: start again instead of continuing; what the file holds is cut when the first rows are there.
        retry_errors: try the images of error rows again.
        mix: go on after rows that were made with another model, prompt or setting, and keep them.
        column: where the tables among the sources have their images; by default the first of `COLUMNS` that they have.
        on_row: called after each row is safe on disk, in the caller's thread.
        beside: write the captions beside the images, too.
        sampling: as in `MiniMaxVL.generate`.

    Raises:
        JobError: if `out` cannot be used, or holds rows that were made with another model, prompt or setting.
        InputError: if the model takes no images, `sampling` is out of range, or a prompt or the schema cannot be used.
    """
    if isinstance(model, str | os.PathLike):
        raise InputError(f"model must be a model, not the name of one: vl.load({os.fspath(model)!r})")
    if beside is not None and not isinstance(beside, Beside):
        raise InputError(f"beside must be such as vl.jobs.Beside('append'), not {beside!r:.80}")
    if not isinstance(out, str | os.PathLike):
        raise InputError(f"out must be a path such as captions.jsonl, not {type(out).__name__}")
    params, prompts = params_of(sampling), Prompts.of(prompt)
    if schema is not None:
        prompts = prompts.held_to(Schema.of(schema, held_here=not isinstance(model, Elsewhere) or model.holds_forms))
    prompts.hold(params)  # raises
    settings = settings_of_model(model, params)
    with open_rows(
        out,
        model=model.name,
        prompt=prompts,
        settings=settings,
        overwrite=overwrite,
        retry_errors=retry_errors,
        mix=mix,
    ) as opened:
        rows = with_texts(opened, out, beside, overwrite=overwrite)
        pending = rows.pending(expand_sources(sources, column=column, prompts=prompts))
        return write_rows(model, pending, rows, batch_size=batch_size, workers=workers, on_row=on_row, **sampling)


def with_texts(rows: Rows, out: str | os.PathLike[str], beside: Beside | None, *, overwrite: bool) -> Rows | Texts:
    """`rows`, or `Texts` over them, which finish what was under way.

    Raises:
        JobError: if the output's texts are not to be continued so, `beside` goes with a bucket, or captions would be
            added again after `overwrite`.
    """
    if isinstance(rows, RowFile | PartFolder):
        record = record_of(out)
        if beside is None:
            if record.exists() and not overwrite:
                raise JobError(f"{rows.path} holds captions written beside the images too: continue it with --beside")
            rows.before_overwriting = partial(_forget, record)
            return rows
        if overwrite and beside.adds:
            raise JobError(
                f"--overwrite would {beside.existing} to texts again that have a caption: choose another output"
            )
        return Texts(rows, record, beside, fresh=overwrite)
    if beside is not None:
        raise JobError(f"the record of texts beside images is a file: choose an output on this machine, not {out}")
    return rows


def _forget(record: Path) -> None:
    for path in (record, record.with_name(f"{record.name}-journal")):
        path.unlink(missing_ok=True)


def write_rows(
    model: MiniMaxVL | Elsewhere,
    pending: Iterable[Source],
    rows: Rows | Texts,
    *,
    batch_size: int = 8,
    workers: int | None = None,
    on_row: OnRow | None = None,
    **sampling: Any,
) -> Tally:
    """The job on an open `RowFile` or `PartFolder`: caption the `pending` sources and append their rows."""
    tally = Tally()

    def told(safe: Iterable[list[Row]]) -> None:
        for row in chain.from_iterable(safe):
            tally.count(row)
            tally.skipped = rows.skipped
            if on_row is not None:
                on_row(row, tally)

    with Committer(rows) as committer:
        how: dict[str, Any] = {"prompt": rows.prompts, "find": committer.find, "workers": workers, **sampling}
        with contextlib.closing(caption_rows(model, pending, batch_size=batch_size, **how)) as batches:
            for batch in batches:
                committer.append(batch)
                told(committer.safe(UNDER_WAY))
        told(committer.safe())
    if isinstance(rows, Texts):
        rows.settle()
    tally.skipped = rows.skipped
    return tally


def caption_rows(
    model: MiniMaxVL | Elsewhere,
    sources: str | Iterable[Source],
    *,
    prompt: Prompt = DEFAULT_PROMPT,
    batch_size: int = 8,
    workers: int | None = None,
    find: Find | None = None,
    **sampling: Any,
) -> Generator[list[Row], None, None]:
    """Rows of `sources`, up to `batch_size` at a time, in order.

    A row holds `image` (the source), then `caption`, or the answers in the columns of several prompts, or `error` if
    the image cannot be used; `width` and `height` (pixels), `resolution` (`[width, height]` of the chosen pinpoint),
    `tiles`, `prompt_tokens`, `image_tokens`, `completion_tokens`, `finish_reason` and `seconds` (in the engine, where
    work shared with others counts in full), null where an error came first; `model`, `prompt` and `settings`. Tokens
    and seconds are the sums over several prompts, which share an image's tokens; one that is cut makes it "length".
    `digest` is the BLAKE2b digest (16 bytes, in hexadecimal) of the image's file: images that are equal byte for byte
    are captioned once, and the others take 0 seconds.

    Args:
        find: rows that were written before, by `answer_key`; called in other threads. Without it, and elsewhere, only
            images that come close together are known again.

    Raises:
        InputError: at once if the model takes no images, or `sampling` or a prompt cannot be used. A bad image never
            raises.
    """
    params, prompts, sources = params_of(sampling), Prompts.of(prompt), several(sources)
    if isinstance(model, Elsewhere):
        return model.rows(sources, prompt=prompts, batch_size=batch_size, workers=workers, **sampling)
    if workers is not None and ((given := whole(workers)) is None or given < 0):
        raise InputError(f"workers must be a whole number, at least 0, not {workers!r:.80}")
    if model.config.vision is None:
        raise InputError(f"{model.name} is a text-only checkpoint and cannot caption: use one with a vision encoder")
    held = prompts.hold(params)
    model.engine.check(held)
    known = {"model": model.name, "prompt": None, "settings": settings_of_model(model, params) | prompts.settings}
    duplicates: Duplicates[Item] = Duplicates(find)
    count = default_workers(model.device) if workers is None else workers
    ask = Cutters.of(model, count) if count else partial(ask_here, model.processor)
    make = partial(prepare, ask, prompts, known, duplicates)
    threads = count + _READERS if count else None
    items = answered(model.engine, sources, make, held, batch_size=batch_size, workers=threads)
    return batches(items, batch_size, duplicates)


def params_of(sampling: Mapping[str, Any]) -> SamplingParams:
    """Raises InputError, also for what a row has no place for."""
    params = SamplingParams.of(sampling)
    for name in _REFUSED:
        if getattr(params, name) != getattr(SamplingParams, name):
            raise InputError(f"{name} is not for captioning jobs, whose rows hold a caption alone: leave it out")
    return params


def settings_of_model(model: MiniMaxVL | Elsewhere, params: SamplingParams) -> dict[str, Any]:
    """`settings_of` what `model` will write with `params`."""
    if isinstance(model, Elsewhere):
        return model.settings(params)
    return settings_of(
        params,
        background=model.processor.background,
        dtype=model.dtype,
        quantization=model.config.quantization,
        weights=model.fingerprint,
        control_tokens_in_text=model.processor.control_tokens_in_text,
    )


def sampling_of(params: SamplingParams) -> dict[str, Any]:
    """How a caption is written, as JSON: all options, also those that were not given."""
    sampling = dataclasses.asdict(params)
    biases: Mapping[Any, float] | None = params.logit_bias  # by token id, which JSON has as a string
    for name in ("priority", *_REFUSED):  # it changes when a caption comes, not the caption
        del sampling[name]
    biased = biases and {str(token): bias for token, bias in biases.items()}
    return sampling | {"stop": list(params.stops), "logit_bias": biased}


def settings_of(
    params: SamplingParams,
    *,
    background: Background,
    dtype: torch.dtype,
    quantization: str | None,
    weights: str | None = None,
    control_tokens_in_text: bool = False,
) -> dict[str, Any]:
    """What else than the model and the prompt decides a caption, as JSON: rows made otherwise are another run's.

    Args:
        params: how it is written.
        background, control_tokens_in_text: as of the model's processor.
        dtype, quantization: how the model's weights are held; `vl.loading.weights_as` knows before they are read.
        weights: the `vl.fingerprint` of the files that they are from, so that a model that was trained on in the same
            folder is another. None is not said, and mixes with all.
    """
    colour = read_background(background)
    return sampling_of(params) | {
        "background": None if colour is None else "#{:02x}{:02x}{:02x}".format(*colour),
        "dtype": str(dtype).removeprefix("torch."),
        "quantization": quantization,
        "control_tokens_in_text": control_tokens_in_text,
        **({} if weights is None else {"weights": weights}),
    }
