"""The photographs of the list are found in their collections, reduced, and called by names of their own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from vl.nano import prepare_photographs
from vl.nano.pictures.cutouts import WHOLE, thing_list
from vl.nano.prepare_photographs import name_of, photograph_list, prepare


def test_no_two_have_a_name_and_none_is_of_a_thing() -> None:
    names = Counter(name_of(one).lower() for one in photograph_list())
    assert [name for name, count in names.items() if count > 1] == []
    things = {thing.name for thing in thing_list()}
    shown = {picture.split(":")[1] for thing in thing_list() for picture in thing.pictures if picture.startswith(WHOLE)}
    for one in photograph_list():
        assert "".join(filter(str.isalpha, name_of(one).removesuffix(".jpg").lower())) not in things
        assert one.split(":")[1] not in shown


def test_a_wallpaper_is_found_reduced_and_called_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "Dunes" / "contents" / "images" / "1200x600.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (1200, 600), (200, 160, 90)).save(path)
    listed = ("wallpapers:Dunes/contents/images/1200x600", "backgrounds:Bridge", "gcompris:erase/alpaca")
    monkeypatch.setattr(prepare_photographs, "photograph_list", lambda: listed)
    counts = prepare(tmp_path / "out", {"wallpapers": tmp_path, "backgrounds": tmp_path})
    assert counts == {"wallpapers": 1, "backgrounds missing": 1, "gcompris missing": 1}
    (made,) = (tmp_path / "out").iterdir()
    with Image.open(made) as image:
        assert (made.name, image.size) == ("Dunes.jpg", (512, 256))
