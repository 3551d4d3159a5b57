"""The process of one rank: `main` is called by the command that `vl.ranks.processes` starts it with.

It ends when it is told to, when something fails whose end the other ranks wait for, and with the caller's process,
however that ended.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist

from preprocessing.container import available_cpus
from vl.errors import Error
from vl.ranks.meeting import remove_meeting
from vl.ranks.messages import Exhausted, Hello, Trouble, encode, receive, send
from vl.ranks.part import Part

MARGIN = 60.0  # seconds that a rank waits for another longer than the caller does, who then ends all of them
AWAKE = 2e-3  # seconds that a GPU's process looks for the next command before it sleeps
# After an error in one of these the ranks are still in step: nobody waits for another in them.
APART = frozenset(
    {"room", "make_cache", "drop_cache", "image_counts", "samples", "states_of", "stretch_of", "fill", "take_out"}
    | {"put_in"}
)


def main(pipe: int, lifeline: int, folder: str) -> None:
    """Serve the caller's process.

    Args:
        pipe: file descriptor of a socket, for messages.
        lifeline: one of a pipe whose other end the caller's process has open while it lives.
        folder: where the ranks meet. It goes with the caller's process, which may have been killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to act on
    threading.Thread(target=_end_with_caller, args=(lifeline, folder), daemon=True).start()
    connection = Connection(pipe)
    hello: Hello = receive(connection)
    number = 0

    def answer(kind: str, value: object) -> None:
        send(connection, encode((number, kind, value)))

    try:
        part = _join(hello, answer)
        answer("done", None)
        while True:
            if torch.device(hello.device).type == "cuda":
                _await(connection)
            number, command, args = receive(connection)
            try:
                value = getattr(part, command)(*args)
            except Exception as error:
                if command not in APART and not isinstance(error, Exhausted):
                    raise
                answer("refused", _trouble(error))
            else:
                answer("done", value)
    except EOFError:
        remove_meeting(folder)
    except BaseException as error:
        try:
            answer("failed", _trouble(error))
        except OSError:  # nobody is there any more
            remove_meeting(folder)
    finally:
        os._exit(1)  # without waiting for what other ranks, or a GPU, may never do


def _join(hello: Hello, answer: Callable[[str, object], None]) -> Part:
    """Meet the other ranks and build this one's part."""
    device = torch.device(hello.device)
    if hello.rank:
        warnings.simplefilter("ignore")  # rank 0 says it
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, available_cpus() // hello.ranks))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.FileStore(hello.meeting, hello.ranks),
        rank=hello.rank,
        world_size=hello.ranks,
        timeout=timedelta(seconds=hello.timeout + MARGIN),
        device_id=device if device.type == "cuda" else None,
    )
    progress = None if hello.rank else lambda done, total: answer("progress", (done, total))
    return Part(hello.build(device, progress), hello.config)


def _await(connection: Connection) -> None:
    """Look for the next command for a while: to wake up from sleep would take a part of every decode step."""
    end = time.perf_counter() + AWAKE
    while not connection.poll(0) and time.perf_counter() < end:
        pass


def _end_with_caller(lifeline: int, folder: str) -> None:
    os.read(lifeline, 1)  # nothing is ever written: it returns when the other end is closed
    remove_meeting(folder)
    os._exit(1)


def _trouble(error: BaseException) -> Trouble:
    return Trouble(type(error).__name__, str(error).strip(), isinstance(error, Error))
