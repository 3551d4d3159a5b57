"""A hook of mkdocs: the pages of docs/ link to source files, which the site does not have.

Read in the repository, such a link opens the file. On the site it names the file's path, once it is sure to exist.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOG = logging.getLogger("mkdocs.hooks.site")
OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)#]*)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Warns, which `--strict` takes as an error, of files that are not there."""

    def path_of(link: re.Match[str]) -> str:
        text, path = link.groups()
        if not (ROOT / path).exists():
            LOG.warning("%s links to %s, which does not exist", page.file.src_uri, path)
        if Path(text.strip("`")).name == Path(path).name:
            return f"`{path}`"
        return f'<abbr title="{path}">{text}</abbr>'

    return OUTSIDE.sub(path_of, markdown) if page.file.src_uri.count("/") == 0 else markdown
