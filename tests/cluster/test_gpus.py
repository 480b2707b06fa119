"""Types of GPUs, and nodes in the notation of ``--nodes``."""

from __future__ import annotations

import pytest

from cluster.planning.gpus import find_gpu, parse_gpu_type, parse_nodes
from serve_app.config.accelerators import GPU_TYPES, check_accelerator_type


def test_nodes() -> None:
    nodes = parse_nodes("4xRTX5090, 2*8xH100,L4,cpu")
    found = [(node.num_gpus, node.gpu and node.gpu.name) for node in nodes]
    assert found == [(4, "RTX5090"), (8, "H100"), (8, "H100"), (1, "L4"), (0, None)]
    assert len({node.name for node in nodes}) == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("4xRTX5099", "did you mean RTX5090"),
        ("2xQuux", "known are .*H100.*--gpu Quux="),
        ("4x", "is not a node: write 4xRTX5090"),
        ("", "is not a node"),
        ("0xH100", "1 to 10000"),
        ("99*9999xH100", "1 to 10000"),
    ],
)
def test_invalid_nodes(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_nodes(text)


def test_a_type_has_rays_name_too() -> None:
    """What a plan shows can be written into a configuration, and Ray's name finds it."""
    for gpu in GPU_TYPES:
        assert check_accelerator_type(gpu.accelerator_type) == gpu.accelerator_type
        assert find_gpu(gpu.accelerator_type).accelerator_type == gpu.accelerator_type
        assert find_gpu(gpu.name) is gpu


def test_a_type_of_ones_own() -> None:
    own = parse_gpu_type("GeForce-RTX-6090=48:2500.5")
    (node,) = parse_nodes("2xgeforce-rtx-6090", (own,))
    assert node.gpu == own
    assert (own.memory, own.bandwidth_gb_s) == (48 * 2**30, 2500.5)
    with pytest.raises(ValueError, match="NAME=MEMORY_GIB:BANDWIDTH_GB_S"):
        parse_gpu_type("X1=48")
