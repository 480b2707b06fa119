"""Gathers what a GPU machine without a network lacks: ``python -m cluster.gpu_day.wheels``.

This project, and the packages that the engine needs beside a CUDA build of torch (which brings
triton, and usually numba), as wheels for that machine's Python: some 30 MB. Of bitsandbytes, which
has a library of its own for each version of CUDA, only one stays. There:

    python3 -m pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=site python3 -m cluster.gpu_day --out results

Run it in a checkout of the project.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

PACKAGES = (
    "annotated-types",
    "bitsandbytes",
    "cachetools",
    "cffi",
    "cryptography",
    "gguf",
    "huggingface_hub",
    "llguidance",
    "pycparser",
    "pydantic",
    "pydantic_core",
    "rfc8785",
    "transformers",
    "typing-inspection",
)
_CUT = "bitsandbytes"
_LIBRARY = "libbitsandbytes_"
_GLIBC = range(5, 40)  # of the manylinux platforms, which pip wants one by one


def cut(wheel: Path, cuda: str) -> None:
    """Take the libraries for all devices but the CPU and one version of CUDA out of a wheel.

    Args:
        wheel: of bitsandbytes; it is rewritten.
        cuda: the version without its point, such as 130.

    Raises:
        ValueError: the wheel has no library for that version.
    """
    stays = {f"{_LIBRARY}cpu.so", f"{_LIBRARY}cuda{cuda}.so"}

    def goes(path: str) -> bool:
        name = path.rpartition("/")[2]
        return name.startswith(_LIBRARY) and name not in stays

    with zipfile.ZipFile(wheel) as source:
        files = [each for each in source.infolist() if not goes(each.filename)]
        if not stays <= {each.filename.rpartition("/")[2] for each in files}:
            raise ValueError(f"{wheel.name} has no {_LIBRARY}cuda{cuda}.so")
        contents = {each: source.read(each) for each in files}
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as target:
        for each, content in contents.items():
            if each.filename.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                kept = (line for line in lines if not goes(line.partition(",")[0]))
                content = "".join(kept).encode()
            target.writestr(each, content)


def gather(out: Path, python: str, cuda: str, packages: Sequence[str]) -> list[Path]:
    """Put the wheels into a folder, which is made. Takes the versions of constraints.txt."""
    out.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in reversed(_GLIBC)]
    platforms.append("--platform=manylinux2014_x86_64")
    for_there = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    constraints = ["-c", str(REPOSITORY / "constraints.txt")]
    download = [*pip, "download", "--quiet", "--no-deps", *for_there, *platforms, *constraints]
    subprocess.run([*download, "-d", str(out), *packages], check=True)
    with tempfile.TemporaryDirectory() as build:  # setuptools leaves its files in a source tree
        subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), build], check=True)
        wheel = [*pip, "wheel", "--quiet", "--no-deps", "-w", str(out), build]
        subprocess.run(wheel, check=True)
    for each in out.glob(f"{_CUT}-*.whl"):
        cut(each, cuda)
    return sorted(out.glob("*.whl"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Gather the wheels."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.gpu_day.wheels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("wheels"), help="the folder: wheels")
    parser.add_argument("--python", default="3.12", help="of that machine: 3.12")
    parser.add_argument("--cuda", default="130", help="of its torch, without the point: 130")
    parser.add_argument("--packages", nargs="*", default=PACKAGES, help="which it lacks")
    options = parser.parse_args(arguments)
    found = gather(options.out, options.python, options.cuda, options.packages)
    for wheel in found:
        print(f"{wheel.stat().st_size / 1e6:7.1f} MB  {wheel.name}")
    print(f"{sum(wheel.stat().st_size for wheel in found) / 1e6:7.1f} MB in {options.out}")


if __name__ == "__main__":
    main()
