"""`schema <- engine <- serve_app`, nothing imports the leaves: the architecture page, checked."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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


def test_the_ingress_loads_no_torch() -> None:
    """It would cost every ingress process seconds and hundreds of megabytes."""
    code = "import sys, serve_app.ingress; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


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
