"""`vl bench` from the command line at small scale, and what a failing op costs."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

import vl.cli.app as vl_app
from vl.bench import model, vision
from vl.bench.agreement import agreement
from vl.bench.ops import moe, ring
from vl.bench.records import Ceilings, Report, Setting
from vl.bench.runner import Options, run_suite, start
from vl.bench.timing import measure
from vl.bench.worker import matches, run_case
from vl.errors import DeviceError, InputError

FAULTY = """
import os
import time

from vl.bench.records import OURS, Case, Contest, Work


def cases(setting):
    return [
        Case("fine", "first", 1, "tokens", fine, "fine"),
        Case("dies", "quietly", 1, "tokens", dies, "dies"),
        Case("dies", "unbuilt", 2, "tokens", unbuilt, "dies"),
        Case("dies", "after it", 3, "tokens", fine, "dies"),
        Case("poisons", "inputs", 1, "tokens", poisons, "fine"),
        Case("raises", "inputs", 1, "tokens", raises, "fine"),
        Case("raises", "peer", 2, "tokens", peer, "fine"),
    ]


def contest(**contenders):
    return Contest(Work(8, 8).floor, {name: (lambda call: lambda: [call])(call) for name, call in contenders.items()})


def fine():
    return contest(ours=lambda: time.sleep(0.001), peer=lambda: time.sleep(0.003))


def dies():
    return contest(ours=lambda: os._exit(7), peer=lambda: time.sleep(0.001))


def unbuilt():
    os.kill(os.getpid(), 9)


def poisons():
    import __main__  # the worker, which finds that the device does not answer any more

    __main__._recover = lambda device: os._exit(86)
    raise RuntimeError("an illegal memory access was encountered")


def raises():
    raise MemoryError("out of memory: 7 GiB wanted")


def peer():
    def missing():
        import a_package_that_is_nowhere

    def wrong():
        raise ValueError("no such shape\\nand more")

    return contest(ours=lambda: None, missing=missing, wrong=wrong)
"""


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_fault_costs_its_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faulty_suite.py").write_text(FAULTY, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    report = Report({"device": "cpu", "name": "here", "free": 0, "packages": {}}, Ceilings(1e9, 1e9))
    done: list[str] = []
    run_suite("faulty_suite", report, Options(device="cpu", scale="small"), finished=done.append)

    found = {(r.name, r.contender): r for r in report.records}
    assert done == ["fine", "dies"]
    ours, theirs = (found["first", contender].seconds for contender in ("ours", "peer"))
    assert ours is not None
    assert theirs is not None
    assert 0.001 <= ours < 0.5  # how much longer a sleep takes, other processes decide
    assert 0.003 <= theirs < 0.5
    assert report.ours_over(found["first", "peer"]) == pytest.approx(ours / theirs)
    assert "exit code 7" in found["quietly", "ours"].error
    assert found["quietly", "peer"].seconds, "what came after the fault in the same case was measured"
    assert "signal 9" in found["unbuilt", "ours"].error
    assert found["after it", "ours"].seconds
    errors = [r.error for r in report.records if r.name == "inputs"]
    assert errors == [
        "RuntimeError: an illegal memory access was encountered",
        "MemoryError: out of memory: 7 GiB wanted",
    ]
    assert found["peer", "missing"].error.startswith("not installed")
    assert found["peer", "wrong"].error == "ValueError: no such shape"
    assert found["peer", "ours"].seconds is not None
    assert len(report.records) == 12


def test_a_rank_of_a_ring_by_itself() -> None:
    """Its messages come from nowhere; both contenders compute, with gradients where they are to be timed."""
    cases = ring.cases(Setting(torch.device("cpu"), small=True, quick=True))
    assert {case.size for case in cases} == {256, 64}
    for case in cases:
        contest = case.build()
        assert len(contest.contenders) == 2
        for make in contest.contenders.values():
            (call,) = make()
            found = call()
            assert isinstance(found, tuple) == (case.op == ring.TRAINED)


def test_ops_with_json_and_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, chart = tmp_path / "figures.json", tmp_path / "chart.png"
    line = ["bench", "ops", "--scale", "small", "--device", "cpu", "--only", "lightning_decode", "--only", "rotary"]
    assert vl_app.run([*line, "--json", str(figures), "--plot", str(chart)]) == 0
    out = capsys.readouterr().out
    assert "lightning decode" in out
    assert "not compared with: fla" in out or "fla fused" in out
    found = json.loads(figures.read_text("utf-8"))
    assert found["machine"]["packages"]["torch"] == torch.__version__.split("+")[0]
    assert found["ceilings"]["bandwidth"] > 1e8
    ours = [row for row in found["records"] if row["contender"] == "ours"]
    assert {row["op"] for row in ours} == {"lightning decode", "rotary to pages"}
    for row in ours:
        assert row["over_floor"] == pytest.approx(row["seconds"] / row["floor"])
        assert not row["error"]
    with Image.open(chart) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400


@pytest.mark.parametrize("command", [["ops", "--only", "int8"], ["model", "--quantization", "int8"]])
def test_quantised_weights(command: list[str], tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    assert vl_app.run(["bench", *command, "--scale", "small", "--device", "cpu", "--json", str(figures)]) == 0
    records = json.loads(figures.read_text("utf-8"))["records"]
    assert all(row["seconds"] and row["floor"] for row in records)
    if command[0] == "model":
        assert {row["op"] for row in records} == {
            f"{what}, 8 layers, scaled down, int8" for what in ("prefill", "decode")
        }
    else:
        assert {row["op"] for row in records} == {"MoE int8", "projection int8", "out projection int8"}
        assert {row["contender"] for row in records} == {"ours", "not quantised"}


@pytest.mark.parametrize(
    ("suite", "op"),
    [
        (model, "prefill, 8 layers, scaled down"),
        (model, "decode, 8 layers, scaled down"),
        (moe, "MoE layer"),
        (vision, "ViT, scaled down"),
    ],
)
def test_peers_take_the_same_shapes(suite: ModuleType, op: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    setting, out = Setting(torch.device("cpu"), small=True, quick=True), tmp_path / "out.jsonl"
    sizes = [case.size for case in suite.cases(setting) if matches(case, [op])]
    with torch.inference_mode():
        for case in suite.cases(setting):
            if matches(case, [op]) and case.size == min(sizes):
                run_case(case, setting, Ceilings(1e11, 1e11), (), out)
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    found = {line["record"]["contender"]: line["record"] for line in lines if "record" in line}
    assert {"ours", "transformers"} <= set(found)
    assert not [record["error"] for record in found.values() if record["error"]]
    assert len({record["floor"] for record in found.values()}) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["ops", "--device", "cpu", "--only", "nothing"], 3, "it measures lightning prefill"),
        (["ops", "--device", "abacus"], 3, "cpu or cuda"),
        (["ops", "--json", "/nowhere/figures.json"], 2, "cannot write /nowhere/figures.json"),
        (["vision", "--plot", "/nowhere/chart.png"], 2, "cannot write /nowhere/chart.png"),
        (["tune", "abacus"], 3, "choose one of moe, row-scaled, nf4, lightning"),
    ],
)
def test_what_cannot_be_measured(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vl_app.run(["bench", *arguments]) == code
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_patcher_is_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    assert vl_app.run(["bench", "patcher", "--repeats", "1", "--json", str(figures)]) == 0
    assert [row["tiles"] for row in json.loads(figures.read_text("utf-8"))] == [19, 13]
    assert "4032 x 3024" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(DeviceError, match="'cuda'"):
        start(Options(device="cuda"))
    assert vl_app.run(["bench", "tune", "moe"]) == 3


def test_unknown_names_list_what_there_is() -> None:
    report = Report({"device": "cpu", "name": "here", "free": 0, "packages": {}}, Ceilings(1e9, 1e9))
    with pytest.raises(InputError, match="ViT, scaled down"):
        run_suite("vision", report, Options(only=["softmax"]))


def test_several_calls_share_a_turn() -> None:
    calls = []
    timing = measure([lambda: calls.append(1), lambda: calls.append(2)], torch.device("cpu"), budget=0.001)
    assert timing.method == "wall clock"
    assert calls.count(1) == calls.count(2)
    assert 0 < timing.seconds < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["device", "graph", "wall"])
def test_the_gpu_clocks_agree(how: str) -> None:
    device = torch.device("cuda")
    a = torch.randn(4096, 4096, device=device, dtype=torch.bfloat16)
    out = torch.empty_like(a)
    seconds = measure([lambda: torch.mm(a, a, out=out)], device, how=how, budget=0.1).seconds
    assert 2 * 4096**3 / 3e15 < seconds < 0.05


@pytest.mark.gpu
def test_what_waits_for_the_device_is_timed_without_a_graph() -> None:
    device = torch.device("cuda")
    x = torch.randn(1024, device=device)
    assert measure([lambda: x.sum().item()], device, how="graph", budget=0.01).method == "events"
    assert measure([lambda: x.mul(2)], device, how="graph", budget=0.01).method == "graph"


def test_the_head_chooses_as_float64_does(capsys: pytest.CaptureFixture[str]) -> None:
    ours, rounded = agreement(torch.device("cpu"), tokens=1000, small=True)
    assert ours == 1
    assert 0.9 < rounded < 1
    assert vl_app.run(["bench", "head", "--tokens", "1000", "--device", "cpu"]) == 0
    assert f"{rounded:.2%}" in capsys.readouterr().out
