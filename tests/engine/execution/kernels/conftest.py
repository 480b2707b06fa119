"""Where the kernels run: on a GPU, or in Triton's interpreter on the host's tensors."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    pytest.importorskip("triton", reason="needs triton: pip install -e '.[gpu-tests]'")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("there is a driver, but no GPU, and TRITON_INTERPRET=1 is not set")
    return torch.device("cpu")
