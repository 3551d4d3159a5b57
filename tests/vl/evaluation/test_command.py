"""`vl eval` as a user meets it, on a small random model."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

import vl.cli.app as vl_app
from vl.evaluation import find_tasks

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path) -> Run:
    """Runs `vl eval` with the tiny model, which writes four tokens; returns exit code, stdout and stderr."""

    def call(*args: object) -> tuple[int, str, str]:
        line = ["eval", *map(str, args), "--model", str(tiny_checkpoint), "--max-new-tokens", "4"]
        capsys.readouterr()
        code = vl_app.run(line)
        said = capsys.readouterr()
        return code, said.out, " ".join(said.err.replace("│", " ").split())

    return call


@pytest.fixture
def data(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "red.png")
    good = {"image": "red.png", "prompt": "What colour?", "answer": "red", "task": "vqa"}
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(good)}\noops\n{json.dumps(good | {'image': 'no.png'})}\n")
    return tmp_path / "data.jsonl"


def test_from_a_file_to_a_page(run: Run, data: Path, tmp_path: Path) -> None:
    code, out, _ = run(data, "--metric", "vqa", "--out", tmp_path / "out")
    assert code == 1, "some records failed"
    assert "data.jsonl: vqa" in out
    assert "2 of 3 examples could not be used" in out
    for line, cause in (("line 2", "not JSON"), ("line 3", "no.png")):
        assert any(line in text and cause in text for text in out.splitlines())
    rows = [json.loads(line) for line in (tmp_path / "out" / "examples.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rows] == [1, 2, 3]
    assert rows[0]["scores"] == {"normalised": 0.0, "exact": 0.0}
    assert rows[0]["finish_reason"] == "length"
    page = (tmp_path / "out" / "failures.html").read_text()
    assert page.count("data:image/webp;base64,") == 1
    code, _, err = run(data, "--out", tmp_path / "out")
    assert code == 3
    assert "--overwrite" in err
    assert run(data, "--count", 1, "--out", tmp_path / "out", "--overwrite")[0] == 0


@pytest.mark.parametrize(("option", "shown"), [((), 0), (("--background", "white"), 255)])
def test_the_page_shows_transparent_pictures_as_the_model_saw_them(
    run: Run, tmp_path: Path, option: tuple[str, ...], shown: int
) -> None:
    Image.new("RGBA", (64, 48), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    record = {"image": "clear.png", "prompt": "What colour?", "answer": "none of it", "task": "vqa"}
    (tmp_path / "clear.jsonl").write_text(json.dumps(record))
    assert run(tmp_path / "clear.jsonl", "--out", tmp_path / "out", *option)[0] == 0
    (picture,) = re.findall(r"data:image/webp;base64,([^\"]+)", (tmp_path / "out" / "failures.html").read_text())
    image = Image.open(BytesIO(base64.b64decode(html.unescape(picture))))
    assert image.convert("RGB").getpixel((30, 20)) == (shown,) * 3


def test_all_built_in_tasks_in_one_table(run: Run, tmp_path: Path) -> None:
    code, out, err = run("--all", "--count", 1, "--plot", tmp_path / "plot.png")
    assert code == 0
    skipped = {line.split(": ")[0]: line.split(": ")[1] for line in err.split("skipped: ")[1:]}
    causes = {cause.split()[0] for cause in skipped.values()}
    assert causes <= {"no", "photographs"}, "nothing but a colour font and pictures has to be there"
    assert skipped.keys() <= {"emoji", "emoji-grounds", "refusals", "photographs", "things"}
    assert "mean token probability" in out
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.size[0] > 600
    for task in find_tasks().values():
        if task.name not in skipped:
            assert task.name in out
            assert all(target.show() in out for target in task.targets)
    assert "missed" in out


def test_json_is_all_there_is(run: Run, data: Path) -> None:
    code, out, _ = run("words", data, "--count", 1, "--json")
    assert code == 0
    words, mine = [json.loads(line) for line in out.splitlines()]
    assert (words["task"], words["metric"], words["count"]) == ("words", "ocr", 1)
    assert set(words["targets"]) == {"cer"}
    assert mine["rows"][0]["references"] == ["red"]


def test_list(run: Run) -> None:
    code, out, _ = run("--list")
    assert code == 0
    assert all(name in out for name in (*find_tasks(), "consensus", "≥ 97%"))


def test_usage_errors(run: Run, data: Path, tmp_path: Path) -> None:
    for args, said in (
        ([], "name a task (scenes, relations"),
        (["poems"], "poems is neither a task"),
        ([data, "--metric", "bleu"], "choose from caption"),
        (["words", "--metric", "ocr"], "has its own"),
        (["words", "--overwrite"], "goes with --out"),
        (["words", "--background", "sky"], "is not a colour"),
        (["words", "--plot", tmp_path / "none" / "plot.png"], "there is no folder"),
        (["--resolution", tmp_path / "none" / "plot.png"], "there is no folder"),
        ([data, "--metric", "vqa", "--recipe", tmp_path / "recipe.toml"], "--recipe goes with built-in tasks"),
    ):
        code, _, err = run(*args)
        assert code == 2
        assert said in err
    code, _, err = run(tmp_path / "none.jsonl")
    assert code == 3
    assert "cannot read" in err


def test_resolution(run: Run, tmp_path: Path) -> None:
    code, out, err = run("--resolution", tmp_path / "plot.png", "--count", 1)
    assert code == 0, err
    assert "thumbnail alone" in out
    assert all(f"{height} " in out for height in (16, 24, 32, 48, 64, 96))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run("words", "--resolution", tmp_path / "plot.png")
    assert code == 2
    assert "--resolution" in err
