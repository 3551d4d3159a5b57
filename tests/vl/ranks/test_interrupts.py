"""Ctrl-C takes effect where a block waits, or at its end."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from vl.ranks.interrupts import Interrupts


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_what_is_begun_is_done_whole() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Interrupts():  # noqa: PT012
        press()
        done.append(1)
        press()
        done.append(2)
    assert done == [1, 2]
    with pytest.raises(KeyboardInterrupt):
        press()  # as before


@pytest.mark.parametrize("when", ["before", "in it"])
def test_waiting_is_ended(when: str) -> None:
    """Before the wait or in it, and at once."""
    done: list[object] = []
    timer = threading.Timer(0.05, press)

    def nap() -> None:
        time.sleep(100)
        done.append("slept")

    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:  # noqa: PT012
        (press if when == "before" else timer.start)()
        done.append(1)
        interrupts.wait(nap)
        done.append(2)
    assert done == [1]


def test_a_block_in_a_block_leaves_it_to_the_outer_one() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Interrupts():  # noqa: PT012
        with Interrupts():
            press()
            done.append(1)
        done.append(2)
    assert done == [1, 2]


def test_a_handler_of_the_caller_s_own_is_called_once() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with Interrupts() as interrupts:
            press()
            assert seen == []
            interrupts.wait(time.sleep, 0)
            assert seen == [signal.SIGINT]
        assert seen == [signal.SIGINT]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with Interrupts():
            press()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_are_left_alone() -> None:
    found: list[object] = []

    def work() -> None:
        with Interrupts() as interrupts:
            found.append(interrupts.wait(int, "7"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [7]
