"""Running a job again: what is done is kept, what another run made is refused, a damaged file is not cut."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from vl.engine import SamplingParams
from vl.errors import InputError
from vl.jobs import JobError, RowFile, caption_images

from .fakes import FakeModel, assert_complete, read, run


def test_a_second_run_does_nothing(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(archive, out)
    before = out.read_bytes()
    model = FakeModel()
    tally = run(archive, out, model)
    assert (tally.images, tally.skipped, model.processor.prepared) == (0, 13, 0)
    assert out.read_bytes() == before


def test_retry_keeps_rows_that_were_not_asked_for(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    missing = tmp_path / "later.png"
    caption_images(FakeModel(), [missing, archive / "shelf1"], out)
    Image.new("RGB", (30, 20)).save(missing)
    out.chmod(0o640)
    tally = caption_images(FakeModel(), [missing], out, retry_errors=True)
    assert (tally.captions, tally.errors) == (1, 0)
    rows = {row["image"]: row for row in read(out)}
    assert len(rows) == len(read(out)) == 6
    assert rows[str(missing)]["caption"] == "30 by 20"
    assert "error" in rows[str(archive / "shelf1" / "broken.jpg")]
    assert out.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path).count("out.jsonl.tmp") == 0


@pytest.mark.parametrize("end", [b'{"image": "a.png", "capt', b'{"im', b"\0" * 50, b'{"image": "a\n', b"{"])
def test_a_torn_end_is_dropped(archive: Path, tmp_path: Path, end: bytes) -> None:
    out = tmp_path / "out.jsonl"
    run(archive / "shelf0", out)
    out.write_bytes(out.read_bytes() + end)
    run(archive, out)
    assert_complete(archive, out)


def test_a_whole_row_without_its_newline_is_torn(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(archive, out)
    out.write_bytes(out.read_bytes()[:-1])
    run(archive, out)
    assert_complete(archive, out)


def test_damage_inside_is_not_cut(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(archive, out)
    lines = out.read_bytes().splitlines(keepends=True)
    content = lines[0] + b'{"image": "half\n' + lines[1]
    out.write_bytes(content)
    with pytest.raises(JobError, match=f"byte {len(lines[0])}"):
        run(archive, out)
    assert out.read_bytes() == content


def test_another_prompt_or_model_is_refused(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(archive, out)
    before = out.read_bytes()
    with pytest.raises(JobError, match=r"prompt 'Describe this image\.', not 'Colours\?'.*--overwrite"):
        run(archive, out, prompt="Colours?")
    other = FakeModel()
    other.name = "other"
    with pytest.raises(JobError, match="model 'fake', not 'other'"):
        run(archive, out, other)
    assert out.read_bytes() == before
    run(archive, out, prompt="Colours?", overwrite=True)
    assert {row["prompt"] for row in read(out)} == {"Colours?"}
    assert_complete(archive, out)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_new_tokens": 16}, "max_new_tokens 256, not 16"),
        ({"temperature": 0.5}, r"temperature 0\.0, not 0\.5"),
        ({"top_p": 0.9}, r"top_p 1\.0, not 0\.9"),
        ({"top_k": 3}, "top_k 0, not 3"),
        ({"seed": 1}, "seed None, not 1"),
        ({"stop": "."}, r"stop \[\], not \['\.'\]"),
    ],
)
def test_other_sampling_is_another_run(archive: Path, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    out = tmp_path / "out.jsonl"
    run(archive, out)
    before = out.read_bytes()
    with pytest.raises(JobError, match=f"{message}.*--overwrite"):
        run(archive, out, **changed)
    assert out.read_bytes() == before
    run(archive, out, temperature=0, max_new_tokens=256)  # the same, spelled out
    assert out.read_bytes() == before
    run(archive, out, overwrite=True, **changed)
    run(archive, out, **changed)
    assert_complete(archive, out)


def test_another_background_is_another_run(archive: Path, tmp_path: Path) -> None:
    out, white = tmp_path / "out.jsonl", FakeModel()
    white.processor.background = (255, 255, 255)  # type: ignore[assignment]
    run(archive, out, white)
    assert {row["settings"]["background"] for row in read(out)} == {"#ffffff"}
    with pytest.raises(JobError, match="background '#ffffff', not None"):
        run(archive, out)
    white.processor.background = "white"  # type: ignore[assignment]
    assert run(archive, out, white).skipped == 13


def test_weights_held_otherwise_are_another_run(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(archive, out)
    half, quantised, open_door = FakeModel(), FakeModel(), FakeModel()
    half.dtype = torch.bfloat16
    quantised.config = SimpleNamespace(vision=object(), quantization="nf4")
    open_door.processor.control_tokens_in_text = True
    for model, message in (
        (half, "dtype 'float32', not 'bfloat16'"),
        (quantised, "quantization None, not 'nf4'"),
        (open_door, "control_tokens_in_text False, not True"),
    ):
        with pytest.raises(JobError, match=f"{message}.*--overwrite"):
            run(archive, out, model)
    assert run(archive, out).skipped == 13


def test_a_model_that_was_trained_on_is_another(archive: Path, tmp_path: Path) -> None:
    out, trained = tmp_path / "out.parquet", FakeModel()
    trained.fingerprint = "b"
    with_rows = FakeModel()
    with_rows.fingerprint = "a"
    run(archive / "shelf0", out, with_rows)
    with pytest.raises(JobError, match=r"weights 'a', not 'b'.*--mix.*--overwrite"):
        run(archive, out, trained)
    assert run(archive, out, with_rows).skipped == 4
    assert run(archive, out, trained, mix=True).skipped == 13


def test_rows_of_earlier_versions_are_continued(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(archive / "shelf0", out)
    rows = [{key: value for key, value in row.items() if key != "settings"} for row in read(out)]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(archive, out).skipped == len(rows)
    assert_complete(archive, out)


def test_overwrite_cuts_nothing_before_there_are_new_rows(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(archive, out)
    before = out.read_bytes()

    def refuse(params: SamplingParams) -> None:
        raise InputError("no room")

    def interrupt(size: str) -> None:
        raise KeyboardInterrupt

    for model, options in (
        (FakeModel(), {"top_p": 0}),
        (FakeModel(), {"batch_size": 0}),
        (FakeModel(check=refuse), {}),
        (FakeModel(interrupt), {}),
    ):
        with pytest.raises((InputError, KeyboardInterrupt)):
            run(archive, out, model, overwrite=True, **options)
        assert out.read_bytes() == before
    run(archive / "shelf0", out, overwrite=True)
    assert len(read(out)) == 4
    caption_images(FakeModel(), [], out, overwrite=True)  # type: ignore[arg-type]
    assert read(out) == []


def test_two_runs_do_not_share_a_file(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with RowFile(out, model="fake", prompt="Describe this image."), pytest.raises(JobError, match="another run"):
        run(archive, out)
    run(archive, out)
    assert_complete(archive, out)
