"""The benchmark of starting: what it reads from logs, and the stages of a load."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from benchmarks.loading.load_time import READY, STAGES, load, weights
from benchmarks.loading.startup import MARKS, Start, load_table, marks, start_table
from serve_app.config.app_args import REPOSITORY


def test_when_the_logs_say_that_something_was_there(tmp_path: Path) -> None:
    begun = datetime(2026, 11, 22, 1, 46, 13, 500_000).timestamp()
    server = tmp_path / "server.log"
    server.write_text(
        "2026-11-22 01:46:15,272\tINFO scripts.py:489 -- Running config file: 'config.yaml'.\n"
        "2026-11-22 01:46:21,250\tINFO worker.py:2029 -- Started a local Ray instance.\n"
    )
    replica = tmp_path / "replica_default_Model_demo_float32_7y8cfyev.log"
    replica.write_text(
        "INFO 2026-11-22 01:46:42,000 default_Model 7y -- loading demo on cpu\n"
        "INFO 2026-11-22 01:46:42,500 default_Model 7y -- loaded demo in 0.1 s, 0.01 GiB\n"
        "INFO 2026-11-22 01:47:42,500 default_Model 7y -- loaded demo in 0.1 s, once more\n"
    )
    found = marks([server, replica], begun)
    assert found == {
        "Ray runs": 7.75,
        "replica: libraries imported": 28.5,
        "replica: model loaded": 29.0,
    }
    assert found.keys() < MARKS.keys()
    table = start_table([Start(found, {"replica": 7.0}), Start({"Ray runs": 9.75}, {})])
    assert "8.8 s" in table  # the median of two
    assert "7.0 s" in table


def test_a_load_tells_all_its_stages() -> None:
    demo = REPOSITORY / "demo" / "model"
    assert sum(path.stat().st_size for path in weights(demo)) > 1e6
    found = load(demo, "float32")
    seconds = found["seconds"]
    assert list(seconds) == [*STAGES, READY]
    assert list(seconds.values()) == sorted(seconds.values())
    assert "yes" in load_table([found | {"cold": False, "read_seconds": 0.1}])
