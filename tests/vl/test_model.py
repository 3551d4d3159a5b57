"""The Python API on a tiny random model: what it answers must not depend on how it is asked."""

from __future__ import annotations

import copy
import dataclasses
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vl
from vl.engine.request import Request


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ask(text: str, *images: object) -> list[dict]:
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


CONVERSATIONS = [
    ask("Describe this image.", picture(64, 64)),
    ask("Hello"),
    ask("Compare them.", picture(700, 300, 1), picture(40, 900, 2)),
    [
        {"role": "system", "content": "Be brief."},
        *ask("What is it?", picture(336, 336, 3)),
        {"role": "assistant", "content": "A thing."},
        {"role": "user", "content": "Which one?"},
    ],
    ask("Read the text.", picture(1500, 900, 4)),
]


def greedy(model: vl.MiniMaxVL, messages: list[dict], count: int) -> list[int]:
    """One full forward pass per token, without cache or engine."""
    inputs, ids = model.processor(messages), []
    for _ in range(count):
        ids.append(int(model.logits(inputs)[-1].argmax()))
        if ids[-1] in model.end_ids:
            break
        inputs.input_ids = torch.cat([inputs.input_ids, torch.tensor(ids[-1:])])
    return ids


def test_generate_equals_a_full_pass_per_token(tiny_model: vl.MiniMaxVL) -> None:
    for messages, result in zip(CONVERSATIONS, tiny_model.generate(CONVERSATIONS, max_new_tokens=8), strict=True):
        assert result.token_ids == greedy(tiny_model, messages, 8)


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch_size": 1},
        {"max_batch_size": 2, "prefill_tokens": 50},
        {"prefill_tokens": 1000, "page_size": 16, "cache_tokens": 32},
    ],
)
def test_engine_settings_do_not_change_the_answers(
    tiny_model: vl.MiniMaxVL, tiny_checkpoint: Path, options: dict[str, int]
) -> None:
    other = vl.load(tiny_checkpoint, device="cpu", **options)
    expected = [g.token_ids for g in tiny_model.generate(CONVERSATIONS, max_new_tokens=6)]
    assert [g.token_ids for g in other.generate(CONVERSATIONS, max_new_tokens=6)] == expected


def test_stream_joins_to_the_answer(tiny_model: vl.MiniMaxVL) -> None:
    for messages in CONVERSATIONS:
        pieces = list(tiny_model.stream(messages, max_new_tokens=12))
        assert "".join(pieces) == tiny_model.chat(messages, max_new_tokens=12)


def test_caption_is_a_chat_about_one_image(tiny_model: vl.MiniMaxVL) -> None:
    image = picture(100, 80)
    expected = tiny_model.chat(ask(vl.DEFAULT_PROMPT, image), max_new_tokens=10)
    assert tiny_model.caption(image, max_new_tokens=10) == expected
    assert tiny_model.caption(image, None, max_new_tokens=10) == expected
    assert tiny_model.caption(image, "Hello", max_new_tokens=10) == tiny_model.chat(
        ask("Hello", image), max_new_tokens=10
    )


def test_tools_are_in_the_prompt(tiny_model: vl.MiniMaxVL) -> None:
    tools = [{"name": "get_time", "parameters": {}}]
    inputs = tiny_model.processor(ask("Hello"), tools=tools)
    (plain,) = tiny_model.generate([inputs], max_new_tokens=4)
    (result,) = tiny_model.generate([ask("Hello")], tools=tools, max_new_tokens=4)
    assert result.usage.prompt_tokens == len(inputs) > len(tiny_model.processor(ask("Hello")))
    assert result.token_ids == plain.token_ids
    assert result.tool_calls == []
    assert tiny_model.chat(ask("Hello"), tools=tools, max_new_tokens=4) == plain.text
    assert "".join(tiny_model.stream(ask("Hello"), tools=tools, max_new_tokens=4)) == plain.text
    with pytest.raises(vl.InputError, match="give them to the processor"):
        tiny_model.generate([inputs], tools=tools)


@pytest.mark.parametrize("batch", [None, 5, 1.5])
def test_a_batch_that_is_none(tiny_model: vl.MiniMaxVL, batch: object) -> None:
    with pytest.raises(vl.InputError, match="batch must be a list"):
        tiny_model.generate(batch)  # type: ignore[arg-type]


def test_calls_in_an_answer(tiny_model: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = copy.deepcopy(tiny_model.processor)
    processor.tokenizer.backend.add_special_tokens(["<function_call>"])
    answer = '<function_call>```typescript\nfunctions.get_time({"city": "Paris"})\n```'

    def run(requests: list[Request], progress: None) -> list[vl.Generation]:
        return [dataclasses.replace(result, token_ids=processor.tokenizer.encode(answer)) for result in real(requests)]

    real = tiny_model.engine.run
    monkeypatch.setattr(tiny_model, "processor", processor)
    monkeypatch.setattr(tiny_model.engine, "run", run)
    (result,) = tiny_model.generate([ask("Hello")], max_new_tokens=1)
    assert result.tool_calls == [vl.ToolCall("get_time", {"city": "Paris"})]


def test_an_answer_goes_on_from_the_assistants_last_message(tiny_model: vl.MiniMaxVL) -> None:
    begun = [*ask("Hello"), {"role": "assistant", "content": "It is"}]
    (full,) = tiny_model.generate([tiny_model.processor(begun, continue_final_message=True)], max_new_tokens=6)
    assert tiny_model.chat(begun, max_new_tokens=6) == "".join(tiny_model.stream(begun, max_new_tokens=6)) == full.text
    assert full.usage.prompt_tokens > len(tiny_model.processor(ask("Hello")).input_ids)
    assert full.usage.prompt_tokens < len(tiny_model.processor(begun).input_ids)


def test_usage_and_timings(tiny_model: vl.MiniMaxVL) -> None:
    messages = CONVERSATIONS[2]
    inputs = tiny_model.processor(messages)
    tiny_model.engine.forget()
    (result,) = tiny_model.generate([messages], max_new_tokens=5)
    assert result.usage.cached_tokens == 0
    assert result.usage.prompt_tokens == inputs.input_ids.numel()
    assert result.usage.image_tokens == sum(grid.tokens for grid in inputs.grids)
    assert result.usage.completion_tokens == len(result.token_ids)
    timings = result.timings
    assert min(timings.preprocess, timings.vision, timings.prefill, timings.decode) > 0
    (again,) = tiny_model.generate([inputs], max_new_tokens=5)
    assert again.token_ids == result.token_ids
    assert (again.usage.cached_tokens, again.timings.vision) == (len(inputs.input_ids) - 1, 0)


def test_length_and_stop_strings(tiny_model: vl.MiniMaxVL) -> None:
    (full,) = tiny_model.generate([ask("Hello")], max_new_tokens=40)
    assert full.finish_reason == ("length" if len(full.token_ids) == 40 else "stop")
    stop = full.text[5:8]
    (cut,) = tiny_model.generate([ask("Hello")], max_new_tokens=40, stop=stop)
    assert cut.finish_reason == "stop"
    assert cut.text == full.text[: full.text.index(stop)]
    assert "".join(tiny_model.stream(ask("Hello"), max_new_tokens=40, stop=[stop])) == cut.text


def test_end_token_stops(tiny_model: vl.MiniMaxVL) -> None:
    (full,) = tiny_model.generate([ask("Hello")], max_new_tokens=10)
    end = full.token_ids[3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_model, "end_ids", frozenset([end]))
        (ended,) = tiny_model.generate([ask("Hello")], max_new_tokens=10)
    first = full.token_ids.index(end)
    assert (ended.token_ids, ended.finish_reason) == (full.token_ids[: first + 1], "stop")
    assert ended.text == tiny_model.processor.tokenizer.decode(full.token_ids[:first])


def test_seeds_reproduce_whatever_the_batch(tiny_model: vl.MiniMaxVL) -> None:
    sampling = {"temperature": 1.5, "seed": 3, "max_new_tokens": 8}
    together = tiny_model.generate(CONVERSATIONS, **sampling)
    alone = [tiny_model.generate([messages], **sampling)[0] for messages in CONVERSATIONS]
    assert [g.token_ids for g in together] == [g.token_ids for g in alone]
    assert together[0].token_ids != tiny_model.generate([CONVERSATIONS[0]], **sampling | {"seed": 4})[0].token_ids


def test_threads_share_the_engine(tiny_model: vl.MiniMaxVL) -> None:
    expected = [tiny_model.chat(messages, max_new_tokens=10) for messages in CONVERSATIONS]
    answers: dict[int, str] = {}

    def work(index: int) -> None:
        answers[index] = "".join(tiny_model.stream(CONVERSATIONS[index], max_new_tokens=10))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(CONVERSATIONS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert [answers[i] for i in range(len(CONVERSATIONS))] == expected


def test_interleaved_streams(tiny_model: vl.MiniMaxVL) -> None:
    streams = [tiny_model.stream(messages, max_new_tokens=10) for messages in CONVERSATIONS[:2]]
    texts = ["", ""]
    live = [0, 1]
    while live:
        for i in list(live):
            piece = next(streams[i], None)
            if piece is None:
                live.remove(i)
            else:
                texts[i] += piece
    assert texts == [tiny_model.chat(messages, max_new_tokens=10) for messages in CONVERSATIONS[:2]]


def free(model: vl.MiniMaxVL) -> tuple[int, int]:
    assert model.engine.runner is not None
    cache = model.engine.runner.cache
    return cache.free_slots, cache.free_pages + cache.idle_pages


def test_a_closed_stream_gives_back_its_slot(tiny_model: vl.MiniMaxVL) -> None:
    tiny_model.chat(ask("Hello"), max_new_tokens=2)
    before = free(tiny_model)
    stream = tiny_model.stream(ask("Hello"), max_new_tokens=200)
    next(stream)
    assert free(tiny_model) != before
    stream.close()
    assert free(tiny_model) == before


def test_a_failed_step_ends_its_requests_and_no_others(
    tiny_model: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tiny_model.chat(ask("Hello"), max_new_tokens=6)
    before = free(tiny_model)
    with monkeypatch.context() as patch:
        patch.setattr(tiny_model.language_model, "logits", lambda hidden: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiny_model.generate(CONVERSATIONS, max_new_tokens=6)
    assert free(tiny_model) == before
    assert tiny_model.chat(ask("Hello"), max_new_tokens=6) == expected


def test_a_bad_image_raises_before_anything_runs(tiny_model: vl.MiniMaxVL, tmp_path: Path) -> None:
    bad = tmp_path / "notes.png"
    bad.write_text("not an image")
    with pytest.raises(vl.ImageError, match=r"notes\.png"):
        tiny_model.stream(ask("Hi", bad))  # raised by the call itself, not by the first piece
    with pytest.raises(vl.ImageError, match=r"notes\.png"):
        tiny_model.generate([ask("Hello"), ask("Hi", bad)])
    assert not tiny_model.engine.scheduler.waiting


def test_logits_are_float32_at_every_position(tiny_model: vl.MiniMaxVL) -> None:
    inputs = tiny_model.processor(CONVERSATIONS[0])
    logits = tiny_model.logits(inputs)
    assert logits.dtype == torch.float32
    assert logits.shape == (inputs.input_ids.numel(), tiny_model.config.text.vocab_size)


def test_images_reach_the_answer(tiny_model: vl.MiniMaxVL) -> None:
    one, other = (tiny_model.processor(ask("Hi", picture(300, 300, seed))) for seed in (1, 2))
    assert torch.equal(one.input_ids, other.input_ids)
    assert not torch.allclose(tiny_model.logits(one)[-1], tiny_model.logits(other)[-1])


def test_save_and_load(tiny_model: vl.MiniMaxVL, tmp_path: Path) -> None:
    folder = tiny_model.save(tmp_path / "copy", max_shard_bytes=50_000)
    assert len(list(folder.glob("*.safetensors"))) > 1
    copy = vl.load(folder, device="cpu")
    assert copy.config == tiny_model.config
    for messages in CONVERSATIONS:
        inputs = copy.processor(messages)
        torch.testing.assert_close(copy.logits(inputs), tiny_model.logits(inputs), rtol=0, atol=0)


def test_text_only_checkpoint(tiny_text_checkpoint: Path) -> None:
    model = vl.load(tiny_text_checkpoint, device="cpu")
    assert [g.token_ids for g in model.generate([ask("Hello")], max_new_tokens=5)] == [greedy(model, ask("Hello"), 5)]
    with pytest.raises(vl.InputError, match="text-only"):
        model.caption(picture(64, 64))


def test_bfloat16(tiny_checkpoint: Path, tiny_model: vl.MiniMaxVL) -> None:
    model = vl.load(tiny_checkpoint, device="cpu", dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    inputs = model.processor(CONVERSATIONS[0])
    exact, rounded = tiny_model.logits(inputs), model.logits(inputs)
    assert (exact - rounded).norm() < 0.1 * exact.norm()
    assert model.generate([inputs], max_new_tokens=4)[0].token_ids


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"device": "cuda:63"}, vl.DeviceError, "device='cpu'"),
        ({"device": "toaster"}, vl.DeviceError, "toaster"),
        ({"dtype": "int4"}, vl.DeviceError, "bfloat16"),
        ({"quantization": "nf5"}, vl.ConfigError, "quantization='nf5'.*'nf4'"),
        ({"batch": 3}, vl.ConfigError, "batch"),
    ],
)
def test_load_refuses(tiny_checkpoint: Path, options: dict, error: type[vl.Error], words: str) -> None:
    with pytest.raises(error, match=words):
        vl.load(tiny_checkpoint, **options)


def test_a_tokenizer_of_another_model_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "mixed"))
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"image_token_index": 2', '"image_token_index": 9'))
    with pytest.raises(vl.ConfigError, match="image_token_index"):
        vl.load(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_large_model_without_a_gpu_says_so_once(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def warned() -> bool:
        return any(w.category is UserWarning for w in recwarn)  # others may be of what earlier tests left

    vl.load(tiny_checkpoint)
    assert not warned(), "small models do well on a CPU"
    monkeypatch.setattr(vl.loading, "_LARGE", 1000)
    vl.load(tiny_checkpoint, device="cpu")
    assert not warned(), "it is what was asked for"
    with pytest.warns(UserWarning, match="no GPU was found.* runs on the CPU"):
        vl.load(tiny_checkpoint)


def test_background_is_the_processors(tmp_path: Path) -> None:
    assert vl.load("nano", device="cpu").processor.background is None
    assert vl.load("nano", device="cpu", background="white").processor.background == "white"
    with pytest.raises(vl.InputError, match="background='whitish' is not a colour"):
        vl.load(tmp_path / "nothing here", background="whitish")
