"""The day on a GPU: its proofs on a CPU, and what becomes of those that fail, crash and hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from cluster.gpu_day import ledger
from cluster.gpu_day.__main__ import main
from cluster.gpu_day.claim import Bench, Claim, Found, NotHereError, NotShownError, Result
from cluster.gpu_day.claims import CLAIMS
from cluster.gpu_day.day import result_of, tried
from cluster.gpu_day.wheels import cut

CUDA_ONLY = {"graphs", "launches", "memory", "layers", "tensors"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench("cpu", tmp_path_factory.mktemp("gpu-day"), small=True)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_a_dry_run_of_each_proof(claim: Claim, bench: Bench) -> None:
    result = result_of(claim, bench)
    if claim.name in CUDA_ONLY:
        assert (result.status, result.reason) == ("not here", "needs CUDA")
    else:
        assert (result.status, result.reason) == ("shown", "")
        assert result.found


# --- Proofs that do not end well; other processes find them by this module's name ----------------


def holds(bench: Bench) -> Found:
    return {"folder": bench.folder.name}


def does_not_hold(bench: Bench) -> Found:
    raise NotShownError("2 of 16 differ")


def is_not_for_here(bench: Bench) -> Found:
    raise NotHereError("needs two GPUs")


def raises(bench: Bench) -> Found:
    raise RuntimeError("no kernel image")


def crashes(bench: Bench) -> Found:
    sys.stderr.write("illegal memory access")
    sys.stderr.flush()
    os._exit(3)


def hangs(bench: Bench) -> Found:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (bench.folder / "child").write_text(str(child.pid))
    sys.stderr.write("it waits")
    sys.stderr.flush()
    time.sleep(600)
    return {}


def made_up(*proofs: str, limit_s: float = 60.0) -> list[Claim]:
    return [Claim(name, f"it {name}", f"{__name__}:{name}", limit_s) for name in proofs]


def test_a_proof_that_ends_badly_costs_its_own_row(tmp_path: Path) -> None:
    bad = ("does_not_hold", "is_not_for_here", "raises", "crashes")
    results = list(tried(made_up(*bad, "holds"), Bench("cpu", tmp_path), 300))
    assert [(result.status, result.reason) for result in results] == [
        ("not shown", "2 of 16 differ"),
        ("not here", "needs two GPUs"),
        ("failed", "RuntimeError: no kernel image"),
        ("failed", "the process ended with status 3: illegal memory access"),
        ("shown", ""),
    ]
    assert results[-1].found == {"folder": tmp_path.name}


def test_a_proof_that_hangs_is_ended_with_what_it_has_started(tmp_path: Path) -> None:
    bench = Bench("cpu", tmp_path)
    (result,) = tried(made_up("hangs", limit_s=15), bench, 300)
    assert result.status == "too slow"
    assert "it waits" in result.reason
    child = int((tmp_path / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"


def test_no_claim_is_begun_when_the_time_is_over(tmp_path: Path) -> None:
    (result,) = tried(made_up("holds"), Bench("cpu", tmp_path), total_s=1)
    assert (result.status, result.reason) == ("not tried", "no time was left")


def test_the_command_writes_json_and_the_table(tmp_path: Path) -> None:
    command = ["--out", str(tmp_path), "--device", "cpu", "--small", "--only", "kernels", "graphs"]
    assert main(command) == 0
    written = json.loads((tmp_path / "gpu-day.json").read_text())
    assert [each["status"] for each in written["claims"]] == ["shown", "not here"]
    assert written["machine"]["torch"]
    rows = [line for line in (tmp_path / "gpu-day.md").read_text().splitlines() if line[:1] == "|"]
    assert len(rows) == 4
    assert "**not here**: needs CUDA" in rows[-1]


def test_a_cell_of_the_table_is_one_line_and_one_cell() -> None:
    result = Result("x", "claim", "failed", "a | b\nc")
    assert ledger.table({}, [result]).splitlines()[-1] == r"| claim | **failed**: a \| b c | 0 |"


def test_a_machine_without_a_gpu_is_told_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "--device cpu" in capsys.readouterr().err


def test_a_wheel_is_cut_to_one_version_of_cuda(tmp_path: Path) -> None:
    wheel = tmp_path / "bitsandbytes-1.0-py3-none-any.whl"
    libraries = [
        f"bitsandbytes/libbitsandbytes_{name}.so" for name in ("cpu", "cuda128", "cuda130")
    ]
    files = ["bitsandbytes/__init__.py", *libraries]
    record = "bitsandbytes-1.0.dist-info/RECORD"
    with zipfile.ZipFile(wheel, "w") as made:
        for name in files:
            made.writestr(name, name)
        made.writestr(record, "".join(f"{name},sha256=x,1\n" for name in files))
    with pytest.raises(ValueError, match="cuda129"):
        cut(wheel, "129")
    cut(wheel, "130")
    stays = [name for name in files if "128" not in name]
    with zipfile.ZipFile(wheel) as found:
        assert found.namelist() == [*stays, record]
        assert [line.split(",")[0] for line in found.read(record).decode().splitlines()] == stays
        assert found.read(libraries[2]).decode() == libraries[2]
