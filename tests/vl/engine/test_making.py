"""What takes long is made once for all who ask, and what fails is not tried again for the next."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import vl
from vl.engine import making
from vl.engine.making import Made, NotNow


class Making:
    """Makes of a key what it is asked to, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.count = error, 0

    def __call__(self) -> int:
        self.count += 1
        if self.error is not None:
            raise self.error
        return self.count


def test_what_was_made_is_not_made_again() -> None:
    made, make = Made[int](2), Making()
    assert [made.get(key, make) for key in (b"a", b"a", b"b", b"a", b"c", b"a", b"b")] == [1, 1, 2, 1, 3, 1, 4]


def test_what_failed_is_not_tried_again_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    made, fails = Made[int](2), Making(vl.InputError("too deep"))
    for _ in range(3):
        with pytest.raises(vl.InputError, match="too deep"):
            made.get(b"a", fails)
    assert fails.count == 1
    for key in (b"b", b"a", b"c"):  # no more than two are known
        with pytest.raises(vl.InputError):
            made.get(key, fails)
    assert fails.count == 3
    later = time.monotonic() + making.SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert made.get(b"a", Making()) == 1


def test_what_was_not_tried_is_tried_the_next_time() -> None:
    for error in (NotNow("others are"), vl.ConfigError("not installed"), KeyboardInterrupt()):
        made, fails = Made[int](2), Making(error)  # type: ignore[arg-type]
        for _ in range(2):
            with pytest.raises(type(error)):
                made.get(b"a", fails)
        assert fails.count == 2
        assert made.get(b"a", Making()) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_whoever_asks_meanwhile_waits_for_the_same(fails: bool) -> None:
    made, begun, go = Made[int](2), threading.Event(), threading.Event()
    make = Making(vl.InputError("too deep") if fails else None)

    def slow() -> int:
        begun.set()
        assert go.wait(120)
        return make()

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(made.get, b"a", slow) for _ in range(3)]
        assert begun.wait(120)
        assert pool.submit(made.get, b"b", Making()).result(120) == 1  # which waits for none of them
        go.set()
        found = [each.exception(120) or each.result() for each in asked]
    assert list(map(str, found)) == (["too deep"] * 3 if fails else ["1"] * 3)
    assert make.count == 1
