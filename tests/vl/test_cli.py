"""The `vl` command as a user meets it: output, exit codes and messages."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from PIL import Image

import vl
import vl.cli.app as vl_app
from vl.jobs import RowFile, caption_images

ROOT = Path(vl.__file__).parents[1]


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Standard error as running text: Typer draws a box around usage errors and wraps them."""
        return " ".join(self.err.replace("│", " ").split())

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Standard output, which has to be JSON Lines and nothing else."""
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path) -> Run:
    """Runs a command line in this process. `caption` and `chat` get the tiny model and write four tokens."""

    def call(*args: object, model: object = tiny_checkpoint, tokens: int = 4) -> Ran:
        line = [str(arg) for arg in args]
        if line[:1] in (["caption"], ["chat"]):
            line += ["--model", str(model), "--max-new-tokens", str(tokens)]
        capsys.readouterr()
        code = vl_app.run(line)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (64, 48), "red").save(folder / "red.png")
    Image.new("RGB", (700, 300), "blue").save(folder / "blue.webp")
    (folder / "more").mkdir()
    Image.new("L", (336, 336), 90).save(folder / "more" / "grey.jpg")
    return folder


@pytest.fixture
def mixed(images: Path, tmp_path: Path) -> Path:
    """A good image and a broken one."""
    (tmp_path / "good.png").write_bytes((images / "red.png").read_bytes())
    (tmp_path / "torn.png").write_bytes((images / "red.png").read_bytes()[:40])
    return tmp_path


# vl caption


def test_table(run: Run, images: Path, tiny_model: vl.MiniMaxVL) -> None:
    ran = run("caption", images)
    assert ran.code == 0
    assert ran.err == ""
    assert "3 captions in" in ran.out
    assert "images/s" in ran.out
    for name, size in (("blue.webp", (700, 300)), ("red.png", (64, 48)), ("grey.jpg", (336, 336))):
        line = next(line for line in ran.out.splitlines() if name in line)
        grid = tiny_model.processor.patcher.grid(*size)
        cells = [cell.strip() for cell in line.split("│")]
        assert cells[2:6] == [
            "{} x {}".format(*size),
            "{} x {}".format(*grid.resolution),
            str(grid.tiles),
            f"{grid.tokens:,}",
        ]


def test_json_is_all_there_is(run: Run, images: Path, tiny_model: vl.MiniMaxVL) -> None:
    ran = run("caption", images, "--json", "--prompt", "What colour?", "--batch-size", "2")
    assert ran.code == 0
    assert [Path(row["image"]).name for row in ran.rows] == ["blue.webp", "red.png", "grey.jpg"]
    for row in ran.rows:
        expected = tiny_model.caption(row["image"], "What colour?", max_new_tokens=4)
        assert row["caption"] == expected.strip()
        assert row["prompt"] == "What colour?"
    assert (ran.rows[0]["width"], ran.rows[0]["height"]) == (700, 300)


def test_a_bad_image_costs_its_row(run: Run, mixed: Path) -> None:
    ran = run("caption", mixed, "--json")
    assert ran.code == 1
    good, torn = ran.rows
    assert "caption" in good
    assert "torn.png" in torn["error"]
    shown = run("caption", mixed, mixed / "missing.png")
    assert shown.code == 1
    assert "1 caption, 2 errors" in shown.out
    assert "missing.png" in shown.out
    assert "Traceback" not in shown.out + shown.err


def test_a_list_on_stdin(run: Run, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the mark that some editors begin with, and empty lines."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"\ufeff{images}/red.png\r\n\r\n{images}/more\n"))
    assert [Path(row["image"]).name for row in run("caption", "-", "--json").rows] == ["red.png", "grey.jpg"]


def test_processes_for_images_start_before_the_model_is_there(
    run: Run, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    monkeypatch.setattr("vl.jobs.cutting.default_workers", lambda device: 3 if device.type == "cpu" else 4)
    monkeypatch.setattr("vl.jobs.cutting.start_ahead", started.append)
    monkeypatch.setattr("vl.load", lambda *given, **more: pytest.fail("too late") if not started else 1 / 0)
    assert "ZeroDivisionError" in run("caption", images / "red.png", "--device", "cpu").err
    assert started == [3]


def test_what_a_folder_holds_besides_images_is_said(run: Run, images: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    ran = run("caption", tmp_path)
    assert ran.code == 2
    assert f"note: {tmp_path}: passed over 1 file: 1 .txt" in ran.err
    (tmp_path / "red.png").write_bytes((images / "red.png").read_bytes())
    ran = run("caption", tmp_path, "--out", tmp_path / "captions.jsonl")
    assert ran.code == 0
    assert ran.err.count("passed over") == 1


def test_names_cannot_drive_the_terminal(run: Run, images: Path, tmp_path: Path) -> None:
    for name in ("\x1b[31mred.png", "[bold]b.png", os.fsdecode(b"caf\xe9.png")):
        (tmp_path / name).write_bytes((images / "red.png").read_bytes())
    ran = run("caption", tmp_path)
    assert ran.code == 0
    assert "\x1b" not in ran.out
    for shown in (r"\x1b[31mred.png", "[bold]b.png", r"caf\udce9.png"):
        assert shown in ran.out


def test_job(run: Run, mixed: Path, tiny_model: vl.MiniMaxVL, images: Path) -> None:
    out = mixed / "captions.jsonl"
    ran = run("caption", mixed, "--out", out)
    assert ran.code == 1
    assert "1 caption, 1 error" in ran.out
    assert "--retry-errors" in ran.out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0]["caption"] == tiny_model.caption(mixed / "good.png", max_new_tokens=4).strip()
    again = run("caption", mixed, "--out", out)
    assert again.code == 1
    assert "nothing left to do: 2 rows" in again.out
    assert "--retry-errors" in again.out
    (mixed / "torn.png").write_bytes((images / "red.png").read_bytes())
    fixed = run("caption", mixed, "--out", out, "--retry-errors", "--json")
    assert fixed.code == 0
    assert [Path(row["image"]).name for row in fixed.rows] == ["torn.png"]
    assert len(out.read_text().splitlines()) == 2


def test_captions_beside_the_images(run: Run, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(images, folder)
    (folder / "red.txt").write_text("tag")
    command = (
        "caption",
        folder,
        "--out",
        tmp_path / "out.jsonl",
        "--beside",
        "--existing",
        "append",
        "--prefix",
        "a. ",
    )
    assert run(*command).code == 0
    rows = {Path(row["image"]).stem: row for row in map(json.loads, (tmp_path / "out.jsonl").open())}
    assert (folder / "red.txt").read_text() == f"tag a. {rows['red']['caption']}\n"
    grey = Path(rows["grey"]["image"]).with_suffix(".txt")
    assert grey.read_text() == f"a. {rows['grey']['caption']}\n"
    assert "nothing left to do" in run(*command).out
    out = ("--out", "x.jsonl")
    for wrong in (
        ("--beside",),
        ("--prefix", "x"),
        ("--existing", "skip", *out),
        ("--beside", "--separator", ",", *out),
    ):
        assert run("caption", folder, *wrong).code == 2


def test_several_prompts(run: Run, images: Path, tiny_model: vl.MiniMaxVL) -> None:
    ran = run("caption", images / "red.png", "--json", "--prompt", "Colour?", "--prompt", "shape=Which {{shape}}?")
    (row,) = ran.rows
    assert row["prompt"] == {"caption": "Colour?", "shape": "Which {shape}?"}
    for column, prompt in row["prompt"].items():
        assert row[column] == tiny_model.caption(images / "red.png", prompt, max_new_tokens=4).strip()
    table = run("caption", images / "red.png", "--prompt", "colour=Colour?", "--prompt", "shape=Which shape?")
    assert "colour" in table.out
    assert "shape" in table.out
    assert run("caption", images, "--prompt", "error=What is wrong?").code == 2
    refused = run("caption", images, "--prompt", "Describe this {kind}.")
    assert (refused.code, "{{kind}}" in refused.said) == (3, True)


def test_a_job_in_parquet(run: Run, mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(f"photo\n{mixed / 'good.png'}\n{tmp_path / 'gone.png'}\n")
    command = ("caption", tmp_path / "table.csv", "--column", "photo", "--out", tmp_path / "out.parquet")
    first = run(*command)
    assert (first.code, "1 error in" in first.out) == (1, True)
    again = run(*command)
    assert (again.code, "nothing left to do: 2 rows" in again.out) == (1, True)
    Image.new("RGB", (9, 9)).save(tmp_path / "gone.png")
    assert run(*command, "--retry-errors").code == 0
    assert run("caption", mixed / "good.png", "--column", "photo").code == 2


def test_a_job_goes_on_with_the_same_weights_alone(
    run: Run, images: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    out = tmp_path / "out.jsonl"
    assert run("caption", images, "--out", out).code == 0
    before = out.read_bytes()
    for option, value, message in (
        ("--dtype", "bfloat16", "dtype 'float32', not 'bfloat16'"),
        ("--quantization", "int8", "quantization None, not 'int8'"),
    ):
        refused = run("caption", images, "--out", out, option, value)
        assert (refused.code, message in refused.said) == (3, True), refused.err
        assert out.read_bytes() == before
    tally = caption_images(vl.load(tiny_checkpoint), [images], out, max_new_tokens=4)
    assert (tally.images, tally.skipped) == (0, 3), "the Python API knows the same settings"
    out.unlink()
    assert run("caption", images, "--out", out, "--dtype", "bfloat16", "--quantization", "int8").code == 0
    settings = json.loads(out.read_text().splitlines()[0])["settings"]
    assert (settings["dtype"], settings["quantization"]) == ("bfloat16", "int8")
    model = vl.load(tiny_checkpoint, dtype="bfloat16", quantization="int8")
    assert caption_images(model, [images], out, max_new_tokens=4).skipped == 3


def test_job_refusals(run: Run, images: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    out = tmp_path / "captions.jsonl"
    assert run("caption", images, "--out", out).code == 0
    other = run("caption", images, "--out", out, "--prompt", "Colours?")
    assert other.code == 3
    assert "--mix, or start again with --overwrite" in other.said
    mixed = run("caption", images, "--out", out, "--prompt", "Colours?", "--mix")
    assert "nothing left to do: 3 rows" in mixed.out
    with RowFile(out, model=str(tiny_checkpoint), prompt=vl.DEFAULT_PROMPT):
        locked = run("caption", images, "--out", out)
    assert locked.code == 3
    assert "another run" in locked.err
    assert run("caption", images, "--out", out, "--prompt", "Colours?", "--overwrite").code == 0
    assert "Colours?" in out.read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["caption"], "Missing argument"),
        (["caption", "{empty}"], "no image in"),
        (["caption", "{images}", "--out", "x.csv"], "JSON Lines"),
        (["caption", "{images}", "--retry-errors"], "--out"),
        (["caption", "{images}", "--temperature", "-1"], "temperature"),
        (["caption", "{images}", "--batch-size", "0"], "batch-size"),
        (["caption", "{images}", "--dtype", "int3"], "dtype"),
        (["caption", "{images}", "--colour"], "No such option"),
        (["chat", "{images}/red.png", "--json"], "needs a question"),
        (["paint"], "No such command"),
    ],
)
def test_usage_errors(run: Run, images: Path, tmp_path: Path, args: list[str], message: str) -> None:
    ran = run(*(arg.format(images=images, empty=tmp_path) for arg in args))
    assert ran.code == 2
    assert message in ran.said
    assert ran.out == ""


def test_unusable_models(run: Run, images: Path, tmp_path: Path, tiny_text_checkpoint: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    for model, options, cause in (
        (tmp_path, [], str(tmp_path)),
        (tiny_text_checkpoint, [], "text-only"),
        (None, ["--device", "abacus"], "abacus"),
    ):
        ran = run("caption", images, *options, **({"model": model} if model else {}))
        assert ran.code == 3
        assert cause in ran.err
        assert ran.err.startswith("error: ")
        assert "Traceback" not in ran.err
        assert ran.out == ""


def test_a_bug_is_short_unless_asked(run: Run, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **options: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(vl, "load", load, raising=False)
    ran = run("caption", images)
    assert ran.code == 70
    assert ran.err.count("\n") == 1
    assert "ZeroDivisionError: boom" in ran.err
    assert "VL_TRACEBACK=1" in ran.err
    monkeypatch.setenv("VL_TRACEBACK", "1")
    assert "Traceback" in run("caption", images).err


# The command itself


def test_help_and_version_do_not_load_torch() -> None:
    code = "import sys; from vl.cli.app import run; run(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    for args, shown in ((["--help"], "caption"), (["caption", "--help"], "--out"), (["--version"], vl.__version__)):
        done = subprocess.run(
            [sys.executable, "-c", code, *args],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout


def test_plugins(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def register(app: typer.Typer) -> None:
        @app.command("greet")
        def greet() -> None:
            print("hello")

    def broken() -> None:
        raise ImportError("no such module")

    plugins = [SimpleNamespace(name="broken", load=broken), SimpleNamespace(name="greet", load=lambda: register)]
    monkeypatch.setattr(vl_app, "entry_points", lambda group: plugins if group == "vl.commands" else [])
    monkeypatch.setattr(vl_app.app, "registered_commands", [*vl_app.app.registered_commands])
    vl_app.load_plugins()
    ran = run("greet")
    assert (ran.code, ran.out) == (0, "hello\n")


def test_train_reports_a_bad_recipe(run: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[text]\nlayers = 'many'\n")
    ran = run("train", tmp_path / "recipe.toml", "--out", tmp_path / "run")
    assert ran.code == 3
    assert "recipe.toml" in ran.err
    assert run("train", tmp_path / "recipe.toml").code == 2


def test_eval(run: Run, tiny_checkpoint: Path) -> None:
    ran = run("eval", "scenes", "--model", tiny_checkpoint, "--count", 2, "--json")
    assert ran.code == 0
    (result,) = ran.rows
    assert result["task"] == "scenes"
    assert len(result["rows"]) == result["count"] == 2
    shown = run("eval", "words", "--model", tiny_checkpoint, "--count", 1)
    assert shown.code == 0
    assert "cer" in shown.out


def test_a_warning_is_what_it_says_and_not_the_code_that_says_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn() -> int:
        warnings.warn("[3] experts are in\x1b[31m host memory", stacklevel=1)
        warnings.warn("soon gone", FutureWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(vl_app, "run", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)  # of what an earlier test left
        with pytest.raises(SystemExit):
            vl_app.main()
    said = capsys.readouterr().err
    assert said == "warning: [3] experts are in\\x1b[31m host memory\nwarning (FutureWarning): soon gone\n"
