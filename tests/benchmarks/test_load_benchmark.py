"""The benchmark of loading reports every setting, with sizes that can be worked out by hand."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from demo.random_model import GEOMETRIES

REPOSITORY = Path(__file__).parents[2]
SETTINGS = ("bfloat16", "nf4")  # each has a process of its own
SHARD = 400_000


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one run on a tiny model wrote."""
    out = tmp_path_factory.mktemp("out")
    command = f"--geometry tiny --shard-mb {SHARD / 1e6} --threads 1 --settings"
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.loading.memory",
            *command.split(),
            *SETTINGS,
            "--out",
            str(out),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert str(out / "load.json") in run.stdout
    for name in SETTINGS:
        assert name in run.stdout
    content: dict[str, Any] = json.loads((out / "load.json").read_text())
    return content


def weights(*, layers_only: bool) -> int:
    """Numbers in the tiny model: those of the linear layers in its blocks, or all."""
    shape = GEOMETRIES["tiny"]
    hidden, layers = shape.hidden_size, shape.num_hidden_layers
    kv = hidden // shape.num_attention_heads * shape.num_key_value_heads
    linear = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * shape.intermediate_size)
    if layers_only:
        return linear
    small = layers * (hidden + 2 * kv + 2 * hidden) + hidden  # biases and norms
    return linear + small + shape.vocab_size * hidden  # the head is the embedding


def test_every_setting_was_measured(report: dict[str, Any]) -> None:
    assert [row["setting"] for row in report["runs"]] == list(SETTINGS)
    for row in report["runs"]:
        assert row["seconds"] > 0
        assert row["peak_anonymous_bytes"] >= 0
        assert row["peak_file_bytes"] >= 0
        assert row["ratio"] == pytest.approx(row["peak_anonymous_bytes"] / row["model_bytes"])
        assert row["surplus_bytes"] == row["peak_anonymous_bytes"] - row["model_bytes"]


def test_the_checkpoint_is_in_shards(report: dict[str, Any]) -> None:
    """A single tensor may be larger than a shard: here the embedding is."""
    embedding = 2 * GEOMETRIES["tiny"].vocab_size * GEOMETRIES["tiny"].hidden_size
    for row in report["runs"]:
        assert row["disk_bytes"] == pytest.approx(2 * weights(layers_only=False), rel=0.05)
        assert row["largest_shard_bytes"] == pytest.approx(embedding, rel=0.01)


def test_models_have_the_size_of_their_weights(report: dict[str, Any]) -> None:
    """Quantized ones with their scales: 4 bytes for 64 weights."""
    size = {row["setting"]: row["model_bytes"] for row in report["runs"]}
    all_weights, quantized = weights(layers_only=False), weights(layers_only=True)
    other = 2 * (all_weights - quantized)
    assert size["bfloat16"] == pytest.approx(2 * all_weights, rel=0.01)
    assert size["nf4"] == pytest.approx(quantized * (1 / 2 + 4 / 64) + other, rel=0.03)
