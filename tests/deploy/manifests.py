"""What is deployed, as data: the files below ``deploy/``, and what kustomize makes of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("cpu/job", "cpu/cluster", "gpu/job", "gpu/cluster")
COMPONENTS = ("monitoring", "kueue")
"""What an overlay may take in beside."""
SHARED = Path(os.environ.get("SSDKD_SHARED", ROOT.parent / "shared"))

Document = dict[str, Any]


def sources() -> list[Document]:
    """Every Kubernetes resource as it is written, before kustomize."""
    files = [
        path
        for path in sorted(KUBERNETES.rglob("*.yaml"))
        if path.name not in ("kustomization.yaml", "run.yaml")
    ]
    return [document for path in files for document in yaml.safe_load_all(path.read_text())]


def kustomize() -> list[str] | None:
    """The command that renders a folder; ``None`` where there is none."""
    if (found := shutil.which("kustomize")) is not None:
        return [found, "build"]
    if (found := shutil.which("kubectl")) is not None:
        return [found, "kustomize"]
    return None


def make_secrets(folder: Path, redis: str = "redis:6380") -> str:
    """Runs the script that makes the secrets; what it says."""
    command = [DEPLOY / "secrets.sh", folder, redis]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def render(command: list[str], tree: Path, overlay: str, components: tuple[str, ...] = ()) -> Any:
    """The resources of an overlay of a copy of the tree, with components added."""
    folder = tree / "overlays" / overlay
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    added = [f"../../../components/{name}" for name in components]
    kustomization["components"] = [*(kustomization["components"] or []), *added]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    made = subprocess.run([*command, folder], check=True, capture_output=True, text=True)
    return list(yaml.safe_load_all(made.stdout))


def ray_cluster(document: Document) -> Document | None:
    """The specification of the Ray cluster in a RayCluster or RayJob."""
    if document["kind"] == "RayCluster":
        return dict(document["spec"])
    return dict(document["spec"]["rayClusterSpec"]) if document["kind"] == "RayJob" else None


def pod_templates(document: Document) -> Iterator[Document]:
    """Every pod template in a resource."""
    if document["kind"] == "StatefulSet":
        yield document["spec"]["template"]
    if document["kind"] == "RayJob":
        yield document["spec"]["submitterPodTemplate"]
    if (cluster := ray_cluster(document)) is not None:
        yield cluster["headGroupSpec"]["template"]
        for group in cluster["workerGroupSpecs"]:
            yield group["template"]


def containers(document: Document) -> Iterator[Document]:
    """Every container in a resource, the autoscaler's as far as it is ours to say."""
    for template in pod_templates(document):
        yield from template["spec"]["containers"]


def dockerfile_arguments() -> dict[str, str]:
    """The defaults of the image's build arguments."""
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    return dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.M))


def _name_of(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


each_source = pytest.mark.parametrize("document", sources(), ids=_name_of)
each_ray = pytest.mark.parametrize(
    "document", [d for d in sources() if d["apiVersion"] == "ray.io/v1"], ids=_name_of
)
