"""Answers that no token ends: what is tested as long as they last does not depend on what a model happens to say."""

from __future__ import annotations

from typing import Any

import vl


def endless(model: vl.MiniMaxVL) -> dict[str, Any]:
    """Sampling options under which `model` answers until it is stopped."""
    return {"max_new_tokens": 10_000, "logit_bias": dict.fromkeys(model.end_ids, -100.0)}
