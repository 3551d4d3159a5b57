"""The model: vision encoder and text backbone joined, with the doors that users come through."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from preprocessing import Grid, ImageSource, Inputs, Messages, Processor, Tools
from preprocessing.template import END_OF_TURN
from text_backbone import HybridCache, MiniMaxText, Packed, stored_tensors
from text_backbone import released_tensors as text_tensors
from text_backbone.parallel import split_backbone
from text_backbone.quantization import quantized_backbone
from text_backbone.spill import spilled_backbone
from vision_encoder import VisionEncoder
from vision_encoder import released_tensors as vision_tensors
from vl.checkpoint import Slot, stored_config, weight_dtype, write_weights
from vl.config import VLConfig, write_config
from vl.documents import PAGE_SIDE
from vl.engine import Generation, SamplingParams, TextStream, Timings
from vl.engine.driver import Driver
from vl.engine.identity import Origin, digest, samples
from vl.engine.params import check_single
from vl.engine.prompt import Prompt
from vl.engine.reading import Progress, check_progress
from vl.engine.session import SAVE_EVERY, Session, Source, open_session
from vl.engine.session import read as read_session
from vl.errors import ConfigError, DeviceError, InputError
from vl.saving import replace_model

DEFAULT_PROMPT = "Describe this image."


class MiniMaxVL(nn.Module):
    """A model of the MiniMax-VL-01 family (ViT, projector, hybrid lightning/softmax mixture-of-experts decoder).

    Made by `vl.load`, or by `vl.loading.build_model` from a `VLConfig` for training from scratch (the weights are then
    uninitialised): both give it an engine, which generates. A config without a vision part makes MiniMax-Text-01, which
    refuses images.

    Args:
        config: the model's shape.
        processor: messages to `Inputs`.
        name: what to call the model in results.
        device: where the weights are held.
        dtype: how they are held.
        placement: None for the whole model. Otherwise the decoder is this process' part, as `text_backbone.parallel`
            cuts it over all processes of `torch.distributed`; the vision encoder is on each.
        slots: None for all experts on the device. Otherwise they are in host memory, and so many of every layer, of
            those that are this process', on the device, as `text_backbone.spill` does it.
    """

    def __init__(
        self,
        config: VLConfig,
        processor: Processor,
        *,
        name: str = "",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        placement: str | None = None,
        slots: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.processor = processor
        self.name = name
        self.origin: Origin | None = None  # of the weights
        self.language_model = _text_model(config, device, dtype, placement, slots)
        self.vision = VisionEncoder(config.vision, device=device, dtype=dtype) if config.vision else None
        # The released config.json does not name the end token.
        end_id = processor.tokenizer.token_id(END_OF_TURN)
        self.end_ids = frozenset(config.eos_token_ids or ([] if end_id is None else [end_id]))
        self._engine: Driver | None = None
        self._spilled = slots is not None

    @property
    def engine(self) -> Driver:
        """What generates. Raises ConfigError if the model was given none."""
        if self._engine is None:
            raise ConfigError(
                "this model has no engine to generate with: build it with vl.load or vl.loading.build_model, "
                "or set model.engine = vl.engine.Engine(model)"
            )
        return self._engine

    @engine.setter
    def engine(self, engine: Driver) -> None:
        self._engine = engine

    @property
    def fingerprint(self) -> str | None:
        """Of the files that the weights are from, or of themselves if they were changed since; None: of no files."""
        return None if self.origin is None else self.origin.fingerprint(self, self)

    def detokeniser(self) -> TextStream:
        """A new decoder for ids that come one by one."""
        return self.processor.tokenizer.stream()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """`device`, or all of those that the model is split over."""
        return (self.device,)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    # The computation

    def embed(self, input_ids: Tensor, tiles: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Token embeddings with the image features in the place of their placeholders.

        Args:
            input_ids: int64 `[tokens]`, every `<image>` already repeated to its image's token count.
            tiles: uint8 `[n, 3, S, S]`, the tiles of all images in order.
            grids: one per image.

        Returns:
            `[tokens, hidden]` on the model's device.

        Raises:
            InputError: if the model takes no images, or the placeholders are not as many as the images' tokens.
        """
        embeds = self.language_model.embed(input_ids.to(self.device))
        if not grids:
            return embeds
        if self.vision is None or self.config.image_token_index is None:
            raise InputError(f"{self.name or 'this model'} is a text-only checkpoint and takes no images")
        places = torch.eq(input_ids, self.config.image_token_index)
        expected, found = sum(grid.tokens for grid in grids), int(places.sum())
        if expected != found:
            raise InputError(
                f"the images make {expected} tokens, but input_ids has {found} placeholders: make them with processor"
            )
        features = self.vision(tiles, grids)  # [image tokens, hidden]
        return embeds.masked_scatter(places.to(self.device).unsqueeze(-1), features.to(embeds.dtype))

    def forward(
        self,
        input_ids: Tensor,
        tiles: Tensor,
        grids: Sequence[Grid],
        packed: Packed,
        cache: HybridCache | None = None,
        router_logits: list[Tensor] | None = None,
    ) -> Tensor:
        """Final hidden states of packed sequences, `[tokens, hidden]`; `language_model.logits` makes logits of them."""
        return self.language_model(self.embed(input_ids, tiles, grids), packed, cache, router_logits)

    @torch.inference_mode()
    def logits(self, inputs: Inputs) -> Tensor:
        """Next-token logits at every position of one prompt: float32 `[tokens, vocab]`.

        Raises:
            InputError: if the prompt is not one for this model.
        """
        prompt = Prompt.of(inputs, self.config, self.name)
        packed = Packed.of([len(prompt)], device=self.device)
        return self.language_model.logits(self(prompt.input_ids, prompt.tiles[:], prompt.grids, packed))

    # The doors

    def caption(self, image: ImageSource, prompt: str | None = None, **sampling: Any) -> str:
        """Describe one image, or answer `prompt` about it. `sampling`, and `progress`, are those of `generate`."""
        question = DEFAULT_PROMPT if prompt is None else prompt
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        return self.chat([{"role": "user", "content": content}], **sampling)

    def chat(
        self, messages: Messages, *, tools: Tools | None = None, progress: Progress | None = None, **sampling: Any
    ) -> str:
        """Answer a conversation (OpenAI/transformers content parts). The other arguments are those of `generate`."""
        check_single(sampling)
        return self.generate([messages], tools=tools, progress=progress, **sampling)[0].text

    def stream(
        self, messages: Messages, *, tools: Tools | None = None, progress: Progress | None = None, **sampling: Any
    ) -> Iterator[str]:
        """Answer a conversation piece by piece; the pieces joined are `chat`'s answer.

        Bad input raises here, not at the first piece. Closing the iterator ends the generation.
        """
        check_single(sampling)
        params = SamplingParams.of(sampling)
        check_progress(progress)
        self.engine.stay_in_process()  # tensors' threads are the parent's too: nothing is computed before
        inputs, timings = self._prepare(messages, tools)
        params = params.offering(tools, self.processor)
        # Checked now, and queued when the first piece is asked for: whoever never asks leaves nothing behind.
        return self.engine.stream(self.engine.prepare(inputs, params, timings), progress)

    def generate(
        self,
        batch: Sequence[Messages | Inputs],
        *,
        tools: Tools | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> list[Generation]:
        """Continue many conversations at once.

        Args:
            batch: conversations, or what `processor` made of them. A last message of the assistant is what its answer
                begins with: it goes on from there, and only what is new is in the result.
            tools: descriptions of functions that the model may call (JSON objects, as OpenAI has them), for every
                conversation. Its calls are in `Generation.tool_calls`; beside `response_format` an answer is either
                calls or of that form. Arguments of a function with `"strict": true` are held to its `parameters`.
            progress: called with a `vl.Reading` after each pass over the prompts, which are read `prefill_tokens` at a
                time: how many of their tokens are read, and how fast.
            sampling: `max_new_tokens` (256), `temperature` (0: greedy), `top_p`, `top_k`, `min_p`, `seed`, `stop`,
                `logprobs` and whatever else `vl.engine.SamplingParams` has. They hold for every row.

        Returns:
            one `Generation` per row, in order; with `n` answers to each, those of the first row (their `index` 0 to
            n - 1), then those of the next.

        Raises:
            ImageError, InputError: naming the image or message that cannot be used; nothing is generated then.
        """
        params = SamplingParams.of(sampling)
        check_progress(progress)
        self.engine.stay_in_process()  # tensors' threads are the parent's too: nothing is computed before
        if not isinstance(batch, Iterable):
            raise InputError(f"the batch must be a list of conversations, not {type(batch).__name__}")
        prepared = [self._prepare(item, tools) for item in batch]  # before any is queued: bad input costs nothing
        params = params.offering(tools, self.processor)
        answers = [self.engine.prepare_answers(inputs, params, timings) for inputs, timings in prepared]
        requests = [request for row in answers for request in row]
        results = self.engine.run(requests, progress)
        for result in results:
            said = result.token_ids[result.usage.reasoning_tokens :]
            result.tool_calls = self.processor.tool_calls(said)
        return results

    def _prepare(self, item: Messages | Inputs, tools: Tools | None) -> tuple[Inputs, Timings]:
        start = time.perf_counter()
        if isinstance(item, Inputs):
            if tools is not None:
                raise InputError("tools are written into the prompt: give them to the processor that made these inputs")
            inputs = item
        else:
            inputs = self.processor(item, tools=tools, continue_final_message=True, kept=self.engine.kept_images)
        return inputs, Timings(preprocess=time.perf_counter() - start)

    # Sessions

    def read(
        self,
        source: Source,
        *,
        page_side: int = PAGE_SIDE,
        progress: Progress | None = None,
        folder: str | os.PathLike[str] | None = None,
        save_every: int = SAVE_EVERY,
        overwrite: bool = False,
    ) -> Session:
        """Read something once, to ask about it any number of times.

        Args:
            source: messages, or the path of a document or several: text files, PDFs (whose pages become images; needs
                the extra `documents`) and images.
            page_side: pixels of the longer side of a PDF's pages.
            progress: as of `generate`.
            folder: save the session there, also on the way, `save_every` tokens after the last time. If the same was
                read into it before, in part or as a whole, reading goes on from there.
            overwrite: a session of something else that is in the folder.

        Raises:
            CheckpointError: if the folder holds a session of something else, or cannot be written.
            InputError, ImageError: naming the document and page, message or image that cannot be read.
        """
        check_progress(progress)
        return read_session(
            self, source, page_side=page_side, progress=progress,
            folder=folder, save_every=save_every, overwrite=overwrite,
        )  # fmt: skip

    def open(self, folder: str | os.PathLike[str]) -> Session:
        """The session that was saved in a folder.

        Raises:
            CheckpointError: if there is none, it is damaged, or it is of another model, naming what differs.
            InputError: if the memory cannot hold it.
        """
        return open_session(self, folder)

    def weights_digest(self) -> str:
        """Tells models apart by some values of every tensor; equal for equal models on whatever devices."""
        return digest(samples(part) for part in (self.language_model, self.vision) if part is not None)

    # The checkpoint

    def released_tensors(self) -> dict[str, Slot]:
        """Every tensor of a released checkpoint by its name: the place that holds it. A quantised one packs itself."""
        return self._named(text_tensors(self.language_model))

    def stored_tensors(self) -> dict[str, Slot]:
        """The same in the model's own storage: of a quantised matrix, what a checkpoint has in its place."""
        return self._named(stored_tensors(self.language_model))

    def _named(self, text: Mapping[str, Slot]) -> dict[str, Slot]:
        if self.vision is None:
            return dict(text)
        return {f"language_model.{name}": slot for name, slot in text.items()} | vision_tensors(self.vision)

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        max_shard_bytes: float = 5e9,
        dtype: torch.dtype | str | None = None,
    ) -> Path:
        """Write the released layout: config, tokenizer, chat template and safetensors. A quantised model stays one.

        A model that is in the folder is replaced as a whole: whatever ends the save, the folder holds the old model,
        the new one, or none that loads. Files that belong to no model stay.

        Args:
            folder: made if need be; `~` is the user's own.
            max_shard_bytes: size at which a new file of weights starts.
            dtype: to store the weights as that are not quantised; by default the model's own.

        Returns:
            the folder.

        Raises:
            CheckpointError: if `folder` is not a path or cannot be written into, or a weight is not finite as it is
                stored; the old model is then as it was.
            ConfigError: if matrices were quantised to several formats.
            DeviceError: if weights cannot be stored as `dtype`.
            InputError: if `max_shard_bytes` is not a number above 0.
        """
        stored = None if dtype is None else weight_dtype(dtype)
        with replace_model(folder) as draft:
            write_config(stored_config(self.config, self.language_model), draft)
            self.processor.save(draft)
            write_weights(self.stored_tensors(), draft, max_shard_bytes=max_shard_bytes, dtype=stored)
        return Path(folder).expanduser()

    # With experts in host memory

    def train(self, mode: bool = True) -> MiniMaxVL:
        if mode and self._spilled:
            raise ConfigError(
                f"{self.name or 'this model'} has experts in host memory: load it without spill= to train it"
            )
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MiniMaxVL:
        """What `to`, `half` and their like call."""
        if self._spilled:
            raise ConfigError(
                f"{self.name or 'this model'} has experts in host memory, and cannot be moved or cast: give vl.load "
                "the device and the dtype"
            )
        return super()._apply(fn, recurse)

    def close(self) -> None:
        """End the processes of a model over several devices; it answers no more. One in this process has none."""


def _text_model(
    config: VLConfig,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    placement: str | None,
    slots: int | None,
) -> MiniMaxText:
    format = config.quantization
    if format == "fp8" and device is not None and torch.device(device).type == "mps":
        raise DeviceError("mps has no 8-bit floating-point numbers, as fp8 needs: use int8 or nf4, or device='cpu'")
    try:
        if placement is not None:
            return split_backbone(
                config.text, placement=placement, quantization=format, slots=slots, device=device, dtype=dtype
            )
        if slots is not None:
            return spilled_backbone(config.text, slots, format, device=device, dtype=dtype)
        if format is not None:
            return quantized_backbone(config.text, format, device=device, dtype=dtype)
    except ValueError as error:
        if placement is None:
            raise ConfigError(f"this model cannot be quantised to {format}: {error}") from error
        raise ConfigError(
            f"this model cannot be split by {placement} in {format or '16 bits'}: {error}; give another placement, "
            "or fewer devices"
        ) from error
    return MiniMaxText(config.text, device=device, dtype=dtype)
