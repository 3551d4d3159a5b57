"""`vl plan` as a user meets it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vl.cli.app as vl_app
from vl.config import VLConfig, write_config
from vl.errors import ConfigError
from vl.plan.models import find_config, released

KEYS = {
    "gpu", "gpus", "measured_gpu", "quantization", "placement", "fits", "problem", "memory",
    "spilled_experts", "max_context", "speed",
}  # fmt: skip
MEMORY = {"weights", "states", "kv", "activations", "overhead", "available", "host", "total"}
SPEED = {"prefill", "vision", "decode", "prefill_tokens", "decode_tokens", "first_token"}


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = vl_app.run(["plan", *map(str, args)])
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.replace("│", " ").split())


def columns(line: str) -> list[str]:
    """The cells of a line of the table that are not empty."""
    return re.split(r"\s{2,}", line.strip())


def as_json(capsys: pytest.CaptureFixture[str], *args: object) -> Any:
    code, out, err = run(capsys, *args, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_a_table_of_one_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--gpus", "8xH100-80GB", "--quantization", "nf4", "--context", "1M", "--batch", 4)
    assert (code, err) == (0, "")
    assert "MiniMax-VL-01: 456 B parameters; sequences at once: 4, each of 1,048,576 tokens" in out
    line = next(line for line in out.splitlines() if "tensor" in line)
    cells = columns(line)
    assert cells[:3] == ["8xH100-80GB", "nf4", "tensor"]
    assert float(cells[3]) == pytest.approx(239.65e9 / 8 / 2**30, rel=0.03)
    assert "bf16" not in line


def test_keys_and_values_in_host_memory(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--gpus", "2xH200", "--quantization", "nf4", "--context", "1M"]
    plain, far = (as_json(capsys, *asked, *more)["options"] for more in ([], ["--host-cache-tokens", "512K"]))
    assert [option["placement"] for option in plain if option["fits"]] == ["spilled"]
    assert (far[0]["placement"], far[0]["fits"], far[0]["memory"]["host"]) == ("tensor", True, 20 * 2**30)
    assert as_json(capsys, *asked, "--host-cache-tokens", "512K")["workload"]["host_cache_tokens"] == 2**19
    assert run(capsys, *asked, "--host-cache-tokens", "many")[0] == 2
    assert as_json(capsys, *asked, "--prefill-tokens", "4K")["workload"]["prefill_tokens"] == 4096


def test_the_smallest_machines_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys)
    assert code == 0
    rows = [line for line in out.splitlines() if re.match(r"\dx", line)]
    assert columns(rows[0])[:2] == ["2xH200", "nf4"]
    assert {form for form in ("bf16", "int8", "fp8", "nf4") if any(f" {form} " in row for row in rows)} == {
        "bf16", "int8", "fp8", "nf4"
    }  # fmt: skip
    assert "larger machines are left out" in out


def test_a_narrow_terminal_gets_whole_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(capsys, "--gpus", "8xH100-80GB")
    assert code == 0
    assert "…" not in out
    heads = next(line for line in out.splitlines() if line.startswith("machine"))
    assert heads.split() == ["machine", "format", "placement", "total", "of", "context", "prefill", "decode"]
    assert re.search(r"^8xH100-80GB  bf16 +tensor .*no room", out, re.M)


@pytest.mark.parametrize(
    ("width", "heads"),
    [
        (70, ["machine", "format", "placement", "total", "context", "decode"]),
        (45, ["machine", "format", "total", "decode"]),
    ],
)
def test_a_narrower_one_gets_fewer_columns_and_whole_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, heads: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = run(capsys, "--gpus", "2xH200")
    assert code == 0
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= width
    assert next(line for line in out.splitlines() if line.startswith("machine")).split() == heads


def test_json_is_the_documented_schema(capsys: pytest.CaptureFixture[str]) -> None:
    record = as_json(capsys, "--gpus", "2xH200", "--images", 2, "--image-size", "4032x3024", "--context", "2k")
    assert record["schema"] == 3
    assert record["model"] == {"name": "MiniMax-VL-01", "parameters": 456437219328}
    assert record["workload"]["tokens"] == 2048 + 2 * 7560
    for option in record["options"]:
        assert set(option) == KEYS
        assert set(option["memory"]) == MEMORY
        assert option["fits"] == (option["problem"] == "")
        assert option["speed"] is None or set(option["speed"]) == SPEED
    page = (Path(vl_app.__file__).parents[2] / "docs" / "plan.md").read_text()
    for key in KEYS | MEMORY | SPEED:
        assert f"`{key}`" in page, key


def test_nothing_fits_is_an_exit_code_and_says_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--gpus", "H200", "--quantization", "bf16", "--host-memory", 1)
    assert code == 3
    assert "no room" in out
    assert "nothing fits on H200: the smallest that works is 8 x H200 with bf16 or 2 x H200 with nf4" in err
    far = ["--host-cache-tokens", "1M", "--context", "1M", "--host-memory", 1]  # 40 GiB of keys and values
    code, _, err = run(capsys, "--gpus", "2xH200", *far)
    assert code == 3
    assert "nor on any known machine: lower --context or --batch, or allow more --host-memory" in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--gpus", "8xVoodoo2"], "known are H200, H100-80GB"),
        (["--gpus", "99xH200"], "1 to 16 GPUs of one host"),
        (["--gpus", "H200", "--gpu-memory", "0"], "--gpu-memory must be above 0"),
        (["--gpus", "H200", "--gpu-memory", "1e300"], "above 0 and below 1,000,000, not 1e+300"),
        (["--gpu-memory", "80"], "go with --gpus"),
        (["--quantization", "int3"], "known are bf16, int8, fp8, nf4"),
        (["--context", "long"], "write 32768, 32K or 1M"),
        (["--context", "0"], "write 32768, 32K or 1M"),
        (["--images", "1", "--image-size", "big"], "write WIDTHxHEIGHT"),
        (["--batch", "0"], "--batch"),
        (["--prefill-tokens", "0"], "write 32768, 32K or 1M"),
        (["--host-memory", "inf"], "--host-memory"),
        (["--image-size", "9x9"], "goes with --images"),
    ],
)
def test_usage_errors_say_what_to_write(capsys: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["no/model"], "built in are MiniMax-VL-01, MiniMax-Text-01 and nano: download its config.json"),
        (["no-model-here"], "check the path"),
        (["MiniMax-Text-01", "--images", "1"], "takes no images"),
        (["--context", "999999999M"], "context must be a whole number from 1 to"),
        (["--images", "1", "--image-size", "0x3"], "an image cannot be 0 x 3 pixels"),
    ],
)
def test_what_cannot_be_planned(capsys: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    code, out, err = run(capsys, *args)
    assert (code, out) == (3, "")
    assert said in err


def test_a_gpu_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    options = as_json(capsys, "nano", "--gpus", "2xMine", "--gpu-memory", 16, "--gpu-bandwidth", 0.5, "--gpu-bf16", 60)[
        "options"
    ]
    assert {(option["gpu"], option["gpus"]) for option in options} == {("Mine", 2)}
    problems = {option["problem"] for option in options if option["quantization"] != "fp8" and not option["fits"]}
    assert problems == {"cuts blocks of 64"}, "in NF4 nano's experts, 160 wide, cannot be cut for two"


def test_models_by_name_folder_and_file(tmp_path: Path) -> None:
    vl01 = find_config("MiniMaxAI/MiniMax-VL-01")
    assert vl01 == find_config("MiniMax-VL-01") == released()
    assert find_config("MiniMax-Text-01") == VLConfig(vl01.text)
    assert find_config("nano").text.hidden_size == 256
    write_config(vl01, tmp_path)
    assert find_config(str(tmp_path)).text == find_config(str(tmp_path / "config.json")).text == vl01.text


def test_a_file_of_another_name_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(ConfigError, match=r"is not a config\.json"):
        find_config(str(other))


def test_experts_of_several_gpus_in_host_memory(capsys: pytest.CaptureFixture[str]) -> None:
    for gpus in ("4090", "2x4090"):
        code, out, _ = run(capsys, "--gpus", gpus, "--quantization", "nf4")
        assert code == 0
        assert columns(next(line for line in out.splitlines() if "4090" in line))[:3] == [
            f"{gpus.removesuffix('4090') or '1x'}RTX-4090",
            "nf4",
            "spilled",
        ]


def test_a_quantised_checkpoint_is_planned_for_as_it_is(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(replace(find_config(str(tiny_checkpoint)), quantization="nf4"), tmp_path)
    options = as_json(capsys, tmp_path, "--gpus", "4090")["options"]
    assert {option["quantization"] for option in options} == {"nf4"}
    code, _, err = run(capsys, tmp_path, "--gpus", "4090", "--quantization", "int8")
    assert code == 3
    assert "stored in nf4: leave int8 out" in err
