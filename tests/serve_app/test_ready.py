"""`python -m serve_app.ready`: says when the server answers."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serve_app.config import REPOSITORY
from serve_app.ready import address_of


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ({"host": "0.0.0.0", "port": 81}, "http://127.0.0.1:81"),
        ({"host": "10.0.0.7"}, "http://10.0.0.7:8000"),
        (None, "http://127.0.0.1:8000"),
    ],
)
def test_the_address(options: dict[str, object] | None, address: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"http_options": options}), encoding="utf-8")
    assert address_of(path) == address


def test_it_says_so(address: str, tmp_path: Path) -> None:
    port = int(address.rsplit(":", 1)[1])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"http_options": {"port": port}}), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "serve_app.ready", path],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"ready: {address}\n"
