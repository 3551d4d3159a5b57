"""Processes started, asked, watched and ended as one. Each holds the whole model here, however it may be cut."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from endless import endless
from forkserver import Popen
from PIL import Image

import vl
from vl.engine import Engine, EngineConfig
from vl.ranks import processes
from vl.ranks.model import SplitVL
from vl.ranks.processes import Ranks
from vl.training.lora import Adapters

sys.path.append(str(Path(__file__).parent))
import builders

CPU = torch.device("cpu")


def ask(text: str, *sizes: tuple[int, int]) -> list[dict[str, Any]]:
    pixels = (np.random.default_rng(w).integers(0, 256, (h, w, 3), dtype=np.uint8) for w, h in sizes)
    images = [{"type": "image", "image": Image.fromarray(each)} for each in pixels]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


QUESTIONS = [
    ask("Describe it.", (64, 64)),
    ask("Hello"),
    ask("What differs?", (700, 300), (300, 400)),
    ask("Count to 9"),
]
SAMPLING = {"max_new_tokens": 10, "temperature": 1.2, "seed": 4}
SHORT = {"max_new_tokens": 8}
OPTIONS = {"max_batch_size": 3, "prefill_tokens": 100, "cache_tokens": 480, "page_size": 16}
START = Callable[..., SplitVL]


@pytest.fixture(scope="module")
def start(tiny_checkpoint: Path, tiny_model: vl.MiniMaxVL) -> Iterator[START]:
    """Makes a model over processes; all end with the module."""
    made = []

    def start(build: Any = None, count: int = 2, timeout: float = 120.0, **options: int) -> SplitVL:
        engine = EngineConfig.of(options)
        ranks = Ranks(build or partial(builders.whole, tiny_checkpoint), [CPU] * count, engine, timeout=timeout)
        made.append(ranks)
        config, processor = tiny_model.config, tiny_model.processor
        return SplitVL(config, processor, ranks, name="tiny", dtype=torch.float32, engine=engine).eval()

    yield start
    for ranks in made:
        ranks.close()


@pytest.fixture(scope="module")
def split(start: START) -> SplitVL:
    return start(**OPTIONS)


@pytest.fixture(scope="module")
def one(tiny_checkpoint: Path) -> vl.MiniMaxVL:
    return vl.load(tiny_checkpoint, device="cpu", **OPTIONS)


def pids(model: SplitVL) -> list[int]:
    return [rank.process.pid for rank in model._ranks._held.ranks]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(*found: int, seconds: float = 120) -> bool:
    """Whether processes end in time, and leave nothing behind."""
    last = time.monotonic() + seconds
    while any(map(alive, found)) and time.monotonic() < last:
        time.sleep(0.05)
    return not any(map(alive, found))


def test_answers_are_one_process_s(split: SplitVL, one: vl.MiniMaxVL) -> None:
    for again, sampling in enumerate(({"max_new_tokens": 10}, SAMPLING)):
        ours, expected = split.generate(QUESTIONS, **sampling), one.generate(QUESTIONS, **sampling)
        assert [(g.text, g.token_ids, g.usage) for g in ours] == [(g.text, g.token_ids, g.usage) for g in expected]
        assert (ours[0].timings.vision > 0) == (not again)  # what was read is known then
        assert ours[1].timings.vision == 0
    assert "".join(split.stream(QUESTIONS[2], **SAMPLING)) == expected[2].text
    inputs = one.processor(QUESTIONS[2])
    assert split.logits(inputs).equal(one.logits(inputs))


def test_threads_call_at_once(split: SplitVL, one: vl.MiniMaxVL) -> None:
    expected = [one.generate([question], **SAMPLING)[0].text for question in QUESTIONS]

    def work(index: int) -> str:
        if index % 3 == 2:
            return "".join(split.stream(QUESTIONS[index % 4], **SAMPLING))
        if index % 3 == 1:
            split.logits(one.processor(QUESTIONS[1]))
        return split.chat(QUESTIONS[index % 4], **SAMPLING)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(12))) == expected * 3


def test_requests_that_want_more_pages_than_there_are_take_turns(split: SplitVL, one: vl.MiniMaxVL) -> None:
    questions = [ask("Tell me more about it " * 10 + str(i)) for i in range(5)]
    sampling = SAMPLING | {"max_new_tokens": 60}
    ours, expected = split.generate(questions, **sampling), one.generate(questions, **sampling)
    assert [g.token_ids for g in ours] == [g.token_ids for g in expected]
    long = ask("Tell me more about it " * 40)  # the cache grows
    assert split.chat(long, **SHORT) == one.chat(long, **SHORT)


def test_a_larger_cache_takes_sessions_along(start: START, one: vl.MiniMaxVL, tmp_path: Path) -> None:
    split = start(**OPTIONS | {"cache_tokens": 64})
    first, second = ask("Tell me more about it " * 4), ask("Tell me more about it " * 30)
    sessions = [split.read(first), split.read(second)]
    assert isinstance(split.engine, Engine)
    assert split.engine.runner is not None
    assert split.engine.runner.cache.pages > 64 // OPTIONS["page_size"]
    for session, read in zip(sessions, (first, second), strict=True):
        assert session.ask("Hello", **SAMPLING) == one.chat([*read, *ask("Hello")], **SAMPLING)
    sessions[0].save(tmp_path)
    os.kill(pids(split)[1], signal.SIGKILL)
    with pytest.raises(vl.DeviceError, match=r"rank 1 \(cpu\) was killed by SIGKILL"):
        sessions[1].save(tmp_path)
    assert one.open(tmp_path).tokens == sessions[0].tokens  # which was saved before


def test_a_stream_that_is_left_gives_all_back(split: SplitVL, one: vl.MiniMaxVL) -> None:
    pieces = split.stream(QUESTIONS[0], **endless(split))
    next(pieces)
    pieces.close()
    engine = split.engine
    assert isinstance(engine, Engine)
    assert engine.runner is not None
    assert not engine.scheduler.running
    assert engine.runner.cache.free_pages + engine.runner.cache.idle_pages == engine.runner.cache.pages
    assert split.chat(QUESTIONS[1], **SHORT) == one.chat(QUESTIONS[1], **SHORT)


def test_bad_input_ends_nothing(split: SplitVL, one: vl.MiniMaxVL) -> None:
    for bad in ({"top_k": 50.0}, {"max_new_tokens": 10**12}):
        with pytest.raises(vl.InputError, match=next(iter(bad))):
            split.chat(QUESTIONS[1], **bad)
    with pytest.raises(vl.ImageError):
        split.caption("nowhere.jpg")
    assert split.chat(QUESTIONS[1], **SHORT) == one.chat(QUESTIONS[1], **SHORT)


def test_what_needs_the_weights_here_is_refused_by_name(split: SplitVL, tmp_path: Path) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "adapted or trained": lambda: Adapters(split, ["language_model.model.layers.0.self_attn.out_proj"], 2, 4.0),
        "trained": split.train,
        "moved or cast": split.half,
        "saved": lambda: split.save(tmp_path / "out"),
        "copied": lambda: copy.deepcopy(split),
        "pickled": lambda: pickle.dumps(split),
        "forward": lambda: split(torch.zeros(1)),
        "embed": lambda: split.embed(torch.zeros(1), torch.zeros(1), []),
    }
    for what, call in calls.items():
        with pytest.raises(vl.ConfigError, match=rf"tiny is split over 2 processes.*{what}.*Without devices="):
            call()
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_the_answer_and_nothing_else(split: SplitVL, one: vl.MiniMaxVL) -> None:
    for wait in (0.0, 0.01, 0.05, 0.3):
        timer = threading.Timer(wait, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            timer.start()
            split.generate(QUESTIONS * 4, **endless(split))
        timer.join()
        assert split.generate(QUESTIONS, **SAMPLING)[2].text == one.generate(QUESTIONS, **SAMPLING)[2].text


def test_ctrl_c_between_two_ranks_answers_loses_none(
    split: SplitVL, one: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first has said is not asked again, so what was heard of it before Ctrl-C has to be kept."""
    ready, waits = split._ranks._ready, 0

    def pressed(timeout: float | None) -> list[Any]:
        nonlocal waits
        waits += 1
        if waits == 2:
            raise KeyboardInterrupt
        return ready(timeout)[:1]

    monkeypatch.setattr(split._ranks, "_ready", pressed)
    with pytest.raises(KeyboardInterrupt):
        split._ranks.call("room")
    assert split._ranks._answered < split._ranks._number
    assert len(split._ranks._answers) == 1
    monkeypatch.undo()
    assert split.chat(QUESTIONS[1], **SHORT) == one.chat(QUESTIONS[1], **SHORT)


def test_a_forked_process_is_refused_and_leaves_the_ranks_alone(split: SplitVL, one: vl.MiniMaxVL) -> None:
    split.chat(QUESTIONS[1])
    child = os.fork()
    if not child:
        try:
            split.chat(QUESTIONS[1])
        except vl.DeviceError:
            split.close()
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert split.chat(QUESTIONS[1], **SHORT) == one.chat(QUESTIONS[1], **SHORT)


def test_a_rank_that_is_killed_ends_all_with_one_error(start: START) -> None:
    model = start()
    found = pids(model)
    pieces = model.stream(QUESTIONS[0], **endless(model))
    next(pieces)
    waiting = ThreadPoolExecutor(1).submit(model.chat, QUESTIONS[1], **endless(model))
    os.kill(found[1], signal.SIGKILL)
    with pytest.raises(vl.DeviceError, match=r"rank 1 \(cpu\) was killed by SIGKILL"):
        list(pieces)
    for call in (waiting.result, lambda: model.chat(QUESTIONS[1]), lambda: model.logits(model.processor(QUESTIONS[1]))):
        with pytest.raises(vl.DeviceError, match=r"rank 1 \(cpu\) was killed by SIGKILL.*load it again"):
            call()
    assert gone(*found)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("raises", r"rank 1 \(cpu\) failed: RuntimeError: a kernel went wrong"),
        ("dies", r"rank 1 \(cpu\) was killed by SIGKILL"),
        ("hangs", r"rank 0 \(cpu\) and rank 1 \(cpu\) did not answer within 1 s"),
    ],
)
def test_trouble_inside_a_step_names_the_rank_and_the_cause(
    start: START,
    tiny_checkpoint: Path,
    tiny_model: vl.MiniMaxVL,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
    message: str,
) -> None:
    tokens = len(tiny_model.processor(QUESTIONS[3]))
    model = start(partial(builders.troubled, tiny_checkpoint, trouble, tokens))
    found, call = pids(model), model._ranks.call_with

    def timed(command: str, *args: Any, **options: Any) -> Any:
        """Little time for the step that hangs, and enough for all else."""
        if trouble == "hangs" and command == "step":
            model._ranks.timeout = 1
        return call(command, *args, **options)

    assert model.chat(QUESTIONS[1], max_new_tokens=3)
    monkeypatch.setattr(model._ranks, "call_with", timed)
    with pytest.raises(vl.DeviceError, match=message):
        model.chat(QUESTIONS[3])
    with pytest.raises(vl.DeviceError, match=message):
        model.chat(QUESTIONS[1])
    assert gone(*found)


@pytest.mark.parametrize(
    ("ranks", "error", "expected", "message"),
    [
        (
            (1,),
            vl.CheckpointError("a.safetensors is cut short"),
            vl.CheckpointError,
            r"rank 1 \(cpu\): a.safetensors is",
        ),
        (
            (1, 2),
            torch.OutOfMemoryError("CUDA out of memory."),
            vl.DeviceError,
            r"rank [12] \(cpu\) failed: OutOfMemory",
        ),
    ],
)
def test_a_rank_that_fails_while_loading_ends_all(
    start: START, monkeypatch: pytest.MonkeyPatch, ranks: tuple[int, ...], error: Exception, expected: Any, message: str
) -> None:
    ended = record_ends(monkeypatch)
    with pytest.raises(expected, match=message):
        start(partial(builders.failing, ranks, error), count=3)
    assert len(ended) == 3
    assert gone(*ended)


def test_a_rank_that_dies_while_loading_ends_all(
    start: START, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = record_ends(monkeypatch)
    with pytest.raises(vl.DeviceError, match=r"rank 1 \(cpu\) ended with exit code 3"):
        start(partial(builders.dying, tiny_checkpoint))
    assert gone(*ended)


def record_ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids of the processes that are ended from now on."""
    ended: list[int] = []
    end = processes._end

    def record(held: Any, owner: int) -> None:
        ended.extend(rank.process.pid for rank in held.ranks)
        end(held, owner)

    monkeypatch.setattr(processes, "_end", record)
    return ended


def test_progress_is_the_first_rank_s_and_garbage_ends_its_ranks(tiny_checkpoint: Path) -> None:
    seen: list[tuple[int, int]] = []
    ranks = Ranks(
        partial(builders.whole, tiny_checkpoint),
        [CPU] * 2,
        EngineConfig(),
        timeout=200,
        progress=lambda done, total: seen.append((done, total)),
    )
    found = [rank.process.pid for rank in ranks._held.ranks]
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    del ranks
    gc.collect()
    assert gone(*found)


SCRIPT = """
import os, signal, sys, time
from functools import partial
from pathlib import Path
sys.path.append(sys.argv[1])
import builders, torch
from vl.engine import EngineConfig
from vl.ranks.processes import Ranks
from vl.training.lora import Adapters
def progress(done, total):
    if sys.argv[3] == "loading" and done == total:
        os.kill(os.getpid(), signal.SIGINT)
ranks = Ranks(partial(builders.whole, Path(sys.argv[2])), [torch.device("cpu")] * 2, EngineConfig(), timeout=200,
              progress=progress)
print(ranks._held.folder, *(rank.process.pid for rank in ranks._held.ranks), flush=True)
if sys.argv[3] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "interrupted":
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


@pytest.mark.parametrize(("how", "code"), [("exits", 0), ("killed", -9), ("interrupted", -2), ("loading", -2)])
def test_the_ranks_end_with_the_caller_however_it_ends(tiny_checkpoint: Path, how: str, code: int) -> None:
    """A script without a `__main__` guard, which the ranks, new interpreters here, do not run again."""
    arguments = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tiny_checkpoint), how]
    start = subprocess.Popen if how == "exits" else Popen
    caller = start(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said, errors = caller.communicate(timeout=250)
    assert caller.returncode == code, errors
    folder, *pids = said.split() or [""]
    assert len(pids) == (0 if how == "loading" else 2)
    assert gone(*map(int, pids))
    assert not folder or not Path(folder).exists()
