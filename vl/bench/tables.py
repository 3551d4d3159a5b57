"""A report in words: a table per op, and beneath it what failed."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from vl.bench.records import ABSENT, OURS, Record, Report


def heading(report: Report) -> str:
    """The machine and its ceilings, in one line."""
    machine, ceilings = report.machine, report.ceilings
    versions = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    return (
        f"{machine['name']} · {versions}\n"
        f"ceilings: copy {ceilings.bandwidth / 1e9:,.0f} GB/s, matmul {ceilings.rate / 1e12:,.2f} TFLOP/s\n"
        "xN behind a time: ours takes N times as long"
    )


def op_table(report: Report, op: str) -> Table:
    """Rows are cases; times beside their ratios: ours to the floor, and ours to each other contender (below 1: faster).

    A contender that is nowhere installed has no column.
    """
    records = report.of(op)
    others = [
        name
        for name in dict.fromkeys(r.contender for r in records)
        if name != OURS and not all(r.error.startswith(ABSENT) for r in records if r.contender == name)
    ]
    memory = any(r.peak for r in records)
    table = Table(title=op, title_justify="left", title_style="bold")
    table.add_column("")
    heads = ["floor", OURS, "ours / floor", f"{records[0].unit} a second", *(["memory"] if memory else []), *others]
    for head in heads:
        table.add_column(head, justify="right")
    for case in dict.fromkeys(r.name for r in records):
        row = {r.contender: r for r in records if r.name == case}
        table.add_row(case, *_cells(report, row, others, memory))
    return table


def _cells(report: Report, row: dict[str, Record], others: list[str], memory: bool) -> Iterator[str | Text]:
    ours = row.get(OURS)
    yield duration(next((r.floor for r in row.values() if r.floor), None))
    yield _time(ours)
    yield _number(ours.over_floor if ours else None)
    yield f"{ours.rate:,.0f}" if ours and ours.rate else "-"
    if memory:
        yield f"{ours.peak / 2**30:.2f} GiB" if ours and ours.seconds else "-"
    for name in others:
        record = row.get(name)
        ratio = report.ours_over(record) if record else None
        yield _time(record) if ratio is None else Text.assemble(_time(record), f"  x{ratio:.2f}")


def failures(report: Report, op: str) -> list[str]:
    return [
        f"{r.op}, {r.name}, {r.contender}: {r.error}"
        for r in report.of(op)
        if r.error and not r.error.startswith(ABSENT)
    ]


def absent(report: Report) -> list[str]:
    """Contenders that are not installed."""
    return list(dict.fromkeys(r.contender for r in report.records if r.error.startswith(ABSENT)))


def duration(seconds: float | None) -> str:
    """Three digits and a unit: `12.3 us`, `0.812 ms`, `1.20 s`."""
    if seconds is None:
        return "-"
    value, unit = (seconds * 1e6, "us") if seconds < 1e-4 else (seconds * 1e3, "ms") if seconds < 1 else (seconds, "s")
    return f"{value:.{max(0, 3 - len(str(int(value))) if value >= 1 else 3)}f} {unit}"


def _time(record: Record | None) -> Text:
    if record is None or record.error.startswith(ABSENT):
        return Text("-")
    return Text("failed", style="red") if record.seconds is None else Text(duration(record.seconds))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
