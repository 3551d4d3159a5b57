"""What it takes to go on after a million rows: time, bytes read of the output, memory.

    PYTHONPATH=. python -m tests.vl.jobs.resume --rows 1000000

writes rows without a model, then, in a process of its own, asks what is left.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

from vl.jobs import open_rows

MADE = {"model": "m", "prompt": "Describe this image.", "settings": {}}


def names(count: int) -> Iterator[str]:
    return (f"/archive/{n // 1000:05}/{n:08}.jpg" for n in range(count))


def write(out: Path, count: int) -> int:
    """Rows with captions of some 300 characters of 4,000 words; returns the peak memory in MiB."""
    chosen, words = Random(0), [f"{Random(n).getrandbits(24):x}" for n in range(4000)]
    with open_rows(out, **MADE) as rows:
        pending = rows.pending(names(count))
        while batch := list(islice(pending, 500)):
            rows.append({"image": name, "caption": " ".join(chosen.choices(words, k=50))} | MADE for name in batch)
    return _peak()


def resume(out: Path, count: int) -> None:
    """Ask what is left, of one name more; prints what that took."""
    before, begun = _read(), time.perf_counter()
    with open_rows(out, **MADE) as rows:
        left = list(rows.pending(names(count + 1)))
        assert len(left) == 1
    found = {"seconds": time.perf_counter() - begun, "read": _read() - before}
    print(json.dumps(found | {"MiB": _peak()}))


def _peak() -> int:
    """The most memory that this process has had, in MiB; what `getrusage` says is the parent's, too."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10


def _read() -> int:
    """Bytes that this process has asked the system for."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out")
    given = parser.parse_args()
    if given.out:
        resume(Path(given.out), given.rows)
    else:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "captions.parquet"
            peak = write(out, given.rows)
            size = sum(path.stat().st_size for path in out.iterdir())
            print(f"{given.rows:,} rows: {size:,} bytes, written with {peak} MiB at most")
            command = [sys.executable, "-m", __spec__.name, "--rows", str(given.rows), "--out", str(out)]
            said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            share = said["read"] / size
            print(f"resumed in {said['seconds']:.1f} s, {said['read']:,} bytes read ({share:.2%}), {said['MiB']} MiB")
