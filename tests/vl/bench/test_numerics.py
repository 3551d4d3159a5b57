"""`vl bench numerics`: layers that are made one at a time are the model's own, and the figures are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vl.cli.app as vl_app
from text_backbone import MiniMaxText, Packed
from text_backbone.quantization import quantize_backbone
from vl.bench.formats import fill_named
from vl.bench.model import small_config
from vl.bench.numerics import bench_numerics
from vl.quantization import FORMATS

CPU = torch.device("cpu")


def test_each_format_has_the_error_of_its_kind() -> None:
    rows = list(bench_numerics(tokens=96, device="cpu"))
    assert [row.name for row in rows] == list(FORMATS)
    assert all((row.tokens, row.layers, row.dtype) == (96, 8, "float32") for row in rows)
    int8, fp8, nf4 = rows
    for figure in ("divergence", "error", "hidden_error"):
        assert 0 < getattr(int8, figure) < getattr(fp8, figure) < getattr(nf4, figure)
    assert int8.agreement >= nf4.agreement


@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_layers_made_one_at_a_time_are_those_of_a_model(format: str) -> None:
    """Held to a whole model whose weights are drawn by the same names, the plain sums written out."""

    def model(quantised: bool) -> MiniMaxText:
        made = MiniMaxText(small_config(), device=CPU)
        fill_named(made, "", CPU)
        if quantised:
            quantize_backbone(made, format)
        return made

    ids = torch.randint(512, (40,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        full, small = (m.logits(m(m.embed(ids), Packed.of([40]))).double() for m in (model(False), model(True)))
    (row,) = bench_numerics([format], tokens=40, device="cpu")
    p, q = full.softmax(-1), small.softmax(-1)
    assert row.divergence == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-3)
    assert row.agreement == (full.argmax(-1) == small.argmax(-1)).double().mean().item()
    assert row.error == pytest.approx(((full - small).norm() / full.norm()).item(), rel=1e-4)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["bench", "numerics", "--tokens", "32", "--device", "cpu", "--only", "nf4"]
    assert vl_app.run([*line, "--json", str(tmp_path / "n.json")]) == 0
    assert "8 layers with random weights, 32 tokens, beside float32" in " ".join(capsys.readouterr().out.split())
    (row,) = json.loads((tmp_path / "n.json").read_text())
    assert row["name"] == "nf4"
    assert vl_app.run([*line, "--only", "int4"]) == 2
