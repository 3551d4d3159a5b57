"""Outputs besides a file and Parquet here: WebDataset's shards, and parts in a bucket of a real S3 server of moto."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import pandas
import pytest
import webdataset
from PIL import Image

from vl.errors import InputError
from vl.jobs import (
    JobError,
    Picture,
    Prompts,
    caption_images,
    caption_rows,
    check_output,
    expand_sources,
    open_rows,
    source_key,
)
from vl.jobs.bucket import Bucket
from vl.jobs.parquet import Parquet
from vl.jobs.parts import ERRORS
from vl.jobs.partsink import PartSink

from .containers import png
from .fakes import FakeModel, run, s3_server

pytest.importorskip("moto", reason="needs moto[server]")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts for thirteen images."""
    monkeypatch.setattr(PartSink, "part_rows", 5)


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A server without parts; its file system."""
    with s3_server() as fs:
        fs.mkdir("out")
        yield fs


def samples(folder: Path) -> list[dict[str, Any]]:
    """As WebDataset itself reads them."""
    shards = sorted(map(str, folder.glob("*.tar")))
    return list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"))


def errors(folder: Path) -> list[dict[str, Any]]:
    found = []
    for shard in folder.glob("*.tar"):
        with tarfile.open(shard) as tar:
            member = tar.extractfile(ERRORS)
            assert member is not None
            found += [json.loads(line) for line in member]
    return found


def assert_shards(archive: Path, out: Path) -> None:
    names = {source_key(source) for source in expand_sources([archive])}
    found = samples(out)
    assert len({sample["__key__"] for sample in found}) == len(found) == 12
    assert {sample["json"]["image"] for sample in found} | {row["image"] for row in errors(out)} == names
    for sample in found:
        with Image.open(sample["json"]["image"]) as image:
            assert sample["png"].shape[:2] == image.size[::-1]
            assert sample["txt"] == "{} by {}".format(*image.size)
    assert ["broken.jpg" in row["error"] for row in errors(out)] == [True]


def test_shards(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.wds"
    assert run(archive, out).images == 13
    assert_shards(archive, out)
    assert run(archive, out).skipped == 13
    run(archive, out, retry_errors=True)
    assert_shards(archive, out)
    assert not list((out / "_images").iterdir())


def test_shards_without_images_and_with_several_answers(archive: Path, tmp_path: Path) -> None:
    with open_rows(tmp_path / "out.wds", images=False, model="m", prompt={"caption": "a", "short": "b"}) as rows:
        made = {"model": "m", "prompt": {"caption": "a", "short": "b"}, "settings": {}}
        rows.append([{"image": "a/b.png", "caption": "long", "short": "s"} | made])
    (sample,) = samples(tmp_path / "out.wds")
    assert (sample["txt"], sample["short.txt"], sample["json"]["image"]) == ("long", "s", "a/b.png")
    assert not [name for name in sample if name in ("png", "jpg")]


@pytest.mark.parametrize("where", ["parts", "journal", "bucket"])
@pytest.mark.parametrize("images", [True, False])
def test_shards_with_and_without_images_are_not_mixed(tmp_path: Path, images: bool, where: str) -> None:
    out = "memory://mixed.wds" if where == "bucket" else tmp_path / "out.wds"
    job = {"model": "m", "prompt": "p"}

    def add(name: str, images: bool) -> None:
        with open_rows(out, images=images, overwrite=name == "1.png", **job) as rows:
            (found,) = rows.pending([Picture(name, lambda: png(3))])
            ((row,),) = caption_rows(FakeModel(), [found], prompt="p")
            rows.append([row | {"model": "m"}])
            if where == "journal" and name == "1.png":
                raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        add("1.png", images)
    if where == "journal" and images:
        add("2.png", False)
        assert len(samples(tmp_path / "out.wds")) == 2, "no part has images"
        return
    with pytest.raises(JobError, match="leave --no-images out" if images else "use --no-images"):
        add("2.png", not images)
    add("2.png", images)


def test_an_image_that_is_another_by_the_time_it_is_written_is_an_error(tmp_path: Path) -> None:
    contents = [png(3), png(4)]
    source = Picture("a.png", lambda: contents.pop(0))
    with open_rows(tmp_path / "out.wds", model="m", prompt="p") as rows:
        (found,) = rows.pending([source])
        ((row,),) = caption_rows(FakeModel(), [found], prompt="p")
        rows.append([row | {"model": "m"}])
    with tarfile.open(tmp_path / "out.wds" / "part-00000.tar") as tar:
        assert tar.getnames() == [ERRORS]
    assert ["written again" in row["error"] for row in errors(tmp_path / "out.wds")] == [True]


@pytest.mark.parametrize("action", range(0, 60, 4))
def test_shards_of_a_job_that_is_killed(archive: Path, tmp_path: Path, action: int) -> None:
    from .test_partfolder import killed_before

    out = tmp_path / "out.wds"
    killed_before(action, lambda: run(archive, out))
    if list(out.glob("*.tar")):
        keys = [sample["json"]["image"] for sample in samples(out)]
        assert len(keys) == len(set(keys))
    run(archive, out)
    assert_shards(archive, out)


def parquet(fs: Any, url: str, to: Path) -> list[dict[str, Any]]:
    """What DuckDB finds in the parts that any reader would take."""
    to.mkdir(exist_ok=True)
    fs.invalidate_cache()
    for path in fs.glob(f"{url}/*.parquet"):
        fs.get_file(path, str(to / Path(path).name))
    found = duckdb.sql(f"SELECT * FROM '{to}/*.parquet'").df().to_dict("records")
    for path in to.iterdir():
        path.unlink()
    return found


def test_parquet_in_a_bucket(archive: Path, tmp_path: Path, s3: Any) -> None:
    """From a bucket to a bucket, gone on with by another machine, which has nothing but the bucket."""
    s3.put(f"{archive}/shelf0", "out/pics/", recursive=True)
    s3.put(f"{archive}/shelf1", "out/pics/", recursive=True)
    url = "s3://out/captions.parquet"
    sources = ["s3://out/pics"]
    assert caption_images(FakeModel(), sources, url, batch_size=2).images == 9
    rows = parquet(s3, url, tmp_path / "a")
    assert sorted(row["image"] for row in rows) == sorted(map(source_key, expand_sources(sources)))
    assert len(s3.glob(f"{url}/part-*")) == 2
    model = FakeModel()
    assert caption_images(model, [*sources, archive / "shelf2"], url).skipped == 9
    assert model.processor.prepared == 4
    assert len(parquet(s3, url, tmp_path / "a")) == 13
    with pytest.raises(JobError, match="--overwrite"):
        caption_images(FakeModel(), sources, url, prompt="Else?")
    tally = caption_images(FakeModel(), sources, url, retry_errors=True)
    assert (tally.errors, tally.captions) == (1, 0)
    assert len(parquet(s3, url, tmp_path / "a")) == 13
    caption_images(FakeModel(), sources, url, prompt="Else?", overwrite=True)
    assert [row["prompt"] for row in parquet(s3, url, tmp_path / "a")] == ["Else?"] * 9


def test_a_part_without_its_index_is_asked_itself(archive: Path, s3: Any) -> None:
    """A kill between the two costs no row and doubles none, in every format."""
    for name in ("index.parquet", "index.jsonl", "index.wds"):
        url = f"s3://out/{name}"
        caption_images(FakeModel(), [archive], url, batch_size=4)
        s3.invalidate_cache()
        s3.rm_file(f"out/{name}/_index/00000")
        s3.invalidate_cache()
        model = FakeModel()
        assert caption_images(model, [archive], url).skipped == 13
        assert model.processor.prepared == 0
        assert s3.exists(f"out/{name}/_index/00000")


@pytest.mark.parametrize("retry", [False, True])
def test_killed_between_any_two_requests(archive: Path, tmp_path: Path, s3: Any, retry: bool) -> None:
    """Whichever change of the bucket is the last, no reader finds a row twice and the next run makes it whole."""
    for action in range(100):
        url = f"s3://out/kill{action}-{retry}.parquet"
        if retry:
            caption_images(FakeModel(unlucky), [archive], url, batch_size=4)
        killed = stopped_before(action, archive, url)
        names = [row["image"] for row in parquet(s3, url, tmp_path / "a")] if s3.glob(f"{url}/*.parquet") else []
        assert len(names) == len(set(names))
        caption_images(FakeModel(), [archive], url, batch_size=4, retry_errors=True)
        rows = parquet(s3, url, tmp_path / "a")
        assert sorted(row["image"] for row in rows) == sorted(map(source_key, expand_sources([archive])))
        assert [row["image"].endswith("broken.jpg") for row in rows if not pandas.isna(row["error"])] == [True]
        if not killed:
            break
    assert action > (8 if retry else 3)


def unlucky(size: str) -> None:
    if int(size.split()[0]) % 3:
        raise InputError("no luck")


class Stopped(BaseException):
    """As good as a kill for what is in the bucket: nothing is changed after it."""


def stopped_before(action: int, archive: Path, url: str) -> bool:
    """A job whose process is gone before its `action`-th change of the bucket; whether it came to that."""
    import s3fs

    left, gone = action, False

    def guard(real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left, gone
            left -= 1
            if left < 0 or gone:
                gone = True
                raise Stopped
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("put_file", "pipe_file", "rm_file"):
            real = getattr(s3fs.S3FileSystem(), name)
            patch.setattr(s3fs.S3FileSystem(), name, guard(real))
        try:
            caption_images(FakeModel(), [archive], url, batch_size=4, retry_errors=True)
        except Stopped:
            return True
    return False


def test_two_runs_at_once(archive: Path, tmp_path: Path, s3: Any) -> None:
    url = "s3://out/twice.parquet"
    made: dict[str, Any] = {"model": "fake", "prompt": "p", "settings": {}}
    row = {"caption": "x"} | made

    def both() -> None:
        with open_rows(url, **made) as first, open_rows(url, **made) as second:
            first.append([row | {"image": f"{n}.png"} for n in range(5)])
            second.append([row | {"image": f"{n}.png"} for n in range(2, 8)])

    with pytest.raises(JobError, match="another run"):
        both()
    assert len(parquet(s3, url, tmp_path / "a")) == 5


def test_rows_become_a_part_when_time_has_come(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bucket, "part_seconds", 0.0)
    made: dict[str, Any] = {"model": "fake", "prompt": "p", "settings": {}}
    url = "s3://out/time.parquet"
    with Bucket(url, Parquet(Prompts.of("p")), **made) as rows:
        rows.append([{"image": "a.png", "caption": "x"} | made])
        assert s3.exists(f"{url}/part-00000.parquet")

    def interrupted() -> None:
        with open_rows(url, **made) as rows:
            rows.append([{"image": "b.png", "caption": "x"} | made])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    s3.invalidate_cache()
    assert s3.exists(f"{url}/part-00001.parquet"), "an error costs no row either"


def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    for name, message in (
        ("out.tar", r"out\.wds"),
        ("https://x.org/a.parquet", "bucket"),
        ("s3://out/captions.txt", "JSON Lines"),
        ("out.txt", "JSON Lines"),
    ):
        with pytest.raises(JobError, match=message):
            check_output(name)
    with pytest.raises(JobError, match="no images in it"):
        check_output("out.parquet", images=False)
    with pytest.raises(InputError, match="nosuch"):
        check_output("nosuch://a/b.parquet")
