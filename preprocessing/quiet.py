"""Pillow without its warnings, whatever threads do."""

from __future__ import annotations

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
