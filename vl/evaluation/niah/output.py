"""What a test leaves on disk: every row as it is scored, for a run that was ended to go on; then scores and picture."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from vl.errors import ConfigError
from vl.evaluation.niah.heatmap import draw_heat_map
from vl.evaluation.niah.results import Result, Row
from vl.files import replace_file, write_file
from vl.jobs import encode_row

SETTINGS, ROWS, SCORES, PICTURE = "settings.json", "rows.jsonl", "scores.json", "heatmap.png"


class NeedleFolder:
    """A folder with `rows.jsonl`, `scores.json` and `heatmap.png`; a context manager.

    Rows are on the disk one by one. Of what an earlier run with the same settings left, `done` has the rows that need
    no more work, by their ids; rows with errors are tried again. Lengths, depths and counts may grow.

    Args:
        path: created when it is missing.
        settings: what the answers depend on, kept in `settings.json`. A mapping in it may grow: what both have of it
            has to agree.
        overwrite: start anew, whatever the folder holds.

    Raises:
        ConfigError: if the folder is of other settings, holds something else, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path, self.settings, self._overwrite = Path(path), dict(settings), overwrite
        self.done: dict[str, Row] = {}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not overwrite:
                self._check_settings()
        except OSError as error:
            raise self._unwritable(error) from None

    def __enter__(self) -> NeedleFolder:
        """Nothing of an earlier run is lost before this."""
        try:
            self._rows = open(self.path / ROWS, "ab")
            try:
                fcntl.flock(self._rows, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._rows.truncate(0 if self._overwrite else self._read())
                write_file(self.path / SETTINGS, json.dumps(self.settings, ensure_ascii=False, indent=2) + "\n")
                for name in (SCORES, PICTURE):  # those of other rows must not stand beside these
                    (self.path / name).unlink(missing_ok=True)
            except BaseException:
                self._rows.close()
                raise
        except BlockingIOError:
            raise ConfigError(
                f"{self.path} is being written by another run: wait until it ends, or name another"
            ) from None
        except OSError as error:
            raise self._unwritable(error) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with contextlib.suppress(OSError):  # every row was flushed before
            self._rows.close()  # which releases the lock

    def append(self, row: Row) -> None:
        """Add a row and wait until it is on the disk. Raises ConfigError if the disk is full."""
        try:
            self._rows.write(encode_row(row.to_json()))
            self._rows.flush()
            os.fsync(self._rows.fileno())
        except OSError as error:
            raise self._unwritable(error) from None

    def finish(self, result: Result, title: str) -> bool:
        """Write the scores and the heat map; False if there is no picture, for want of matplotlib.

        Raises:
            ConfigError: if they cannot be written.
        """
        try:
            write_file(self.path / SCORES, json.dumps(result.summary(), ensure_ascii=False, indent=2) + "\n")
            if find_spec("matplotlib") is None:
                return False
            with replace_file(self.path / PICTURE) as draft:
                draw_heat_map(result, draft, title)
            return True
        except OSError as error:
            raise self._unwritable(error) from None

    def _check_settings(self) -> None:
        path = self.path / SETTINGS
        if not path.exists():
            if (self.path / ROWS).exists():
                raise ConfigError(f"{self.path} holds {ROWS} of something else: choose another folder")
            return
        try:
            found = json.loads(path.read_text("utf-8"))
            for key in {**found, **self.settings}:
                self.settings[key] = self._agreed(key, found.get(key), self.settings.get(key))
        except (ValueError, TypeError):
            raise ConfigError(f"{path} is not what a test writes: choose another folder, or use --overwrite") from None

    def _agreed(self, key: str, found: Any, given: Any) -> Any:
        """What a folder and its next run say of one thing."""
        if isinstance(found, dict) and isinstance(given, dict):
            for name in found.keys() & given.keys():
                self._agreed(f"{key} of {name}", found[name], given[name])
            return {**found, **given}
        if found != given:
            raise ConfigError(
                f"{self.path} holds answers with {key} {found!r}, not {given!r}: go on with that, choose another "
                "folder, or start again with --overwrite"
            )
        return given

    def _read(self) -> int:
        """Fills `done` with the rows there are, the last of each id. Returns where they end: a torn one is left out."""
        end, lines = 0, (self.path / ROWS).read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                break
            try:
                row = Row(**json.loads(line))
            except (ValueError, TypeError):
                raise ConfigError(
                    f"{self.path / ROWS}: line {number} is no row of a test: choose another folder, or use --overwrite"
                ) from None
            end += len(line)
            self.done.pop(row.id, None)
            if row.error is None:
                self.done[row.id] = row
        return end

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(f"cannot write into {self.path}: {error.strerror or error}: name another folder")
