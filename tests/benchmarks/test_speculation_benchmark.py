"""The benchmark of speculation: its tasks are what it says, and it notices a changed answer."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.speculation.__main__ import main
from benchmarks.speculation.measure import AnswersDifferError, Row, cases, check_equal
from benchmarks.speculation.report import compared, panels, text, to_json
from benchmarks.speculation.workloads import MIX, mixed_tasks, tasks_of
from benchmarks.workloads.real_texts import HALVES, WORKLOADS
from schema.answers.response import TaskResponse

DEMO = Path(__file__).parents[2] / "demo" / "model"


@pytest.mark.parametrize("workload", WORKLOADS)
def test_inputs_are_many_and_no_two_prompts_alike(workload: str) -> None:
    assert len({asked.text for asked in WORKLOADS[workload]()}) >= 16
    greedy = tasks_of(workload, "greedy", 40, "one")
    others = [*tasks_of(workload, "sampled", 40, "one"), *tasks_of(workload, "greedy", 40, "two")]
    prompts = {task.messages[0].model_dump_json() for task in [*greedy, *others]}
    assert len(prompts) == 120  # so that no cache of prefixes has any of them
    assert greedy == tasks_of(workload, "greedy", 40, "one")
    assert all(task.return_token_ids for task in greedy)


def test_the_mix_has_all_tasks() -> None:
    mixed = mixed_tasks(list(WORKLOADS), 2, "turn")
    alone = [t for name in WORKLOADS for half in HALVES for t in tasks_of(name, half, 2, "turn")]
    assert mixed != alone
    assert {task.model_dump_json() for task in mixed} == {t.model_dump_json() for t in alone}


def test_all_clients_have_something_to_do() -> None:
    found = list(cases(["chat"], [1, 16], 4, mix=True))
    assert [(case.workload, case.half, case.clients) for case in found] == [
        (workload, half, clients)
        for clients in (1, 16)
        for workload, half in (("chat", "greedy"), ("chat", "sampled"), (MIX, "both"))
    ]
    assert all(len(case.make(["chat"], "turn")) >= case.clients for case in found[:5])


def test_a_changed_answer_is_noticed() -> None:
    tasks = tasks_of("chat", "greedy", 1, "turn")
    answer: TaskResponse = {
        "model": "m",
        "system_fingerprint": "f",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "yes"},
                "finish_reason": "stop",
                "token_ids": [1, 2],
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    check_equal(tasks, [answer], [deepcopy(answer)])
    other = deepcopy(answer)
    other["choices"][0]["token_ids"] = [1, 3]
    with pytest.raises(AnswersDifferError, match=r"\[1, 3\]"):
        check_equal(tasks, [answer], [other])


def test_ratios_are_of_the_same_round() -> None:
    row = Row("summary", "greedy", 1, 0, "off", 2, 100, 10.0, 100, 0, 0, 0.1)
    rows = [
        row,
        replace(row, speculation="on", seconds=5.0, decode_steps=40),
        replace(row, round=1, seconds=20.0),
        replace(row, round=1, speculation="on", seconds=5.0, decode_steps=60),
        replace(row, half="sampled", seconds=10.0),
        replace(row, half="sampled", speculation="on", seconds=10.0),
    ]
    greedy, sampled, whole = compared(rows)
    assert (greedy.half, greedy.ratios, greedy.per_step) == ("greedy", [2.0, 4.0], 2.0)
    assert (sampled.half, sampled.ratios) == ("sampled", [1.0])
    assert (whole.half, whole.target) == ("whole", 2.0)
    assert whole.ratios == pytest.approx([20 / 15, 4.0])
    assert greedy.target is None
    assert len(panels(rows)) == 1
    assert "reached" in text(rows)
    assert to_json(rows)["compared"][0]["ratio"] == 3.0


def test_it_runs(tmp_path: Path) -> None:
    """On the demo model: both engines, two clients, one round."""
    arguments = f"--model-dir {DEMO} --dtype float32 --threads 1 --clients 2 --tasks 1 --rounds 1"
    main([*arguments.split(), "--workloads", "chat", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "speculation.json").read_text())
    runs = [(run["half"], run["speculation"]) for run in found["runs"]]
    halves = ("greedy", "sampled", "both")
    assert runs == [(half, name) for half in halves for name in ("off", "on")]
    assert all(run["tokens"] > 0 and run["tasks"] > 0 for run in found["runs"])
