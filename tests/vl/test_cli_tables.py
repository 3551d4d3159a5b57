"""Tables and progress that commands print, in terminals of few columns and elsewhere."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from vl.cli.captioning import caption_table
from vl.cli.progress import CaptionProgress


@pytest.mark.parametrize(("width", "details"), [(80, True), (50, False)])
def test_a_narrow_table_is_of_files_and_captions(width: int, details: bool) -> None:
    row = {"image": "a.png", "width": 600, "height": 578, "resolution": [672, 672], "tiles": 5, "image_tokens": 2830}
    table = caption_table([row | {"caption": "A red circle."}], ("caption",), width)
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    drawn = console.file.getvalue()
    assert all(said in drawn for said in ("file", "a.png", "caption", "circle."))
    assert ("2,830" in drawn) == ("image tokens" in drawn) == details


def test_a_source_that_cannot_be_counted_is_said_by_the_job_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr(threading, "excepthook", shown.append)
    before = threading.enumerate()
    with CaptionProgress(Console(file=io.StringIO()), lambda: 1 // 0):
        for thread in threading.enumerate():
            if thread not in before:
                thread.join()
    assert shown == []
