"""`vl report`: a page about the rows of a job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vl.cli.console import (
    check_folders,
    importing,
    plural,
    printable,
    read_path,
    stdout_console,
)

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
        parser=read_path,
    ),
]
ReportImagesOption = Annotated[
    int | None,
    typer.Option(
        "--report-images",
        min=0,
        max=20_000,
        help="Images on that page, at most.",
        show_default="1000",
        rich_help_panel=_PANEL,
    ),
]


def report(
    out: Annotated[str, typer.Argument(metavar="OUT", help="What vl caption --out has written, or is writing.")],
    page: Annotated[
        Path,
        typer.Argument(
            metavar="[PAGE]", help="The HTML file, replaced if it is there.", show_default=True, parser=read_path
        ),
    ] = Path("report.html"),
    report_images: ReportImagesOption = None,
    column: Annotated[
        str | None,
        typer.Option(help="Where tables among the job's sources have their images.", show_default=False),
    ] = None,
) -> None:
    """One HTML file about a job's rows: statistics of all, and a gallery that can be searched.

    It needs no network. Images are looked for where the job read them.
    """
    check_page(page)
    with importing():
        write_page(out, page, report_images, column, stdout_console())


def check_page(page: Path) -> None:
    """Raises BadParameter for a file that no page should be written into, or could not be after the job."""
    if page.suffix.lower() not in (".html", ".htm"):
        raise typer.BadParameter(f"{printable(str(page))}: a page is named like report.html")
    check_folders(page)


def write_page(out: str, page: Path, images: int | None, column: str | None, console: Console) -> None:
    """Write the page and say so."""
    from vl.jobs.report import IMAGES, write_report

    found = write_report(out, page, images=IMAGES if images is None else images, column=column)
    console.print(printable(f"{plural(found.rows, 'row')}, {plural(found.errors, 'error')} · {page}"), soft_wrap=True)
