"""``python -m serve_app.status [serve_config.yaml]``: what a running server does now, as a table.

It only uses ``GET /v1/models``. Exit status: 0 if all models that are always on run, 1 if the
server cannot be asked, 2 for wrong arguments, 3 if replicas are missing or cannot load.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from schema.model_variant import ModelVariant
from serve_app.ready import address_of

TIMEOUT_S = 30.0
KEY_VARIABLE = "API_KEY"
HERE = Path("serve_config.yaml")
DEFAULT_ADDRESS = "http://127.0.0.1:8000"

_OUTCOMES = ("finished", "refused", "failed", "cancelled")
_HEADS = (
    *("model", "deployment", "replicas", "running", "waiting", *_OUTCOMES),
    *("tokens/s", "tokens", "KV used", "prefix hits", "guesses right", "images", "adapters"),
    "loaded in",
)
CLEAR = "\x1b[H\x1b[2J"
_RIGHT = 2
"""Columns from this one on are numbers and stand at the right."""


@dataclass(frozen=True)
class Command:
    """A command that asks a running server, and how it shows the answer.

    Attributes:
        prog: how it is called, for ``--help``.
        description: for ``--help``.
        failure: the first words of the message if the server cannot be asked.
        report: text for an answer and, if the server is watched, the answer before it.
        problems: a line of text for each problem; if there is one, the exit status is 3.
        watches: whether it can ask repeatedly.
    """

    prog: str
    description: str | None
    failure: str
    report: Callable[[Sample, Sample | None], str]
    problems: Callable[[Sequence[dict[str, Any]]], list[str]]
    watches: bool


def main(arguments: list[str] | None = None, prog: str = "python -m serve_app.status") -> int:
    """Ask the server and print, once or repeatedly; returns the last exit status."""
    command = Command(prog, __doc__, "no status", report, problems, watches=True)
    return run(command, arguments)


def run(command: Command, arguments: list[str] | None) -> int:
    """Ask the server and print; returns the last exit status."""
    options = _parser(command).parse_args(arguments)
    status = 0
    try:
        for status, said in _answers(command, options):
            print(said, file=sys.stderr if status == 1 else sys.stdout, flush=True)
    except KeyboardInterrupt:
        print()
    return status


def _parser(command: Command) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=command.prog, description=command.description)
    parser.add_argument(
        "config", type=Path, nargs="?", help=f"by default ./{HERE}, if there is one"
    )
    parser.add_argument("--address", help="such as http://127.0.0.1:8000; else from CONFIG")
    parser.add_argument(
        "--key",
        default=os.environ.get(KEY_VARIABLE),
        help=f"for a server with keys; better set it in the environment, as {KEY_VARIABLE}: other "
        "users of this machine can read arguments",
    )
    parser.add_argument("--json", action="store_true", help="the answer of GET /v1/models itself")
    parser.set_defaults(watch=None, times=None)
    if command.watches:
        parser.add_argument(
            *("--watch", "-w"),
            nargs="?",
            type=_seconds,
            const=2.0,
            metavar="SECONDS",
            help="ask again every SECONDS (2 if not given), until Ctrl-C",
        )
        parser.add_argument("--times", type=int, help="with --watch: how often to ask")
    return parser


def _seconds(text: str) -> float:
    if not 0.1 <= (seconds := float(text)) <= 3600:
        raise argparse.ArgumentTypeError("between 0.1 and 3600 seconds")
    return seconds


def _answers(command: Command, options: argparse.Namespace) -> Iterator[tuple[int, str]]:
    """An exit status and a text for each time that the server is asked."""
    before: Sample | None = None
    clear = CLEAR if options.watch and sys.stdout.isatty() and not options.json else ""
    left = options.times or (-1 if options.watch else 1)
    while True:
        try:
            now = Sample(_models_of(options))
        except (OSError, http.client.HTTPException, ValueError) as error:
            yield 1, f"{command.failure}: {error}"
            before = None
        else:
            status = 3 if command.problems(now.models) else 0
            if options.json:
                yield status, json.dumps(now.listed, indent=None if options.watch else 2)
            else:
                yield status, clear + command.report(now, before)
            before = now
        left -= 1
        if not left:
            return
        time.sleep(options.watch or 2.0)


def _models_of(options: argparse.Namespace) -> dict[str, Any]:
    """The answer of ``GET /v1/models`` of the server that the arguments name.

    Raises:
        ValueError: the address is not valid, the key is refused, or another program answers.
        OSError, http.client.HTTPException: there is no answer.
    """
    if options.address is None and "//" in str(options.config).replace(":/", "://"):
        raise ValueError(f"{options.config} is not a file; use --address for the server's address")
    config = options.config or (HERE if HERE.exists() else None)
    address = options.address or (address_of(config) if config else DEFAULT_ADDRESS)
    url = urlsplit(address if "//" in address else f"//{address}")
    if url.scheme not in ("", "http") or url.hostname is None:
        raise ValueError(f"{address!r} is not an address such as http://127.0.0.1:8000")
    if options.key and not (options.key.isascii() and options.key.isprintable()):
        raise ValueError("the key has characters that are not allowed in a key")
    connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=TIMEOUT_S)
    headers = {"authorization": f"Bearer {options.key}"} if options.key else {}
    try:
        connection.request("GET", f"{url.path.rstrip('/')}/v1/models", headers=headers)
        response = connection.getresponse()
        body = response.read()
    except ConnectionRefusedError:
        raise ValueError(f"no answer from {address}; --address names another server") from None
    finally:
        connection.close()
    if response.status == http.HTTPStatus.UNAUTHORIZED:
        raise ValueError(f"{address} needs a key, or another one: --key or {KEY_VARIABLE}")
    try:
        listed = json.loads(body) if response.status == http.HTTPStatus.OK else None
    except ValueError:
        listed = None
    if not isinstance(listed, dict) or not isinstance(listed.get("data"), list):
        raise ValueError(f"{address} answers {response.status} and is not this server")
    return listed


@dataclass(frozen=True)
class Sample:
    """What ``GET /v1/models`` answered, and when."""

    listed: dict[str, Any]
    at: float = field(default_factory=time.monotonic)

    @property
    def models(self) -> list[dict[str, Any]]:
        """The variants of all models, each with its model's id and its replicas.

        Adapters are not among them: they run in the replicas of their models.
        """
        return [
            {"id": model["id"], **variant}
            for model in self.listed["data"]
            for variant in model["variants"]
            if "parent" not in model
        ]

    def counted(self, name: str) -> dict[tuple[str, str, str], int]:
        """A count of each replica, by deployment, model and replica."""
        return {
            (model["deployment"], title(model), replica["replica"]): replica["load"][name]
            for model in self.models
            for replica in model["replicas"]
            if "load" in replica
        }


def report(now: Sample, before: Sample | None = None) -> str:
    """The table, the counts of answers to clients, and what is wrong."""
    rows = [_HEADS, *(_row(model, now, before) for model in now.models)]
    parts = [_table(rows), _requests(now.listed["ingress"])]
    if wrong := problems(now.models):
        parts.append("\n".join(wrong))
    return "\n\n".join(parts)


def problems(models: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each model that should run and does not, or that cannot be loaded."""
    lines = []
    for model in models:
        name = f"{title(model)}, {model['deployment']}"
        running = [replica for replica in model["replicas"] if "load" in replica]
        problem = model.get("problem")
        errors = [r["error"]["message"] for r in model["replicas"] if "error" in r]
        lines += [f"{name}: cannot load: {message}" for message in dict.fromkeys(errors)]
        if len(running) < model["min_replicas"]:
            missing = f"{name}: {len(running)} of {model['min_replicas']} replicas answer"
            lines.append(missing + (f": {problem}" if problem else ""))
        elif problem:
            lines.append(f"{name}: {problem}")
    return lines


def title(model: dict[str, Any]) -> str:
    """A model and its variant, as both commands write them."""
    return str(ModelVariant.of(model))


def _row(model: dict[str, Any], now: Sample, before: Sample | None) -> tuple[str, ...]:
    replicas = [replica for replica in model["replicas"] if "load" in replica]
    most = model["max_replicas"]
    head = (title(model), model["deployment"], f"{len(replicas)}/{most}")
    if not replicas:
        return (*head, *[""] * (len(_HEADS) - len(head)))

    def total(part: str, name: str) -> int:
        return sum(replica[part][name] for replica in replicas)

    pages, prompts = total("load", "kv_pages"), total("load", "prompt_tokens")
    held = pages - total("load", "kv_pages_free") - total("load", "kv_pages_kept")
    again = total("load", "images_reused")
    images = total("load", "images_encoded") + again
    return (
        *head,
        f"{total('load', 'running')} ({total('load', 'running_sequences')})",
        str(total("load", "waiting")),
        *(str(total("tasks", outcome)) for outcome in _OUTCOMES),
        _rate(model, now, before),
        str(total("load", "generated_tokens")),
        _share(held, pages),
        _share(total("load", "prefix_tokens_reused"), prompts),
        _share(total("load", "drafts_accepted"), total("load", "drafts_proposed")),
        f"{images} ({again} again)",
        f"{total('load', 'adapters_loaded')} ({total('load', 'adapter_loads')} loads)",
        f"{max(replica['load_seconds'] for replica in replicas):.1f} s",
    )


def _rate(model: dict[str, Any], now: Sample, before: Sample | None) -> str:
    """Generated tokens a second since ``before``, of the replicas that are in both samples."""
    if before is None:
        return "-"
    last = before.counted("generated_tokens")
    grown = sum(
        count - last.get(replica, count)
        for replica, count in now.counted("generated_tokens").items()
        if replica[:2] == (model["deployment"], title(model))
    )
    return f"{grown / (now.at - before.at):.1f}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < _RIGHT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _requests(ingress: dict[str, Any]) -> str:
    """Answers by code, and replays, as the ingress that answered has counted since its start."""
    lines = [f"answered by ingress {ingress['replica']}:"]
    for deployment, codes in ingress["requests"].items():
        counts = [f"{code} {count}" for code, count in codes.items()]
        counts.append(f"replays {ingress['replays'].get(deployment, 0)}")
        lines.append(f"  {deployment or 'no model'}: {', '.join(counts)}")
    if len(lines) == 1:
        lines.append("  nothing yet")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
