"""Captions beside the images: written whole, once, and never over what they were not to touch."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vl.errors import InputError
from vl.jobs import Beside, JobError, caption_images
from vl.jobs import beside as module

from .containers import write_table
from .fakes import FakeModel, read
from .test_kill import start_child

OUTS = ["out.jsonl", "out.parquet"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images, the first two of which have texts, and a broken one."""
    path = tmp_path / "pictures"
    path.mkdir()
    for width in range(1, 5):
        Image.new("RGB", (width, 5)).save(path / f"{width}.png")
    (path / "broken.jpg").write_bytes(b"not a picture")
    (path / "1.txt").write_bytes(b"a tag\n")
    (path / "2.txt").write_bytes("Café".encode("latin-1"))
    return path


def texts(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.txt"))}


def job(folder: Path, out: Path, existing: Any, **options: Any) -> Any:
    beside = Beside(existing, prefix="<", suffix=">", separator=", ")
    return caption_images(FakeModel(), [folder], out, beside=beside, **{"batch_size": 2} | options)


NEW = {"3": b"<3 by 5>\n", "4": b"<4 by 5>\n"}
EXPECTED = {
    "skip": {"1": b"a tag\n", "2": b"Caf\xe9"} | NEW,
    "overwrite": {"1": b"<1 by 5>\n", "2": b"<2 by 5>\n"} | NEW,
    "append": {"1": b"a tag, <1 by 5>\n", "2": b"Caf\xe9, <2 by 5>\n"} | NEW,
    "prepend": {"1": b"<1 by 5>, a tag\n", "2": b"<2 by 5>, Caf\xe9\n"} | NEW,
}


@pytest.mark.parametrize("name", OUTS)
@pytest.mark.parametrize("existing", list(EXPECTED))
def test_texts(folder: Path, tmp_path: Path, existing: str, name: str) -> None:
    tally = job(folder, tmp_path / name, existing)
    assert texts(folder) == EXPECTED[existing]
    skipped = 2 if existing == "skip" else 0
    assert (tally.captions, tally.errors, tally.skipped) == (4 - skipped, 1, skipped)
    assert job(folder, tmp_path / name, existing).images == 0
    assert texts(folder) == EXPECTED[existing], "the same command again adds nothing"
    if existing == "overwrite":
        assert job(folder, tmp_path / name, existing, overwrite=True).captions == 4


@pytest.mark.parametrize("name", OUTS)
def test_what_texts_were_written_is_known_until_new_rows_are_there(folder: Path, tmp_path: Path, name: str) -> None:
    job(folder, tmp_path / name, "append")
    with pytest.raises(InputError, match="is in no table"):
        caption_images(FakeModel(), [folder], tmp_path / name, prompt="A {kind}?", overwrite=True)
    Image.new("RGB", (5, 5)).save(folder / "5.png")
    assert job(folder, tmp_path / name, "append").images == 1
    assert texts(folder) == EXPECTED["append"] | {"5": b"<5 by 5>\n"}
    caption_images(FakeModel(), [folder], tmp_path / name, overwrite=True)
    assert caption_images(FakeModel(), [folder], tmp_path / name).images == 0, "they are of no texts any more"


@pytest.mark.parametrize("name", OUTS)
@pytest.mark.parametrize("existing", ["append", "prepend"])
def test_killed_before_any_file_is_written(folder: Path, tmp_path: Path, existing: str, name: str) -> None:
    """The job is killed before it writes or replaces for the n-th time, and before that again and again."""
    old = texts(folder)
    for moment in range(40):
        for path in folder.glob("*.txt"):
            path.unlink()
        for stem, content in old.items():
            (folder / f"{stem}.txt").write_bytes(content)
        out = tmp_path / f"{moment}{name}"
        kills = 0
        for left in (moment, moment // 2, 1):
            status = os.waitpid(start_child(partial(_killed, folder, out, existing, left)), 0)[1]
            kills += os.WIFSIGNALED(status)
        job(folder, out, existing)
        assert texts(folder) == EXPECTED[existing]
        if not kills:
            break
    assert moment > 3


def _killed(folder: Path, out: Path, existing: str, left: int) -> None:
    def guard(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)

        return call

    os.replace, os.write = guard(os.replace), guard(os.write)
    job(folder, out, existing)


@pytest.mark.parametrize("batch_size", [1, 9])
@pytest.mark.parametrize("existing", list(EXPECTED))
def test_one_image_by_several_names(folder: Path, tmp_path: Path, existing: str, batch_size: int) -> None:
    """Relative, through linked folders and by links in its own: rows for all, and one text."""
    (tmp_path / "linked").symlink_to(folder, target_is_directory=True)
    (folder / "3.webp").symlink_to("3.png")
    names = [str(folder / "1.png"), os.path.relpath(folder / "1.png"), str(tmp_path / "linked" / "1.png")]
    names += [str(folder / "3.png"), str(folder / "3.webp"), f"{folder}/../pictures/3.png"]
    for sources in (names[:4], names[::-1], names):
        beside = Beside(existing, prefix="<", suffix=">", separator=", ")  # type: ignore[arg-type]
        caption_images(FakeModel(), sources, tmp_path / "out.jsonl", beside=beside, batch_size=batch_size)
    assert texts(folder) == {stem: EXPECTED[existing][stem] for stem in "13"} | {"2": b"Caf\xe9"}
    rows = read(tmp_path / "out.jsonl")
    assert [row["image"] for row in rows if "error" in row] == []
    if existing != "skip":
        assert sorted(row["image"] for row in rows) == sorted(names)


@pytest.mark.parametrize("batch_size", [1, 9])
def test_an_image_with_prompts_of_its_own(folder: Path, tmp_path: Path, batch_size: int) -> None:
    """Each is a row, and all are added."""
    write_table(folder / "t.csv", [{"path": "1.png", "kind": kind} for kind in ("A", "B", "A")])
    for _ in range(2):
        job(folder / "t.csv", tmp_path / "out.jsonl", "append", prompt="{kind}:", batch_size=batch_size)
    assert texts(folder)["1"] == b"a tag, <A: 1 by 5>, <B: 1 by 5>\n"


def test_several_prompts_are_lines(folder: Path, tmp_path: Path) -> None:
    job(folder, tmp_path / "out.jsonl", "append", prompt={"a": "A:", "b": "B:"})
    assert texts(folder)["1"] == b"a tag, <A: 1 by 5\nB: 1 by 5>\n"


def test_two_images_of_one_text_are_errors(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 5)).save(folder / "3.JPG")
    job(folder, tmp_path / "out.jsonl", "overwrite")
    errors = {Path(row["image"]).name: row["error"] for row in read(tmp_path / "out.jsonl") if "error" in row}
    assert set(errors) == {"3.png", "3.JPG", "broken.jpg"}
    assert "that of 3.JPG too: rename" in errors["3.png"]
    assert "3" not in texts(folder)


def test_an_image_that_is_gone_when_its_text_is_written_costs_its_row_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (9, 5)).save(folder / "3.JPG")
    append = module.Texts.append

    def late(self: Any, rows: Any) -> Any:
        (folder / "3.png").unlink(missing_ok=True)
        return append(self, rows)

    monkeypatch.setattr(module.Texts, "append", late)
    job(folder, tmp_path / "out.jsonl", "overwrite", batch_size=9)
    errors = {Path(row["image"]).name for row in read(tmp_path / "out.jsonl") if "error" in row}
    assert errors == {"3.png", "broken.jpg"}
    assert texts(folder)["3"] == b"<9 by 5>\n"


def test_what_was_written_meanwhile_is_left(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"

    def interrupted(self: Any, intents: Iterable[Any]) -> None:
        if list(intents):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.Texts, "_apply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            job(folder, out, "append", batch_size=9)
    (folder / "1.txt").write_bytes(b"a better tag\n")
    job(folder, out, "append")
    assert texts(folder) == EXPECTED["append"] | {"1": b"a better tag\n"}


def test_a_text_that_is_taken_away_after_the_job_stays_away(folder: Path, tmp_path: Path) -> None:
    job(folder, tmp_path / "out.jsonl", "append", batch_size=9)
    (folder / "4.txt").unlink()
    (folder / "1.txt").write_bytes(b"a tag\n")  # as it was before
    job(folder, tmp_path / "out.jsonl", "append")
    assert texts(folder) == {"1": b"a tag\n", "2": EXPECTED["append"]["2"], "3": NEW["3"]}


def test_refusals(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    caption_images(FakeModel(), [folder / "1.png"], out)
    with pytest.raises(JobError, match="not written beside"):
        job(folder, out, "skip")
    job(folder, tmp_path / "texts.jsonl", "skip")
    with pytest.raises(JobError, match="existing 'skip', not 'append'"):
        job(folder, tmp_path / "texts.jsonl", "append")
    with pytest.raises(JobError, match="continue it with --beside"):
        caption_images(FakeModel(), [folder], tmp_path / "texts.jsonl")
    with pytest.raises(JobError, match="would append to texts again"):
        job(folder, tmp_path / "texts.jsonl", "append", overwrite=True)
    with pytest.raises(InputError, match="existing must be"):
        Beside("replace")  # type: ignore[arg-type]
    for source in ("https://x.org/a.png", "data:image/png;base64,AAAA"):
        with pytest.raises(InputError, match="no file of its own on this machine"):
            caption_images(FakeModel(), [source], tmp_path / "new.jsonl", beside=Beside())


def test_a_separator_is_a_setting_where_it_is_written(folder: Path, tmp_path: Path) -> None:
    for existing in ("append", "overwrite"):
        for separator in (", ", "; "):
            how = {"beside": Beside(existing, separator=separator)}  # type: ignore[arg-type]
            if (existing, separator) == ("append", "; "):
                with pytest.raises(JobError, match="separator ', ', not '; '"):
                    caption_images(FakeModel(), [folder], tmp_path / f"{existing}.jsonl", **how)  # type: ignore[arg-type]
            else:
                caption_images(FakeModel(), [folder], tmp_path / f"{existing}.jsonl", **how)  # type: ignore[arg-type]


def test_names_that_leave_no_room_or_are_a_folders_cost_their_row_alone(folder: Path, tmp_path: Path) -> None:
    """A name of 255 bytes has a text, of as many; a folder in the place of a text is no text."""
    long = folder / f"{'x' * 251}.png"
    Image.new("RGB", (9, 5)).save(long)
    (folder / "3.txt").mkdir()
    told: list[Any] = []
    tally = job(folder, tmp_path / "out.jsonl", "skip", on_row=lambda row, tally: told.append(row))
    assert told == read(tmp_path / "out.jsonl"), "what is found wrong when texts are written is told, too"
    assert long.with_suffix(".txt").read_bytes() == b"<9 by 5>\n"
    errors = {Path(row["image"]).name: row["error"] for row in read(tmp_path / "out.jsonl") if "error" in row}
    assert sorted(errors) == ["3.png", "broken.jpg"]
    assert "a folder has the name of its text" in errors["3.png"]
    assert (tally.captions, tally.skipped) == (2, 2)
