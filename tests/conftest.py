"""What every test needs: the environment of `make test`, also when pytest is started by hand."""

import os

import pytest

# Before torch or ray is imported anywhere: both read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ADDRESS", "local")  # never somebody's running cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what shares servers or models; skip what needs a GPU where there is none."""
    for item in items:
        folder = item.path.parent.name
        # With pytest-xdist: all tests with servers in one process, so that no two run at once.
        name = folder if folder == "serve_app" else item.path.name
        item.add_marker(pytest.mark.xdist_group(f"{folder}/{name}"))
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
