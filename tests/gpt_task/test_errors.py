"""Every error of `run_task` is of gpt-task's class, of the contract's, and says what is wrong."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import schema
from gpt_task.config import Config
from gpt_task.inference import errors, run_task
from gpt_task.inference.errors import (
    ModelDownloadError,
    ModelInvalid,
    ModelNotDownloaded,
    OutOfMemory,
    TaskArgsInvalid,
    TaskExecutionError,
    translated_errors,
)

MESSAGES = [{"role": "user", "content": "one task"}]
NAMES = (TaskArgsInvalid, ModelInvalid, ModelNotDownloaded, ModelDownloadError, TaskExecutionError)


@pytest.mark.parametrize("name", NAMES)
def test_the_classes(name: type[schema.TaskError]) -> None:
    assert issubclass(name, ValueError)
    assert issubclass(name, getattr(schema, name.__name__))
    error = pickle.loads(pickle.dumps(name("what", "messages.0")))
    assert (type(error), str(error), error.param) == (name, "what", "messages.0")


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"messages": None}, "messages", "array"),
        ({"model": None}, "model", "string"),
        ({"seed": -1}, "seed", "at least 0"),
        (
            {"messages": [{"role": "user", "content": ""}, {"role": "user"}]},
            "messages.1.content",
            "",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            "messages.0.content.0.text",
            "string",
        ),
        ({"generation_config": {"top_p": 1.5}}, "generation_config.top_p", "at most 1"),
        ({"generation_config": {"top_k": "x"}}, "generation_config.top_k", "integer"),
        ({"dtype": "float64"}, "dtype", "float16"),
    ],
)
def test_an_invalid_task_names_its_field(fields: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(TaskArgsInvalid) as caught:
        run_task(**({"model": "none", "messages": MESSAGES} | fields))
    assert caught.value.param == param
    assert says in str(caught.value)


def test_invalid_args() -> None:
    with pytest.raises(TaskArgsInvalid, match="GPTTaskArgs"):
        run_task({"model": "m", "messages": MESSAGES})  # type: ignore[arg-type]


def test_models_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # discard
    with pytest.raises(ModelNotDownloaded):
        run_task(model="no/such", messages=MESSAGES, config=Config(local_files_only=True))
    with pytest.raises(ModelDownloadError):
        run_task(model="no/such", messages=MESSAGES)
    with pytest.raises(ModelInvalid):
        run_task(model="/no/such/directory", messages=MESSAGES)


def fail(*_: Any) -> Any:
    raise KeyError("mine")


class BrokenCache:
    """A user's cache with a mistake."""

    def __init__(self, load: Callable[..., Any]) -> None:
        self.load = load

    def clear(self) -> None:
        """Nothing to forget."""


def test_what_the_callers_own_code_raises(text_model: str) -> None:
    with pytest.raises(TaskExecutionError, match="mine") as caught:
        run_task(model=text_model, messages=MESSAGES, stream_callback=fail)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(TaskExecutionError, match="mine"):
        run_task(model=text_model, messages=MESSAGES, model_cache=BrokenCache(fail))
    with pytest.raises(TaskExecutionError, match="returned a int"):
        run_task(model=text_model, messages=MESSAGES, model_cache=BrokenCache(lambda *_: 5))


def test_the_translation() -> None:
    """What needs a full GPU or a damaged model to be raised for real."""
    cases: list[tuple[Exception, type[Exception]]] = [
        (schema.OutOfMemory("too large"), OutOfMemory),
        (schema.Overloaded("full"), TaskExecutionError),
        (schema.TaskExecutionError("broken"), TaskExecutionError),
        (ModelInvalid("already"), ModelInvalid),
        (torch.OutOfMemoryError("torch's"), torch.OutOfMemoryError),
    ]
    for raised, expected in cases:
        with pytest.raises(expected) as caught, translated_errors():
            raise raised
        assert type(caught.value) is expected

    class NoSuchThing(schema.ModelInvalid):
        """A finer class of the contract's is still gpt-task's class."""

    with pytest.raises(ModelInvalid), translated_errors():
        raise NoSuchThing("fine")
    with pytest.raises(torch.cuda.OutOfMemoryError, match="out of memory"), translated_errors():
        raise schema.OutOfMemory("too large")
    with pytest.raises(KeyboardInterrupt), translated_errors():
        raise KeyboardInterrupt


def test_everything_is_exported() -> None:
    assert {name.__name__ for name in NAMES} < set(errors.__all__)
