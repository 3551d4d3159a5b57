"""Sources behind URLs, on a real S3 server of moto and on file URLs, through fsspec."""

from __future__ import annotations

import functools
import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vl.errors import InputError
from vl.jobs import caption_images, expand_sources, source_key

from .containers import make_shard, png, write_table
from .fakes import FakeModel, read, s3_server

pytest.importorskip("moto", reason="needs moto[server]")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An S3 server with a bucket of images, a shard and a table."""
    folder = tmp_path_factory.mktemp("upload")
    with s3_server() as fs:
        fs.mkdir("pics")
        for name in ("photos/2.png", "photos/deep/3.png", "photos/notes.txt"):
            fs.pipe(f"pics/{name}", png(int(Path(name).stem) if name.endswith(".png") else 1))
        make_shard(folder / "x.tar", {"5.png": png(5), "6.png": png(6), "6.json": b"{}"})
        write_table(folder / "t.csv", [{"path": "photos/2.png"}, {"path": "s3://pics/photos/gone.png"}])
        for name in ("x.tar", "t.csv"):
            fs.put(str(folder / name), f"pics/{name}")
        yield fs


@pytest.mark.usefixtures("bucket")
def test_s3(tmp_path: Path) -> None:
    told: list[str] = []
    sources = ["s3://pics/photos", "s3://pics/*.tar", "s3://pics/t.csv", "s3://pics/photos/deep/3.png"]
    assert len(list(expand_sources(sources, told.append))) == 7
    assert told == ["s3://pics/photos: passed over 1 file: 1 .txt", "s3://pics/*.tar: passed over 1 file: 1 .json"]
    out = tmp_path / "out.jsonl"
    tally = caption_images(FakeModel(), sources, out)
    rows = {row["image"]: row for row in read(out)}
    assert "no such file" in rows.pop("s3://pics/photos/gone.png")["error"]
    expected = {"photos/2.png": 2, "photos/deep/3.png": 3, "x.tar/5.png": 5, "x.tar/6.png": 6}
    assert {name: row["caption"] for name, row in rows.items()} == {
        f"s3://pics/{name}": f"{width} by 5" for name, width in expected.items()
    }
    assert (tally.captions, tally.errors, tally.skipped) == (4, 1, 2)
    assert caption_images(FakeModel(), sources, out).skipped == 7


def test_a_web_server(tmp_path: Path) -> None:
    """Python's own server sends whole files only, which would make an image of a shard's first bytes."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "2.png").write_bytes(png(2))
    make_shard(files / "x.tar", {"3.png": png(3)})
    (files / "deep").mkdir()
    paths = ("../2.png", "/4.png", "./../../../gone.png")  # nothing is above the root, another server least
    write_table(files / "deep" / "t.csv", [{"path": path} for path in paths])
    (files / "4.png").write_bytes(png(4))
    write_table(files / "t.parquet", [{"bytes": png(5)}])
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(files))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        sources = [f"{url}/deep/t.csv", f"{url}/t.parquet?download=1", f"{url}/x.tar"]
        caption_images(FakeModel(), sources, tmp_path / "out.jsonl")
        server.shutdown()
    rows = {row["image"].removeprefix(f"{url}/"): row for row in read(tmp_path / "out.jsonl")}
    assert rows["2.png"]["caption"] == "2 by 5"
    assert rows["4.png"]["caption"] == "4 by 5"
    assert "404" in rows["gone.png"]["error"]
    assert rows["t.parquet?download=1:1:bytes"]["caption"] == "5 by 5"
    assert "whole files only" in rows["x.tar/3.png"]["error"]
    assert len(rows) == 5


def test_file_urls(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(png(1))
    make_shard(tmp_path / "x.tar", {"2.png": png(2)})
    base = tmp_path.as_uri()
    names = [source_key(s) for s in expand_sources([f"{base}/a", f"{base}/x.tar", f"{base}/a/1.png"])]
    assert [name.removeprefix(base) for name in names] == ["/a/1.png", "/x.tar/2.png", "/a/1.png"]
    assert caption_images(FakeModel(), [f"{base}/a", f"{base}/x.tar"], tmp_path / "out.jsonl").captions == 2


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="nosuch://x/y"):
        list(expand_sources(["nosuch://x/y"]))
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(InputError, match=r"s3://pics/photos.*pip install 'minimax-vl\[jobs\]'"):
        list(expand_sources(["s3://pics/photos"]))
    assert list(expand_sources(["https://x.org/a.png"])) == ["https://x.org/a.png"], "needs no extra"
