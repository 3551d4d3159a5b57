"""Runs suites of cases in processes of their own, so that a kernel's fault costs its row and no other."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from vl.bench.records import OURS, Case, Ceilings, Record, Report, Setting
from vl.bench.worker import EXIT_POISONED, matches
from vl.errors import DeviceError, InputError

SUITES = {"ops": "vl.bench.ops", "vision": "vl.bench.vision", "model": "vl.bench.model"}
TIMEOUT = 900.0  # seconds that one process may take

_FULL_MEMORY = 40 * 2**30  # bytes that the full-size ops need

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """`scale`: full or small, None for what the device holds; `only`: parts of the names of what to measure.

    quantization: the format of the weights of the suite `model`.
    """

    device: str | None = None
    scale: str | None = None
    only: Sequence[str] = ()
    quick: bool = False
    quantization: str | None = None


def start(options: Options) -> Report:
    """A report without records: the machine and its ceilings, measured by a process that then gives its memory back.

    Raises:
        DeviceError: if the device is not there.
    """
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise DeviceError(f"measurements run on cpu or cuda, not on {device!r}")
    lines, died = _work({"task": "machine", "device": device})
    if died or not lines:
        raise DeviceError(f"cannot measure on {device!r}: {died}")
    return Report(lines[0]["machine"], Ceilings(**lines[0]["ceilings"]))


def run_suite(
    suite: str, report: Report, options: Options, *, say: Say = lambda _: None, finished: Say = lambda _: None
) -> None:
    """Add the records of a suite to `report`.

    Args:
        suite: a key of `SUITES`, or the name of a module with a function `cases(setting)`.
        say: told what is being measured.
        finished: told the name of each group of cases that is done.

    Raises:
        InputError: if nothing in the suite is called like `options.only`.
    """
    setting = setting_for(report, options)
    module = SUITES.get(suite, suite)
    cases = suite_cases(module, setting)
    wanted = [case for case in cases if matches(case, options.only)]
    if not wanted:
        known = ", ".join(dict.fromkeys(case.op for case in cases))
        raise InputError(f"`vl bench {suite}` has nothing called {', '.join(options.only)!r}: it measures {known}")
    for group in dict.fromkeys(case.group for case in wanted):
        _run_group(module, group, report, options, setting, say)
        finished(group)


def suite_cases(module: str, setting: Setting) -> list[Case]:
    """What a suite measures; nothing is allocated yet."""
    return import_module(module).cases(setting)


def setting_for(report: Report, options: Options) -> Setting:
    """Full size on a GPU with room for it, unless `options` say otherwise."""
    device, free = torch.device(report.machine["device"]), report.machine["free"]
    small = options.scale == "small" if options.scale else device.type != "cuda" or free < _FULL_MEMORY
    return Setting(device, small, options.quick, free, options.quantization)


def _run_group(module: str, group: str, report: Report, options: Options, setting: Setting, say: Say) -> None:
    """Measure a group's cases, in another process after each fault, until none is left."""
    spec: dict[str, Any] = {
        "task": "cases",
        "suite": module,
        "group": group,
        "only": list(options.only),
        "device": report.machine["device"],
        "small": setting.small,
        "quick": setting.quick,
        "memory": setting.memory,
        "quantization": setting.quantization,
        "ceilings": asdict(report.ceilings),
        "done": [],
    }
    while True:
        lines, died = _work(spec, say)
        found = [Record(**line["record"]) for line in lines if "record" in line]
        begun = [Record(**line["begun"]) for line in lines if "begun" in line]
        report.records += found
        done = [[r.op, r.name, r.contender] for r in found]
        done += [[r.op, r.name, ""] for r in found if r.floor is None]  # whose inputs cannot be made
        if died and begun and [begun[-1].op, begun[-1].name, begun[-1].contender] not in done:
            lost = begun[-1]
            done.append([lost.op, lost.name, lost.contender])
            report.records.append(replace(lost, contender=lost.contender or OURS, error=died))
        elif died and not done:
            report.records.append(Record(group, "all", 0, "", OURS, error=died))
            return
        if not died:
            return
        spec["done"] += done


def _work(spec: dict[str, Any], say: Say = lambda _: None) -> tuple[list[dict[str, Any]], str]:
    """Run one worker; the lines that it wrote, and why it ended early if it did."""
    with tempfile.TemporaryDirectory(prefix="vl-bench-") as folder:
        out, log = Path(folder) / "out.jsonl", Path(folder) / "log"
        out.touch()
        command = [sys.executable, "-m", "vl.bench.worker", json.dumps(spec), str(out)]
        with log.open("wb") as errors:
            process = subprocess.Popen(command, stdout=errors, stderr=errors)
            try:
                late = _wait(process, out, say)
            finally:
                process.kill()
                process.wait()
        return _lines(out), "" if process.returncode == 0 else _cause(process.returncode, late, log)


def _wait(process: subprocess.Popen[bytes], out: Path, say: Say) -> bool:
    """Wait for the worker, passing on what it does; True if it took too long."""
    deadline, seen = time.monotonic() + TIMEOUT, 0
    while process.poll() is None:
        if time.monotonic() > deadline:
            return True
        lines = _lines(out)
        for line in lines[seen:]:
            if "begun" in line:
                begun = line["begun"]
                say(f"{begun['op']}, {begun['name']}: {begun['contender'] or 'inputs'}")
        seen = len(lines)
        time.sleep(0.05)
    return False


def _lines(out: Path) -> list[dict[str, Any]]:
    """Whole lines only: the last one may be half written."""
    text = out.read_text("utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _cause(code: int, late: bool, log: Path) -> str:
    if late:
        return f"took more than {TIMEOUT:.0f} s"
    if code == EXIT_POISONED:
        return "a fault of the device ended the process"
    said = log.read_text("utf-8", errors="replace").strip().splitlines()
    ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"the process ended ({ended}){': ' + said[-1][:300] if said else ''}"
