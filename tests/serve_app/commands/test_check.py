"""`python -m serve_app.check`: the file is right, or every fault is named."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager
from safetensors.torch import save_file

from demo.smollm2 import gguf_file
from serve_app.check import main
from serve_app.config.app_args import REPOSITORY
from tests.engine.models.tiny_adapters import VISION, save_adapter
from tests.engine.models.tiny_models import save_tiny_model
from tests.serve_app.http.receipts.signed import new_key

GPUS = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
COMMITTED = REPOSITORY / "serve_config.yaml"


def _document() -> Any:
    return yaml.safe_load(COMMITTED.read_text(encoding="utf-8"))


def _written(tmp_path: Path, document: Any) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return str(path)


def test_the_committed_configuration_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(COMMITTED)]) == 0
    plan = capsys.readouterr().out
    assert "Model:demo:float32: model 'demo'" in plan
    assert "INT8; 0 to 1 replicas" in plan
    assert "INT4; 0 to 1 replicas" in plan


def test_the_example_of_a_real_model_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(REPOSITORY / "examples" / "smollm2.yaml")]) == 0
    assert "model 'HuggingFaceTB/SmolLM2-135M-Instruct'" in capsys.readouterr().out


def test_the_commented_example_is_right_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    text = COMMITTED.read_text(encoding="utf-8")
    before, example = text.split("\n\n        # A model from the hub", 1)
    example, after = example.split("\n\n", 1)
    commented = example[example.index("        # - id:") :]
    fields = re.sub(r"^ {8}# ", " " * 8, commented, flags=re.MULTILINE)
    path.write_text(f"{before}\n{fields}\n{after}", encoding="utf-8")
    assert main([str(path)]) == 0, capsys.readouterr().err
    assert (
        "OpenGVLab/InternVL3-8B-hf, bfloat16, INT4, adapters sql, law; 1 to 4"
        in capsys.readouterr().out
    )


def test_the_commented_keys_are_right_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice: 0123456789abcdef\nbob: fedcba9876543210\n")
    keys.chmod(0o644)
    text = COMMITTED.read_text(encoding="utf-8").replace("/etc/gpt-task-serve/keys", str(keys))
    text = text.replace("/etc/gpt-task-serve/receipts.pem", str(new_key(tmp_path)))
    before, after = text.split("      # auth:")
    fields = re.sub(r"^ {6}# ", " " * 6, f"      # auth:{after}", flags=re.MULTILINE)
    path = tmp_path / "config.yaml"
    remarks = re.compile(r"^ {6}(?=Web pages|The key)", re.MULTILINE)
    path.write_text(before + remarks.sub("      # ", fields))
    assert main([str(path)]) == 0, capsys.readouterr().err
    plan = capsys.readouterr().out
    each = "for each ingress replica"
    assert f"Key alice: max_concurrent 64 {each}, requests_per_minute 6000 {each}" in plan
    assert f"Key bob: max_concurrent 16 {each}, requests_per_minute 600 {each}" in plan
    assert f"Warning: other users of this machine can read the keys in {keys}" in plan
    assert "Receipts: signed by key " in plan
    assert "CORS: https://app.example.org" in plan
    assert "0123456789abcdef" not in plan
    keys.unlink()
    assert main([str(path)]) == 1
    assert f"applications.0.args.auth.keys_file: {keys}: No such file" in capsys.readouterr().err


def test_faults_in_the_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = _document()
    document["applications"][0]["args"]["models"][1]["quantise_bits"] = 4
    document["applications"][0]["args"]["limits"]["max_body_mb"] = "big"
    assert main([_written(tmp_path, document)]) == 1
    faults = capsys.readouterr().err
    assert "applications.0.args.models.1: unknown key 'quantise_bits'; did you mean" in faults
    assert "applications.0.args.limits.max_body_mb: " in faults


def test_a_misspelt_option_of_the_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = _document()
    document["applications"][0]["args"]["models"][0]["engine"] = {"kv_cache_token": 1}
    assert main([_written(tmp_path, document)]) == 1
    said = "args.models.0.engine: unknown key 'kv_cache_token'; did you mean 'kv_cache_tokens'?"
    assert said in capsys.readouterr().err


def test_a_directory_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = _document()
    document["applications"][0]["args"]["models"][0]["source"] = "./demo/no-model"
    assert main([_written(tmp_path, document)]) == 1
    assert "args.models.0.source: there is no model in " in capsys.readouterr().err


@pytest.mark.parametrize("part", [None, "text_config", "llm_config"])
def test_a_context_that_the_model_does_not_have(
    part: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = {"max_position_embeddings": 4096}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({part: limit} if part else limit))
    document = _document()
    model = document["applications"][0]["args"]["models"][1]
    model |= {"source": str(tmp_path), "engine": {"context_length": 4096}}
    assert main([_written(tmp_path, document)]) == 0
    model["engine"]["context_length"] = 4097
    assert main([_written(tmp_path, document)]) == 1
    said = "args.models.1.engine.context_length: 4097, but the model was made for 4096 tokens"
    assert said in capsys.readouterr().err
    config.write_text("[")
    assert main([_written(tmp_path, document)]) == 1
    assert "args.models.1.source: " in capsys.readouterr().err


@pytest.mark.skipif(GPUS > 0, reason="this machine has GPUs")
def test_a_gpu_that_is_not_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = _document()
    assert main([_written(tmp_path, document)]) == 0
    assert "Warning" not in capsys.readouterr().out
    document["applications"][0]["args"]["models"][0]["device"] = "cuda"
    assert main([_written(tmp_path, document)]) == 0  # it may join later
    said = capsys.readouterr().out
    assert "Warning: Model:demo:float32 has device: cuda, and this machine has no GPU" in said


def test_a_chat_with_another_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = _document() | {"http_options": {"port": 8123}}
    assert main([_written(tmp_path, document)]) == 0
    said = capsys.readouterr().out
    assert "Warning: the chat asks http://127.0.0.1:8000, but this server listens on 8123" in said
    for server in ("http://127.0.0.1:8123", "https://elsewhere.example.org"):
        document["applications"][1]["args"]["server"] = server
        assert main([_written(tmp_path, document)]) == 0
        assert "Warning: the chat" not in capsys.readouterr().out


def test_an_override_of_an_unknown_deployment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = _document()
    document["applications"][0]["deployments"] = [{"name": "Ingress"}, {"name": "Model:demo"}]
    assert main([_written(tmp_path, document)]) == 1
    assert "deployments.1.name: 'Model:demo' is not one of Ingress, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be a mapping"),
        ("applications: [", "is not YAML"),
        ("applications: []", "none has import_path: serve_app.app:build"),
        ("http_options: {port: x}\napplications: []", "http_options.port"),
        ("application: []", "applications"),
    ],
)
def test_files_that_are_not_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    assert main([str(path)]) == 1
    assert said in capsys.readouterr().err


def test_no_such_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.yaml")]) == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"http_options": {"prot": 8000}},
            "http_options: unknown key 'prot'; did you mean 'port'",
        ),
        (
            {"http_option": {"port": 8000}},
            "unknown key 'http_option'; did you mean 'http_options'",
        ),
        ({"http_options": {"port": 80_000}}, "http_options.port must be 1 to 65535, got 80000"),
        ({"http_options": {"port": "x"}}, "http_options.port: "),
    ],
)
def test_options_that_ray_would_ignore_or_fail_at(
    change: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([_written(tmp_path, _document() | change)]) == 1
    assert capsys.readouterr().err.startswith(said)


def test_a_port_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also by a program that would share it, as Ray's proxies do."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        file = _written(tmp_path, _document() | {"http_options": {"port": port}})
        assert main([file]) == 0
        assert main([file, "--port-is-free"]) == 1
        assert f"port {port}" in capsys.readouterr().err
    assert main([file, "--port-is-free"]) == 0


def test_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those in directories are looked into, and held against a model that is here."""
    linears = r".*language_model.*q_proj"
    kinds: dict[str, Any] = {"good": {}, "dora": {"use_dora": True}, "high": {"r": 300}}
    for name, more in kinds.items():
        settings = {"target_modules": linears} | more
        demo = REPOSITORY / "demo" / "model"
        save_adapter(demo, tmp_path / name, 1, auto_class=VISION, **settings)
    save_tiny_model("qwen3", tmp_path / "qwen3")
    save_adapter(tmp_path / "qwen3", tmp_path / "other", 1)
    document = _document()
    model = document["applications"][0]["args"]["models"][0]
    model["adapters"] = {"good": str(tmp_path / "good"), "hub": {"source": "org/a"}}
    assert main([_written(tmp_path, document)]) == 0, capsys.readouterr().err
    assert "float32, unquantized, adapters good, hub; 1 replicas" in capsys.readouterr().out
    for name in ("dora", "high", "other", "none"):
        model["adapters"][name] = str(tmp_path / name)
    assert main([_written(tmp_path, document)]) == 1
    faults = capsys.readouterr().err.splitlines()
    where = "applications.0.args.models.0.adapters"
    for fault, said in zip(
        faults,
        (
            f"{where}.dora: adapter 'demo:dora' cannot be used: it has use_dora (True), which is",
            f"{where}.high: adapter 'demo:high' cannot be used: its rank is 300 in model.",
            f"{where}.none: there is no directory {tmp_path / 'none'}",
            f"{where}.other: adapter 'demo:other' does not fit its model: it adapts model.",
        ),
        strict=True,
    ):
        assert fault.startswith(said)


def _model(tmp_path: Path, settings: Any) -> tuple[Path, str]:
    """A model with a weight in AWQ, of which two parts are there; and a configuration for it."""
    directory = tmp_path / "model"
    directory.mkdir()
    config = {"model_type": "llama", "quantization_config": settings}
    (directory / "config.json").write_text(json.dumps(config))
    tensors = {
        "model.layers.0.mlp.up_proj.qweight": torch.zeros(64, 4, dtype=torch.int32),
        "model.layers.0.mlp.up_proj.scales": torch.zeros(4, 32),
    }
    save_file(tensors, directory / "model.safetensors")
    document = _document()
    document["applications"][0]["args"]["models"] = [{"id": "a", "source": str(directory)}]
    return directory, _written(tmp_path, document)


QUANTIZATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"quant_method": "shrink"}, "quantized with 'shrink', which is not known"),
    "known and not read": ({"quant_method": "aqlm"}, "quantized with aqlm, which is not read"),
    "half supported": ({"quant_method": "awq", "version": "gemv"}, "version 'gemv'"),
    "damaged": ({"quant_method": "gptq"}, "up_proj has qweight and no qzeros"),
    "not named": ({}, "not known"),
}


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_a_quantization_that_is_not_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, says = QUANTIZATIONS[name]
    _, path = _model(tmp_path, settings)
    assert main([path]) == 1
    error = capsys.readouterr().err
    assert error.startswith("applications.0.args.models.0.source: model 'a' is ")
    assert says in error


def test_a_quantization_that_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, path = _model(tmp_path, {"quant_method": "awq"})
    assert main([path]) == 0, capsys.readouterr().err
    assert "auto, published in awq; 1 replicas" in capsys.readouterr().out


def test_a_gguf_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = _document()
    models = document["applications"][0]["args"]["models"]
    models[:] = [{"id": "a", "source": str(gguf_file())}]
    assert main([_written(tmp_path, document)]) == 0
    assert "published in Q4_1; 1 replicas" in capsys.readouterr().out
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf_file().read_bytes()[:5_000_000])
    models[0]["source"] = str(cut)
    assert main([_written(tmp_path, document)]) == 1
    assert "the bytes of tensor" in capsys.readouterr().err
