"""Serving the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from demo.gallery import FOLDER
from demo.ports import free_port
from vl.heaps import bound_arenas

MOST_SESSIONS = 1000
"""Sessions that the server remembers. Gradio forgets none, each of 52 KiB and what was said, until there are more."""
_TRIES = 5  # to take a port that was free
STYLE = Path(__file__).with_name("style.css")
THEME = gr.themes.Base(
    primary_hue="amber",
    secondary_hue="amber",
    neutral_hue="zinc",
    radius_size="lg",
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
    font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
).set(
    body_text_color_subdued="*neutral_600",  # the default greys are too faint to read
    block_label_text_color="*neutral_600",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
)
"""Fonts of the reader's system: the page asks nothing of the internet."""


def launch(
    page: gr.Blocks,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    browser: bool = False,
    **options: Any,
) -> tuple[str, ...]:
    """Serve `page` in the background; `page.block_thread()` waits for Ctrl-C.

    Args:
        page: from `build`.
        host, port: where to listen; without a port, 7860 or the next free one.
        share: make a public link through Gradio's servers as well.
        browser: open the page in a browser.
        options: further arguments of `gr.Blocks.launch`.

    Returns:
        the page's address, and its public one if there is one.

    Raises:
        Error: if the port is taken or the host is not an address of this machine.
    """
    bound_arenas()
    settings: dict[str, Any] = {
        "server_name": host,
        "share": share,
        "inbrowser": browser,
        "prevent_thread_lock": True,
        "theme": THEME,
        "css_paths": STYLE,
        "footer_links": [],
        "state_session_capacity": MOST_SESSIONS,
        "max_file_size": "100mb",
        "allowed_paths": [str(FOLDER)],
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "quiet": True,
    }
    page.queue(default_concurrency_limit=4, api_open=False)
    settings |= options
    for tries in range(_TRIES):
        try:
            _, local, public = page.launch(**{"server_port": free_port(host, port)} | settings)
            break
        except OSError:  # another process has taken the port meanwhile
            if tries == _TRIES - 1:
                raise
    return (local, public) if public else (local,)
