"""`vl bench soak`: nothing is lost on a real server; and what would be wrong is seen."""

from __future__ import annotations

import asyncio
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vl.cli.app as vl_app
from vl.bench.serving import process, soak
from vl.bench.serving.audit import Sample, growth, leaks, read_sample
from vl.bench.serving.client import Client
from vl.bench.serving.malformed import Malformed, malformed
from vl.bench.serving.soak import CANCELLED, FINISHED, REFUSED, Soak
from vl.cli.soak import read_duration
from vl.errors import Error

IDLE = Sample(0.0, 2**30, 9, 0, 0, 0, 0, 0, 5, 0)


@pytest.fixture(autouse=True)
def _looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """No client is done before the server was looked at while they asked, however slow this machine is."""
    one_client = soak._Run.one_client

    async def until_looked_at(self: Any, *given: Any) -> None:
        await one_client(self, *given)
        while len(self.found.samples) < 2 and not self.found.faults:
            await asyncio.sleep(0.01)

    monkeypatch.setattr(soak._Run, "one_client", until_looked_at)


def soaked(url: str, **settings: Any) -> Soak:
    async def run() -> Soak:
        async with Client(url) as client:
            return await soak.soak(
                client, await client.find_model(None), **({"seconds": 1.0, "clients": 4, "questions": 2} | settings)
            )

    return asyncio.run(run())


def test_clients_that_leave_and_clients_that_send_nonsense(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "started", lambda model, options: nullcontext(url))
    monkeypatch.setattr(soak, "_SIZES", ((64, 48),))
    file, chart = tmp_path / "soak.json", tmp_path / "soak.png"
    # The first things that eight clients do with this seed are of all kinds.
    options = ["--duration", "2s", "--clients", "8", "--questions", "4", "--seed", "8"]
    assert vl_app.run(["bench", "soak", *options, "--json", str(file), "--plot", str(chart)]) == 0
    out = capsys.readouterr().out
    assert ", 0 faults" in out
    found = json.loads(file.read_text())
    assert found["faults"] == []
    assert all(found["ended"][how] > 0 for how in (FINISHED, CANCELLED, REFUSED))
    assert found["samples"][-1]["seconds"] > found["samples"][0]["seconds"]
    assert Sample(**found["last"]).idle
    assert chart.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("wrong", malformed("tiny"), ids=lambda wrong: wrong.name)
def test_nonsense_is_refused_for_what_it_is(url: str, wrong: Malformed) -> None:
    async def post() -> None:
        async with Client(url) as client:
            named = wrong.content.replace(b'"tiny"', json.dumps(await client.find_model(None)).encode())
            answer = await client.post(named, wrong.kind)
            assert (answer.status, bool(answer.message)) == (wrong.status, True), answer

    asyncio.run(post())


def test_what_should_be_refused_and_is_not(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}).encode()
    monkeypatch.setattr(soak, "malformed", lambda model: [Malformed("no nonsense", good)])
    monkeypatch.setattr(soak, "_KINDS", {"malformed": 1.0})
    found = soaked(url)
    assert found.faults
    assert found.faults[0].startswith("no nonsense: 200")


def test_answers_that_differ_from_those_given_alone(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 30, "temperature": 3.0}
    monkeypatch.setattr(soak, "make_questions", lambda model, count, seed: [body] * count)
    found = soaked(url)
    assert any("an answer that differs from the one given alone" in fault for fault in found.faults)


def test_questions_that_fail_alone(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "make_questions", lambda model, count, seed: [{"messages": []}])
    assert soaked(url, questions=1).faults[0].startswith("alone: 400")


def test_a_look_at_the_server_that_fails(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([IDLE])

    async def look(client: Client, start: float) -> Sample:
        if (found := next(looks, None)) is None:
            raise Error("/metrics cannot be had: ReadError")
        return found

    monkeypatch.setattr(soak, "sample", look)
    found = soaked(url)
    assert found.ended.total() > 0
    assert set(found.faults) == {"/metrics cannot be had: ReadError"}


def test_what_is_left_at_the_end() -> None:
    assert list(leaks(IDLE)) == []
    left = replace(IDLE, slots=1, snapshots=2)
    assert not left.idle
    assert list(leaks(left)) == ["at the end slots: 1, not 0", "at the end snapshots: 2, not 0"]


def test_memory_that_grows() -> None:
    """By a tenth of it over the time, or once, at the beginning."""
    flat = [replace(IDLE, memory=2**30 + 2**20 * (number % 3)) for number in range(40)]
    assert list(growth(flat)) == []
    assert list(growth([replace(IDLE, memory=2**29), *flat])) == []
    rising = [replace(IDLE, memory=2**30 + 2**22 * number) for number in range(40)]
    assert list(growth(rising)) == ["resident memory grew from 1082 to 1162 MiB"]
    assert list(growth([replace(IDLE, memory=0)] * 8)) == []


def test_metrics_of_another_server() -> None:
    with pytest.raises(Error, match="no vl_requests_running: a soak is of `vl serve`"):
        read_sample("# TYPE up gauge\nup 1.0\n", 0.0)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("0.5h", 1800)])
def test_durations(text: str, seconds: float) -> None:
    assert read_duration(text) == seconds


def test_a_duration_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert vl_app.run(["bench", "soak", "--duration", "soon"]) == 2
    assert "'soon' is no duration" in capsys.readouterr().err
