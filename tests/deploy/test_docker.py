"""The image and the compose file: checked by schema and rules; no daemon has run them here."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from deploy import __version__
from deploy.config import MonitoringTable
from tests.deploy.manifests import DEPLOY, ROOT, dockerfile_arguments

DOCKER = DEPLOY / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RAY = ("head", "worker")

each_service = pytest.mark.parametrize("name", sorted(SERVICES))


@pytest.mark.parametrize("file", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_keep_to_the_compose_specification(file: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, DOCKER / file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("package", ["ray", "torch"])
def test_the_image_takes_a_version_that_the_project_allows(package: str) -> None:
    (needed,) = (r for r in map(Requirement, PROJECT["dependencies"]) if r.name == package)
    assert dockerfile_arguments()[f"{package.upper()}_VERSION"] in needed.specifier


def test_the_image_is_pinned_and_of_a_python_that_the_project_allows() -> None:
    found = re.fullmatch(r"python:(\d+\.\d+\.\d+)-\S+", dockerfile_arguments()["PYTHON_IMAGE"])
    assert found is not None
    assert found[1] in SpecifierSet(PROJECT["requires-python"])
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) == {"${PYTHON_IMAGE}"}


def test_the_image_is_no_root_s_and_holds_no_secrets() -> None:
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.M)[-1] == "1000:1000"
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M)
    names = {name for line in copied for name in line.split()}
    assert names == {line[1:] for line in ignored if line.startswith("!")}
    assert "**/secrets" in ignored
    assert "secrets/" in (ROOT / ".gitignore").read_text().splitlines()


@each_service
def test_every_service_is_unprivileged_limited_and_probed(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert service["healthcheck"]["test"]


@each_service
def test_every_port_is_published_to_this_machine_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@each_service
def test_every_image_is_pinned_and_ours_is_of_this_version(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].partition(":")
    assert re.match(r"v?\d+\.\d+\.\d+", tag)
    assert image != "ssdkd" or tag == f"{__version__}-cpu"


def test_workers_on_gpus_take_the_other_image() -> None:
    gpu = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]
    assert {gpu[name]["image"] for name in RAY} == {f"ssdkd:{__version__}-cuda"}
    assert {gpu[name]["build"]["args"]["DEVICE"] for name in RAY} == {"cuda"}
    (device,) = gpu["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_a_worker_that_has_all_gpus_is_the_only_one() -> None:
    worker = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]["worker"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device["count"] == "all"
    assert worker["container_name"]  # so that compose refuses to scale it


def test_redis_is_reached_by_ray_only_and_beside_its_port() -> None:
    redis = SERVICES["redis"]
    assert "ports" not in redis
    assert redis["networks"] == ["redis"]
    assert COMPOSE["networks"]["redis"] == {"internal": True}
    reached = {name for name, service in SERVICES.items() if "redis" in service["networks"]}
    assert reached == {"redis", *RAY}


@pytest.mark.parametrize("name", RAY)
def test_ray_asks_for_a_token_that_comes_from_a_file(name: str) -> None:
    environment = SERVICES[name]["environment"]
    assert environment["RAY_AUTH_MODE"] == "token"
    secret = environment["RAY_AUTH_TOKEN_PATH"].removeprefix("/run/secrets/")
    assert secret in SERVICES[name]["secrets"]


def test_the_url_of_redis_is_known_to_the_head_alone() -> None:
    known = {
        name for name, service in SERVICES.items() if "redis_url" in service.get("secrets", [])
    }
    assert known == {"head"}


@each_service
def test_no_secret_is_written_down(name: str) -> None:
    text = yaml.safe_dump(SERVICES[name])
    assert "redis://" not in text
    for variable in SERVICES[name].get("environment", {}):
        if re.search("URL|TOKEN|PASSWORD|KEY", variable):
            assert SERVICES[name]["environment"][variable].startswith("/run/secrets/")


def test_files_that_are_mounted_are_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (DOCKER / source).exists()


def test_prometheus_finds_the_run_and_the_nodes_by_the_names_they_have() -> None:
    jobs = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    found = {job["job_name"]: job for job in jobs}
    assert set(found["ray"]["dns_sd_configs"][0]["names"]) == set(RAY)
    (source,) = found["ssdkd"]["http_sd_configs"]
    where = urlsplit(source["url"])
    assert where.hostname == "head"
    assert where.port == MonitoringTable().port
    assert set(SERVICES["head"]["networks"]) & set(SERVICES["prometheus"]["networks"])
