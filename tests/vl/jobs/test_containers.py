"""Images inside of something else: globs and tar shards."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from vl.errors import InputError
from vl.jobs import expand_sources, source_key

from .containers import captions, make_shard, png


def test_a_shard(tmp_path: Path) -> None:
    members = {"a/1.png": png(1), "a/1.json": b"{}", "a/2.PNG": png(2), "a/._2.png": b"", "a/3.jpg": b"no picture"}
    shard = make_shard(tmp_path / "x.tar", members)
    told: list[str] = []
    assert len(list(expand_sources([shard], told.append))) == 3
    assert told == [f"{shard}: passed over 2 files: 1 .json, 1 hidden"]
    said = captions(tmp_path, shard)
    assert said.pop("x.tar/a/3.jpg").startswith(f"!{shard}/a/3.jpg: ")
    assert said == {"x.tar/a/1.png": "1 by 5", "x.tar/a/2.PNG": "2 by 5"}


def test_a_torn_shard_gives_what_is_whole_and_an_error(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "x.tar", {f"{n}.png": png(n) for n in range(1, 5)})
    shard.write_bytes(shard.read_bytes()[: 3 * 1024 + 520])  # each member is a header and a block
    said = captions(tmp_path, shard)
    assert [said.pop(f"x.tar/{n}.png") for n in (1, 2, 3)] == ["1 by 5", "2 by 5", "3 by 5"]
    assert f"{shard} ends within" in said.pop("x.tar/4.png")
    assert "not a whole tar file" in said.pop("x.tar/(the rest)")
    assert not said
    (tmp_path / "y.tar").write_bytes(b"Dear diary " * 100)
    (tmp_path / "z.tar.gz").write_bytes(b"")
    said = captions(tmp_path, tmp_path / "y.tar", tmp_path / "z.tar.gz")
    assert "not a whole tar file" in said["y.tar/(the rest)"]
    assert "unpack it" in said["z.tar.gz"]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["x.tar", "x.csv", "x.jsonl", "x.parquet"])
def test_compressed_shards_and_tables_are_named_as_such(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    """By their content, whatever they are called, and by their names."""
    suffix = {gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}[pack]
    for path in (tmp_path / name, tmp_path / f"{name}{suffix}"):
        path.write_bytes(pack(b"image\nA picture that is not there.png\n" * 50))
    said = captions(tmp_path, tmp_path / "x.*", prompt="Name it.")
    assert sorted(said) == [name, f"{name}{suffix}"]
    assert all("is compressed" in why and "unpack it" in why for why in said.values())


def test_a_compressed_table_is_one_error_where_prompts_name_columns(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(gzip.compress(b"image,kind\na.png,cat\n"))
    assert "by gzip" in captions(tmp_path, tmp_path / "x.csv", prompt="Name this {kind}.")["x.csv"]


def test_text_that_is_no_table_here_says_how_to_make_it_one(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"image": "a.png"}\n', "utf-16")
    (tmp_path / "y.csv").write_text("image;kind\na.png;cat\n")
    assert "UTF-16: save it in UTF-8" in captions(tmp_path, tmp_path / "x.jsonl")["x.jsonl"]
    with pytest.raises(InputError, match="parted by ';', and a CSV file's are by commas"):
        captions(tmp_path, tmp_path / "y.csv")


@pytest.mark.parametrize("left", [3 * 1024, 3 * 1024 + 300])
def test_a_shard_without_its_end_is_torn_wherever_it_was_cut(tmp_path: Path, left: int) -> None:
    """Between two members, and within a header."""
    shard = make_shard(tmp_path / "x.tar", {f"{n}.png": png(n) for n in range(1, 5)})
    shard.write_bytes(shard.read_bytes()[:left])
    said = captions(tmp_path, shard)
    assert "stops before its end mark" in said.pop("x.tar/(the rest)")
    assert [*said] == [f"x.tar/{n}.png" for n in (1, 2, 3)]


def test_a_damaged_header_in_a_shard_is_no_end(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "x.tar", {f"{n}.png": png(n) for n in range(1, 5)})
    content = bytearray(shard.read_bytes())
    content[1024 + 148 : 1024 + 156] = b"damaged!"  # the second member's checksum
    shard.write_bytes(content)
    said = captions(tmp_path, shard)
    assert said.pop("x.tar/1.png") == "1 by 5"
    assert "damaged at byte 1,024" in said.pop("x.tar/(the rest)")
    assert not said


def test_links_in_a_shard_are_the_files_that_they_lead_to(tmp_path: Path) -> None:
    """As tar itself writes a folder with two names of one file; none is dropped without a word."""
    shard = tmp_path / "x.tar"
    with tarfile.open(shard, "w") as tar:
        for name, kind, target in (
            ("./blobs/1", tarfile.REGTYPE, ""),
            ("a/hard.png", tarfile.LNKTYPE, "blobs/1"),
            ("a/soft.png", tarfile.SYMTYPE, "../blobs/1"),
            ("a/both.png", tarfile.SYMTYPE, "soft.png"),
            ("a/lost.png", tarfile.SYMTYPE, "/elsewhere.png"),
            ("a/pipe.png", tarfile.FIFOTYPE, ""),
            ("a/folder.png", tarfile.DIRTYPE, ""),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            entry.size = 0 if kind != tarfile.REGTYPE else len(png(3))
            tar.addfile(entry, io.BytesIO(png(3)))
    told: list[str] = []
    assert len(list(expand_sources([shard], told.append))) == 4
    assert told == [f"{shard}: passed over 2 files: 1 not a file, 1 without a suffix"]
    said = captions(tmp_path, shard)
    assert "links to '/elsewhere.png', which is no file before it" in said.pop("x.tar/a/lost.png")
    assert said == {f"x.tar/a/{name}.png": "3 by 5" for name in ("hard", "soft", "both")}


def test_a_shard_behind_a_shard_in_one_file_is_not_dropped_without_a_word(tmp_path: Path) -> None:
    one, two = (make_shard(tmp_path / f"{n}.tar", {f"{n}.png": png(n)}).read_bytes() for n in (1, 2))
    (tmp_path / "x.tar").write_bytes(one + two)
    (tmp_path / "y.tar").write_bytes(one + bytes(50_000))
    said = captions(tmp_path, tmp_path / "x.tar", tmp_path / "y.tar")
    assert "follows its end mark" in said.pop("x.tar/(the rest)")
    assert said == {"x.tar/1.png": "1 by 5", "y.tar/1.png": "1 by 5"}


def test_two_images_of_a_shard_with_one_name(tmp_path: Path) -> None:
    shard = tmp_path / "x.tar"
    with tarfile.open(shard, "w") as tar:
        for content in (png(1), png(2)):
            entry = tarfile.TarInfo("a.png")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    said = captions(tmp_path, shard)
    assert said.pop("x.tar/a.png") == "1 by 5"
    assert "an image before it has this name" in said.pop("x.tar/a.png (at byte 1024)")
    assert not said


def test_names_behind_urls_that_look_like_patterns(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    for name in ("a[1].png", "b1.png"):
        fs.pipe(f"/patterns/{name}", png(3))
        (tmp_path / name).write_bytes(png(3))
    sources = ["memory://patterns/a[1].png", "memory://patterns/b[1].png", "memory://patterns/c[1].png"]
    sources += [f"file://{tmp_path}/a[1].png", f"file://{tmp_path}/[c]*.png"]
    rows = captions(tmp_path, *sources)
    errors = [name for name, said in rows.items() if "no such file" in said]
    assert len(rows) == 5
    assert [name.rpartition("/")[2] for name in errors] == ["c[1].png", "[c]*.png"], "rows, and not nothing"


def test_globs(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/3.png", "b/deep/4.png", "b/5.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    told: list[str] = []

    def found(pattern: str) -> list[str]:
        return [Path(source_key(s)).name for s in expand_sources([tmp_path / pattern], told.append)]

    assert found("a/[2-9].png") == ["2.png"]
    assert found("**/*.png") == ["1.png", "2.png", "3.png", "4.png"]
    assert found("?") == ["1.png", "2.png", "3.png", "4.png"]
    assert found("b/*.*") == ["3.png"]
    assert told == [f"{tmp_path}/{p}: passed over 1 file: 1 .txt" for p in ("?", "b/*.*")]
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")  # two links that go round: 2^40 names
    (tmp_path / "b" / "linked").symlink_to(tmp_path / "[out]")
    (tmp_path / "[out]").mkdir()
    (tmp_path / "[out]" / "6.png").write_bytes(png(1))
    assert found("**/*.png") == ["6.png", "1.png", "2.png", "3.png", "4.png"]
    assert found("**/deep/**") == found("**/de*/**/*") == ["4.png"]
    assert found("a/**") == ["1.png", "2.png"]
    assert found("nothing*") == ["nothing*"], "so that a mistyped pattern is an error of its row"
