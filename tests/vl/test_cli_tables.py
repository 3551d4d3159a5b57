"""Tables that commands print, in terminals of few columns."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from vl.cli.captioning import caption_table


@pytest.mark.parametrize(("width", "details"), [(80, True), (50, False)])
def test_a_narrow_table_is_of_files_and_captions(width: int, details: bool) -> None:
    row = {"image": "a.png", "width": 600, "height": 578, "resolution": [672, 672], "tiles": 5, "image_tokens": 2830}
    table = caption_table([row | {"caption": "A red circle."}], ("caption",), width)
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    drawn = console.file.getvalue()
    assert all(said in drawn for said in ("file", "a.png", "caption", "circle."))
    assert ("2,830" in drawn) == ("image tokens" in drawn) == details
