"""What a run tells: log lines, a JSONL file, TensorBoard events, and the loss curve as a picture."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vl.training.batch import Skipped
from vl.training.curve import LOG, PICTURE, draw_curve, read_log
from vl.training.lengths import SKIPPED

EVENTS = "tensorboard"


class Report:
    """Appends records to `out/log.jsonl` and prints them as one line each, which suits a terminal and a log file.

    Where the package tensorboard is installed, `out/tensorboard` gets the same numbers.

    Args:
        out: folder of the run.
        resume_step: the step of the checkpoint that the run continues from; later records are dropped.
        active: False for all but the first of many processes: nothing is written.
    """

    def __init__(self, out: Path, *, resume_step: int = 0, active: bool = True) -> None:
        self.out, self.path, self.active = out, out / LOG, active
        self.events: Any = None
        if not active:
            return
        # Steps after the checkpoint are about to be repeated.
        kept = [record for record in read_log(out) if record["step"] <= resume_step] if resume_step else []
        self.path.write_text("".join(json.dumps(record) + "\n" for record in kept), "utf-8")
        self.events = _event_writer(out / EVENTS, resume_step)

    def write(self, kind: str, step: int, **values: float) -> None:
        """Logs one record; its numbers are printed with four significant digits."""
        if not self.active:
            return
        record = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.events is not None:
            for name, value in values.items():
                self.events.add_scalar(f"{kind}/{name}", value, step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        print(f"{kind:>5} {step:>6}  {shown}", flush=True)

    def tell(self, text: str) -> None:
        """Prints a line that is not kept."""
        if self.active:
            print(text, flush=True)

    def skip(self, records: Iterable[Skipped]) -> None:
        """Appends records that could not be read to `out/skipped.jsonl`, and prints them."""
        for record in records:
            with (self.out / SKIPPED).open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(json.dumps({"record": record.record, "cause": record.cause}, ensure_ascii=False) + "\n")
            print(f"skipped {record.record}: {record.cause}", flush=True)

    def close(self) -> None:
        """Has the loss curve drawn and ends the event file."""
        if self.active and (cause := draw_curve(self.out)):
            self.tell(f"{self.out / PICTURE} was not drawn: {cause}")
        if self.events is not None:
            self.events.close()


def _event_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
