"""The kernels, compiled for each kind of GPU without one: they fit, and keep sums in registers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs triton: pip install -e '.[gpu-tests]'")

REPOSITORY = Path(__file__).parents[4]
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""Of NVIDIA's table of compute capabilities."""
KERNELS = {"attend_prompts", "attend_tokens", "combine_splits"}
ROW = re.compile(
    r"\| (\w+) \| (\d+), (\w+) \| (\w+) \| \d+ x \d+, \d+ \| (\d+) \| (\d+) B \| (\d+) KiB \|"
)
LITTLE = 32  # bytes: some addresses, read once or twice


@pytest.mark.parametrize("capability", SHARED_KIB)
def test_programs_fit(capability: int, tmp_path: Path) -> None:
    """By the command that people run; not in Triton's interpreter, which compiles nothing."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    printed = subprocess.run(
        [sys.executable, "-m", "engine.execution.kernels.compiled", str(capability)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = [ROW.fullmatch(line) for line in printed.splitlines()[2:]]
    rows = [row.groups() for row in found if row is not None]
    assert len(rows) == len(found)
    for size in (64, 128, 256):
        assert {row[0] for row in rows if row[1:4] == (str(size), "bf16", "usual")} == KERNELS
    for _, _, dtype, form, registers, spilled, shared in rows:
        usual = form == "usual" and dtype != "fp32"
        assert int(registers) <= 255
        assert int(spilled) <= (0 if usual else LITTLE)
        assert int(shared) <= SHARED_KIB[capability]
