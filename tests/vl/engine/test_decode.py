"""The decode step as a recorded graph: padding, replays and fallbacks, with recorders that need no GPU.

A replay here runs the recorded function again with what the host knew when it was recorded, as a graph does; only what
is on the device has changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.hooks import RemovableHandle

import text_backbone.cache
import vl
from text_backbone import Packed
from text_backbone.quantization import QuantizedLinear, quantize_backbone
from vl.engine import Engine, EngineConfig
from vl.engine.scheduler import Scheduler
from vl.loading import build_model


class Rerun:
    """Runs the function again at every replay, and counts."""

    def __init__(self) -> None:
        self.records = self.replays = 0

    def ready(self, weight: Tensor) -> bool:
        return True

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        self.records += 1
        run()

        def replay() -> None:
            self.replays += 1
            run()

        return replay


class Broken(Rerun):
    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        raise RuntimeError("no graphs today")


def ask(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


CONVERSATIONS = [ask(text) for text in ("Hello", "Describe this image in detail.", "Count to 9", "A", "Read the text!")]
LENGTHS = (3, 14, 6, 9, 11)  # so that sequences leave at different steps
SAMPLINGS = [
    {},
    {"temperature": 1.3, "seed": 5},
    {"temperature": 1.3, "seed": 6, "top_k": 7},
    {"temperature": 0.8, "seed": 5, "top_p": 0.8},
    {},
]


def answers(model: vl.MiniMaxVL, late: int = 2) -> list[list[int]]:
    """Token ids of all conversations at once; the last `late` of them join when the others are being written."""
    requests = []
    for index, (messages, length, sampling) in enumerate(zip(CONVERSATIONS, LENGTHS, SAMPLINGS, strict=True)):
        if index == len(CONVERSATIONS) - late:
            for _ in range(4):
                model.engine.step()
        params = vl.SamplingParams(max_new_tokens=length, **sampling)
        requests.append(model.engine.submit(model.processor(messages), params))
    return [result.token_ids for result in model.engine.run(requests)]


def build(folder: Path, **options: int) -> vl.MiniMaxVL:
    """A text model on the CPU whose answers hang on both kinds of attention, with heads that every kernel takes."""
    donor = vl.load(folder, device="cpu")
    text = replace(
        donor.config.text, hidden_size=64, head_dim=32, rotary_dim=16, intermediate_size=32, attn_type_list=(0, 1, 1)
    )
    model = build_model(replace(donor.config, text=text), donor.processor, engine=EngineConfig(**options)).eval()
    text_backbone.init_weights(model.language_model, std=0.3, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def recorded(tiny_text_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., vl.MiniMaxVL]:
    """Builds the model with an engine that has the given recorder."""

    def load(recorder: Rerun | None, **options: int) -> vl.MiniMaxVL:
        monkeypatch.setattr(Engine, "_recorder", lambda self: recorder)
        monkeypatch.setattr(text_backbone.cache, "paged_attention", device_only_attention)
        return build(tiny_text_checkpoint, **options)

    return load


@pytest.fixture
def expected(tiny_text_checkpoint: Path) -> list[list[int]]:
    return answers(build(tiny_text_checkpoint))


def device_only_attention(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, keys: Tensor, values: Tensor, page_table: Tensor
) -> Tensor:
    """`paged_attention` that knows lengths from device tensors alone, as the GPU kernel for single tokens does."""
    if packed.longest > 1:
        return REFERENCE(q, k, v, packed, keys, values, page_table)
    pages = page_table[packed.slots].long()  # [n, pages]
    k_all, v_all = (x[pages].flatten(1, 2).transpose(1, 2) for x in (keys, values))  # [n, kv_heads, S, d]
    seen = torch.arange(k_all.shape[2]) <= packed.past[:, None]
    mask = seen[:, None, None]
    return F.scaled_dot_product_attention(q[:, :, None], k_all, v_all, attn_mask=mask, enable_gqa=True)[:, :, 0]


REFERENCE = text_backbone.cache.paged_attention


@pytest.mark.parametrize("slots", [16, 5])
def test_padded_replays_equal_the_plain_step(
    recorded: Callable[..., vl.MiniMaxVL], expected: list[list[int]], slots: int, left_in: Callable[..., dict[str, int]]
) -> None:
    recorder = Rerun()
    model = recorded(recorder, max_batch_size=slots)
    assert answers(model) == expected
    assert recorder.replays > recorder.records >= 3
    assert answers(model, late=0) == answers(model, late=4) == expected
    assert not left_in(model)


def test_tokens_chosen_outside_of_the_graph_are_those_of_the_plain_step(
    recorded: Callable[..., vl.MiniMaxVL], tiny_text_checkpoint: Path
) -> None:
    options: dict[str, Any] = {"repetition_penalty": 1.5, "frequency_penalty": 0.5, "logprobs": True, "top_logprobs": 2}
    samplings = [options, {"temperature": 1.3, "seed": 5}, {"temperature": 1.3, "seed": 6, "top_k": 7, **options}]

    def generated(model: vl.MiniMaxVL) -> list[vl.Generation]:
        params = [vl.SamplingParams(max_new_tokens=9, **sampling) for sampling in samplings]
        inputs = model.processor(ask("Hello"))
        return model.engine.run([model.engine.submit(inputs, each) for each in params])

    recorder = Rerun()
    expected = generated(build(tiny_text_checkpoint))
    model = recorded(recorder, max_batch_size=4)
    found = generated(model)
    assert recorder.replays == 8
    assert recorder.records == 1
    assert [each.token_ids for each in found] == [each.token_ids for each in expected]
    assert found[1].token_ids == model.generate([ask("Hello")], max_new_tokens=9, **samplings[1])[0].token_ids
    assert found[1].logprobs is None
    for ours, theirs in ((found[0], expected[0]), (found[2], expected[2])):
        assert ours.logprobs is not None
        assert theirs.logprobs is not None
        for one, other in zip(ours.logprobs, theirs.logprobs, strict=True):
            values = [each.logprob for each in (one, *one.top)]
            assert values == pytest.approx([each.logprob for each in (other, *other.top)], abs=1e-5)


def test_replays_follow_the_page_table(
    recorded: Callable[..., vl.MiniMaxVL], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages are taken, and sequences preempted, between replays of what was recorded before."""
    preempted = []
    preempt = Scheduler.preempt
    monkeypatch.setattr(Scheduler, "preempt", lambda self, entry: preempted.append(entry) or preempt(self, entry))
    recorder = Rerun()
    model = recorded(recorder, max_batch_size=5, page_size=4, cache_tokens=120)
    assert answers(model) == answers(model, late=0) == expected
    assert preempted
    assert recorder.replays > recorder.records


def test_only_steps_whose_pages_are_on_the_device_are_replayed(
    recorded: Callable[..., vl.MiniMaxVL], tiny_text_checkpoint: Path
) -> None:
    plain = build(tiny_text_checkpoint)
    prompt = len(plain.processor(ask("Hello")).input_ids)
    held = 4 * -(-(prompt + 9) // 4)
    recorder = Rerun()
    model = recorded(recorder, page_size=4, cache_tokens=held, host_cache_tokens=400)
    answer = model.generate([ask("Hello")], max_new_tokens=20)[0].token_ids
    assert len(answer) == 20
    assert recorder.replays == held - prompt, "one for each token that is read into a page of the device"
    assert answer == plain.generate([ask("Hello")], max_new_tokens=20)[0].token_ids


def test_one_recording_per_size_and_kind_of_draw(recorded: Callable[..., vl.MiniMaxVL]) -> None:
    recorder = Rerun()
    model = recorded(recorder, max_batch_size=6)
    for count, records in ((1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (6, 4), (1, 4)):
        model.generate([ask("Hello")] * count, max_new_tokens=4)
        assert recorder.records == records
    model.generate([ask("Hello")], max_new_tokens=4, temperature=1.0)
    model.generate([ask("Hello")], max_new_tokens=4, temperature=1.0, seed=3)
    assert recorder.records == 5


def test_moved_weights_are_recorded_anew(recorded: Callable[..., vl.MiniMaxVL]) -> None:
    recorder = Rerun()
    model = recorded(recorder)
    before = model.generate([ask("Hello")], max_new_tokens=4)[0].token_ids
    norm = model.language_model.norm
    norm.weight = torch.nn.Parameter(norm.weight.detach().clone())
    assert model.generate([ask("Hello")], max_new_tokens=4)[0].token_ids == before
    assert recorder.records == 2
    model.generate([ask("Hello")], max_new_tokens=4)
    assert recorder.records == 2
    hook = adapter(model)
    assert model.generate([ask("Hello")], max_new_tokens=4)[0].token_ids != before
    hook.remove()
    assert model.generate([ask("Hello")], max_new_tokens=4)[0].token_ids == before
    assert recorder.records == 4


def test_moved_codes_of_quantised_weights_are_recorded_anew(recorded: Callable[..., vl.MiniMaxVL]) -> None:
    """They are buffers, which are not among the model's parameters."""
    recorder = Rerun()
    model = recorded(recorder)
    quantize_backbone(model.language_model, "int8")
    before = model.generate([ask("Hello")], max_new_tokens=4)[0].token_ids
    attention = next(module for module in model.modules() if isinstance(module, QuantizedLinear))
    attention.weight.codes = attention.weight.codes.clone()
    assert model.generate([ask("Hello")], max_new_tokens=4)[0].token_ids == before
    assert recorder.records == 2


def adapter(model: vl.MiniMaxVL) -> RemovableHandle:
    """What an adapter does: change the output of a projection."""
    head = model.language_model.lm_head
    return head.register_forward_hook(lambda module, inputs, output: -output)


def test_a_model_cast_between_generations(tiny_text_checkpoint: Path) -> None:
    model = build(tiny_text_checkpoint)
    before = model.generate([ask("Hello")], max_new_tokens=4)[0].token_ids
    assert model.double().generate([ask("Hello")], max_new_tokens=4)[0].token_ids == before


def test_what_cannot_be_recorded_runs_as_it_is_with_one_warning(
    recorded: Callable[..., vl.MiniMaxVL], expected: list[list[int]]
) -> None:
    model = recorded(Broken())
    with pytest.warns(UserWarning, match="no graphs today"):
        assert answers(model) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answers(model) == expected


def test_scratch_is_nobodys(tiny_text_checkpoint: Path) -> None:
    config = vl.load(tiny_text_checkpoint, device="cpu").config.text
    cache = text_backbone.HybridCache(config, slots=2, pages=3, page_size=4, scratch=True)
    assert (cache.free_slots, cache.free_pages, cache.scratch_slot) == (2, 3, 2)
    slots = [cache.acquire(), cache.acquire()]
    assert cache.scratch_slot not in slots
    with pytest.raises(text_backbone.CacheFull, match="all 2"):
        cache.acquire()
    cache.reserve(slots[0], 12)
    assert cache.page_table[slots[0]].tolist() == [0, 1, 2]
    assert cache.page_table[2].tolist() == [3, 3, 3]
    cache.check(Packed.of([1], slots=[2]))
    with pytest.raises(ValueError, match="has room for 4 tokens"):
        cache.check(Packed.of([1], past=[4], slots=[2]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels were not made for the interpreter")
def test_replays_of_the_kernels_in_the_interpreter(tiny_text_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(tiny_text_checkpoint, max_batch_size=3, page_size=16)
    expected = [g.token_ids for g in model.generate(CONVERSATIONS[:3], max_new_tokens=4)]
    for op in ("lightning", "moe", "norms", "rotary", "softmax"):
        monkeypatch.setattr(f"text_backbone.kernels.{op}.use_gpu_kernels", lambda x: True)
    monkeypatch.setattr(Engine, "_recorder", lambda self: Rerun())
    model.engine = Engine(model, EngineConfig(max_batch_size=3, page_size=16))
    assert [g.token_ids for g in model.generate(CONVERSATIONS[:3], max_new_tokens=4)] == expected
