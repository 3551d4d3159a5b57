"""How near a captioning job comes to the engine alone."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import vl
from preprocessing import Inputs
from vl.bench.pictures import photograph
from vl.engine import SamplingParams
from vl.jobs import caption_images
from vl.jobs.cutting import default_workers

PROMPT = "Describe this image."
_SIZES = ((336, 336), (640, 480), (480, 640), (800, 600), (1024, 768), (1344, 1008))


@dataclass(frozen=True)
class JobsFigures:
    """Images a second.

    Attributes:
        alone: the engine, of inputs that are there before the clock starts.
        jobs: all of a job, from files to rows on disk, by its `workers`.
        tokens: written by each, on average for an image.
    """

    images: int
    alone: float
    jobs: dict[int, float]
    tokens: float


def bench_jobs(
    load: Callable[[], vl.MiniMaxVL], images: int, *, batch_size: int, max_new_tokens: int, workers: Sequence[int] = ()
) -> JobsFigures:
    """Caption made-up photographs over and over: their inputs, and their files.

    Args:
        load: makes the model, each time: what one kept of an image would help the next. Each is warmed up by other
            images.
        workers: of `caption_images`, each in a job of its own; by default what that takes.

    Raises:
        InputError: if `max_new_tokens` is out of range.
    """
    params = SamplingParams(max_new_tokens=max_new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        files = list(_files(Path(folder), images + 2 * batch_size))
        warm, files = files[:-images], files[-images:]

        def caption(model: vl.MiniMaxVL, files: list[Path], out: str, count: int | None = None) -> int:
            options: dict[str, Any] = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "workers": count}
            return caption_images(model, files, Path(folder) / out, prompt=PROMPT, **options).images

        model = load()
        caption(model, warm, "warm.jsonl")
        inputs = [_inputs(model, file) for file in files]
        alone, tokens = _timed(lambda: _alone(model, inputs, params))
        jobs = {}
        for count in workers or [default_workers(model.device)]:
            model = load()
            caption(model, warm, f"warm{count}.jsonl", count)
            seconds, _ = _timed(partial(caption, model, files, f"rows{count}.jsonl", count))
            jobs[count] = images / seconds
    return JobsFigures(images, images / alone, jobs, tokens / images)


def _timed(work: Callable[[], int]) -> tuple[float, int]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found


def _files(folder: Path, count: int) -> Iterator[Path]:
    """Made-up photographs in a mixture of sizes that is always the same."""
    chosen = random.Random(0)
    for number in range(count):
        path = folder / f"{number:05}.jpg"
        path.write_bytes(photograph(*chosen.choice(_SIZES), seed=number))
        yield path


def _inputs(model: vl.MiniMaxVL, file: Path) -> Inputs:
    content = [{"type": "image", "image": str(file)}, {"type": "text", "text": PROMPT}]
    return model.processor([{"role": "user", "content": content}])


def _alone(model: vl.MiniMaxVL, inputs: list[Inputs], params: SamplingParams) -> int:
    requests = [model.engine.submit(each, params) for each in inputs]
    while not all(request.done for request in requests):
        model.engine.step()
    return sum(request.result().usage.completion_tokens for request in requests)
