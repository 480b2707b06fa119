"""The error tree: statuses, JSON form, and survival between processes."""

import pickle
from pathlib import Path

import pytest
from ray import cloudpickle
from ray.exceptions import RayTaskError

from schema import TaskArgsInvalid, TaskError, errors


def _below(kind: type[TaskError]) -> list[type[TaskError]]:
    """The tree below a class, each class before those that derive from it."""
    return [k for child in kind.__subclasses__() for k in (child, *_below(child))]


# Those of the contract: the server adds one of its own.
KINDS = [kind for kind in _below(TaskError) if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", [TaskError, *KINDS])
@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_errors_survive_pickling(kind: type[TaskError], pickler: type[pickle.Pickler]) -> None:
    error = kind("It broke.", param="messages.0", retry_after_s=2.5)
    copy = pickler.loads(pickler.dumps(error))  # type: ignore[attr-defined]
    assert type(copy) is kind
    assert (copy.message, copy.param, copy.retry_after_s) == ("It broke.", "messages.0", 2.5)
    assert copy.to_dict() == error.to_dict()
    assert str(copy) == "It broke."


def test_errors_keep_what_they_say_through_ray() -> None:
    """A replica's error arrives as a class that is both Ray's and ours."""
    error = TaskArgsInvalid("It broke.", "messages.0", 2.5)
    arrived = RayTaskError("replica", "traceback", error).as_instanceof_cause()
    assert isinstance(arrived, TaskArgsInvalid)
    assert arrived.to_dict() == error.to_dict()
    assert (arrived.http_status, arrived.retry_after_s) == (400, 2.5)


def test_to_dict() -> None:
    assert TaskArgsInvalid("seed: must be an integer.", "seed").to_dict() == {
        "error": {
            "message": "seed: must be an integer.",
            "type": "invalid_request_error",
            "param": "seed",
            "code": "invalid_value",
        }
    }


def test_defaults() -> None:
    error = TaskError("It broke.")
    assert error.param is None
    assert error.retry_after_s is None


def test_each_error_has_its_own_code_and_the_docstring_draws_it() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS) == 28
    lines = [line for line in str(errors.__doc__).splitlines() if "── " in line]
    drawn = [line.split("── ")[1].split()[:2] for line in lines]
    assert [(name, int(status)) for name, status in drawn] == [
        (kind.__name__, kind.http_status) for kind in KINDS
    ]


def test_the_documentation_has_every_code() -> None:
    api = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    table = api.partition("## Routes and errors")[2].partition("\n## ")[0]
    assert [kind.code for kind in KINDS if f"`{kind.code}`" not in table] == []
    assert [kind.type for kind in KINDS if f"`{kind.type}`" not in table] == []
