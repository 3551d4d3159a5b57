"""The process that measures: `python -m vl.bench.worker SPEC OUT`, with both started by `vl.bench.runner`.

What it finds goes to OUT, a line of JSON at a time, since a fault of a kernel may end the process at any moment.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Container, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from vl.bench.ceilings import describe_machine, measure_ceilings
from vl.bench.records import ABSENT, OURS, REFERENCE, Case, Ceilings, Contest, Record, Setting, reason
from vl.bench.timing import measure

EXIT_POISONED = 86  # the device does not answer any more; another process has to go on


def main() -> None:
    spec, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    device = torch.device(spec["device"])
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # events and kernels go to the current one
    torch.manual_seed(0)
    if spec["task"] == "machine":
        machine = describe_machine(device)
        _append(out, {"machine": machine, "ceilings": asdict(measure_ceilings(device))})
        return
    setting = Setting(device, spec["small"], spec["quick"], spec["memory"], spec["quantization"])
    ceilings, done = Ceilings(**spec["ceilings"]), {tuple(key) for key in spec["done"]}
    with torch.inference_mode():
        for case in import_module(spec["suite"]).cases(setting):
            if case.group == spec["group"] and matches(case, spec["only"]):
                run_case(case, setting, ceilings, done, out)


def matches(case: Case, only: Sequence[str]) -> bool:
    """Whether the case's op has one of `only` in its name, or there is no such wish."""
    return not only or any(part.replace("_", " ").casefold() in case.op.casefold() for part in only)


def run_case(case: Case, setting: Setting, ceilings: Ceilings, done: Container[tuple[str, ...]], out: Path) -> None:
    """Measure the contenders of one case that are not `done`; the case itself is, if its inputs could not be made."""
    if (case.op, case.name, "") in done:
        return
    write(out, "begun", _record(case, ""))
    try:
        contest = case.build()
        floor = contest.floor(ceilings)
    except Exception as error:
        write(out, "record", _record(case, OURS, error=reason(error)))
        _recover(setting.device)
        return
    compares = setting.device.type == "cuda" and not setting.quick  # elsewhere ours is the reference
    for name in contest.contenders:
        if (case.op, case.name, name) in done or (name == REFERENCE and not compares):
            continue
        write(out, "begun", _record(case, name, floor=floor))
        write(out, "record", _measured(case, name, contest, floor, setting))
        _recover(setting.device)
    del contest
    _recover(setting.device)


def _measured(case: Case, name: str, contest: Contest, floor: float, setting: Setting) -> Record:
    device, gpu = setting.device, setting.device.type == "cuda"
    try:
        calls = contest.contenders[name]()
        peak = 0
        if gpu:
            held = torch.cuda.memory_allocated(device) if contest.held is None else contest.held
            torch.cuda.reset_peak_memory_stats(device)
            calls[0]()
            peak = torch.cuda.max_memory_allocated(device) - held
        # A reference reads sizes back to the host, which a graph cannot hold.
        how = "device" if name == REFERENCE and contest.how == "graph" else contest.how
        timing = measure(calls, device, how=how, budget=0.1 if setting.quick or setting.small else 0.4)
    except ImportError as error:
        return _record(case, name, floor=floor, error=f"{ABSENT}: {error}")
    except Exception as error:
        return _record(case, name, floor=floor, error=reason(error))
    return _record(case, name, floor=floor, seconds=timing.seconds, method=timing.method, peak=peak)


def _record(case: Case, contender: str, **found: Any) -> Record:
    return Record(op=case.op, name=case.name, size=case.size, unit=case.unit, contender=contender, **found)


def _recover(device: torch.device) -> None:
    """Free what the last contender held; end the process where the device's context is lost."""
    gc.collect()
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
        except Exception:
            sys.stderr.flush()
            os._exit(EXIT_POISONED)


def write(out: Path, kind: str, record: Record) -> None:
    _append(out, {kind: asdict(record)})


def _append(out: Path, line: dict[str, Any]) -> None:
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
