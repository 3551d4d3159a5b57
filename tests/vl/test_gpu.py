"""The same answers on a GPU as on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vl

pytestmark = pytest.mark.gpu


def conversation(width: int, height: int, text: str) -> list[dict]:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    parts = [{"type": "image", "image": Image.fromarray(pixels)}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


CONVERSATIONS = [
    conversation(64, 64, "Describe this image."),
    conversation(1500, 900, "Read the text."),
    [{"role": "user", "content": "Hello"}],
]


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def test_float32_equals_the_cpu(tiny_checkpoint: Path, tiny_model: vl.MiniMaxVL) -> None:
    model = vl.load(tiny_checkpoint, device="cuda", dtype="float32")
    for messages in CONVERSATIONS:
        inputs = model.processor(messages)
        torch.testing.assert_close(model.logits(inputs).cpu(), tiny_model.logits(inputs), rtol=1e-4, atol=1e-4)
    ours = model.generate(CONVERSATIONS, max_new_tokens=8)
    assert [g.token_ids for g in ours] == [g.token_ids for g in tiny_model.generate(CONVERSATIONS, max_new_tokens=8)]


def test_bfloat16_is_the_default(tiny_checkpoint: Path, tiny_model: vl.MiniMaxVL) -> None:
    model = vl.load(tiny_checkpoint)
    assert (model.device.type, model.dtype) == ("cuda", torch.bfloat16)
    inputs = model.processor(CONVERSATIONS[0])
    exact = tiny_model.logits(inputs)
    assert (model.logits(inputs).cpu() - exact).norm() < 0.1 * exact.norm()
    assert all(g.token_ids for g in model.generate(CONVERSATIONS, max_new_tokens=4, temperature=1.0, seed=1))
