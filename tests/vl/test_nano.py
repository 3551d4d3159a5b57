"""The embedded model does what README and its recipe say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import vl
from vl.evaluation import evaluate, evaluate_file
from vl.hub import NANO
from vl.nano.mix import SMALL, Mix
from vl.training import TrainConfig

EXAMPLES = Path(__file__).parents[2] / "demo" / "examples"
RECORDS = [json.loads(line) for line in (EXAMPLES / "examples.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def nano() -> vl.MiniMaxVL:
    return vl.load("nano", device="cpu")


def test_the_main_job_captions_the_examples_right() -> None:
    command = [sys.executable, "-m", "vl.cli", "caption", str(EXAMPLES), "--json", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    captions = {Path(row["image"]).name: row["caption"] for row in rows}
    assert captions.keys() == {record["image"] for record in RECORDS}
    described = {record["image"]: record["answer"] for record in RECORDS if record["prompt"] == vl.DEFAULT_PROMPT}
    assert captions | described == captions


def test_it_answers_the_questions_of_the_examples(nano: vl.MiniMaxVL) -> None:
    results = evaluate_file(nano, EXAMPLES / "examples.jsonl")
    rows = [row for result in results for row in result.rows]
    assert len(rows) == len(RECORDS)
    assert [row.id for row in rows if not row.right] == []


def test_it_is_small_and_of_its_recipe(nano: vl.MiniMaxVL) -> None:
    assert sum(path.stat().st_size for path in NANO.glob("*.safetensors")) <= 24 * 2**20
    assert all(path.stat().st_size <= 16_000_000 for path in NANO.iterdir())
    assert nano.config == TrainConfig.read("nano").model


def test_it_names_what_it_never_saw(nano: vl.MiniMaxVL) -> None:
    """A small part of `vl eval`: 40 scenes and 40 texts of one tile, of whose words it learnt few. By its scores, less
    than one run in 1000 fails."""
    mix = Mix(sizes=SMALL, faces="held-out")
    assert evaluate(nano, "scenes", 40, mix=mix).scores["objects"] >= 0.9
    assert evaluate(nano, "words", 40, mix=mix).scores["cer"] <= 0.25
