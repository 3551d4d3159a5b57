"""The same answers on a GPU as on the CPU, and from a recorded decode step as from one launched op by op."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import text_backbone
import vl
from vl.engine import Engine, EngineConfig, Request
from vl.engine.scheduler import Scheduler
from vl.loading import build_model

pytestmark = pytest.mark.gpu


def conversation(width: int, height: int, text: str) -> list[dict]:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    parts = [{"type": "image", "image": Image.fromarray(pixels)}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


CONVERSATIONS = [
    conversation(64, 64, "Describe this image."),
    conversation(1500, 900, "Read the text."),
    [{"role": "user", "content": "Hello"}],
]


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def test_float32_equals_the_cpu(tiny_checkpoint: Path, tiny_model: vl.MiniMaxVL) -> None:
    model = vl.load(tiny_checkpoint, device="cuda", dtype="float32")
    for messages in CONVERSATIONS:
        inputs = model.processor(messages)
        torch.testing.assert_close(model.logits(inputs).cpu(), tiny_model.logits(inputs), rtol=1e-4, atol=1e-4)
    ours = model.generate(CONVERSATIONS, max_new_tokens=8)
    assert [g.token_ids for g in ours] == [g.token_ids for g in tiny_model.generate(CONVERSATIONS, max_new_tokens=8)]


def test_bfloat16_is_the_default(tiny_checkpoint: Path, tiny_model: vl.MiniMaxVL) -> None:
    model = vl.load(tiny_checkpoint)
    assert (model.device.type, model.dtype) == ("cuda", torch.bfloat16)
    inputs = model.processor(CONVERSATIONS[0])
    exact = tiny_model.logits(inputs)
    assert (model.logits(inputs).cpu() - exact).norm() < 0.1 * exact.norm()
    assert all(g.token_ids for g in model.generate(CONVERSATIONS, max_new_tokens=4, temperature=1.0, seed=1))


def test_timings_are_told(tiny_checkpoint: Path) -> None:
    """The vision encoder's work is timed by the device, and nobody waits for it."""
    model = vl.load(tiny_checkpoint)
    for result in model.generate(CONVERSATIONS[:2], max_new_tokens=4):
        assert min(result.timings.vision, result.timings.prefill, result.timings.decode) > 0


QUESTIONS = [
    [{"role": "user", "content": text}] for text in ("Hello", "Describe it in detail.", "Count to 9", "A", "?")
]
SAMPLINGS = [
    {"max_new_tokens": 5},
    {"max_new_tokens": 24, "temperature": 1.2, "seed": 5},
    {"max_new_tokens": 9, "temperature": 1.2, "seed": 6, "top_k": 7},
    {"max_new_tokens": 17, "temperature": 0.8, "seed": 5, "top_p": 0.8},
    {"max_new_tokens": 21},
]


class Rerun:
    """Stands in for graphs: the same padded step, launched op by op at every replay."""

    def ready(self, weight: torch.Tensor) -> bool:
        return True

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        return run


@pytest.fixture
def kernel_sized(tiny_text_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., vl.MiniMaxVL]]:
    """Makes text models whose heads every decode kernel takes; a step that no graph can hold fails the test.

    They keep no prefixes unless told to: in bfloat16 another cut of a prompt rounds otherwise.
    """
    donor = vl.load(tiny_text_checkpoint, device="cpu")
    text = replace(
        donor.config.text, hidden_size=64, head_dim=32, rotary_dim=16, intermediate_size=32, attn_type_list=(0, 1, 1)
    )
    config = replace(donor.config, text=text)

    def build(dtype: torch.dtype, *, device: str = "cuda", graphs: bool = True, **options: int) -> vl.MiniMaxVL:
        if not graphs:
            monkeypatch.setattr(Engine, "_recorder", lambda self: Rerun())
        engine = EngineConfig(**{"prefix_memory": 0} | options)
        model = build_model(config, donor.processor, device=device, dtype=dtype, engine=engine).eval()
        text_backbone.init_weights(model.language_model, std=0.3, generator=torch.Generator(device).manual_seed(0))
        return model

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the decode step")
        yield build


def answers(model: vl.MiniMaxVL, late: int = 2) -> list[list[int]]:
    """Token ids of all questions at once; the last `late` of them join when the others are being written."""
    requests = []
    for index, (messages, sampling) in enumerate(zip(QUESTIONS, SAMPLINGS, strict=True)):
        if index == len(QUESTIONS) - late:
            for _ in range(4):
                model.engine.step()
        requests.append(model.engine.submit(model.processor(messages), vl.SamplingParams(**sampling)))
    return [result.token_ids for result in model.engine.run(requests)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_graphs_equal_the_step_launched_op_by_op(
    kernel_sized: Callable[..., vl.MiniMaxVL], dtype: torch.dtype, left_in: Callable[..., dict[str, int]]
) -> None:
    model = kernel_sized(dtype, max_batch_size=6)
    first = answers(model)
    assert answers(model) == first
    assert model.engine.runner is not None
    assert len(model.engine.runner.decode._replays) >= 3
    assert not left_in(model)
    assert answers(kernel_sized(dtype, graphs=False, max_batch_size=6)) == first


def test_prompts_go_on_from_what_was_kept(kernel_sized: Callable[..., vl.MiniMaxVL]) -> None:
    """States that were copied to page-locked memory within a pass, and back; shared pages, and copies of the last."""
    plain = kernel_sized(torch.float32)
    model = kernel_sized(torch.float32, prefix_memory=64, page_size=16, prefill_tokens=150, max_batch_size=6)
    system = {"role": "system", "content": "Answer all that is asked, one thing after the other. " * 9}
    batches = [[[system, *question] for question in QUESTIONS], QUESTIONS]
    for _ in range(2):
        for batch in batches:
            found, expected = (each.generate(batch, max_new_tokens=24) for each in (model, plain))
            assert [result.token_ids for result in found] == [result.token_ids for result in expected]
    assert all(result.usage.cached_tokens > 0 for result in model.generate(batches[0], max_new_tokens=4))
    said = plain.generate(batches[0][:1], max_new_tokens=24)[0]
    talk = [*batches[0][0], {"role": "assistant", "content": said.text}, {"role": "user", "content": "And then?"}]
    (found, expected) = (each.generate([talk], max_new_tokens=24)[0] for each in (model, plain))
    assert found.token_ids == expected.token_ids
    assert found.usage.cached_tokens > 0
    assert model.engine.runner is not None
    kept = [states for place in model.engine.runner.cache.places._made.values() for states in place]
    assert kept
    assert all(states.is_pinned() for states in kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_graphs_follow_the_page_table(
    kernel_sized: Callable[..., vl.MiniMaxVL],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    left_in: Callable[..., dict[str, int]],
) -> None:
    """Replays read pages taken after the capture, and go on when a sequence was preempted and came back."""
    preempted: list[int] = []
    preempt = Scheduler.preempt

    def noted(self: Scheduler[Request], entry: Request) -> None:
        preempted.append(entry.arrival)
        preempt(self, entry)

    monkeypatch.setattr(Scheduler, "preempt", noted)
    roomy = kernel_sized(dtype, max_batch_size=6)
    small = kernel_sized(dtype, max_batch_size=6, page_size=16, cache_tokens=112, prefill_tokens=40)
    roomy.end_ids = small.end_ids = frozenset()
    expected = answers(roomy)
    assert not preempted
    found = [answers(small) for _ in range(2)]
    assert preempted
    runner = small.engine.runner
    assert len(runner.decode._replays) >= 3
    assert not left_in(small)
    for ids in found:
        # What was computed anew is rounded otherwise: in bfloat16 another token may win.
        assert [len(row) for row in ids] == [len(row) for row in expected]
        assert dtype == torch.bfloat16 or ids == expected


def test_memory_that_runs_out_shrinks_passes_or_ends_one_request(kernel_sized: Callable[..., vl.MiniMaxVL]) -> None:
    model = kernel_sized(torch.float32)
    expected = answers(model)
    long = [[{"role": "user", "content": "word " * 400}]]
    whole = kernel_sized(torch.float32).generate(long, max_new_tokens=2)[0].token_ids
    with pytest.raises(vl.InputError, match="has room for"):
        model.generate([QUESTIONS[0]], max_new_tokens=10**10)
    forward = model.language_model.forward
    most = 400

    def greedy_for_memory(embeds: torch.Tensor, *rest: object) -> torch.Tensor:
        if len(embeds) > most:
            torch.empty(2**50, dtype=torch.uint8, device=embeds.device)
        return forward(embeds, *rest)

    model.language_model.forward = greedy_for_memory  # type: ignore[method-assign]
    assert model.generate(long, max_new_tokens=2)[0].token_ids == whole
    most = 0
    with pytest.raises(vl.DeviceError, match="ran out of memory"):
        model.generate([[{"role": "user", "content": "other words"}]], max_new_tokens=2)
    most = 10**9
    assert answers(model) == expected


def test_float32_answers_do_not_depend_on_batch_mates(kernel_sized: Callable[..., vl.MiniMaxVL]) -> None:
    model = kernel_sized(torch.float32, max_batch_size=6)
    together = answers(model)
    for messages, sampling, expected in zip(QUESTIONS, SAMPLINGS, together, strict=True):
        assert model.generate([messages], **sampling)[0].token_ids == expected


def test_a_step_that_waits_for_the_device_is_not_recorded(
    kernel_sized: Callable[..., vl.MiniMaxVL], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(kernel_sized(torch.float32))
    model = kernel_sized(torch.float32)
    logits = model.language_model.logits
    monkeypatch.setattr(
        model.language_model, "logits", lambda hidden: logits(hidden) if hidden.sum().item() is not None else hidden
    )
    with pytest.warns(UserWarning, match="could not become a CUDA graph"):
        assert answers(model) == expected
    assert answers(model) == expected


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_on_a_gpu_that_is_not_the_current_one(kernel_sized: Callable[..., vl.MiniMaxVL]) -> None:
    model = kernel_sized(torch.float32, device="cuda:1")
    assert answers(model) == answers(kernel_sized(torch.float32, device="cuda:0"))
    assert torch.cuda.current_device() == 0
