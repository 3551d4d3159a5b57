"""`vl.load(..., devices=...)`: real processes, each with its part of the model, answer as one process does."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from endless import endless
from PIL import Image, ImageDraw

import vl
from vl.cli import app as vl_app
from vl.ranks.model import SplitVL
from vl.routing import last_experts

sys.path.append(str(Path(__file__).parent))
import builders


def picture(width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width // 2, height // 2), fill="red")
    return image


def conversations() -> list[list[dict[str, Any]]]:
    def ask(text: str, *images: Image.Image) -> list[dict[str, Any]]:
        parts = [{"type": "image", "image": image} for image in images]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]

    return [
        ask("Describe this image.", picture(336, 336)),
        ask("Hello"),
        ask("What is in the second image?", picture(200, 500), picture(700, 300)),
    ]


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    return builders.wide(tmp_path_factory.mktemp("wide") / "model", tiny_checkpoint)


CASES = {
    "nano, 2 by tensor": ("nano", {"devices": 2}),
    "4 by layers": ("wide", {"devices": 4, "placement": "layers"}),
    "4 by tensor, keys and values in host memory": (
        "wide",
        {"devices": 4, "placement": "tensor", "cache_tokens": 512, "host_cache_tokens": 65536},
    ),
    "2 by context": ("wide", {"devices": 2, "placement": "context"}),
    "nano in nf4, 2 by experts": ("nano", {"devices": 2, "placement": "expert", "quantization": "nf4"}),
    "2 by experts, which are in host memory": ("wide", {"devices": 2, "placement": "expert", "spill": 1}),
    "int8, 2 by tensor, experts in host memory": (
        "wide",
        {"devices": ["cpu", "cpu"], "quantization": "int8", "spill": 1},
    ),
}


@pytest.fixture(scope="module", params=list(CASES))
def pair(request: pytest.FixtureRequest, wide_checkpoint: Path) -> Iterator[tuple[vl.MiniMaxVL, vl.MiniMaxVL]]:
    """A model in one process, and the same over several."""
    name, options = CASES[request.param]
    source = wide_checkpoint if name == "wide" else name
    shared = {"max_batch_size": 4, "prefill_tokens": 600, "quantization": options.get("quantization")}
    seen: list[tuple[int, int]] = []
    with warnings.catch_warnings(action="error"):
        warnings.filterwarnings("ignore", message=r".* 1 of \d experts of every layer are on each of 2 devices")
        split = vl.load(
            source,
            device=None if isinstance(options["devices"], list) else "cpu",
            progress=lambda done, total: seen.append((done, total)),
            **shared | options,
        )
    assert seen[-1][0] == seen[-1][1]
    yield vl.load(source, device="cpu", **shared), split
    split.close()


def test_the_experts_of_one_process(pair: tuple[vl.MiniMaxVL, vl.MiniMaxVL], request: pytest.FixtureRequest) -> None:
    """Of each layer, unless no rank knows them all."""
    one, split = pair
    assert isinstance(split, SplitVL)
    texts = [[5, 9, 17], [30, 31], [64]]
    by_layers = "by layers" in request.node.callspec.params["pair"]
    assert split.last_experts(texts) == (None if by_layers else last_experts(one, texts))


def test_the_answers_of_one_process(pair: tuple[vl.MiniMaxVL, vl.MiniMaxVL]) -> None:
    one, split = pair
    assert isinstance(split, SplitVL)
    words = conversations()[1]
    asked = [words] if one.config.quantization == "nf4" else conversations()  # its products are slow on a CPU
    expected, found = (model.generate(asked, max_new_tokens=8) for model in pair)
    assert [g.token_ids for g in found] == [g.token_ids for g in expected]
    assert "".join(split.stream(words, max_new_tokens=8)) == one.chat(words, max_new_tokens=8)
    for messages in asked[-2:]:
        inputs = one.processor(messages)
        exact, ours = one.logits(inputs), split.logits(inputs)
        assert ours.dtype == torch.float32
        assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_the_second_turn_reads_only_what_is_new(pair: tuple[vl.MiniMaxVL, vl.MiniMaxVL]) -> None:
    """Each rank keeps its part of the states, and brings it back."""
    one, split = pair
    first = conversations()[0]
    said = one.generate([first], max_new_tokens=20)[0]
    assert split.generate([first], max_new_tokens=20)[0].token_ids == said.token_ids
    second = [*first, {"role": "assistant", "content": said.text}, {"role": "user", "content": "And what else?"}]
    expected, found = (model.generate([second], max_new_tokens=8)[0] for model in pair)
    assert found.token_ids == expected.token_ids
    assert found.usage == expected.usage
    assert found.usage.cached_tokens > found.usage.image_tokens
    assert split.engine.image_counts == one.engine.image_counts


def test_a_session_goes_from_ranks_to_one_process_and_back(
    pair: tuple[vl.MiniMaxVL, vl.MiniMaxVL], tmp_path: Path
) -> None:
    """What each saves, the other opens, and has the same keys, values, states and answers."""
    document = [{"role": "user", "content": "A red circle at the top left. " * 12}]
    ask, sampling = [{"role": "user", "content": "Which?"}], {"max_new_tokens": 6, "temperature": 1.3, "seed": 4}
    expected = pair[0].chat([*document, *ask], **sampling)
    sessions = [model.read(document) for model in pair]
    assert [session.ask("Which?", **sampling) for session in sessions] == [expected] * 2
    held = [_contents(session) for session in sessions]
    for name, tensor in held[0].items():
        assert (held[1][name] - tensor).abs().max() <= 2e-5 * tensor.abs().max()
    for number, (session, other) in enumerate(zip(sessions, reversed(pair), strict=True)):
        opened = other.open(session.save(tmp_path / str(number)))
        found = _contents(opened)
        assert found.keys() == held[number].keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in held[number].items())
        assert opened.ask("Which?", **sampling) == expected
        opened.add(ask)
        opened.save(tmp_path / str(number))
        assert session._model.open(tmp_path / str(number)).tokens == opened.tokens > session.tokens


def _contents(session: vl.Session) -> dict[str, torch.Tensor]:
    engine, held = session._engine, session._known.held
    return engine.states_of(held) | engine.stretch_of(held, 0, held.tokens)


def test_a_closed_model_says_so(pair: tuple[vl.MiniMaxVL, vl.MiniMaxVL]) -> None:
    """After all else of a model."""
    _, model = pair
    assert set(model.devices) == {torch.device("cpu")}
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    model.close()
    model.close()
    for call in (lambda: model.chat(conversations()[1]), lambda: model.logits(model.processor(conversations()[1]))):
        with pytest.raises(vl.DeviceError, match="the model was closed: load it again"):
            call()


def test_a_damaged_file_is_named_with_the_rank_that_read_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    name = "language_model.model.layers.6.self_attn.out_proj.weight"
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            tensors[name][-1] = torch.nan
            save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(vl.CheckpointError, match=rf"rank 1 \(cpu\): .*\n?.*{name}"):
        vl.load(folder, devices=2, device="cpu", placement="layers")


def test_the_command_line(tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "red.png"
    picture(64, 64).save(file)
    options = ["--model", str(tiny_checkpoint), "--device", "cpu", "--max-new-tokens", "6", "--json"]
    said = []
    for more in ([], ["--devices", "2", "--placement", "layers"]):
        assert vl_app.run(["chat", str(file), "What is it?", *options, *more]) == 0
        said.append(json.loads(capsys.readouterr().out)["text"])
    assert said[0] == said[1]


# On two GPUs


def needs_gpus(count: int) -> Any:
    there = torch.cuda.device_count()
    return pytest.mark.skipif(there < count, reason=f"needs {count} CUDA GPUs, of which there are {there}")


@pytest.mark.gpu
@needs_gpus(2)
@pytest.mark.parametrize("placement", ["tensor", "expert", "layers"])
def test_two_gpus_answer_as_one(placement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    one = vl.load("nano", device="cuda:0", dtype="float32")
    split = vl.load("nano", devices=2, placement=placement, dtype="float32")
    asked = conversations()
    expected, found = (model.generate(asked, max_new_tokens=24) for model in (one, split))
    assert [g.token_ids for g in found] == [g.token_ids for g in expected]
    exact = one.logits(one.processor(asked[0])).cpu()
    assert (split.logits(one.processor(asked[0])) - exact).abs().max() <= 1e-4 * exact.abs().max()
    sampling = {"max_new_tokens": 24, "temperature": 1.0, "seed": 3}
    assert [g.token_ids for g in split.generate(asked, **sampling)] == [
        g.token_ids for g in split.generate(asked, **sampling)
    ]
    split.close()


@pytest.mark.gpu
@needs_gpus(2)
@pytest.mark.parametrize("quantization", [None, "int8", "nf4"])
def test_two_gpus_decode_in_graphs_without_a_warning(quantization: str | None, recwarn: Any, capfd: Any) -> None:
    # nano's matrices are too small to be split at whole blocks of NF4
    placement = "expert" if quantization == "nf4" else None
    model = vl.load("nano", devices=[0, 1], quantization=quantization, placement=placement)
    assert model.chat(conversations()[0], max_new_tokens=40)
    assert len(model.generate(conversations() * 3, max_new_tokens=40)) == 9
    assert "could not become a CUDA graph" not in capfd.readouterr().err
    model.close()


@pytest.mark.gpu
@needs_gpus(2)
def test_a_gpu_s_process_that_is_killed_ends_both() -> None:
    import os
    import signal

    model = vl.load("nano", devices=2)
    assert isinstance(model, SplitVL)
    pieces = model.stream(conversations()[0], **endless(model))
    next(pieces)
    os.kill(model._ranks._held.ranks[1].process.pid, signal.SIGKILL)
    with pytest.raises(vl.DeviceError, match=r"rank 1 \(cuda:1\) was killed by SIGKILL"):
        list(pieces)
    assert all(rank.process.poll() is not None for rank in model._ranks._held.ranks)
