"""Runs lm-eval against a real server: ``python -m tests.serve_app.clients.evaluation``.

A task of log likelihoods with ``local-completions`` and one of generated texts with
``local-chat-completions``, both unchanged and with data of this folder, so that nothing is
downloaded. What lm-eval has found is compared with what `PlainModel` computes. ``--record`` also
writes its requests to ``recorded.json``, which `test_evaluation` sends again in CI.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serve_app.config.app_args import REPOSITORY
from tests.serve_app.clients.evaluation.plain_model import PlainModel
from tests.serve_app.clients.recorder import Exchange, recording
from tests.serve_app.conftest import running_server

HERE = Path(__file__).parent
MODEL = "demo"
TOLERANCE = 1e-3
"""Of a log likelihood in float32, in nats."""

_TIMEOUT_S = 600


def main() -> int:
    """Run both tasks and print what was compared; 1 if anything differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.serve_app.clients.evaluation")
    parser.add_argument("--environments", type=Path, default=Path(".venv-clients"))
    parser.add_argument("--model", type=Path, default=REPOSITORY / "demo/model")
    parser.add_argument("--record", action="store_true", help="write what lm-eval sends")
    arguments = parser.parse_args()
    directory = arguments.model.absolute()
    lm_eval = arguments.environments.absolute() / "lm_eval/bin/lm_eval"
    plain = PlainModel(directory)
    model = {"id": MODEL, "source": str(directory), "dtype": "float32", "device": "cpu"}
    application = {
        "name": "default",
        "route_prefix": "/",
        "import_path": "serve_app.app:build",
        "args": {"models": [model]},
    }
    failed = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server({"applications": [application]}, Path(folder)) as (server, _),
        recording(server) as (address, recorder),
    ):
        base = f"{address}/lm_eval/v1"
        likelihoods = f"tokenizer={directory},tokenized_requests=True,num_concurrent=2"
        for task, command, compare in (
            (
                "capitals",
                ["local-completions", "completions", f",{likelihoods}", "--batch_size", "4"],
                _compare_likelihoods,
            ),
            (
                "counting",
                ["local-chat-completions", "chat/completions", "", "--apply_chat_template"],
                _compare_texts,
            ),
        ):
            kind, path, more, *flags = command
            started = time.monotonic()
            samples = _samples(
                [
                    *(str(lm_eval), "run", "--model", kind, "--tasks", task),
                    *("--model_args", f"model={MODEL},base_url={base}/{path}{more}"),
                    *("--include_path", str(HERE), *flags),
                ],
                Path(folder) / task,
            )
            seconds = time.monotonic() - started
            differing, said = compare(plain, samples)
            failed += differing
            print(f"{kind}, {task}: {said}; {seconds:.1f} s", flush=True)
        exchanges = recorder.exchanges["lm_eval"]
        refused = [each for each in exchanges if each.error is not None]
        print(f"{len(exchanges)} requests, {len(refused)} refused")
        for each in refused:
            print(f"    {each.path}: {each.status} {each.error}")
        if arguments.record and not failed:
            _write(exchanges)
    return bool(failed)


def _samples(command: list[str], folder: Path) -> list[dict[str, Any]]:
    """Run lm-eval; each document with what was asked for it and what came back."""
    done = subprocess.run(
        [*command, "--output_path", str(folder), "--log_samples"],
        cwd=HERE,  # the data are named from here
        env=os.environ | {"HF_HOME": str(folder / "cache"), "OPENAI_API_KEY": "none"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_TIMEOUT_S,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout)
    (path,) = folder.rglob("samples_*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _asked(sample: dict[str, Any]) -> Iterator[tuple[Any, Any, Any]]:
    """The two arguments of each request of a document, and its answer."""
    for arguments, answers in zip(sample["arguments"].values(), sample["resps"], strict=True):
        yield arguments["arg_0"], arguments["arg_1"], answers[0]


def _compare_likelihoods(plain: PlainModel, samples: list[dict[str, Any]]) -> tuple[int, str]:
    differing, count, largest = 0, 0, 0.0
    for sample in samples:
        for context, continuation, (found, is_greedy) in _asked(sample):
            start = len(plain.encode(context))
            listed = plain.logprobs(plain.encode(context + continuation))[start - 1 :]
            difference = abs(float(found) - sum(own for own, _ in listed))
            greedy = all(own == most for own, most in listed)
            differing += difference > TOLERANCE or str(is_greedy) != str(greedy)
            count, largest = count + 1, max(largest, difference)
    return differing, f"{count} log likelihoods, {differing} differ, by at most {largest:.1e}"


def _compare_texts(plain: PlainModel, samples: list[dict[str, Any]]) -> tuple[int, str]:
    differing, count = 0, 0
    for sample in samples:
        for (messages,), settings, found in _asked(sample):
            wanted = plain.answer(json.loads(messages), settings["max_gen_toks"], settings["until"])
            differing += found != wanted
            count += 1
    return differing, f"{count} texts, {differing} differ"


def _write(exchanges: list[Exchange]) -> None:
    pins = (HERE.parent / "requirements/lm_eval.txt").read_text(encoding="utf-8")
    (version,) = (line[9:] for line in pins.splitlines() if line.startswith("lm-eval=="))
    requests = [{"path": e.path, "body": e.body} for e in exchanges if e.error is None]
    lines = sorted(json.dumps(each) for each in requests)  # several are sent at a time
    text = f'{{"version": "{version}", "requests": [\n' + ",\n".join(lines) + "\n]}\n"
    (HERE / "recorded.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
