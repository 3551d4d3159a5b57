"""Prompts to embeddings, chunk by chunk as they are read: an image is encoded when its first token is due."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from traceback import clear_frames

import numpy as np
import torch
from torch import Tensor

from preprocessing import Grid
from vision_encoder import VisionEncoder
from vision_encoder.packing import send
from vl.engine.driven import Model
from vl.engine.images import ImageFeatures
from vl.engine.memory import is_exhausted
from vl.engine.request import Request
from vl.engine.vision_graphs import VisionGraphs

AHEAD = 64  # tiles that are encoded at once where so many wait, which is what the vision encoder takes at a time
CACHED = 8  # the same on a CPU, where the activations of 64 leave its caches and take a third longer


class Embedder:
    """Makes the input of a pass. Of a request's embeddings it keeps the image features that are not yet read.

    Images are encoded together with those that come next, of whichever request, as long as they are no more than
    `AHEAD` tiles: a few tiles by themselves would leave a GPU idle. Those that `images` has are not encoded.
    """

    def __init__(self, model: Model, graphs: VisionGraphs, images: ImageFeatures) -> None:
        self._model, self._graphs, self._images = model, graphs, images

    def __call__(self, batch: Sequence[tuple[Request, int]], running: Sequence[Request]) -> Tensor:
        """Embeddings of the next tokens of each request of `batch`, end to end: `[tokens, hidden]`.

        `running`: all requests whose prompts are being read, in order.
        """
        ids = [request.known_ids(request.computed, request.computed + tokens) for request, tokens in batch]
        return self.with_images(
            self._model.language_model.embed(send(torch.cat(ids), self._model.device)), batch, running
        )

    def with_images(self, embeds: Tensor, batch: Sequence[tuple[Request, int]], running: Sequence[Request]) -> Tensor:
        """The embeddings of the tokens, with the features of images in their places."""
        due = [
            (request, image)
            for request, tokens in batch
            for image in request.prompt.images_in(request.computed, request.computed + tokens)
        ]
        if not due:
            return embeds
        missing = [(request, image) for request, image in due if not self._found(request, image)]
        if missing and not self._encoded_ahead(missing, running):
            self._encode(missing)
        rows, features = zip(*self._placed(batch), strict=True)
        return embeds.index_copy_(0, send(torch.cat(rows), embeds.device), torch.cat(features).to(embeds.dtype))

    def _found(self, request: Request, image: int) -> bool:
        """Whether its features are there, or have been kept."""
        if image not in request.features:
            kept = self._images.get(request.prompt.digests[image]) if self._images.limit else None
            if kept is None:
                return False
            request.features[image] = kept
        return True

    def _encoded_ahead(self, due: list[tuple[Request, int]], running: Sequence[Request]) -> bool:
        """Encode images that are due with those that come next. False if there are none, or it fails.

        One that is not due yet may be to blame for that, which is no concern of those that are.
        """
        ahead = list(self._next(due, running))
        try:
            if ahead:
                self._encode(due + ahead)
        except Exception:
            return False
        return bool(ahead)

    def _placed(self, batch: Sequence[tuple[Request, int]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of the pass, int64 on the host, and the features that stand there; those that are read are let go."""
        row = 0
        for request, tokens in batch:
            prompt, start, stop = request.prompt, request.computed, request.computed + tokens
            first, last = prompt.ranks_in(start, stop)
            for image in prompt.images_in(start, stop):
                end = prompt.ends[image]
                begin = end - prompt.grids[image].tokens
                ranks = slice(max(first, begin), min(last, end))
                part = request.features[image][ranks.start - begin : ranks.stop - begin]
                yield row - start + prompt.places[ranks], part
                if last >= end:
                    del request.features[image]
            row += tokens

    def _encode(self, wanted: list[tuple[Request, int]]) -> None:
        """Give requests the features of some of their images."""
        vision = self._model.vision
        assert vision is not None, "a text-only model's prompts have no images"
        grids = [request.prompt.grids[image] for request, image in wanted]
        tiles = _joined([request.prompt.tiles_of(image) for request, image in wanted], self._model.device)
        watch = stopwatch(self._model.device)
        features = self._features(vision, tiles, grids)
        seconds = watch()
        self._images.misses += len(wanted)
        for (request, image), part in zip(wanted, features.split([grid.tokens for grid in grids]), strict=True):
            request.features[image] = part
            if self._images.limit:
                self._images.put(request.prompt.digests[image], part)
        for request in dict.fromkeys(request for request, _ in wanted):
            request.watches.append(seconds)

    def _features(self, vision: VisionEncoder, tiles: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Of all images, end to end: `[tokens, hidden]`. When memory runs out, of fewer tiles at a time."""
        at_once = CACHED if self._model.device.type == "cpu" else AHEAD
        while True:
            try:
                return vision(tiles, grids, max_tiles=at_once, replay=self._graphs)
            except Exception as error:
                at_once = min(at_once, len(tiles)) // 2
                if not at_once or not is_exhausted(error):
                    raise
                clear_frames(error.__traceback__)  # they hold what the failed pass had allocated
                self._images.clear()

    def rehearse(self, tiles: int) -> None:
        """Encode an image of so many tiles, 2 at least, until the graph of so many has been recorded."""
        vision = self._model.vision
        assert vision is not None, "a text-only model has no images to rehearse"
        side, patches, cols = vision.config.image_size, vision.config.patches, tiles - 1
        grid = Grid(
            cols * side, side, cols, 1, left=0, top=0, cols=cols * patches, rows=patches, patches=patches, tile=side
        )
        for _ in range(3):  # seen, recorded, replayed
            vision(torch.zeros(tiles, 3, side, side, dtype=torch.uint8), [grid], max_tiles=AHEAD, replay=self._graphs)

    def _next(self, due: list[tuple[Request, int]], running: Sequence[Request]) -> Iterator[tuple[Request, int]]:
        """Images that are due later, in the order of being read, while they and those due now are at most `AHEAD`."""
        tiles = sum(request.prompt.grids[image].tiles for request, image in due)
        for request in running:
            for image in request.prompt.images_in(request.computed, request.prompt_tokens):
                if (request, image) in due or self._found(request, image):
                    continue
                tiles += request.prompt.grids[image].tiles
                if tiles > AHEAD:
                    return
                yield request, image


def stopwatch(device: torch.device) -> Callable[[], Callable[[], float]]:
    """Starts now. Calling it stops it, without waiting for the device, and gives what tells the seconds between.

    On a GPU that is to be asked once the work in between is known to be done.
    """
    if device.type != "cuda":
        start = time.perf_counter()

        def stop() -> Callable[[], float]:
            seconds = time.perf_counter() - start
            return lambda: seconds

        return stop
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()

    def stop_event() -> Callable[[], float]:
        ended.record()
        return lambda: begun.elapsed_time(ended) / 1000

    return stop_event


def _joined(parts: list[Tensor], device: torch.device) -> Tensor:
    """Tiles end to end, on the host: pinned for a GPU, as `send` has it, and in memory that is used again.

    NumPy copies them in one thread. PyTorch's wait for each other at every image while others, which cut the next
    images, have the CPUs: a hundred times as long as the copy takes.
    """
    whole = torch.empty(sum(map(len, parts)), *parts[0].shape[1:], dtype=torch.uint8, pin_memory=device.type == "cuda")
    np.concatenate([part.numpy() for part in parts], out=whole.numpy())
    return whole
