"""Real texts as requests: what is asked of every server, and what each can be told of it."""

from __future__ import annotations

from itertools import islice

import jsonschema
import pytest

from benchmarks.harness.client import Endpoint, Job
from benchmarks.harness.models import ServedModel
from benchmarks.serving.equality import equality_jobs
from benchmarks.workloads.jobs import REAL_TEXTS, jobs
from benchmarks.workloads.real_texts import WORKLOADS
from schema import Task
from schema.clients.openai.chat import ChatCompletionRequest

MODEL = ServedModel("", "float32", images=False, padded=True, told=True)


def first(count: int, workload: str = "real", stream: str = "a") -> list[Job]:
    """The first jobs of a stream."""
    return list(islice(jobs(workload, MODEL, stream), count))


def kind_of(job: Job) -> str:
    """The kind whose inputs have this text."""
    kinds = [k for k, make in WORKLOADS.items() if job.text in {each.text for each in make()}]
    return kinds[0]


def test_ten_requests_have_each_kind_greedy_and_sampled() -> None:
    for stream in ("a", "b"):
        found = {(kind_of(job), job.seed is None) for job in first(10, stream=stream)}
        assert found == {(kind, greedy) for kind in WORKLOADS for greedy in (True, False)}


@pytest.mark.parametrize("workload", sorted(REAL_TEXTS))
def test_no_two_prompts_are_alike_and_half_of_them_sample(workload: str) -> None:
    both = [*first(40, workload), *first(40, workload, "b")]
    assert len({(job.system, job.text) for job in both}) == 80
    assert sum(job.seed is None for job in both) == 40
    seeds = [job.seed for job in both if job.seed is not None]
    assert len(set(seeds)) == 40


def test_both_dialects_mean_the_same_task() -> None:
    """Read by this project's own schemas of both."""
    for job in first(20):
        task = Task.model_validate(Endpoint("", "m", "tasks").body(job))
        body = Endpoint("", "m", "chat", {"top_k": 0}).body(job)
        chat = ChatCompletionRequest.model_validate(body).task(0)
        assert chat.messages == task.messages
        assert [message.role for message in task.messages] == ["system", "user"]
        assert chat.structured_output == task.structured_output
        assert (task.structured_output is not None) == (kind_of(job) == "structured output")
        assert body["temperature"] == (0.0 if job.seed is None else 0.7)
        assert task.generation_config.do_sample == (job.seed is not None)
        assert body["max_tokens"] == task.generation_config.max_new_tokens


def test_a_server_without_schemas_is_told_none() -> None:
    structured = next(job for job in first(10) if job.schema is not None)
    jsonschema.Draft202012Validator.check_schema(dict(structured.schema or {}))
    with_it = Endpoint("", "m").body(structured)
    without = Endpoint("", "m", schemas=False).body(structured)
    assert with_it.pop("response_format")["json_schema"]["schema"] == structured.schema
    assert with_it == without


def test_what_is_compared_samples_as_the_texts_do() -> None:
    compared = equality_jobs(MODEL, "real", 24, 64, seeds=True)
    assert sum(job.seed is None for job in compared) == 12
    assert {job.max_tokens for job in compared} == {64}
    greedy = equality_jobs(MODEL, "real", 24, 64, seeds=False)
    assert [job.seed for job in greedy] == [None] * 24
