"""`image_urls:` in the configuration, and which addresses the ingress accepts."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from schema.clients.openai import ChatCompletionRequest
from schema.errors import TaskArgsInvalid
from schema.message import MAX_URL_CHARS
from serve_app.check import main
from serve_app.config.app_args import REPOSITORY
from serve_app.config.image_url_args import ImageUrlArgs, opened_schemes
from serve_app.config.strict import explain
from tests.serve_app.scripted import app_maker, client

HOSTS = ["images.example.org"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "args.image_urls: allows nothing"),
        ({"timeout_s": 3.0}, "args.image_urls: allows nothing"),
        ({"allow_host": HOSTS}, "unknown key 'allow_host'; did you mean 'allow_hosts'?"),
        ({"allow_hosts": "a.test"}, "args.image_urls.allow_hosts: "),
        ({"allow_hosts": ["127.0.0.1"]}, "args.image_urls.allow_hosts.0: '127.0.0.1' must be"),
        ({"allow_hosts": [*HOSTS, "0x7f.1"]}, "args.image_urls.allow_hosts.1: "),
        ({"allow_hosts": ["[::1]"]}, "allow_hosts.0: "),
        ({"allow_hosts": ["*.127.1"]}, "allow_hosts.0: "),
        ({"allow_hosts": ["https://a.test"]}, "allow_hosts.0: "),
        ({"allow_hosts": ["a.test/x"]}, "allow_hosts.0: "),
        ({"allow_hosts": ["a.*.test"]}, "allow_hosts.0: "),
        ({"allow_hosts": ["*a.test"]}, "allow_hosts.0: "),
        ({"allow_hosts": ["a.test."]}, "allow_hosts.0: "),
        ({"allow_hosts": ["bücher.test"]}, "allow_hosts.0: "),
        ({"allow_hosts": ["a.test:"]}, "allow_hosts.0: "),
        ({"allow_hosts": ["a.test:0"]}, "allow_hosts.0: "),
        ({"allow_hosts": ["a.test:65536"]}, "allow_hosts.0: "),
        ({"allow_hosts": [""]}, "allow_hosts.0: "),
        ({"allow_hosts": HOSTS, "allow_networks": ["10.0.0.1/8"]}, "allow_networks.0: "),
        ({"allow_hosts": HOSTS, "allow_networks": ["all"]}, "allow_networks.0: "),
        ({"file_roots": ["/a"], "allow_http": True}, "no meaning without allow_hosts"),
        ({"file_roots": ["/a"], "allow_networks": ["10.0.0.0/8"]}, "no meaning without"),
        ({"file_roots": ["images"]}, "args.image_urls.file_roots.0: 'images' must be"),
        ({"file_roots": ["/"]}, "file_roots.0: "),
        ({"file_roots": ["/srv/.."]}, "file_roots.0: "),
        ({"file_roots": ["~"]}, "file_roots.0: "),
        ({"allow_hosts": HOSTS, "max_mb": 0.0}, "args.image_urls.max_mb: "),
        ({"allow_hosts": HOSTS, "timeout_s": -1.0}, "args.image_urls.timeout_s: "),
        ({"allow_hosts": HOSTS, "timeout_s": "5"}, "args.image_urls.timeout_s: "),
        ({"allow_hosts": HOSTS, "max_redirects": -1}, "args.image_urls.max_redirects: "),
    ],
)
def test_faults_name_the_key(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ImageUrlArgs.model_validate(fields)
    assert said in "\n".join(explain(caught.value, "args.image_urls"))


@pytest.mark.parametrize(
    ("entry", "allowed", "refused"),
    [
        ("A.Test", [("a.test", 443)], [("b.a.test", 443), ("a.test", 80), ("a.test", 8443)]),
        ("*.test", [("a.test", 443), ("b.a.test", 443)], [("test", 443), ("atest", 443)]),
        ("a.test:8443", [("a.test", 8443)], [("a.test", 443), ("b.test", 8443)]),
        ("*", [("a.test", 443), ("b", 443)], [("a.test", 80)]),
        ("*:8443", [("a.test", 8443)], [("a.test", 443)]),
    ],
)
def test_entries_of_the_list(
    entry: str, allowed: list[tuple[str, int]], refused: list[tuple[str, int]]
) -> None:
    args = ImageUrlArgs(allow_hosts=[entry])
    assert all(args.allows(host, port, 443) for host, port in allowed)
    assert not any(args.allows(host, port, 443) for host, port in refused)


@pytest.mark.parametrize(
    ("fields", "schemes"),
    [
        ({"allow_hosts": HOSTS}, {"https"}),
        ({"allow_hosts": HOSTS, "allow_http": True}, {"https", "http"}),
        ({"file_roots": ["/srv"]}, {"file"}),
        ({"allow_hosts": HOSTS, "file_roots": ["/srv"]}, {"https", "file"}),
        (None, set()),
    ],
)
def test_only_allowed_schemes_pass_the_ingress(
    fields: dict[str, Any] | None, schemes: set[str]
) -> None:
    opened = opened_schemes(None if fields is None else ImageUrlArgs.model_validate(fields))
    assert opened == schemes
    for scheme in ("http", "https", "file"):
        body = _chat(f"{scheme.upper()}://a.test/a.png").encode()
        if scheme in schemes:
            task, images = ChatCompletionRequest.parse(body, opened).task(0).split_images()
            assert images == [f"{scheme.upper()}://a.test/a.png"]
            assert "a.test" not in task.model_dump_json()
        else:
            with pytest.raises(TaskArgsInvalid, match="not opened by configuration"):
                ChatCompletionRequest.parse(body, opened)
    with pytest.raises(TaskArgsInvalid, match=f"at most {MAX_URL_CHARS} char|not opened"):
        ChatCompletionRequest.parse(_chat("https://a.test/" + "a" * MAX_URL_CHARS), opened)
    with pytest.raises(TaskArgsInvalid, match="data URL"):
        ChatCompletionRequest.parse(_chat("ftp://a.test/a.png"), opened)


def _chat(url: str) -> str:
    content = f'[{{"type": "image_url", "image_url": {{"url": "{url}"}}}}]'
    return f'{{"model": "demo", "messages": [{{"role": "user", "content": {content}}}]}}'


@pytest.mark.parametrize("url", ["https://a.test/a.png", "http://127.0.0.1/", "file:///etc/passwd"])
async def test_no_address_is_allowed_by_default(url: str) -> None:
    """This ingress has no preprocessor: requests are refused before it."""
    async with client(app_maker()()) as http:
        response = await http.post("/v1/chat/completions", content=_chat(url))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "messages.0.content.0.image_url.url")
    assert "data:image/png;base64," in error["message"]


def test_the_check_prints_what_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "config.yaml"

    def checked(**image_urls: Any) -> int:
        document["applications"][0]["args"]["image_urls"] = image_urls
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return main([str(path)])

    assert checked(allow_hosts=["*.example.com"], file_roots=[str(tmp_path)]) == 0
    assert (
        f"fetches images at addresses: https from *.example.com; files below {tmp_path}; 32 MB"
        in capsys.readouterr().out
    )
    fields = {"allow_hosts": HOSTS, "allow_http": True, "allow_networks": ["10.0.0.0/8"]}
    assert checked(**fields) == 0
    assert "https and http from images.example.org; also in" in capsys.readouterr().out
    assert checked(file_roots=[str(tmp_path / "none")]) == 1
    assert "args.image_urls.file_roots.0: no directory" in capsys.readouterr().err


def test_the_commented_example_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (REPOSITORY / "serve_config.yaml").read_text(encoding="utf-8")
    block = re.search(r"^      # image_urls:\n(?:      #.*\n)+", text, flags=re.MULTILINE)
    assert block
    example = re.sub(r"^      # ", "      ", block[0], flags=re.MULTILINE)
    example = example.replace("/srv/images]", f"{tmp_path}]")
    path = tmp_path / "config.yaml"
    path.write_text(text.replace(block[0], example), encoding="utf-8")
    assert main([str(path)]) == 0, capsys.readouterr().err
    assert "https from images.example.org, *.example.com" in capsys.readouterr().out
