"""Ctrl-C while a command ends after an earlier Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from forkserver import run

import vl
from vl.cli.interrupts import second_interrupt_ends

TWICE = """
import signal
from vl.cli.interrupts import second_interrupt_ends
try:
    with second_interrupt_ends():
        signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("first", flush=True)
    signal.raise_signal(signal.SIGINT)
print("never")
"""


def test_a_second_one_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(TWICE)
    environment = os.environ | {"PYTHONPATH": str(Path(vl.__file__).parents[1])}
    done = run([sys.executable, str(tmp_path / "twice.py")], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "first\n", "")


def test_nothing_is_left_of_it_after_another_end() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(vl.ConfigError), second_interrupt_ends():
        raise vl.ConfigError("wrong")
    with second_interrupt_ends():
        pass
    assert signal.getsignal(signal.SIGINT) is before
