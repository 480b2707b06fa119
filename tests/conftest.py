"""What every test needs: the environment of `make test`, also when pytest is started by hand."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Before torch or ray is imported anywhere: both read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["GPT_TASK_SERVE_CACHE"] = ""  # tests replace code that measures: every engine measures
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ADDRESS", "local")  # never a running cluster
if not Path("/proc/driver/nvidia/version").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the host


SERVERS = ("tests/serve_app/", "tests/gpt_task_serve/")
# Minutes in few tests: last of all, one of them would run alone while the other process is idle.
LONG = (
    "tests/engine/test_real_weights.py",
    "tests/engine/core/test_batching.py",
    "tests/engine/execution/test_forward_check.py",
    "tests/benchmarks/",
    "tests/gpt_task/",
    "tests/test_packaging.py",
)


class Together(LoadScopeScheduling):  # type: ignore[misc]
    """What shares servers or models runs in one process, so that no two servers run at once."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # what a file takes is not its number of tests

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "servers" if file.startswith(SERVERS) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    """pytest-xdist's own groups (``--dist loadgroup``) have no effect with pytest 9.2."""
    return Together(config, log)


@pytest.fixture(autouse=True)
def _engine_logs_here() -> None:
    """A replica that a test has made in this process sends the engine's log to Ray's."""
    logging.getLogger("engine").parent = logging.getLogger()


def _place(item: pytest.Item) -> int:
    """The place of a test in the order of work: servers, what takes long, all others."""
    if item.nodeid.startswith(SERVERS):
        return 0
    return 1 if item.nodeid.startswith(LONG) else 2


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes long, if tests are shared out; skip those of a GPU without one."""
    if hasattr(config, "workerinput"):  # a process of pytest-xdist
        items.sort(key=_place)
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
