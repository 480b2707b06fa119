"""What is installed: the wheel has all files, its command works, serving needs no test tools."""

import ast
import importlib.metadata
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parent.parent
PRODUCT = ("schema", "engine", "serve_app", "cluster", "gpt_task", "gpt_task_serve", "demo")
OF_TORCH_FOR_CUDA = {"triton"}  # without it the kernels are not used
COMMANDS = ("serve", "check", "doctor", "plan", "models", "status")
# What the product reads from its own folders. The rest below cluster/ is for people to copy.
DATA = (
    *("schema/published/*.json", "demo/model/*", "demo/images/*", "demo/data/vocabulary/*"),
    *("cluster/grafana/*.json", "gpt_task_serve/*.yaml", "*/py.typed"),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the contents of the wheel, as an installation has them."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for name in filter(None, files):  # a copy, because building leaves folders behind
        if (REPOSITORY / name).is_file() and name.partition("/")[0] in (*PRODUCT, name):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", folder, source),
        ],
        check=True,
    )
    site = folder / "site"
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(site)
    return site


def _run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    empty = installed.parent / "empty"
    empty.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "gpt_task_serve", *arguments],
        cwd=empty,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_wheel_has_the_data_files(installed: Path) -> None:
    wanted = {
        path.relative_to(REPOSITORY)
        for pattern in DATA
        for path in REPOSITORY.glob(pattern)
        if path.relative_to(REPOSITORY).parts[0] in PRODUCT
    }
    assert {path.parts[0] for path in wanted} >= {"schema", "demo", "cluster", "gpt_task_serve"}
    assert [str(path) for path in sorted(wanted) if not (installed / path).is_file()] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_help(installed: Path, command: str) -> None:
    done = _run(installed, command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: gpt-task-serve {command} ")


def test_the_command_lists_its_commands(installed: Path) -> None:
    assert all(f"  {command} " in _run(installed).stdout for command in COMMANDS)
    wrong = _run(installed, "serv")
    assert (wrong.returncode, "serve, check" in wrong.stderr) == (2, True)


def test_the_configuration_that_is_built_in_is_right_and_names_the_installed_model(
    installed: Path,
) -> None:
    done = _run(installed, "check", str(installed / "gpt_task_serve/default.yaml"))
    assert done.returncode == 0, done.stderr
    assert f"from {installed / 'demo/model'}, float32" in done.stdout


def test_the_wheel_names_the_command(installed: Path) -> None:
    entry_points = next(installed.glob("*.dist-info")) / "entry_points.txt"
    assert "gpt-task-serve = gpt_task_serve.__main__:main" in entry_points.read_text()


def test_serving_needs_nothing_but_its_own_dependencies() -> None:
    """`make serve` does not install what only tests need."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = _closure(project["dependencies"] + project["optional-dependencies"]["ui"])
    distributions = importlib.metadata.packages_distributions()
    found = {
        name.partition(".")[0]
        for part in PRODUCT
        for path in (REPOSITORY / part).rglob("*.py")
        for name in _imported(path)
    }
    missing = {
        name
        for name in found - sys.stdlib_module_names - set(PRODUCT) - OF_TORCH_FOR_CUDA
        if not {canonicalize_name(each) for each in distributions.get(name, [])} & required
    }
    assert missing == set()


def _closure(lines: list[str]) -> set[str]:
    """The distributions that these requirements install, with all that those need in turn."""
    found: set[str] = set()
    waiting = [Requirement(line) for line in lines]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in found and not wanted.extras:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or []:
            inner = Requirement(line)
            if inner.marker is None or any(
                inner.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)
            ):
                waiting.append(inner)
    return found


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
