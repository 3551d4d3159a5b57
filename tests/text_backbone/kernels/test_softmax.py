from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from text_backbone import Packed
from text_backbone.kernels import softmax
from text_backbone.kernels.device import reference_kernels
from text_backbone.kernels.softmax import library, varlen

from .paged import DEVICE, DTYPES, TOLERANCE, assert_near, exact, make

chunks = pytest.importorskip("text_backbone.kernels.softmax.triton", reason="Triton is not installed")
decode = pytest.importorskip("text_backbone.kernels.softmax.decode", reason="Triton is not installed")
past_blocks = pytest.importorskip("text_backbone.kernels.softmax.cached", reason="Triton is not installed")

GPU = pytest.mark.gpu


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("past", "heads", "page_size"),
    [
        ([0], (1, 1, 16), 256),
        ([5, 0, 130, 64], (4, 2, 16), 4),
        ([63, 64, 65, 700, 1], (6, 2, 24), 256),
        ([300, 9, 1], (8, 1, 64), 5),
        pytest.param([70_000, 3, 1023, 0, 9_999], (64, 8, 128), 256, marks=GPU),
        pytest.param([1023], (64, 8, 128), 256, marks=GPU),
        pytest.param(list(range(0, 2000, 10)), (4, 2, 64), 256, marks=GPU),
        pytest.param([500, 33], (16, 16, 128), 16, marks=GPU),
    ],
    ids=str,
)
def test_decode(past: list[int], heads: tuple[int, int, int], page_size: int, dtype: torch.dtype) -> None:
    case = make([1] * len(past), past, heads, page_size, dtype)
    with torch.inference_mode():
        got = decode.decode_attention(case.q, case.packed, case.keys, case.values, case.table)
    assert_near(got, case.want())


@pytest.mark.parametrize("share", [16, 1024])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("lengths", "past", "heads", "page_size"),
    [
        ([1], [0], (1, 1, 16), 4),
        ([3, 1, 40], [5, 130, 0], (4, 2, 16), 4),
        ([7, 20], [260, 1], (6, 2, 24), 256),
        ([130, 2], [1, 300], (4, 4, 64), 5),
        pytest.param([2048, 1, 300, 77], [70_000, 9_000, 0, 128], (64, 8, 128), 256, marks=GPU),
        pytest.param([4099, 5], [256, 255], (4, 2, 64), 256, marks=GPU),
        pytest.param([300], [5000], (8, 8, 128), 16, marks=GPU),
    ],
    ids=str,
)
def test_chunks(
    lengths: list[int], past: list[int], heads: tuple[int, int, int], page_size: int, dtype: torch.dtype, share: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(chunks, "_LEAST_SHARE", share)
    case = make(lengths, past, heads, page_size, dtype)
    packed = case.packed
    with torch.inference_mode():
        got = chunks.chunk_attention(
            case.q,
            packed.offsets,
            packed.past,
            packed.slots,
            packed.longest,
            case.keys,
            case.values,
            case.table,
            max(packed.pasts),
        )
    assert_near(got, case.want())


def test_pages_of_another_dtype() -> None:
    case = make([1, 1], [40, 7], (4, 2, 16), 16, torch.float32)
    case.keys, case.values = case.keys.half(), case.values.half()
    got = decode.decode_attention(case.q, case.packed, case.keys, case.values, case.table)
    torch.testing.assert_close(got.double(), case.want(), rtol=1e-5, atol=1e-5)


def test_heads_of_long_sequences() -> None:
    full = 64 * 128
    lengths = [100, 50, 4096, 9000, 20, 7, 5000]
    packed = Packed.of(lengths, past=[0, 0, 0, 0, 6, 0, 300])
    found = varlen.runs_of(packed, full, True)
    assert [run.head for run in found] == [0, 4096, 8192, 0, 0, 4608]
    assert [run.sequences.start for run in found] == [0, 2, 3, 4, 5, 6]
    assert [run.sequences.stop for run in found] == [2, 3, 4, 5, 6, 7]
    assert [run.cached for run in found] == [False, False, False, True, False, True]
    assert found[0].offsets.tolist() == [0, 100, 150]
    assert [run.longest for run in found] == [100, 4096, 9000, 20, 7, 5000]
    assert found[3].rows == slice(13246, 13266)
    assert found[3].offsets.dtype == torch.int32
    assert varlen.runs_of(Packed.of(lengths), full, False)[0].rows == slice(0, sum(lengths))
    assert varlen._head(4096, 256) == 0  # too little work for a plan
    assert all(n - varlen._head(n, full) < n / 8 for n in range(4096, 70_000, 97))


def test_blocks_of_cached_keys() -> None:
    for past in (1, 4095, 4096, 100_000, 2**22):
        starts, stops = zip(*past_blocks.blocks(past), strict=True)
        assert (0, *stops) == (*starts, past)
        sizes = [stop - start for start, stop in zip(starts, stops, strict=True)]
        assert all(size in (4096, 8192, 16384, 32768, 65536) for size in sizes[:-1])
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("past", [[0, 0, 0, 0, 0], [0, 0, 9, 30, 0], [0, 777, 9, 30, 64]], ids=str)
def test_runs_make_one_batch(past: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The way through heads, tails, short and cached sequences, with a stand-in for the library's kernels."""

    def flash(q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_offsets: Tensor, *longest: int) -> Tensor:
        out = torch.empty_like(q)
        for i, (first, last) in enumerate(pairwise(q_offsets.tolist())):
            seen = slice(*k_offsets[i : i + 2].tolist())
            before = (seen.stop - seen.start) - (last - first)
            out[first:last] = exact(q[first:last], k[seen].double(), v[seen].double(), before).to(q.dtype)
        assert longest[0] == q_offsets.diff().max()
        assert longest[1] == k_offsets.diff().max()
        return out

    def part(q: Tensor, k: Tensor, v: Tensor, *bounds: object, causal: bool) -> tuple[Tensor, Tensor]:
        k, v = (x.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(0, 1) for x in (k, v))
        scores = q.double().transpose(0, 1) @ k.transpose(1, 2) * q.shape[2] ** -0.5  # [heads, L, S]
        if causal:
            scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), float("-inf"))
        sizes.append(scores.shape[1:])
        return (scores.softmax(-1) @ v).transpose(0, 1).to(q.dtype), scores.logsumexp(-1).float()

    sizes: list[tuple[int, ...]] = []
    monkeypatch.setattr(varlen, "_flash", flash)
    monkeypatch.setattr(library, "flash", part)
    monkeypatch.setattr(library, "cudnn", part)
    monkeypatch.setattr(past_blocks, "_SMALLEST", 64)
    monkeypatch.setattr(past_blocks, "_LARGEST", 256)
    monkeypatch.setattr(library, "cudnn_takes", lambda q, k: True)
    monkeypatch.setattr(varlen, "_LONG_TOKENS", 64)
    monkeypatch.setattr(varlen, "_LONG_WORK", 0)
    monkeypatch.setattr(varlen, "takes", lambda q: True)
    monkeypatch.setattr(varlen, "prefers_cudnn", lambda device: True)
    monkeypatch.setattr(softmax, "use_gpu_kernels", lambda q: True)
    case = make([3, 70, 5, 12, 64], past, (4, 2, 16), 16, torch.float16 if DEVICE == "cuda" else torch.float32)
    args = (case.q, case.k, case.v, case.packed, case.keys, case.values, case.table)
    assert_near(softmax.paged_attention(*args), case.want())
    long = {777: [(64, 64), (64, 256), (64, 256), (64, 256), (64, 9)], 64: [(64, 64), (64, 64)]}
    assert sizes == [size for before in past for size in long.get(before, [])]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("lengths", "past", "page_size"),
    [([4096], [4096], 256), ([5000, 3], [70_000, 7], 256), ([4099], [13_337], 16), ([40, 4096, 5], [9, 1, 0], 256)],
    ids=str,
)
def test_long_chunks_of_long_sequences(
    lengths: list[int], past: list[int], page_size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not varlen.prefers_cudnn(torch.device(DEVICE)):
        pytest.skip("needs a GPU on which cuDNN is the fastest")
    calls = []
    attention = past_blocks.attention
    monkeypatch.setattr(past_blocks, "attention", lambda *args: calls.append(1) or attention(*args))
    case = make(lengths, past, (64, 8, 128), page_size, dtype)
    with torch.inference_mode():
        got = softmax.paged_attention(case.q, case.k, case.v, case.packed, case.keys, case.values, case.table)
    assert_near(got, case.want())
    assert calls == [1]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("lengths", "heads"),
    [([1], (4, 2, 64)), ([1, 1, 1], (4, 2, 64)), ([1, 2, 700, 5, 64, 63], (4, 2, 64)), ([300, 513], (16, 2, 128))],
    ids=str,
)
def test_training(lengths: list[int], heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    case = make(lengths, [0] * len(lengths), heads, 256, dtype)
    inputs = [t.requires_grad_() for t in (case.q, case.k, case.v)]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    got = softmax.softmax_attention(*inputs, case.packed)
    want = torch.cat([exact(*parts, 0) for parts in zip(*(t.split(lengths) for t in wide), strict=True)])
    assert_near(got, want)
    grad = torch.randn_like(got)
    got.backward(grad)
    want.backward(grad.double())
    scale = max(float(t.grad.norm()) for t in wide if t.grad is not None)
    for mine, true in zip(inputs, wide, strict=True):
        assert mine.grad is not None
        assert true.grad is not None
        # gradients of scores cancel where there are few of them, so the error is held to the largest gradient
        assert (mine.grad.double() - true.grad).norm() <= 3 * TOLERANCE[dtype] * scale


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("lengths", "past"),
    [
        ([9000], [0]),
        ([4096, 12, 700], [0, 0, 0]),
        ([50, 6000, 900, 1, 33], [0, 0, 4000, 70, 0]),
        ([1, 1], [0, 900]),
    ],
    ids=str,
)
def test_inference_takes_every_path(lengths: list[int], past: list[int]) -> None:
    case = make(lengths, past, (64, 8, 128), 256, torch.bfloat16)
    with torch.inference_mode():
        got = softmax.paged_attention(case.q, case.k, case.v, case.packed, case.keys, case.values, case.table)
        if not any(past):
            assert torch.equal(got, softmax.softmax_attention(case.q, case.k, case.v, case.packed))
    assert_near(got, case.want())


@pytest.mark.gpu
def test_float32_without_tensor_cores() -> None:
    for lengths, past in (([40, 7], [0, 0]), ([40, 7], [30, 0]), ([1, 1], [30, 0])):
        case = make(lengths, past, (4, 2, 64), 256, torch.float32)
        args = (case.q, case.k, case.v, case.packed, case.keys, case.values, case.table)
        with torch.inference_mode():
            got = softmax.paged_attention(*args)
            with reference_kernels():
                assert_near(softmax.paged_attention(*args), case.want())
        assert_near(got, case.want())


@pytest.mark.gpu
def test_decode_in_a_graph_sees_new_lengths() -> None:
    case = make([1, 1, 1], [1000, 40, 3000], (64, 8, 128), 256, torch.bfloat16)
    packed, past = case.packed, case.packed.past.clone()
    packed.past.zero_()

    def step() -> Tensor:
        return softmax.paged_attention(case.q, case.k, case.v, packed, case.keys, case.values, case.table)

    with torch.inference_mode():
        step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = step()
        packed.past.copy_(past)
        graph.replay()
    assert_near(got, case.want())


@pytest.mark.gpu
def test_offsets_past_two_to_the_31() -> None:
    """A pool of 4.3e9 numbers, the sequence in its last pages."""
    if torch.cuda.mem_get_info()[0] < 22 * 2**30:
        pytest.skip("needs 20 GiB of free GPU memory")
    pages, page_size, heads, d = 16384, 256, 8, 128
    keys, values = (torch.empty(pages, page_size, heads, d, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    keys[-8:].normal_()
    values[-8:].normal_()
    table = torch.arange(pages - 8, pages, dtype=torch.int32, device=DEVICE)[None]
    q = torch.randn(2000, 64, d, device=DEVICE).bfloat16()
    k, v = (x[-8:].flatten(0, 1)[:2000].double() for x in (keys, values))
    packed = Packed.of([300], past=[1700], device=DEVICE)
    with torch.inference_mode():
        got = chunks.chunk_attention(
            q[1700:], packed.offsets, packed.past, packed.slots, 300, keys, values, table, 1700
        )
        assert_near(got, exact(q[1700:], k, v, 1700))
        last = Packed.of([1], past=[1999], device=DEVICE)
        assert_near(decode.decode_attention(q[-1:], last, keys, values, table), exact(q[-1:], k, v, 1999))


def exact_in_blocks(q: Tensor, keys: Tensor, values: Tensor, order: Tensor, past: int) -> Tensor:
    """`exact` over the pages in `order`, too many keys for float64 at once: block by block of an online softmax."""
    (n, heads, d), (page_size, kv_heads) = q.shape, keys.shape[1:3]
    rows = q.double().view(n, kv_heads, heads // kv_heads, d).permute(1, 2, 0, 3).flatten(1, 2)  # [kv, group * n, d]
    limit = past + torch.arange(n, device=q.device).repeat(heads // kv_heads)  # [group * n]
    top = torch.full(rows.shape[:2], float("-inf"), dtype=torch.float64, device=q.device)
    total, acc = torch.zeros_like(top), torch.zeros_like(rows)
    for start in range(0, len(order), 256):
        k, v = (x[order[start : start + 256]].flatten(0, 1).double().transpose(0, 1) for x in (keys, values))
        scores = rows @ k.transpose(1, 2) * d**-0.5  # [kv, group * n, keys]
        position = start * page_size + torch.arange(k.shape[1], device=q.device)
        scores.masked_fill_(position[None, :] > limit[:, None], float("-inf"))
        higher = torch.maximum(top, scores.amax(-1))
        weights, shrink = (scores - higher[..., None]).exp(), (top - higher).exp()
        total, acc, top = total * shrink + weights.sum(-1), acc * shrink[..., None] + weights @ v, higher
    out = (acc / total[..., None]).unflatten(1, (-1, n))  # [kv, group, n, d]
    return out.permute(2, 0, 1, 3).flatten(1, 2)


@pytest.mark.gpu
def test_four_million_keys() -> None:
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    pages, page_size, heads, d = 16384, 256, 8, 128
    keys, values = (
        torch.empty(pages, page_size, heads, d, dtype=torch.bfloat16, device=DEVICE).normal_() for _ in range(2)
    )
    order = torch.randperm(pages, device=DEVICE)
    table, tokens = order.to(torch.int32)[None], pages * page_size
    q = (3 * torch.randn(3, 64, d, device=DEVICE)).bfloat16()  # sharp: some keys, wherever they are, weigh more
    with torch.inference_mode():
        want = exact_in_blocks(q, keys, values, order, tokens - 3)
        packed = Packed.of([3], past=[tokens - 3], device=DEVICE)
        chunk = chunks.chunk_attention(q, packed.offsets, packed.past, packed.slots, 3, keys, values, table, tokens - 3)
        last = Packed.of([1], past=[tokens - 1], device=DEVICE)
        one = decode.decode_attention(q[-1:], last, keys, values, table)
    assert_near(chunk, want)
    assert_near(one, want[-1:])


def test_exact_in_blocks_is_exact() -> None:
    case = make([3], [600], (4, 2, 16), 1, torch.float32)
    order = case.table[case.packed.slot_ids[0], :603].long()
    got = exact_in_blocks(case.q, case.keys, case.values, order, 600)
    torch.testing.assert_close(got, case.want())
