"""What an evaluation leaves on disk: every example as it is scored, then the scores and the page of failures."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from preprocessing.alpha import Background
from vl.errors import ConfigError
from vl.evaluation.evaluate import Result
from vl.evaluation.examples import Row
from vl.evaluation.gallery import render_gallery
from vl.jobs import encode_row

EXAMPLES, SCORES, FAILURES = "examples.jsonl", "scores.json", "failures.html"


class OutFolder:
    """A folder with `examples.jsonl`, `scores.json` and `failures.html`; a context manager.

    Examples are written batch by batch, so what was scored before a crash is kept.

    Args:
        path: created when it is missing.
        overwrite: replace the files of an earlier evaluation.

    Raises:
        ConfigError: if the folder holds an earlier evaluation or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.path = Path(path)
        old = [name for name in (EXAMPLES, SCORES, FAILURES) if (self.path / name).exists()]
        if old and not overwrite:
            raise ConfigError(f"{self.path} holds an earlier evaluation ({', '.join(old)}): use --overwrite or another")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None

    def __enter__(self) -> OutFolder:
        """Nothing of an earlier evaluation is lost before this."""
        try:
            self._examples = open(self.path / EXAMPLES, "wb")
            for name in (SCORES, FAILURES):
                # Scores of other examples must not stand beside these.
                (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._examples.close()

    def append(self, rows: Sequence[Row]) -> None:
        """Add the lines of a batch. Raises ConfigError if the disk is full."""
        try:
            self._examples.write(b"".join(encode_row(row.to_json()) for row in rows))
            self._examples.flush()
        except OSError as error:
            raise self._unwritable(error) from None

    def finish(self, model: str, results: Sequence[Result], most: int = 100, *, background: Background = None) -> None:
        """Write the scores and the page, with at most `most` failures of each result; see `render_gallery`.

        Raises:
            ConfigError: if they cannot be written.
        """
        scores = {"model": model, "results": [result.summary() for result in results]}
        try:
            self._write(SCORES, json.dumps(scores, ensure_ascii=False, indent=2) + "\n")
            self._write(FAILURES, render_gallery(model, results, most, background=background))
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(f"cannot write into {self.path}: {error.strerror or error}: name another folder")

    def _write(self, name: str, text: str) -> None:
        # Names of files and answers may hold lone surrogates, which UTF-8 does not have.
        (self.path / name).write_bytes(text.encode("utf-8", "backslashreplace"))
