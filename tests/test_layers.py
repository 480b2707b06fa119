"""`schema <- engine <- serve_app`, nothing imports the leaves: the architecture page, checked."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import engine

REPOSITORY = Path(__file__).parent.parent

TRANSPORT = {"ray", "fastapi", "starlette", "uvicorn"}
LEAVES = {"cluster", "gpt_task", "demo", "tests", "benchmarks"}
FORBIDDEN = {
    "schema": {"engine", "serve_app", "torch", "transformers"} | TRANSPORT | LEAVES,
    "engine": {"serve_app"} | TRANSPORT | LEAVES,
    "serve_app": LEAVES,
    "cluster": LEAVES - {"cluster"},
    "gpt_task": {"serve_app"} | TRANSPORT | (LEAVES - {"gpt_task"}),
    "demo": {"serve_app", "cluster", "gpt_task", "tests", "benchmarks"} | TRANSPORT,
}


def _imports(path: Path) -> Iterator[str]:
    """The top-level packages that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        for name in _imports(path)
        if name in FORBIDDEN[package]
    ]
    assert wrong == []


def test_only_processes_that_compute_load_torch() -> None:
    """It would cost every ingress seconds and hundreds of megabytes; and nothing can start before
    the process has ended that parses the configuration and builds the graph of all classes.
    """
    code = (
        "import sys, serve_app.app, serve_app.config as config; "
        "config.AppArgs.model_validate({'models': [{'id': 'a/b', 'min_replicas': 0}]}); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_the_engine_has_the_names_that_it_lists() -> None:
    """Some are imported only when they are asked for."""
    assert [name for name in engine.__all__ if not callable(getattr(engine, name))] == []
    assert not hasattr(engine, "another")


def test_the_architecture_page_names_files_that_exist() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = ""
    missing = []
    for line in page.splitlines():
        if heading := re.fullmatch(r"## (\w+)/", line):
            section = heading[1]
        # Table rows and list items begin with the file that they describe.
        if (entry := re.match(r"[|*] `([\w./]+\.py)`", line)) and section:
            path = REPOSITORY / section / entry[1]
            if not path.is_file():
                missing.append(f"{section}/{entry[1]}")
    assert missing == []
