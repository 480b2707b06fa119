"""Which models run on GPUs."""

from typing import Any

import pytest

from serve_app.app import build, graph, place
from serve_app.config import AppArgs, ModelArgs


def _models(*fields: dict[str, Any]) -> list[ModelArgs]:
    return [ModelArgs.model_validate({"id": f"m{i}", **f}) for i, f in enumerate(fields)]


SHARE: dict[str, Any] = {"num_gpus": 0.3, "min_replicas": 0}


@pytest.mark.parametrize(
    ("models", "gpus", "devices"),
    [
        ([{}, {}], 0, ["cpu", "cpu"]),
        ([{}, {}], 1, ["cuda", "cpu"]),
        ([{}, {}], 8, ["cuda", "cuda"]),
        ([SHARE, SHARE, SHARE], 1, ["cuda", "cuda", "cuda"]),
        ([SHARE] * 10, 3, ["cuda"] * 10),
        ([{"min_replicas": 2, "max_replicas": 2}, {}], 1, ["cpu", "cuda"]),
        ([{}, {"device": "cuda"}], 1, ["cpu", "cuda"]),  # who must have a GPU comes first
        ([{"device": "cpu"}, {}], 1, ["cpu", "cuda"]),
        ([{"device": "cuda"}], 0, ["cuda"]),  # a cluster that scales from zero GPUs
    ],
)
def test_place(models: list[dict[str, Any]], gpus: float, devices: list[str]) -> None:
    assert place(_models(*models), gpus) == devices


def test_the_graph_builds_without_a_cluster() -> None:
    args = AppArgs.model_validate({"models": [{"id": "a"}, {"id": "b", "min_replicas": 0}]})
    graph(args, gpus=1)


def test_the_builder_says_how_it_is_run() -> None:
    args = AppArgs.model_validate({"models": [{"id": "a"}]})
    with pytest.raises(RuntimeError, match=r"serve run serve_config\.yaml"):
        build(args)
