"""HTML pages of one file each, with nothing outside it: their look, and pictures as data URLs."""

from __future__ import annotations

import base64
from hashlib import sha256
from importlib import resources
from io import BytesIO
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image


def render_page(package: str, name: str, /, **values: Any) -> str:
    """A page by its template, in which whatever comes from `values` is escaped.

    The template gets the look that all pages have as `style`, what may load and run as `policy`, and as `script` the
    file of its name in `.js`, if there is one: no other runs.

    Args:
        package, name: `name.html` of that package.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    files = resources.files(package)
    script = files.joinpath(f"{name}.js")
    code = script.read_text("utf-8") if script.is_file() else ""
    digest = base64.b64encode(sha256(code.encode()).digest()).decode()
    runs = f"; script-src 'sha256-{digest}'" if code else ""
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'{runs}"
    style = resources.files("vl.pages").joinpath("style.css").read_text("utf-8")
    template = environment.from_string(files.joinpath(f"{name}.html").read_text("utf-8"))
    return template.render(style=Markup(style), policy=Markup(policy), script=Markup(code), **values)


def data_url(image: Image.Image, side: int, quality: int = 85) -> str:
    """An RGB image as a WebP data URL, at most `side` px wide and high."""
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
