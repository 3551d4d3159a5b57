"""The ranks' processes, seen from the caller's: started, asked, watched and ended as one."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from vl import errors
from vl.engine import EngineConfig
from vl.errors import DeviceError, Error
from vl.ranks.interrupts import Interrupts
from vl.ranks.meeting import remove_meeting
from vl.ranks.messages import Exhausted, Hello, Message, Progress, Trouble, encode, receive, send

# A command of its own rather than multiprocessing's 'spawn', which would run the caller's script again in every rank.
_COMMAND = """import json, sys
sys.path[:] = json.loads(sys.argv[4])
from vl.ranks.worker import main
main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])"""
GRACE = 3.0  # seconds in which the ranks that fail with another may say of what, or be seen to be dead
_ENDING = 30.0  # seconds that a process which closed its connection, and so is about to end, has for it


@dataclass(eq=False)
class _Rank:
    """One process. `trouble`: why it ended, if it told; `lost`: whether it was found to be gone."""

    number: int
    device: torch.device
    process: subprocess.Popen[bytes]
    connection: Connection
    trouble: Trouble | None = None
    lost: bool = False

    @property
    def name(self) -> str:
        return f"rank {self.number} ({self.device})"


@dataclass(eq=False)
class _Held:
    """What is given back when the ranks end."""

    lifeline: int
    folder: Path
    ranks: list[_Rank] = field(default_factory=list)


class Ranks:
    """Processes that hold a model together, one for each device.

    They end by `close`, with this object or this process, or all together when one of them fails, dies or does not
    answer in time: whatever is asked of them then raises a DeviceError that says which and why.

    Args:
        build: what makes a rank's part of the model, of its device and a function that is told of progress; a function
            of a module, or a `functools.partial` of one.
        devices: one for each rank.
        config: the engine's.
        timeout: seconds in which a command has to be answered. Loading may take longer.
        progress: called here with what the first rank tells `build`'s.

    Raises:
        Error: of the class that a rank raised, if `build` failed: naming the rank; all have ended then.
        DeviceError: if one failed otherwise.
    """

    def __init__(
        self,
        build: Callable[[torch.device, Progress | None], Any],
        devices: Sequence[torch.device],
        config: EngineConfig,
        *,
        timeout: float,
        progress: Progress | None = None,
    ) -> None:
        self.devices, self.timeout = tuple(devices), timeout
        self._turn = threading.RLock()
        self._ended: str | None = None  # why no more can be asked
        self._number = self._answered = 0  # of the last command sent, and of the last that all have answered
        self._answers: dict[int, tuple[str, Any]] = {}  # to the last command, by rank: a wait that is ended keeps them
        self._limit: float | None = timeout  # seconds for the last command
        self._selector = selectors.DefaultSelector()
        end, begin = os.pipe()
        self._held = _Held(begin, Path(tempfile.mkdtemp(prefix="vl-ranks-")))
        self._finalizer = weakref.finalize(self, _end, self._held, os.getpid())
        try:
            try:
                for number, device in enumerate(devices):
                    self._start(number, device, end)
            finally:
                os.close(end)
            for rank in self._held.ranks:
                meeting = str(self._held.folder / "meeting")
                hello = Hello(rank.number, len(devices), str(rank.device), meeting, timeout, build, config)
                self._send(rank, encode(hello))
            with Interrupts() as interrupts:
                self._wait(interrupts, None, progress)
                self._results()
        except BaseException:
            self.close()
            raise

    def _start(self, number: int, device: torch.device, lifeline: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [str(theirs.fileno()), str(lifeline), str(self._held.folder), json.dumps(sys.path)]
            process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a library prints is not what the caller's program says
                pass_fds=(theirs.fileno(), lifeline),
                process_group=0,  # Ctrl-C in a terminal is the caller's to act on
                env=_environment(),
            )
        rank = _Rank(number, device, process, Connection(ours.detach()))
        self._held.ranks.append(rank)
        self._selector.register(rank.connection, selectors.EVENT_READ, rank)

    def __len__(self) -> int:
        return len(self.devices)

    @property
    def ended(self) -> str | None:
        """Why no more can be asked; None while it can."""
        return self._ended

    def call(self, command: str, *args: Any, timed: bool = True) -> list[Any]:
        """Have every rank run a method of its `Part`. Returns their answers, in the order of ranks.

        Args:
            timed: whether one that has not answered within the timeout counts as hung.

        Raises:
            Error: of a class of `vl.errors`, that a rank refused it with; or DeviceError if it failed, and then for all
                that is asked later.
            Exhausted: if a rank lacked memory, and nothing else happened.
        """
        return self.call_with(command, lambda: args, timed=timed)

    def call_with(self, command: str, make: Callable[[], tuple[Any, ...]], *, timed: bool = True) -> list[Any]:
        """`call` with arguments that are made once it is certain that all ranks will get them, Ctrl-C or not."""
        with self._turn, Interrupts() as interrupts:
            self._check()
            if self._answered < self._number:  # the caller was interrupted while it waited
                self._wait(interrupts, self._limit)
            message = encode((self._number + 1, command, make()))
            self._number += 1
            self._answers, self._limit = {}, self.timeout if timed else None
            for rank in self._held.ranks:
                self._send(rank, message)
            self._wait(interrupts, self._limit)
            return self._results()

    def close(self) -> None:
        """End all ranks; harmless when they have ended."""
        self._ended = self._ended or "the model was closed: load it again"
        self._finalizer()

    def _check(self) -> None:
        if self._ended is not None:
            raise DeviceError(self._ended)

    def _send(self, rank: _Rank, message: Message) -> None:
        try:
            send(rank.connection, message)
        except OSError:
            self._check()  # another thread may have closed the model
            rank.lost = True
            raise self._failed() from None

    def _wait(self, interrupts: Interrupts, timeout: float | None, progress: Progress | None = None) -> None:
        """Until all ranks have answered the last command. Goes on where a wait that was interrupted ended."""
        last, answers = None if timeout is None else time.monotonic() + timeout, self._answers
        while len(answers) < len(self):
            ready = interrupts.wait(self._ready, None if last is None else last - time.monotonic())
            if not ready:
                late = [rank for rank in self._held.ranks if rank.number not in answers]
                raise self._failed(
                    f"{' and '.join(rank.name for rank in late)} did not answer within {timeout:g} s, so a process or "
                    "a device hangs: load the model again, with a longer step_timeout= if it is only slow"
                )
            for rank in ready:
                message = self._read(rank)
                if message is None:
                    raise self._failed()
                found, kind, value = message
                if kind == "progress":
                    if progress is not None:
                        progress(*value)
                elif found == self._number:
                    answers[rank.number] = kind, value
        self._answered = self._number

    def _results(self) -> list[Any]:
        """What they answered. Raises what one of them refused it with."""
        for rank in self._held.ranks:
            kind, value = self._answers[rank.number]
            if kind == "refused" and value.kind == Exhausted.__name__:
                raise Exhausted(f"{rank.name}: {value.message}")
            if kind == "refused":
                raise _error(rank, value)
        return [self._answers[rank][1] for rank in range(len(self))]

    def _ready(self, timeout: float | None) -> list[_Rank]:
        """The ranks that have something to say, or are gone; none if the time is up."""
        if timeout is not None and timeout <= 0:
            timeout = 0
        return [key.data for key, _ in self._selector.select(timeout)]

    def _read(self, rank: _Rank) -> tuple[int, str, Any] | None:
        """A rank's message; None if it failed or is gone."""
        try:
            message = receive(rank.connection)
        except (EOFError, OSError):
            self._check()
            rank.lost = True
            return None
        if message[1] == "failed":
            rank.trouble = message[2]
            return None
        return message

    def _failed(self, what: str | None = None) -> Error:
        """After one rank has failed: end all. Returns what to raise, which `call` raises again."""
        if what is None:
            self._hear()
            error = self._cause()
        else:
            error = DeviceError(what)
        self._ended = f"{error} (the processes of this model have ended: load it again)"
        self._finalizer()
        return error

    def _hear(self) -> None:
        """What else the ranks say within `GRACE`: one that dies takes those along who wait for it."""
        last = time.monotonic() + GRACE
        silent = [rank for rank in self._held.ranks if rank.trouble is None and not rank.lost]
        while silent and (ready := self._ready(last - time.monotonic())):
            for rank in ready:
                if rank not in silent:
                    self._selector.unregister(rank.connection)
                elif self._read(rank) is None:
                    silent.remove(rank)

    def _cause(self) -> Error:
        """Of all that went wrong, what came first: a death, then an error, then what others made of it."""
        for rank in self._held.ranks:
            if rank.lost and rank.trouble is None:
                return DeviceError(f"{rank.name} {_ending(rank.process)}")
        failed = [rank for rank in self._held.ranks if rank.trouble is not None]
        first = min(failed, key=lambda rank: _is_echo(rank.trouble))
        assert first.trouble is not None
        return _error(first, first.trouble)


def _environment() -> dict[str, str]:
    """The ranks talk over the loopback device unless the user says otherwise: all are on this host."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    return {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback} | os.environ


def _error(rank: _Rank, trouble: Trouble) -> Error:
    if trouble.told:
        return getattr(errors, trouble.kind, DeviceError)(f"{rank.name}: {trouble.message}")
    return DeviceError(f"{rank.name} failed: {trouble.kind}: {trouble.message or 'without a message'}")


def _is_echo(trouble: Trouble | None) -> bool:
    """Whether an error says that another rank is gone."""
    assert trouble is not None
    words = ("connection", "peer", "nccl", "gloo", "socket")
    return not trouble.told and any(word in trouble.message.lower() for word in words)


def _ending(process: subprocess.Popen[bytes]) -> str:
    """How a process ended that told nothing."""
    try:
        code = process.wait(_ENDING)
    except subprocess.TimeoutExpired:
        return "closed its connection"
    if code >= 0:
        return f"ended with exit code {code}: what it printed may say why"
    name = signal.Signals(-code).name
    hint = ", as the system does where memory runs out" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


def _end(held: _Held, owner: int) -> None:
    """Kill the processes and give back what they were started with; nothing in a process forked from the owner."""
    if os.getpid() != owner:
        return
    os.close(held.lifeline)
    for rank in held.ranks:
        rank.process.kill()
    for rank in held.ranks:
        with suppress(subprocess.TimeoutExpired):  # in a driver's call, which nothing interrupts: it ends after that
            rank.process.wait(10)
        rank.connection.close()
    remove_meeting(held.folder)
