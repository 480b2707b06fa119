"""The server in this process with a real engine and the keys of receipts that a test gives it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from serve_app.config.app_args import AppArgs
from serve_app.graph.dispatcher import Dispatcher
from serve_app.http.ingress import asgi_app
from serve_app.replicas.image_replica import PreprocessorReplica
from serve_app.replicas.model_replica import ModelReplica

MODEL: dict[str, Any] = {
    "id": "demo",
    "source": "./demo/model",
    "dtype": "float32",
    "device": "cpu",
    "engine": {"threads": 1},
}


def new_key(folder: Path, name: str = "key") -> Path:
    """A file with a new private key, made as the documentation says; beside it its public half."""
    file = folder / f"{name}.pem"
    openssl("genpkey", "-algorithm", "ed25519", "-out", str(file))
    openssl("pkey", "-in", str(file), "-pubout", "-out", str(public_half(file)))
    return file


def public_half(key: Path) -> Path:
    """The file of the public key that `new_key` has made."""
    return key.with_suffix(".public.pem")


def openssl(*arguments: str) -> str:
    """What openssl prints."""
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def server_maker() -> Callable[..., ASGIApp]:
    """Makes servers, with ``receipts`` of their configuration, in front of one real engine."""
    (model,) = AppArgs.model_validate({"models": [MODEL]}).models
    replica = _local(serve.deployment(name="receipts")(ModelReplica).bind(model, "cpu"))
    images = _local(serve.deployment(name="images")(PreprocessorReplica).bind([model]))

    def make(receipts: dict[str, Any] | None) -> ASGIApp:
        args = AppArgs.model_validate({"models": [MODEL], "receipts": receipts})
        return asgi_app(args, Dispatcher(args, images, {model.deployment: replica}))

    return make


def _local(application: serve.Application) -> DeploymentHandle[Any]:
    name = f"receipts-{id(application)}"
    handle: DeploymentHandle[Any] = serve.run(application, name=name, _local_testing_mode=True)
    return handle


def configured(key: Path, others: Sequence[Path] = ()) -> dict[str, Any]:
    """``receipts`` of the configuration."""
    return {"key_file": str(key), "other_public_keys": [str(other) for other in others]}
