"""Rows of several settings in one output: what `mix` let in is known to every later run, whatever ended the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from vl.errors import InputError
from vl.jobs import JobError, Row, Tally, caption_images, open_rows

from .fakes import FakeModel

OUTPUTS = ["out.jsonl", "out.parquet", "out.wds", *(f"memory://mix/out.{kind}" for kind in ("jsonl", "parquet", "wds"))]
FIRST, SECOND = {"max_new_tokens": 16}, {"max_new_tokens": 32}


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    fs = fsspec.filesystem("memory")
    if fs.exists("/mix"):
        fs.rm("/mix", recursive=True)
    paths = [tmp_path / f"{width}.png" for width in range(1, 7)]
    for width, path in enumerate(paths, 1):
        Image.new("RGB", (width, 5)).save(path)
    return paths


def caption(images: list[Path], out: str, tmp_path: Path, ends_after: int = 0, **options: Any) -> Any:
    """A job that is ended when so many rows are safe, as if by Ctrl-C."""

    def ended(row: Row, tally: Tally) -> None:
        if tally.images == ends_after:
            raise KeyboardInterrupt

    def trouble(size: str) -> None:
        if size == "2 by 5" and not options.get("retry_errors"):
            raise InputError("no luck")

    place = out if "://" in out else tmp_path / out
    return caption_images(FakeModel(trouble), images, place, batch_size=1, on_row=ended, **options)


def refused(images: list[Path], out: str, tmp_path: Path, **how: Any) -> None:
    """Both settings, by a run that does not say `mix`."""
    for settings, message in ((FIRST, "32, not 16"), (SECOND, "16, not 32")):
        with pytest.raises(JobError, match=f"max_new_tokens {message}.*--mix"):
            caption(images, out, tmp_path, **settings, **how)


@pytest.mark.parametrize("out", OUTPUTS)
@pytest.mark.parametrize("ends", [(2, 1), (2, 0), (0, 1)])
def test_a_third_run_finds_both_settings(images: list[Path], tmp_path: Path, out: str, ends: tuple[int, int]) -> None:
    """Whichever of the first two was ended, and by which of them a part was written."""
    for ends_after, settings, some in zip(ends, (FIRST, SECOND), (images[:4], images), strict=True):
        try:
            caption(some, out, tmp_path, ends_after, mix=True, **settings)
        except KeyboardInterrupt:
            assert ends_after
    refused(images, out, tmp_path)
    caption(images, out, tmp_path, mix=True, **SECOND)
    refused(images, out, tmp_path)
    assert caption(images, out, tmp_path, mix=True, **FIRST).skipped == 6
    caption(images, out, tmp_path, overwrite=True, **SECOND)
    assert caption(images, out, tmp_path, **SECOND).skipped == 6


@pytest.mark.parametrize("prompt", ["Look.", {"short": "Look.", "long": "Look well."}])
@pytest.mark.parametrize("out", [out for out in OUTPUTS if "://" in out])
def test_parts_of_a_bucket_without_their_index_say_what_they_were_made_with(
    images: list[Path], tmp_path: Path, out: str, prompt: Any
) -> None:
    """As a kill between the two leaves them."""
    how = {"prompt": prompt}
    caption(images[:4], out, tmp_path, **FIRST, **how)
    caption(images, out, tmp_path, mix=True, **SECOND, **how)
    fs, index = fsspec.filesystem("memory"), f"{out.removeprefix('memory:/')}/_index"
    for path in fs.ls(index, detail=False):
        content = fs.cat(path)
        fs.rm(path)
        with pytest.raises(JobError, match=r"max_new_tokens .*--mix"):
            caption(images, out, tmp_path, **how, **(FIRST if path.endswith("1") else SECOND))
        head, _, body = content.partition(b"\n")
        (made,) = json.loads(head)
        fs.pipe(path, json.dumps(made).encode() + b"\n" + body)  # as earlier versions have it
    refused(images, out, tmp_path, **how)
    with pytest.raises(JobError, match="prompt"):
        caption(images, out, tmp_path, prompt={"other": "Look."}, **FIRST)


@pytest.mark.parametrize("out", OUTPUTS)
def test_rows_beside_one_that_was_tried_again_keep_their_settings(images: list[Path], tmp_path: Path, out: str) -> None:
    caption(images, out, tmp_path, **FIRST)
    assert caption(images, out, tmp_path, mix=True, retry_errors=True, **SECOND).captions == 1
    refused(images, out, tmp_path)


def test_shards_without_their_index_say_whether_they_have_images(images: list[Path], tmp_path: Path) -> None:
    out = "memory://mix/out.wds"
    caption(images, out, tmp_path, **FIRST)
    fsspec.filesystem("memory").rm("/mix/out.wds/_index", recursive=True)
    job = {"model": "fake", "prompt": "Describe this image."}
    with pytest.raises(JobError, match="leave --no-images out"), open_rows(out, images=False, **job):
        pass
    with open_rows(out, **job) as rows:
        assert rows.rows == 6
