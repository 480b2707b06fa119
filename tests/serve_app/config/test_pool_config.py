"""The pool's arguments, which models it allows, and where it finds them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from schema import ModelInvalid, Task
from schema.model_variant import ModelVariant
from serve_app.check import main
from serve_app.config.app_args import REPOSITORY, AppArgs, PoolArgs
from serve_app.config.strict import explain
from serve_app.graph.model_routes import Route, Routes

POOL: dict[str, Any] = {"allow": ["Qwen/*", "*-hf"], "max_memory_gb": 8.0}


def _pool(**fields: Any) -> PoolArgs:
    return PoolArgs.model_validate(POOL | fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"allow": []}, "args.pool.allow: "),
        ({"allow": ["Qwen/[a-z]"]}, "args.pool.allow.0: "),
        ({"allow": "*"}, "args.pool.allow: "),
        ({"max_memory_gb": 0}, "args.pool.max_memory_gb: "),
        ({"kv_cache_gb": 8.0}, "kv_cache_gb (8) leaves nothing of max_memory_gb (8)"),
        ({"engine": {"trust_remote_code": True}}, "would run the code of any repository"),
        ({"engine": {"max_kv_cache_bytes": 1}}, "max_kv_cache_bytes is set by kv_cache_gb"),
        ({"engine": {"device": "cpu"}}, "device is set beside engine, by device"),
        ({"root": "./m", "revisions": {"Qwen/a": "v1"}}, "have no meaning with root"),
        ({"revisions": {"../a": "v1"}}, "must be a name such as"),
        ({"engine": {"max_waiting": 5000}}, "must be more than the engine holds"),
        ({"id": "a"}, "unknown key 'id'"),
        ({"max_memory": 1}, "did you mean 'max_memory_gb'?"),
        ({"device": "cpu", "num_gpus": 1}, "num_gpus has no meaning with device: cpu"),
        ({"num_gpus": 2}, "models of the pool are not split"),
    ],
)
def test_a_faulty_pool_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AppArgs.model_validate({"pool": POOL | fields})
    assert said in "\n".join(explain(caught.value))


@pytest.mark.parametrize("field", ["allow", "max_memory_gb"])
def test_patterns_and_memory_must_be_given(field: str) -> None:
    fields = {key: value for key, value in POOL.items() if key != field}
    with pytest.raises(ValidationError, match="Field required"):
        AppArgs.model_validate({"pool": fields})


def _task(model: str, **fields: Any) -> Task:
    return Task.from_fields(model=model, messages=[{"role": "user", "content": "hi"}], **fields)


def test_routes() -> None:
    args = AppArgs.model_validate({"models": [{"id": "demo"}, {"id": "Qwen/mine"}], "pool": POOL})
    routes = Routes(args.models, args.pool)
    assert routes.choose(_task("demo")) == Route("Model:demo")
    assert routes.choose(_task("Qwen/mine")) == Route("Model:Qwen--mine")
    for model in ("Qwen/Qwen3-8B", "OpenGVLab/InternVL3-8B-hf"):
        assert routes.choose(_task(model)).deployment == "Pool"
    # Tasks of one variant go to one replica; other variants of the model may go to others.
    sessions = {
        routes.choose(_task("Qwen/a", **variant)).session
        for variant in ({}, {"dtype": "float32"}, {"quantize_bits": 4}, {"quantize_bits": 8})
    }
    assert len(sessions) == 4
    with pytest.raises(ModelInvalid, match=r"served: demo, Qwen/mine; and on demand, if the id ma"):
        routes.choose(_task("qwen/Qwen3-8B"))
    with pytest.raises(ModelInvalid, match=r"served: none by name; .*: Qwen/\*, \*-hf$"):
        Routes([], args.pool).choose(_task("demo"))


def test_a_configured_id_means_what_is_configured(tmp_path: Path) -> None:
    """It may have another source or revision than the pool would take."""
    args = AppArgs.model_validate({"models": [{"id": "Qwen/mine"}], "pool": POOL})
    with pytest.raises(Exception, match="is not served with quantize_bits 4"):
        Routes(args.models, args.pool).choose(_task("Qwen/mine", quantize_bits=4))


def test_hub_models_are_never_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if the server's directory contains one with this name."""
    monkeypatch.chdir(REPOSITORY)
    pool = _pool(allow=["*"], revisions={"demo/model": "v1"}, kv_cache_gb=2.0)
    config = pool.model(ModelVariant("demo/model", "bfloat16", 4)).engine_config("cpu")
    assert (config.model, config.from_hub, config.revision) == ("demo/model", True, "v1")
    assert (config.dtype, config.quantize_bits, config.device) == ("bfloat16", 4, "cpu")
    assert config.max_kv_cache_bytes == 2 * 10**9


def test_a_root_holds_its_models(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for directory in (root / "org" / "model", outside):
        directory.mkdir(parents=True)
        (directory / "config.json").write_text("{}")
    (root / "org" / "link").symlink_to(outside)
    (root / "org" / "inside").symlink_to(root / "org" / "model")
    pool = _pool(allow=["*"], root=str(root))
    config = pool.model(ModelVariant("org/model")).engine_config()
    assert (config.model, config.from_hub) == (str(root / "org" / "model"), False)
    assert config.name == "org/model"
    assert pool.model(ModelVariant("org/inside")).source == str(root / "org" / "model")
    for model in ("org/link", "org/none", "org", "org/" + "a" * 300):
        with pytest.raises(ModelInvalid, match="not in the pool's root"):
            pool.model(ModelVariant(model))
    # The form of ids excludes these already; the look-up refuses them too.
    for model in ("../outside", str(outside), "org/../../outside"):
        with pytest.raises(ModelInvalid, match="not in the pool's root"):
            pool._directory(str(root), model)


def test_check_knows_the_pool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commented example of the committed configuration, without its comment signs."""
    text = (REPOSITORY / "serve_config.yaml").read_text(encoding="utf-8")
    path = tmp_path / "config.yaml"
    begin, end = text.index("      # pool:"), text.index("      limits:")
    example = re.sub(r"^      # ", "      ", text[begin:end], flags=re.MULTILINE)
    path.write_text(text[:begin] + example + text[end:], encoding="utf-8")
    assert main([str(path)]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "Pool: models Qwen/*, OpenGVLab/InternVL3-* on demand from the hub or its cache" in said
    assert "20 GB for weights and KV caches of each replica; 1 replicas; 1 GPU for each" in said
    path.write_text(path.read_text().replace("# root: ./models ", "root: ./no-models "))
    assert main([str(path)]) == 1
    assert "args.pool.root: no directory " in capsys.readouterr().err
