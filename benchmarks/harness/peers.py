"""The servers that are compared: how each is started, and what it can do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transformers.utils.import_utils import is_serve_available

from benchmarks.harness.client import Dialect, Endpoint
from benchmarks.harness.drafts import Drafts, graph_drafts, vllm_drafts
from benchmarks.harness.models import ServedModel
from benchmarks.harness.server import APPLICATION, Server, free_port, running, serving
from benchmarks.harness.server import TUNED as TUNED_ENVIRONMENT

GRAPH = "gpt-task-serve"
TUNED = "gpt-task-serve, tuned mode"
TASKS = "gpt-task-serve, /v1/tasks"
RELAXED = "gpt-task-serve, deterministic: false"
VLLM = "vllm"
VLLM_NGRAM = "vllm, n-gram speculation"
CONTINUOUS = "transformers serve --continuous-batching"
TRANSFORMERS = "transformers serve"
ONE_AT_A_TIME = "generate, one at a time"
ECHO = "ray serve echo"

ECHO_PATH = "benchmarks.serving.echo:build"
_NAME = "bench"
CB_BATCH_TOKENS = 256
CB_PAGE_SIZE = 32
"""Of transformers' continuous batching on a CPU, in its favour: no kernel there wants large pages,
and its attention is dense over all tokens of a step and all of the cache that is in use, so that a
larger step costs more for each token."""
_VLLM_KV_GB = 2
VLLM_NGRAM_SETTINGS: Mapping[str, Any] = {
    "method": "ngram",
    "num_speculative_tokens": 5,
    "prompt_lookup_min": 2,
    "prompt_lookup_max": 4,
}
"""``--speculative-config`` of vLLM. By itself it looks for the last 5 tokens only."""


@dataclass(frozen=True)
class Setup:
    """What all servers of a run are given.

    Attributes:
        folder: for configurations and logs.
        max_clients: the most requests at once; every server may work on all of them.
        context: the longest prompt and answer, in tokens.
        vllm_python: the interpreter of an environment that has vLLM; None if there is none.
        on_gpu: whether there is a GPU.
        engine: further options of this project's engines.
        vllm_ngram: ``--speculative-config`` of the vLLM that speculates.
    """

    model: ServedModel
    folder: Path
    threads: int
    max_clients: int
    context: int
    vllm_python: Path | None
    on_gpu: bool
    engine: Mapping[str, Any] = field(default_factory=dict)
    vllm_ngram: Mapping[str, Any] = field(default_factory=lambda: VLLM_NGRAM_SETTINGS)


@dataclass(frozen=True)
class Peer:
    """A kind of server.

    Attributes:
        start: starts it, until the body ends.
        missing: why it cannot run here; None if it can.
        promises: whether it claims that an answer is a function of the request.
        seeds: whether it honours a seed for each request; if not, it gets none.
        schemas: whether it can be told the JSON Schema of an answer.
        drafts: asks it for the guesses of next tokens that it has made.
        once: whether one round is enough: it is not a rival, and it is slow.
    """

    name: str
    start: Callable[[Setup], AbstractContextManager[Server]]
    missing: Callable[[Setup], str | None] = lambda setup: None
    dialect: Dialect = "chat"
    extra: Mapping[str, Any] = field(default_factory=dict)
    promises: bool = False
    seeds: Callable[[Setup], bool] = lambda setup: True
    schemas: bool = True
    drafts: Callable[[Endpoint], Drafts] | None = None
    once: bool = False

    def endpoint(self, setup: Setup, server: Server) -> Endpoint:
        """Where its requests go."""
        # transformers' server loads whatever a request names, and knows models by their source.
        name = setup.model.source if self.name in (CONTINUOUS, TRANSFORMERS) else _NAME
        return Endpoint(
            server.address, name, self.dialect, self.extra, self.schemas, self.seeds(setup)
        )


def graph_args(setup: Setup) -> dict[str, Any]:
    """The arguments of this project's application."""
    engine = {
        "max_sequences": setup.max_clients,
        "max_waiting": 4 * setup.max_clients,
        "local_files_only": True,
    }
    if not setup.on_gpu:
        engine |= {
            "kv_cache_tokens": setup.max_clients * setup.context,
            "threads": setup.threads,
        }
    engine |= setup.engine
    model = {
        "id": _NAME,
        "source": setup.model.source,
        "dtype": setup.model.dtype,
        "device": "cuda" if setup.on_gpu else "cpu",
        "engine": engine,
    }
    return {"models": [model]}


@contextmanager
def _graph(
    setup: Setup,
    environment: Mapping[str, str] | None = None,
    import_path: str = APPLICATION,
    engine: Mapping[str, Any] | None = None,
) -> Iterator[Server]:
    """This project's graph; ``engine`` has further options of its engines."""
    args = {} if import_path == ECHO_PATH else graph_args(setup)
    for model in args.get("models", ()):
        model["engine"] |= engine or {}
    with serving(args, setup.folder, environment, import_path=import_path) as server:
        yield server


@contextmanager
def _transformers(setup: Setup, *, continuous: bool) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.serving.transformers_serve", "serve"]
    command += [setup.model.source, "--dtype", setup.model.dtype]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    if continuous:
        command += ["--continuous-batching"]
        if not setup.on_gpu:  # a GPU's memory and kernels are the library's to judge
            blocks = setup.max_clients * -(-setup.context // CB_PAGE_SIZE)
            command += ["--cb-block-size", str(CB_PAGE_SIZE), "--cb-num-blocks", str(blocks)]
            command += ["--cb-max-batch-tokens", str(CB_BATCH_TOKENS)]
    with running(command, port, setup.folder, _threads(setup)) as server:
        yield server


@contextmanager
def _one_at_a_time(setup: Setup) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.serving.one_at_a_time", setup.model.source]
    command += ["--dtype", setup.model.dtype, "--threads", str(setup.threads)]
    command += ["--port", str(port), *(["--images"] if setup.model.images else [])]
    with running(command, port, setup.folder, _threads(setup)) as server:
        yield server


@contextmanager
def _vllm(setup: Setup, *, speculates: bool = False) -> Iterator[Server]:
    port = free_port()
    command = [str(setup.vllm_python), "-m", "vllm.entrypoints.cli.main", "serve"]
    command += [setup.model.source, "--served-model-name", _NAME, "--dtype", setup.model.dtype]
    command += ["--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm"]
    command += ["--max-num-seqs", str(setup.max_clients), "--max-model-len", str(setup.context)]
    if speculates:
        command += ["--speculative-config", json.dumps(setup.vllm_ngram)]
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[: setup.threads]))
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": str(_VLLM_KV_GB),
        "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", cores),
        "VLLM_NOUSAGE_STATS": "1",
        "PYTHONPATH": "",
    }
    with running(command, port, setup.folder, _threads(setup) | environment) as server:
        yield server


def _threads(setup: Setup) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(setup.threads)}


def _no_transformers(setup: Setup) -> str | None:
    return None if is_serve_available() else "needs fastapi, uvicorn and openai"


def _no_vllm(setup: Setup) -> str | None:
    if setup.vllm_python is None:
        return "not installed: --vllm-python, see benchmarks/serving/install_vllm_cpu.sh"
    if not setup.vllm_python.is_file():
        return f"--vllm-python: there is no {setup.vllm_python}"
    probe = [str(setup.vllm_python), "-c", "import vllm"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(probe, env=environment, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"does not import: {done.stderr.strip()[-200:]}"


USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
# The same distribution everywhere: without this, a model's own `top_k` would hold here only.
_ASKED = USAGE | {"top_k": 0}
_ours = partial(Peer, promises=True, drafts=graph_drafts)
# On a CPU the engine of vLLM 0.32 ends at a seeded request whose prompt takes several of its steps:
# `_bookkeeping_sync` calls `set_offset` of the request's generator, which one of a CPU has not.
_vllms = partial(
    Peer, missing=_no_vllm, extra=_ASKED, seeds=lambda setup: setup.on_gpu, drafts=vllm_drafts
)
_plain = partial(Peer, missing=_no_transformers, seeds=lambda setup: False, schemas=False)

PEERS = {
    peer.name: peer
    for peer in (
        _ours(GRAPH, _graph, extra=_ASKED),
        _ours(TUNED, partial(_graph, environment=TUNED_ENVIRONMENT), extra=_ASKED),
        _vllms(VLLM, _vllm),
        _vllms(VLLM_NGRAM, partial(_vllm, speculates=True)),
        _plain(CONTINUOUS, partial(_transformers, continuous=True)),
        _plain(TRANSFORMERS, partial(_transformers, continuous=False), once=True),
        Peer(ONE_AT_A_TIME, _one_at_a_time, extra={"top_k": 0}, schemas=False, once=True),
        Peer(ECHO, partial(_graph, import_path=ECHO_PATH), once=True),
        _ours(TASKS, _graph, dialect="tasks"),
        Peer(
            RELAXED,
            partial(_graph, engine={"deterministic": False}),
            extra=_ASKED,
            drafts=graph_drafts,
        ),
    )
}
"""Every kind of server there is."""

DEFAULT_PEERS = [GRAPH, TUNED, VLLM, CONTINUOUS, TRANSFORMERS, ONE_AT_A_TIME, ECHO]
"""Those that are compared if nothing else is said."""
