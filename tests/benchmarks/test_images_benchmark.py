"""The benchmark of image preprocessing reports every model and kind of image, from both sides."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.images.__main__ import DIRECT, ENGINE, KINDS, MODELS

REPOSITORY = Path(__file__).parents[2]


def test_it_runs_and_reports_all_rows(tmp_path: Path) -> None:
    command = "--images 1 --rounds 2 --out"
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.images", *command.split(), str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "images.json").read_text())
    cases = {(model, kind) for model in MODELS for kind in KINDS}
    rows = [(row["model"], row["kind"], row["side"], row["round"]) for row in report["runs"]]
    assert len(rows) == len(set(rows))
    assert set(rows) == {
        (*case, side, index) for case in cases for side in (ENGINE, DIRECT) for index in range(2)
    }
    for row in report["runs"]:
        assert row["images"] == 1
        assert row["images_per_core_s"] == pytest.approx(1 / row["cpu_s"])
    assert {(one["model"], one["kind"]) for one in report["ratios"]} == cases
    for model, kind in cases:
        assert any(model in line and kind in line for line in run.stdout.splitlines())
