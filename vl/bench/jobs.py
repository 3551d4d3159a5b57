"""How near a captioning job comes to the engine alone."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

import vl
from preprocessing import Inputs
from preprocessing.container import available_cpus
from vl.bench.busy import Busy
from vl.bench.pictures import photograph
from vl.engine import Engine, SamplingParams
from vl.jobs import caption_images
from vl.jobs.cutting import Cutters, default_workers
from vl.jobs.item import ask_here

PROMPT = "Describe this image."
_SIZES = ((336, 336), (640, 480), (480, 640), (800, 600), (1024, 768), (1344, 1008))


@dataclass(frozen=True)
class JobsFigures:
    """What was measured.

    Attributes:
        alone: the engine, of inputs that are there before the clock starts: before the jobs and once more after them.
        jobs: all of a job, from files to rows on disk, by its `workers`.
        tokens: written by each, on average for an image.
    """

    images: int
    alone: tuple[Run, Run]
    jobs: dict[int, Run]
    tokens: float

    @property
    def alone_rate(self) -> float:
        """Of both runs together."""
        return 2 / sum(1 / run.rate for run in self.alone)


@dataclass(frozen=True)
class Run:
    """One of them.

    Attributes:
        rate: images a second.
        cpu: seconds of this process' threads on a core, for an image: on a CPU that others share, what to compare.
        busy: the part of the time in which the GPU had work; None where there is none to ask.
    """

    rate: float
    cpu: float
    busy: float | None


def bench_jobs(
    model: vl.MiniMaxVL, images: int, *, batch_size: int, max_new_tokens: int, workers: Sequence[int] = ()
) -> JobsFigures:
    """Caption made-up photographs over and over: their inputs, and their files.

    What the engine kept of them is forgotten before each run, and each is warmed up, in its own way, by others.
    Processes that cut images have started before their job does.

    Args:
        workers: of `caption_images`, each in a job of its own; by default what that takes.

    Raises:
        InputError: if `max_new_tokens` is out of range.
    """
    params = SamplingParams(max_new_tokens=max_new_tokens)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(available_cpus()) as pool:
        files = _files(Path(folder), images + 2 * batch_size, pool)
        warm, files = files[:-images], files[-images:]

        def caption(files: list[Path], out: str, count: int) -> int:
            options: dict[str, Any] = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "workers": count}
            return caption_images(model, files, Path(folder) / out, prompt=PROMPT, **options).images

        _alone(model, list(pool.map(partial(_inputs, model), warm)), params)
        inputs = list(pool.map(partial(_inputs, model), files))
        before, tokens = _timed(model, images, lambda: _alone(model, inputs, params))
        jobs = {}
        for count in workers or [default_workers(model.device)]:
            if count:
                Cutters.of(model, count).wait()
            caption(warm, f"warm{count}.jsonl", count)
            jobs[count], _ = _timed(model, images, partial(caption, files, f"rows{count}.jsonl", count))
        after, _ = _timed(model, images, lambda: _alone(model, inputs, params))
    return JobsFigures(images, (before, after), jobs, tokens / images)


def _timed(model: vl.MiniMaxVL, images: int, work: Callable[[], int]) -> tuple[Run, int]:
    """What `work` returns, too."""
    cast(Engine, model.engine).forget()
    with Busy(model.device) as busy:
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        begun, cpu = time.perf_counter(), time.process_time()
        found = work()
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    return Run(images / seconds, cpu / images, busy.fraction), found


def _files(folder: Path, count: int, pool: ThreadPoolExecutor) -> list[Path]:
    """Made-up photographs in a mixture of sizes that is always the same."""
    chosen = random.Random(0)

    def draw(number: int, size: tuple[int, int]) -> Path:
        path = folder / f"{number:05}.jpg"
        path.write_bytes(photograph(*size, seed=number))
        return path

    return list(pool.map(draw, range(count), [chosen.choice(_SIZES) for _ in range(count)]))


def _inputs(model: vl.MiniMaxVL, file: Path) -> Inputs:
    return ask_here(model.processor, str(file), [PROMPT])[0][0]


def _alone(model: vl.MiniMaxVL, inputs: list[Inputs], params: SamplingParams) -> int:
    requests = [model.engine.submit(each, params) for each in inputs]
    while not all(request.done for request in requests):
        model.engine.step()
    return sum(request.result().usage.completion_tokens for request in requests)
