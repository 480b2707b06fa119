"""Receipts of a server with a real engine, checked with openssl and canonical JSON of node's."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from starlette.types import ASGIApp

from schema import EngineStopped, StreamChunk, Task, schemas
from tests.serve_app.http.receipts.signed import (
    configured,
    new_key,
    openssl,
    public_half,
    server_maker,
)
from tests.serve_app.scripted import StandIn, app_maker, chunk, client, events_of
from tests.serve_app.tasks import joined

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="no node here")

RECEIPT = Draft202012Validator(schemas()["receipt"])
SAMPLED = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.5, "num_return_sequences": 2}
GREEDY = {"max_new_tokens": 12, "num_return_sequences": 3}
QUESTION = [{"role": "user", "content": "Count from 3 to 9. é\u2028\u0007😀"}]

# The rules of RFC 8785 in JavaScript, where its numbers and its order of keys come from.
CANONICAL_JS = """
const canonical = (v) => Array.isArray(v) ? '[' + v.map(canonical).join(',') + ']'
  : v !== null && typeof v === 'object' ? '{' + Object.keys(v).sort()
    .map((k) => JSON.stringify(k) + ':' + canonical(v[k])).join(',') + '}' : JSON.stringify(v);
process.stdout.write(canonical(JSON.parse(require('fs').readFileSync(0, 'utf8'))));
"""


def canonical(value: Any) -> bytes:
    """RFC 8785 JSON by another program."""
    text = value if isinstance(value, str) else json.dumps(value)
    done = subprocess.run(
        ["node", "-e", CANONICAL_JS], input=text.encode(), capture_output=True, check=True
    )
    return done.stdout


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def serve_with() -> Callable[..., ASGIApp]:
    return server_maker()


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_key(tmp_path_factory.mktemp("keys"))


async def answered(app: ASGIApp, path: str, body: Any) -> Any:
    """The answer to a request, which may be a text of JSON."""
    content = body if isinstance(body, str) else json.dumps(body)
    async with client(app) as http:
        response = await http.post(path, content=content)
    assert response.status_code == 200, response.text
    return response.json()


def check_signature(receipt: dict[str, Any], key: Path, folder: Path) -> None:
    """With openssl; raises if it is not of this key."""
    rest = {name: value for name, value in receipt.items() if name != "signature"}
    (folder / "signed").write_bytes(canonical(rest))
    signature = receipt["signature"]
    (folder / "signature").write_bytes(base64.urlsafe_b64decode(signature + "=="))
    said = openssl(
        *("pkeyutl", "-verify", "-pubin", "-inkey", str(public_half(key)), "-rawin"),
        *("-in", str(folder / "signed"), "-sigfile", str(folder / "signature")),
    )
    assert "Success" in said


def task(settings: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": QUESTION, "generation_config": settings} | fields


@pytest.mark.parametrize("settings", [SAMPLED, GREEDY], ids=["sampled", "copies"])
async def test_a_receipt_is_of_the_task_and_its_answer(
    settings: dict[str, Any], serve_with: Callable[..., ASGIApp], key: Path, tmp_path: Path
) -> None:
    app = serve_with(configured(key))
    asked = task(settings, receipt=True, return_token_ids=True, seed=7)
    response = await answered(app, "/v1/tasks", asked)
    receipt = response.pop("receipt")
    RECEIPT.validate(receipt)
    check_signature(receipt, key, tmp_path)
    assert receipt["route"] == "/v1/tasks"
    assert receipt["request_digest"] == sha256(canonical(asked))
    assert receipt["seed"] == 7
    for name in ("model", "system_fingerprint", "usage"):
        assert receipt[name] == response[name]
    assert (receipt["dtype"], receipt["quantize_bits"], receipt["layout"]) == (
        "float32",
        None,
        None,
    )
    assert len(receipt["choices"]) == len(response["choices"]) == settings["num_return_sequences"]
    for signed, choice in zip(receipt["choices"], response["choices"], strict=True):
        assert (signed["index"], signed["finish_reason"]) == (
            choice["index"],
            choice["finish_reason"],
        )
        assert signed["message_digest"] == sha256(canonical(choice["message"]))
        assert signed["token_ids_digest"] == sha256(canonical(choice["token_ids"]))
    # Nothing but the receipt is added to the answer.
    plain = await answered(app, "/v1/tasks", task(settings, return_token_ids=True, seed=7))
    assert plain == response


async def test_a_task_has_one_receipt_whole_and_streamed(
    serve_with: Callable[..., ASGIApp], key: Path
) -> None:
    app = serve_with(configured(key))
    asked = task(SAMPLED, receipt=True)
    whole = await answered(app, "/v1/tasks", asked)
    assert (await answered(app, "/v1/tasks", asked)) == whole
    async with client(app) as http:
        streamed = await http.post("/v1/tasks?stream=true", json=asked)
    *before, last = events_of(streamed.text)
    assert last["receipt"] == whole["receipt"]
    assert not any("receipt" in event for event in before)
    validator = Draft202012Validator(schemas()["stream_chunk"])
    for event in (*before, last):
        validator.validate(event)
    assert joined([*before, last])["choices"] == whole["choices"]


async def test_the_digest_is_of_the_request_as_it_was_sent(
    serve_with: Callable[..., ASGIApp], key: Path
) -> None:
    """Neither the order of keys nor the spelling of a number or a text counts; all else does."""
    app = serve_with(configured(key))
    sent = (
        '{"receipt": true, "seed": 2.0, "model": "demo", "generation_config": {"temperature": 5E-1,'
        ' "max_new_tokens": 2}, "messages": [{"role": "user", "content": "\\u00e9"}]}'
    )
    same = (
        '{"messages":[{"content":"é","role":"user"}],"model":"demo","seed":2,"receipt":true,'
        '"generation_config":{"max_new_tokens":2e0,"temperature":0.50}}'
    )
    with_default = json.dumps(json.loads(same) | {"echo": False})
    digests = [
        (await answered(app, "/v1/tasks", body))["receipt"]["request_digest"]
        for body in (sent, same, with_default)
    ]
    assert digests[:2] == [sha256(canonical(sent))] * 2
    assert digests[2] == sha256(canonical(with_default)) != digests[0]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_completion_has_a_receipt(
    stream: bool, serve_with: Callable[..., ASGIApp], key: Path, tmp_path: Path
) -> None:
    """Without a seed too: the receipt has the one that was drawn."""
    app = serve_with(configured(key))
    asked = {
        "model": "demo",
        "messages": QUESTION,
        "max_tokens": 8,
        "receipt": True,
        "stream": stream,
    }
    async with client(app) as http:
        response = await http.post("/v1/chat/completions", json=asked)
    seed = int(response.headers["x-seed"])
    if stream:
        *before, last = events_of(response.text)
        assert not any("receipt" in event for event in before)
        content = "".join(
            event["choices"][0]["delta"].get("content", "") for event in (*before, last)
        )
        receipt = last["receipt"]
    else:
        answer = response.json()
        content, receipt = answer["choices"][0]["message"]["content"], answer["receipt"]
    RECEIPT.validate(receipt)
    check_signature(receipt, key, tmp_path)
    assert receipt["route"] == "/v1/chat/completions"
    assert receipt["request_digest"] == sha256(canonical(asked))
    assert receipt["seed"] == seed
    message = {"role": "assistant", "content": content}
    assert receipt["choices"][0]["message_digest"] == sha256(canonical(message))
    # A task that means the same has the same choices.
    meant = task(
        {
            "max_new_tokens": 8,
            "do_sample": True,
            "temperature": 1.0,
            "top_p": 1.0,
            "num_return_sequences": 1,
        },
        seed=seed,
        answer_format="message",
        receipt=True,
    )
    of_task = (await answered(app, "/v1/tasks", meant))["receipt"]
    assert of_task["choices"] == receipt["choices"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "One, two", "max_tokens": 4, "seed": 1}),
        ("/v1/responses", {"input": "One, two", "max_output_tokens": 16, "seed": 1}),
        ("/v1/messages", {"messages": QUESTION, "max_tokens": 4, "seed": 1}),
    ],
)
async def test_the_other_apis_of_clients_have_receipts(
    path: str, body: dict[str, Any], serve_with: Callable[..., ASGIApp], key: Path, tmp_path: Path
) -> None:
    app = serve_with(configured(key))
    body = {"model": "demo", "receipt": True} | body
    whole = (await answered(app, path, body))["receipt"]
    check_signature(whole, key, tmp_path)
    assert (whole["route"], whole["seed"]) == (path, 1)
    assert whole["request_digest"] == sha256(canonical(body))
    async with client(app) as http:
        streamed = await http.post(path, json=body | {"stream": True})
    found = [json.loads(line[6:]) for line in streamed.text.split("\n") if line[:7] == "data: {"]
    receipts = [event.get("receipt") or event.get("response", {}).get("receipt") for event in found]
    (receipt,) = (one for one in receipts if one)
    check_signature(receipt, key, tmp_path)
    assert receipt["request_digest"] == sha256(canonical(body | {"stream": True}))
    assert receipt["choices"] == whole["choices"]


@pytest.mark.parametrize(
    ("path", "body", "param", "said"),
    [
        ("/v1/tasks", {}, "receipt", "no key to sign receipts"),
        ("/v1/chat/completions", {}, "receipt", "no key to sign receipts"),
        ("/v1/chat/completions", {"stream": True}, "receipt", "no key to sign receipts"),
        (
            "/v1/completions",
            {"prompt": ["One", "two"], "messages": None},
            "receipt",
            "of one prompt, and there are 2",
        ),
    ],
)
async def test_a_receipt_that_cannot_be_made_is_refused(
    path: str, body: dict[str, Any], param: str, said: str, serve_with: Callable[..., ASGIApp]
) -> None:
    asked = {"model": "demo", "messages": QUESTION, "receipt": True} | body
    async with client(serve_with(None)) as http:
        sent = {name: value for name, value in asked.items() if value is not None}
        response = await http.post(path, json=sent)
        assert (await http.get("/v1/receipts/keys")).json() == {"keys": []}
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert said in error["message"]
    assert error["message"].startswith("receipt: ") or ": " in error["message"]


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("tools", [{"type": "function", "limit": 2**53}], "tools.0.limit"),
        ("template_args", {"thinking": -(2**53)}, "template_args.thinking"),
    ],
)
async def test_what_canonical_json_cannot_hold_is_refused_only_with_a_receipt(
    field: str, value: Any, param: str, serve_with: Callable[..., ASGIApp], key: Path
) -> None:
    app = serve_with(configured(key))
    asked = task({"max_new_tokens": 1}) | {field: value}
    async with client(app) as http:
        response = await http.post("/v1/tasks", json=asked | {"receipt": True})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == param
        assert "2^53 - 1" in error["message"]
        assert "leave out receipt" in error["message"]
        assert (await http.post("/v1/tasks", json=asked)).status_code == 200


async def test_a_hint_that_has_no_canonical_form_is_refused(
    serve_with: Callable[..., ASGIApp], key: Path
) -> None:
    """Fields that are hints may hold anything; their digest cannot."""
    app = serve_with(configured(key))
    asked = {"model": "demo", "messages": QUESTION, "max_tokens": 1, "receipt": True}
    deep = "[" * 500 + "]" * 500
    async with client(app) as http:
        for value, said in (
            ('"\\ud800"', "half a surrogate pair"),
            ('{"\\ud800": 1}', "a key that is not Unicode"),
            ("9007199254740992", "2^53 - 1"),
        ):
            body = json.dumps(asked)[:-1] + f', "metadata": {value}}}'
            response = await http.post("/v1/chat/completions", content=body)
            error = response.json()["error"]
            assert response.status_code == 400, error
            assert error["param"].startswith("metadata")
            assert said in error["message"]
        body = json.dumps(asked)[:-1] + f', "metadata": {deep}}}'
        response = await http.post("/v1/chat/completions", content=body)
        assert response.status_code in (200, 400)  # as deep as the interpreter can go


class LosingReplica(StandIn):
    """Is lost in the middle of the first answer to a task with a seed."""

    runs = 0

    async def chunks(self, task: Task) -> AsyncGenerator[StreamChunk, None]:
        LosingReplica.runs += 1
        record: Any = {"dtype": "float32", "quantize_bits": None, "layout": None}
        record["choices"] = [{"index": 0, "token_ids_digest": "0" * 64, "trace": None}]
        texts = ("One", ", two", ", three", ".")
        for number, text in enumerate(texts):
            if task.seed and LosingReplica.runs == 1 and number == 2:
                raise EngineStopped("gone", retry_after_s=1)
            if number < len(texts) - 1:
                yield chunk(text)
            else:
                yield {**chunk(text, "stop"), "record": record}


@pytest.mark.parametrize("stream", ["true", "false"])
async def test_a_lost_replica_does_not_change_the_receipt(
    stream: str, key: Path, tmp_path: Path
) -> None:
    """The message that is signed is the one that the client has put together."""
    app = app_maker(LosingReplica)(receipts=configured(key))
    receipts = []
    for seed in (0, 1):
        LosingReplica.runs = 0
        asked = {"model": "demo", "messages": QUESTION, "receipt": True, "seed": seed}
        async with client(app) as http:
            response = await http.post(f"/v1/tasks?stream={stream}", json=asked)
        events = events_of(response.text) if stream == "true" else [response.json()]
        assert LosingReplica.runs == (2 if seed else 1)
        assert "record" not in response.text
        receipts.append(events[-1]["receipt"])
    message = {"role": "assistant", "content": "One, two, three."}
    for receipt in receipts:
        check_signature(receipt, key, tmp_path)
        assert receipt["choices"][0]["message_digest"] == sha256(canonical(message))
    assert receipts[0]["choices"] == receipts[1]["choices"]


async def test_rotation(serve_with: Callable[..., ASGIApp], tmp_path: Path) -> None:
    """The next key is published before it signs, the old one while receipts of it are checked."""
    old, new = new_key(tmp_path, "old"), new_key(tmp_path, "new")
    asked = task({"max_new_tokens": 2}, receipt=True)
    receipts, published = [], []
    for signs, other in ((old, new), (new, old)):
        app = serve_with(configured(signs, [public_half(other)]))
        async with client(app) as http:
            published.append((await http.get("/v1/receipts/keys")).json()["keys"])
            receipts.append((await http.post("/v1/tasks", json=asked)).json()["receipt"])
        check_signature(receipts[-1], signs, tmp_path)
        assert receipts[-1]["key_id"] == published[-1][0]["kid"]
    assert published[0] == published[1][::-1]
    first, second = receipts
    unsigned = [
        {name: value for name, value in one.items() if name not in ("key_id", "signature")}
        for one in (first, second)
    ]
    assert unsigned[0] == unsigned[1]
    assert first["key_id"] != second["key_id"]
    with pytest.raises(subprocess.CalledProcessError):
        check_signature(second, old, tmp_path)


async def test_published_keys_are_jwks(
    serve_with: Callable[..., ASGIApp], key: Path, tmp_path: Path
) -> None:
    async with client(serve_with(configured(key))) as http:
        answer = await http.get("/v1/receipts/keys")
    (published,) = answer.json()["keys"]
    # The last 32 bytes of a public key's DER are the key (RFC 8410).
    der = tmp_path / "key.der"
    openssl("pkey", "-in", str(key), "-pubout", "-outform", "DER", "-out", str(der))
    raw = der.read_bytes()[-32:]
    assert published["x"] == base64.urlsafe_b64encode(raw).decode().rstrip("=")
    thumbprint = f'{{"crv":"Ed25519","kty":"OKP","x":"{published["x"]}"}}'
    digest = hashlib.sha256(thumbprint.encode()).digest()
    assert published["kid"] == base64.urlsafe_b64encode(digest).decode().rstrip("=")
