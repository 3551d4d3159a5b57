"""The model that a run starts with: new, or a checkpoint's."""

from __future__ import annotations

import torch

from preprocessing import ChatTemplate, Processor, Tokenizer
from vl.config import read_config
from vl.errors import ConfigError
from vl.hub import resolve_source
from vl.loading import load_folder, patcher_of
from vl.model import MiniMaxVL
from vl.training.config import TrainConfig
from vl.training.init import initialise
from vl.training.vocabulary import with_reasoning


def build_model(config: TrainConfig, device: torch.device) -> MiniMaxVL:
    """The model at step 0: `run.init`'s in `run.dtype`, or a new one in float32, from which the masters are taken.

    Raises:
        CheckpointError: if the checkpoint cannot be read.
        ConfigError: if the config describes no model, or another one than the checkpoint holds.
    """
    if config.run.init is None:
        config.parallel.check_model(config.model.text)
        model = MiniMaxVL(config.model, build_processor(config), device="cpu", dtype=torch.float32)
        initialise(model, config.data.seed)
        return model.to(device)
    folder = resolve_source(config.run.init)
    shape = read_config(folder)
    if shape.quantization is not None:
        raise ConfigError(
            f"the checkpoint {config.run.init} is quantised to {shape.quantization}, and no gradients reach its "
            "matrices: start from the one that it was made of"
        )
    for table, wanted, found in (("text", config.text, shape.text), ("vision", config.vision, shape.vision)):
        if wanted is not None and wanted != found:
            raise ConfigError(f"the checkpoint {config.run.init} is not of the shape in [{table}]: drop that table")
    config.parallel.check_model(shape.text)
    # One thread to an image: the data loader's workers already take every CPU.
    model = load_folder(
        folder, shape, name=config.run.init, device=device, dtype=getattr(torch, config.run.dtype), threads=1
    )
    model.processor = _for_source(config, model.processor, shape.text.vocab_size)
    return model


def build_processor(config: TrainConfig) -> Processor:
    """The processor of a new model: the data source's tokenizer, the default template, the config's resolutions."""
    shape = config.model
    tokenizer = Tokenizer(config.data.open_source().train_tokenizer(shape.text.vocab_size))
    processor = Processor(tokenizer, ChatTemplate(None), patcher_of(shape, 1))
    return _for_source(config, processor, shape.text.vocab_size)


def _for_source(config: TrainConfig, processor: Processor, room: int) -> Processor:
    """A processor that can write all that the config's source makes."""
    reasons = not config.data.files and getattr(config.data.open_source(), "reasons", False)
    return with_reasoning(processor, room) if reasons else processor
