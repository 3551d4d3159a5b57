"""`vl bench long`: its figures are there, are of what they say they are, and can be shown beside earlier ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vl
import vl.cli.app as vl_app
from vl.bench import long
from vl.bench.long import LayerTimes, LongRow, bench_long
from vl.bench.records import Ceilings, Setting
from vl.cli.long import read_lengths
from vl.engine import Reading

SETTING = Setting(torch.device("cpu"), small=True, quick=True)
MACHINE = Ceilings(bandwidth=1e10, rate=1e10)


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are interpreted here."""
    monkeypatch.setattr(long, "WRITTEN", 3)


@pytest.mark.parametrize("attention", ["hybrid", "softmax"])
def test_every_length_is_read_and_written_after(attention: str) -> None:
    told: list[Reading] = []
    lengths = (48, 20)
    rows = list(bench_long(SETTING, MACHINE, lengths, attention=attention, prefill_tokens=16, progress=told.append))
    assert [row.tokens for row in rows] == [20, 48]
    kinds = {"hybrid": {"lightning", "softmax", "experts"}, "softmax": {"softmax", "experts"}}[attention]
    for row in rows:
        assert row.kinds.keys() == kinds
        assert 0 < sum(row.kinds.values()) < row.seconds
        assert row.of_floor > 0
        assert row.rate == pytest.approx(row.tokens / row.seconds)
        assert 0 < row.decode < 32 * row.seconds
        assert LongRow.of_json(json.loads(json.dumps(row.as_json()))) == row
    assert [reading.tokens for reading in told if reading.total == 48][-3:] == [16, 32, 48]


def test_the_cache_of_a_prompt_is_what_holds_it() -> None:
    """Of the scaled slice: 2 key/value heads of 32, and states of 4 heads of 32 x 32, all float32."""
    row = next(bench_long(SETTING, MACHINE, [300], prefill_tokens=150))
    states, pages = 7 * 4 * 32 * 32 * 4, 2
    assert row.cache == states + 2 * pages * 256 * 2 * 32 * 4 + 4 * pages


def test_steps_of_writing_are_not_timed(tiny_checkpoint: Path) -> None:
    tiny_model = vl.load(tiny_checkpoint, device="cpu", prefix_memory=0)
    times = LayerTimes(tiny_model.language_model, torch.device("cpu"))
    tiny_model.generate([[{"role": "user", "content": "Hello"}]], max_new_tokens=1)
    once = len(times._watches)
    times.clear()
    assert times.seconds() == {}
    tiny_model.generate([[{"role": "user", "content": "Hello"}]], max_new_tokens=4)
    assert len(times._watches) == once == 2 * 8


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, chart = tmp_path / "figures.json", tmp_path / "chart.png"
    command = ["bench", "long", "--device", "cpu", "--lengths", "24,40"]
    assert vl_app.run([*command, "--json", str(file)]) == 0
    assert capsys.readouterr().out.count("hybrid") == 2
    assert [row["tokens"] for row in json.loads(file.read_text())] == [24, 40]
    more = ["--attention", "softmax", "--beside", str(file), "--plot", str(chart)]
    assert vl_app.run([*command, *more]) == 0
    out = capsys.readouterr().out
    assert (out.count("hybrid"), out.count("softmax  ")) == (2, 2)
    assert chart.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--lengths", "8K,x"], "X is no length"),
        (["--lengths", "0"], "0 is no length"),
        (["--lengths", ""], "nothing is no length"),
        (["--beside", "nowhere.json"], "holds no figures"),
        (["--json", "/nowhere/figures.json"], "there is no folder /nowhere"),
    ],
)
def test_bad_options_are_said_before_anything_is_measured(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vl_app.run(["bench", "long", "--device", "cpu", *options]) == 2
    assert told in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_lengths() -> None:
    assert read_lengths("8192, 32k,1M") == (8192, 32768, 1048576)
