"""The arguments of the application: strict, and every fault names its key."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engine.config import EngineConfig
from serve_app.config.app_args import REPOSITORY, AppArgs, ModelArgs, resolve_source
from serve_app.config.engine_args import EngineArgs
from serve_app.config.strict import explain


def _faults(args: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        AppArgs.model_validate(args)
    return "\n".join(explain(caught.value))


def _model_fault(**fields: Any) -> str:
    return _faults({"models": [{"id": "demo", **fields}]})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"quantise_bits": 4}, "unknown key 'quantise_bits'; did you mean 'quantize_bits'?"),
        ({"gpu_memory": 4}, "unknown key 'gpu_memory'; the keys are min_replicas, max_replicas"),
        ({"quantize_bits": 5}, "args.models.0.quantize_bits: Input should be 4 or 8"),
        ({"quantize_bits": "4"}, "args.models.0.quantize_bits: "),
        ({"dtype": "fp16"}, "args.models.0.dtype: "),
        ({"device": "gpu"}, "args.models.0.device: "),
        ({"id": "a model"}, "args.models.0.id: "),
        ({"id": 7}, "args.models.0.id: Input should be a valid string"),
        ({"source": ""}, "args.models.0.source: "),
        (
            {"num_gpus": 0},
            'args.models.0.num_gpus: must be "auto", a number above 0 and up to 1, or',
        ),
        ({"num_gpus": 1.5}, "or a whole number of GPUs, got 1.5"),
        ({"num_gpus": True}, "args.models.0.num_gpus: "),
        ({"num_gpus": float("nan")}, "args.models.0.num_gpus: "),
        ({"device": "cpu", "num_gpus": 0.5}, "num_gpus has no meaning with device: cpu"),
        ({"split": "tensor"}, "split has no meaning on a single GPU: set num_gpus to 2 or more"),
        ({"num_gpus": 2, "split": "tensor", "quantize_bits": 8}, "set split to 'layers'"),
        ({"engine": {"num_devices": 2}}, "engine.num_devices is for device: cpu"),
        ({"min_replicas": -1}, "args.models.0.min_replicas: "),
        ({"max_replicas": 0}, "args.models.0.max_replicas: "),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas (2) is less than min_replicas (3)"),
        ({"scale_down_after_s": -1}, "args.models.0.scale_down_after_s: "),
        ({"scale_to_zero_after_s": 9}, "set min_replicas: 0 or leave it out"),
        ({"min_replicas": "1"}, "args.models.0.min_replicas: Input should be a valid integer"),
        ({"max_ongoing_requests": 100}, "max_ongoing_requests (100) must be more than the engine"),
        ({"engine": {"max_sequence": 1}}, "did you mean 'max_sequences'?"),
        ({"engine": {"max_sequences": 0}}, "args.models.0.engine.max_sequences: "),
        ({"engine": {"threads": 1.5}}, "args.models.0.engine.threads: "),
        ({"engine": None}, "args.models.0.engine: "),
        ({"engine": {"dtype": "float16"}}, "engine: dtype is set beside engine, by dtype"),
        ({"engine": {"model": "org/a"}}, "model is set beside engine, by id and source"),
        ({"engine": {"quantize_bits": 4}}, "quantize_bits is set beside engine"),
        ({"engine": {"split": "layers"}}, "split is set beside engine, by split"),
        ({"engine": {"adapters": {}}}, "adapters is set beside engine, by adapters"),
        ({"adapters": {"a:b": "org/a"}}, "must be a name of letters, digits, dots"),
        ({"adapters": {"a": {"revision": "main"}}}, "source"),
        ({"adapters": {"a": 1}}, "adapters"),
        ({"adapters": {"a": "org/a"}, "num_gpus": 2}, "set split to 'layers', num_gpus"),
        ({"id": "demo:sql"}, "must be a name such as Qwen/Qwen3-8B"),
        ({"engine": {"max_sequence": None}}, "did you mean 'max_sequences'?"),
    ],
)
def test_a_faulty_model_is_refused(fields: dict[str, Any], said: str) -> None:
    assert said in _model_fault(**fields)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "args: nothing is served: give models, a pool, or both"),
        ({"models": []}, "args: nothing is served"),
        ({"models": {"id": "demo"}}, "args.models: "),
        ({"models": ["demo"]}, "args.models.0: "),
        ({"model": []}, "unknown key 'model'; did you mean 'models'?"),
        ({"models": [{"id": "a"}], "limits": {"max_body": 1}}, "did you mean 'max_body_mb'?"),
        ({"models": [{"id": "a"}], "limits": {"max_body_mb": 0}}, "args.limits.max_body_mb: "),
        ({"models": [{"id": "a"}], "limits": {"request_timeout_s": "9"}}, "request_timeout_s: "),
        ({"models": [{"id": "a"}], "ingress_replicas": 0}, "args.ingress_replicas: "),
        ({"models": [{"id": "a"}, {"id": "a"}]}, "the same (id, dtype, quantize_bits)"),
        ({"models": [{"id": "a/b"}, {"id": "a--b"}]}, "the same deployment name"),
    ],
)
def test_faulty_arguments_are_refused(args: dict[str, Any], said: str) -> None:
    assert said in _faults(args)


def test_all_faults_are_listed() -> None:
    said = _faults({"models": [{"id": "a", "dtype": "x"}, {"id": "b", "min_replicas": -1}]})
    assert "args.models.0.dtype" in said
    assert "args.models.1.min_replicas" in said


def test_every_engine_setting_reaches_the_engine() -> None:
    settings: dict[str, Any] = {
        "cache_dir": "models",
        "context_length": 100,
        "cut_to_context": True,
        "default_max_new_tokens": 999,
        "max_sequences": 2,
        "max_waiting": 3,
        "prefill_chunk": 64,
        "page_size": 8,
        "max_exclusive_tokens": 512,
        "image_cache_bytes": 0,
        "adapter_bytes": 10**6,
        "max_adapter_rank": 8,
        "kv_cache_tokens": 4096,
        "max_kv_cache_bytes": 10**9,
        "deterministic": False,
        "speculation": "off",
        "compile": "off",
        "keep_measurements": False,
        "max_stream_wait_steps": 5,
        "lookahead": False,
        "threads": 1,
        "trust_remote_code": True,
        "local_files_only": True,
        "num_devices": 2,
    }
    assert set(settings) == set(EngineArgs.model_fields)
    model = ModelArgs.model_validate(
        {
            "id": "m",
            "source": "org/model",
            "revision": "abc",
            "dtype": "bfloat16",
            "quantize_bits": 4,
            "device": "cpu",
            "engine": settings,
        }
    )
    assert model.engine_config(device="cpu") == EngineConfig(
        model="org/model",
        model_id="m",
        revision="abc",
        dtype="bfloat16",
        quantize_bits=4,
        device="cpu",
        **settings,
    )


def test_missing_settings_have_the_engines_default() -> None:
    config = ModelArgs(id="org/model").engine_config()
    assert config == EngineConfig(model="org/model", model_id="org/model")
    empty = {"id": "org/model", "engine": {"max_sequences": None, "num_devices": None}}
    assert ModelArgs.model_validate(empty).engine_config() == config


def test_directories_start_at_the_repository_wherever_the_process_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_source("./demo/model") == str(REPOSITORY / "demo" / "model")
    assert resolve_source("schema") == str(REPOSITORY / "schema")  # exists, so it is a directory
    assert resolve_source("./no/such") == str(REPOSITORY / "no" / "such")
    assert resolve_source(str(tmp_path)) == str(tmp_path)
    assert resolve_source("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"id": "demo"}, "Model:demo"),
        ({"id": "org/model", "dtype": "bfloat16"}, "Model:org--model:bfloat16"),
        ({"id": "demo", "quantize_bits": 4}, "Model:demo:int4"),
    ],
)
def test_deployment_names(fields: dict[str, Any], name: str) -> None:
    assert ModelArgs.model_validate(fields).deployment == name


def test_a_relative_source_that_is_not_in_the_repository_may_be_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "demo/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_source("./own") == str(tmp_path / "own")
    assert resolve_source("./demo/model") == str(REPOSITORY / "demo/model")
    assert resolve_source("own") == "own"  # a name of the hub, unless it says that it is a path
