"""Images that come again, byte for byte: captioned once, and a row for each."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vl.errors import InputError
from vl.jobs import Prompts, caption_images, caption_rows
from vl.jobs.item import _UNKNOWN, Item
from vl.jobs.partsink import PartSink

from .containers import write_table
from .fakes import FakeModel, FakeRequest, run
from .test_prompts import found

OUTS = ["out.jsonl", "out.parquet"]


class CountingModel(FakeModel):
    """Counts what it is asked."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.asked: list[str] = []

    def submit(self, inputs: Any, params: Any) -> FakeRequest:
        request = super().submit(inputs, params)
        self.asked.append(f"{request.prompt} {request.size}")
        return request


@pytest.fixture
def copies(archive: Path, tmp_path: Path) -> Path:
    """The archive, and two more of each of its files: one beside it, one far away."""
    folder = tmp_path / "copies"
    shutil.copytree(archive, folder / "a")
    shutil.copytree(archive, folder / "z")
    for path in sorted((folder / "a").glob("*/*.*")):
        shutil.copy(path, path.with_name(f"{path.stem} copy{path.suffix}"))
    return folder


@pytest.mark.parametrize("batch_size", [1, 4, 50])
@pytest.mark.parametrize("name", OUTS)
def test_each_image_is_asked_once(
    copies: Path, tmp_path: Path, name: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PartSink, "part_rows", 5)
    model, out = CountingModel(), tmp_path / name
    tally = run(copies, out, model, batch_size=batch_size)
    assert (tally.captions, tally.errors) == (36, 3), "a row for each all the same"
    assert len(model.asked) == len(set(model.asked)) == 12
    rows = found(out)
    assert len({row["image"] for row in rows}) == 39
    assert len({row["digest"] for row in rows}) == 13
    for row in rows:
        if Path(row["image"]).name.startswith("broken"):
            assert row["image"] in row["error"], "each error names its own"
        else:
            width, height = Image.open(row["image"]).size
            assert row["caption"] == f"{width} by {height}"
            assert (row["width"], row["tiles"], row["completion_tokens"]) == (width, 2, 1)
    assert sorted(row["seconds"] for row in rows if row["caption"]) == [0.0] * 24 + [0.5] * 12


@pytest.mark.parametrize("name", [*OUTS, "out.wds"])
def test_the_next_run_knows_them(copies: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after the part that they are in was rewritten, as --retry-errors does."""
    monkeypatch.setattr(PartSink, "part_rows", 5)
    out = tmp_path / name
    run(copies / "a", out)
    run(copies / "a", out, retry_errors=True)
    model = CountingModel()
    assert run(copies / "z", out, model).captions == 12
    assert model.asked == []
    assert model.processor.prepared == 1, "the broken one: no other was decoded"


@pytest.mark.parametrize("name", OUTS)
def test_another_prompt_about_the_same_image_is_asked(tmp_path: Path, name: str) -> None:
    for file in ("a.png", "b.png"):
        Image.new("RGB", (1, 5)).save(tmp_path / file)
    for part, rows in (("t", [("a", "x"), ("a", "y"), ("b", "x")]), ("u", [("b", "y"), ("a", "z")])):
        write_table(tmp_path / f"{part}.csv", [{"path": f"{file}.png", "kind": kind} for file, kind in rows])
    model, out = CountingModel(), tmp_path / name
    for table in ("t.csv", "u.csv"):
        caption_images(model, [tmp_path / table], out, prompt={"one": "{kind}:", "two": "Not {kind}:"})
    assert sorted(model.asked) == sorted(f"{start}{kind}: 1 by 5" for kind in "xyz" for start in ("", "Not "))
    assert {(Path(row["image"]).stem, row["one"], row["two"]) for row in found(out)} == {
        (file, f"{kind}: 1 by 5", f"Not {kind}: 1 by 5") for file, kind in ("ax", "ay", "bx", "by", "az")
    }


@pytest.mark.parametrize("name", OUTS)
def test_answers_of_another_run_are_not_reused(copies: Path, tmp_path: Path, name: str) -> None:
    run(copies / "a", tmp_path / name)
    model = CountingModel()
    run(copies, tmp_path / name, model, prompt="Again:", mix=True)
    assert len(model.asked) == 12
    rows = [row for row in found(tmp_path / name) if row["image"].startswith(f"{copies}/z/") and row["caption"]]
    assert {row["caption"][:6] for row in rows} == {"Again:"}


def test_what_fails_in_the_engine_fails_for_both(copies: Path, tmp_path: Path) -> None:
    def trouble(size: str) -> None:
        if size == "6 by 5":
            raise InputError("no room")

    tally = run(copies / "a", tmp_path / "out.jsonl", CountingModel(trouble=trouble))
    errors = [row["error"] for row in found(tmp_path / "out.jsonl") if "06" in Path(row["image"]).name]
    assert (tally.errors, errors) == (4, ["no room"] * 2)


def test_an_error_that_is_a_copy_names_its_own_image() -> None:
    rows = [dict.fromkeys(("model", "prompt", "settings", *_UNKNOWN)) | {"image": name} for name in ("a.png", "b.png")]
    leader, other = (Item(row, Prompts.of("p"), inputs=[]) for row in rows)
    leader.fail(InputError("a.png: the answer was cut"))
    other.copy(leader.row)
    assert other.row["error"] == "b.png: the answer was cut"


def test_a_part_that_is_gone_costs_time_alone(copies: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "out.parquet", CountingModel()
    run(copies / "a", out)
    for part in out.glob("part-*"):
        part.write_bytes(b"damaged")
    assert run(copies / "z", out, model).captions == 12
    assert len(model.asked) == 12


def test_one_that_was_written_while_another_was_decoded(tmp_path: Path) -> None:
    for file in ("a.png", "b.png"):
        Image.new("RGB", (1, 5)).save(tmp_path / file)
    ((written,),) = caption_rows(FakeModel(), [str(tmp_path / "a.png")])
    looks, model = iter([None, written]), CountingModel()
    ((row,),) = caption_rows(model, [str(tmp_path / "b.png")], find=lambda key: next(looks))
    assert (model.asked, model.processor.prepared) == ([], 1)
    assert row == written | {"image": str(tmp_path / "b.png"), "seconds": 0.0}
