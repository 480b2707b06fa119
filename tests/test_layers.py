"""Who may import whom: the table of all packages, and that the code keeps to it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import engine

REPOSITORY = Path(__file__).parent.parent

# The packages from the top to the bottom: each imports what its line names and nothing else, and
# only what is further down. ".x" is a package of the same tree. A sub-package is a line of its own;
# it and the package around it may import each other, as long as their files form no circle.
# The files beside the packages of engine/ and serve_app/ are lines of their own too: some of them
# are above all packages, and the engine's configuration is below.
ARROWS = """
gpt_task_serve             > serve_app.check serve_app.ready serve_app.config serve_app.http

cluster                    > .hardware .planning serve_app.check serve_app.observability
                             serve_app.config
cluster.gpu_day            > .hardware demo engine engine.core engine.platform schema
                             schema.answers
cluster.hardware           > .planning serve_app.config engine engine.execution
                             engine.execution.attention engine.requests engine.platform schema
cluster.planning           > serve_app.app serve_app.config engine.loading engine.loading.sharding
                             engine.platform engine.quantization schema

demo                       > .training .data
demo.training              > .data
demo.data                  >

gpt_task.inference         > gpt_task .cache .models engine engine.platform schema
                             schema.validation schema.answers
gpt_task.receipts          > schema schema.answers schema.clients.openai
gpt_task                   > schema
gpt_task.cache             >
gpt_task.models            > schema schema.answers

serve_app.check            > .ui .http.middleware .http.receipts .config
                             engine.loading.adapters engine.loading.quantized schema
                             schema.validation
serve_app.ui               > .config schema schema.validation
serve_app.models           > .status schema
serve_app.status           > .ready schema
serve_app.ready            >
serve_app.app              > .http .http.middleware .replicas .config
serve_app.http             > .http.clients.openai .http.clients.responses .http.clients.anthropic
                             .http.description .http.middleware .http.receipts .graph
                             .observability .config
                             .protocol schema schema.published schema.answers
serve_app.http.clients     > .http .http.receipts .graph .observability schema schema.clients
                             schema.answers
serve_app.http.clients.openai    > .http .http.clients .http.receipts .graph .observability
                                   .protocol schema schema.clients.openai schema.answers
serve_app.http.clients.responses > .http .http.clients .http.receipts .graph schema schema.clients
                                   schema.clients.responses schema.answers
serve_app.http.clients.anthropic > .http .http.clients .http.receipts .graph schema
                                   schema.clients.anthropic schema.answers
serve_app.http.description > .http .config schema schema.published
serve_app.http.receipts    > .http .config schema schema.answers
serve_app.http.middleware  > .http .observability .config .protocol schema
serve_app.graph            > .observability .config .protocol schema schema.answers
serve_app.replicas         > .replicas.images .observability .config .protocol engine.engine
                             engine.parallel engine.vision engine.loading engine.loading.reading
                             engine.config schema schema.answers
serve_app.replicas.images  > .config schema
serve_app.observability    > .config engine.engine schema schema.answers
serve_app.config           > engine.config schema schema.validation
serve_app.protocol         > schema schema.answers

engine                     > .engine .vision .platform .config
engine.engine              > .core .parallel .requests .requests.verification .vision .config
                             schema schema.answers
engine.core                > .core.scheduling .core.speculation .parallel .execution
                             .execution.modules .requests .sampling .sampling.draws
                             .loading .loading.sharding .text .vision .platform .config schema
engine.core.scheduling     > .execution .execution.modules .execution.modules.recurrence
                             .requests schema
engine.core.speculation    > .execution .requests
engine.parallel            > .execution .execution.attention .loading .platform .config schema
engine.execution           > .execution.attention .execution.modules
                             .execution.modules.compiled_layers .execution.modules.recurrence
                             .execution.measuring .requests .vision .sampling .loading
                             .loading.adapters .platform .config .quantization schema
engine.execution.measuring > .execution .execution.attention .execution.modules
                             .execution.modules.compiled_layers .loading .loading.families
                             .platform .requests .vision .config schema
engine.execution.modules.compiled_layers > .execution .execution.attention .execution.modules
engine.execution.attention > .execution .execution.kernels .requests .platform
engine.execution.kernels   >
engine.execution.modules   > .execution .requests .loading.adapters .platform .quantization
engine.execution.modules.recurrence > .requests .platform
engine.requests            > .requests.template .requests.verification .vision .sampling
                             .sampling.draws .loading .loading.adapters .loading.families .text
                             .text.tool_calls .config schema schema.answers
engine.requests.template   > .text schema
engine.requests.verification > schema schema.answers
engine.vision              > .loading .loading.families .config schema
engine.sampling            > .sampling.draws .sampling.json_schema .text .platform schema
                             schema.answers
engine.sampling.draws      > .platform
engine.sampling.json_schema > schema
engine.loading             > .loading.adapters .loading.families .loading.quantized
                             .loading.reading .loading.sharding .platform .config .quantization
                             schema
engine.loading.adapters    > .loading .config schema
engine.loading.reading     > .config schema
engine.loading.sharding    > .loading .platform .config schema
engine.loading.quantized   > .loading.families .config .quantization schema
engine.loading.families    > .config schema
engine.text                > .text.tool_calls schema schema.answers
engine.text.tool_calls     > .text schema
engine.platform            > schema
engine.config              > .quantization schema schema.validation
engine.quantization        > schema

schema                     > .published .validation .answers
schema.published           > .clients.openai .clients.responses .clients.anthropic schema
                             schema.answers
schema.clients.anthropic   > .clients schema
schema.clients.responses   > .clients .clients.openai schema
schema.clients.openai      > .clients .validation schema
schema.clients             > schema .validation
schema.answers             > schema .validation
schema.validation          > schema
"""

MAX_ENTRIES = 12

PRODUCT = ("gpt_task_serve", "cluster", "demo", "gpt_task", "serve_app", "engine", "schema")
FILES_ARE_LINES = {"engine", "serve_app"}
NO_ENTRIES = {"__init__.py", "__main__.py", "py.typed", "__pycache__"}
DATA = {"demo/data/vocabulary", "demo/images", "demo/model"}

PAGES = ("docs/architecture.md", "docs/engine.md", "docs/graph.md", "CONTRIBUTING.md")

TRANSPORT = {"ray", "fastapi", "starlette", "uvicorn"}
LEAVES = {"gpt_task_serve", "cluster", "gpt_task", "demo", "tests", "benchmarks"}
FORBIDDEN = {
    "schema": {"engine", "serve_app", "torch", "transformers"} | TRANSPORT | LEAVES,
    "engine": {"serve_app"} | TRANSPORT | LEAVES,
    "serve_app": LEAVES,
    "cluster": LEAVES - {"cluster", "demo"},
    "gpt_task": {"serve_app"} | TRANSPORT | (LEAVES - {"gpt_task"}),
    "demo": {"serve_app", "gpt_task_serve", "cluster", "gpt_task", "tests", "benchmarks"}
    | TRANSPORT,
}

MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path
    for part in PRODUCT
    for path in sorted((REPOSITORY / part).rglob("*.py"))
}
"""The files of the product by their modules' names, which end with __init__ for packages."""


def _python_files() -> Iterator[Path]:
    for part in (*PRODUCT, "tests", "benchmarks", "examples"):
        yield from (REPOSITORY / part).rglob("*.py")


class Import(NamedTuple):
    """One module of the product that another one imports."""

    importer: str
    imported: str

    @property
    def arrow(self) -> tuple[str, str]:
        """The lines of the table to which the two belong."""
        return _line_of(self.importer), _line_of(self.imported)

    def __str__(self) -> str:
        return f"{MODULES[self.importer].relative_to(REPOSITORY)} imports {self.imported}"


def _line_of(module: str) -> str:
    package, name = module.rsplit(".", 1)
    return module if package in FILES_ARE_LINES and name != "__init__" else package


def _imports(path: Path) -> Iterator[str]:
    """What a file imports, wherever in the file: modules, and names in modules."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module_of(name: str) -> str | None:
    """The module of the product that has a name; None if it is of a library."""
    parent = name.rpartition(".")[0]
    candidates = (name, f"{name}.__init__", parent, f"{parent}.__init__")
    return next((module for module in candidates if module in MODULES), None)


IMPORTS = sorted(
    {
        Import(importer, imported)
        for importer, path in MODULES.items()
        for name in _imports(path)
        if (imported := _module_of(name)) is not None and imported != importer
    }
)
TABLE = {
    source: [source.split(".")[0] + name if name[0] == "." else name for name in names.split()]
    for source, names in re.findall(r"^(\S+) +>(.*(?:\n .*)*)", ARROWS, re.MULTILINE)
}
LISTED = {(source, target) for source, targets in TABLE.items() for target in targets}


def _nested(one: str, other: str) -> bool:
    """Whether one of two packages holds the other."""
    return one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _circle(imports: Iterable[tuple[str, str]]) -> list[str]:
    """Names of which each imports the next, and the last one the first; empty if there are none."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for importer, imported in imports:
        if importer != imported:
            sorter.add(importer, imported)
    try:
        sorter.prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle[::-1]
    return []


def test_packages_import_what_the_table_says() -> None:
    wrong = [
        f"{found}, and the table has no arrow {' > '.join(found.arrow)}"
        for found in IMPORTS
        if found.arrow not in LISTED and found.arrow[0] != found.arrow[1]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_table_has_no_arrow_that_is_not_used() -> None:
    used = {found.arrow for found in IMPORTS}
    assert sorted(LISTED - used) == []


def test_the_table_has_each_package_above_those_that_it_imports() -> None:
    order = list(TABLE)
    upwards = [
        f"{source} > {target}"
        for source, target in sorted(LISTED)
        if order.index(source) >= order.index(target) and not _nested(source, target)
    ]
    assert upwards == []


def test_modules_form_no_circle() -> None:
    """Not even one of imports inside functions, or for type checkers only."""
    circle = _circle(IMPORTS)
    assert not circle, " > ".join(circle)


@pytest.mark.parametrize("folder", sorted({name.rpartition(".")[0] for name in MODULES}))
def test_the_entries_of_a_folder_form_no_circle(folder: str) -> None:
    """An entry is a file, or a package with all that it holds."""
    inside = len(folder) + 1
    entries = [
        (found.importer[inside:].split(".")[0], found.imported[inside:].split(".")[0])
        for found in IMPORTS
        if all(name.startswith(f"{folder}.") for name in found)
    ]
    circle = _circle(entries)
    assert not circle, " > ".join(circle)


def _kept(entry: Path) -> bool:
    """Whether an entry holds more than what Python compiled there, as of a folder that is gone."""
    files = [entry] if entry.is_file() else [file for file in entry.rglob("*") if file.is_file()]
    return any("__pycache__" not in file.parts for file in files)


def test_folders_are_small() -> None:
    folders = [
        folder
        for part in PRODUCT
        for folder in [REPOSITORY / part, *sorted((REPOSITORY / part).rglob("*"))]
        if folder.is_dir() and folder.name != "__pycache__"
    ]
    entries = {
        str(folder.relative_to(REPOSITORY)): {each.name for each in folder.iterdir() if _kept(each)}
        - NO_ENTRIES
        for folder in folders
    }
    full = {name for name, found in entries.items() if len(found) > MAX_ENTRIES} - DATA
    assert full == set()


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        for name in _imports(path)
        if name.split(".")[0] in FORBIDDEN[package]
    ]
    assert wrong == []


def test_only_processes_that_compute_load_torch() -> None:
    """It would cost every ingress seconds and hundreds of megabytes; and nothing can start before
    the process has ended that parses the configuration and builds the graph of all classes, nor
    before the command has checked the file.
    """
    code = (
        "import sys, engine.requests.chunks, serve_app.app, serve_app.config.app_args as config; "
        "import pathlib, gpt_task_serve.serve, serve_app.check as check; "
        "config.AppArgs.model_validate({'models': [{'id': 'a/b', 'min_replicas': 0}]}); "
        "assert not check.check(pathlib.Path('serve_config.yaml'))[1]; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_the_engine_has_the_names_that_it_lists() -> None:
    """Some are imported only when they are asked for."""
    assert [name for name in engine.__all__ if not callable(getattr(engine, name))] == []
    assert not hasattr(engine, "another")


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_files_that_exist(page: str) -> None:
    """Either by the whole path, or by the end of the path of some file of the product."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    files = [f"/{path.relative_to(REPOSITORY)}" for path in _python_files()]
    named = re.findall(r"`([\w./]+\.py)(?:::\w+)?`", text)
    assert named
    assert [name for name in named if not any(file.endswith(f"/{name}") for file in files)] == []
