from __future__ import annotations

import pytest

from vl.config import VLConfig
from vl.plan.models import released


@pytest.fixture(scope="session")
def vl01() -> VLConfig:
    """MiniMax-VL-01 as released."""
    return released()
