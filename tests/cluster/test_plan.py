"""What fits where: by arithmetic that can be done by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.plan import main
from cluster.planning.gpus import GIB, parse_nodes
from cluster.planning.needs import Need, needs_of, parse_parameters
from cluster.planning.packing import (
    PROCESS_BYTES,
    Packing,
    misplaceable,
    pack,
    tokens_per_s,
    why_not,
)
from cluster.planning.report import notes
from serve_app.config.app_args import AppArgs, ModelArgs

# Keys and values of a token: 80 layers of 8 heads of 128 in 2 bytes, as in Llama 3 70B.
KV_70B = 2 * 80 * 8 * 128 * 2
KV_8B = 2 * 32 * 8 * 128 * 2


def need(name: str, gib: float | None, **fields: Any) -> Need:
    weights = None if gib is None else int(gib * GIB)
    settings: dict[str, Any] = {
        "device": "cuda",
        "gpus": 1.0,
        "accelerator_type": None,
        "min_replicas": 1,
        "max_replicas": 1,
        "weights": weights,
        "decode_weights": weights or 0,
        "kv_per_token": KV_8B,
        "kv_tokens": 32 * 8192,
        "context_length": 8192,
        "max_sequences": 32,
    }
    return Need(name, **(settings | fields))


def where(packing: Packing) -> dict[str, list[str]]:
    """Deployments on each GPU."""
    return {
        f"{gpu.node}.{gpu.index}": [resident.need.deployment for resident in gpu.residents]
        for gpu in packing.gpus
    }


def test_a_large_model_takes_the_large_gpu() -> None:
    packing = pack(parse_nodes("2xRTX4090,H100"), [need("small", 15), need("large", 60)])
    assert where(packing) == {"node 1.0": ["small"], "node 1.1": [], "node 2.0": ["large"]}
    assert list(packing.missing()) == []
    # Ray does not know memory, so it may choose another GPU; the plan says so.
    assert [gpu.name for gpu in misplaceable(packing, packing.needs[1])] == ["RTX4090"]
    assert misplaceable(packing, packing.needs[0]) == []


def test_no_gpu_holds_more_than_its_memory() -> None:
    needs = [need(f"m{i}", 2 * i, gpus=0.25, max_replicas=4) for i in range(1, 6)]
    packing = pack(parse_nodes("3xRTX5090,2xL4"), needs)
    for gpu in packing.gpus:
        assert gpu.free >= 0
        assert gpu.free_share > -1e-6
        used = sum(r.weights + r.kv_cache + PROCESS_BYTES for r in gpu.residents)
        assert used <= gpu.type.memory
    for each in needs:
        assert packing.placed[each.deployment] <= 4


def test_replicas_that_are_always_on_come_first() -> None:
    greedy = need("greedy", 10, max_replicas=8)
    packing = pack(parse_nodes("4xRTX5090"), [greedy, need("needed", 1, min_replicas=2)])
    assert packing.placed == {"greedy": 2, "needed": 2}


@pytest.mark.parametrize(
    ("nodes", "needs", "says"),
    [
        ("cpu", [need("a", 1)], "no GPU; device: cpu"),
        ("4xRTX5090", [need("a", 1, accelerator_type="H100")], "no node has a H100; there are Ge"),
        ("4xRTX5090,8xL4", [need("a", 40)], r"40\.0 GiB of weights.*RTX5090 with 31\.8.*quantize"),
        ("RTX5090", [need("a", 30.7)], "too little of .* for its KV cache"),
        ("RTX5090", [need("b", 1), need("a", 0.5)], "are taken; each replica wants 1"),
        (
            "RTX5090",
            [need("b", 1, gpus=0.5, kv_tokens=10**9), need("a", 5, gpus=0.4)],
            "the replica that loads first takes 85%.*kv_cache_tokens",
        ),
    ],
)
def test_why_something_does_not_fit(nodes: str, needs: list[Need], says: str) -> None:
    packing = pack(parse_nodes(nodes), needs)
    missing = {each.deployment: short for each, short in packing.missing()}
    assert missing == {"a": 1}
    assert re.search(says, why_not(packing, needs[-1]))


def test_a_fixed_cache_leaves_room_for_the_neighbour() -> None:
    """What the message of the last case above suggests."""
    fixed = need("b", 1, gpus=0.5, kv_tokens=16_384, kv_is_fixed=True)
    packing = pack(parse_nodes("RTX5090"), [fixed, need("a", 5, gpus=0.4)])
    assert list(packing.missing()) == []
    (first, _) = packing.gpus[0].residents
    assert first.kv_cache == 16_384 * KV_8B


def test_tokens_per_second_by_hand() -> None:
    """The bandwidth over what a step reads: the weights, and 320 KiB for each token of context."""
    (node,) = parse_nodes("H200")
    assert node.gpu is not None
    model = need("70b", 131.4, kv_per_token=KV_70B)
    read = 131.4 * 2**30 + 16 * 1000 * 327_680
    assert tokens_per_s(model, node.gpu, 16, 1000) == pytest.approx(16 * 4800e9 / read)
    assert tokens_per_s(need("?", None), node.gpu, 1, 1) is None


def test_what_an_operator_should_know() -> None:
    tight = need("tight", 12, context_length=131_072, kv_tokens=32 * 131_072, max_replicas=3)
    packing = pack(parse_nodes("2xRTX5080"), [tight, need("new", None, unknown="not here")])
    text = "\n".join(notes(packing))
    tokens = int((15.9 - 1 - 12 - 2) * GIB) // KV_8B  # 2 GiB are left, which are more than 15 %
    assert f"holds {tokens} tokens, less than its context of 131072" in text
    assert "new: size unknown, placed by its share alone: not here" in text
    assert "tight: 1 of at most 3 replicas fit" in text


def _config(tmp_path: Path, *models: dict[str, Any], **args: Any) -> Path:
    application = {
        "name": "default",
        "import_path": "serve_app.app:build",
        "args": {"models": list(models), **args},
    }
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump({"applications": [application]}))
    return path


DEMO = {"id": "demo", "source": "./demo/model", "dtype": "float32", "num_gpus": 0.3}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    big = {"id": "org/big", "device": "cuda", "quantize_bits": 4, "accelerator_type": "H100"}
    pool = {"allow": ["*"], "max_memory_gb": 20, "device": "cuda"}
    path = _config(tmp_path, DEMO, big, pool=pool)
    image = tmp_path / "plan.png"
    arguments = [str(path), "--params", "org/big=70B"]
    pytest.importorskip("matplotlib")
    assert main([*arguments, "--nodes", "2xRTX5090,H100", "--plot", str(image)]) == 0
    out = capsys.readouterr().out
    assert f"{70e9 * (0.5 + 4 / 64) / 2**30:.2f}" in out
    assert image.read_bytes().startswith(b"\x89PNG")
    # The demo model goes to a CPU where there is no GPU; the others cannot.
    assert main([*arguments, "--nodes", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "Model:org--big:int4: 1 of 1: there is no GPU" in out
    assert "Model:demo:float32: 1 of 1" not in out


def test_a_deployment_that_scales_to_zero_fails_no_plan(tmp_path: Path) -> None:
    waits = {"id": "org/a", "device": "cuda", "min_replicas": 0}
    path = _config(tmp_path, DEMO, waits)
    assert main([str(path), "--nodes", "cpu", "--params", "org/a=8B"]) == 0


def test_a_model_that_is_not_here_is_no_guess(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _config(tmp_path, {"id": "org/unheard-of", "device": "cuda"})
    assert main([str(path), "--nodes", "H100"]) == 0
    out = capsys.readouterr().out
    assert "size unknown, placed by its share alone" in out
    assert "--params ID=8B" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nodes", "4xRTX5099"],
        ["--nodes", "H100", "--params", "demo"],
        ["--nodes", "H100", "--params", "other=8B"],
        ["--nodes", "H100", "--context", "0"],
        [],
    ],
)
def test_wrong_arguments(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([str(_config(tmp_path, DEMO)), *arguments])
    assert exit_.value.code == 2


def test_a_wrong_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _config(tmp_path, {**DEMO, "min_replica": 1})
    assert main([str(path), "--nodes", "H100"]) == 2
    assert "did you mean 'min_replicas'" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "count"), [("a/b=8e9", 8e9), ("a/b=0.5B", 5e8), ("a=70M", 7e7)])
def test_parameters(text: str, count: float) -> None:
    assert list(parse_parameters([text]).values()) == [count]


def divided(name: str, split: str | None, gpus: float, **fields: Any) -> Need:
    """Llama 3 70B in NF4 or bfloat16: 80 layers, and embedding and head of 1.96 GiB each."""
    each = int((0.45 if split == "layers" else 1.6) * GIB)
    outer = int(1.96 * GIB)
    weights = 80 * each + 2 * outer
    return need(
        name,
        weights / GIB,
        **{
            "gpus": gpus,
            "split": split,
            "layers": (each,) * 80,
            "head": outer,
            "kv_heads": 8,
            "kv_per_token": KV_70B,
            "decode_weights": weights - outer,
            **fields,
        },
    )


def test_layers_over_the_gpus_of_one_node() -> None:
    """The first has embedding and head, and as many layers as make the parts equal: 36 and 44."""
    model = divided("70b", "layers", 2.0)
    packing = pack(parse_nodes("2xRTX4090,RTX4090,2xRTX5090"), [model, need("small", 10)])
    # One GPU of each of two nodes would hold it too, but that is not allowed.
    assert where(packing) == {
        "node 1.0": ["70b"],
        "node 1.1": ["70b"],
        "node 2.0": ["small"],
        "node 3.0": [],
        "node 3.1": [],
    }
    first, second = (gpu.residents[0] for gpu in packing.gpus[:2])
    each, outer = int(0.45 * GIB), int(1.96 * GIB)
    assert (first.weights, second.weights) == (36 * each + 2 * outer, 44 * each)
    assert first.weights + second.weights == model.weights
    # The GPU with less room decides how many tokens both hold.
    rooms = [24 * GIB - PROCESS_BYTES - part.weights for part in (first, second)]
    per_token = [KV_70B * 36 // 80, KV_70B * 44 // 80]
    tokens = min(
        int(min(0.85 * r, r - 2 * GIB)) // p for r, p in zip(rooms, per_token, strict=True)
    )
    assert first.kv_tokens == second.kv_tokens == tokens
    assert [r.kv_cache for r in (first, second)] == [tokens * p for p in per_token]


def test_tensors_over_the_gpus_of_one_node() -> None:
    """Layers and head are divided, the embedding is on each."""
    model = divided("70b", "tensor", 4.0)
    packing = pack(parse_nodes("8xRTX5090,8xA100-80G"), [model])
    assert where(packing)["node 2.3"] == ["70b"]
    assert packing.placed == {"70b": 1}
    outer, each = int(1.96 * GIB), int(1.6 * GIB)
    for gpu in packing.gpus[8:12]:
        (part,) = gpu.residents
        assert part.weights == outer + (80 * each + outer) // 4
        assert part.kv_cache == part.kv_tokens * (KV_70B // 4)


@pytest.mark.parametrize(
    ("nodes", "model", "says"),
    [
        ("2xRTX3090", divided("a", "layers", 1.0), "it needs 2 GPUs of 24 GiB .*set num_gpus: 2$"),
        ("8xRTX5090", divided("a", "tensor", 2.0), r"GiB of weights on each .*set num_gpus: 8$"),
        ("2*RTX3090", divided("a", "layers", 1.0), "needs 2 GPUs .* in one node, and here are n"),
        ("2*RTX3090", divided("a", "layers", 2.0), "wants 2 GPUs of one node; .* has 1$"),
        ("8xH100", divided("a", "tensor", 3.0), "8 key/value heads do not divide among 3 GPUs"),
        ("8xH100", divided("a", "layers", 3.0, layers=(GIB,) * 2), "2 layers, which 3 GPUs"),
        ("8xH100", divided("a", None, 2.0), "cannot be divided over 2 GPUs"),
        ("2xH100", divided("a", "tensor", 2.0, min_replicas=2), "taken; each replica wants 2$"),
    ],
)
def test_why_a_divided_model_does_not_fit(nodes: str, model: Need, says: str) -> None:
    packing = pack(parse_nodes(nodes), [model])
    assert [each.deployment for each, _ in packing.missing()] == ["a"]
    assert re.search(says, why_not(packing, model))


def test_divided_models_take_whole_gpus() -> None:
    """They share GPUs with others, and no GPU holds more than its memory."""
    shares = [need(f"m{i}", 2, gpus=0.25, max_replicas=4, kv_tokens=4096) for i in range(3)]
    needs = [divided("two", "layers", 2.0, max_replicas=3), *shares]
    packing = pack(parse_nodes("3xRTX5090,2xRTX4090"), needs)
    assert packing.placed["two"] == 2
    for gpu in packing.gpus:
        names = {resident.need.deployment for resident in gpu.residents}
        assert names == {"two"} or "two" not in names
        assert gpu.free >= 0
        assert gpu.free_share > -1e-6


def test_tokens_per_second_of_divided_models() -> None:
    """Layers take turns and gain nothing; tensors are read at once, except those on every GPU."""
    (node,) = parse_nodes("8xH100")
    assert node.gpu is not None
    layers = divided("l", "layers", 2.0)
    alone = tokens_per_s(divided("l", "layers", 1.0), node.gpu, 16, 1000)
    assert tokens_per_s(layers, node.gpu, 16, 1000) == alone
    tensor = divided("t", "tensor", 4.0)
    read = (80 * int(1.6 * GIB) + int(1.96 * GIB) + 16 * 1000 * KV_70B) / 4
    assert tokens_per_s(tensor, node.gpu, 16, 1000) == pytest.approx(16 * 3350e9 / read)


def test_a_model_of_a_configuration_is_divided_as_the_engine_does() -> None:
    """From the headers of its files: by tensors, or by layers if it is quantized."""
    demo: dict[str, Any] = {"id": "demo", "source": "./demo/model", "device": "cuda"}
    for bits, split in ((None, "tensor"), (4, "layers")):
        model = ModelArgs.model_validate({**demo, "quantize_bits": bits})
        (one,) = needs_of(AppArgs(models=[model]), 2.0, {})
        assert one.split == split
        assert one.kv_heads
        two = replace(one, gpus=2.0)
        assert len(two.parts) == 2
        assert sum(part.weights for part in two.parts) >= (one.weights or 0)
        assert (
            sum(part.kv_per_token for part in two.parts)
            == one.kv_per_token
            == one.parts[0].kv_per_token
        )
