"""`vl bench serve`: what it measures is what happened, on a real server and on one that plays a script."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import vl
import vl.cli.app as vl_app
from vl.bench.serving import run
from vl.bench.serving.client import Answer
from vl.bench.serving.figures import Figures, Limits, Spread, groups, itl, tpot, ttft
from vl.bench.serving.load import Sent, arrivals
from vl.bench.serving.process import started
from vl.bench.serving.requests import Mixture, Question, made_up, read_questions
from vl.errors import Error, InputError

from .conftest import Scripted, piece, usage

AS_NONE = ("--batch-size", "0")
EXAMPLES = Path(vl.__file__).parents[1] / "demo" / "examples" / "examples.jsonl"


def bench(*options: str) -> int:
    return vl_app.run(["bench", "serve", *options])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """All that was printed, without line breaks and frames."""
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).replace("│", " ").split())


def test_a_load_of_long_and_other_requests(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, chart = tmp_path / "figures.json", tmp_path / "chart.png"
    asked = ["--requests", "8", "--input-tokens", "120", "--output-tokens", "12", "--prefix-share", "0.5"]
    long = ["--long-share", "0.25", "--long-tokens", "900", "--rate", "40", "--concurrency", "6"]
    limits = ["--slo-ttft", "60000", "--slo-itl", "0.0001"]
    assert bench("--url", url, *asked, *long, *limits, "--json", str(file), "--plot", str(chart)) == 0
    both, longs, others = json.loads(file.read_text())
    assert (both["what"], longs["what"], others["what"]) == ("all", "long prompts", "others")
    assert {each["run"] for each in (both, longs, others)} == {"40 a second, 6 at once"}
    assert (both["completed"], longs["completed"], others["completed"]) == (8, 2, 6)
    assert both["total_input_tokens"] == longs["total_input_tokens"] + others["total_input_tokens"]
    assert longs["total_input_tokens"] == pytest.approx(2 * 900, rel=0.1)
    assert others["total_input_tokens"] == pytest.approx(6 * 150, rel=0.2)  # with the words around messages
    assert 0 < both["total_output_tokens"] <= 8 * 12
    assert both["tokens_per_chunk"] >= 1  # of this model, whose tokens are often half a letter
    assert both["good"] == 0  # a tenth of a microsecond is not enough for a token
    for name in ("ttft", "itl", "tpot", "e2el"):
        assert 0 < both[f"median_{name}_ms"] <= both[f"p90_{name}_ms"] <= both[f"p99_{name}_ms"]
    assert both["median_ttft_ms"] < both["median_e2el_ms"] <= 1e3 * both["duration"]
    assert "p99 of ITL is" in said(capsys)
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_images_and_records(url: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    asked = ["--url", url, "--requests", "2", "--output-tokens", "3", "--json", str(file)]
    assert bench(*asked, "--image", "40x30") == 0
    with_images = json.loads(file.read_text())[0]["total_input_tokens"]
    assert bench(*asked, "--input-tokens", "10", "--rate", "0.5e3") == 0
    assert json.loads(file.read_text())[0]["run"] == "500 a second"
    assert with_images > json.loads(file.read_text())[0]["total_input_tokens"] + 40
    assert bench(*asked, "--records", str(EXAMPLES)) == 0
    assert json.loads(file.read_text())[0]["completed"] == 2


def test_the_questions_of_records_are_without_their_answers(tmp_path: Path) -> None:
    first = read_questions(EXAMPLES, 1)[0]
    assert [turn["role"] for turn in first.messages] == ["user"]
    image, text = first.messages[0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert text == {"type": "text", "text": "Describe this image."}
    count = len(EXAMPLES.read_text("utf-8").splitlines())
    with pytest.raises(InputError, match=f"holds {count} records, fewer than 99"):
        read_questions(EXAMPLES, 99)
    file = tmp_path / "records.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "Hello"}]}\n{"image": 7, "caption": "x"}\n')
    with pytest.raises(InputError, match=r"records.jsonl, line 2: .*7 where the path"):
        read_questions(file, None)


def test_settings_reach_the_server_that_is_started(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Any] = []

    def start(*given: Any) -> Any:
        told.append(given)
        return nullcontext(url)

    monkeypatch.setattr(run, "started", start)
    file = tmp_path / "figures.json"
    asked = ["--requests", "4", "--input-tokens", "8", "--output-tokens", "4", "--concurrency", "1,4"]
    random = ["--random-weights", "--layers", "2"]
    assert bench("-m", "folder", *asked, "--batch-size", "3", "--dtype", "float32", *random, "--json", str(file)) == 0
    assert [given[0] for given in told] == ["folder"] * 2
    words = " ".join(told[0][1])
    assert words.endswith("--random-weights --layers 2")
    assert "--batch-size 3" in words
    assert "--dtype float32" in words
    assert "--quantization" not in words
    assert "x the requests/s of 1 at once" in said(capsys)
    one, four = json.loads(file.read_text())
    assert (one["run"], four["run"]) == ("1 at once", "4 at once")
    assert one["mean_held_back_ms"] > 0


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(Error, match=r"(?s)the server did not start: .*'--batch-size'"), started("nano", AS_NONE):
        raise AssertionError("it has started")


# Whatever servers say


def scripted_bench(scripted: Scripted, tmp_path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    file = tmp_path / "figures.json"
    code = bench("--url", scripted.url, "--requests", "3", "--json", str(file), *options)
    return code, json.loads(file.read_text())[0]


def test_pieces_of_several_tokens(scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pieces = [piece("a"), *([0.02, piece("bcd")] * 4), piece(reason="length")]
    scripted.said = [*pieces, usage(7, 13), "[DONE]"]
    code, found = scripted_bench(scripted, tmp_path)
    assert code == 0
    assert found["total_output_tokens"] == 39
    assert found["tokens_per_chunk"] == 13 / 5
    # All four gaps of an answer are three tokens' each, however long they were.
    assert found["mean_itl_ms"] == pytest.approx(found["mean_tpot_ms"], rel=1e-6)
    assert 0 < 12 * found["mean_tpot_ms"] <= found["mean_e2el_ms"] - found["mean_ttft_ms"] + 1e-6
    assert "answers came in pieces of 2.60 tokens on average" in said(capsys)


def test_answers_without_usage(scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    not_escaped = json.dumps(piece("a\u2028\x85"), ensure_ascii=False)  # which end lines of text, but not of events
    scripted.said = [not_escaped, piece("b"), piece(reason="stop"), "[DONE]"]
    code, found = scripted_bench(scripted, tmp_path)
    assert (code, found["total_output_tokens"], found["answers_without_usage"]) == (0, 9, 3)
    assert "3 answers came without usage" in said(capsys)


@pytest.mark.parametrize(
    ("status", "answer", "cause"),
    [
        (429, {"error": {"message": "come later", "code": "server_full"}}, "429 server_full"),
        (400, {"error": {"message": "too long", "type": "invalid_request_error"}}, "400 invalid_request_error"),
        (500, {}, "500 Internal Server Error"),
        (200, [piece("a"), {"error": {"message": "no memory", "code": "device_error"}}], "error device_error"),
        (200, [piece("a"), usage(1, 1)], "cut off"),
        (200, [piece("a"), "no JSON"], "no chat completion"),
        (200, [], "cut off"),
    ],
)
def test_failures_are_counted_by_cause(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int, answer: Any, cause: str
) -> None:
    scripted.status, scripted.said = status, answer
    code, found = scripted_bench(scripted, tmp_path)
    assert (code, found["completed"], found["failures"]) == (1, 0, {cause: 3})
    told = answer["error"]["message"] if isinstance(answer, dict) and answer else ""
    assert f"failed: 3 requests of all at once, all: {cause}{told and ': '}{told}" in said(capsys)


def test_servers_that_cannot_be_asked(scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*options: str) -> str:
        assert bench("--url", scripted.url, *options) == 3
        return said(capsys)

    assert "has no model other: it has scripted" in told("--model", "other")
    scripted.models = {"data": [{"id": "a"}, {"id": "b"}]}
    assert "has a, b: say which with --model" in told()
    scripted.models = ["nothing"]
    assert "is it the address of a server as OpenAI's is?" in told()
    scripted.models_status = 401
    assert "give its key with --api-key" in told()
    assert bench("--url", "http://127.0.0.1:1/v1") == 3
    assert "cannot be reached (cannot connect)" in said(capsys)
    assert bench("--url", "nonsense") == 3
    assert "is no address of a server" in said(capsys)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--rate", "0"], "more than 0, or inf"),
        (["--rate", "nan"], "more than 0, or inf"),
        (["--image", "1344"], "is no size: write 1344x1008"),
        (["--image", "0x10"], "is no size"),
        (["--concurrency", "1,1"], "give different numbers"),
        (["--extra-body", "[1]"], "give an object"),
        (["--extra-body", '{"stream": false}'], "stream: set by the command itself"),
        (["--prefix-share", "0.5", "--image", "10x10"], "Give --input-tokens too"),
        (["--records", "x.jsonl", "--image", "10x10"], "--image is of made-up requests"),
        (["--url", "http://a/v1", "--dtype", "float32", "--batch-size", "3"], "--dtype, --batch-size: of a server"),
        (["--url", "http://a/v1", "--concurrency", "1,2"], "would help the next"),
        (["--layers", "2"], "of a model with --random-weights"),
        (["--url", "http://a/v1", "--random-weights"], "--random-weights: of a server"),
        (["--json", "/nowhere/figures.json"], "there is no folder /nowhere"),
    ],
)
def test_bad_options_are_said_at_once(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(*options) == 2
    assert told in said(capsys)


# Figures


def answered(*times: float, tokens: int, sent: float = 0.0, ended: float = 0.0) -> Answer:
    return Answer(sent, ended or max(times, default=1.0), list(times), prompt_tokens=5, output_tokens=tokens)


def test_latencies_of_an_answer() -> None:
    one_by_one = answered(1.0, 1.5, 2.5, tokens=3, sent=0.5)
    assert (ttft(one_by_one), tpot(one_by_one), list(itl(one_by_one))) == (0.5, 0.75, [0.5, 1.0])
    bunched = answered(1.0, 2.0, 4.0, tokens=5)
    assert (tpot(bunched), list(itl(bunched))) == (0.75, [0.5, 1.0])
    at_once = answered(1.0, tokens=9)
    assert (ttft(at_once), tpot(at_once), list(itl(at_once))) == (1.0, None, [])
    nothing = answered(tokens=0, ended=3.0)
    assert (ttft(nothing), tpot(nothing), list(itl(nothing))) == (3.0, None, [])


def test_figures_of_a_load() -> None:
    question = Question([])
    good, slow = answered(1.0, 1.1, tokens=2), answered(1.0, 3.0, tokens=2)
    failed = Answer(0.0, 0.1, failure="429 server_full")
    sent = [Sent(question, due, answer) for due, answer in ((0.0, good), (-1.0, slow), (0.0, failed))]
    (found,) = groups(sent, Limits(ttft=1.0, itl=0.5))
    assert (found.seconds, found.answered, found.failed, found.good) == (4.0, 2, {"429 server_full": 1}, 1)
    assert (found.input_tokens, found.output_tokens, found.requests_per_second) == (10, 4, 0.5)
    assert found.latencies["e2el"] == Spread(pytest.approx(2.05), 2.05, pytest.approx(2.81), pytest.approx(2.981))
    assert found.held_back == pytest.approx(1 / 3)
    assert found.as_json()["request_goodput"] == 0.25
    assert Figures.of("none", [], 1.0).latencies["ttft"] is None


def test_arrivals_are_a_poisson_process() -> None:
    times = arrivals(4000, 8.0, seed=1)
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 8, rel=0.06)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.15)  # as of no other
    assert times == arrivals(4000, 8.0, seed=1) != arrivals(4000, 8.0, seed=2)
    assert arrivals(3, math.inf, seed=0) == [0.0] * 3


def test_made_up_questions() -> None:
    mixture = Mixture(tokens=200, prefix_share=0.5, long_share=0.5, long_tokens=1000)
    made = made_up(mixture, 10, seed=3, words_per_token=0.5)
    assert made == made_up(mixture, 10, seed=3, words_per_token=0.5)
    assert sum(question.long for question in made) == 5
    others = [question.messages for question in made if not question.long]
    assert len({messages[0]["content"] for messages in others}) == 1
    texts = [question.messages[-1]["content"][0]["text"] for question in made]
    assert len(set(texts)) == 10
    assert sorted(len(text.split()) for text in texts) == [50] * 5 + [500] * 5
