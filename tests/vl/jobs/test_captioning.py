"""Captioning jobs: a row for every source exactly once, and what a row holds."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import vl
from preprocessing import Inputs, Patcher
from vl.errors import DeviceError, InputError
from vl.jobs import Picture, caption_images, caption_rows, expand_sources

from .fakes import FakeModel, FakeProcessor, assert_complete, read, run


def test_rows(archive: Path, tmp_path: Path) -> None:
    seen = []
    tally = run(archive, tmp_path / "new" / "out.jsonl", on_row=lambda row, tally: seen.append(row))
    rows = read(tmp_path / "new" / "out.jsonl")
    assert seen == rows
    assert_complete(archive, tmp_path / "new" / "out.jsonl")
    assert (tally.captions, tally.errors, tally.skipped) == (12, 1, 0)
    good = rows[0]
    assert good == {
        "image": str(archive / "shelf0" / "03.png"),
        "caption": "3 by 5",
        "digest": hashlib.blake2b((archive / "shelf0" / "03.png").read_bytes(), digest_size=16).hexdigest(),
        "width": 3,
        "height": 5,
        "resolution": list(Patcher().resolution(3, 5)),
        "tiles": Patcher().grid(3, 5).tiles,
        "prompt_tokens": 7,
        "image_tokens": 3,
        "completion_tokens": 1,
        "finish_reason": "stop",
        "seconds": 0.5,
        "model": "fake",
        "prompt": "Describe this image.",
        "settings": {
            "max_new_tokens": 256,
            "temperature": 0.0,
            "top_p": 1.0,
            "top_k": 0,
            "seed": None,
            "stop": [],
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logit_bias": None,
            "response_format": None,
            "background": None,
            "dtype": "float32",
            "quantization": None,
            "control_tokens_in_text": False,
        },
    }
    bad = next(row for row in rows if "error" in row)
    assert set(bad) == set(good) - {"caption"} | {"error"}
    assert bad["width"] is None


def test_settings_are_json_also_of_a_bias(archive: Path, tmp_path: Path) -> None:
    run(archive, tmp_path / "out.jsonl", logit_bias={5: 2})
    assert {json.dumps(row["settings"]["logit_bias"]) for row in read(tmp_path / "out.jsonl")} == {'{"5": 2.0}'}
    assert run(archive, tmp_path / "out.jsonl", logit_bias={5: 2}).skipped == 13
    with pytest.raises(vl.Error, match="logit_bias"):
        run(archive, tmp_path / "out.jsonl", logit_bias={5: 3})


def test_duplicates_are_one_row(archive: Path, tmp_path: Path) -> None:
    path = archive / "shelf0" / "03.png"
    twice = [path, f"{archive}//shelf0/./03.png", archive / "shelf0"]
    tally = caption_images(FakeModel(), twice, tmp_path / "out.jsonl", batch_size=2)
    rows = read(tmp_path / "out.jsonl")
    assert [row["image"] for row in rows] == [str(archive / "shelf0" / f"{n:02}.png") for n in (3, 6, 9, 12)]
    assert tally.skipped == 2


def test_an_answer_that_fails_costs_its_row(archive: Path, tmp_path: Path) -> None:
    def trouble(size: str) -> None:
        if size == "6 by 5":
            raise DeviceError("too large")

    run(archive, tmp_path / "out.jsonl", FakeModel(trouble))
    rows = read(tmp_path / "out.jsonl")
    errors = {Path(row["image"]).name: row["error"] for row in rows if "error" in row}
    assert set(errors) == {"06.png", "broken.jpg"}
    assert errors["06.png"] == "too large"
    assert len(rows) == 13


def test_a_bug_while_generating_stops_the_job_with_what_is_done(archive: Path, tmp_path: Path) -> None:
    answered = threading.Semaphore(0)

    def trouble(size: str) -> None:
        if size == "11 by 5":  # the last of 13
            raise AssertionError("a bug")
        answered.release()

    class Late(FakeProcessor):
        """The last image comes once the other eleven are answered."""

        def __call__(self, messages: Any) -> Inputs:
            inputs = super().__call__(messages)
            if inputs.grids[0].width == 11:
                assert all(answered.acquire(timeout=120) for _ in range(11))
            return inputs

    model, out = FakeModel(trouble), tmp_path / "out.jsonl"
    model.processor = Late()
    with pytest.raises(AssertionError, match="a bug"):
        run(archive, out, model, batch_size=3)
    names = [row["image"] for row in read(out)]
    assert names == list(expand_sources([archive]))[: len(names)]
    assert len(names) >= 6, "rows go by threes, and broken.jpg, the ninth, may take longer than what follows it"
    run(archive, out)
    assert_complete(archive, out)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (9, 4)).save(tmp_path / "ok.png")
    os.rename(tmp_path / "ok.png", tmp_path / name)
    out = tmp_path / "out.jsonl"
    assert caption_images(FakeModel(), [tmp_path], out).captions == 1
    assert caption_images(FakeModel(), [tmp_path], out).skipped == 1
    assert read(out)[0]["image"] == str(tmp_path / name)


def test_memory_is_bounded(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of sources is read two batches ahead of what waits for an earlier one, which is so much at most."""
    monkeypatch.setattr("vl.jobs.pipeline._WAITING", 9)
    taken = 0

    def endless() -> Iterator[Picture]:
        nonlocal taken
        while True:
            taken += 1
            content = (archive / "shelf0" / "03.png").read_bytes() + b"%d" % taken
            yield Picture(f"{taken}.png", partial(bytes, content))

    batches = caption_rows(FakeModel(), endless(), batch_size=3)  # type: ignore[arg-type]
    for done in range(1, 6):
        assert len(next(batches)) == 3
        assert taken <= 3 * done + 9 + 2 * 3 + 1


def test_unusable_models_and_options_are_errors_of_the_job(archive: Path, tmp_path: Path) -> None:
    text_only = FakeModel()
    text_only.config = SimpleNamespace(vision=None, quantization=None)
    with pytest.raises(InputError, match="text-only"):
        run(archive, tmp_path / "out.jsonl", text_only)
    with pytest.raises(InputError, match="temperature"):
        run(archive, tmp_path / "out.jsonl", temperature=-1.0)
    with pytest.raises(InputError, match="logprobs is not for captioning jobs"):
        caption_rows(FakeModel(), [], logprobs=True)
    with pytest.raises(InputError, match="n is not for captioning jobs"):
        run(archive, tmp_path / "out.jsonl", n=2)
    with pytest.raises(InputError, match="batch_size"):
        run(archive, tmp_path / "out.jsonl", batch_size=0)


def test_a_single_source_stands_by_itself(archive: Path, tmp_path: Path) -> None:
    """The letters of its name are no sources, "/" least of all, which is a folder of much."""
    for n, source in enumerate((archive, f"{archive}/")):
        assert caption_images(FakeModel(), source, tmp_path / f"{n}.jsonl").images == 13
    (first, *_) = expand_sources(archive)
    assert [row["image"] for rows in caption_rows(FakeModel(), str(first)) for row in rows] == [first]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sources": [5]}, "a source must be a path, URL or pattern, not int"),
        ({"sources": [b"a.png"]}, "not bytes: images that are in memory"),
        ({"sources": ["a.png", None]}, "not NoneType"),
        ({"model": "nano"}, r"not the name of one: vl.load\('nano'\)"),
        ({"out": None}, "out must be a path"),
        ({"beside": "append"}, "vl.jobs.Beside"),
        ({"batch_size": "8"}, "batch_size must be a whole number, at least 1, not '8'"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"workers": "all"}, "workers must be a whole number"),
    ],
)
def test_arguments_of_a_wrong_type_are_named(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"model": FakeModel(), "sources": [], "out": tmp_path / "out.jsonl"} | wrong
    with pytest.raises(InputError, match=message):
        caption_images(**arguments)
