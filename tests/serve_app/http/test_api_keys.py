"""Keys: where they are read from, what is refused, and that no message shows one."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from schema.errors import RateLimited
from serve_app.config.limit_args import AuthArgs, CorsArgs, KeyLimitArgs
from serve_app.config.strict import explain
from serve_app.http.middleware.api_keys import parse_keys, read_keys, readable_by_others
from serve_app.http.middleware.rate_limits import KeyLimits

KEY, OTHER = "sk-0123456789abcdef", "another.key_of~20+chars=="
HASHED = hashlib.sha256(OTHER.encode()).hexdigest()


def test_keys_are_found_by_their_names() -> None:
    keys = parse_keys(f"# people\n\nalice: {KEY}\n  bob :sha256:{HASHED}\r\n")
    assert keys.names == ["alice", "bob"]
    assert (keys.name_of(KEY), keys.name_of(OTHER)) == ("alice", "bob")
    for wrong in ("", "alice", KEY[:-1], f"{KEY} ", HASHED, f"sha256:{HASHED}", "é", "\ud800"):
        assert keys.name_of(wrong) is None
    assert KEY not in repr(vars(keys))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no key in it"),
        ("# alice: x", "there is no key in it"),
        (KEY, "line 1 does not begin with a name and a colon"),
        (f"a b: {KEY}", "line 1 does not begin"),
        (f"\nalice: {KEY[:15]}", "line 2: a key is 16 to 200"),
        (f"alice: {KEY}!", "line 1: a key is"),
        (f"alice: {KEY} bob: {KEY}", "line 1: a key is"),
        (f"alice: sha256:{HASHED[:-1]}", "line 1: a key is"),
        (f"alice: {KEY}\nalice: {OTHER}", "line 2: the name or the key is there twice"),
        (f"alice: {OTHER}\nbob: sha256:{HASHED}", "line 2: the name or the key"),
    ],
)
def test_faulty_keys_are_refused_and_not_shown(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"line|no key") as caught:
        parse_keys(text)
    assert said in str(caught.value)
    assert KEY[:15] not in str(caught.value)


def test_keys_from_a_file_and_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    path.write_text(f"alice: {KEY}\n")
    path.chmod(0o644)
    from_file = AuthArgs(keys_file=str(path))
    assert read_keys(from_file).name_of(KEY) == "alice"
    assert f"chmod 600 {path}" in str(readable_by_others(from_file))
    path.chmod(0o600)
    assert readable_by_others(from_file) is None
    monkeypatch.setenv("SERVE_KEYS", f"alice: {KEY}, bob: {OTHER}")
    from_environment = AuthArgs(keys_env="SERVE_KEYS")
    assert read_keys(from_environment).names == ["alice", "bob"]
    assert readable_by_others(from_environment) is None


@pytest.mark.parametrize(
    ("auth", "said"),
    [
        ({"keys_file": "/no/such/file"}, "keys_file: /no/such/file: No such file"),
        ({"keys_file": "."}, "Is a directory"),
        ({"keys_file": "demo/model/model.safetensors"}, "is not UTF-8"),
        ({"keys_env": "NO_SUCH_KEYS"}, "keys_env: the environment variable NO_SUCH_KEYS is not"),
        ({"keys_env": "SERVE_KEYS", "keys": {"bob": {}}}, "keys.bob: there is no key of this name"),
    ],
)
def test_keys_that_cannot_be_read(
    auth: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVE_KEYS", f"alice: {KEY}")
    with pytest.raises(ValueError, match="key") as caught:
        read_keys(AuthArgs.model_validate(auth))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("args", "fields", "said"),
    [
        (AuthArgs, {}, "give one of keys_file and keys_env"),
        (AuthArgs, {"keys_file": "a", "keys_env": "B"}, "give one of keys_file and keys_env"),
        (AuthArgs, {"keys_env": "sk-0123"}, "args.keys_env: "),
        (AuthArgs, {"keys_fil": "a"}, "did you mean 'keys_file'?"),
        (AuthArgs, {"keys_file": "a", "requests_per_minute": 0}, "args.requests_per_minute: "),
        (AuthArgs, {"keys_file": "a", "keys": {"a b": {}}}, "a key's name is 1 to 64"),
        (AuthArgs, {"keys_file": "a", "keys": {"a": {"max": 1}}}, "args.keys.a: unknown key 'max'"),
        (CorsArgs, {"allow_origins": []}, "args.allow_origins: "),
        (CorsArgs, {"allow_origins": ["app.example.org"]}, "args.allow_origins.0: must be"),
        (CorsArgs, {"allow_origins": ["https://app.example.org/"]}, "without a path"),
        (CorsArgs, {"allow_origins": ["*", "https://a.example"]}, "leave out the others"),
        (CorsArgs, {"allow_origins": ["*"], "allow_credentials": True}, "unknown key"),
    ],
)
def test_faulty_arguments(args: Any, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        args.model_validate(fields)
    assert said in "\n".join(explain(caught.value))


def test_limits_of_a_single_key() -> None:
    own = {"bob": {"max_concurrent": 9}, "eve": {"requests_per_minute": None}}
    auth = AuthArgs.model_validate({"keys_env": "K", "requests_per_minute": 5, "keys": own})
    limits = {name: auth.limits_of(name) for name in ("alice", "bob", "eve")}
    assert limits["alice"] == KeyLimitArgs(requests_per_minute=5)
    assert limits["bob"] == KeyLimitArgs(requests_per_minute=5, max_concurrent=9)
    assert limits["eve"] == KeyLimitArgs(requests_per_minute=None)


def _at(times: list[float]) -> Callable[[], float]:
    return lambda: times[0]


def test_requests_per_minute() -> None:
    now = [100.0]
    limits = KeyLimits("alice", KeyLimitArgs(requests_per_minute=6), _at(now))
    for _ in range(6):
        with limits.place():
            pass
    with pytest.raises(RateLimited, match="'alice' may send 6 requests a minute") as caught:
        limits.place().__enter__()
    assert caught.value.retry_after_s == pytest.approx(10)
    now[0] += 10.01
    with limits.place():
        pass
    with pytest.raises(RateLimited):
        limits.place().__enter__()
    now[0] += 3600  # an hour without requests gives those of a minute
    for _ in range(6):
        with limits.place():
            pass
    with pytest.raises(RateLimited):
        limits.place().__enter__()


def test_requests_at_the_same_time() -> None:
    limits = KeyLimits("alice", KeyLimitArgs(max_concurrent=2, requests_per_minute=4))
    with limits.place(), limits.place():
        for _ in range(9):  # does not count as one of the minute
            with pytest.raises(RateLimited, match="has 2 requests open"):
                limits.place().__enter__()
    with pytest.raises(KeyError), limits.place():
        raise KeyError  # a failed request gives its place back
    with limits.place():
        pass
