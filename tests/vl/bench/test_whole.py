"""`vl bench whole`: random weights are what they should be, and the figures are there, on small models."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vl.cli.app as vl_app
from text_backbone import Packed
from text_backbone.config import hybrid_layers
from text_backbone.quantization import Quantized
from vl.bench.whole import bench_whole, random_model, step_bytes
from vl.config import VLConfig
from vl.plan.models import find_config, released

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
            "nano", layers=2, quantization="int8", device="cpu", prompts=(40,), batches=(1, 2), image=(300, 300)
        )
    )
    assert [figure.what for figure in figures] == [
        "made and loaded",
        *["300 x 300 image and a question", "next question, to the first token"] * 2,
        *["read 40 tokens"] * 2,
        "write, batch 1",
        "write, batch 2",
    ]
    assert all(figure.value > 0 for figure in figures)
    assert figures[-2].note.startswith("2.0 experts of a layer, 2.0 where")  # one token's
    written = re.match(r"([\d.]+) experts of a layer", figures[-1].note)
    assert written is not None
    assert 2 <= float(written[1]) <= 4
    found = re.search(r"; ([\d,]+) tokens found$", figures[4].note)
    assert found is not None
    assert int(found[1].replace(",", "")) > 1176, "the image, at the least"


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
    monkeypatch.setattr("vl.bench.whole._picture", lambda model, image: iter(()))
    sizes = ["--layers", "1", "--quantization", "bf16", "--prompt", "20", "--batch", "1"]
    assert vl_app.run([*command, *sizes, "--json", str(file)]) == 0
    assert "write, batch 1" in capsys.readouterr().out
    assert [figure["unit"] for figure in json.loads(file.read_text())] == ["s", *["tokens/s"] * 3]
