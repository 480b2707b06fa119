"""The benchmark measures what it says: every peer does the same work, and all of it is reported."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engine.in_process import INT8_ENGINE, SAMPLING_ENGINE, peer_names

REPOSITORY = Path(__file__).parents[2]
COUNTS = (2,)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one run on a tiny model wrote."""
    out = tmp_path_factory.mktemp("out")
    # In float32 the peers' answers can be compared with each other.
    command = "--geometry tiny --tasks 2 --rounds 1 --dtype float32 --threads 1 --device cpu"
    command += " --alone 2 --floor --floor-rows 2"
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine", *command.split(), "--out", str(out)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert str(out / "engine.json") in run.stdout
    content: dict[str, Any] = json.loads(Path(out / "engine.json").read_text())
    return content


def test_every_peer_ran_every_number_of_tasks(report: dict[str, Any]) -> None:
    """One row for each, and a ratio for each peer but the engine."""
    rows = {(row["peer"], row["tasks"], row["round"]) for row in report["runs"]}
    assert rows == {(peer, count, 0) for peer in peer_names() for count in COUNTS}
    assert len(report["runs"]) == len(rows)
    ratios = {(ratio["peer"], ratio["tasks"]) for ratio in report["ratios"]}
    assert ratios == {(peer, count) for peer in peer_names()[1:] for count in COUNTS}
    assert set(report["peers"]) == set(peer_names())


def test_every_peer_generated_exactly_what_was_asked(report: dict[str, Any]) -> None:
    """No end of sequence, and nothing counted twice."""
    for row in report["runs"]:
        answers = [answer for _, answer in report["lengths"][: row["tasks"]]]
        assert row["tokens"] == row["asked_tokens"] == sum(answers), row


def test_every_peer_gave_the_same_answers(report: dict[str, Any]) -> None:
    """In float32 they differ by rounding only, and these answers have no ties.

    All but those that are sampled or of other weights.
    """
    others = (SAMPLING_ENGINE, INT8_ENGINE)
    greedy = [row for row in report["runs"] if row["peer"] not in others]
    for count in COUNTS:
        assert len({row["answers"] for row in greedy if row["tasks"] == count}) == 1
    assert all(same["same"] == same["tasks"] for same in report["same_answers"])
    assert {same["peer"] for same in report["same_answers"]} == set(peer_names())


def test_the_numbers_are_plausible(report: dict[str, Any]) -> None:
    """Times are in order, memory is that of a process that has torch, the floor is below."""
    for row in report["runs"]:
        assert 0 < row["first_token_p50_s"] <= row["first_token_max_s"] <= row["seconds"]
        assert row["tokens_per_s"] == pytest.approx(row["tokens"] / row["seconds"])
        assert row["peak_memory_bytes"] > 100 << 20
    assert report["copy_bandwidth_bytes_per_s"] > 1e8
    assert report["floor"]
    assert all(0 < row["fraction"] < 1 for row in report["floor"])


@pytest.mark.parametrize("options", [[], ["--disturbed"]])
def test_products_of_every_way_in_which_weights_are_held(
    options: list[str], tmp_path: Path
) -> None:
    """Each at every number of rows, with the weights that it has."""
    command = "--geometry tiny --rows 1 3 --rounds 2 --threads 1"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.engine.products", *command.split(), *options),
            *("--out", str(tmp_path), "--paths", "bfloat16", "bfloat16, prepacked"),
            *("bfloat16, oneDNN", "INT8"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "products.json").read_text())["runs"]
    assert len(rows) == 2 * 4
    sizes = {row["path"]: 0.0 for row in rows}
    for row in rows:
        assert all(group["seconds"] > 0 for group in row["groups"].values())
        assert set(row["groups"]) == {"qkv", "o", "gate+up", "down", "head"}
        sizes[row["path"]] = sum(group["weight_bytes"] for group in row["groups"].values())
    assert sizes["INT8"] < sizes["bfloat16"] <= sizes["bfloat16, prepacked"]
