"""`vl bench whole`: random weights are what they should be, and the figures are there, on small models."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vl.cli.app as vl_app
from preprocessing.tokenizer import Tokenizer
from text_backbone import Packed
from text_backbone.config import hybrid_layers
from text_backbone.quantization import Quantized
from vl.bench.crowd import Crowd
from vl.bench.made import random_model, random_whole, spelt_out
from vl.bench.whole import bench_whole, step_bytes
from vl.config import VLConfig
from vl.engine import Request, Timings
from vl.errors import ConfigError
from vl.hub import NANO
from vl.plan.models import find_config, released
from vl.quantization import stored_to_json
from vl.ranks.devices import TENSOR, Placed

CPU = torch.device("cpu")


@pytest.mark.parametrize("format", [None, "int8", "fp8", "nf4"])
def test_random_weights_have_the_spread_that_keeps_activations(format: str | None) -> None:
    config = replace(find_config("nano"), quantization=format)
    config = replace(config, text=replace(config.text, attn_type_list=config.text.attn_type_list[:2]))
    model = random_model(config, "nano", torch.float32, None, CPU, None)
    again = random_model(config, "nano", torch.float32, None, CPU, None)
    slots, others = model.released_tensors(), again.released_tensors()
    for name in ("language_model.model.layers.1.block_sparse_moe.experts.3.w2.weight",
                 "language_model.model.layers.0.self_attn.qkv_proj.weight"):  # fmt: skip
        weight = slots[name].read()
        small = 0.1 if "w2" in name else 1.0
        assert weight.std().item() == pytest.approx(small * weight.shape[1] ** -0.5, rel=0.05)
        assert torch.equal(weight, others[name].read())
    assert any(isinstance(module, Quantized) for module in model.modules()) == (format is not None)
    assert slots["language_model.model.norm.weight"].read().eq(1).all()


def test_tokens_of_a_deep_model_stay_apart() -> None:
    """They choose nearly as many experts in late layers as if each was as likely: 12.9 for 8 tokens of 32 experts."""
    text = replace(find_config("nano").text, attn_type_list=hybrid_layers(40), hidden_size=128, num_local_experts=32)
    model = random_model(VLConfig(text), "deep", torch.float32, None, CPU, None).language_model
    ids, routed = torch.randint(0, text.vocab_size, (512,)), []  # type: ignore[var-annotated]
    with torch.inference_mode():
        model(model.embed(ids), Packed.of([64] * 8), router_logits=routed)
    last = [logits[63::64].topk(text.num_experts_per_tok, -1).indices for logits in routed[20:]]
    assert sum(len(chosen.unique()) for chosen in last) / 20 > 11.5  # 9.5 where all matrices are as large


def test_every_figure_of_a_model_in_one_process() -> None:
    figures = list(
        bench_whole(
            "nano", layers=2, quantization="int8", device="cpu", prompts=(40,), batches=(1, 2), image=(300, 300),
            crowd=Crowd(2, (300, 300), 4),
        )
    )  # fmt: skip
    crowd = "2 questions at once, a 300 x 300 image and 4 tokens each"
    assert [figure.what for figure in figures] == [
        "made and loaded",
        crowd,
        *["300 x 300 image and a question", "next question, to the first token"] * 2,
        "one of these questions alone, encoded and read",
        "a step of 2 sequences alone",
        crowd,
        *["read 40 tokens"] * 2,
        "write, batch 1",
        "write, batch 2",
    ]
    assert all(figure.value > 0 for figure in figures)
    assert figures[-2].note.startswith("2.0 experts of a layer, 2.0 where")  # one token's
    written = re.match(r"([\d.]+) experts of a layer", figures[-1].note)
    assert written is not None
    assert 2 <= float(written[1]) <= 4
    found = re.search(r"; ([\d,]+) tokens found$", figures[5].note)
    assert found is not None
    assert int(found[1].replace(",", "")) > 1176, "the image, at the least"
    read, step, again = figures[6:9]
    assert again.floor == pytest.approx(2 * read.value / 1e3 + 3 * step.value / 1e3)


def test_no_picture_of_a_crowd_is_known_when_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = random_whole("nano", layers=1, device="cpu")
    asked: list[Request] = []

    def run(requests: list[Request]) -> list[Any]:
        asked.extend(requests)
        return [SimpleNamespace(timings=Timings(vision=0.25, prefill=0.5))] * len(requests)

    monkeypatch.setattr(model.engine, "run", run)
    crowd = Crowd(2, (40, 30), 2)
    crowd.seconds(model, 1)
    assert crowd.read_alone(model, 2) == 0.75
    crowd.seconds(model, 3)
    assert len({request.prompt.digests[0] for request in asked}) == len(asked) == 2 + 3 + 2


def test_devices_are_chosen_for_the_layers_that_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[VLConfig] = []

    def place(config: VLConfig, *_: Any) -> Placed:
        chosen.append(config)
        return Placed((CPU,), TENSOR)

    monkeypatch.setattr("vl.bench.made.read_devices", lambda *_: SimpleNamespace(place=place))
    random_whole("nano", layers=2, devices="auto")
    assert [len(config.text.attn_type_list) for config in chosen] == [2]


def test_every_token_of_a_made_up_model_can_be_spelt() -> None:
    tokenizer = Tokenizer.load(NANO)
    wide = spelt_out(tokenizer, 3000)
    assert len(wide) == 3000
    assert all(wide.decode([token], skip_special_tokens=False) for token in range(2048, 3000))
    text = "A red circle, 17 of them. <2999>"
    assert wide.encode(text) == tokenizer.encode(text)
    with pytest.raises(ConfigError, match="layers=9: nano has 8"):
        random_whole("nano", layers=9)
    with pytest.raises(ConfigError, match="MiniMax-Text-01 takes no images"):
        next(bench_whole("MiniMax-Text-01", crowd=Crowd(2, (40, 30), 2)))


def test_bytes_of_a_step_of_the_released_model() -> None:
    """Of 45.9 billion active parameters and the output head's 1.23; 70 states of 4 MiB are read and written."""
    text = released().text
    assert step_bytes(text, "nf4", 1, 1) == pytest.approx(26.7e9, rel=0.01)
    assert step_bytes(text, "bf16", 1, 1) == pytest.approx(2 * (45.9e9 + 1.23e9) + 2 * 70 * 2**22, rel=0.005)
    least, more = (step_bytes(text, "nf4", 64, 1024, used) for used in (2, 3))
    assert more - least == pytest.approx(80 * 3 * 6144 * 9216 * 4.127 / 8, rel=0.001), "an expert of every layer"
    assert step_bytes(text, "nf4", 64, 1024) < 32 * step_bytes(text, "nf4", 1, 1024)


def test_the_command_writes_figures_and_refuses_what_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "figures.json"
    command = ["bench", "whole", "--model", "nano", "--device", "cpu", "--devices", "1"]
    assert vl_app.run([*command, "--quantization", "int4"]) == 2
    assert "nf4, bf16" in " ".join(capsys.readouterr().err.split())
    packed = tmp_path / "config.json"
    described = json.loads((NANO / "config.json").read_text())
    packed.write_text(json.dumps(described | {"quantization_config": stored_to_json("int8")}))
    assert vl_app.run(["bench", "whole", "--model", str(packed), "--quantization", "bf16"]) == 2
    assert "says int8" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr("vl.bench.whole._picture", lambda model, image: iter(()))
    sizes = ["--layers", "1", "--quantization", "bf16", "--prompt", "20", "--batch", "1"]
    assert vl_app.run([*command, *sizes, "--json", str(file)]) == 0
    assert "write, batch 1" in capsys.readouterr().out
    assert [figure["unit"] for figure in json.loads(file.read_text())] == ["s", *["tokens/s"] * 3]
