"""The folder in which the ranks meet, when it is no longer needed."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from vl.ranks.meeting import remove_meeting


def test_a_meeting_is_removed_in_spite_of_who_looks_there(tmp_path: Path) -> None:
    """Torch's FileStore, as a rank waits for others, makes its file anew whenever it looks."""
    folder, ended = tmp_path / "ranks", threading.Event()
    folder.mkdir()

    def look() -> None:
        while not ended.is_set():
            with suppress(FileNotFoundError):
                (folder / "meeting").touch()

    looking = threading.Thread(target=look)
    looking.start()
    remove_meeting(folder)
    ended.set()
    looking.join()
    assert list(tmp_path.iterdir()) == []
    remove_meeting(folder)  # another rank does so too
