"""`vl eval niah` as a user meets it, on small random models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import vl.cli.app as vl_app
from vl.evaluation.niah import run as niah_run

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--lengths", "256,1k", "--depths", "0,100", "--count", 1, "--max-new-tokens", 2)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tiny_text_checkpoint: Path) -> Run:
    """Runs `vl eval niah`, with a tiny text model unless another is named; returns exit code, stdout and stderr."""

    def call(*args: object) -> tuple[int, str, str]:
        model = () if "--model" in args else ("--model", tiny_text_checkpoint)
        capsys.readouterr()
        code = vl_app.run(["eval", "niah", *map(str, (*args, *model))])
        said = capsys.readouterr()
        return code, said.out, " ".join(said.err.replace("│", " ").split())

    return call


def test_a_table_and_a_folder_that_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    code, said, err = run(*SMALL, "--out", out)
    assert code == 0, err
    assert "needles in text found by" in said
    assert all(text in said for text in ("256", "1K", "100%", "all", "heat map: "))
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [(row["length"], row["tokens"], row["depth"]) for row in rows] == [
        (length, length, depth) for length in (256, 1024) for depth in (0, 100)
    ]
    assert all(row["score"] == 0 for row in rows), "a random model finds nothing"
    assert (out / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    asked: list[str] = []
    prepare = niah_run._prepare
    monkeypatch.setattr(niah_run, "_prepare", lambda model, case: asked.append(case.id) or prepare(model, case))
    code, said, _ = run(*SMALL, "--out", out, "--depths", "0,50,100")
    assert code == 0
    assert sorted(asked) == ["text-1024-50-0", "text-256-50-0"], "depths may be added"
    code, _, err = run(*SMALL, "--out", out, "--seed", 1)
    assert code == 3
    assert "holds answers with seed 0, not 1" in err
    assert run(*SMALL, "--out", out, "--seed", 1, "--overwrite")[0] == 0


def test_answers_of_other_weights_are_not_taken_for_the_models(
    run: Run, tmp_path: Path, tiny_text_checkpoint: Path
) -> None:
    """A model that was trained again into its folder has the same name."""
    model = shutil.copytree(tiny_text_checkpoint, tmp_path / "model")
    asked = ["--model", model, "--out", tmp_path / "out", "--lengths", 256, *SMALL[2:]]
    assert run(*asked)[0] == 0
    shard = next(model.glob("*-00001-of-*"))
    tensors = {name: tensor * 1.5 for name, tensor in load_file(shard).items()}
    save_file(tensors, shard, metadata={"format": "pt"})
    code, _, err = run(*asked)
    assert code == 3
    assert "holds answers with weights" in err
    assert run(*asked, "--overwrite")[0] == 0


def test_json_is_all_there_is(run: Run) -> None:
    code, out, _ = run(*SMALL, "--json", "--distractors", 2)
    assert code == 0
    result = json.loads(out)
    assert (result["kind"], result["distractors"], result["seed"]) == ("text", 2, 0)
    assert (result["lengths"], result["depths"]) == ([256, 1024], [0, 100])
    assert result["cells"] == [[0, 0], [0, 0]]
    assert len(result["rows"]) == result["count"] == 4
    assert not result["errors"]


def test_chats_of_files(run: Run, tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "Name fruits"},
        {"role": "assistant", "content": "1. Kiwi\n2. Fig"},
        {"role": "user", "content": "Please repeat them"},
    ]
    record = {"messages": messages, "label": "1. Kiwi\n2. Fig", "length_class": 2048}
    (tmp_path / "chats.jsonl").write_text(f"{json.dumps(record)}\noops\n")
    code, out, err = run(tmp_path / "chats.jsonl", "--max-new-tokens", 2)
    assert code == 1, err
    assert "answers of long chats" in out
    assert "2K" in out
    assert "chats.jsonl:2: not JSON" in out
    out, longer = tmp_path / "out", tmp_path / "longer.jsonl"
    longer.write_text(json.dumps(record | {"length_class": 4096}) + "\n")
    assert run(tmp_path / "chats.jsonl", "--max-new-tokens", 2, "--out", out)[0] == 1
    assert run(longer, "--max-new-tokens", 2, "--out", out)[0] == 0, "files may be added"
    assert set(json.loads((out / "settings.json").read_text())["sha256"]) == {"chats.jsonl", "longer.jsonl"}
    longer.write_text(longer.read_text() * 2)
    code, _, err = run(longer, "--max-new-tokens", 2, "--out", out)
    assert code == 3
    assert "holds answers with sha256 of longer.jsonl" in err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "longer.jsonl").write_text("{}")
    code, _, err = run(longer, tmp_path / "other" / "longer.jsonl")
    assert code == 3
    assert "have one name, by which their chats are known: rename one" in err
    (tmp_path / "none.jsonl").write_text("")
    assert "no records" in run(tmp_path / "none.jsonl")[2]
    code, _, err = run(tmp_path / "gone.jsonl")
    assert code == 3
    assert "cannot read" in err


def test_pages(run: Run, tiny_checkpoint: Path) -> None:
    code, out, err = run("--pages", "--lengths", 4096, "--depths", 50, "--count", 1, "--model", tiny_checkpoint)
    assert code == 0, err
    assert "needles on pages found by" in out
    code, _, err = run("--pages", *SMALL)
    assert code == 3
    assert "is a text-only checkpoint and sees no pages" in err


def test_usage_errors(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    for args, said in (
        (["--lengths", "1k,many"], "'many' is not a number of tokens: write 32768, 32K or 1M"),
        (["--lengths", "0"], "'0' is not a number of tokens"),
        (["--depths", "0,101"], "are not depths: write percents"),
        (["--depths", "deep"], "are not depths"),
        (["--depths", ""], "are not depths"),
        ([tmp_path / "a.jsonl", "--lengths", "1k"], "goes with prompts that are made"),
        ([tmp_path / "a.jsonl", "--pages"], "goes with prompts that are made"),
        ([tmp_path / "a.jsonl", "--seed", "0"], "goes with prompts that are made"),
        (["--overwrite"], "goes with --out"),
    ):
        code, _, err = run(*args)
        assert code == 2, args
        assert said in err


def test_what_ends_a_run_before_it_begins(run: Run, tmp_path: Path, tiny_text_checkpoint: Path) -> None:
    for args, said in (
        (["--haystack", tmp_path / "none.txt"], "cannot read the haystack"),
        (["--lengths", "256,900M"], "prompts of 943,718,400 tokens are too long: "),
        (["--lengths", "10"], "10 tokens are too few"),
    ):
        code, out, err = run(*args)
        assert code in (1, 3)
        assert said in err + out
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in tiny_text_checkpoint.iterdir():
        if "tokenizer" not in file.name:
            (bare / file.name).symlink_to(file)
    code, _, err = run(*SMALL, "--model", bare)
    assert code == 3
    assert "tokenizer.json: no such file" in err


def test_niah_goes_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert vl_app.run(["eval", "scenes", "niah"]) == 2
    assert "niah has options of its own, and goes first" in " ".join(capsys.readouterr().err.split())
    assert vl_app.run(["eval", "niah", "--help"]) == 0
    assert "vl eval niah" in capsys.readouterr().out
