"""`vl caption --dry-run`: what the job would read, write, take and cost."""

from __future__ import annotations

import json as jsonlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from vl.cli.captioning import STDIN, Run, stdin_lines
from vl.cli.console import plural, printable, usage_errors

if TYPE_CHECKING:
    from vl.config import VLConfig
    from vl.jobs import Beside, Source
    from vl.jobs.estimate import Look, Measured, Survey

_PANEL = "Dry run"
_SIZES = (336, 672, 1344, 2016, 4032)  # px of the longer side
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Caption nothing and write nothing: count the sources, open headers, and say what to expect.",
        rich_help_panel=_PANEL,
    ),
]
SampleOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Images captioned to measure how fast this machine is, and forgotten; 0 for none.",
        show_default="16, with --gpus 0",
        rich_help_panel=_PANEL,
    ),
]
GpusOption = Annotated[
    str | None,
    typer.Option(help="Expect what vl plan predicts for 8xH100-80GB.", show_default=False, rich_help_panel=_PANEL),
]
PriceOption = Annotated[
    float | None,
    typer.Option(
        "--price-per-hour", min=0.0, help="Of all the machines that work.", show_default=False, rich_help_panel=_PANEL
    ),
]


@dataclass(frozen=True)
class DryRun:
    """The options above, as given."""

    sample: int | None
    gpus: str | None
    price: float | None

    def __call__(self, run: Run, out: str | None, beside: Beside | None, how: dict[str, bool]) -> None:
        from vl.jobs.estimate import Looker, measure, survey
        from vl.jobs.sources.passed import Passed

        config, processor, patcher = self._reading(run)
        wanted = (0 if self.gpus else 16) if self.sample is None else self.sample
        batch = run.options["batch_size"]
        passed = Passed()
        given = chain.from_iterable(stdin_lines() if name == STDIN else (name,) for name in run.sources)
        sources = run.expanded(given, total=passed)
        with run.where.opened(run.model, run.loading) as elsewhere:
            found = survey(
                sources,
                Looker(run.prompts, processor, patcher),
                is_done=self._is_done(run, elsewhere, out, beside, how),
                sample=batch + wanted if wanted else 0,
            )
            measured = None
            if found.some:
                model = elsewhere or run.loading.load(run.model)
                measured = measure(model, found.some, run.prompts, **run.options)
        told = _told(run, found, passed) | self._expected(run, found, measured, config)
        if run.json:
            run.results.out(jsonlib.dumps(told, indent=2))
        else:
            _show(run, told)

    def _reading(self, run: Run) -> tuple[VLConfig | None, Any, Any]:
        """The config, the processor and the patcher, as far as they can be had; nothing is downloaded for a plan."""
        from vl.hub import resolve_source
        from vl.loading import open_folder, patcher_of

        if run.where.url is not None and self.gpus is None:
            return None, None, None
        if self.gpus is not None:
            from vl.plan.models import find_config

            with usage_errors():
                config = find_config(run.model)
            if not (run.model == "nano" or any(Path(run.model).glob("tokenizer*.json"))):
                return config, None, patcher_of(config)
        opened = open_folder(resolve_source(run.model), _config_of(run.model), background=run.loading.background)
        if opened.config.vision is None:
            raise typer.BadParameter(f"{run.model} is a text-only checkpoint and cannot caption")
        return opened.config, opened.processor, patcher_of(opened.config)

    def _is_done(
        self, run: Run, elsewhere: Any, out: str | None, beside: Beside | None, how: dict[str, bool]
    ) -> Callable[[Source], bool]:
        from vl.jobs.beside import text_of
        from vl.jobs.estimate import finished
        from vl.jobs.made import made_with
        from vl.jobs.sources.files import is_remote, remote

        def is_there(name: str) -> bool:
            place = remote(name) if is_remote(name) else None
            return Path(name).exists() if place is None else place.fs.exists(place.path)

        def nothing(source: Source) -> bool:
            return beside is not None and beside.existing == "skip" and text_of(source).exists()

        if out is None or how["overwrite"] or not is_there(out):
            return nothing
        settings = elsewhere.settings(run.params) if elsewhere else run.settings()
        made = made_with(elsewhere.name if elsewhere else run.model, run.prompts, settings)
        has_row = finished(out, made, retry_errors=how["retry_errors"], mix=how["mix"])
        return lambda source: has_row(source) or nothing(source)

    def _expected(self, run: Run, found: Survey, measured: Measured | None, config: VLConfig | None) -> dict[str, Any]:
        """Seconds and cost, and of what they are extrapolated."""
        expected: dict[str, Any] = {"seconds": None, "cost": None, "from": None}
        if self.gpus is not None and config is not None and found.captions:
            each, source = self._planned(run, found, config)
            expected |= {"seconds": each * found.captions, "from": source}
        elif measured is not None:
            source = {"images": measured.images, "seconds": measured.seconds, "tokens_written_each": measured.tokens}
            expected |= {"seconds": found.due * measured.seconds / measured.images, "from": source}
        if self.price is not None and expected["seconds"] is not None:
            expected["cost"] = expected["seconds"] / 3600 * self.price
        return {"expected": expected}

    def _planned(self, run: Run, found: Survey, config: VLConfig) -> tuple[float, dict[str, Any]]:
        """Seconds for an image on the machine, all tokens written that may be. Raises BadParameter."""
        from vl.plan import Machine, Workload, describe_gpu, parse_machine, plan

        assert self.gpus is not None
        prompts, batch = len(run.prompts.columns), run.options["batch_size"]
        written = run.params.max_new_tokens * prompts
        text, image, tiles = (found.mean(name) or 0.0 for name in ("text_tokens", "image_tokens", "tiles"))
        with usage_errors():
            count, name = parse_machine(self.gpus)
            machine = Machine(describe_gpu(name), count)
            work = Workload(
                context=max(1, round(text) + written),
                batch=batch,
                images=1,
                image_tokens=round(image),
                image_tiles=round(tiles),
            )
            quantization = run.loading.quantization
            best = plan(config, machine, work, [quantization] if quantization else []).best
        if best is None or best.speed is None:
            raise typer.BadParameter(f"{run.model} does not fit on {self.gpus}: see vl plan", param_hint="--gpus")
        reading, writing = best.speed.prefill_tokens, best.speed.decode_tokens
        told = {"machine": best.machine.name, "format": best.format, "placement": best.placement, "batch": batch}
        told |= {"prefill_tokens_per_second": reading, "decode_tokens_per_second": writing}
        return (image + text) / reading + written / writing, told


def _config_of(model: str) -> VLConfig:
    from vl.config import read_config
    from vl.hub import resolve_source

    return read_config(resolve_source(model))


def _told(run: Run, found: Survey, passed: Counter[str]) -> dict[str, Any]:
    prompts = len(run.prompts.columns)
    image, text = found.mean("image_tokens"), found.mean("text_tokens")
    read = None if image is None or text is None else found.captions * (prompts * image + text)
    tiles = Counter(look.tiles for look in found.good if look.tiles is not None)
    return {
        "inputs": found.inputs,
        "named_again": found.again,
        "passed_over": dict(passed),
        "finished": found.done,
        "due": found.due,
        "opened": len(found.looks),
        "exact": found.exact,
        "errors": dict(found.causes),
        "compared": found.compared,
        "copies": found.copies,
        "captions": round(found.captions),
        "sizes": _sizes(found.good),
        "tiles": {str(count): number for count, number in sorted(tiles.items())},
        "image_tokens": None if image is None else round(found.captions * image),
        "prompt_tokens": None if read is None else round(read),
        "most_tokens_written": round(found.captions) * prompts * run.params.max_new_tokens,
    }


def _sizes(looks: list[Look]) -> dict[str, int]:
    """Images by their longer side."""
    found: Counter[str] = Counter()
    for look in looks:
        side = max(look.width, look.height)
        found[next((f"up to {most} px" for most in _SIZES if side <= most), f"over {_SIZES[-1]} px")] += 1
    names = [*(f"up to {most} px" for most in _SIZES), f"over {_SIZES[-1]} px"]
    return {name: found[name] for name in names if found[name]}


def _show(run: Run, told: dict[str, Any]) -> None:
    table = Table("what", "", box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)

    def line(name: str, value: str) -> None:
        table.add_row(name, Text(printable(value)))

    about = "" if told["exact"] else " about, from the sample"
    line("inputs", f"{told['inputs']:,}" + (f", {told['named_again']:,} named again" if told["named_again"] else ""))
    line("passed over", _counted(told["passed_over"]) or "nothing")
    line("finished", f"{told['finished']:,}")
    line("due", f"{told['due']:,}")
    line("headers opened", f"{told['opened']:,}" + ("" if told["exact"] else ", a random sample"))
    line("errors in them", _counted(told["errors"]) or "none")
    line("equal files", f"{told['copies']:,} of {told['compared']:,} compared")
    line("longer side", _counted(told["sizes"]))
    line("tiles", _counted({f"of {tiles}": number for tiles, number in told["tiles"].items()}) or "not known here")
    for name, key in (("image tokens", "image_tokens"), ("prompt tokens", "prompt_tokens")):
        line(name, "not known here" if told[key] is None else f"{told[key]:,}{about}")
    line("tokens written", f"at most {told['most_tokens_written']:,}{about}")
    expected = told["expected"]
    source = expected["from"] or {}
    line("time", "not measured" if expected["seconds"] is None else _duration(expected["seconds"]))
    if "machine" in source:
        where = f"{source['machine']}, {source['format']} by {source['placement']}"
        line("", f"predicted for {where}, {source['batch']} at once, all tokens written")
    elif source:
        line(
            "",
            f"measured here: {plural(source['images'], 'image')} in {source['seconds']:.1f} s, "
            f"{source['tokens_written_each']:.0f} tokens written for each",
        )
    if expected["cost"] is not None:
        line("cost", f"{expected['cost']:,.2f}")
    run.results.print(table)
    unknown = "how long captions get, whether pixels are damaged behind good headers, and what else the machine does"
    run.results.print(Text(f"Not known beforehand: {unknown}. Nothing was written."))


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in counts.items())


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"
