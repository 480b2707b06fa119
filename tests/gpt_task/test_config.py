"""`gpt_task.config.Config`: its sources, and its effects."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from gpt_task.config import Config, DataDirConfig, ModelsDirConfig, ProxyConfig, get_config
from gpt_task.proxy import proxied, proxy_url
from tests.gpt_task.conftest import DEMO, REPOSITORY
from tests.gpt_task.hub import COMMIT, Hub


def test_the_defaults() -> None:
    config = Config()
    assert config.preloaded_models.base == []
    assert config.data_dir is None
    assert config.proxy is None
    assert not config.local_files_only
    assert not config.trust_remote_code
    assert ProxyConfig() == ProxyConfig(host="", port=8080, username="", password="")


def test_arguments_win_over_the_file_and_the_file_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "GPT_PROXY__HOST": "environment",
        "gpt_proxy__port": "1",
        "GPT_PROXY__USERNAME": "environment",
        "GPT_LOCAL_FILES_ONLY": "true",
        "GPT_DATA_DIR": '{"models": {"huggingface": "/environment"}}',
        "GPT_PRELOADED_MODELS__BASE": '[{"id": "gpt2"}]',
        "GPT_OTHER_PROGRAM": "not ours",
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "config.yml").write_text("proxy: {host: file, port: 2}\n")
    config = Config(proxy={"host": "argument"})  # type: ignore[arg-type]
    assert config.proxy == ProxyConfig(host="argument", port=2, username="environment")
    assert config.local_files_only
    assert config.data_dir == DataDirConfig(models=ModelsDirConfig(huggingface="/environment"))
    assert config.preloaded_models.base is not None
    assert [model.id for model in config.preloaded_models.base] == ["gpt2"]


def test_the_file_may_be_elsewhere_and_hold_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "other.yml"
    monkeypatch.setenv("GPT_TASK_CONFIG", str(path))
    assert Config() == Config(local_files_only=False)
    assert "no such file" in caplog.text
    path.write_text("local_files_only: true\nlog: {level: INFO}\n")
    assert Config().local_files_only
    assert "log is not a setting" in caplog.text
    assert not Config(local_files_only=False).local_files_only


@pytest.mark.parametrize(
    "content", ["proxy: {hots: typo}", "local_files_only: perhaps", "[1, 2]", "a: [", "data_dir: 5"]
)
def test_a_faulty_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yml").write_text(content)
    with pytest.raises(ValidationError):
        Config()


def test_a_part_wins_over_the_whole_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_PROXY__HOST", "part")
    monkeypatch.setenv("GPT_PROXY", '{"host": "whole", "port": 3}')
    monkeypatch.setenv("GPT_DATA_DIR__MODELS__HUGGINGFACE", "/part")
    monkeypatch.setenv("GPT_DATA_DIR__MODELS", '{"huggingface": "/whole"}')
    config = Config()
    assert config.proxy == ProxyConfig(host="part", port=3)
    assert config.data_dir == DataDirConfig(models=ModelsDirConfig(huggingface="/part"))


@pytest.mark.parametrize("text", ["abc", "[1", "5", "null"])
def test_a_variable_that_must_be_an_object_is_named(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("GPT_PRELOADED_MODELS", text)
    with pytest.raises(ValidationError, match="preloaded_models"):
        Config()


def test_an_unknown_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="cuda_memory"):
        Config(cuda_memory=1)  # type: ignore[call-arg]
    monkeypatch.setenv("GPT_PROXY__HOTS", "typo")
    with pytest.raises(ValidationError, match="hots"):
        Config()


def test_the_default_configuration_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_LOCAL_FILES_ONLY", "1")
    first = get_config()
    assert first.local_files_only
    monkeypatch.delenv("GPT_LOCAL_FILES_ONLY")
    assert get_config() is first


def test_the_address_of_a_proxy() -> None:
    assert proxy_url(ProxyConfig(host="http://127.0.0.1")) == "http://127.0.0.1:8080"
    assert proxy_url(ProxyConfig(host="proxy", port=1)) == "http://proxy:1"
    secret = ProxyConfig(host="socks5://proxy", username="ann", password="p")
    assert proxy_url(secret) == "socks5://ann:p@proxy:8080"


def test_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://mine:1")
    monkeypatch.delenv("https_proxy", raising=False)
    with proxied(ProxyConfig(host="proxy")):
        assert os.environ["HTTP_PROXY"] == os.environ["https_proxy"] == "http://proxy:8080"
    assert os.environ["HTTP_PROXY"] == "http://mine:1"
    assert "https_proxy" not in os.environ


# --- Downloads, from a hub that only the proxy reaches -------------------------------------------


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A proxy that answers for the hub: it has one model, ``tiny/vision``."""
    served = Hub("tiny/vision", Path(DEMO))
    server = ThreadingHTTPServer(("127.0.0.1", 0), served.handler())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    served.port = server.server_address[1]
    yield served
    server.shutdown()
    server.server_close()


RUN = f"""
import base64, pathlib
from gpt_task.inference import run_task
image = pathlib.Path({str(REPOSITORY)!r}, "demo/images/red_circle.png").read_bytes()
image = {{"type": "image", "base64": base64.b64encode(image).decode()}}
question = {{"type": "text", "text": "What is in this image?"}}
messages = [{{"role": "user", "content": [image, question]}}]
response = run_task(model="tiny/vision", messages=messages)
assert "red circle" in response["choices"][0]["message"]["content"]
"""
PREFETCH = "from gpt_task.prefetch import prefetch_models\nprefetch_models()"


def python(code: str, **variables: str) -> str:
    """Run a script in a process whose hub does not answer; returns its errors."""
    inherited = {k: v for k, v in os.environ.items() if k.lower() not in ("no_proxy", "all_proxy")}
    hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://hub.invalid", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, **hub, **variables, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr if done.returncode else ""


@pytest.fixture
def variables(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """The configuration of a script that downloads."""
    return {
        "GPT_DATA_DIR__MODELS__HUGGINGFACE": str(tmp_path / "cache"),
        "GPT_PROXY__HOST": "127.0.0.1",
        "GPT_PROXY__PORT": str(hub.port),
        "GPT_PRELOADED_MODELS": '{"base": [{"id": "tiny/vision"}]}',
    }


def check_download(hub: Hub, cache: Path) -> None:
    """Everything was asked for through the proxy, and lies in the cache."""
    assert hub.asked
    assert all(address.startswith("http://hub.invalid/") for address in hub.asked)
    snapshot = cache / "models--tiny--vision" / "snapshots" / COMMIT
    assert (snapshot / "model.safetensors").is_file()
    assert not (snapshot / "model.bin").exists()


def test_run_task_downloads_through_the_proxy_into_the_cache(
    hub: Hub, variables: dict[str, str], tmp_path: Path
) -> None:
    assert python(RUN, **variables) == ""
    check_download(hub, tmp_path / "cache")


def test_what_was_prefetched_runs_without_the_hub(
    hub: Hub, variables: dict[str, str], tmp_path: Path
) -> None:
    assert python(PREFETCH, **variables) == ""
    check_download(hub, tmp_path / "cache")
    hub.asked.clear()
    assert python(RUN, **variables, GPT_LOCAL_FILES_ONLY="true") == ""
    assert not any("tiny" in address for address in hub.asked)
