"""What `vl bench tune` would measure; that takes a GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from vl.bench.tune import _close, _first
from vl.bench.tune import nf4 as tuned
from vl.bench.tune.sweeps import OPS, matching, sweeps_of


@pytest.mark.parametrize("op", list(OPS))
def test_what_the_tables_have_is_tuned(op: str) -> None:
    """Shapes alone: every sweep has a name of its own, and candidates to compare."""
    sweeps = list(sweeps_of(op, torch.device("meta")))
    assert len({sweep.name for sweep in sweeps}) == len(sweeps)
    for sweep in sweeps:
        assert len({sweep.now, *sweep.candidates}) > 1, sweep.name
        assert type(sweep.now) is type(sweep.candidates[0]), sweep.name


@pytest.mark.gpu
def test_every_way_of_nf4_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("EXPERTS", 4), ("HIDDEN", 512), ("INNER", 1024), ("ROWS", 1024)):
        monkeypatch.setattr(tuned, name, size)
    torch.manual_seed(0)
    for sweep in matching(tuned.sweeps(torch.device("cuda")), "ways"):
        want = _first(sweep.run(sweep.now))
        for candidate in sweep.candidates:
            assert _close(_first(sweep.run(candidate)), want), (sweep.name, candidate)
