"""`vl convert`: what it writes, what it keeps when it is killed, and what it refuses."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forkserver import Popen
from safetensors.torch import load_file, save_file

import vl
import vl.cli.app as vl_app
import vl.convert
from text_backbone.quantization import FORMATS
from text_backbone.quantization.files import is_quantised, packed
from vl.convert import convert, plan_conversion
from vl.quantization import stored_to_json

PICTURE = np.arange(40 * 50 * 3, dtype=np.uint32).reshape(40, 50, 3).astype(np.uint8)
MESSAGES = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What?"}]}]
INDEX = "model.safetensors.index.json"
ROOT = Path(vl.__file__).parents[1]


def shards(folder: Path) -> dict[str, dict[str, bytes]]:
    """File -> tensor -> its bytes."""
    files = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    return {file: {n: t.view(torch.uint8).numpy().tobytes() for n, t in held.items()} for file, held in files.items()}


def converted(source: Path, target: Path, form: str = "nf4", **options: Any) -> Path:
    return convert(plan_conversion(source, target, form), **options)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("text_only", [False, True])
def test_it_is_what_loading_would_make_of_it(
    form: str, text_only: bool, tiny_checkpoint: Path, tiny_text_checkpoint: Path, tmp_path: Path
) -> None:
    source = tiny_text_checkpoint if text_only else tiny_checkpoint
    calls: list[tuple[int, int]] = []
    folder = converted(source, tmp_path / "new", form, progress=lambda *numbers: calls.append(numbers))
    model, there = vl.load(folder, device="cpu"), vl.load(source, device="cpu", quantization=form)
    assert model.config == there.config
    question: Any = [{"role": "user", "content": "What?"}] if text_only else MESSAGES
    inputs = there.processor(question)
    assert torch.equal(model.logits(inputs), there.logits(inputs))
    assert model.chat(question, max_new_tokens=8) == there.chat(question, max_new_tokens=8)
    assert json.loads((folder / "config.json").read_text()) == json.loads((source / "config.json").read_text()) | {
        "quantization_config": stored_to_json(form)
    }
    assert {path.name for path in folder.iterdir()} == {path.name for path in source.iterdir()}
    for path in source.glob("*.json"):
        if path.name not in ("config.json", INDEX):
            assert (folder / path.name).read_bytes() == path.read_bytes()
    before, after = ({n: t for file in shards(place).values() for n, t in file.items()} for place in (source, folder))
    assert all(after[name] == held for name, held in before.items() if not is_quantised(name)), "as they were, to a bit"
    read = sum(t.nbytes for file in source.glob("*.safetensors") for t in load_file(file).values())
    assert calls[-1] == (read, read)
    assert calls == sorted(calls)


def test_loading_it_quantises_nothing(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = converted(tiny_checkpoint, tmp_path / "new")
    monkeypatch.setattr("text_backbone.quantization.stored.Quantized.load", None)
    assert vl.load(folder, device="cpu").config.quantization == "nf4"


def test_bitsandbytes_reads_a_tensor_of_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bnb = pytest.importorskip("bitsandbytes.functional")
    folder = converted(tiny_checkpoint, tmp_path / "new")
    name = "language_model.model.layers.1.block_sparse_moe.experts.3.w2.weight"
    file = json.loads((folder / INDEX).read_text())["weight_map"][name]
    parts = {n.removeprefix(f"{name}."): t for n, t in load_file(folder / file).items() if n.startswith(f"{name}.")}
    codes = load_file(folder / file)[name]
    values = bnb.dequantize_4bit(codes, bnb.QuantState.from_dict(parts, device=torch.device("cpu")))
    assert values.dtype == torch.bfloat16
    ours = vl.load(folder, device="cpu", dtype="bfloat16").released_tensors()[name].read()
    torch.testing.assert_close(values, ours, rtol=8e-3, atol=1e-6)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("threads", [1, 3])
def test_stopped_at_every_file_and_finished(
    threads: int, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = shards(converted(tiny_checkpoint, tmp_path / "whole"))
    folder, written, calls = tmp_path / "new", list[str](), itertools.count()

    def write(tensors: Any, draft: Path, **options: Any) -> None:
        if next(calls) % 2:
            raise Killed
        save_file(tensors, draft, **options)
        written.append(draft.name)

    monkeypatch.setattr(vl.convert, "save_file", write)
    runs = 0
    while not (folder / "config.json").exists():
        before = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
        plan = plan_conversion(tiny_checkpoint, folder, "nf4")
        assert sorted(plan.finished) == sorted(path.name for path in before)
        try:
            convert(plan, threads=threads)
        except Killed:
            with pytest.raises(vl.Error):
                vl.load(folder, device="cpu")
        assert all(path.stat().st_mtime_ns == when for path, when in before.items())
        runs += 1
        assert runs < 20
    assert runs > 2
    assert len(written) == len(whole)
    assert shards(folder) == whole
    assert not list(folder.glob(".*"))


HELD = """
import sys, time
from pathlib import Path
import vl.convert
from vl.cli.app import main
packed = vl.convert.packed
def held(*args):
    if list(Path(sys.argv[3]).glob("*.safetensors")):
        time.sleep(300)
    return packed(*args)
vl.convert.packed = held
main()
"""
"""A conversion that stands still once it has written a file."""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_ended_and_run_again(how: signal.Signals, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    options = [str(tiny_checkpoint), str(folder), "--quantization", "int8", "--device", "cpu", "--threads", "1"]
    child = Popen(
        [sys.executable, "-c", HELD, "convert", *options],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 200
    while not list(folder.glob("*.safetensors")):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(how)
    _, said = child.communicate(timeout=200)
    assert child.returncode == (-how if how == signal.SIGKILL else 130)
    assert (b"run the same command again" in said) is (how == signal.SIGINT)
    kept = shards(folder)
    assert 0 < len(kept) < len(shards(tiny_checkpoint))
    assert not (folder / "config.json").exists()
    assert vl_app.run(["convert", *options]) == 0
    assert kept.items() <= shards(folder).items()
    assert shards(folder) == shards(converted(tiny_checkpoint, tmp_path / "whole", "int8"))
    assert vl.load(folder, device="cpu").config.quantization == "int8"
    assert not list(folder.glob(".*"))


def test_what_was_not_made_of_these_files_is_made_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = converted(tiny_checkpoint, tmp_path / "new")
    (folder / "config.json").unlink()
    files = sorted(shards(folder))
    assert sorted(plan_conversion(tiny_checkpoint, folder, "nf4").finished) == files
    (folder / files[0]).write_bytes((folder / files[0]).read_bytes()[:-8])
    assert sorted(plan_conversion(tiny_checkpoint, folder, "nf4").left) == files[:1]
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    held = load_file(other / files[2])
    save_file({name: tensor * 2 for name, tensor in held.items()}, other / files[2], metadata={"format": "pt"})
    assert files[2] not in plan_conversion(other, folder, "nf4").finished


def test_what_no_such_conversion_wrote_is_left_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = converted(tiny_checkpoint, tmp_path / "new")
    (folder / "config.json").unlink()
    plan, held = plan_conversion(tiny_checkpoint, folder, "nf4"), shards(folder)
    with pytest.raises(vl.CheckpointError, match="unfinished conversion to nf4: finish that, give another folder"):
        plan_conversion(tiny_checkpoint, folder, "int8")
    file = folder / max(held)
    save_file(load_file(file), file)
    with pytest.raises(vl.CheckpointError, match=rf"{file.name} was not written by a conversion"):
        plan_conversion(tiny_checkpoint, folder, "nf4")
    with pytest.raises(vl.CheckpointError, match=rf"{file.name} was not written by a conversion"):
        convert(plan)
    assert shards(folder) == held


def test_equal_conversions_are_equal_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Each was as likely as not to have its metadata in another order."""
    one, two = (converted(tiny_checkpoint, tmp_path / name) for name in ("one", "two"))
    files = [path.name for path in one.iterdir()]
    assert len(files) > 8
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)


def test_one_conversion_at_a_time(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    first, second = (plan_conversion(tiny_checkpoint, folder, "nf4") for _ in range(2))
    drafts = folder / ".0123456789abcdef.draft", folder / ".tmpJ2tmRQ"
    for draft in drafts:
        draft.touch()

    def meanwhile(*_: int) -> None:
        with pytest.raises(vl.CheckpointError, match="is being written by another conversion: wait until it ends"):
            convert(second)

    convert(first, progress=meanwhile)
    assert not any(draft.exists() for draft in drafts)
    with pytest.raises(vl.CheckpointError, match="holds a model already"):
        convert(second)
    assert vl.load(folder, device="cpu").config.quantization == "nf4"


def test_what_is_left_is_what_is_not_there_when_it_begins(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = converted(tiny_checkpoint, tmp_path / "new")
    (folder / "config.json").unlink()
    held, plan = shards(folder), plan_conversion(tiny_checkpoint, folder, "nf4")
    assert not plan.left
    (folder / min(held)).unlink()
    convert(plan)
    assert shards(folder) == held


def test_a_source_that_changes(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model")), tmp_path / "new"
    file = min(source.glob("*.safetensors"))
    with monkeypatch.context() as patch:
        patch.setattr(vl.convert, "packed", lambda *args: (file.touch(), packed(*args))[1])
        with pytest.raises(vl.CheckpointError, match=rf"{file.name} changed while it was read: convert again"):
            converted(source, folder, threads=1)
    assert file.name not in shards(folder)
    plan = plan_conversion(source, folder, "nf4")
    for part in source.glob("*.safetensors*"):
        part.unlink()
    save_file({k: v for path in tiny_checkpoint.glob("*.safetensors") for k, v in load_file(path).items()}, file)
    whole = file.rename(source / "model.safetensors")
    with pytest.raises(vl.CheckpointError):
        convert(plan)
    (folder / INDEX).touch()  # as a conversion that was killed at its end leaves it
    (folder / "mine.safetensors").write_bytes(whole.read_bytes())
    (folder / "torn.safetensors").touch()
    converted(source, folder)
    assert {path.name for path in folder.glob("*.safetensors*")} == {whole.name, "mine.safetensors", "torn.safetensors"}
    assert vl.load(folder, device="cpu").config.quantization == "nf4"


@pytest.mark.parametrize("value", [float("inf"), 1e39])
@pytest.mark.parametrize("matrix", ["layers.3.self_attn.qkv_proj", "embed_tokens"])
def test_values_that_are_not_finite_in_float32_are_named(
    tiny_checkpoint: Path, tmp_path: Path, matrix: str, value: float
) -> None:
    """Also of what is not quantised: nothing would load it, or float64 alone."""
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    name = f"language_model.model.{matrix}.weight"
    file = source / json.loads((source / INDEX).read_text())["weight_map"][name]
    held = load_file(file)
    held[name] = held[name].double()
    held[name][0, 0] = value
    save_file(held, file)
    with pytest.raises(vl.CheckpointError, match=rf"NaN or infinite values.*{re.escape(matrix)}"):
        converted(source, tmp_path / "new")
    assert not (tmp_path / "new" / "config.json").exists()
    assert file.name not in shards(tmp_path / "new")


def test_what_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = converted(tiny_checkpoint, tmp_path / "new")
    with pytest.raises(vl.CheckpointError, match="holds a model already"):
        plan_conversion(tiny_checkpoint, folder, "nf4")
    with pytest.raises(vl.CheckpointError, match="holds a model already"):
        plan_conversion(tiny_checkpoint, tiny_checkpoint, "nf4")
    with pytest.raises(vl.ConfigError, match="quantised to nf4 already"):
        plan_conversion(folder, tmp_path / "again", "int8")
    with pytest.raises(vl.ConfigError, match=r"'int4'.*'nf4'"):
        plan_conversion(tiny_checkpoint, tmp_path / "again", "int4")
    with pytest.raises(vl.CheckpointError, match="there is no folder"):
        plan_conversion(tmp_path / "nothing", tmp_path / "again", "nf4")
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    (source / "tokenizer.json").unlink()
    with pytest.raises(vl.InputError, match=r"tokenizer\.json: no such file"):
        plan_conversion(source, tmp_path / "again", "nf4")
    assert not (tmp_path / "again").exists()
    (tmp_path / "file").touch()
    with pytest.raises(vl.CheckpointError, match=r"file cannot be written"):
        plan_conversion(tiny_checkpoint, tmp_path / "file", "nf4")


@pytest.mark.parametrize("target", ["", "a\0b", 5, None, b"bytes", ["x"], "~no-such-user-here/x"])
def test_no_folder_is_none(target: Any, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty path would be the folder that one is in."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(vl.CheckpointError, match="a model is saved in a folder: give its path"):
        plan_conversion(tiny_checkpoint, target, "nf4")
    assert not list(tmp_path.iterdir())


def test_the_users_own_folder(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert plan_conversion(tiny_checkpoint, "~/converted", "nf4").target == tmp_path / "converted"


@pytest.mark.parametrize(
    ("how", "error"),
    [({"threads": n}, vl.ConfigError) for n in (0, -2, "2", True)] + [({"device": "cud"}, vl.DeviceError)],
)
def test_how_it_cannot_be_done(how: Any, error: type[Exception], tiny_checkpoint: Path, tmp_path: Path) -> None:
    conversion = plan_conversion(tiny_checkpoint, tmp_path, "int8")
    with pytest.raises(error, match=r"threads=|device 'cud'"):
        convert(conversion, **how)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_what_is_finished(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(vl.convert, "save_file", full)
        with pytest.raises(vl.CheckpointError, match=r"No space left.*finished files"):
            converted(tiny_checkpoint, tmp_path / "new")
    converted(tiny_checkpoint, tmp_path / "new")


def test_the_command_says_what_it_did(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vl.cli.convert._LOG_SECONDS", 0)
    line = ["convert", str(tiny_checkpoint), str(tmp_path / "new"), "--quantization", "fp8", "--device", "cpu"]
    assert vl_app.run(line) == 0
    said = capsys.readouterr()
    count = len(shards(tiny_checkpoint))
    assert f"{count} files, " in said.out
    assert "/s · " in said.err
    assert "s left" in said.err
    (tmp_path / "new" / "config.json").unlink()
    (tmp_path / "new" / min(shards(tiny_checkpoint))).unlink()
    assert vl_app.run(line) == 0
    assert f"{count - 1} of {count} files were finished before" in capsys.readouterr().err
    assert vl_app.run(line) == 3
    assert "holds a model already" in capsys.readouterr().err
    assert vl_app.run([*line[:3], "--quantization", "int3"]) == 2


@pytest.mark.parametrize("command", ["caption", "chat"])
def test_commands_take_quantization(
    command: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    words = ["What?"] if command == "chat" else []
    line = [command, str(tmp_path / "a.png"), *words, "--model", str(tiny_checkpoint), "--max-new-tokens", "6"]
    line += ["--device", "cpu", "--json"]
    key = "text" if command == "chat" else "caption"
    prompt = "What?" if command == "chat" else None
    for form in ("nf4", None):
        assert vl_app.run([*line, *(["--quantization", form] if form else [])]) == 0
        model = vl.load(tiny_checkpoint, device="cpu", quantization=form)
        said = json.loads(capsys.readouterr().out)[key]
        assert said == model.caption(tmp_path / "a.png", prompt, max_new_tokens=6)
