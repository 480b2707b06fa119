"""What every test needs: the environment of `make test`, also when pytest is started by hand."""

import logging
import os
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Before torch or ray is imported anywhere: both read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ADDRESS", "local")  # never a running cluster


class Together(LoadScopeScheduling):  # type: ignore[misc]
    """What shares servers or models runs in one process, so that no two servers run at once."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "tests/serve_app" if file.startswith("tests/serve_app/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    """pytest-xdist's own groups (``--dist loadgroup``) have no effect with pytest 9.2."""
    return Together(config, log)


@pytest.fixture(autouse=True)
def _engine_logs_here() -> None:
    """A replica that a test has made in this process sends the engine's log to Ray's."""
    logging.getLogger("engine").parent = logging.getLogger()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
