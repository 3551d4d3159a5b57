"""Python processes that begin with torch and the project imported: most of what a short one costs is to import them.

`Popen` and `run` take what `subprocess`'s take for a command of this Python (`-c`, `-m` or a file). A server of this
session has imported everything; it forks, and the fork becomes the process that the command would have been: its
arguments, environment, folder, files, group and end. Tests of what is imported, of memory, and of variables that are
read while something is imported (`OMP_NUM_THREADS`, `TRITON_INTERPRET`) start theirs with `subprocess`.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import io
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

IMPORTED = (
    "torch._dynamo",  # which an optimizer's first step imports
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.utils.tensorboard",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "vl.cli.app",
    "vl.cli.caption",
    "vl.cli.chat",
    "vl.cli.train",
    "vl.jobs",
    "vl.loading",
    "vl.nano.source",
    "vl.ranks.worker",
    "vl.training.train",
)
FREE = 200  # numbers of the server's own files start here: a process may ask for any below


def run(
    command: Sequence[str], *, timeout: float | None = None, check: bool = False, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run`, without `input`."""
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            said, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, said, errors)
    if check:
        done.check_returncode()
    return done


class Forked(subprocess.Popen[Any]):
    """A process that the server has forked; the server waits for it and tells how it ended."""

    def _execute_child(
        self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, *rest: Any
    ) -> None:
        (cwd, env, _, _, shell), pipes, (session, group) = rest[:5], rest[5:11], rest[-2:]
        command = list(map(os.fsdecode, args))
        assert command[0] == sys.executable
        assert not any((executable, preexec_fn, shell))
        files = {0: pipes[0], 1: pipes[3], 2: pipes[5]} | {number: number for number in pass_fds}
        request = {
            "command": command[1:],
            "env": dict(os.environ if env is None else env),
            "cwd": os.fspath(cwd or Path.cwd()),
            "files": list(files),
            "session": bool(session),
            "group": group,
        }
        fds = [number if fd == -1 else fd for number, fd in files.items()]
        self._status = _server().start(request, fds)
        self.pid = struct.unpack("q", self._status.recv(8))[0]
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        self._status.setblocking(not wait_flags & os.WNOHANG)
        try:
            said = self._status.recv(8)
        except BlockingIOError:
            return 0, 0
        assert said, "the server that has forked this process is gone"
        self._status.close()
        return self.pid, struct.unpack("q", said)[0]

    def _internal_poll(self, _deadstate: Any = None, **_: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid == self.pid:
                        self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


class _Server:
    """The process that forks, seen from the tests'."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair()
        self.turn = threading.Lock()
        path = os.pathsep.join(filter(None, sys.path))
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )
        theirs.close()
        atexit.register(self.end)

    def start(self, request: dict[str, Any], files: list[int]) -> socket.socket:
        ours, theirs = socket.socketpair()
        text = json.dumps(request).encode()
        with self.turn, theirs:
            socket.send_fds(self.control, [struct.pack("q", len(text))], [theirs.fileno(), *files])
            self.control.sendall(text)
        return ours

    def end(self) -> None:
        self.control.close()
        self.process.wait()


_started: list[_Server] = []


def _server() -> _Server:
    if not _started:
        _started.append(_Server())
    return _started[0]


def _can_fork() -> bool:
    """Not on macOS, whose frameworks do not live through it; nor with a GPU, whose driver does not."""
    import torch

    return sys.platform == "linux" and not torch.cuda.is_available()


if __name__ != "__main__":
    Popen: type[subprocess.Popen[Any]] = Forked if _can_fork() else subprocess.Popen
    forking = types.SimpleNamespace(**vars(subprocess) | {"Popen": Popen, "run": run})  # in the place of `subprocess`


# The server


def serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork for every request. Returns it in the process that has been forked; None once the tests' process is gone."""
    wakes, woken = socket.socketpair()
    wakes, woken = _up(wakes), _up(woken)
    for end in (wakes, woken):
        end.setblocking(False)
    signal.set_wakeup_fd(woken.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running: dict[int, socket.socket] = {}
    while True:
        ready = select.select([control, wakes], [], [])[0]
        if wakes in ready:
            wakes.recv(4096)
            while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                with running.pop(ended[0]) as status:
                    _tell(status, ended[1])
        if control in ready:
            header, fds, _, _ = socket.recv_fds(control, 8, 32)
            if not header:
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                return None
            request = json.loads(_read(control, struct.unpack("q", header)[0]))
            pid = os.fork()
            if not pid:
                for each in (control, wakes, woken, *running.values()):
                    each.close()
                os.close(fds[0])
                _become(request, fds[1:])
                return request
            status = _up(socket.socket(fileno=fds[0]))
            running[pid] = status
            _tell(status, pid)
            for fd in fds[1:]:
                os.close(fd)


def _up(own: socket.socket) -> socket.socket:
    """With a number that no process asks for."""
    with own:
        return socket.socket(fileno=fcntl.fcntl(own.fileno(), fcntl.F_DUPFD_CLOEXEC, FREE))


def _tell(status: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody waits for it
        status.sendall(struct.pack("q", number))


def _read(source: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        found += source.recv(count - len(found))
    return found


def _become(request: dict[str, Any], fds: list[int]) -> None:
    """Have a fork be what the interpreter is before it runs a command."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["session"]:
        os.setsid()
    if request["group"] >= 0:
        os.setpgid(0, request["group"])
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FREE) for fd in fds]
    for fd in fds:
        os.close(fd)
    for fd, number in zip(high, request["files"], strict=True):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    at_once = bool(os.environ.get("PYTHONUNBUFFERED"))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        file: Any = open(number, "wb" if number else "rb", 0 if number and at_once else -1, closefd=False)  # noqa: SIM115
        lines = number == 2 or file.isatty()
        new = io.TextIOWrapper(file, old.encoding, old.errors, line_buffering=lines, write_through=at_once)
        setattr(sys, name, new)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr


def execute(command: list[str], path: str) -> None:
    """Run what `python` with these arguments would. `path`: PYTHONPATH, in whose order modules are looked for."""
    sys.path[:0] = filter(None, path.split(os.pathsep))
    safe = command[0] == "-P"  # no folder is added
    how, *rest = command[safe:]
    if how == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif how == "-m":
        sys.argv = ["-m", *rest[1:]]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [how, *rest]
        sys.path[:0] = [] if safe else [str(Path(how).parent)]
        runpy.run_path(how, run_name="__main__")


if __name__ == "__main__":
    del sys.path[0]  # this file's folder
    for module in IMPORTED:
        try:
            import_module(module)
        except ImportError:  # of an extra that is not there
            traceback.print_exc()
    import_module("vl.nano.tokenizer").train_tokenizer()  # which is kept: of every recipe that trains from nothing
    gc.freeze()
    asked = serve(_up(socket.socket(fileno=int(sys.argv[1]))))
    if asked is not None:
        execute(asked["command"], asked["env"].get("PYTHONPATH", ""))
