"""The log of a run, and its loss curve as a picture, drawn by a process of its own.

A run on one's own data needs no drawing library: matplotlib stays out of the process that trains. This file is that
other process's program too, and imports nothing of the project, so that it starts at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LOG, PICTURE = "log.jsonl", "loss.png"
_PATIENCE = 120.0  # seconds; the first picture of a machine waits for a list of its fonts


def read_log(out: Path) -> list[dict[str, Any]]:
    """The records of a run, oldest first; a last line torn by a kill is dropped."""
    path = out / LOG
    records = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def draw_curve(out: Path) -> str | None:
    """Has `out/loss.png` drawn. Without matplotlib there is no picture; returns why one that should be is not there."""
    if find_spec("matplotlib") is None:
        return None
    # -P: the folder of this file is not where its imports are looked for.
    command = [sys.executable, "-P", __file__, str(out)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
    return lines[-1] if done.returncode else None


def _draw(out: Path) -> None:
    """Training and held-out loss, and the held-out exact-match rates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    records = read_log(out)
    train = [r for r in records if r["kind"] == "train"]
    evals = [r for r in records if r["kind"] == "eval"]
    figure, (loss, exact) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    dot = "." if len(train) == 1 else ""  # a line of one point would be nothing
    loss.plot([r["step"] for r in train], [r["loss"] for r in train], linewidth=0.8, marker=dot, label="training")
    for kind in dict.fromkeys(key.removesuffix("_loss") for r in evals for key in r if key.endswith("_loss")):
        of_kind = [r for r in evals if f"{kind}_loss" in r]
        steps = [r["step"] for r in of_kind]
        loss.plot(steps, [r[f"{kind}_loss"] for r in of_kind], marker=".", label=f"held-out {kind}")
        exact.plot(steps, [r[f"{kind}_exact"] for r in of_kind], marker=".", label=kind)
    loss.set(xlabel="step", ylabel="loss (nats per token)", yscale="log")
    exact.set(xlabel="step", ylabel="held-out captions exactly right", ylim=(0, 1))
    for axes in (loss, exact):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.savefig(out / PICTURE, dpi=110)


if __name__ == "__main__":
    _draw(Path(sys.argv[1]))
