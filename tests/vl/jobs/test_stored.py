"""Rows read back from every output as they were written, whole, torn or waiting."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vl.errors import InputError
from vl.jobs import Beside, JobError, caption_images, open_rows, write_report
from vl.jobs import stored as stored_module
from vl.jobs.partfolder import PartFolder
from vl.jobs.partsink import PartSink
from vl.jobs.stored import Rewritten, Stored, stored_rows

from .fakes import FakeModel, run, s3_server
from .test_schema import SCHEMA, JsonModel, cut_at_seven


def by_image(rows: list[Any]) -> dict[str, Any]:
    found = {row["image"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def unlucky(size: str) -> None:
    raise InputError("no luck")


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out.wds"])
def test_rows_come_back(archive: Path, tmp_path: Path, name: str) -> None:
    written: list[Any] = []
    caption_images(
        JsonModel(cut_at_seven), [archive], tmp_path / name, schema=SCHEMA, on_row=lambda row, _: written.append(row)
    )
    found = list(stored_rows(tmp_path / name))
    assert {row.id.hex() for row in found} == {Stored.of(row).id.hex() for row in written}
    for image, row in by_image(written).items():
        known = {key: value for key, value in row.items() if value is not None}
        back = by_image([stored.row for stored in found])[image]
        assert {key: value for key, value in back.items() if value is not None} == known
        assert list(back)[1] == list(row)[1], "what came of it stands first"
    for stored in found:
        if name == "out.wds" and not stored.failed:
            assert stored.image is not None
            assert stored.image() == Path(stored.row["image"]).read_bytes()
        assert set(stored.texts) <= {"caption"}
        assert stored.failed or set(stored.values) == set(SCHEMA["properties"])


def test_several_prompts_and_texts_beside(archive: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (3, 4)).save(picture)
    for name in ("out.parquet", "out.jsonl"):
        prompt = {"short": "In short:", "long": "At length:"}
        run(picture, tmp_path / name, prompt=prompt, beside=Beside("overwrite"))
        [stored] = stored_rows(tmp_path / name)
        assert stored.texts == {"short": "In short: 3 by 4", "long": "At length: 3 by 4"}
        assert stored.row["prompt"] == prompt
        assert stored.values == {}


def test_a_retried_row_counts_once_and_a_torn_one_not(tmp_path: Path) -> None:
    made: dict[str, Any] = {"model": "m", "prompt": "p", "settings": {}}
    for name in ("out.jsonl", "out.parquet"):
        out = tmp_path / name
        with open_rows(out, **made) as rows:
            rows.append([{"image": "a", "error": "lost", **made}, {"image": "b", "caption": "B", **made}])
        with open_rows(out, **made, retry_errors=True) as rows:
            assert list(rows.pending(["a", "b", "c"])) == ["a", "c"]
            rows.append([{"image": "a", "caption": "A", **made}])
            found = by_image([stored.row for stored in stored_rows(out)])  # while the job runs
            assert {image: row.get("caption") for image, row in found.items()} == {"a": "A", "b": "B"}
        assert len(list(stored_rows(out))) == 2
    with (tmp_path / "out.jsonl").open("ab") as file:
        file.write(b'{"image": "c", "capt')
    assert len(list(stored_rows(tmp_path / "out.jsonl"))) == 2


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out.wds"])
def test_as_of_one_moment_while_errors_are_retried(
    archive: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that is stopped after any row, while a job takes error rows out of what it reads: every row, once."""
    monkeypatch.setattr(PartSink, "part_rows", 3)

    def retry(out: Path, trouble: Any = lambda size: None) -> None:
        run(archive, out, FakeModel(trouble), retry_errors=True, batch_size=1)

    again = 0
    for moment in (2, 7):
        out = tmp_path / str(moment) / name
        run(archive, out, FakeModel(unlucky))
        reader = stored_rows(out)
        found = [next(reader) for _ in range(moment)]
        thread = threading.Thread(target=retry, args=(out,))  # which has nothing to do with the reader
        thread.start()
        thread.join()
        try:
            found += reader
        except Rewritten:
            again += 1
            found = list(stored_rows(out))
        assert len({stored.id for stored in found}) == len(found) == 13
    assert again == (0 if name == "out.jsonl" else 2), "a file that was replaced as a whole is read to its end"
    assert write_report(out, tmp_path / "report.html").rows == 13


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_what_starts_again_is_not_half_read(archive: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    run(archive, out)
    for part in out.glob("part-*"):
        os.utime(part, ns=(1, 1))  # the next may get its place on the disk, too, but not its time
    reader = stored_rows(out)
    if name == "out.jsonl":
        next(reader)
    else:
        reader = stored_module._parts([stored_module._Part.of(path) for path in out.glob("part-*")], {})
    run(archive, out, prompt="Again:", overwrite=True)
    with pytest.raises(Rewritten, match="written again while its rows were read"):
        list(reader)


@pytest.mark.parametrize("moment", [1, 2])
def test_a_commit_that_is_half_done(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Entered, and nothing removed or renamed yet; or all but the journal cleared."""
    out, real, calls = tmp_path / "out.parquet", PartFolder._settle, list[int]()

    def settle(self: PartFolder) -> None:
        calls.append(1)
        if len(calls) > moment:
            raise KeyboardInterrupt
        real(self)
        if len(calls) == 2:
            raise KeyboardInterrupt

    run(archive, out, FakeModel(unlucky))
    with monkeypatch.context() as patch:
        patch.setattr(PartFolder, "_settle", settle)
        with pytest.raises(KeyboardInterrupt):
            run(archive, out, retry_errors=True)
    found = by_image([stored.row for stored in stored_rows(out)])
    assert len(found) == 13
    assert sum("error" not in row for row in found.values()) == 12


def test_a_bucket(archive: Path) -> None:
    pytest.importorskip("moto", reason="needs moto[server]")
    with s3_server() as fs:
        fs.mkdir("out")
        for name in ("a.jsonl", "a.wds"):
            caption_images(FakeModel(), [archive], f"s3://out/{name}")
            found = list(stored_rows(f"s3://out/{name}"))
            assert len({row.row["image"] for row in found}) == len(found) == 13
        whole = next(row for row in found if not row.failed)
        assert whole.image is not None
        assert whole.image() == Path(whole.row["image"]).read_bytes()


def test_a_copy_of_a_bucket(tmp_path: Path) -> None:
    """It has parts alone."""
    for number in range(2):
        part = tmp_path / "out.jsonl" / f"part-{number:05}.jsonl"
        part.parent.mkdir(exist_ok=True)
        part.write_text(json.dumps({"image": f"{number}.png", "caption": "A cat."}) + "\n")
    assert [stored.row["image"] for stored in stored_rows(tmp_path / "out.jsonl")] == ["0.png", "1.png"]
    (tmp_path / "none.parquet").mkdir()
    assert not list(stored_rows(tmp_path / "none.parquet"))


def test_what_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text(json.dumps({"text": 1}) + "\n")
    (tmp_path / "part.parquet").mkdir()
    (tmp_path / "part.parquet" / "part-00000.parquet").write_bytes(b"PAR1")
    (tmp_path / "part.parquet" / "_journal.jsonl").touch()
    for name, message in (
        ("notes.jsonl", "is no row"),
        ("none.jsonl", "there is no"),
        ("none.parquet", "there is no"),
        ("out.csv", "is no output of a job"),
        ("part.parquet", "cannot read"),
    ):
        with pytest.raises(JobError, match=message):
            list(stored_rows(tmp_path / name))
