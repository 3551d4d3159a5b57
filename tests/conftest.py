"""Fixtures that several packages' tests share: a small model with random weights, in the released layout."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from playwright.sync_api import Browser

sys.path.append(str(Path(__file__).parent / "support"))  # what several packages' tests import
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of several workers, and of the processes that they start, would wait for each other's turn on a core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    os.environ.pop("COLUMNS", None)  # which pytest sets for its workers, and commands under test would obey
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells start jobs in the background this way; the commands under test would inherit it, and Ctrl-C be no test.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if not torch.cuda.is_available():
    # Before any kernel is defined: without a GPU they run, on small shapes, in Triton's interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import text_backbone
import vision_encoder
import vl
from preprocessing import Processor
from preprocessing.template import DEFAULT_TEMPLATE
from text_backbone.config import hybrid_layers
from vl.checkpoint import write_weights
from vl.config import read_config
from vl.loading import patcher_of
from vl.training.vocabulary import with_reasoning

# How long an example takes, or is drawn for, is no matter of right or wrong.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
if settings.default is not None and settings.default.derandomize and hasattr(providers, "_get_local_constants"):
    # As in CI: examples are the same in every run, but for constants that Hypothesis takes from the modules that are
    # imported by then, which depends on the tests that a worker ran before. Their list is empty, and stays so.
    providers._get_local_constants = lambda: providers._local_constants

RELEASE = Path(__file__).parent / "release"
SPECIAL_TOKENS = ("<beginning_of_sentence>", "<end_of_sentence>", "<image>")
CORPUS = (
    "A red circle at the top left and a blue square in the center.",
    "The text reads: hello world, 0123456789! Ünïcödé, 漢字 and 🙂.",
    "system ai_setting=assistant user name=user ai name=assistant",
)


# Of the files that take longest, those with few tests: xdist would begin them last, and a core wait for another's.
LONG = (
    "vl/test_nano.py",
    "vl/training/test_dimensions.py",
    "vl/training/test_parallelize.py",
    "demo/test_browser.py",
    "vl/ranks/test_processes.py",
    "vl/jobs/test_kill.py",
    "vl/jobs/test_partfolder.py",
    "vl/jobs/test_beside.py",
    "vl/jobs/test_union.py",
    "vl/training/test_context.py",
    "vl/test_start.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """xdist takes files in the order that `pytest_collection_modifyitems` gives them."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For xdist, long files come first. Tests marked `gpu` are skipped, with the reason, where there is none."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        long = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
        tests = Counter(item.path for item in items)
        items.sort(key=lambda item: (long.get(item.path, len(long)), -tests[item.path], item.path))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test or its fixtures draw without a seed of their own does not depend on the tests before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _precision() -> None:
    """Products are as precise in every test, whatever one before it, or what its module shares, asked for."""
    torch.set_float32_matmul_precision("highest")


def write_tokenizer(folder: Path) -> Tokenizer:
    """A byte-level BPE tokenizer of a few hundred entries with the released special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def write_released_config(folder: Path, tokenizer: Tokenizer, *, vision: bool = True) -> None:
    """The release's own configuration files with every part of the architecture a few units wide."""
    config, preprocessor, tokens = (
        json.loads((RELEASE / f"{name}.json").read_text())
        for name in ("config", "preprocessor_config", "tokenizer_config")
    )
    config["image_token_index"] = tokenizer.token_to_id("<image>")
    config["text_config"] |= {
        "attn_type_list": list(hybrid_layers(8)),
        "head_dim": 16,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_hidden_layers": 8,
        "num_key_value_heads": 1,
        "num_local_experts": 4,
        "rotary_dim": 8,
        "vocab_size": tokenizer.get_vocab_size(),
    }
    config["vision_config"] |= {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": 56,
        "projection_dim": 32,
    }
    preprocessor["patch_size"] = 56
    tokens["chat_template"] = DEFAULT_TEMPLATE
    files = {"config": config if vision else config["text_config"], "tokenizer_config": tokens}
    files |= {"preprocessor_config": preprocessor} if vision else {}
    for name, contents in files.items():
        (folder / f"{name}.json").write_text(json.dumps(contents, indent=2))


def write_checkpoint(folder: Path, *, vision: bool = True) -> Path:
    """A tiny random model in exactly the form of the release: its files and keys, bfloat16 shards and their index."""
    write_released_config(folder, write_tokenizer(folder), vision=vision)
    config = read_config(folder)
    model = vl.MiniMaxVL(config, Processor.load(folder, patcher_of(config)))
    generator = torch.Generator().manual_seed(0)
    text_backbone.init_weights(model.language_model, generator=generator)
    if model.vision is not None:
        vision_encoder.init_weights(model.vision, generator=generator)
    write_weights(model.released_tensors(), folder, max_shard_bytes=100_000, dtype=torch.bfloat16)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, without a network of its own."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have chromium: apt-get install chromium")
        pytest.skip("needs chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=executable, args=arguments, timeout=200_000)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random vision-language model in the released layout. Do not write into it: copy it."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny-vl"))


@pytest.fixture(scope="session")
def tiny_text_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for a text-only model (MiniMax-Text-01 layout)."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny-text"), vision=False)


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> vl.MiniMaxVL:
    return vl.load(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="session")
def thinking_model(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> vl.MiniMaxVL:
    """The tiny model with the tokens and the template of reasoning, saved with them and loaded again."""
    model = vl.load(tiny_checkpoint, device="cpu")
    model.processor = with_reasoning(model.processor, model.config.text.vocab_size)
    return vl.load(model.save(tmp_path_factory.mktemp("thinks")), device="cpu")
