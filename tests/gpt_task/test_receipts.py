"""`python -m gpt_task.receipts`: what it finds right, and that it finds every change."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gpt_task.receipts.__main__ import main
from schema.answers.canonical import digest
from schema.answers.signature import public_key, sign

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
KEYS = {"keys": [public_key(each.public_key()) for each in (OTHER, KEY)]}

TASK: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Hi."}],
    "receipt": True,
    "seed": 3,
}
RESPONSE: dict[str, Any] = {
    "model": "demo",
    "choices": [
        {
            "index": index,
            "message": {"role": "assistant", "content": f"Hello {index}."},
            "token_ids": [5, index],
            "finish_reason": "stop",
        }
        for index in range(2)
    ],
    "usage": {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6},
    "system_fingerprint": "fp_1",
}


def signed(
    request: dict[str, Any],
    response: dict[str, Any],
    route: str = "/v1/tasks",
    seed: int = 3,
    **changed: Any,
) -> dict[str, Any]:
    """A receipt by this test's own hand, of a response to a task."""
    fields: dict[str, Any] = {
        "version": 1,
        "route": route,
        "request_digest": digest(request),
        **{name: response[name] for name in ("model", "system_fingerprint", "usage")},
        "dtype": "float32",
        "quantize_bits": None,
        "layout": None,
        "seed": seed,
        "choices": [
            {
                "index": choice["index"],
                "message_digest": digest(choice["message"]),
                "token_ids_digest": digest(choice["token_ids"]),
                "finish_reason": choice["finish_reason"],
                "trace": None,
            }
            for choice in response["choices"]
        ],
        "key_id": public_key(KEY.public_key())["kid"],
    } | changed
    return fields | {"signature": sign(fields, KEY)}


CLAIM = {"task": TASK, "response": RESPONSE | {"receipt": signed(TASK, RESPONSE)}}
CHAT = {"model": "demo", "messages": TASK["messages"], "receipt": True}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def chat_claim() -> dict[str, Any]:
    """A chat completion with a call, whose form of a message is another than a task's."""
    of_task = copy.deepcopy(RESPONSE)
    del of_task["choices"][1]
    of_task["choices"][0]["message"] = {
        "role": "assistant",
        "content": "",
        "tool_calls": [CALL],
    }
    answer = copy.deepcopy(of_task) | {"id": "chatcmpl-1", "object": "chat.completion", "seed": 9}
    answer["choices"][0]["message"] |= {"content": None, "refusal": None}
    del answer["choices"][0]["token_ids"]
    answer["receipt"] = signed(CHAT, of_task, "/v1/chat/completions", seed=9)
    return {"request": CHAT, "response": answer}


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command on a claim; gives its exit status and what it printed."""
    (tmp_path / "keys.json").write_text(json.dumps(KEYS))

    def run(claim: Any, *options: str, command: str = "check") -> tuple[int, str]:
        file = tmp_path / "claim.json"
        file.write_text(claim if isinstance(claim, str) else json.dumps(claim))
        if command == "check" and not options:
            options = ("--keys", str(tmp_path / "keys.json"))
        status = main([command, str(file), *options])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def test_right_claims(run: Callable[..., tuple[int, str]]) -> None:
    status, said = run(CLAIM)
    assert (status, "no token ids" in said) == (0, False)
    assert "It is of this response." in said
    assert run({"request": TASK, "response": CLAIM["response"]})[0] == 0
    status, said = run(chat_claim())
    assert (status, "no token ids" in said) == (0, True)


def test_a_key_in_pem(run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    for key, expected in ((KEY, 0), (OTHER, 2)):
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / "key.pem").write_bytes(pem)
        assert run(CLAIM, "--keys", str(tmp_path / "key.pem"))[0] == expected


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values that are not containers."""
    children: Any = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    else:
        yield path
    for key, child in children:
        yield from _leaves(child, (*path, key))


def _changed(claim: Any, path: tuple[Any, ...], *, leave_out: bool) -> Any:
    made = copy.deepcopy(claim)
    place = made
    for part in path[:-1]:
        place = place[part]
    old = place[path[-1]]
    if leave_out:
        del place[path[-1]]
    elif isinstance(old, str):
        place[path[-1]] = ("A" if old[:1] != "A" else "B") + old[1:]
    elif isinstance(old, bool) or old is None:
        place[path[-1]] = 1
    else:
        place[path[-1]] = old + 1
    return made


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("make", [lambda: CLAIM, chat_claim], ids=["task", "chat"])
def test_every_change_is_found(
    make: Callable[[], Any], leave_out: bool, run: Callable[..., tuple[int, str]]
) -> None:
    """Each value in request, response and receipt, changed and left out; nothing is overlooked."""
    claim = make()
    # A receipt does not cover these; null stands for what a chat's message has not.
    free: set[tuple[Any, ...]] = {("response", name) for name in ("id", "object")}
    if leave_out:
        free |= {("response", "seed"), ("response", "choices", 0, "message", "refusal")}
        free |= {("response", "choices", 0, "message", "content")} if "request" in claim else set()
    found = 0
    for path in _leaves(claim):
        if path in free or (leave_out and path[:1] == ("response",) and "token_ids" in path):
            continue
        status, said = run(_changed(claim, path, leave_out=leave_out))
        known = path[:3] in (("response", "receipt", "version"), ("response", "receipt", "key_id"))
        assert status in ((1, 2) if known else (1,)), (path, said)
        assert said.startswith(("Wrong: ", "Cannot say: ")), said
        found += 1
    assert found > 20


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("request_digest",), "0" * 64, "receipt.signature: is not of this receipt"),
        (("signature",), "A" * 86, "receipt.signature: is not of this receipt"),
        (("signature",), "A", "receipt.signature: "),
        (("usage", "total_tokens"), -1, "receipt.usage.total_tokens: "),
        (("more",), 1, "receipt.more: "),
    ],
)
def test_altered_receipts(
    path: tuple[str, ...], value: Any, said: str, run: Callable[..., tuple[int, str]]
) -> None:
    claim: Any = copy.deepcopy(CLAIM)
    place = claim["response"]["receipt"]
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    status, printed = run(claim)
    assert status == 1
    assert said in printed


def test_altered_answers_name_the_place(run: Callable[..., tuple[int, str]]) -> None:
    for changes, said in (
        ({"model": "other"}, "response.model: is not 'demo'"),
        ({"choices": RESPONSE["choices"][:1]}, "response.choices: are 1, and the receipt is of 2"),
        ({"choices": RESPONSE["choices"][::-1]}, "response.choices.0.index: is not 0"),
        ({"choices": None}, "response.choices: must be a list"),
    ):
        claim = {"task": TASK, "response": CLAIM["response"] | changes}
        status, printed = run(claim)
        assert (status, said in printed) == (1, True), printed
    claim = {"task": TASK | {"seed": 4}, "response": CLAIM["response"]}
    assert "the request was altered" in run(claim)[1]
    refusing = chat_claim()
    refusing["response"]["choices"][0]["message"]["refusal"] = "No."
    assert "response.choices.0.message.refusal" in run(refusing)[1]


def test_a_task_and_its_seed(run: Callable[..., tuple[int, str]]) -> None:
    """A server that draws with another seed than the task's has not run this task."""
    receipt = signed(TASK, RESPONSE, seed=4)
    status, said = run({"task": TASK, "response": RESPONSE | {"receipt": receipt}})
    assert (status, "receipt.seed: is 4, and the request's is 3" in said) == (1, True)
    status, said = run(
        {
            "task": TASK,
            "response": RESPONSE | {"receipt": signed(TASK, RESPONSE, "/v1/chat/completions")},
        }
    )
    assert (status, "receipt.route" in said) == (1, True)


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ("{", "is not valid JSON"),
        ('{"task": {}, "task": {}}', "twice"),
        ([], "must be an object"),
        ({"response": {}}, "one of task and request"),
        ({"task": {}, "request": {}, "response": {}}, "one of task and request"),
        ({"task": {}}, "response must be there"),
        ({"task": {}, "response": {}}, "has no receipt; ask with receipt: true"),
        (
            {"task": TASK, "response": RESPONSE | {"receipt": signed(TASK, RESPONSE, version=2)}},
            "receipt.version: is 2, and this program knows 1",
        ),
        (
            {
                "task": TASK,
                "response": RESPONSE | {"receipt": signed(TASK, RESPONSE, key_id="A" * 43)},
            },
            "is not a known key",
        ),
    ],
)
def test_what_cannot_be_said(claim: Any, said: str, run: Callable[..., tuple[int, str]]) -> None:
    status, printed = run(claim)
    assert (status, printed[:12], said in printed) == (2, "Cannot say: ", True), printed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("[]", "must be a JWK Set"),
        ('{"keys": []}', "the server signs no receipts"),
        ('{"keys": [{"kty": "RSA"}]}', "is not a known key (none)"),
        ("-----BEGIN", "is not a public key in PEM"),
        # A key under the id of another one.
        (
            json.dumps({"keys": [KEYS["keys"][0] | {"kid": KEYS["keys"][1]["kid"]}]}),
            "is not a known key (none)",
        ),
    ],
)
def test_keys_that_are_none(
    text: str | None, said: str, run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    file = tmp_path / "others"
    if text is not None:
        file.write_text(text)
    status, printed = run(CLAIM, "--keys", str(file))
    assert (status, said in printed) == (2, True), printed


class _Server(BaseHTTPRequestHandler):
    """Publishes the keys, and verifies what it is sent as the last test wants."""

    verdict: Any = None
    asked: Any = None

    def do_GET(self) -> None:
        self._answer(200, KEYS) if self.path == "/v1/receipts/keys" else self._answer(404, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        _Server.asked = (self.path, self.headers["authorization"], json.loads(body))
        status = 400 if "error" in self.verdict else 200
        self._answer(status, self.verdict)

    def _answer(self, status: int, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_keys_of_a_server(run: Callable[..., tuple[int, str]], server: str) -> None:
    for address in (server, f"{server}/", f"{server}/v1/receipts/keys"):
        assert run(CLAIM, "--keys", address)[0] == 0
    status, said = run(CLAIM, "--keys", f"{server}/elsewhere")
    assert (status, "answered 404" in said) == (2, True)


def test_a_server_that_is_not_there(run: Callable[..., tuple[int, str]]) -> None:
    status, said = run(CLAIM, "--keys", "http://127.0.0.1:9")
    assert (status, "does not answer" in said) == (2, True)


def test_a_server_verifies(
    run: Callable[..., tuple[int, str]], server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_KEY", "sk-0123456789abcdef")
    for verdict, expected in (("exact", 0), ("within_tolerance", 0), ("different", 1)):
        _Server.verdict = {"verdict": verdict, "first_difference": None}
        options = ("--server", server, "--tolerance", "0.5", "--api-key-env", "SERVER_KEY")
        status, said = run(CLAIM, *options, command="verify")
        assert (status, json.loads(said)) == (expected, _Server.verdict)
        path, key, body = _Server.asked
        assert (path, key) == ("/v1/verifications", "Bearer sk-0123456789abcdef")
        assert body == CLAIM | {"tolerance": 0.5}
    _Server.verdict = {"error": {"message": "no token ids"}}
    status, said = run(CLAIM, "--server", server, command="verify")
    assert (status, said) == (
        2,
        f"Cannot say: {server}/v1/verifications: answered 400: no token ids\n",
    )


def test_a_chat_completion_is_verified_as_the_task_that_it_means(
    run: Callable[..., tuple[int, str]], server: str
) -> None:
    _Server.verdict = {"verdict": "exact"}
    claim = chat_claim()
    claim["response"]["choices"][0]["token_ids"] = [5, 0]
    assert run(claim, "--server", server, command="verify")[0] == 0
    body = _Server.asked[2]
    assert body["task"]["seed"] == 9
    assert body["task"]["answer_format"] == "message"
    assert body["task"]["messages"] == [{"role": "user", "content": "Hi."}]
    assert body["response"]["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "", "tool_calls": [CALL]},
            "finish_reason": "stop",
            "token_ids": [5, 0],
        }
    ]
