"""What a run tells: log lines, a JSONL file, and the loss curve as a picture."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

LOG = "log.jsonl"


class Report:
    """Appends records to `out/log.jsonl` and prints them as one line each, which suits a terminal and a log file."""

    def __init__(self, out: Path, *, resume_step: int = 0) -> None:
        self.path = out / LOG
        # Steps after the checkpoint are about to be repeated.
        kept = [record for record in read_log(out) if record["step"] <= resume_step] if resume_step else []
        self.path.write_text("".join(json.dumps(record) + "\n" for record in kept), "utf-8")

    def write(self, kind: str, step: int, **values: float) -> None:
        """Logs one record; its numbers are printed with four significant digits."""
        record = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        print(f"{kind:>5} {step:>6}  {shown}", flush=True)


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


def draw_curve(out: Path) -> Path | None:
    """Draws `out/loss.png` from the log: training and held-out loss, and the held-out exact-match rates.

    Returns None where matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    records = read_log(out)
    train = [r for r in records if r["kind"] == "train"]
    evals = [r for r in records if r["kind"] == "eval"]
    figure, (loss, exact) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    loss.plot([r["step"] for r in train], [r["loss"] for r in train], linewidth=0.8, label="training")
    for kind in ("scenes", "words"):
        of_kind = [r for r in evals if f"{kind}_loss" in r]
        steps = [r["step"] for r in of_kind]
        loss.plot(steps, [r[f"{kind}_loss"] for r in of_kind], marker=".", label=f"held-out {kind}")
        exact.plot(steps, [r[f"{kind}_exact"] for r in of_kind], marker=".", label=kind)
    loss.set(xlabel="step", ylabel="loss (nats per token)", yscale="log")
    exact.set(xlabel="step", ylabel="held-out captions exactly right", ylim=(0, 1))
    for axes in (loss, exact):
        axes.grid(alpha=0.3)
        axes.legend()
    path = out / "loss.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
