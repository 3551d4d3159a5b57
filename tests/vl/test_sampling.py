"""Sampling against transformers' logits warpers, and the text side of a request."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import vl
from vl.engine import SamplingParams
from vl.engine.request import StopScanner
from vl.engine.sampling import sample, token_probabilities


@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.1, 3.0),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.05, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_probabilities_equal_transformers(seed: int, temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(1, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    expected = TemperatureLogitsWarper(temperature)(None, logits.clone())
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    ours = token_probabilities(logits[0], SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p))
    torch.testing.assert_close(ours, expected.softmax(-1)[0])


def test_rows_are_independent_and_seeds_reproduce() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    params = [SamplingParams(), SamplingParams(temperature=1.0, seed=7), SamplingParams(temperature=1.0, seed=8)]

    def draw(rows: list[int], count: int = 20) -> list[list[int]]:
        generators = [params[row].generator(torch.device("cpu")) for row in rows]
        return [sample(logits[rows], [params[r] for r in rows], generators).tolist() for _ in range(count)]

    together = draw([0, 1, 2])
    assert {tokens[0] for tokens in together} == {int(logits[0].argmax())}
    assert [tokens[1] for tokens in together] == [tokens[0] for tokens in draw([1])]
    assert [tokens[1] for tokens in together] != [tokens[2] for tokens in together]


def test_sampled_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    params = SamplingParams(temperature=1.0, seed=0)
    generator = params.generator(torch.device("cpu"))
    draws = torch.cat([sample(logits[None], [params], [generator]) for _ in range(4000)])
    seen = torch.bincount(draws, minlength=4) / len(draws)
    torch.testing.assert_close(seen, logits.softmax(-1), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"seed": -3},
        {"stop": ("",)},
    ],
)
def test_out_of_range_values_are_named(wrong: dict) -> None:
    with pytest.raises(vl.InputError, match=next(iter(wrong))):
        SamplingParams(**wrong)


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
