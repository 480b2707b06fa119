"""libgomp itself says how long its threads wait, when it is loaded."""

import os
import subprocess
import sys

import pytest

from engine.platform.openmp import prepare


def display(module: str, **environment: str) -> str:
    """The settings that libgomp prints in a process that imports a module."""
    env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        env=env | environment | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings libgomp on Linux only")
def test_a_replica_waits_for_moments_only() -> None:
    """Nothing that a replica imports before the engine loads libgomp with its own setting."""
    assert "GOMP_SPINCOUNT = '20000'" in display("serve_app.replicas.model_replica, engine.engine")


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_what_the_operator_says_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv(name, "7")
    monkeypatch.delitem(sys.modules, "torch")  # as if it was not loaded yet
    before = dict(os.environ)
    prepare()
    assert dict(os.environ) == before
