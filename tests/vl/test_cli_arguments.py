"""Wrong arguments and outputs that cannot be written: a sentence, exit code 2 or 3, and nothing lost."""

from __future__ import annotations

import inspect
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from forkserver import run
from PIL import Image

import preprocessing.processor as processor_module
import vl
import vl.cli.app as vl_app
from vl.cli import caption as captions
from vl.cli import chat, evaluate, niah, read, serve, serving, soak
from vl.cli.loading import Loading
from vl.engine import EngineConfig

ROOT = Path(vl.__file__).parents[1]
HUGE = "9" * 20


@pytest.fixture
def red(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (64, 48), "red").save(path)
    return path


def caption(*args: object, model: object) -> int:
    return vl_app.run(["caption", *map(str, args), "--model", str(model)])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--top-k", HUGE], 2, "top_k must be"),
        (["--top-p", "0"], 2, "top_p must be"),
        (["--top-p", "nan"], 2, "--top-p"),
        (["--temperature", "nan"], 2, "--temperature"),
        (["--temperature", "inf"], 2, "temperature must be"),
        (["--seed", "-1"], 2, "--seed"),
        (["--seed", HUGE], 2, "seed must be"),
        (["--max-new-tokens", "0"], 2, "--max-new-tokens"),
        (["--max-new-tokens", HUGE], 2, "max_new_tokens must be"),
        (["--max-new-tokens", "1000000000000"], 3, "max_new_tokens=1000000000000"),
        (["--background", "no colour"], 2, "is not a colour"),
        (["--background", "#00000080"], 2, "not opaque"),
        (["--device", "cuda:99"], 3, "cuda:99"),
        (["--device", ""], 3, "device ''"),
    ],
)
def test_wrong_options(
    args: list[str],
    code: int,
    message: str,
    red: Path,
    tmp_path: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same for a table, a job (whose file stays as it was) and a conversation."""
    out = tmp_path / "out.jsonl"
    before = '{"image": "a.png", "caption": "mine"}\n'
    out.write_text(before)
    for command in (["caption", red], ["caption", red, "--out", out, "--overwrite"], ["chat", red, "What is it?"]):
        assert vl_app.run([str(arg) for arg in (*command, "--model", tiny_checkpoint, *args)]) == code
        said = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert message in said, said
        assert "unexpected" not in said
    assert out.read_text() == before


@pytest.mark.parametrize(
    "command",
    [
        ["convert", "nano", "", "--quantization", "int8"],
        ["convert", "", "there", "--quantization", "int8"],
        ["read", "text.txt", "--session", ""],
        ["ask", "", "Why?"],
        ["train", "tiny", "--out", ""],
        ["train", "lora", "--data", "text.txt", "--init", "", "--out", "there"],
        ["eval", "words", "--out", ""],
        ["eval", "niah", ""],
        ["eval", "niah", "--out", ""],
        ["eval", "niah", "--lengths", ""],
        ["caption", "text.txt", "--out", "rows.jsonl", "--report", ""],
        ["report", "rows.jsonl", ""],
        ["bench", "all", "--json", ""],
        ["plan", ""],
        ["chat", "--model", "", "Why?"],
    ],
    ids=" ".join,
)
def test_nothing_is_named_by_an_empty_argument(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Least of all the current folder, which a path of no characters would be."""
    (tmp_path / "text.txt").write_text("A text.")
    monkeypatch.chdir(tmp_path)
    assert vl_app.run(command) in (2, 3)
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "empty" in said or "'' is not a number of tokens" in said, said
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize(
    ("command", "own"),
    [
        ("caption", {"max_batch_size": 8}),
        ("chat", {}),
        ("eval", {"max_batch_size": 32}),
        ("eval niah", {"max_batch_size": 8, "prefix_memory": 0}),
        ("demo", {}),
    ],
)
def test_commands_that_load_a_model_have_the_engines_options(command: str, own: dict[str, int]) -> None:
    vl_app.load_plugins()
    options = {option.name: option for option in typer.main.get_command(vl_app.app).commands[command].params}
    for setting in fields(EngineConfig):
        option = options[setting.name]
        assert f"--{setting.name.replace('_', '-')}" in option.opts
        assert option.help == setting.metadata["help"]
        assert option.default == own.get(setting.name, setting.default)


def test_the_engine_is_as_the_options_say(
    red: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[vl.MiniMaxVL] = []
    real = vl.load
    monkeypatch.setattr(vl, "load", lambda *args, **options: loaded.append(real(*args, **options)) or loaded[-1])
    options = ["--batch-size", 3, "--prefill-tokens", 70, "--cache-tokens", "1K", "--page-size", 64]
    assert caption(red, "--max-new-tokens", 2, *options, "--host-cache-tokens", 100, model=tiny_checkpoint) == 0
    assert loaded[0].engine.config == EngineConfig(
        max_batch_size=3, prefill_tokens=70, cache_tokens=1024, page_size=64, host_cache_tokens=100
    )
    for option in ("--batch-size", "--max-batch-size", "--prefill-tokens", "--cache-tokens", "--page-size"):
        assert caption(red, option, 0, model=tiny_checkpoint) == 2
        assert f"{option}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["caption", "chat", "eval", "eval niah", "demo"])
def test_commands_that_load_a_model_take_devices(command: str, monkeypatch: pytest.MonkeyPatch, red: Path) -> None:
    given: dict[str, object] = {}

    def load(name: str, **options: object) -> None:
        given.update(options)
        raise vl.DeviceError("enough")

    monkeypatch.setattr(vl, "load", load)
    vl_app.load_plugins()
    about = {"caption": [str(red)], "chat": ["Hello you"], "eval": ["--all", "--count", "1"]}.get(command, [])
    command, *about = [*command.split(), *about]
    for text, devices in (("2", 2), ("auto", "auto"), ("0,1", [0, 1]), ("cuda:0, cuda:3", ["cuda:0", "cuda:3"])):
        assert vl_app.run([command, *about, "--devices", text, "--placement", "layers", "--step-timeout", "90"]) == 3
        assert (given["devices"], given["placement"], given["step_timeout"]) == (devices, "layers", 90)
    assert vl_app.run([command, *about]) == 3
    assert (given["devices"], given["placement"], given["step_timeout"]) == (None, None, None)


def test_batch_size_beyond_the_memory(red: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caption(red, "--batch-size", 10**12, model=tiny_checkpoint) == 3
    assert "max_batch_size=1000000000000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("folder.jsonl", 3, "directory"),
        ("red.png/out.jsonl", 3, "cannot write"),
        ("x" * 300 + ".jsonl", 3, "name too long"),
        ("nul\0.jsonl", 2, "NUL character"),
        ("/proc/nothing/out.jsonl", 3, "cannot write"),
        ("out.csv", 2, "JSON Lines"),
    ],
)
def test_out_that_cannot_be(
    name: str, code: int, message: str, red: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (red.parent / "folder.jsonl").mkdir()
    assert caption(red, "--out", red.parent / name, model=tiny_checkpoint) == code
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_out_in_a_new_folder(red: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    out = tmp_path / "new" / "folder" / "out.jsonl"
    assert caption(red, "--out", out, "--max-new-tokens", 2, model=tiny_checkpoint) == 0
    assert len(rows(out)) == 1


def test_overwrite_loses_nothing_to_a_wrong_command(
    red: Path, tmp_path: Path, tiny_checkpoint: Path, tiny_text_checkpoint: Path
) -> None:
    out = tmp_path / "out.jsonl"
    job = [red, "--out", out, "--max-new-tokens", 2]
    assert caption(*job, model=tiny_checkpoint) == 0
    before = out.read_bytes()
    for model in (tmp_path / "nowhere", tiny_text_checkpoint):
        assert caption(*job, "--overwrite", model=model) == 3
        assert out.read_bytes() == before
    assert caption(*job, "--overwrite", "--prompt", "Colour?", model=tiny_checkpoint) == 0
    assert [row["prompt"] for row in rows(out)] == ["Colour?"]


def test_a_resume_with_other_settings_is_refused(
    red: Path, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    job = [red, "--out", out, "--max-new-tokens", 2]
    assert caption(*job, model=tiny_checkpoint) == 0
    for changed, difference in (
        (["--max-new-tokens", 3], "max_new_tokens 2, not 3"),
        (["--temperature", 1], "temperature 0.0, not 1.0"),
        (["--background", "white"], "background None, not '#ffffff'"),
    ):
        assert caption(*job, *changed, model=tiny_checkpoint) == 3
        said = capsys.readouterr().err
        assert difference in said
        assert "--overwrite" in said
    assert caption(*job, model=tiny_checkpoint) == 0


def test_background(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clear = Image.new("RGBA", (640, 480), (0, 0, 0, 0))
    clear.paste((200, 0, 0, 255), (10, 10, 300, 400))
    clear.save(tmp_path / "clear.png")
    white = Image.new("RGB", clear.size, "white")
    white.paste(clear, mask=clear)
    seen: list[Image.Image] = []
    load = processor_module.load_image

    def watched(*args: Any, **options: Any) -> Image.Image:
        seen.append(load(*args, **options))
        return seen[-1]

    monkeypatch.setattr(processor_module, "load_image", watched)
    options = ["--model", str(tiny_checkpoint), "--max-new-tokens", "2", "--json", "--background", "#fff"]
    assert vl_app.run(["caption", str(tmp_path / "clear.png"), *options]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["background"] == "#ffffff"
    assert vl_app.run(["chat", str(tmp_path / "clear.png"), "What?", *options]) == 0
    assert [image.tobytes() == white.tobytes() for image in seen] == [True, True]


def test_a_file_wins_over_a_data_url(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48), "red").save("data:x.png")
    options = ["--model", str(tiny_checkpoint), "--max-new-tokens", "2", "--json"]
    assert vl_app.run(["chat", "data:x.png", "What?", *options]) == 0
    assert json.loads(capsys.readouterr().out)["usage"]["image_tokens"] > 0


@pytest.mark.parametrize(
    "args", [["--port", "99999"], ["--port", "0"], ["--host", "a" * 70 + ".org"], ["--host", "x\0y"], ["--host", "9.9"]]
)
def test_where_the_page_cannot_be_served(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from demo.command import register

    before = [*vl_app.app.registered_commands]
    try:
        register(vl_app.app)
        assert vl_app.run(["demo", "--no-browser", *args]) in (2, 3)
    finally:
        vl_app.app.registered_commands[:] = before
    assert "unexpected" not in capsys.readouterr().err


# Processes of their own


def start(*args: object, model: Path, buffered: bool = True, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """`--json` rows, as a table is too short to fill a buffer."""
    begin = subprocess.run if "preexec_fn" in options else run
    return begin(
        [sys.executable, "-m", "vl.cli", *map(str, args), "--model", str(model), "--max-new-tokens", "2"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "" if buffered else "1"},
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("json_", [True, False])
def test_standard_output_on_a_full_disk(red: Path, tiny_checkpoint: Path, json_: bool, buffered: bool) -> None:
    args = ["caption", red, *(["--json"] if json_ else [])]
    with open("/dev/full", "wb") as full:
        ran = start(*args, model=tiny_checkpoint, buffered=buffered, stdout=full)
    assert ran.returncode == 3, ran.stderr
    assert ran.stderr == b"error: writing the output: No space left on device\n"


def test_a_job_on_a_full_disk(red: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    out = tmp_path / "out.jsonl"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    small: Callable[[], None] = limit
    ran = start("caption", red, "--out", out, model=tiny_checkpoint, stdout=subprocess.DEVNULL, preexec_fn=small)
    assert ran.returncode == 3, ran.stderr
    assert b"File too large" in ran.stderr
    assert b"run the same command again" in ran.stderr
    assert out.read_bytes() == b""
    assert start("caption", red, "--out", out, model=tiny_checkpoint, stdout=subprocess.DEVNULL).returncode == 0
    assert len(rows(out)) == 1


def test_arguments_that_are_not_utf8(red: Path, tiny_checkpoint: Path) -> None:
    prompt = os.fsdecode(b"caf\xe9?")
    for command in (["caption", red, "--json", "--prompt", prompt], ["chat", red, prompt, "--json"]):
        ran = start(*command, model=tiny_checkpoint, stdout=subprocess.PIPE)
        assert ran.returncode == 0, ran.stderr
        json.loads(ran.stdout)
    for command in (["caption", os.fsdecode(b"\xff.png")], ["chat", os.fsdecode(b"\xff.png"), "What?"]):
        ran = start(*command, model=tiny_checkpoint, stdout=subprocess.PIPE)
        assert ran.returncode in (1, 3)
        assert b"no such file" in ran.stderr + ran.stdout


def test_every_way_to_load_is_an_option_of_every_command_that_loads_a_model() -> None:
    wanted = set(inspect.signature(vl.load).parameters) - {"source", "progress", "warm_up", "options"}
    wanted |= {setting.name for setting in fields(EngineConfig)}
    assert set(Loading().arguments()) == wanted
    loading = [
        captions.caption,
        chat.chat,
        read.read,
        read.ask,
        serve.serve,
        evaluate.evaluate,
        serving.serve,
        soak.soak,
    ]
    for command in loading:
        assert wanted <= set(inspect.signature(command).parameters), command.__name__
    assert wanted - set(inspect.signature(niah.niah).parameters) == {"background"}  # its pages are opaque
