"""Merging partial attentions, against attention to all of the keys at once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

merging = pytest.importorskip("text_backbone.kernels.softmax.merge", reason="Triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEAR = {"rtol": 1e-4, "atol": 1e-4}  # a log of 500 is held to 2 ** -15


@pytest.mark.parametrize("tokens", [1, 31, 70])
@pytest.mark.parametrize("offset", [0.0, 500.0, -500.0])  # of the second part's scores: exp of them is not a float32
@pytest.mark.parametrize("strided", [False, True])
def test_merge(tokens: int, offset: float, strided: bool) -> None:
    generator = torch.Generator().manual_seed(tokens)
    heads, d, sizes = 3, 24, (40, 7, 100)
    scores = 3 * torch.randn(heads, tokens, sum(sizes), generator=generator, dtype=torch.float64)
    scores[:, :, sizes[0] : sizes[0] + sizes[1]] += offset
    values = torch.randn(heads, sum(sizes), d, generator=generator, dtype=torch.float64)
    want = (scores.softmax(-1) @ values).transpose(0, 1)

    acc, acc_logs = (torch.full(shape, torch.nan, device=DEVICE) for shape in ((tokens, heads, d), (heads, tokens)))
    if strided:  # some rows of a larger tensor
        acc = torch.full((heads, tokens + 5, d), torch.nan, device=DEVICE).transpose(0, 1)[3 : tokens + 3]
        acc_logs = torch.full((heads, tokens + 5), torch.nan, device=DEVICE)[:, 3 : tokens + 3]
    out = torch.full((tokens, heads, d), torch.nan, device=DEVICE)
    parts = list(zip(scores.split(sizes, 2), values.split(sizes, 1), strict=True))
    for i, (seen, held) in enumerate(parts):
        part: Tensor = (seen.softmax(-1) @ held).float().to(DEVICE)  # [heads, tokens, d]
        part = part.transpose(0, 1) if strided else part.transpose(0, 1).contiguous()
        logs = seen.logsumexp(-1).float().to(DEVICE)
        merging.merge(acc, acc_logs, part, logs, out if i == len(parts) - 1 else None, first=i == 0)
    seen = scores[:, :, : sizes[0] + sizes[1]]  # before the last merge
    torch.testing.assert_close(
        acc.cpu().double().transpose(0, 1), seen.softmax(-1) @ values[:, : seen.shape[2]], **NEAR
    )
    torch.testing.assert_close(acc_logs.cpu().double(), seen.logsumexp(-1), **NEAR)
    torch.testing.assert_close(out.cpu().double(), want, **NEAR)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from text_backbone.kernels.softmax import decode, merge
from text_backbone.kernels.softmax import triton as chunks

tile = {"D": 128, "WIDE": 128}
kernels = [
    (merge._merge, tile | {"ROWS": 32, "FIRST": False, "LAST": False}, {"part": "*bf16"}),
    (chunks._joined, tile | {"ROWS": 16}, {}),
    (decode._join, tile | {"HEADS": 64, "KEYS": 64, "SEQUENCES": 64, "JOINED": 16}, {"past": "*i64"}),
]
strides = ("acc_head", "acc_token", "acc_logs_head", "part_token", "part_head", "logs_head")
numbers = (*strides, "tokens", "rows", "splits", "n", "programs")
for kernel, sizes, types in kernels:
    types |= {"out": "*bf16"} | dict.fromkeys(sizes, "constexpr") | dict.fromkeys(numbers, "i32")
    signature = {name: types.get(name, "*fp32") for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in sizes.items()}
    triton.compile(ASTSource(kernel, signature, values), target=GPUTarget("cuda", 90, 32))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings its compiler on Linux only")
def test_the_kernels_that_merge_compile() -> None:
    """What the interpreter lets pass, a compiler need not: types that change in a loop, for one."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
