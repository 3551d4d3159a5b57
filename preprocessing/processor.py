"""Messages to the model's inputs: token ids with every image's tokens in place, and the images' tiles."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from preprocessing.alpha import Background, read_background
from preprocessing.chat import Conversation, Messages, Tools
from preprocessing.container import available_cpus
from preprocessing.control import StandIns
from preprocessing.cut import CutImage
from preprocessing.errors import InputError
from preprocessing.grid import Grid
from preprocessing.images import load_image
from preprocessing.kept import KeptImages, is_encoded
from preprocessing.lazy import LazyImage, LazyTiles
from preprocessing.patcher import Patcher
from preprocessing.reasoning import Markers, find_markers
from preprocessing.sources import ImageSource
from preprocessing.template import END_OF_TURN, ChatTemplate, read_json
from preprocessing.tokenizer import Tokenizer
from preprocessing.tools import FUNCTION_CALL, ToolCall, parse_tool_calls
from preprocessing.unicode import well_formed


@dataclass(eq=False)
class Inputs:
    """One sequence for the model.

    `input_ids`: int64 [T], the image token repeated `grid.tokens` times for each image. `tiles`: uint8 [n, 3, S, S],
    the images' tiles one after the other; of images that are lazy, what makes them when a slice of it is taken.
    `grids`: one per image, in the order of the prompt.
    """

    input_ids: Tensor
    tiles: Tensor | LazyTiles
    grids: list[Grid]

    def __len__(self) -> int:
        """T, the length in tokens."""
        return self.input_ids.numel()

    @property
    def image_tokens(self) -> int:
        """How many of the T tokens are the images'."""
        return sum(grid.tokens for grid in self.grids)


@dataclass
class Processor:
    """Turns messages into `Inputs`.

    Args:
        tokenizer: the checkpoint's.
        template: the checkpoint's, or the default one.
        patcher: cuts images; None for a text-only checkpoint.
        image_token: the placeholder that the template writes for an image.
        tokenizer_config: the rest of `tokenizer_config.json`, kept for `save`.
        background: what transparent images are laid on, "white" for example; None drops the transparency, as the
            released recipe does. Raises InputError if it is not a colour.
        control_tokens_in_text: whether `<image>`, `<end_of_sentence>` and the like become control tokens also where a
            user wrote them. By default they are ordinary text there, and only the template makes control tokens.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    patcher: Patcher | None
    image_token: str = "<image>"
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    background: Background = None
    control_tokens_in_text: bool = False

    def __post_init__(self) -> None:
        read_background(self.background)  # a wrong colour is said here, not at the first image

    @classmethod
    def load(
        cls,
        folder: str | Path,
        patcher: Patcher | None,
        image_token: str = "<image>",
        background: Background = None,
    ) -> Processor:
        """From a checkpoint folder: `tokenizer.json`, and the chat template if it has one.

        Raises InputError naming the file that is missing or damaged.
        """
        config = read_json(Path(folder) / "tokenizer_config.json")
        return cls(Tokenizer.load(folder), ChatTemplate.load(folder), patcher, image_token, config, background)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, with the chat template in it, as transformers reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(folder)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<beginning_of_sentence>",
            "eos_token": END_OF_TURN,
            "clean_up_tokenization_spaces": False,
            **self.tokenizer_config,
            "chat_template": self.template.source,
        }
        text = well_formed(json.dumps(config, ensure_ascii=False, indent=2))
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

    def __call__(
        self,
        messages: Messages | Conversation,
        add_generation_prompt: bool = True,
        tools: Tools | None = None,
        continue_final_message: bool = False,
        kept: KeptImages | None = None,
    ) -> Inputs:
        """Inputs for the conversation, ready for the assistant's next words.

        Args:
            add_generation_prompt: end with what comes before an answer.
            tools: functions that the model may call.
            continue_final_message: end with the text of the last message instead, if that is the assistant's and calls
                no functions: the next words go on from it.
            kept: images that were cut for earlier prompts, whose files are not decoded again. Then the inputs' tiles,
                which later prompts share, are made when a slice of them is taken, and are not to be written to.

        Raises:
            InputError: for malformed messages or tools, a template that leaves them out, a number of placeholders in
                the prompt that is not the number of images, or an image given to a text-only checkpoint.
            ImageError: for an image that cannot be read.
        """
        conversation = Conversation.of(messages, tools)
        last = conversation.messages[-1]
        begun = continue_final_message and last["role"] == "assistant" and not last.get("tool_calls")

        def render(conversation: Conversation) -> list[tuple[str, bool]]:
            if begun:
                return [(text, False) for text in self.template.begun(conversation)]
            return [(self.template.render(conversation, add_generation_prompt), False)]

        return self._inputs(conversation, self._encode(conversation, render), kept)[0]

    def continuation(
        self, read: Conversation, messages: Messages | Conversation, add_generation_prompt: bool = True
    ) -> Inputs:
        """Inputs of what `messages` add to a prompt that ends after those of `read`, without a generation prompt.

        After that prompt's they make the inputs of all messages, of which only the new ones are tokenised. Raises
        as `__call__` does, and InputError if this template does not write a conversation as its prefix and more.
        """
        new = Conversation.of(messages)
        count = len(read.messages)
        whole = Conversation([*read.messages, *new.messages], new.images, [*read.tools, *new.tools])

        def render(conversation: Conversation) -> list[tuple[str, bool]]:
            begun = self.template.render(replace(conversation, messages=conversation.messages[:count], tools=[]), False)
            text = self.template.render(conversation, add_generation_prompt)
            # A control token at the cut, or tokens could have grown over it.
            if not text.startswith(begun) or not self.tokenizer.control.begins(text[len(begun) :]):
                raise InputError(
                    "this chat template does not write a conversation as its beginning and, from a control token on, "
                    "the rest, so nothing can be added to what was read; use the default template"
                )
            return [(text[len(begun) :], False)]

        return self._inputs(new, self._encode(whole, render))[0]

    @property
    def reasoning(self) -> Markers | None:
        """The tokens between which this model thinks before it answers; None if it does not."""
        return find_markers(self.tokenizer, self.template)

    def tool_calls(self, token_ids: Sequence[int]) -> list[ToolCall]:
        """The calls in what the model generated, which begin at the special token `<function_call>`."""
        token_id = self.tokenizer.token_id(FUNCTION_CALL)
        if token_id is None or token_id not in token_ids:
            return []
        return parse_tool_calls(self.tokenizer.decode(token_ids, skip_special_tokens=False))

    def training(self, messages: Messages | Conversation) -> tuple[Inputs, Tensor]:
        """Inputs of a whole conversation, and which tokens to learn: bool [T].

        True are the tokens of each assistant text and the end-of-turn token after it: position t is a token to
        predict from those before it. The prompt before each is tokenised as generation would see it. Raises as
        `__call__` does, and InputError where `ChatTemplate.segments` does.
        """
        conversation = Conversation.of(messages)
        return self._inputs(conversation, self.segments(conversation))

    def segments(self, messages: Messages | Conversation) -> list[tuple[list[int], bool]]:
        """`ChatTemplate.segments` as token ids, each image still one placeholder. Raises as that does."""
        return self._encode(Conversation.of(messages), self.template.segments)

    def _encode(
        self, conversation: Conversation, render: Callable[[Conversation], list[tuple[str, bool]]]
    ) -> list[tuple[list[int], bool]]:
        """Token ids of what `render` writes of the conversation, control tokens in it from the template alone."""
        segments = render(conversation)
        stand_ins = None if self.control_tokens_in_text else self._stand_ins(conversation)
        if stand_ins is not None:
            hidden = [(stand_ins.gather(text), learn) for text, learn in render(conversation.map_text(stand_ins.hide))]
            if self._control_tokens(hidden) != self._control_tokens(segments):
                return [(self._encode_hidden(text, stand_ins), learn) for text, learn in hidden]
        # Nothing that a user wrote became a control token.
        return [(self.tokenizer.encode(text), learn) for text, learn in segments]

    def _stand_ins(self, conversation: Conversation) -> StandIns | None:
        fixed = [self.template.source, *self.template.special_tokens.values()]
        return StandIns.choose(self.tokenizer.control.starts, conversation.texts(), fixed)

    def _control_tokens(self, segments: list[tuple[str, bool]]) -> list[str]:
        return [token for text, _ in segments for token in self.tokenizer.control.find(text)]

    def _encode_hidden(self, text: str, stand_ins: StandIns) -> list[int]:
        ids: list[int] = []
        done = 0
        for start, end in self.tokenizer.control.between(text):
            if stand_ins.within(text[start:end]):
                ids += self.tokenizer.encode(text[done:start])
                ids += self.tokenizer.encode_plain(stand_ins.show(text[start:end]))
                done = end
        return ids + self.tokenizer.encode(text[done:])

    def _inputs(
        self, conversation: Conversation, segments: list[tuple[list[int], bool]], kept: KeptImages | None = None
    ) -> tuple[Inputs, Tensor]:
        ids = torch.tensor([token for tokens, _ in segments for token in tokens], dtype=torch.int64)
        learn = torch.tensor([learn for tokens, learn in segments for _ in tokens], dtype=torch.bool)
        if self.patcher is None:
            if conversation.images:
                raise InputError(
                    "this checkpoint is text-only and takes no images: remove the image parts, "
                    "or load a vision-language checkpoint"
                )
            return Inputs(ids, torch.empty(0, 3, 0, 0, dtype=torch.uint8), []), learn

        placeholders = ids == self._image_token_id(conversation)
        self._check_count(int(placeholders.sum()), len(conversation.images))
        patched = self._patch(self.patcher, conversation.images, kept)
        grids = [grid for _, grid in patched]
        tiles = _joined([tiles for tiles, _ in patched], grids, self.patcher)

        repeats = torch.ones_like(ids)  # [prompt]
        repeats[placeholders] = torch.tensor([grid.tokens for grid in grids], dtype=torch.int64)
        return Inputs(ids.repeat_interleave(repeats), tiles, grids), (learn & ~placeholders).repeat_interleave(repeats)

    def _image_token_id(self, conversation: Conversation) -> int:
        token_id = self.tokenizer.token_id(self.image_token)
        if token_id is None and conversation.images:
            raise InputError(f"the tokenizer has no {self.image_token} token; use this checkpoint's own tokenizer.json")
        return -1 if token_id is None else token_id

    def _check_count(self, placeholders: int, images: int) -> None:
        if placeholders > images:
            raise InputError(
                f"the prompt has {placeholders} {self.image_token} placeholders but {images} images were given: "
                f"add the missing images as image parts, or take {self.image_token} out of the text or the template"
            )
        if placeholders < images:
            raise InputError(
                f"{images} images were given but the prompt has {placeholders} {self.image_token} placeholders: "
                "the chat template leaves images out; use the default template"
            )

    def _patch(
        self, patcher: Patcher, images: list[ImageSource], kept: KeptImages | None
    ) -> list[tuple[Tensor | LazyImage | CutImage, Grid]]:
        def patch(numbered: tuple[int, ImageSource]) -> tuple[Tensor | LazyImage | CutImage, Grid]:
            number, source = numbered
            if isinstance(source, LazyImage):
                return source, patcher.grid(*source.size)
            if kept is not None and is_encoded(source):
                cut = kept(source, patcher, name=f"image {number}", background=self.background)
                return cut, cut.grid
            return patcher(load_image(source, name=f"image {number}", background=self.background))

        numbered = list(enumerate(images, 1))
        if len(images) < 2:
            return [patch(item) for item in numbered]
        with ThreadPoolExecutor(min(len(images), available_cpus())) as pool:
            return list(pool.map(patch, numbered))


def _joined(parts: list[Tensor | LazyImage | CutImage], grids: list[Grid], patcher: Patcher) -> Tensor | LazyTiles:
    """The tiles of all images in order."""
    made = [part for part in parts if isinstance(part, Tensor)]
    if len(made) < len(parts):
        return LazyTiles(parts, grids, patcher)
    if not made:
        return torch.empty(0, 3, patcher.tile, patcher.tile, dtype=torch.uint8)
    # NumPy copies in one thread: PyTorch's wait for each other at every image where the CPUs are taken.
    return made[0] if len(made) == 1 else torch.from_numpy(np.concatenate([tiles.numpy() for tiles in made]))
