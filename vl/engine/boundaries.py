"""Where in a prompt it is worth keeping what was read: another prompt may be the same up to there."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from vl.engine.prompt import Prompt

LEAST = 16  # tokens that a beginning has more than the one before it: fewer are read as fast as they are brought back
SPAN = 2048  # tokens of text after which one is kept where no message or image ends


def boundaries(prompt: Prompt, end_ids: Collection[int], most: int) -> tuple[int, ...]:
    """Numbers of tokens, rising, each at least `LEAST` more than the one before and less than the whole prompt.

    Args:
        end_ids: the tokens that end a message.
        most: how many at most: where the first message ends, which may be a system prompt, and the last ones of where
            messages and images end, or all but a token, for the same prompt again; if that leaves some, places in long
            texts, evenly spaced and in no image.
    """
    tokens, images = len(prompt), prompt.spans
    ends = torch.isin(prompt.input_ids, torch.tensor(sorted(end_ids), dtype=torch.int64)).nonzero().flatten() + 1
    found = _spaced(sorted({*ends.tolist(), *(end for _, end in images), tokens - 1}), tokens)
    if len(found) > most:
        return tuple(found[:1] + found[len(found) - most + 1 :] if most > 1 else found[-1:][:most])
    span = max(SPAN, -(-tokens // (most - len(found) + 1)))
    texts = [
        at
        for start, stop in zip([0, *found], [*found, tokens], strict=True)
        for at in range(start + span, stop, span)
        if not any(first < at < last for first, last in images)
    ]
    return tuple(_spaced(sorted(found + texts[: most - len(found)]), tokens))


def _spaced(positions: Sequence[int], tokens: int) -> list[int]:
    """Of rising positions, those below `tokens` that are `LEAST` or more after the one before, and after 0."""
    kept = [0]
    for at in positions:
        if kept[-1] + LEAST <= at < tokens:
            kept.append(at)
    return kept[1:]
