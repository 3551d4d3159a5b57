"""A dry run against the job that follows it: the same counts and tokens, and nothing written."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from preprocessing import Patcher
from vl.cli.app import run as command
from vl.jobs import Prompts, expand_sources
from vl.jobs.estimate import Look, Looker, measure, survey
from vl.jobs.sources.names import held
from vl.jobs.sources.passed import Passed

from .fakes import FakeModel, read


def looker(prompt: Any = "What?", **options: Any) -> Looker:
    return Looker(Prompts.of(prompt), None, Patcher(), **options)


def dry(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert command(["caption", *map(str, arguments), "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, of which two are equal, a broken one, and two other files."""
    for name, size in (("a", (300, 200)), ("b", (700, 100)), ("c", (300, 201)), ("d", (1, 900))):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "copy.png").write_bytes((tmp_path / "in" / "a.png").read_bytes())
    (tmp_path / "in" / "bad.jpg").write_bytes(b"not a picture")
    (tmp_path / "in" / "notes.txt").touch()
    (tmp_path / "in" / "x.csv.bak").touch()
    return tmp_path / "in"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_says_what_the_job_then_does(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With nano, which answers two prompts of four tokens at most; then again, when all but the error are finished."""
    out, asked = tmp_path / "out.jsonl", ("--prompt", "short=What?", "--prompt", "long=Describe it at length.")
    options = (folder, "--out", out, *asked, "--max-new-tokens", "4", "--device", "cpu")
    told = dry(capsys, *options, "--sample", "1", "--batch-size", "1", "--price-per-hour", "36")
    assert not out.exists()
    assert command(["caption", *map(str, options)]) == 1
    rows = read(out)
    good = [row for row in rows if "error" not in row]
    unlike = list({row["digest"]: row for row in good}.values())
    assert (told["inputs"], told["finished"], told["due"], told["opened"]) == (6, 0, 6, 6)
    assert told["exact"]
    assert told["passed_over"] == {".txt": 1, ".bak": 1}
    assert list(told["errors"].values()) == [1]
    assert (told["compared"], told["copies"], told["captions"]) == (5, 1, len(unlike))
    assert told["tiles"] == {str(tiles): n for tiles, n in Counter(row["tiles"] for row in good).items()}
    assert told["image_tokens"] == pytest.approx(sum(row["image_tokens"] for row in good) * 4 / 5, abs=1)
    assert told["prompt_tokens"] == pytest.approx(sum(row["prompt_tokens"] for row in good) * 4 / 5, abs=1)
    assert told["most_tokens_written"] == 4 * 2 * len(unlike)
    expected = told["expected"]
    assert expected["from"]["images"] == 1
    assert expected["seconds"] == pytest.approx(6 * expected["from"]["seconds"])
    assert expected["cost"] == pytest.approx(expected["seconds"] / 100)
    before = snapshot(tmp_path)
    capsys.readouterr()
    told = dry(capsys, *options, "--sample", "0")
    assert (told["finished"], told["due"]) == (6, 0)
    told = dry(capsys, *options, "--sample", "0", "--retry-errors")
    assert (told["finished"], told["due"], list(told["errors"].values())) == (5, 1, [1])
    told = dry(capsys, *options, "--sample", "0", "--overwrite")
    assert told["due"] == 6
    other = [*map(str, options), "--top-k", "5", "--dry-run", "--sample", "0"]
    assert command(["caption", *other]) == 3, "which the job would refuse, too"
    assert snapshot(tmp_path) == before
    assert "top_k" in capsys.readouterr().err


def test_a_plan_of_a_model_that_is_not_here(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = ("--model", "MiniMax-VL-01", "--gpus", "8xH100-80GB", "--price-per-hour", "20", "--batch-size", "32")
    told = dry(capsys, folder, *how)
    source = told["expected"]["from"]
    image = sum(Patcher().grid(*size).tokens for size in ((300, 200), (300, 200), (700, 100), (300, 201), (1, 900))) / 5
    each = image / source["prefill_tokens_per_second"] + 256 / source["decode_tokens_per_second"]
    assert told["expected"]["seconds"] == pytest.approx(4 * each)
    assert told["prompt_tokens"] is None, "there is no tokenizer"
    assert command(["caption", str(folder), "--dry-run", *how]) == 0
    table = capsys.readouterr().out
    assert "predicted for 8 x H100-80GB" in table
    assert "1 .txt" in table
    for wrong in (
        ("--gpus", "9xNothing"),
        ("--gpus", "8xH200", "--sample", "3"),
        ("--report", "a.html", "--gpus", "8xH200"),
    ):
        assert command(["caption", str(folder), "--dry-run", "--model", "MiniMax-VL-01", *wrong]) == 2
    assert command(["caption", str(folder), "--sample", "3"]) == 2
    assert command(["caption", str(folder), "--dry-run", "--sample", "0", "--price-per-hour", "3"]) == 2, "of no time"


def test_a_table_has_a_prompt_for_each(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps({"image": f"in/{n}.png", "of": w}) + "\n" for n, w in (("a", "x"), ("a", "y"))))
    told = dry(capsys, table, "--prompt", "An {of}?", "--sample", "0", "--out", "memory://bucket/new.parquet")
    assert (told["inputs"], told["copies"]) == (2, 0), "with other prompts they are no copies"


def test_a_random_sample_of_many() -> None:
    """Sizes of 20,000 images by 500 headers; the last are as likely as the first, and memory is the sample's."""
    opened = 0

    def look(source: Any) -> Look:
        nonlocal opened
        opened += 1
        return Look(width=int(source.removesuffix(".png")), height=1)

    def names(count: int) -> Iterator[str]:
        return (f"{n}.png" for n in range(count))

    found = survey(names(20_000), look, headers=500, sample=7)  # type: ignore[arg-type]
    assert (found.inputs, len(found.looks), len(found.some)) == (20_000, 500, 7)
    assert not found.exact
    assert opened < 500 * 6
    assert found.mean("width") == pytest.approx(10_000, rel=0.1)
    tracemalloc.start()
    survey((held(f"{n}.png", bytes(20_000)) for n in range(2_000)), lambda _: Look(1, 1), headers=10, sample=5)  # type: ignore[arg-type]
    assert tracemalloc.get_traced_memory()[1] < 6_000_000, "images of tables are not kept"
    tracemalloc.stop()


def test_what_is_read_has_a_budget_and_names_count_once(folder: Path) -> None:
    sources = [*expand_sources([folder], total=(passed := Passed())), str(folder / "a.png")]
    found = survey(sources, looker())
    assert (found.inputs, found.again, found.compared, found.copies) == (6, 1, 5, 1)
    assert passed == {".txt": 1, ".bak": 1}
    assert {(look.width, look.height) for look in found.good} == {(300, 200), (700, 100), (300, 201), (1, 900)}
    found = survey(sources, looker(read_bytes=0))
    assert (found.compared, found.captions) == (0, 5), "copies are not known of"


def test_the_first_batch_is_not_measured(archive: Path) -> None:
    sources = [str(path) for path in sorted(archive.rglob("[0-9]*.png"))]
    measured = measure(FakeModel(), sources, Prompts.of("a"), batch_size=4)
    assert measured is not None
    assert (measured.images, measured.tokens) == (8, 1.0)
    assert measure(FakeModel(), sources[:2], Prompts.of("a"), batch_size=4).images == 2  # type: ignore[union-attr]
    assert measure(FakeModel(), [], Prompts.of("a")) is None
