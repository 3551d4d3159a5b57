"""A server in a process of its own, where none is given."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from vl.errors import Error

_READY = re.compile(r"is served at (\S+)")
_GRACE = 60.0  # seconds that it has to end
_LINES = 20  # of what it said last, to tell why it ended


@contextmanager
def started(model: str, options: Sequence[str]) -> Iterator[str]:
    """Run `vl serve` for the block, which has its URL. What it says beside goes on to stderr.

    Args:
        model, options: of the command. It takes a free port, and no keys.

    Raises:
        Error: if it ends before it is ready, with what it said.
    """
    command = [sys.executable, "-m", "vl.cli", "serve", model, "--port", "0", "--quiet", *options]
    environment = {name: value for name, value in os.environ.items() if name != "VL_API_KEYS"}
    environment |= {"PYTHONUNBUFFERED": "1", "COLUMNS": "1000"}  # nothing that it says is broken into lines
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    said = process.stderr
    assert said is not None
    reader = threading.Thread(target=_pass_on, args=(said,), name="vl-server-says", daemon=True)
    try:
        url = _wait(said)
        reader.start()
        yield url
    finally:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if reader.ident is not None:
            reader.join()
        said.close()


def _wait(said: IO[str]) -> str:
    """The URL that a server says when it is ready."""
    last: deque[str] = deque(maxlen=_LINES)
    for line in said:
        if found := _READY.search(line):
            return found[1]
        last.append(line)
    raise Error(f"the server did not start: {''.join(last).strip().removeprefix('error: ')}")


def _pass_on(said: IO[str]) -> None:
    for line in said:
        sys.stderr.write(line)
