"""`vl bench quality`: the figures are what they say, on a small model with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vl
import vl.cli.app as vl_app
from vl.bench.quality import CONTENDERS, _spread, bench_quality
from vl.evaluation import Question, Ratio, Row, Task

TASK = Task(
    "probe",
    "a picture's name",
    "vqa",
    lambda index, _: Question([{"role": "user", "content": f"What is {index}?"}], (f"{index}",)),
    max_new_tokens=5,
)


@pytest.fixture(autouse=True)
def probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vl.bench.quality.find_task", lambda name: TASK)
    monkeypatch.setattr("vl.evaluation.find_task", lambda name: TASK)


def test_each_format_beside_the_full_model(tiny_checkpoint: Path) -> None:
    rows = list(bench_quality(tiny_checkpoint, ["probe"], count=3, device="cpu"))
    assert [row.name for row in rows] == ["float32", *CONTENDERS]
    full = rows[0]
    assert full.divergence == 0
    assert full.agreement == 1
    assert all((row.examples, row.tokens) == (3, full.tokens) for row in rows)
    assert all(spread == 0 for spread in full.spread.values())
    found = {row.name: row.divergence for row in rows}
    assert 0 < found["int8"] < found["fp8"]
    assert found["int8"] < found["nf4"]


def test_divergence_and_agreement_by_hand(tiny_checkpoint: Path) -> None:
    (_, row) = bench_quality(tiny_checkpoint, ["probe"], ["nf4"], count=2, device="cpu")
    full, small = (vl.load(tiny_checkpoint, device="cpu", quantization=form) for form in (None, "nf4"))
    total, same, tokens = 0.0, 0, 0
    for i in range(2):
        messages = [{"role": "user", "content": f"What is {i}?"}]
        prompt = full.processor(messages)
        answer = full.chat(messages, max_new_tokens=5).strip()
        ids = [*full.processor.tokenizer.encode_plain(answer), 1]
        for j, _ in enumerate(ids):
            whole = vl.Inputs(torch.cat((prompt.input_ids, torch.tensor(ids[:j], dtype=torch.int64))), prompt.tiles, [])
            p, q = (model.logits(whole)[-1].double().softmax(0) for model in (full, small))
            total += (p * (p / q).log()).sum().item()
            same += int(p.argmax() == q.argmax())
            tokens += 1
    assert row.tokens == tokens
    assert row.divergence == pytest.approx(total / tokens, rel=1e-3)
    assert row.agreement == same / tokens


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9)), min_size=200, max_size=300))
def test_the_error_of_a_difference_is_near_the_jackknifes(edits: list[tuple[int, int, int]]) -> None:
    """Edits of two models in texts of so many characters."""
    full, other = ([_judged(pair[i], pair[2]) for pair in edits] for i in (0, 1))

    def difference(left_out: int) -> float:
        kept = [pair for i, pair in enumerate(edits) if i != left_out]
        return sum(b - a for a, b, _ in kept) / sum(length for *_, length in kept)

    left = np.array([difference(i) for i in range(len(edits))])
    jackknife = ((len(edits) - 1) * left.var()) ** 0.5
    assert _spread(full, other, "cer") == pytest.approx(jackknife, rel=0.05, abs=1e-9)


def test_the_error_of_a_difference_of_shares_is_that_of_a_mean() -> None:
    full, other = ([_judged(each, 1) for each in right] for right in ((1, 1, 0, 1), (1, 0, 0, 1)))
    assert _spread(full, other, "cer") == pytest.approx(np.std([0, -1, 0, 0], ddof=1) / 2)
    assert _spread(full, full, "cer") == 0


def _judged(top: int, bottom: int) -> Row:
    return Row("", "", "ocr", scores={"cer": Ratio(top, bottom)})


def test_the_command(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["bench", "quality", "probe", "--model", str(tiny_checkpoint), "--device", "cpu", "--count", "2"]
    assert vl_app.run([*line, "--only", "int8", "--json", str(tmp_path / "q.json")]) == 0
    out = capsys.readouterr().out
    assert "probe: 2 examples" in out
    assert "same top-1" in out
    assert "±" in out
    rows = json.loads((tmp_path / "q.json").read_text())
    assert [row["name"] for row in rows] == ["float32", "int8"]
    assert vl_app.run([*line, "--only", "int4"]) == 2
