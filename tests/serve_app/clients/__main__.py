"""Runs the clients' hello-worlds against a server: ``python -m tests.serve_app.clients``.

Each script in ``hello/`` is what a newcomer writes with one framework: an agent with a tool. It
runs in its own environment (``make test-clients`` builds them) against a real server with the model
of `weather_model`, and fails unless the tool was called and an answer came. ``--record`` also
writes what the frameworks have sent to ``recorded/``, which `test_recorded` sends again in CI.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.serve_app.clients.frameworks import FRAMEWORKS, Framework
from tests.serve_app.clients.recorded import write
from tests.serve_app.clients.recorder import Exchange, recording
from tests.serve_app.clients.weather_model import MODEL, weather_server

_TIMEOUT_S = 300
_SHOWN_LINES = 6


def main() -> int:
    """Run them and print a table; 1 if any has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.serve_app.clients", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these frameworks")
    parser.add_argument("--environments", type=Path, default=Path(".venv-clients"))
    parser.add_argument("--record", action="store_true", help="write what they send")
    arguments = parser.parse_args()
    known = {framework.name: framework for framework in FRAMEWORKS}
    if unknown := sorted(set(arguments.names) - known.keys()):
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [known[name] for name in arguments.names] or list(FRAMEWORKS)
    failed = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        weather_server(Path(folder)) as server,
        recording(server) as (address, recorder),
    ):
        for framework in chosen:
            problem = _run(framework, address, arguments.environments.absolute())
            exchanges = recorder.exchanges.get(framework.name, [])
            failed += problem is not None
            result = f"{len(exchanges)} requests" if problem is None else "FAILED"
            print(f"{framework.title:<20} {framework.version:<10} {result}", flush=True)
            for exchange in exchanges:
                if exchange.error is not None:  # some have another way
                    print(f"    {_in_one_line(exchange)}")
            if problem is not None:
                print("    " + "\n    ".join(problem.strip().splitlines()[-_SHOWN_LINES:]))
            elif arguments.record:
                write(framework, exchanges)
    return bool(failed)


def _run(framework: Framework, address: str, environments: Path) -> str | None:
    """What a script wrote if it failed."""
    try:
        done = subprocess.run(
            framework.command(environments),
            env=os.environ | {"BASE_URL": f"{address}/{framework.name}", "MODEL": MODEL},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_S,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it took longer than {_TIMEOUT_S} s"
    return done.stdout if done.returncode else None


def _in_one_line(exchange: Exchange) -> str:
    return f"{exchange.method} {exchange.path}: {exchange.status} {exchange.error}"


if __name__ == "__main__":
    sys.exit(main())
