"""What fits where: by arithmetic that can be done by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.gpus import GIB, parse_nodes
from cluster.needs import Need, parse_parameters
from cluster.packing import PROCESS_BYTES, Packing, misplaceable, pack, tokens_per_s, why_not
from cluster.plan import main
from cluster.plan_report import notes

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
    # Ray knows nothing of memory, so it may choose otherwise; the plan says so.
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
            "whoever loads first takes 85%.*kv_cache_tokens",
        ),
    ],
)
def test_why_something_does_not_fit(nodes: str, needs: list[Need], says: str) -> None:
    packing = pack(parse_nodes(nodes), needs)
    missing = {each.deployment: short for each, short in packing.missing()}
    assert missing == {"a": 1}
    assert re.search(says, why_not(packing, needs[-1]))


def test_a_fixed_cache_leaves_room_for_the_neighbour() -> None:
    """The way out that the last case above tells."""
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
    tight = need("tight", 13, context_length=131_072, kv_tokens=32 * 131_072, max_replicas=3)
    packing = pack(parse_nodes("2xRTX5080"), [tight, need("new", None, unknown="not here")])
    text = "\n".join(notes(packing))
    tokens = int(0.85 * (15.9 - 1 - 13) * GIB) // KV_8B
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
    picture = tmp_path / "plan.png"
    arguments = [str(path), "--params", "org/big=70B"]
    pytest.importorskip("matplotlib")
    assert main([*arguments, "--nodes", "2xRTX5090,H100", "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert f"{70e9 * (0.5 + 4 / 64) / 2**30:.2f}" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
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
