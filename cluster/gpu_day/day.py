"""Tries claims one after the other, each in a process of its own.

A proof that crashes, hangs or poisons the device costs its own row and no other: its process is
ended with all that it has started.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from cluster.gpu_day.claim import (
    Bench,
    Claim,
    NotHereError,
    NotShownError,
    Proof,
    Result,
)

_LEAST_S = 5.0
"""With less left, another claim is not begun: loading the libraries takes as long."""
_LAST_WORDS = 600  # characters of what a process has said before it ended without a result


def tried(claims: Sequence[Claim], bench: Bench, total_s: float) -> Iterator[Result]:
    """The result of each claim, as soon as it is there; at most ``total_s`` in all."""
    end = time.monotonic() + total_s
    for claim in claims:
        left = end - time.monotonic()
        if left < _LEAST_S:
            yield Result(claim.name, claim.says, "not tried", "no time was left")
        else:
            yield _in_own_process(replace(claim, limit_s=min(claim.limit_s, left)), bench)


def _in_own_process(claim: Claim, bench: Bench) -> Result:
    answer, log = (bench.folder / f"{claim.name}.{kind}" for kind in ("json", "log"))
    answer.unlink(missing_ok=True)
    given = json.dumps(asdict(bench) | {"folder": str(bench.folder)})
    command = [sys.executable, "-m", __name__, json.dumps(asdict(claim)), given, str(answer)]
    begun = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(claim.limit_s)
        except subprocess.TimeoutExpired:
            said = _last_words(log)
            result = Result(claim.name, claim.says, "too slow", f"{claim.limit_s:.0f} s: {said}")
        else:
            result = _read(claim, answer, process.returncode, log)
        finally:
            with suppress(ProcessLookupError):  # what it has started is of its session
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return replace(result, seconds=round(time.monotonic() - begun, 1))


def _read(claim: Claim, answer: Path, status: int, log: Path) -> Result:
    if not answer.exists():
        reason = f"the process ended with status {status}: {_last_words(log)}"
        return Result(claim.name, claim.says, "failed", reason)
    return Result(**json.loads(answer.read_text()))


def _last_words(log: Path) -> str:
    said = log.read_text(errors="replace").strip()[-_LAST_WORDS:]
    return " ".join(said.split()) or "it said nothing"


def result_of(claim: Claim, bench: Bench) -> Result:
    """Try a claim in this process."""
    module, _, function = claim.proof.partition(":")
    try:
        proof: Proof = getattr(importlib.import_module(module), function)
        found = proof(bench)
    except NotShownError as error:
        return Result(claim.name, claim.says, "not shown", str(error))
    except NotHereError as error:
        return Result(claim.name, claim.says, "not here", str(error))
    except Exception as error:  # noqa: BLE001 - any error of a broken installation is the finding
        return Result(claim.name, claim.says, "failed", f"{type(error).__name__}: {error}")
    return Result(claim.name, claim.says, "shown", found=found)


def _main(claim: str, bench: str, answer: str) -> None:
    given = json.loads(bench)
    on = Bench(given["device"], Path(given["folder"]), given["small"])
    result = result_of(Claim(**json.loads(claim)), on)
    Path(answer).write_text(json.dumps(asdict(result)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
