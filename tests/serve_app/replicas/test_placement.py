"""Which models run on GPUs."""

from typing import Any

import pytest
from pydantic import ValidationError
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager
from ray.util.accelerators import accelerators

from serve_app.app import _model_options, build, graph, place
from serve_app.config.accelerators import ACCELERATOR_TYPES
from serve_app.config.app_args import AppArgs, ModelArgs


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
        ([{}, {"device": "cuda"}], 1, ["cpu", "cuda"]),  # a model that must have a GPU comes first
        ([{"device": "cpu"}, {}], 1, ["cpu", "cuda"]),
        ([{"device": "cuda"}], 0, ["cuda"]),  # a cluster that scales from zero GPUs
    ],
)
def test_place(models: list[dict[str, Any]], gpus: float, devices: list[str]) -> None:
    assert place(_models(*models), gpus) == devices


def test_the_graph_builds_without_a_cluster() -> None:
    args = AppArgs.model_validate({"models": [{"id": "a"}, {"id": "b", "min_replicas": 0}]})
    graph(args, gpus=1)


def test_the_builder_says_how_to_run_it() -> None:
    args = AppArgs.model_validate({"models": [{"id": "a"}]})
    with pytest.raises(RuntimeError, match=r"serve run serve_config\.yaml"):
        build(args)


def test_replicas_of_an_accelerator_type_ask_ray_for_it() -> None:
    fields = {"id": "a", "device": "cuda", "num_gpus": 0.5, "accelerator_type": "GeForce-RTX-5090"}
    args = AppArgs.model_validate({"models": [fields, {"id": "b", "device": "cuda"}]})
    graph(args, gpus=1)
    typed, untyped = (_model_options(model, "cuda")["ray_actor_options"] for model in args.models)
    assert typed == {"num_cpus": 0.1, "num_gpus": 0.5, "accelerator_type": "GeForce-RTX-5090"}
    assert "accelerator_type" not in untyped


def test_a_model_over_several_gpus_has_a_bundle_for_each() -> None:
    """All on one machine; the replica takes the first. On a CPU it is not split."""
    fields: dict[str, Any] = {"device": "cuda", "num_gpus": 2, "accelerator_type": "H100"}
    typed, auto = _models(fields, {"num_gpus": 2})
    options = _model_options(typed, "cuda")
    assert options["ray_actor_options"] == {"num_cpus": 0.1, "num_gpus": 1}
    bundle = {"CPU": 0.1, "GPU": 1, "accelerator_type:H100": 0.001}
    assert options["placement_group_bundles"] == [bundle] * 2
    assert options["placement_group_strategy"] == "STRICT_PACK"
    assert typed.engine_config("cuda").layout == "tensor:2"
    assert place([auto, auto], 3) == ["cuda", "cpu"]
    assert auto.engine_config("cpu").layout is None
    assert "placement_group_bundles" not in _model_options(auto, "cpu")
    graph(AppArgs(models=[typed]), gpus=2)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("RTX5090", "did you mean 'GeForce-RTX-5090'"),
        ("GeForce RTX 5070 Ti", "did you mean 'GeForce-RTX-5070-Ti'"),
        ("h100", "did you mean 'H100'"),
        ("B-200", "did you mean 'B200'"),
        ("abacus", "the types are A10, A100,"),
    ],
)
def test_accelerator_types_are_those_that_ray_gives(name: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        _models({"device": "cuda", "accelerator_type": name})


@pytest.mark.parametrize(
    ("card", "known"),
    [
        ("NVIDIA GeForce RTX 5090", True),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", True),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", True),
        ("NVIDIA RTX 6000 Ada Generation", True),
        ("NVIDIA RTX A6000", True),
        ("NVIDIA H100 80GB HBM3", True),
        ("NVIDIA A10", True),
        ("NVIDIA GeForce RTX 5090 Laptop GPU", False),
    ],
)
def test_rays_names_of_cards_are_in_the_table(card: str, known: bool) -> None:
    name = NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type(card)
    assert (name in ACCELERATOR_TYPES) == known


def test_ray_names_no_type_that_the_table_lacks() -> None:
    names = {name for key, name in vars(accelerators).items() if key.startswith("NVIDIA_")}
    assert names <= set(ACCELERATOR_TYPES)


def test_an_accelerator_type_never_falls_back_to_the_cpu() -> None:
    with pytest.raises(ValidationError, match="needs device: cuda"):
        _models({"accelerator_type": "H100"})
