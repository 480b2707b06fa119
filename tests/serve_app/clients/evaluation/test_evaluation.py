"""The requests that lm-eval has sent, sent again: a server has the scores of `transformers`.

``make test-evaluation RECORD=1`` runs lm-eval itself and writes them anew.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion

from serve_app.config.app_args import REPOSITORY
from tests.serve_app.clients.evaluation.__main__ import HERE, TOLERANCE
from tests.serve_app.clients.evaluation.plain_model import PlainModel

RECORDED: dict[str, Any] = json.loads((HERE / "recorded.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def plain() -> PlainModel:
    return PlainModel(REPOSITORY / "demo" / "model")


def bodies(path: str) -> list[dict[str, Any]]:
    found = [each["body"] for each in RECORDED["requests"] if each["path"] == path]
    assert found
    return found


def test_log_likelihoods(client: httpx.Client, plain: PlainModel) -> None:
    """Of each prompt all tokens but the first; the last one of a choice is generated."""
    for body in bodies("/v1/completions"):
        response = client.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        for ids, choice in zip(body["prompt"], response.json()["choices"], strict=True):
            wanted = plain.logprobs(ids)
            found = choice["logprobs"]["token_logprobs"][1:-1]
            assert found == pytest.approx([own for own, _ in wanted], abs=TOLERANCE)
            # lm-eval takes a token for the greedy one if none of these is more probable.
            most = [max(top.values()) for top in choice["logprobs"]["top_logprobs"][1:-1]]
            assert [own == best for own, best in zip(found, most, strict=True)] == [
                own == best for own, best in wanted
            ]


def test_texts(client: httpx.Client, plain: PlainModel) -> None:
    for body in bodies("/v1/chat/completions"):
        response = client.post("/v1/chat/completions", json=body)
        (choice,) = ChatCompletion.model_validate(response.json()).choices
        assert choice.message.content == plain.answer(
            body["messages"], body["max_tokens"], body["stop"]
        )


def test_the_page_and_the_requirements_name_the_version() -> None:
    version = RECORDED["version"]
    pins = (HERE.parent / "requirements/lm_eval.txt").read_text(encoding="utf-8")
    assert f"\nlm-eval=={version}\n" in pins
    page = (REPOSITORY / "docs/clients.md").read_text(encoding="utf-8")
    assert f"lm-eval {version}" in page
