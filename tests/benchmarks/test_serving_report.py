"""What the benchmark of servers concludes: ratios, the page in Markdown, guesses of next tokens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import repeat

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from benchmarks.harness.client import Answer, Endpoint, Job
from benchmarks.harness.drafts import Drafts, vllm_drafts
from benchmarks.harness.load import Load, run
from benchmarks.harness.metrics import Spread, Summary
from benchmarks.serving.equality import Equality
from benchmarks.serving.page import page
from benchmarks.serving.report import COMPARED, Report, Row, Same

OURS, OTHER = "ours", "other, with drafts"
SUMMARY = Summary(
    sent=4,
    finished=4,
    cut_off=0,
    errors={},
    tokens_per_s=30.0,
    requests_per_s=1.0,
    goodput_per_s=1.0,
    first_token=Spread(0.5, 0.6, 0.7),
    per_token=Spread(0.05, 0.06, 0.07),
    whole=Spread(1.0, 1.0, 1.0),
)
SLOWER = replace(
    SUMMARY,
    tokens_per_s=20.0,
    first_token=Spread(1.0, 1.0, 1.0, at_least=("p50", "p95", "p99")),
    per_token=Spread(None, None, None),
)


def report() -> Report:
    """Two rounds in turns; in the second both are twice as fast."""
    rows = []
    for turn in range(2):
        for peer, found, drafts in ((OURS, SUMMARY, None), (OTHER, SLOWER, Drafts(20, 5))):
            summary = replace(found, tokens_per_s=found.tokens_per_s * (turn + 1))
            rows.append(Row(peer, "real", 1, None, turn, summary, drafts))
    same = Same(OURS, "real", True, Equality(12, 12, 12, 11, 3, []))
    about = {"title": "SmolLM2", "date": "2026-11-30T12:00:00", "target_text": "t"}
    return Report(about, rows, [same], {"third": "not installed"}, {})


def test_ratios_are_of_the_same_round_and_of_what_is_known() -> None:
    found = {name: report().ratios(value) for name, value in COMPARED.items()}
    key = (("real", ("clients", 1)), OTHER)
    assert found["tokens_per_s"][key] == pytest.approx(1.5)
    assert found["first_token_p50"][key] == pytest.approx(0.5)
    assert found["per_token_p50"] == {}


def test_the_page_has_a_row_for_each_server() -> None:
    text = page(report(), ["--model", "a folder", "--workloads", "real"])
    assert "python -m benchmarks.serving --model 'a folder' --workloads real" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    head, _, ours, other = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table)
    named = dict(zip(head, ours, strict=True)), dict(zip(head, other, strict=True))
    assert named[0][""] == f"**{OURS}**"
    assert named[0]["1 client, tokens/s"] == "45.0"
    assert named[1]["1 client, tokens/s"] == "30.0 (1.50x)"
    assert named[1]["1 client, first token"] == ">1.00 s (0.50x)"
    assert named[1]["1 client, each further"] == ""
    assert named[1]["drafts right"] == "10 of 40 (25%)"
    assert named[0]["equal answers"] == "12 of 12 greedy, 11 of 12 seeded"
    assert "Skipped: third: not installed" in text
    assert OTHER in report().table()


def test_a_run_that_only_compares_answers_is_told() -> None:
    only = Report(report().about, [], report().same, {}, {})
    assert "Equal answers, real, ours: 12 of 12 greedy, 11 of 12 seeded" in page(only, [])
    assert "PROMISE BROKEN" in only.table()


class Sender:
    """Answers at once, and counts."""

    def __init__(self) -> None:
        self.sent: list[Job] = []

    async def send(self, job: Job, answers: list[Answer] | None = None) -> Answer:
        self.sent.append(job)
        return Answer(job, 0.0, ended=0.0)


@pytest.mark.parametrize("clients", [1, 3])
async def test_a_load_ends_after_its_answers(clients: int) -> None:
    sender = Sender()
    found = await run(sender, Load(clients, None, 0.0, 60.0, answers=7), repeat(Job("a", 1)))
    assert len(sender.sent) == 7
    assert 0 < found.end - found.start < 30


@pytest.fixture
def metrics() -> Iterator[tuple[CollectorRegistry, Endpoint]]:
    """A registry whose metrics are served."""
    registry = CollectorRegistry()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(generate_latest(registry))

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield registry, Endpoint(f"http://127.0.0.1:{server.server_port}", "m")
        server.shutdown()


def test_guesses_are_read_from_metrics(metrics: tuple[CollectorRegistry, Endpoint]) -> None:
    registry, endpoint = metrics
    assert vllm_drafts(endpoint) == Drafts()
    for name, value in (("draft_tokens", 40), ("accepted_tokens", 10)):
        counter = Counter(f"vllm:spec_decode_num_{name}", "", ["engine"], registry=registry)
        counter.labels("0").inc(value)
        counter.labels("1").inc(1)
    assert vllm_drafts(endpoint) == Drafts(41, 11)
    assert str(vllm_drafts(endpoint) - Drafts(1, 1)) == "10 of 40 (25%)"
