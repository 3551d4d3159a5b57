"""Pillow without its warnings, whatever threads do."""

from __future__ import annotations

import os
import threading
import warnings


class QuietPillow:
    """Silences the warnings that Pillow's modules issue, while any thread is inside.

    `warnings.catch_warnings` swaps global state, so overlapping uses in threads would leave the wrong filters behind:
    the first thread in sets the filter, the last one out restores the caller's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caller = warnings.catch_warnings()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._leave_all)

    def _leave_all(self) -> None:
        """In a forked child, where the threads that were inside do not exist."""
        self._lock = threading.Lock()
        if self._inside:
            self._inside = 0
            self._caller.__exit__(None, None, None)

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caller = warnings.catch_warnings()
                self._caller.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caller.__exit__(None, None, None)


quiet_pillow = QuietPillow()
