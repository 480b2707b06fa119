"""Keys of receipts: where they are read from, what is refused, and that no message shows one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from serve_app.check import main as check
from serve_app.config.receipt_args import ReceiptArgs
from serve_app.config.strict import explain
from serve_app.http.receipts.keys import read_receipt_keys, readable_by_others
from tests.serve_app.http.receipts.signed import MODEL, new_key, openssl, public_half


def _args(**fields: Any) -> ReceiptArgs:
    return ReceiptArgs.model_validate(fields)


def _secret(key: Path) -> str:
    return "".join(line for line in key.read_text().splitlines() if "-----" not in line)


def test_keys_from_a_file_and_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, other = new_key(tmp_path), new_key(tmp_path, "other")
    from_file = read_receipt_keys(
        _args(key_file=str(key), other_public_keys=[str(public_half(other))])
    )
    monkeypatch.setenv("RECEIPTS_KEY", key.read_text())
    from_environment = read_receipt_keys(_args(key_env="RECEIPTS_KEY"))
    assert from_environment.published == from_file.published[:1]
    assert from_file.key_id == from_file.published[0]["kid"] != from_file.published[1]["kid"]
    assert _secret(key) not in repr(vars(from_file)) + str(from_file)


def test_a_key_that_others_can_read_is_told(tmp_path: Path) -> None:
    key = new_key(tmp_path)
    key.chmod(0o644)
    assert f"chmod 600 {key}" in str(readable_by_others(_args(key_file=str(key))))
    key.chmod(0o600)
    assert readable_by_others(_args(key_file=str(key))) is None


def _encrypted(folder: Path) -> str:
    key = new_key(folder)
    file = folder / "encrypted.pem"
    openssl("pkey", "-in", str(key), "-aes256", "-passout", "pass:word", "-out", str(file))
    return str(file)


def _rsa(folder: Path) -> str:
    file = folder / "rsa.pem"
    openssl("genpkey", "-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(file))
    return str(file)


def _text(folder: Path) -> str:
    file = folder / "text.pem"
    file.write_text("no key at all")
    return str(file)


def _cut(folder: Path) -> str:
    key = new_key(folder)
    key.write_text(key.read_text().replace("-----END", "=\n-----END")[3:])
    return str(key)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (lambda folder: str(folder / "none"), "No such file"),
        (str, "Is a directory"),
        (_encrypted, "is encrypted"),
        (_rsa, "of another kind than Ed25519; make one with: openssl genpkey"),
        (_text, "is not a private key in PEM; make one with: openssl genpkey"),
        (_cut, "is not a private key in PEM"),
        (lambda folder: str(public_half(new_key(folder))), "is not a private key in PEM"),
    ],
)
def test_faulty_private_keys(file: Callable[[Path], str], said: str, tmp_path: Path) -> None:
    name = file(tmp_path)
    with pytest.raises(ValueError, match=r"^key_file: ") as caught:
        read_receipt_keys(_args(key_file=name))
    assert said in str(caught.value)
    if Path(name).is_file() and Path(name).suffix == ".pem":
        assert not any(
            line in str(caught.value) for line in Path(name).read_text().split("\n")[1:2]
        )


def test_a_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ValueError, match=r"^key_env: the environment variable NO_SUCH_KEY is not"):
        read_receipt_keys(_args(key_env="NO_SUCH_KEY"))


def test_faulty_public_keys(tmp_path: Path) -> None:
    key, other = new_key(tmp_path), new_key(tmp_path, "other")
    rsa = tmp_path / "rsa.public.pem"
    openssl("pkey", "-in", _rsa(tmp_path), "-pubout", "-out", str(rsa))
    for file, said in (
        (other, "is a private key, of which only the public half"),
        (_text(tmp_path), "is not a public key in PEM"),
        (rsa, "of another kind than Ed25519"),
        (public_half(key), "published already"),
        (tmp_path / "none", "No such file"),
    ):
        args = _args(key_file=str(key), other_public_keys=[str(public_half(other)), str(file)])
        with pytest.raises(ValueError, match=r"^other_public_keys\.1: ") as caught:
            read_receipt_keys(args)
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "give one of key_file and key_env"),
        ({"key_file": "a", "key_env": "B"}, "give one of key_file and key_env"),
        ({"key_env": "-----BEGIN PRIVATE KEY-----"}, "args.key_env: "),
        ({"keyfile": "a"}, "did you mean 'key_file'?"),
        ({"key_file": "a", "other_public_keys": "b"}, "args.other_public_keys: "),
    ],
)
def test_faulty_arguments(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ReceiptArgs.model_validate(fields)
    assert said in "\n".join(explain(caught.value))


def test_the_command_check_says_which_key_signs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, other = new_key(tmp_path), new_key(tmp_path, "other")
    receipts = {"key_file": str(key), "other_public_keys": [str(public_half(other))]}
    application = {
        "name": "default",
        "import_path": "serve_app.app:build",
        "args": {"models": [MODEL], "receipts": receipts},
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"applications": [application]}))
    assert check([str(file)]) == 0
    ids = [each["kid"] for each in read_receipt_keys(_args(**receipts)).published]
    said = capsys.readouterr().out
    assert re.findall(r"^Receipts: .*$", said, re.MULTILINE) == [
        f"Receipts: signed by key {ids[0]}",
        f"Receipts: key {ids[1]} is published too",
    ]
    key.write_text("")
    assert check([str(file)]) == 1
    assert "applications.0.args.receipts.key_file: " in capsys.readouterr().err
