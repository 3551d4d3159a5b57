"""Images cut by processes: the same rows, whatever ends one of them."""

from __future__ import annotations

import os
import pickle
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vl
from preprocessing import alpha
from vl.errors import ImageError
from vl.jobs import caption_images, caption_rows, cutting
from vl.jobs.cutting import Cutters, default_workers
from vl.jobs.item import ask_here
from vl.jobs.sources.names import Picture, held

from .fakes import read


@pytest.fixture
def cutters(tiny_model: vl.MiniMaxVL) -> Cutters:
    """One, which has started."""
    found = Cutters.of(tiny_model, 1)
    cutter = found._free.get()
    assert cutter.is_ready(120.0)
    found._free.put(cutter)
    return found


def elsewhere(*given: Any) -> Any:
    raise AssertionError("it is for a process to do")


def test_rows_are_those_of_threads(
    archive: Path, tiny_model: vl.MiniMaxVL, cutters: Cutters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"prompt": {"a": "Colours?", "b": "Shapes?"}, "max_new_tokens": 3, "batch_size": 3}
    caption_images(tiny_model, [archive], tmp_path / "here.jsonl", workers=0, **options)
    monkeypatch.setattr(cutting, "ask_here", elsewhere)
    caption_images(tiny_model, [archive], tmp_path / "there.jsonl", workers=1, **options)
    here, there = ([row | {"seconds": None} for row in read(tmp_path / name)] for name in ("here.jsonl", "there.jsonl"))
    assert here == there
    assert sum("error" in row for row in here) == 1
    assert Cutters.of(tiny_model, 1) is cutters, "they are kept for the model's next job"


def test_until_they_have_started_it_is_done_here(archive: Path, tiny_model: vl.MiniMaxVL) -> None:
    picture = next(iter(sorted(archive.glob("**/[0-9]*.png"))))
    (made,), row = Cutters(pickle.dumps(tiny_model.processor), 1)(str(picture), ["Colours?"])
    (expected,), known = ask_here(tiny_model.processor, str(picture), ["Colours?"])
    assert torch.equal(made.tiles[:], expected.tiles[:])
    assert (made.input_ids.tolist(), made.grids, row) == (expected.input_ids.tolist(), expected.grids, known)


def test_one_that_was_started_ahead_is_used(archive: Path, tiny_model: vl.MiniMaxVL) -> None:
    cutting.start_ahead(1)
    (started,) = cutting._ahead
    cutter = Cutters(pickle.dumps(tiny_model.processor), 1)._free.get()
    assert (cutter._child, cutting._ahead) == (started.child, [])
    assert cutter.is_ready(120.0)
    picture = next(iter(sorted(archive.glob("**/[0-9]*.png"))))
    (made,), _ = cutter(str(picture), ["Colours?"])
    (expected,), _ = ask_here(tiny_model.processor, str(picture), ["Colours?"])
    assert torch.equal(made.tiles[:], expected.tiles[:])
    digests = [each.tiles.cut(0).digest for each in (made, expected)]
    assert digests[0] == digests[1], "which the engine need not make again"


def test_an_image_that_ends_a_process_is_tried_once_more(archive: Path, cutters: Cutters, tmp_path: Path) -> None:
    picture, mark = next(iter(sorted(archive.glob("**/[0-9]*.png")))), tmp_path / "seen"
    code = "__import__('pathlib').Path({!r})"
    first = f"({code.format(str(mark))}.mkdir(), __import__('os').abort())"
    look = f"{code.format(str(picture))}.read_bytes() if {code.format(str(mark))}.exists() else {first}"
    inputs, row = cutters(Picture("unlucky", partial(eval, look)), ["Colours?"])
    assert (len(inputs), row["tiles"]) == (1, 2)
    with pytest.raises(ImageError, match=r"^deadly: the process that decoded it was killed \(SIGABRT\).* second try"):
        cutters(Picture("deadly", os.abort), ["Colours?"])
    assert cutters(held("fine", picture.read_bytes()), ["Colours?"])[1] == row


def test_one_that_ended_between_images_costs_none(archive: Path, cutters: Cutters) -> None:
    picture = next(iter(sorted(archive.glob("**/[0-9]*.png"))))
    cutter = cutters._free.get()
    ended = cutter._child.process
    os.kill(ended.pid, signal.SIGKILL)
    ended.wait()
    assert cutter(str(picture), ["Colours?"])[1]["tiles"] == 2
    assert cutter._child.process is not ended
    cutters._free.put(cutter)


def test_what_a_process_warns_of_is_said_here(
    cutters: Cutters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alpha, "_said", False)
    path = tmp_path / "clear.png"
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(path)
    with pytest.warns(UserWarning, match=r"clear\.png is partly transparent"):
        cutters(str(path), ["Colours?"])


def test_a_model_on_the_cpu_keeps_the_cores() -> None:
    assert default_workers(torch.device("cpu")) == 0
    assert default_workers(torch.device("cuda")) <= cutting.MOST


def test_bad_images_are_rows(tiny_model: vl.MiniMaxVL, cutters: Cutters, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    (((row,),)) = caption_rows(tiny_model, [str(tmp_path / "bad.png")], workers=1)
    ((expected,),) = caption_rows(tiny_model, [str(tmp_path / "bad.png")], workers=0)
    assert row == expected
    assert "bad.png" in row["error"]
