"""Which images the sources of a job stand for, what is said of files passed over, and what rows call an image."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from vl.jobs import expand_sources, source_key


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def inside(folder: Path) -> list[str]:
    """The images of a folder, as seen from it."""
    return [os.path.relpath(name, folder) for name in expand_sources([folder])]


def test_sources(tmp_path: Path) -> None:
    make(tmp_path, "b/2.png", "b/1.JPG", "a/x.webp", "c.tiff", "notes.txt", ".hidden.png", ".git/y.png")
    url = "https://x.org/a.png?b=1"
    names = list(expand_sources([tmp_path, url, f"{tmp_path}//b/./2.png", tmp_path / "notes.txt", "nowhere.png"]))
    found = [str(tmp_path / name) for name in ("c.tiff", "a/x.webp", "b/1.JPG", "b/2.png")]
    assert names == [*found, url, str(tmp_path / "b/2.png"), str(tmp_path / "notes.txt"), "nowhere.png"]


def test_what_was_passed_over_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocessing.formats.find_spec", lambda name: None)
    make(tmp_path / "a", "1.png", "1.txt", "b/2.TXT", "b/3.heic", "b/.4.png", "Makefile", ".DS_Store")
    make(tmp_path / "clean", "1.png")
    make(tmp_path / "many", *(f"{n}.{suffix}" for n, suffix in enumerate("abcdefgh")), "x.a")
    told: list[str] = []
    sources = [tmp_path / name for name in ("a", "clean", "many", "a/1.txt")]
    assert len(list(expand_sources(sources, told.append))) == 3
    assert told == [
        f"{tmp_path}/a: passed over 6 files: 2 .txt, 2 without a suffix, 1 .heic (pip install pillow-heif), 1 hidden",
        f"{tmp_path}/many: passed over 9 files: 2 .a, 1 .b, 1 .c, 1 .d, 1 .e, 1 .f, 2 others",
    ]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    folder, store = tmp_path / "folder", tmp_path / "store"
    make(folder, "own/1.png")
    make(store, "2.png", "deep/3.png")
    links = {"linked": store, "again": store / "deep", "second": store, "a": folder / "own"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (folder / "4.png").symlink_to(store / "2.png")
    assert inside(folder) == ["4.png", "again/3.png", "linked/2.png", "own/1.png"]
    assert inside(folder / "linked") == ["2.png", "deep/3.png"], "a source may be a link itself"


def test_links_that_go_round(tmp_path: Path) -> None:
    folder, other = tmp_path / "x" / "folder", tmp_path / "other"
    make(folder, "1.png", "sub/2.png")
    make(tmp_path / "x", "beside/5.png")
    make(other, "3.png")
    for link, target in [("self", "."), ("sub/up", ".."), ("sub/above", "../.."), ("other", other), ("broken", "gone")]:
        (folder / link).symlink_to(target)
    (other / "back").symlink_to(folder)
    (other / "round").symlink_to(other)
    assert inside(folder) == ["1.png", "other/3.png", "sub/2.png"]


def test_a_link_into_a_hidden_folder_is_followed(tmp_path: Path) -> None:
    make(tmp_path, ".store/1.png")
    (tmp_path / "pictures").symlink_to(".store")
    assert inside(tmp_path) == ["pictures/1.png"]


def test_existing_names_win_and_tilde_is_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    make(tmp_path, "data:x.png", "photos[2024]/1.png", "data:photos/2.png", "home/3.png", "~here/4.png")
    sources = ["data:x.png", "photos[2024]", "data:photos", "~", "~/3.png", "~here"]
    expected = ["data:x.png", "photos[2024]/1.png", "data:photos/2.png", *[str(tmp_path / "home/3.png")] * 2]
    assert list(expand_sources(sources)) == [*expected, "~here/4.png"]
    assert source_key("data:x.png") == "data:x.png"


def test_data_have_short_distinct_names() -> None:
    for start in ("data:image/png;base64,", ""):
        a, b = (source_key(start + base64.b64encode(end.encode() * 999).decode()) for end in "xy")
        assert a != b
        assert a.startswith(f"{start or 'base64,'}sha256:")
        assert len(a) < 120
    long = "https://x.org/" + "a" * 900
    assert source_key(long) == long
    assert list(expand_sources([long, "A//B" * 20])) == [long, "A//B" * 20]
