"""Sampling against transformers' logits warpers, and the text side of a request."""

from fractions import Fraction
from itertools import repeat

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import vl
from vl.engine import SamplingParams
from vl.engine.params import Draw
from vl.engine.request import StopScanner
from vl.engine.sampling import ALL, SamplingRows, gumbel, kept, likely, sample


@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.1, 3.0),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 1.0),
)
@settings(max_examples=100, deadline=None)
def test_probabilities_equal_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = torch.randn(1, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    expected = TemperatureLogitsWarper(temperature)(None, logits.clone())
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(None, expected)
    scaled = logits / temperature
    keep = kept(scaled, torch.tensor([top_k or ALL]), torch.tensor([top_p], dtype=torch.float64))
    keep &= likely(scaled, torch.tensor([min_p], dtype=torch.float64))
    ours = scaled.masked_fill(~keep, -torch.inf).softmax(-1)
    torch.testing.assert_close(ours, expected.softmax(-1))


PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=1.0, seed=7),
    SamplingParams(temperature=1.0, seed=8),
    SamplingParams(temperature=2.0, seed=7, top_k=5),
    SamplingParams(temperature=0.7, seed=2**64 - 1, top_p=0.6),
    SamplingParams(temperature=1.5, seed=7, min_p=0.2),
]


def draw(logits: Tensor, rows: list[int], count: int = 20) -> list[list[int]]:
    """`count` draws, one position after the other, of `PARAMS[row]` over `logits[row]`."""
    params = [PARAMS[row] for row in rows]
    kind = max(param.draw for param in params)
    drawn = []
    for position in range(count):
        sampling = SamplingRows.of(params, [p.key() for p in params], [position] * len(rows), logits)
        drawn.append(sample(logits[rows], sampling, kind).tolist())
    return drawn


def test_rows_are_independent_and_seeds_reproduce() -> None:
    logits = torch.randn(len(PARAMS), 50, generator=torch.Generator().manual_seed(0))
    columns = list(zip(*draw(logits, list(range(len(PARAMS)))), strict=True))
    assert set(columns[0]) == {int(logits[0].argmax())}
    for row, column in enumerate(columns):
        assert list(column) == [tokens[0] for tokens in draw(logits, [row])]
        assert list(column) == [tokens[1] for tokens in draw(logits, [0, row])]
    assert columns[1] != columns[2]
    assert set(columns[3]) <= set(logits[3].topk(5).indices.tolist())


def test_rows_without_a_seed_differ() -> None:
    assert SamplingParams(temperature=1.0).key() != SamplingParams(temperature=1.0).key()


@pytest.mark.parametrize("filtered", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.2}])
def test_sampled_frequencies_follow_the_probabilities(filtered: dict) -> None:
    logits, count = torch.tensor([2.0, 1.0, 0.0, -1.0]), 20_000
    params = SamplingParams(temperature=1.0, seed=0, **filtered)
    rows = SamplingRows.of([params] * count, [params.key()] * count, range(count), logits)
    seen = torch.bincount(sample(logits.expand(count, -1), rows, params.draw), minlength=4) / count
    allowed = (kept(logits[None], rows.top_k[:1], rows.top_p[:1]) & likely(logits[None], rows.min_p[:1]))[0]
    assert allowed.all() == (not filtered)
    torch.testing.assert_close(seen, logits.masked_fill(~allowed, -torch.inf).softmax(-1), atol=0.012, rtol=0)


def test_a_single_allowed_token_is_taken_even_at_the_worst_noise() -> None:
    params = SamplingParams(temperature=1e-40, seed=0, top_k=1)
    logits = torch.tensor([[0.0, 100.0, -100.0]]).expand(1000, -1)
    rows = SamplingRows.of([params] * 1000, [params.key()] * 1000, range(1000), logits)
    assert (sample(logits, rows, Draw.FILTERED) == 1).all()


def test_noise_is_gumbel_distributed_and_uncorrelated() -> None:
    keys = torch.tensor([SamplingParams(temperature=1.0, seed=seed).key() for seed in range(40)])
    noise = gumbel(keys, torch.arange(40) // 20, 5000).double()
    assert noise.isfinite().all()
    quantiles = torch.tensor([0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999], dtype=torch.float64)
    seen = (noise.flatten()[:, None] <= -torch.log(-torch.log(quantiles))).double().mean(0)
    torch.testing.assert_close(seen, quantiles, atol=0.004, rtol=0)
    assert (torch.corrcoef(noise) - torch.eye(40)).abs().max() < 0.07
    assert torch.corrcoef(torch.stack((noise[:, :-1].flatten(), noise[:, 1:].flatten())))[0, 1].abs() < 0.01


WRONG: dict[str, list[object]] = {
    "max_new_tokens": [0, -1, 1.5, 50.0, "8", None, True, [3], 10**30, float("inf"), torch.ones(2, dtype=torch.int64)],
    "temperature": [
        -1,
        -1e-9,
        None,
        "hot",
        True,
        float("nan"),
        float("inf"),
        10**400,
        1e7,
        1j,
        [1.0],
        np.float16("inf"),
    ],
    "top_p": [0, -0.5, 1.5, None, "all", True, float("nan"), float("inf"), 10**5000],
    "top_k": [-1, 50.0, 2.5, None, "5", False, 99999999999999999999, 2**31],
    "min_p": [-0.1, 1.1, None, "0", True, float("nan"), [0.1]],
    "repetition_penalty": [0, -1.0, 0.001, 101, None, "1", True, float("inf")],
    "presence_penalty": [2.1, -2.1, None, "1", True, float("nan")],
    "frequency_penalty": [2.1, -2.1, None, "1", True, 10**400],
    "logit_bias": [5, "5", [(5, 1.0)], {"5": 1.0}, {-1: 1.0}, {2**31: 1.0}, {1.0: 1.0}, {5: 101}, {5: None}],
    "logprobs": [1, None, "yes", 5],
    "top_logprobs": [-1, 21, 1.0, None, True, 3],
    "n": [0, -1, 129, 1.0, None, "2", True],
    "seed": [-3, 1.0, "7", True, 2**64, float("nan")],
    "priority": [1.0, "high", None, True, 2**31, -(2**31) - 1],
    "stop": [("",), "", 5, [5], b"stop", ["a", None], {"a": 1}, "x" * 1_000_000, ["a"] * 65, repeat("a"), 1.5],
}


@pytest.mark.parametrize("name", WRONG)
def test_values_of_the_wrong_type_or_range_are_named(name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(vl.InputError, match=f"^{name} (strings |token ids |values )?must be ") as caught:
            SamplingParams(**{name: value})  # type: ignore[arg-type]
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("name", "value", "meaning"),
    [
        ("max_new_tokens", np.int32(7), 7),
        ("temperature", 1, 1.0),
        ("temperature", np.float32(0.5), 0.5),
        ("temperature", Fraction(1, 2), 0.5),
        ("temperature", np.float16(0.5), 0.5),
        ("top_p", np.float16(0.25), 0.25),
        ("top_p", np.float64(0.25), 0.25),
        ("top_k", np.uint8(50), 50),
        ("min_p", 0, 0.0),
        ("repetition_penalty", 1, 1.0),
        ("presence_penalty", np.float32(0.5), 0.5),
        ("frequency_penalty", -2, -2.0),
        ("logit_bias", {np.int64(5): 3, 7: np.float32(-0.5)}, {5: 3.0, 7: -0.5}),
        ("logit_bias", None, None),
        ("seed", np.int64(5), 5),
        ("seed", torch.tensor(5), 5),
        ("seed", None, None),
        ("priority", np.int8(-3), -3),
        ("stop", None, ()),
        ("stop", "end", ("end",)),
        ("stop", ["a\ud800", "\ud83d\ude42"], ("a\ufffd", "\U0001f642")),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop", iter(["x" * 1000]), ("x" * 1000,)),
    ],
)
def test_values_mean_what_they_say(name: str, value: object, meaning: object) -> None:
    found = getattr(SamplingParams(**{name: value}), name)  # type: ignore[arg-type]
    assert found == meaning
    assert type(found) is type(meaning)


def test_unknown_arguments_are_named_beside_the_known() -> None:
    with pytest.raises(vl.InputError, match=r"best_of, max_tokens: there are max_new_tokens, .*stop"):
        SamplingParams.of({"best_of": 2, "max_tokens": 5, "top_k": 1})


def test_seeds_of_every_integer_type_draw_the_same() -> None:
    assert SamplingParams(seed=np.int64(5)).key() == SamplingParams(seed=5).key()  # type: ignore[arg-type]


@pytest.mark.parametrize("top_p", [5e-324, 1e-320, 1e-30])
def test_the_least_top_p_keeps_the_likeliest_token(top_p: float) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]]).expand(100, -1)
    params = SamplingParams(temperature=1.0, top_p=top_p, seed=0)
    rows = SamplingRows.of([params] * 100, [params.key()] * 100, range(100), logits)
    assert (sample(logits, rows, params.draw) == 1).all()


@given(
    text=st.text(alphabet="abc", max_size=30),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_stop_scanner_cuts_at_the_first_stop_string(text: str, stops: list[str], data: st.DataObject) -> None:
    """Fed in any pieces, the text before the first completed stop string comes out, and nothing after it."""
    scanner, shown, stopped, fed = StopScanner(tuple(stops)), "", False, 0
    while fed < len(text) and not stopped:
        size = data.draw(st.integers(1, 3))
        piece, stopped = scanner.push(text[fed : fed + size])
        shown, fed = shown + piece, fed + size
        assert not any(stop in shown for stop in stops)
    assert stopped == any(stop in text[:fed] for stop in stops)
    if stopped:
        assert shown == text[:fed][: min(text[:fed].find(s) for s in stops if s in text[:fed])]
    else:
        assert shown + scanner.flush() == text
