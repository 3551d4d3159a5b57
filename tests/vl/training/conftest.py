from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preprocessing import Processor
from vl.training.build import build_processor
from vl.training.config import TrainConfig
from vl.training.curve import read_log


def tables(**run: Any) -> dict[str, Any]:
    """A model of 4 layers that sees 28 px tiles of 7 px patches, and one-object scenes."""
    return {
        "text": {
            "vocab_size": 300,
            "hidden_size": 32,
            "attn_type_list": [0, 0, 0, 1],
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "rotary_dim": 8,
            "intermediate_size": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        "vision": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
        },
        "data": {
            "seed": 1,
            "batch_tokens": 600,
            "workers": 0,
            "easy_share": 0.2,
            "small_share": 0.5,
            "mix": {"words": 0.3, "sizes": [[48, 64, 1.0]], "max_objects": 2, "max_words": 1},
        },
        "optimizer": {"lr": 2e-3, "warmup_steps": 2},
        "run": {"steps": 6, "dtype": "float32", "log_steps": 1, "eval_samples": 2, "eval_minutes": 60.0, **run},
    }


def losses_of(out: Path) -> dict[int, float]:
    """By step, from a run's log."""
    return {record["step"]: record["loss"] for record in read_log(out) if record["kind"] == "train"}


@pytest.fixture
def config() -> TrainConfig:
    return TrainConfig.of(tables())


@pytest.fixture(scope="session")
def processor() -> Processor:
    return build_processor(TrainConfig.of(tables()))
