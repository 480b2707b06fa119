"""The comparison of two source trees: both answer the same tasks, in turns."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.engine.trees import main

REPOSITORY = Path(__file__).parents[2]


def test_a_tree_beside_itself(tmp_path: Path) -> None:
    arguments = f"--before {REPOSITORY} --model-dir {REPOSITORY / 'demo' / 'model'} --threads 1"
    arguments += f" --dtype float32 --clients 1 --tasks 2 --rounds 2 --out {tmp_path}"
    main([*arguments.split(), "--set", "speculation=off", "max_sequences=2"])
    found = json.loads((tmp_path / "trees.json").read_text())
    assert [run["tree"] for run in found["runs"]] == ["before", "after", "after", "before"]
    assert found["cards"]["after"]["max_sequences"] == 2
    assert found["cards"]["before"]["max_sequences"] != 2
    tokens = [run["tokens"] for run in found["runs"]]
    assert tokens[0] == tokens[1]
    assert tokens[2] == tokens[3] > 0
