"""`vl report`: a page about the rows of a job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vl.cli.console import importing, plural, printable, stdout_console

if TYPE_CHECKING:
    from rich.console import Console

_PANEL = "Report"
ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="With --out: write a page about all its rows at the end, statistics and a gallery, as vl report does.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
ReportImagesOption = Annotated[
    int,
    typer.Option("--report-images", min=0, max=20_000, help="Images on that page, at most.", rich_help_panel=_PANEL),
]


def report(
    out: Annotated[str, typer.Argument(metavar="OUT", help="What vl caption --out has written, or is writing.")],
    page: Annotated[
        Path, typer.Argument(metavar="[PAGE]", help="The HTML file, replaced if it is there.", show_default=True)
    ] = Path("report.html"),
    report_images: ReportImagesOption = 1000,
    column: Annotated[
        str | None,
        typer.Option(help="Where tables among the job's sources have their images.", show_default=False),
    ] = None,
) -> None:
    """One HTML file about a job's rows: statistics of all, and a gallery that can be searched.

    It needs no network. Images are looked for where the job read them.
    """
    with importing():
        write_page(out, page, report_images, column, stdout_console())


def write_page(out: str, page: Path, images: int, column: str | None, console: Console) -> None:
    """Write the page and say so."""
    from vl.jobs.report import write_report

    found = write_report(out, page, images=images, column=column)
    console.print(printable(f"{plural(found.rows, 'row')}, {plural(found.errors, 'error')} · {page}"), soft_wrap=True)
