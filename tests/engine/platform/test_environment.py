"""What is set before libraries read it: libgomp itself says how long its threads wait."""

import os
import subprocess
import sys

import pytest

from engine.platform.environment import prepare


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


@pytest.mark.parametrize("first", ["engine", "torch, engine"])
def test_cublas_is_reproducible_whoever_uses_it_first(first: str) -> None:
    """Importing the package is enough, also where the program has loaded torch before."""
    env = {k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
    shows = f"import {first}, os; print(os.environ['CUBLAS_WORKSPACE_CONFIG'])"
    done = subprocess.run(
        [sys.executable, "-c", shows], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ":4096:8"


def test_torch_does_not_compile_kernels_of_its_own() -> None:
    """Torch itself says so, in the process of an engine."""
    env = {k: v for k, v in os.environ.items() if k != "TORCH_DISABLE_NATIVE_JIT"}
    shows = (
        "import engine.engine; from torch._native.common_utils import check_native_jit_disabled; "
        "print(check_native_jit_disabled())"
    )
    done = subprocess.run(
        [sys.executable, "-c", shows], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize(
    "name",
    ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "CUBLAS_WORKSPACE_CONFIG", "TORCH_DISABLE_NATIVE_JIT"],
)
def test_what_the_operator_says_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv(name, "7")
    monkeypatch.delitem(sys.modules, "torch")  # as if it was not loaded yet
    prepare()
    assert os.environ[name] == "7"
    if name == "OMP_WAIT_POLICY":  # it says how threads wait, in place of the other one
        assert "GOMP_SPINCOUNT" not in os.environ
