"""Processes that work for a job: started here, told over a pipe, and ended with whoever started them."""

from __future__ import annotations

import copyreg
import io
import json
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

Work = Callable[["Pipe"], None]

# A command of its own rather than multiprocessing's 'spawn', which would run the caller's script again in every child.
_COMMAND = """import json, sys
sys.path[:] = json.loads(sys.argv[2])
from vl.jobs.children import main
main(int(sys.argv[1]))"""
_GRACE = 3.0  # seconds in which a child that is told to end may do so
_ENDING = 30.0  # seconds that one which closed its pipe, and so is about to end, has for it


class Pipe:
    """Objects both ways, pickled; tensors of the CPU as their bytes, so that no memory is shared or left behind."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, value: Any) -> None:
        """Raises OSError if the other end is gone."""
        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer, protocol=5)
        pickler.dispatch_table = copyreg.dispatch_table | {torch.Tensor: _reduce}
        pickler.dump(value)
        self.connection.send_bytes(buffer.getbuffer())

    def receive(self) -> Any:
        """Raises EOFError or OSError if the other end is gone."""
        return pickle.loads(self.connection.recv_bytes())


class Child:
    """A process that runs `work` with its end of a pipe; a context manager that ends it.

    Ctrl-C is the caller's alone to hear. The child ends when it finds the pipe closed, so also with the caller's
    process, however that ends.

    Args:
        work: a function of a module, or a `functools.partial` of one with arguments that can be pickled.
        env: its environment; by default the caller's.
        files: descriptors that are open there too, by the same numbers.
    """

    def __init__(self, work: Work, env: dict[str, str] | None = None, files: Sequence[int] = ()) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-c", _COMMAND, str(theirs.fileno()), json.dumps(sys.path)]
            passed = [theirs.fileno(), *files]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=passed, env=env)
        self.pipe = Pipe(Connection(ours.detach()))
        with suppress(OSError):  # a child that is dead already is found so by who asks it
            self.pipe.send(work)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def ending(self) -> str:
        """How it ended, once its pipe is closed."""
        try:
            code = self.process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        if code >= 0:
            return f"ended with exit code {code}"
        with suppress(ValueError):
            return f"was killed ({signal.Signals(-code).name})"
        return f"was killed (signal {-code})"

    def close(self) -> None:
        """End it, if it has not."""
        self.pipe.connection.close()
        self.process.terminate()
        try:
            self.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def main(fd: int) -> None:
    """The child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Pipe(Connection(fd))
    with suppress(EOFError, OSError):  # the caller is gone
        work: Work = pipe.receive()
        work(pipe)


def _reduce(tensor: torch.Tensor) -> tuple[Any, ...]:
    return torch.from_numpy, (tensor.numpy(),)
