"""``python -m gpt_task.receipts``: ``check`` a receipt offline, or have a server ``verify`` it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from gpt_task.receipts import ReceiptWrong, Uncheckable, check, read_claim, read_keys, verify
from gpt_task.receipts.sources import is_address

LOCAL_SERVER = "http://127.0.0.1:8000"
RIGHT, WRONG, UNKNOWN = 0, 1, 2
"""Exit statuses: the receipt is right; it, the request or the response is not; nobody can say."""


def _address(text: str) -> str:
    if not is_address(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an address with http:// or https://")
    return text


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m gpt_task.receipts",
        description=__doc__,
        epilog="Exit status: 0 right, 1 wrong, 2 it cannot be said.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    offline = commands.add_parser("check", help="check signature and digests")
    remote = commands.add_parser("verify", help="have a server read the answer")
    for each in (offline, remote):
        each.add_argument(
            "file", type=Path, help='JSON: {"task": ..., "response": ...}, or request for task'
        )
    offline.add_argument(
        "--keys",
        default=LOCAL_SERVER,
        help="a file (JWK Set, or a public key in PEM) or a server's address; %(default)s",
    )
    remote.add_argument("--server", type=_address, default=LOCAL_SERVER, help="%(default)s")
    remote.add_argument(
        "--tolerance", type=float, default=0.0, help="of the margins of tokens; %(default)s"
    )
    remote.add_argument(
        "--api-key-env", metavar="NAME", help="environment variable with a key of the server"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options = _options(arguments)
    try:
        claim = read_claim(options.file)
        if options.command == "check":
            for sentence in check(claim, read_keys(options.keys)):
                print(sentence)
            return RIGHT
        name = options.api_key_env
        if name is not None and name not in os.environ:
            raise Uncheckable(f"the environment variable {name} is not set")
        key = None if name is None else os.environ[name]
        verdict = verify(claim, options.server, options.tolerance, key)
        print(json.dumps(verdict, ensure_ascii=False, indent=2))
        return WRONG if verdict.get("verdict") == "different" else RIGHT
    except ReceiptWrong as error:
        print(f"Wrong: {error}", file=sys.stderr)
        return WRONG
    except Uncheckable as error:
        print(f"Cannot say: {error}", file=sys.stderr)
        return UNKNOWN


if __name__ == "__main__":
    sys.exit(main())
