"""What a rank does with its part of the model. Every method is called on all ranks with the same arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from text_backbone import HybridCache, Packed
from text_backbone.parallel import SplitText
from text_backbone.parallel.collectives import Collectives
from vl.engine import EngineConfig, Request, Timings, memory
from vl.engine.driven import Model
from vl.engine.embedding import Embedder
from vl.engine.graphs import GraphRecorder
from vl.engine.holding import Contents, Fill, named_states, named_stretch, take_out, whole_name
from vl.engine.images import ImageFeatures
from vl.engine.prefix import Held
from vl.engine.prompt import Prompt
from vl.engine.runner import Runner
from vl.engine.structured import Forms
from vl.engine.vision_graphs import VisionGraphs
from vl.engine.warming import Rehearsal
from vl.model import MiniMaxVL
from vl.ranks.identity import Found, values_here
from vl.ranks.messages import Call, Exhausted, HeldAt, NewRequest, Step, Written
from vl.routing import last_experts


class _Silent:
    """Tokens become text in the caller's process."""

    def push(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


class _Embedder(Embedder):
    """Goes on without images if memory runs out: the other ranks wait for this one in the pass."""

    def with_images(self, embeds: Tensor, batch: Sequence[tuple[Request, int]], running: Sequence[Request]) -> Tensor:
        own = partial(super().with_images, embeds, batch, running)
        group = _group(self._model)
        return own() if group is None else group.attempt(own, lambda: embeds)


def _group(model: Model) -> Collectives | None:
    """What the ranks of a model that is split talk through."""
    backbone = model.language_model
    return backbone.group if isinstance(backbone, SplitText) else None


class Part:
    """A part of a model with its part of the cache, and what is known here of the requests.

    Raises:
        ConfigError: if the device could never hold the cache.
    """

    def __init__(self, model: MiniMaxVL, config: EngineConfig) -> None:
        self._model, self._config = model.eval(), config
        memory.check_config(model, config, torch.distributed.get_world_size())
        self._runner: Runner | None = None
        self._vision_graphs, self._images = VisionGraphs(), ImageFeatures(config.image_memory * memory.MIB)
        self._requests: dict[int, Request] = {}
        self._forms = Forms(model, tried=True)
        backbone = model.language_model
        self._layout = backbone.layout if isinstance(backbone, SplitText) else None
        self._carried: dict[int, Contents] = {}

    def room(self) -> int | None:
        """Tokens that this device's cache could hold; None if that cannot be told."""
        return memory.room(self._model, self._config, self._runner.cache.nbytes if self._runner else 0)

    def drop_cache(self) -> None:
        """Let the cache go, before another is made."""
        self._runner = None

    def make_cache(self, pages: int) -> None:
        """A cache of so many pages, and what runs steps over it."""
        device = self._model.device
        recorder = GraphRecorder(device) if device.type == "cuda" else None
        self._runner = Runner.make(
            self._model, self._config, pages, recorder, self._vision_graphs, self._images, _Embedder
        )

    @torch.inference_mode()
    def rehearse(self, part: Rehearsal) -> None:
        """As of `Runner`."""
        assert self._runner is not None, "a rehearsal before there is a cache"
        self._runner.rehearse(part)

    def image_counts(self) -> tuple[int, int]:
        """As of `Engine`."""
        return self._images.hits, self._images.misses

    def memory(self) -> int:
        """Bytes of tensors on this device at the peak; 0 where that is not counted."""
        device = self._model.device
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0

    def samples(self) -> Mapping[str, Found]:
        """What `vl.engine.identity` needs of the weights that are here, by the part of the model."""
        return {name: values_here(part) for name, part in self._model.named_children()}

    # What is held of the cache

    def follow(self, calls: Sequence[Call]) -> None:
        """Repeat on the cache what the caller's process did on its ledger."""
        assert self._runner is not None
        cache = self._runner.cache
        for name, args, expected in calls:
            found = getattr(cache, name)(*args)
            if name == "acquire" and found != expected:
                raise RuntimeError(
                    f"slot {found} of the cache was free next, and not {expected}: ranks are out of step"
                )

    @torch.inference_mode()
    def states_of(self, held: HeldAt) -> dict[str, Tensor]:
        """What is here of `Keeping.states_of`, by the names of the whole; what several ranks have is the first's."""
        return self._named(lambda cache: named_states(cache, Held(*held)))

    @torch.inference_mode()
    def stretch_of(self, held: HeldAt, start: int, stop: int) -> dict[str, Tensor]:
        """The same of `Keeping.stretch_of`."""
        return self._named(lambda cache: named_stretch(cache, Held(*held), start, stop))

    def _named(self, read: Callable[[HybridCache], dict[str, Tensor]]) -> dict[str, Tensor]:
        assert self._runner is not None
        layout = self._layout
        if layout is not None and (layout.shares("heads") or layout.shares("layers")):
            return {whole_name(name, layout): tensor for name, tensor in read(self._runner.cache).items()}
        return {} if torch.distributed.get_rank() else read(self._runner.cache)

    @torch.inference_mode()
    def fill(self, fill: Fill, slot: int) -> None:
        """Give a slot what is here of its states, keys and values."""
        assert self._runner is not None
        fill(self._runner.cache, slot, self._layout)

    @torch.inference_mode()
    def take_out(self, held: Sequence[HeldAt]) -> None:
        """Keep copies, for the cache is about to go."""
        assert self._runner is not None
        cache = self._runner.cache
        self._carried = {number: take_out(cache, Held(*each)) for number, each in enumerate(held)}

    def put_in(self, number: int, slot: int) -> None:
        """Give a slot of another cache the copy of that number, and let it go."""
        self.fill(self._carried.pop(number), slot)

    # Steps

    @torch.inference_mode()
    def step(self, step: Step) -> Written:
        """One forward pass, as the caller's scheduler has it.

        Raises:
            Exhausted: if memory ran out in this rank's part of it. The others are through it too; what it has written
                and given is of no use.
        """
        assert self._runner is not None, "a step before there is a cache"
        for number in step.ended:
            self._requests.pop(number, None)
        for new in step.new:
            self._requests[new.number] = self._request(new)
        self.follow(step.memory)
        batch = [self._requests[number] for number in step.batch]
        columns = zip(batch, step.slots, step.computed, step.written, step.marks, strict=True)
        for request, slot, computed, written, marks in columns:
            request.slot, request.computed, request.marks = slot, computed, marks
            request.token_ids += written
            request.written = len(request.token_ids)
        numbers = dict(zip(map(id, batch), step.batch, strict=True))
        running = [self._requests[number] for number in step.running]
        tokens, vision = [], {}
        for request, chosen in self._runner(list(zip(batch, step.tokens, strict=True)), running):
            number = numbers[id(request)]
            tokens.append((number, chosen))
            if request.watches:
                vision[number] = sum(watch() for watch in request.watches)
                request.watches.clear()
        group = _group(self._model)
        if group is not None and group.shortage is not None:
            error, group.shortage = group.shortage, None
            raise Exhausted(str(error))
        return Written(tokens, vision)

    def release(self, places: Sequence[int]) -> None:
        """Give back memory that nobody needs, but for what is held at these places."""
        self._images.clear()
        for request in self._requests.values():
            request.features.clear()
            request.watches.clear()
        if self._runner is not None:
            self._runner.cache.places.keep(places)
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _request(self, new: NewRequest) -> Request:
        return Request(
            prompt_tokens=len(new.prompt),
            max_new_tokens=new.params.max_new_tokens,
            prompt=new.prompt,
            params=new.params,
            stream=_Silent(),
            key=new.key,
            timings=Timings(),
            form=self._forms.of(new.params),
        )

    @torch.inference_mode()
    def logits(self, prompt: Prompt) -> Tensor | None:
        """As of `MiniMaxVL.logits`, on the host; from the first rank only, as all have the same."""
        model = self._model
        packed = Packed.of([len(prompt)], device=model.device)
        hidden = model(prompt.input_ids, prompt.tiles[:], prompt.grids, packed)
        logits = model.language_model.logits(hidden)
        return logits.cpu() if torch.distributed.get_rank() == 0 else None

    def last_experts(self, texts: Sequence[Sequence[int]]) -> list[int] | None:
        """As of `vl.routing`; all ranks have the same."""
        return last_experts(self._model, texts)
