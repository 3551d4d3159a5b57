"""Images decoded and cut by processes of their own: on a GPU, the engine's thread then has this program for itself.

Threads would do as much, but between any two kernels that the engine starts, Python may give them its turn.
"""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, finalize

import torch
from PIL import Image
from torch import Tensor

from preprocessing import ImageError, Inputs, Processor
from preprocessing.alpha import warn_once
from preprocessing.container import available_cpus
from preprocessing.cut import CutImage
from preprocessing.lazy import LazyTiles
from preprocessing.resize import UNCOMPILED_PIXELS, resize_planes
from vl.jobs.children import Child, Pipe
from vl.jobs.item import ask_here, inputs_of
from vl.jobs.rowfile import Row
from vl.jobs.sources import Picture, source_key

if TYPE_CHECKING:
    from vl.model import MiniMaxVL

MOST = 4  # processes, if nothing else is said: an image takes one of them some 20 ms
_IDLE = 60.0  # seconds without work after which a process ends
_PATIENCE = 120.0  # seconds that one may take to start, where that is waited for

Asked = tuple[list[Inputs], Row]
Shape = tuple[int, int, int, int]  # [tiles, 3, S, S]


def default_workers(device: torch.device) -> int:
    """Processes for a model there: none on the CPU, which they would take from it."""
    return 0 if device.type == "cpu" else min(MOST, available_cpus() // 2)


class Cutters:
    """`ask_here` by processes: `Ask` for several threads.

    A process takes seconds to start. Until it is there, the thread that wants it does the work itself. One that ends
    over an image is replaced, and the image tried once more. Images come back in memory that is shared with each
    process, of the size of the largest image's tiles.

    Args:
        processor: what `ask_here` takes, pickled.
        count: of the processes, at least 1. They end when this is let go, and when they had no work for a minute.
    """

    def __init__(self, processor: bytes, count: int) -> None:
        self.processor, self.count = processor, count
        self._free: SimpleQueue[_Cutter] = SimpleQueue()
        for _ in range(count):
            self._free.put(_Cutter(processor))

    def wait(self) -> None:
        """Until all are there, or will not be."""
        cutters = [self._free.get() for _ in range(self.count)]
        for cutter in cutters:
            cutter.is_ready(_PATIENCE)
            self._free.put(cutter)

    @classmethod
    def of(cls, model: MiniMaxVL, count: int) -> Cutters:
        """Those of the model's last job, if they are of use: they need not start again."""
        processor, kept = pickle.dumps(model.processor), _kept.get(model)
        if kept is None or (kept.processor, kept.count) != (processor, count):
            kept = _kept[model] = cls(processor, count)
        return kept

    def __call__(self, image: str | Picture, texts: Sequence[str]) -> Asked:
        """As `ask_here`. Raises ImageError if the image ends two processes."""
        cutter = self._free.get()
        try:
            return cutter(image, texts)
        finally:
            self._free.put(cutter)


_kept: WeakKeyDictionary[Any, Cutters] = WeakKeyDictionary()
_ahead: list[_Started] = []


def start_ahead(count: int) -> None:
    """Start so many processes for the next `Cutters` made: they take seconds, and a model that loads does too."""
    _ahead.extend(_Started() for _ in range(count))


class _Started:
    """A process that knows of no model yet, and memory for tiles that is open there too.

    Attributes:
        file: the memory's descriptor; it has no size before it is used.
    """

    def __init__(self, file: int | None = None) -> None:
        env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self.file = _memory() if file is None else file
        self.child = Child(partial(_work, self.file), env, [self.file])


class _Cutter:
    """A process, and the memory in which it gives tiles back; for one thread at a time."""

    def __init__(self, processor: bytes) -> None:
        self._sent, self._here = processor, pickle.loads(processor)
        patcher = self._here.patcher
        most = 1 + max(width * height for width, height in patcher.pinpoints) // patcher.tile**2
        self._shape = (most, 3, patcher.tile, patcher.tile)
        started = _ahead.pop() if _ahead else _Started()
        self._file = started.file
        finalize(self, os.close, self._file)
        os.ftruncate(self._file, torch.Size(self._shape).numel())
        self._tiles = _mapped(self._file, self._shape)
        self._take(started)

    def __call__(self, image: str | Picture, texts: Sequence[str]) -> Asked:
        if not self.is_ready():
            return ask_here(self._here, image, texts)
        for _ in range(2):
            try:
                self._child.pipe.send((image, texts))
                said, warned = self._child.pipe.receive()
            except (EOFError, OSError):
                ending = self._child.ending()
                self._end()
                self._take(_Started(self._file))
                if not self.is_ready(_PATIENCE):
                    break
            else:
                for warning in warned:
                    warn_once(warning)
                return self._read(said)
        raise ImageError(f"{source_key(image)}: the process that decoded it {ending}, at the second try too")

    def _read(self, said: Any) -> Asked:
        if isinstance(said, Exception):
            raise said
        ids, count, grid, digest, found = said
        # NumPy copies in one thread, which is all that a job's other processes leave.
        tiles = torch.from_numpy(self._tiles[:count].numpy().copy())
        return inputs_of(ids, CutImage(tiles, grid, digest), self._here), found

    def _take(self, started: _Started) -> None:
        self._ready, self._child = False, started.child
        self._end = finalize(self, self._child.close)

    def is_ready(self, wait: float = 0.0) -> bool:
        """Whether its process takes images, after so many seconds at most. One that has ended is started again."""
        if self._ready and self._child.process.poll() is not None:  # it had no work for long
            self._end()
            self._take(_Started(self._file))
        if not self._ready and self._child.pipe.connection.poll(wait):
            try:
                self._child.pipe.receive()
                self._child.pipe.send((self._sent, self._shape))
                self._ready = True
            except (EOFError, OSError):  # it could not start, and has said why
                pass
        return self._ready


def _memory() -> int:
    """A file descriptor of memory that processes can share: /dev/shm may be too small for it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("tiles")
    file, path = tempfile.mkstemp()
    os.unlink(path)
    return file


def _mapped(file: int, shape: Shape) -> Tensor:
    """uint8 of that shape."""
    return torch.frombuffer(mmap.mmap(file, torch.Size(shape).numel()), dtype=torch.uint8).view(shape)


def _work(file: int, pipe: Pipe) -> None:
    """A process: answers what it is sent until nothing comes."""
    torch.set_num_threads(1)
    resize_planes(Image.new("RGB", (1000, 1 + UNCOMPILED_PIXELS // 1000)), [(100, 100)], 1)  # loads the loops
    pipe.send(None)  # it is there
    sent, shape = pipe.receive()  # however long a model loads
    processor: Processor = pickle.loads(sent)
    assert processor.patcher is not None
    processor = replace(processor, patcher=replace(processor.patcher, threads=1))
    tiles = _mapped(file, shape)
    while pipe.connection.poll(_IDLE):
        pipe.send(_cut(processor, tiles, *pipe.receive()))


def _cut(processor: Processor, tiles: Tensor, image: str | Picture, texts: Sequence[str]) -> tuple[Any, list[str]]:
    """What came of an image, and what was warned of. Its tiles are put into `tiles`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            inputs, found = ask_here(processor, image, texts)
        except Exception as error:
            return error, []
    made = inputs[0].tiles
    assert isinstance(made, LazyTiles)
    cut = made.cut(0)
    assert cut is not None
    tiles[: len(made)] = cut.tiles
    said = [each.input_ids for each in inputs], len(made), cut.grid, cut.digest, found
    return said, [str(one.message) for one in caught]
