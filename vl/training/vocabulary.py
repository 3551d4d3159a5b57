"""Byte-level BPE vocabularies, as the tokenizers of small models are trained, and as they are given more tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from preprocessing import ChatTemplate, Processor
from preprocessing import Tokenizer as ProcessorTokenizer
from preprocessing.reasoning import CLOSE, OPEN, REASONING_TEMPLATE
from vl.errors import ConfigError
from vl.training.config import SPECIAL_TOKENS


def train_bpe(corpus: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` entries, in which every digit is an entry of its own.

    The special tokens are entries 0 to 2; all 256 bytes are entries, so any text has an encoding. One corpus always
    makes one tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def with_reasoning(processor: Processor, room: int) -> Processor:
    """The processor of a model that is to think before it answers: it has the tokens and the template for that.

    Of the two tokens, those that the vocabulary has keep their entries. Others take entries that the embedding has
    beyond the vocabulary or, without such, the places of the last entries of which no others are made: what those spelt
    is written in smaller parts.

    Args:
        processor: of the model as it was; one that has all this already is returned as it is.
        room: entries that the model's embedding has.

    Raises:
        ConfigError: for a chat template that is not the released format, or a vocabulary that lacks the tokens and is
            not BPE.
    """
    if processor.reasoning is not None:
        return processor
    if not _writes_released_format(processor.template):
        raise ConfigError(
            "this model's own chat template writes no reasoning_content, and there is some to learn: start from a "
            "model whose template is the released format or writes it"
        )
    template = ChatTemplate(REASONING_TEMPLATE, processor.template.special_tokens)
    return replace(processor, tokenizer=_with_markers(processor.tokenizer, room), template=template)


def _with_markers(tokenizer: ProcessorTokenizer, room: int) -> ProcessorTokenizer:
    described = json.loads(tokenizer.backend.to_str())
    added = {token["content"] for token in described["added_tokens"]}
    wanted = [token for token in (OPEN, CLOSE) if token not in added]
    if not wanted:
        return tokenizer
    if described["model"]["type"] != "BPE":
        raise ConfigError(f"{OPEN} and {CLOSE} can be added to BPE vocabularies, not {described['model']['type']}")
    vocabulary = described["model"]["vocab"]
    missing = [token for token in wanted if token not in vocabulary]
    if len(tokenizer) + len(missing) > room:
        vocabulary.update(zip(missing, _give_up(described, len(missing)), strict=True))
    backend = Tokenizer.from_str(json.dumps(described))
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in wanted])
    return ProcessorTokenizer(backend)


def _writes_released_format(template: ChatTemplate) -> bool:
    talk: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "image": ""}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "And now?"},
    ]
    return all(template.render(talk, prompt) == ChatTemplate().render(talk, prompt) for prompt in (True, False))


def _give_up(described: dict[str, Any], count: int) -> list[int]:
    """Takes the last entries, and the merges that make them, out of a described tokenizer; returns their ids."""
    model, kept = described["model"], {token["content"] for token in described["added_tokens"]} | {OPEN, CLOSE}
    parts = {part for merge in model["merges"] for part in merge}
    made = {"".join(merge) for merge in model["merges"]} - parts - kept
    last = sorted(made & model["vocab"].keys(), key=lambda entry: model["vocab"][entry])[-count:]
    if len(last) < count:
        raise ConfigError(f"no {count} entries of the vocabulary can be given up for {OPEN} and {CLOSE}")
    model["merges"] = [merge for merge in model["merges"] if "".join(merge) not in last]
    return [model["vocab"].pop(entry) for entry in last]
