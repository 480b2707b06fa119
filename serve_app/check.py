"""``python -m serve_app.check serve_config.yaml``: is it right, and what will run?

``serve run`` reports a faulty configuration in its log and then stays up, serving nothing. This
command prints one line for each fault before that, and exits with status 1.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic import ValidationError
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray.serve.schema import HTTPOptionsSchema, ServeDeploySchema

from engine.loading.quantized.local import quantization_of
from schema.errors import TaskError
from schema.validation.strict import unknown_key
from serve_app.config.app_args import AppArgs, DeploymentArgs, ModelArgs, PoolArgs, resolve_source
from serve_app.config.strict import explain
from serve_app.http.middleware.api_keys import read_keys, readable_by_others
from serve_app.http.receipts import keys as receipts
from serve_app.ui import config as chat

BUILDER = "serve_app.app:build"
MAX_PORT = 65_535
_TOP_LEVEL = ServeDeploySchema.model_fields
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
GRAPH = ("Ingress", "ImagePreprocessor")


def check(path: Path) -> tuple[list[AppArgs], list[str]]:
    """The arguments of this project's applications in the file, and every fault found."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        return [], [f"{path}: {error.strerror}"]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return [], [f"{path} is not YAML: {error}"]
    if not isinstance(document, dict):
        return [], [f"{path} must be a mapping with the key applications"]
    try:
        ServeDeploySchema.model_validate(document)
    except ValidationError as error:
        return [], explain(error, prefix="")
    if unknown := _unknown_keys(document):
        return [], unknown
    checked: list[AppArgs] = []
    faults: list[str] = []
    for index, application in enumerate(document.get("applications", [])):
        if application.get("import_path") == BUILDER:
            _check_application(application, f"applications.{index}", checked, faults)
        elif application.get("import_path") == chat.BUILDER:
            faults += _check_chat(application, f"applications.{index}")
    if not checked and not faults:
        faults.append(f"applications: none has import_path: {BUILDER}")
    return checked, faults


def taken_port(path: Path) -> list[str]:
    """The fault of a port that is already in use, for a file without other faults.

    Ray's proxies share a port: a second server would start on it and get half of the requests.
    """
    options = yaml.safe_load(path.read_text(encoding="utf-8")).get("http_options") or {}
    host, port = options.get("host", "127.0.0.1"), options.get("port", 8000)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignores closed connections
        try:
            trial.bind((host, port))
        except OSError as error:
            return [
                f"http_options: {host} port {port} cannot be used ({error.strerror}): stop the "
                "program that uses it, or set another port"
            ]
    return []


def _unknown_keys(document: dict[str, Any]) -> list[str]:
    """Misspelt keys, which Ray ignores, each with the key that was probably meant."""
    options = document.get("http_options") or {}
    port = options.get("port", 8000)
    faults = [unknown_key(key, ServeDeploySchema) for key in document if key not in _TOP_LEVEL]
    faults += [
        f"http_options: {unknown_key(key, HTTPOptionsSchema)}"
        for key in options
        if key not in HTTPOptionsSchema.model_fields
    ]
    if not 1 <= port <= MAX_PORT:
        faults.append(f"http_options.port must be 1 to {MAX_PORT}, got {port}")
    return faults


def _check_application(
    application: dict[str, Any], where: str, checked: list[AppArgs], faults: list[str]
) -> None:
    try:
        args = AppArgs.model_validate(application.get("args", {}))
    except ValidationError as error:
        faults.extend(explain(error, f"{where}.args"))
        return
    checked.append(args)
    for index, model in enumerate(args.models):
        source = Path(resolve_source(model.source or model.id))
        # A hub id can only be checked by asking the hub, which the replica does.
        if source.is_absolute():
            found = _check_local(source, model)
            faults += [f"{where}.args.models.{index}.{fault}" for fault in found]
        if model.adapters:
            # Only here, because it imports torch.
            from engine.loading.adapters.check import adapter_faults  # noqa: PLC0415

            faults += [
                f"{where}.args.models.{index}.adapters.{name}: {fault}"
                for name, fault in adapter_faults(model.engine_config())
            ]
    if args.pool is not None and args.pool.root is not None:
        root = Path(resolve_source(args.pool.root))
        if not root.is_dir():
            faults.append(f"{where}.args.pool.root: no directory {root}")
    for index, name in enumerate(args.image_urls.file_roots if args.image_urls else []):
        if not Path(name).is_dir():
            faults.append(f"{where}.args.image_urls.file_roots.{index}: no directory {name}")
    if args.auth is not None:
        try:
            read_keys(args.auth)
        except ValueError as error:
            faults.append(f"{where}.args.auth.{error}")
    if args.receipts is not None:
        try:
            receipts.read_receipt_keys(args.receipts)
        except ValueError as error:
            faults.append(f"{where}.args.receipts.{error}")
    known = [*GRAPH, *(owner.deployment for owner in args.deployments)]
    faults.extend(_check_overrides(application, where, known))


def _check_local(source: Path, model: ModelArgs) -> list[str]:
    """The faults of a local model, as far as its configuration and headers show them."""
    context_length, file = model.engine.context_length, source / "config.json"
    if not source.exists():
        return [f"source: there is no model in {source}"]
    if file.is_file():
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            text = config.get("text_config") or config.get("llm_config") or config
            own = text.get("max_position_embeddings")
        except (OSError, ValueError, AttributeError):
            return [f"source: {file} is not a model's configuration"]
        if context_length is not None and isinstance(own, int) and context_length > own:
            return [
                f"engine.context_length: {context_length}, but the model was made for {own} tokens"
            ]
    try:
        quantization_of(source, model.id)
    except TaskError as error:
        return [f"source: {error}"]
    return []


def _check_chat(application: dict[str, Any], where: str) -> list[str]:
    try:
        chat.ChatArgs.model_validate(application.get("args") or {})
    except ValidationError as error:
        return explain(error, f"{where}.args")
    return _check_overrides(application, where, [chat.DEPLOYMENT])


def _check_overrides(application: dict[str, Any], where: str, known: Sequence[str]) -> list[str]:
    return [
        f"{where}.deployments.{index}.name: {override.get('name')!r} is not one of "
        f"{', '.join(known)}"
        for index, override in enumerate(application.get("deployments", []))
        if override.get("name") not in known
    ]


def plan(model: ModelArgs) -> str:
    """One line that says what runs for this model, and where."""
    source = resolve_source(model.source or model.id)
    published = quantization_of(Path(source), model.id) if Path(source).is_absolute() else None
    own = "unquantized" if published is None else f"published in {published}"
    quantization = model.variant.quantization or own
    adapters = f", adapters {', '.join(model.adapters)}" if model.adapters else ""
    return (
        f"{model.deployment}: model {model.id!r} from {source}, "
        f"{model.dtype}, {quantization}{adapters}; {_where(model)}"
    )


def plan_pool(pool: PoolArgs) -> str:
    """One line that says which models are loaded on demand."""
    source = "the hub or its cache" if pool.root is None else resolve_source(pool.root)
    return (
        f"{pool.deployment}: models {', '.join(pool.allow)} on demand from {source}, "
        f"{pool.max_memory_gb:g} GB for weights and KV caches of each replica; {_where(pool)}"
    )


def plan_gate(args: AppArgs) -> list[str]:
    """Lines about limits, keys and the origins of web pages that may call."""
    limits, auth, cors = args.limits, args.auth, args.cors
    each = "for each ingress replica"
    lines = [f"Limits: {limits.max_in_flight} requests at the same time {each}"]
    if auth is None:
        lines.append("Keys: none, every client may send requests")
    else:
        own = {
            name: auth.limits_of(name).model_dump(exclude_none=True)
            for name in read_keys(auth).names
        }
        lines += [
            f"Key {name}: "
            + (
                ", ".join(f"{limit} {most} {each}" for limit, most in own[name].items())
                or "no limit"
            )
            for name in own
        ]
        if warning := readable_by_others(auth):
            lines.append(f"Warning: {warning}")
    if args.receipts is not None:
        keys = receipts.read_receipt_keys(args.receipts)
        first, *others = (key["kid"] for key in keys.published)
        lines.append(f"Receipts: signed by key {first}")
        lines += [f"Receipts: key {other} is published too" for other in others]
        if warning := receipts.readable_by_others(args.receipts):
            lines.append(f"Warning: {warning}")
    if cors is not None:
        lines.append(f"CORS: {', '.join(cors.allow_origins)}")
    return lines


def plan_gpus(args: AppArgs) -> list[str]:
    """A warning for each deployment that must have GPUs, if this machine has none."""
    waiting = [owner.deployment for owner in args.deployments if owner.device == "cuda"]
    # Ray itself asks this when it starts on this machine.
    manager = get_accelerator_manager_for_resource("GPU") if waiting else None
    if manager is not None and manager.get_current_node_num_accelerators():
        return []
    return [
        f"Warning: {name} has device: cuda, and this machine has no GPU: it waits until one joins "
        "the cluster"
        for name in waiting
    ]


def plan_chats(path: Path) -> list[str]:
    """Lines about the web chats of a file without faults, with warnings about what is missing."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    port = (document.get("http_options") or {}).get("port", 8000)
    lines = []
    for application in document["applications"]:
        if application.get("import_path") == chat.BUILDER:
            args = chat.ChatArgs.model_validate(application.get("args") or {})
            prefix = application.get("route_prefix", "/")
            lines.append(f"{chat.DEPLOYMENT}: a page at {prefix} to chat with {args.server}")
            lines += [advice] if (advice := chat.missing()) else []
            url = urlsplit(args.server)
            if url.hostname in _LOOPBACK and url.port != port:
                lines.append(
                    f"Warning: the chat asks {args.server}, but this server listens on {port}; "
                    "is `server` of the chat right?"
                )
    return lines


def _where(owner: DeploymentArgs) -> str:
    """How many replicas, and on what."""
    gpus = f"{owner.gpus_per_replica:g} {owner.accelerator_type or 'GPU'} for each replica"
    device = {
        "cpu": "CPU",
        "cuda": gpus,
        "auto": f"{gpus} where the cluster has them, else CPU",
    }[owner.device]
    replicas = (
        f"{owner.min_replicas} replicas"
        if owner.min_replicas == owner.max_replicas
        else f"{owner.min_replicas} to {owner.max_replicas} replicas"
    )
    return f"{replicas}; {device}"


def main(arguments: list[str] | None = None, prog: str = "python -m serve_app.check") -> int:
    """Check the file named on the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", default=Path("serve_config.yaml"))
    parser.add_argument(
        "--port-is-free", action="store_true", help="also refuse a port that is already in use"
    )
    options = parser.parse_args(arguments)
    checked, faults = check(options.config)
    if options.port_is_free and not faults:
        faults = taken_port(options.config)
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        return 1
    for args in checked:
        for model in args.models:
            print(plan(model))
        if args.pool is not None:
            print(plan_pool(args.pool))
        if args.image_urls is not None:
            print(args.image_urls.plan())
        print(*plan_gate(args), *plan_gpus(args), sep="\n")
    for line in plan_chats(options.config):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
