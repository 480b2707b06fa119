"""Models on demand, end to end: tiny models in a directory, served by Ray, over HTTP."""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from engine import Engine, EngineConfig
from schema import Task
from serve_app.models import main as list_models
from tests.engine.models.tiny_models import Kind, save_tiny_model
from tests.serve_app.conftest import running_server
from tests.serve_app.tasks import answer, chunks, error, joined, served, text_task

# About 9 MB of weights and keys and values for each model: two fit, three do not.
BUDGET_GB = 0.022
KV_TOKENS = 16384
ENGINE = {"max_sequences": 8, "kv_cache_tokens": KV_TOKENS, "prefill_chunk": 16, "threads": 1}
SAMPLED = {"max_new_tokens": 24, "do_sample": True, "temperature": 1.5, "num_return_sequences": 2}
LONG = {"max_new_tokens": 7000, "do_sample": False}


def _save(root: Path, name: str, kind: Kind = "qwen2", seed: int = 0) -> Path:
    directory = root / name
    directory.mkdir(parents=True)
    save_tiny_model(kind, directory, seed=seed)
    for file in ("config.json", "generation_config.json"):
        config = json.loads((directory / file).read_text())
        text = config.get("text_config") or config
        text["eos_token_id"] = None  # an answer ends at its task's limit
        if file == "config.json":
            text["max_position_embeddings"] = KV_TOKENS
        (directory / file).write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models by id, good and bad ones."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("org/one", "org/two", "org/three", "other/one")):
        _save(root, name, seed=seed)
    _save(root, "org/eyes", "internvl")
    broken = _save(root, "org/broken") / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1000])
    giant = _save(root, "org/giant")
    weights = giant / "model.safetensors"
    from safetensors.torch import load_file, save_file

    wide = {f"{name}{i}": tensor for name, tensor in load_file(weights).items() for i in range(60)}
    save_file({name: tensor.clone() for name, tensor in wide.items()}, weights, {"format": "pt"})
    (root / "org/link").symlink_to(shutil.copytree(root / "org/one", root.parent / "outside"))
    return root


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The address and the process id of a server with one configured model and a pool."""
    args = {
        "models": [
            {
                "id": "fixed",
                "source": str(root / "org/one"),
                "dtype": "float32",
                "device": "cpu",
                "engine": ENGINE,
            }
        ],
        "pool": {
            "allow": ["org/*"],
            "max_memory_gb": BUDGET_GB,
            "kv_cache_gb": 0.01,
            "root": str(root),
            "device": "cpu",
            "max_wait_s": 100.0,
            "engine": ENGINE,
        },
    }
    application = {"import_path": "serve_app.app:build", "route_prefix": "/", "args": args}
    config = {"applications": [{"name": "default", **application}]}
    often = {"RAY_metrics_report_interval_ms": "1000"}
    with running_server(config, tmp_path_factory.mktemp("pool-server"), often) as running:
        yield running


@pytest.fixture
def client(server: tuple[str, int]) -> Iterator[httpx.Client]:
    """A client of the server with the pool."""
    with httpx.Client(base_url=server[0], timeout=200) as client:
        yield client


def _task(model: str, text: str = "hello", **fields: Any) -> dict[str, Any]:
    return text_task(text, model=model, dtype="float32", **fields)


def _post(client: httpx.Client, task: dict[str, Any]) -> Any:
    return answer(client.post("/v1/tasks", json=task))


def _loaded(client: httpx.Client) -> list[str]:
    """The models that the pool holds, the least recently used first."""
    return [model["id"] for model in served(client) if model["deployment"] == "Pool"]


def _pids(server: tuple[str, int]) -> set[int]:
    """The processes of the pool's engines."""
    found = psutil.Process(server[1]).children(recursive=True)
    return {p.pid for p in found if p.name().startswith("ray::ModelReplic")}


def _in_process(directory: Path, task: dict[str, Any]) -> Any:
    """What an engine in this process answers."""
    engine = Engine(
        EngineConfig(
            model=str(directory),
            device="cpu",
            dtype="float32",
            quantize_bits=task.get("quantize_bits"),
            **ENGINE,  # type: ignore[arg-type]
        )
    )
    try:
        return engine.run_blocking(Task.from_fields(**task))
    finally:
        engine.close()


def test_eight_first_tasks_start_one_process(
    client: httpx.Client, server: tuple[str, int], root: Path
) -> None:
    tasks = [_task("org/one", "hi", generation_config=SAMPLED, seed=i) for i in range(8)]
    before, seen, done = _pids(server), set(), threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            seen.update(_pids(server))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda task: _post(client, task), tasks))
    done.set()
    watcher.join()
    assert len(seen - before) == 1
    assert _loaded(client) == ["org/one"]
    assert together == [_post(client, task) for task in tasks]
    # The same model under another name, configured: the same bytes and the same fingerprint.
    configured = [_post(client, task | {"model": "fixed"}) for task in tasks]
    assert [a | {"model": ""} for a in together] == [a | {"model": ""} for a in configured]
    assert together[0] == _in_process(root / "org/one", tasks[0])


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_as_the_task_asks(client: httpx.Client, root: Path, bits: int) -> None:
    task = _task("org/two", generation_config=SAMPLED, quantize_bits=bits)
    assert _post(client, task) == _in_process(root / "org/two", task)


def test_images(client: httpx.Client, root: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(file, "PNG")
    image = {"type": "image", "base64": base64.b64encode(file.getvalue()).decode()}
    task = _task("org/eyes", generation_config=SAMPLED)
    task["messages"] = [{"role": "user", "content": [image, {"type": "text", "text": "what?"}]}]
    assert _post(client, task) == _in_process(root / "org/eyes", task)
    streamed = client.post("/v1/tasks?stream=true", json=task)
    assert joined(chunks(streamed)) == _post(client, task)
    task["model"] = "org/one"
    assert "reads text only" in error(client.post("/v1/tasks", json=task), 400)["message"]


def test_the_least_recently_used_goes_first(client: httpx.Client) -> None:
    for model in ("org/one", "org/two", "org/one", "org/three"):
        _post(client, _task(model))
    assert _loaded(client) == ["org/one", "org/three"]
    _post(client, _task("org/one"))
    _post(client, _task("org/two"))
    assert _loaded(client) == ["org/one", "org/two"]


def test_a_running_stream_is_not_evicted(client: httpx.Client) -> None:
    task = _task("org/one", generation_config=LONG)
    for model in ("org/one", "org/two"):
        _post(client, _task(model))
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(client.post, "/v1/tasks?stream=true", json=task)
        _wait_for(lambda: _running(client, "org/one") == 1)
        _post(client, _task("org/two"))  # used later than the model of the stream
        _post(client, _task("org/three"))
        assert not stream.done(), "the stream was too short to show anything"
        assert set(_loaded(client)) == {"org/one", "org/three"}
        response = joined(chunks(stream.result()))
    assert response["choices"][0]["finish_reason"] == "length"
    assert response == _post(client, task)


def test_a_task_waits_while_all_models_are_in_use(client: httpx.Client) -> None:
    for model in ("org/one", "org/two"):
        _post(client, _task(model))
    tasks = [_task(model, generation_config=LONG) for model in ("org/one", "org/two")]
    streams = [client.stream("POST", "/v1/tasks?stream=true", json=task) for task in tasks]
    with ThreadPoolExecutor(1) as pool, streams[0] as first:
        # Kept, because an iterator that is dropped closes its stream.
        first_bytes = first.iter_bytes()
        next(first_bytes)
        with streams[1] as second:
            second_bytes = second.iter_bytes()
            next(second_bytes)
            waiting = pool.submit(_post, client, _task("org/three"))
            with pytest.raises(TimeoutError):
                waiting.result(timeout=1)
            assert set(_loaded(client)) == {"org/one", "org/two"}
        waiting.result()  # the second stream was closed, which ended its task
        assert set(_loaded(client)) == {"org/one", "org/three"}


def test_a_process_that_dies_is_replaced(client: httpx.Client, server: tuple[str, int]) -> None:
    first = _post(client, _task("org/one"))
    before = _pids(server)
    for pid in before:
        psutil.Process(pid).kill()
    # If it comes before the death is noticed, it is lost with the process and runs again.
    assert answer(client.post("/v1/tasks", json=_task("org/one"))) == first
    assert not before & _pids(server)


def test_a_model_that_cannot_be_loaded_reports_why_every_time(client: httpx.Client) -> None:
    _post(client, _task("org/one"))
    for _ in range(2):
        said = error(client.post("/v1/tasks", json=_task("org/broken")), 404)
        assert said["code"] == "model_corrupt"
        assert "'org/broken' is damaged: model.safetensors has" in said["message"]
    assert "org/one" in _loaded(client)


def test_a_model_that_can_never_fit(client: httpx.Client) -> None:
    said = error(client.post("/v1/tasks", json=_task("org/giant")), 507)
    assert said["code"] == "out_of_memory"
    assert "needs about 0.0" in said["message"]
    assert "share 0.022 GB here (max_memory_gb)" in said["message"]


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ("other/one", 404, "served: fixed; and on demand, if the id matches: org/*"),
        ("one", 404, "is not served here"),
        ("org/none", 404, "'org/none' is not in the pool's root"),
        ("org/link", 404, "'org/link' is not in the pool's root"),
        ("org", 404, "is not served here"),
        ("org/../other/one", 400, "model: must be a name such as"),
        ("org/./one", 400, "model: must be a name such as"),
        ("org//one", 400, "model: must be a name such as"),
        ("/etc", 400, "model: must be a name such as"),
        ("org\\one", 400, "model: must be a name such as"),
    ],
)
def test_refusals(client: httpx.Client, model: str, status: int, words: str) -> None:
    before = _loaded(client)
    said = error(client.post("/v1/tasks", json=_task(model)), status)
    assert words in said["message"]
    assert said["param"] == "model"
    assert _loaded(client) == before


def test_cards(client: httpx.Client, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    response = _post(client, _task("org/one", quantize_bits=8))
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    for model in listed["data"]:
        assert (model["object"], model["owned_by"]) == ("model", "gpt-task-serve")
        assert isinstance(model["id"], str)
        assert isinstance(model["created"], int)
    found = [m for m in served(client) if (m["id"], m["quantize_bits"]) == ("org/one", 8)]
    (entry,) = found
    (replica,) = entry["replicas"]
    card = replica["card"]
    assert card["id"] == "org/one"
    assert card["system_fingerprint"] == response["system_fingerprint"]
    assert card["memory"]["kv_cache_bytes"] > 0
    assert card["context_length"] == KV_TOKENS
    address = str(client.base_url)
    assert list_models(["--address", address]) == 0
    said = capsys.readouterr().out
    assert "org/one (float32, INT8), Pool\n" in said
    assert f"fingerprint   {response['system_fingerprint']}\n" in said
    assert f"source        {root / 'org/one'}\n" in said
    assert "deterministic yes: every forward has a batch size that was measured" in said
    assert list_models(["--address", address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == client.get("/v1/models").json()["data"]


def _running(client: httpx.Client, model: str) -> int:
    """Tasks that run on a model of the pool now."""
    for entry in served(client):
        if entry["id"] == model and entry["deployment"] == "Pool":
            return sum(replica["load"]["running"] for replica in entry["replicas"])
    return 0


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


def test_metrics_of_a_process_of_the_pool(client: httpx.Client) -> None:
    _post(client, _task("org/one"))
    variants = [m for m in served(client) if (m["id"], m["quantize_bits"]) == ("org/one", None)]
    ((replica,),) = (variant["replicas"] for variant in variants)
    labels = {"deployment": "Pool", "model": "org/one", "variant": "float32"}
    wanted = {f'{k}="{v}"' for k, v in labels.items()} | {f'replica="{replica["replica"]}"'}

    def has_come() -> bool:
        lines = client.get("/metrics").text.splitlines()
        counted = (x for x in lines if x.startswith("ray_gpt_task_generated_tokens_total{"))
        pool = any(x.startswith("ray_gpt_task_pool_memory_used_bytes{") for x in lines)
        return pool and any(all(label in x for label in wanted) for x in counted)

    _wait_for(has_come)
