"""Images that tables and the metadata of imagefolders name or hold."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import random
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from vl.errors import InputError
from vl.jobs import Picture, Prompts, Source, caption_images, expand_sources, open_rows, source_key, write_rows
from vl.jobs.captioning import params_of, settings_of_model
from vl.jobs.estimate import finished
from vl.jobs.made import made_with
from vl.jobs.sources.names import Asked
from vl.jobs.stored import stored_rows
from vl.jobs.thumbnails import thumbnails

from .containers import captions, png, write_table
from .fakes import FakeModel


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".ndjson"])
def test_a_table_of_paths(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures").mkdir()
    for width in (1, 2):
        (tmp_path / "pictures" / f"{width}.png").write_bytes(png(width))
    table = tmp_path / f"table{suffix}"
    rows = [{"title": "a", "picture": f"pictures/{n}.png"} for n in (2, 1, 3)] + [{"title": "b", "picture": ""}]
    write_table(table, rows)
    said = captions(tmp_path, table, column="picture")
    assert said.pop("pictures/3.png").endswith("no such file")
    assert "has no image" in said.pop(f"table{suffix}:4:picture")
    assert said == {"pictures/2.png": "2 by 5", "pictures/1.png": "1 by 5"}
    with pytest.raises(InputError, match=r"no column of images.*--column.*'title', 'picture'"):
        list(expand_sources([table]))
    with pytest.raises(InputError, match="no column 'url'"):
        list(expand_sources([table], column="url"))
    write_table(table, [{"title": "a", "path": "pictures/1.png"}])
    monkeypatch.chdir(tmp_path)
    assert list(expand_sources([table.name])) == ["pictures/1.png"]


def test_a_table_of_bytes(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", [{"bytes": png(n)} for n in range(1, 71)])
    write_table(tmp_path / "b.parquet", [{"image": {"bytes": png(9), "path": None}}, {"image": None}])
    said = captions(tmp_path, tmp_path / "*.parquet")
    assert {said.pop(f"a.parquet:{n}:bytes") for n in range(1, 71)} == {f"{n} by 5" for n in range(1, 71)}
    assert said.pop("b.parquet:1:image") == "9 by 5"
    assert "has no image" in said.pop("b.parquet:2:image")
    assert not said


def test_damaged_lines_are_rows_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(3))
    (tmp_path / "t.jsonl").write_text('{"path": "x.png"}\n{"path"\n\n[1]\n{"path": 7}\n{"other": 1}\n' + "[" * 10**5)
    said = captions(tmp_path, tmp_path / "t.jsonl")
    assert said["x.png"] == "3 by 5"
    assert "is not JSON" in said["t.jsonl:2"]
    assert "not a JSON object" in said["t.jsonl:3"]
    assert "holds int" in said["t.jsonl:4:path"]
    assert "holds nothing" in said["t.jsonl:5:path"]
    assert "nested too deeply" in said["t.jsonl:6"]


def test_a_damaged_parquet_costs_its_rows(tmp_path: Path) -> None:
    """One group of rows of three; and files whose end is missing or damaged: nothing tells how many rows there were."""
    images = [random.Random(n).randbytes(500) for n in range(6)]
    table = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"image": images}), table, row_group_size=2, use_dictionary=False)
    content = bytearray(table.read_bytes())
    group = parquet.read_metadata(table).row_group(1).column(0)
    content[group.data_page_offset : group.data_page_offset + 20] = bytes(20)
    table.write_bytes(content)
    (tmp_path / "b.parquet").write_bytes(content[:-100])
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    (tmp_path / "d.parquet").write_bytes(content[:start] + b"\xff" * 4 + content[start + 4 :])
    (tmp_path / "c.png").write_bytes(png(3))
    said = captions(tmp_path, table, tmp_path / "b.parquet", tmp_path / "d.parquet", tmp_path / "c.png")
    assert said.pop("c.png") == "3 by 5", "what comes after it is captioned"
    for name in ("b", "d"):
        assert "cannot be read, nor what follows" in said.pop(f"{name}.parquet:1")
    assert [name for name, text in said.items() if "write the table again" in text] == ["a.parquet:3", "a.parquet:4"]
    damaged = (3, 4)
    assert [*said] == [f"a.parquet:{n}" if n in damaged else f"a.parquet:{n}:image" for n in range(1, 7)]


def test_text_in_a_parquet_that_is_no_utf8_costs_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(3))
    offsets = pyarrow.array([0, 5, 6, 11], pyarrow.int32()).buffers()[1]
    paths = pyarrow.StringArray.from_buffers(3, offsets, pyarrow.py_buffer(b"a.png\xffb.png"))
    parquet.write_table(pyarrow.table({"path": paths}), tmp_path / "t.parquet")
    said = captions(tmp_path, tmp_path / "t.parquet")
    assert "codec can't decode" in said.pop("t.parquet:2")
    assert (said.pop("a.png"), "no such file" in said.pop("b.png"), said) == ("3 by 5", True, {})


def test_images_as_base64_in_a_csv(tmp_path: Path) -> None:
    """A field is longer than what Python reads by default."""
    file = io.BytesIO()
    Image.frombytes("RGB", (200, 200), random.Random(0).randbytes(120_000)).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    (tmp_path / "t.csv").write_text(f'image\n{text}\n"data:image/png;base64,{text}"\n')
    assert list(captions(tmp_path, tmp_path / "t.csv").values()) == ["200 by 200"] * 2


@pytest.mark.parametrize("out", ["out.jsonl", "out.parquet", "out.wds"])
def test_half_a_surrogate_pair_in_a_table_is_a_row(tmp_path: Path, out: str) -> None:
    """JSON can spell it, and no file has it in its name."""
    (tmp_path / "t.jsonl").write_text('{"path": "\\ud800.png"}\n{"path": "data:image/png,\\udfff%s"}\n' % ("x" * 300))
    tally = caption_images(FakeModel(), [tmp_path / "t.jsonl"], tmp_path / out)
    assert (tally.captions, tally.errors) == (0, 2)
    assert caption_images(FakeModel(), [tmp_path / "t.jsonl"], tmp_path / out).skipped == 2


def test_a_csv_whose_header_cannot_be_read_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vl.jobs.sources.tables.MAX_BYTES", 1000)
    (tmp_path / "t.csv").write_text(f"image,{'x' * 3000}\na.png,1\n")
    (tmp_path / "x.png").write_bytes(png(3))
    before = csv.field_size_limit(2000)
    said = captions(tmp_path, tmp_path / "t.csv", tmp_path / "x.png")
    csv.field_size_limit(before)
    assert "cannot be read, nor what follows (field larger than" in said.pop("t.csv:1")
    assert said == {"x.png": "3 by 5"}


def test_bytes_of_a_csv_that_are_no_utf8_are_those_of_names(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(png(3))
    (tmp_path / "b.png").write_bytes(png(4))
    (tmp_path / "t.csv").write_bytes(b"image,kind\nb.png,x\ncaf\xe9.png,caf\xe9\n")
    assert captions(tmp_path, tmp_path / "t.csv") == {"b.png": "4 by 5", name: "3 by 5"}


def test_two_columns_of_one_name_are_refused_if_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,note,note\na.png,1,2\n")
    assert len(list(expand_sources([tmp_path / "t.csv"]))) == 1
    (tmp_path / "t.csv").write_text("image,image\na.png,b.png\n")
    with pytest.raises(InputError, match="2 columns 'image'"):
        list(expand_sources([tmp_path / "t.csv"]))


def test_a_url_whose_server_is_not_there_is_an_error_of_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ftp's file system looks for its server when it is made."""

    def unknown(*given: Any, **more: Any) -> Any:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr("ftplib.FTP.connect", unknown)
    (tmp_path / "x.png").write_bytes(png(3))
    (tmp_path / "t.csv").write_text("image\nftp://nowhere/a.png\nx.png\n")
    said = captions(tmp_path, tmp_path / "t.csv")
    assert "ftp://nowhere/a.png cannot be read: Name or service" in said.pop("t.csv:1:image")
    assert said == {"x.png": "3 by 5"}


@pytest.mark.parametrize(("text", "row"), [('path,a\n1.png,"x\n2.png,y\n', 1), ('path,"a\n1.png,x\n', 1)])
def test_rows_behind_a_quote_that_nothing_closes_are_an_error(tmp_path: Path, text: str, row: int) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    (tmp_path / "t.csv").write_text(text)
    said = captions(tmp_path, tmp_path / "t.csv")
    assert list(said) == [f"t.csv:{row}"]
    assert "a quote that nothing closes" in said[f"t.csv:{row}"]
    (tmp_path / "t.csv").write_text('path,a\n1.png,"x\n2.png,y"\n\n')
    assert list(captions(tmp_path, tmp_path / "t.csv")) == ["1.png"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_an_imagefolder_is_what_its_metadata_name(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data"
    (folder / "train" / "deep").mkdir(parents=True)
    for name in ("train/b.png", "train/deep/a.png", "train/unlisted.png", "other.png"):
        (folder / name).write_bytes(png(4))
    rows = [{"file_name": name, "text": "x"} for name in ("deep/a.png", "gone.png", "b.png")]
    write_table(folder / "train" / f"metadata.{kind}", rows)
    told: list[str] = []
    names = [Path(source_key(s)).relative_to(folder).as_posix() for s in expand_sources([folder], told.append)]
    assert names == ["other.png", "train/deep/a.png", "train/gone.png", "train/b.png"]
    assert told == [f"{folder}: passed over 2 files: 1 .{kind}, 1 not in the metadata"]
    write_table(folder / "train" / f"metadata.{kind}", [{"title": "not an imagefolder"}])
    assert len(list(expand_sources([folder]))) == 4
    if kind == "jsonl":
        (folder / "train" / "metadata.jsonl").write_text('{"file_name"\n')
        with pytest.raises(InputError, match=r"metadata\.jsonl: row 1 is not JSON"):
            list(expand_sources([folder]))


def test_an_imagefolder_behind_a_url_is_what_its_metadata_name() -> None:
    fs = fsspec.filesystem("memory")
    for name in ("train/b.png", "train/deep/a.png", "train/unlisted.png", "other.png"):
        fs.pipe(f"/imagefolder/{name}", png(4))
    rows = [{"file_name": name, "kind": name[0]} for name in ("deep/a.png", "gone.png", "b.png")]
    fs.pipe("/imagefolder/train/metadata.jsonl", "\n".join(map(json.dumps, rows)).encode())
    told: list[str] = []
    found = list(expand_sources("memory://imagefolder", told.append))
    assert [source_key(source).removeprefix("memory:///imagefolder/") for source in found] == [
        "other.png", "train/deep/a.png", "train/gone.png", "train/b.png"
    ]  # fmt: skip
    assert isinstance(found[1], Picture)
    assert found[1].read() == png(4)
    assert told == ["memory://imagefolder: passed over 2 files: 1 .jsonl, 1 not in the metadata"]
    asked = expand_sources("memory://imagefolder/train", prompts=Prompts.of("A {kind}?"))
    assert [getattr(source, "prompt", "") for source in asked] == ["A d?", "A g?", "A b?"]


OUTPUTS = ["out.jsonl", "out.parquet", "out.wds", "memory://columns/out.jsonl", "memory://columns/out.parquet"]


@pytest.fixture(params=OUTPUTS)
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """The outputs on this machine, and in a bucket that is empty."""
    fs = fsspec.filesystem("memory")
    if fs.exists("/columns"):
        fs.rm("/columns", recursive=True)
    return request.param if "://" in request.param else tmp_path / request.param


def test_two_columns_of_a_table_are_two_images(tmp_path: Path, output: Any) -> None:
    table = tmp_path / "t.parquet"
    write_table(table, [{"image": png(n), "thumb": png(n + 10), "kind": "x"} for n in (1, 2, 3)])
    assert caption_images(FakeModel(), [table], output).captions == 3
    tally = caption_images(FakeModel(), [table], output, column="thumb")
    assert (tally.captions, tally.skipped) == (3, 0)
    for column in (None, "image", "thumb"):
        assert caption_images(FakeModel(), [table], output, column=column).skipped == 3
    rows = {stored.row["image"]: stored.row["caption"] for stored in stored_rows(output)}
    assert rows == {f"{table}:{n}:{name}": f"{n + more} by 5" for n in (1, 2, 3) for name, more in COLUMNS.items()}
    pictures = thumbnails(stored_rows(output))
    assert all(text.startswith("data:image/webp") for text in pictures), "found without being told the column"


COLUMNS = {"image": 0, "thumb": 10}


@pytest.mark.parametrize("prompt", ["Look.", "A {kind}."])
def test_rows_of_earlier_versions_named_no_column(tmp_path: Path, output: Any, prompt: str) -> None:
    """They count for any, and one that is tried again takes the place of the old one."""
    table = tmp_path / "t.parquet"
    write_table(table, [{"thumb": png(n), "kind": "x"} for n in (1, 2, 3)] + [{"thumb": png(4), "kind": ""}])
    before, prompts = FakeModel(unlucky), Prompts.of(prompt)
    settings = settings_of_model(before, params_of({}))  # type: ignore[arg-type]
    with open_rows(output, model="fake", prompt=prompt, settings=settings) as opened:
        named = [_earlier(source) for source in expand_sources(table, column="thumb", prompts=prompts)]
        write_rows(before, opened.pending(named[:2] + named[3:]), opened)  # type: ignore[arg-type]
    is_done = finished(output, made_with("fake", prompts, settings), retry_errors=False, mix=False)
    sources = list(expand_sources(table, column="thumb", prompts=prompts))
    assert [is_done(source) for source in sources] == [True, True, False, True]
    found = list(thumbnails((row for row in stored_rows(output) if not row.row.get("error")), column="thumb"))
    assert found
    assert all(found), "told the column"
    tally = caption_images(FakeModel(), [table], output, column="thumb", prompt=prompt)
    assert (tally.captions, tally.errors, tally.skipped) == (1, 0, 3)
    tally = caption_images(FakeModel(), [table], output, column="thumb", prompt=prompt, retry_errors=True)
    assert (tally.captions, tally.skipped) == (1, 2 + (prompt == "Look."))
    names = sorted(stored.row["image"] for stored in stored_rows(output))
    assert names == [f"{table}:1", f"{table}:2", f"{table}:3:thumb", f"{table}:4"]
    assert caption_images(FakeModel(), [table], output, column="thumb", prompt=prompt, overwrite=True).skipped == 0
    assert all(stored.row["image"].endswith(":thumb") for stored in stored_rows(output))


def unlucky(size: str) -> None:
    if size == "2 by 5":
        raise InputError("no luck")


def _earlier(source: Source) -> Source:
    image = source.image if isinstance(source, Asked) else source
    assert isinstance(image, Picture)
    old = replace(image, name=image.earlier, earlier="")
    return replace(source, image=old) if isinstance(source, Asked) else old
