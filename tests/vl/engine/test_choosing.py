"""What options do to logits and ask of them: against transformers' processors, and plain counting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

import vl
from vl.engine import Request, SamplingParams
from vl.engine.choosing import Chooser
from vl.engine.prompt import Prompt

VOCABULARY = 24


def request(prompt: Sequence[int], written: Sequence[int], slot: int, **sampling: Any) -> Request:
    """One that has written so far, in a slot of the cache."""
    nothing: Any = None
    ids = torch.tensor(prompt)
    places = torch.empty(0, dtype=torch.int64)
    whole = Prompt(input_ids=ids, places=places, tiles=torch.empty(0), grids=(), ends=(), tile_ends=())
    params = SamplingParams(**sampling)
    return Request(
        prompt_tokens=len(prompt), max_new_tokens=100, prompt=whole, params=params, stream=nothing, key=params.key(),
        slot=slot, written=len(written), token_ids=list(written),
    )  # fmt: skip


def expected(logits: Tensor, prompt: Sequence[int], written: Sequence[int], **sampling: Any) -> Tensor:
    """[vocab], by transformers' processors where it has them."""
    scores = logits[None].clone()
    if penalty := sampling.get("repetition_penalty"):
        scores = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([[*prompt, *written]]), scores)
    for token, count in Counter(written).items():
        scores[0, token] -= sampling.get("frequency_penalty", 0) * count + sampling.get("presence_penalty", 0)
    if bias := sampling.get("logit_bias"):
        processor = SequenceBiasLogitsProcessor({(token,): float(value) for token, value in bias.items()})
        scores = processor(torch.tensor([[0]]), scores)
    return scores[0]


tokens = st.integers(0, VOCABULARY - 1)
samplings = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.floats(0.5, 2.0),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(tokens, st.floats(-100, 100), min_size=1, max_size=4),
    },
)
rows = st.tuples(st.lists(tokens, min_size=1, max_size=9), st.lists(tokens, max_size=9), samplings)


@given(drawn=st.lists(rows, min_size=1, max_size=4), seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_adjusted_logits_are_transformers(drawn: list[tuple[list[int], list[int], dict]], seed: int) -> None:
    logits = torch.randn(len(drawn), VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3
    before = logits.clone()
    requests = [request(prompt, written, slot, **sampling) for slot, (prompt, written, sampling) in enumerate(drawn)]
    found = Chooser(4).adjusted(logits, requests)
    assert torch.equal(logits, before)
    for row, (prompt, written, sampling) in enumerate(drawn):
        torch.testing.assert_close(found[row], expected(logits[row], prompt, written, **sampling))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_counts_follow_whoever_has_a_slot(data: st.DataObject) -> None:
    """Requests write, lose their slots and have others: what adjusts them is always what they know."""
    chooser, logits = Chooser(3), torch.linspace(-3, 3, VOCABULARY)
    options = {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.25}
    plans: list[dict[str, Any]] = [options, {}, {"logit_bias": {3: 5.0}}, {"frequency_penalty": 1.0}]
    known = [request(range(i, i + 3), [], 0, **plans[i]) for i in range(4)]
    for _ in range(data.draw(st.integers(1, 12))):
        running = data.draw(st.permutations(range(4)))[: data.draw(st.integers(1, 3))]
        for slot, i in enumerate(running):
            known[i].slot = slot
        found = chooser.adjusted(logits.expand(len(running), -1), [known[i] for i in running])
        for row, i in enumerate(running):
            wanted = expected(logits, range(i, i + 3), known[i].token_ids, **plans[i])
            torch.testing.assert_close(found[row], wanted)
            known[i].token_ids += data.draw(st.lists(tokens, max_size=2))


def test_logprobs_are_of_the_model_and_not_of_what_was_drawn_from() -> None:
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3
    asking: dict[str, Any] = {"logprobs": True, "logit_bias": {5: 100.0}, "temperature": 0.3, "top_k": 2, "seed": 1}
    requests = [
        request([1], [2], 0, **asking, top_logprobs=4),
        request([1], [2], 1),
        request([1], [2], 2, **asking),
    ]
    found = Chooser(3)(logits, requests)
    assert [each.token_id for each in found] == [5, int(logits[1].argmax()), 5]
    model = logits.log_softmax(-1)
    top, ids = model[0].topk(4)
    assert [token for token, _ in found[0].logprobs] == [5, *ids.tolist()]
    torch.testing.assert_close(torch.tensor([value for _, value in found[0].logprobs]), torch.cat((model[0, 5:6], top)))
    assert found[1].logprobs == ()
    assert [token for token, _ in found[2].logprobs] == [5]


PICTURE = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
MESSAGES = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What?"}]}]


def test_a_generation_says_how_likely_its_tokens_were(tiny_model: vl.MiniMaxVL) -> None:
    """Against the logits of one pass over the prompt and the answer."""
    sampling: dict[str, Any] = {"temperature": 1.0, "seed": 2, "presence_penalty": 1.0}
    plain = tiny_model.generate([MESSAGES], max_new_tokens=6, **sampling)[0]
    found = tiny_model.generate([MESSAGES], max_new_tokens=6, logprobs=True, top_logprobs=20, **sampling)[0]
    assert plain.logprobs is None
    assert found.token_ids == plain.token_ids
    assert found.logprobs is not None
    assert [each.token_id for each in found.logprobs] == found.token_ids
    inputs = tiny_model.processor(MESSAGES)
    start = len(inputs.input_ids) - 1
    inputs.input_ids = torch.cat((inputs.input_ids, torch.tensor(found.token_ids)))
    model = tiny_model.logits(inputs)[start:-1].log_softmax(-1)
    for row, each in zip(model, found.logprobs, strict=True):
        assert each.logprob == pytest.approx(float(row[each.token_id]), abs=1e-4)
        assert [one.logprob for one in each.top] == pytest.approx(row.topk(20).values.tolist(), abs=1e-4)
        assert bytes(each.bytes) == tiny_model.processor.tokenizer.token_bytes(each.token_id)
        assert each.token == bytes(each.bytes).decode("utf-8", "replace")


def test_a_bias_beyond_the_vocabulary_is_refused(tiny_model: vl.MiniMaxVL) -> None:
    size = tiny_model.config.text.vocab_size
    with pytest.raises(vl.InputError, match=f"names token {size}, but the vocabulary ends at {size - 1}"):
        tiny_model.chat(MESSAGES, logit_bias={size: 1.0})
    with pytest.raises(vl.InputError, match="names token"):
        tiny_model.engine.check(SamplingParams(logit_bias={size: 1.0}))


def test_a_bias_decides(tiny_model: vl.MiniMaxVL) -> None:
    end = min(tiny_model.end_ids)
    answer = tiny_model.generate([MESSAGES], max_new_tokens=5, logit_bias={end: 100.0})[0]
    assert answer.token_ids == [end]
    never = tiny_model.generate([MESSAGES], max_new_tokens=30, temperature=1.0, seed=1, logit_bias={end: -100.0})[0]
    assert never.finish_reason == "length"
