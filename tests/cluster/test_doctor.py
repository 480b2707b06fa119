"""The hardware check: on the facts of real machines, and on this one."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.doctor import main, report
from cluster.hardware.checks import Line, judge
from cluster.hardware.kernels import (
    EqualBytesResult,
    attempt,
    paged_attention_problem,
    triton_attention_problem,
)
from cluster.hardware.machine import GpuFacts, MachineFacts, RayFacts, pinned_versions
from cluster.planning.gpus import GIB
from cluster.planning.ray_nodes import RayNode, nodes_of, running_nodes
from engine.platform.device_check import DeviceFacts
from tests.engine.execution.varlen_stand_in import varlen_attn
from tests.engine.platform.test_device_check import CU126, CU130, RTX_5090

GOOD = dict.fromkeys(("INT4", "INT8", "attention", "triton attention", "paged attention"))
VERSIONS = {"torch": "2.13.0", "transformers": "5.23.0", "ray": "2.60.0", "bitsandbytes": "0.50.2"}
EQUAL_BYTES = EqualBytesResult(None, "paged kernel", "fp_0123456789ab")


def machine(*gpus: GpuFacts, **fields: Any) -> MachineFacts:
    """A machine on which everything is right except ``fields``."""
    settings: dict[str, Any] = {
        "python": "3.12.3",
        "installed": {**VERSIONS, "torch": "2.13.0+cu130"},
        "tested": VERSIONS,
        "driver": "580.95.05" if gpus else None,
        "driver_gpus": len(gpus),
        "torch": DeviceFacts("2.13.0+cu130", "13.0"),
        "gpus": gpus,
        "cpu_kernels": {},
        "cpu_equal_bytes": EqualBytesResult(None, "per sequence", "fp_0123456789ab"),
        "ray": RayFacts(len(gpus), "GeForce-RTX-5090" if gpus else None),
    }
    return MachineFacts(**(settings | fields))


CARD = GpuFacts(
    DeviceFacts("2.13.0+cu130", "13.0", CU130, **RTX_5090), 32 * GIB, 31 * GIB, GOOD, EQUAL_BYTES
)
WRONG_BUILD = DeviceFacts("2.13.0+cu126", "12.6", CU126, **RTX_5090)
CPU_BUILD = DeviceFacts("2.13.0+cpu", None)


def failed(lines: list[Line]) -> dict[str, str]:
    return {
        line.name: f"{line.found} -> {line.way_out}" for line in lines if line.status == "failed"
    }


def test_a_good_machine_passes() -> None:
    lines = judge(machine(CARD, CARD), gpu_required=True)
    assert failed(lines) == {}
    assert {line.status for line in lines} == {"ok"}


@pytest.mark.parametrize(
    ("facts", "name", "says"),
    [
        (machine(GpuFacts(WRONG_BUILD, 0, 0)), "GPU 0", ("sm_120", "CUDA 12.8 or newer")),
        (machine(CARD, driver="535.183.01"), "driver", ("535", "580.65.06 or newer")),
        (
            machine(
                CARD,
                driver="550.54.14",  # enough for CUDA 12 on older cards
                torch=DeviceFacts("2.13.0+cu128", "12.8"),
            ),
            "driver",
            ("570.26 or newer",),
        ),
        (
            machine(driver="580.95.05", driver_gpus=2, torch=CPU_BUILD),
            "GPUs of torch",
            ("build for the CPU", "CUDA build"),
        ),
        (
            machine(driver="580.95.05", driver_gpus=2),
            "GPUs of torch",
            ("sees no GPU", "CUDA_VISIBLE_DEVICES"),
        ),
        (machine(replace(CARD, free=GIB)), "GPU 0 memory", ("1.0 of 32.0 GiB", "nvidia-smi")),
        (
            machine(replace(CARD, kernels={**GOOD, "INT4": "RuntimeError: no kernel"})),
            "GPU 0 INT4",
            ("no kernel", "bitsandbytes"),
        ),
        (
            machine(
                replace(CARD, equal_bytes=EqualBytesResult("3 of 8 answers differ under load"))
            ),
            "GPU 0 equal bytes",
            ("3 of 8", "does not hold"),
        ),
        (
            machine(CARD, installed={**VERSIONS, "ray": "2.59.0", "bitsandbytes": "0.51.0"}),
            "ray",
            ("2.59.0", "ray==2.60.0"),
        ),
        (
            machine(CARD, installed={**VERSIONS, "bitsandbytes": None}),
            "bitsandbytes",
            ("not installed", "bitsandbytes==0.50.2"),
        ),
        (machine(CARD, ray=RayFacts(0, None)), "Ray", ("0 GPUs", "torch sees 1")),
        (
            machine(CARD, ray=RayFacts(1, None, "no cluster is running")),
            "Ray cluster",
            ("no cluster is running", "RAY_AUTH_MODE=token"),
        ),
    ],
)
def test_a_fault_is_one_line_with_its_way_out(
    facts: MachineFacts, name: str, says: tuple[str, ...]
) -> None:
    found = failed(judge(facts))
    assert set(found) <= {name, "Ray"}  # Ray reports a GPU that torch does not see, too
    assert all(part in found[name] for part in says), found[name]


def test_without_a_gpu_nothing_fails_unless_one_is_required() -> None:
    lines = judge(machine(torch=CPU_BUILD))
    assert failed(lines) == {}
    assert [line.name for line in lines if line.status == "no GPU"] == ["driver", "Ray"]
    assert set(failed(judge(machine(torch=CPU_BUILD), gpu_required=True))) == {"driver"}


def test_the_nodes_of_a_cluster() -> None:
    nodes = nodes_of(
        [
            {
                "Alive": True,
                "NodeManagerAddress": "10.0.0.2",
                "Resources": {"CPU": 8.0, "GPU": 2.0, "accelerator_type:H100": 1.0},
            },
            {"Alive": False, "NodeManagerAddress": "10.0.0.3", "Resources": {"GPU": 8.0}},
            {"Alive": True, "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 4.0}},
        ]
    )
    assert nodes == [RayNode("10.0.0.1", 0, None), RayNode("10.0.0.2", 2, "H100")]
    text = report(judge(machine(CARD, ray=RayFacts(1, "H100", tuple(nodes)))))
    assert "10.0.0.2: 2 GPUs of H100" in text
    assert text.endswith("nothing failed")


def test_a_cluster_that_is_not_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # no process listens on it
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"no Ray cluster answers at {address}"):
            running_nodes(address)


def test_pins(tmp_path: Path) -> None:
    file = tmp_path / "constraints.txt"
    file.write_text("# pins\ntorch==2.13.0\ntorch-extras==1\nray==2.60.0\n")
    assert pinned_versions(file) == {"torch": "2.13.0", "ray": "2.60.0"}
    assert pinned_versions(tmp_path / "none") == {}


def test_the_paged_kernel_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernel's contract in plain operations; then with a kernel that attends too far."""
    cpu = torch.device("cpu")
    monkeypatch.setattr("engine.execution.attention.varlen.varlen_attn", varlen_attn)
    assert attempt(paged_attention_problem, cpu) is None

    def wrong(*args: Any, **options: Any) -> torch.Tensor:
        return varlen_attn(*args, **options).flip(0)

    monkeypatch.setattr("engine.execution.attention.varlen.varlen_attn", wrong)
    assert "off by" in str(attempt(paged_attention_problem, cpu)) or "depend" in str(
        attempt(paged_attention_problem, cpu)
    )

    def broken(*args: Any, **options: Any) -> torch.Tensor:
        raise torch.AcceleratorError("CUDA error: no kernel image is available\nmore")

    monkeypatch.setattr("engine.execution.attention.varlen.varlen_attn", broken)
    assert attempt(paged_attention_problem, cpu) == (
        "AcceleratorError: CUDA error: no kernel image is available"
    )


def test_the_kernels_in_triton_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no GPU, in Triton's interpreter; then with a kernel that attends too far."""
    pytest.importorskip("triton", reason="needs triton: pip install -e '.[gpu-tests]'")
    from engine.execution.kernels import launch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check = partial(triton_attention_problem, page_size=8)
    assert attempt(check, device) is None
    attend = launch.attend_prompts
    monkeypatch.setattr(launch, "attend_prompts", lambda *args: attend(*args).flip(0))
    found = attempt(check, device)
    assert found is not None
    assert "off by" in found or "depend" in found


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Everything for real: kernels, the demo model alone and under load, what Ray finds."""
    threads = torch.get_num_threads()
    try:
        assert main(["--json"]) == 0
    finally:
        torch.set_num_threads(threads)
    lines = {line["name"]: line for line in json.loads(capsys.readouterr().out)}
    for name in ("CPU INT4", "CPU INT8", "CPU attention", "CPU equal bytes", "torch"):
        assert lines[name]["status"] == "ok", lines[name]
    assert lines["Ray"]["status"] == "no GPU"


@pytest.mark.gpu
def test_this_machines_gpu() -> None:
    assert main(["--gpu"]) == 0
