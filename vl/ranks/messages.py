"""What the caller's process and the ranks send each other, through a pipe of their own."""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vl.engine import EngineConfig, SamplingParams
from vl.engine.choosing import Chosen
from vl.engine.prompt import Prompt

Progress = Callable[[int, int], None]
Call = tuple[str, tuple[int | tuple[int, ...], ...], int | None]
"""Of a cache's method: its name, arguments and, of `acquire`, the slot got."""

HeldAt = tuple[int, int, Sequence[int]]
"""The tokens, place and pages of a `Held`."""


class Exhausted(MemoryError):
    """A rank lacked memory for its part of a step, of which all are through: they are still in step."""


@dataclass(frozen=True)
class Hello:
    """The first message to a rank: who it is.

    Attributes:
        rank, ranks: which, of how many.
        device: the device that is its own.
        meeting: a file through which the ranks find each other.
        timeout: seconds that the caller waits for a step.
        build: makes its part of the model; called once `torch.distributed` connects all ranks. Pickled by its name.
        config: the engine's.
    """

    rank: int
    ranks: int
    device: str
    meeting: str
    timeout: float
    build: Callable[[torch.device, Progress | None], Any]
    config: EngineConfig


@dataclass(frozen=True)
class NewRequest:
    """A request that the ranks have not seen yet."""

    number: int
    prompt: Prompt
    params: SamplingParams
    key: int


@dataclass(frozen=True)
class Step:
    """What the ranks do in one step of the engine. Columns of plain numbers: a step is short.

    Attributes:
        memory: calls of the cache's methods since the last step.
        ended: numbers of requests that are over.
        new: requests that the ranks have not seen yet.
        batch: numbers of those who run, in order. Of each of them:
        tokens: to be read in this step.
        slots: its slot in the cache.
        computed: tokens of it that are in the cache.
        written: ids that it was given since the ranks last heard of it.
        marks: after how many of its tokens its states are kept, and at which place.
        running: numbers of all requests that have begun, in order.
    """

    memory: Sequence[Call]
    ended: Sequence[int]
    new: Sequence[NewRequest]
    batch: Sequence[int]
    tokens: Sequence[int]
    slots: Sequence[int]
    computed: Sequence[int]
    written: Sequence[Sequence[int]]
    marks: Sequence[Sequence[tuple[int, int]]]
    running: Sequence[int]


@dataclass(frozen=True)
class Written:
    """What a step gave.

    Attributes:
        tokens: number of each request that was read to its end, and the token that comes next.
        vision: seconds that the vision encoder took for a request whose prompt is read.
    """

    tokens: Sequence[tuple[int, Chosen]]
    vision: Mapping[int, float]


@dataclass(frozen=True)
class Trouble:
    """An error of a rank. `kind`: the name of its class; `told`: whether it is one of `vl.errors`, made for users."""

    kind: str
    message: str
    told: bool


class _Pickler(pickle.Pickler):
    """Tensors go as bytes of their own elements and no more, through the pipe and through no shared memory."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return _tensor, (value.dtype, value.shape, value.detach().contiguous().view(-1).view(torch.uint8).numpy())
        return NotImplemented


def _tensor(dtype: torch.dtype, shape: torch.Size, data: np.ndarray) -> Tensor:
    return torch.from_numpy(data).view(dtype).view(shape)


@dataclass(frozen=True)
class Message:
    """What is sent: a pickle, behind it the sizes of its tensors and their number; then their bytes, not copied."""

    head: bytes
    buffers: Sequence[memoryview]


def encode(message: object) -> Message:
    """A message in which tensors are on the host."""
    out, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(out, protocol=5, buffer_callback=buffers.append).dump(message)
    raw = [buffer.raw() for buffer in buffers]
    out.write(struct.pack(f"<{len(raw) + 1}Q", *(buffer.nbytes for buffer in raw), len(raw)))
    return Message(out.getvalue(), raw)


def send(connection: Connection, message: Message) -> None:
    """Raises OSError if the other side is gone."""
    connection.send_bytes(message.head)
    for buffer in message.buffers:
        done = 0
        while done < buffer.nbytes:
            done += os.write(connection.fileno(), buffer[done:])


def receive(connection: Connection) -> Any:
    """The next message. Raises EOFError or OSError if the other side is gone."""
    head = connection.recv_bytes()
    (count,) = struct.unpack_from("<Q", head, len(head) - 8)
    sizes = struct.unpack_from(f"<{count}Q", head, len(head) - 8 * (count + 1))
    return pickle.loads(head, buffers=[_bytes(connection, size) for size in sizes])  # which ends where the pickle does


def _bytes(connection: Connection, count: int) -> np.ndarray:
    """As many bytes as come next, which whoever gets them may write to."""
    room, done = np.empty(count, np.uint8), 0
    while done < count:
        read = os.readv(connection.fileno(), [room.data[done:]])
        if not read:
            raise EOFError
        done += read
    return room
