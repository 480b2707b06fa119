"""`run_task`: one task, in process."""

from __future__ import annotations

import pytest

from engine import run_task
from schema import ModelInvalid, ModelNotDownloaded, StreamChunk, Task, TaskArgsInvalid
from tests.engine.conftest import TinyEngine, TinyModel

MESSAGES = [{"role": "user", "content": "one task"}]
SAMPLED = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 20}


def test_it_loads_the_model_that_the_task_names(
    tiny_model: TinyModel, tiny_engine: TinyEngine
) -> None:
    chunks: list[StreamChunk] = []
    response = run_task(
        model=str(tiny_model("qwen2")),
        messages=MESSAGES,
        generation_config=SAMPLED,
        seed=5,
        dtype="float32",
        stream_callback=chunks.append,
    )
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"]["content"]
    assert texts == [choice["message"]["content"] for choice in response["choices"]]
    assert chunks[-1]["usage"] == response["usage"]

    task = Task.from_fields(model="any", messages=MESSAGES, generation_config=SAMPLED, seed=5)
    again = run_task(task, engine=tiny_engine("qwen2"))
    assert again["choices"] == response["choices"]


def test_what_it_refuses(tiny_model: TinyModel) -> None:
    with pytest.raises(TaskArgsInvalid) as caught:
        run_task(model=str(tiny_model("qwen2")), messages=MESSAGES, temperature=0.5)
    assert caught.value.param == "temperature"
    with pytest.raises(ModelInvalid, match=r"'org/model:sql' is neither .* EngineConfig\.adapters"):
        run_task(model="org/model:sql", messages=MESSAGES)
    for path in ("/no/such/directory", "./no-such-directory"):
        with pytest.raises(ModelInvalid, match="no directory"):
            run_task(model=path, messages=MESSAGES)
    with pytest.raises(ModelNotDownloaded):
        run_task(model="no/such-model", messages=MESSAGES)
    with pytest.raises(TypeError):
        run_task()
