"""One step of a batch over one cache: reading prompts and writing tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from text_backbone import HybridCache, Packed
from text_backbone.offload import OffloadedCache
from vl.engine.changes import Change, Changes
from vl.engine.choosing import Chooser, Chosen
from vl.engine.config import EngineConfig
from vl.engine.decode import DecodeStep
from vl.engine.driven import Model
from vl.engine.embedding import Embedder
from vl.engine.graphs import Recorder
from vl.engine.images import ImageFeatures
from vl.engine.memory import places
from vl.engine.request import Request
from vl.engine.vision_graphs import VisionGraphs
from vl.engine.warming import Rehearsal


class Runner:
    """Runs steps of a model over a cache, which it must not outlive.

    Args:
        recorder: makes graphs of the decode step, for which the cache needs a scratch slot; None: there are none.
        vision_graphs: those of the vision encoder.
        images: what is kept of them.
        embedder: makes the input of passes over prompts.
    """

    def __init__(
        self,
        model: Model,
        cache: HybridCache,
        recorder: Recorder | None,
        vision_graphs: VisionGraphs,
        images: ImageFeatures,
        embedder: type[Embedder] = Embedder,
    ) -> None:
        self.cache = cache
        self._model = model
        self._images = images
        self._changes = Changes(*filter(None, (model.language_model, model.vision)))
        self._embed = embedder(model, vision_graphs, images)
        self._choose = Chooser(cache.slots)
        self.decode = DecodeStep(model.language_model, cache, self._choose, recorder)

    @classmethod
    def make(
        cls,
        model: Model,
        config: EngineConfig,
        pages: int,
        recorder: Recorder | None,
        vision_graphs: VisionGraphs,
        images: ImageFeatures,
        embedder: type[Embedder] = Embedder,
    ) -> Runner:
        """One over a new cache of so many pages, those in host memory among them."""
        host = config.host_pages
        make: Callable[..., HybridCache] = partial(HybridCache, scratch=recorder is not None)
        if host:
            make = partial(OffloadedCache, host_pages=host)
        cache = make(
            model.language_model.config,
            slots=config.max_batch_size,
            pages=pages - host,
            page_size=config.page_size,
            device=model.device,
            dtype=model.dtype,
        )
        most = places(model.config.text, config)
        cache.places.make_ahead(most, most)  # all: to make one takes the driver's lock, for which a prompt would wait
        return cls(model, cache, recorder, vision_graphs, images, embedder)

    def fits(self) -> bool:
        """Whether the cache is for the model as it is: between generations it may have been moved or cast."""
        cache, model = self.cache, self._model
        return (cache.keys.device, cache.keys.dtype) == (model.device, model.dtype)

    def changed(self) -> bool:
        """Whether the model would compute something else now than what was kept. Asked between generations."""
        change = self._changes.look()
        if change is Change.REBUILT:
            self.decode.forget()
        if change:
            self._images.clear()
        return bool(change)

    def rehearse(self, part: Rehearsal) -> None:
        """Compile and record what encoding so many tiles, or writing so many rows, needs; no sequence notices."""
        if part.tiles:
            self._embed.rehearse(part.tiles)
        if part.rows:
            self.decode.record(part.rows, part.draw)
            self.cache.places.wait()

    def __call__(
        self, batch: Sequence[tuple[Request, int]], running: Sequence[Request]
    ) -> list[tuple[Request, Chosen]]:
        """Read the next tokens of each request of `batch`, for which it has pages.

        `running` is the batch and whoever waits for a later step. Returns those all of whose tokens are read then, with
        the token that comes next. The cache keeps states at the requests' `marks`.
        """
        if all(request.writing for request, _ in batch):
            writers = [request for request, _ in batch]
            chosen = self.decode(writers)
        else:
            writers, chosen = self._prefill(batch, running)
        for request, tokens in batch:
            request.computed += tokens
        return list(zip(writers, chosen, strict=True))

    def _prefill(
        self, batch: Sequence[tuple[Request, int]], running: Sequence[Request]
    ) -> tuple[list[Request], list[Chosen]]:
        """One pass over prompts, and over the last tokens of what is being written meanwhile."""
        model, device = self._model.language_model, self._model.device
        packed = Packed.of(
            [tokens for _, tokens in batch],
            past=[request.computed for request, _ in batch],
            slots=[request.slot for request, _ in batch if request.slot is not None],
            marks=[(i, at, place) for i, (request, _) in enumerate(batch) for at, place in request.marks],
            device=device,
        )
        rows = [i for i, (request, tokens) in enumerate(batch) if request.computed + tokens == request.known]
        ends = torch.tensor([packed.starts[i] + packed.lengths[i] - 1 for i in rows], dtype=torch.int64, device=device)
        hidden = model(self._embed(batch, running), packed, self.cache)  # [tokens, hidden]
        if not rows:
            return [], []
        writers = [batch[i][0] for i in rows]
        return writers, self._choose(model.logits(hidden[ends]), writers)
