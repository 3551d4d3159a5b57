"""Engines in processes of their own: the same rows as one here, whatever ends one of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import vl
from vl.errors import ConfigError, DeviceError, InputError
from vl.jobs import caption_images
from vl.jobs.engines import Engines, engine_rows, places
from vl.jobs.recipe import Recipe
from vl.jobs.sources.names import Picture

from .fakes import read

OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "batch_size": 2}


def untimed(path: Path) -> list[dict[str, Any]]:
    """Rows by image, without what differs from run to run."""
    return sorted((row | {"seconds": None} for row in read(path)), key=lambda row: row["image"])


def test_two_engines_have_the_rows_of_one(
    archive: Path, tiny_model: vl.MiniMaxVL, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    engines = Engines(tiny_checkpoint, 2, device="cpu", background="white")
    out = tmp_path / "out.jsonl"
    tally = caption_images(engines, [archive], out, **OPTIONS)
    assert (tally.captions, tally.errors) == (12, 1)
    here = vl.load(tiny_checkpoint, device="cpu", background="white")
    caption_images(here, [archive], tmp_path / "here.jsonl", **OPTIONS)
    assert untimed(out) == untimed(tmp_path / "here.jsonl")
    assert caption_images(engines, [archive], out, **OPTIONS).skipped == 13


def test_an_engine_that_dies_ends_the_job_and_says_how(archive: Path, tiny_checkpoint: Path) -> None:
    recipe = Recipe.of(tiny_checkpoint, {}, "cpu").asking({"batch_size": 1, "max_new_tokens": 2})
    good = [str(path) for path in sorted(archive.glob("**/[0-9]*.png"))]
    sources = [*good[:3], Picture("deadly", os.abort), *good[3:]]
    with pytest.raises(DeviceError, match=r"engine 0 \(cpu\) was killed \(SIGABRT\).*the same command does the rest"):
        list(engine_rows(recipe, sources, [{"device": "cpu"}]))


def test_what_is_wrong_in_an_engine_is_said_of_it(archive: Path, tiny_checkpoint: Path) -> None:
    recipe = Recipe(str(tiny_checkpoint), {"dtype": "float32"}, None, {"prompt": 3})
    with pytest.raises(InputError, match=r"engine on cpu: prompt must be a text"):
        list(engine_rows(recipe, ["a.png"], [{"device": "cpu"}]))


def test_devices_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert places("auto") == [{"device": "cpu"}]
    assert places(2, "cpu") == [{"device": "cpu"}] * 2
    with pytest.raises(ConfigError, match="for GPUs"):
        places(2, devices=2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert places("auto") == [{"device": f"cuda:{n}"} for n in range(4)]
    assert places(2, devices=2) == [{"devices": [0, 1]}, {"devices": [2, 3]}]
    assert places("auto", devices=2) == places(2, devices=2)
    assert places(2, devices=[3, 1]) == [{"device": "cuda:3"}, {"device": "cuda:1"}]
    assert places(1, "cpu") == [{"device": "cpu"}]
    for wrong, error, message in (
        ({"engines": 3, "devices": [0, 1]}, ConfigError, "shared equally"),
        ({"engines": 0}, ConfigError, "a number from 1"),
        ({"engines": 2, "device": "cuda:1"}, ConfigError, "devices="),
        ({"engines": 2, "devices": "auto"}, ConfigError, "does not go with"),
        ({"engines": 3, "devices": 2}, DeviceError, "this host has 4"),
    ):
        with pytest.raises(error, match=message):
            places(**wrong)  # type: ignore[arg-type]
