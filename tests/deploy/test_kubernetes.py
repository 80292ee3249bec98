"""Manifests that no cluster has seen here: rendered, checked by schemas, and held to our rules."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule
from cloudcoil.models.prometheus_operator.v1alpha1 import ScrapeConfig

from deploy import __version__
from deploy.config import load
from deploy.jobs import RUN
from tests.deploy.dashboards import FOLDER
from tests.deploy.manifests import (
    COMPONENTS,
    DEPLOY,
    KUBERNETES,
    OVERLAYS,
    SHARED,
    Document,
    containers,
    each_ray,
    each_source,
    kustomize,
    make_secrets,
    pod_templates,
    ray_cluster,
    render,
    sources,
)

KUBERNETES_VERSION = "1.30"
SCHEMAS = SHARED / "schemas"
OF_OTHERS = {"ray.io/v1", "monitoring.coreos.com/v1", "monitoring.coreos.com/v1alpha1"}
"""API groups that Kubernetes itself has no schema of."""
RUNS = sorted(KUBERNETES.glob("overlays/*/job/run.yaml"))
SOURCES = sources()


MONITORING: dict[str, Any] = {
    each.__name__: each for each in (PodMonitor, PrometheusRule, ScrapeConfig)
}

each_monitoring = pytest.mark.parametrize(
    "document", [d for d in SOURCES if d["kind"] in MONITORING], ids=lambda d: d["kind"]
)
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
needs_kustomize = pytest.mark.skipif(
    kustomize() is None, reason="neither kustomize nor kubectl is installed"
)
needs_ray_schemas = pytest.mark.skipif(
    not SCHEMAS.is_dir(), reason="no shared schemas: set SSDKD_SHARED to their folder"
)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Document]]:
    """Each overlay with all components, and secrets made by the script."""
    made = {}
    for overlay in OVERLAYS:
        tree = tmp_path_factory.mktemp("tree") / "kubernetes"
        shutil.copytree(KUBERNETES, tree, ignore=shutil.ignore_patterns("secrets"))
        shutil.copytree(FOLDER, tree.parent / FOLDER.relative_to(DEPLOY))
        make_secrets(tree / "base" / "secrets")
        command = kustomize()
        assert command is not None
        made[overlay] = render(command, tree, overlay, COMPONENTS)
    return made


def closed(schema: Any) -> Any:
    """A schema under which a field it does not know is a mistake; servers drop those silently."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        made.setdefault("additionalProperties", False)
    return made


def check_ray(document: Document) -> None:
    schema = json.loads((SCHEMAS / f"ray.io_{document['kind'].lower()}_v1.json").read_text())
    jsonschema.Draft202012Validator(closed(schema)).validate(document)


def check(document: Document) -> None:
    if document["apiVersion"] not in OF_OTHERS:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    for template in pod_templates(document):
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)


@each_source
def test_resources_and_pods_are_what_kubernetes_takes(document: Document) -> None:
    check(document)


@needs_ray_schemas
@each_ray
def test_ray_resources_are_what_kuberay_takes(document: Document) -> None:
    check_ray(document)


@needs_ray_schemas
def test_a_misspelt_field_is_noticed() -> None:
    (job,) = (each for each in SOURCES if each["kind"] == "RayJob")
    wrong = {**job, "spec": {**job["spec"], "backofLimit": 1}}
    with pytest.raises(jsonschema.ValidationError, match="backofLimit"):
        check_ray(wrong)


@each_monitoring
def test_monitoring_resources_are_what_prometheus_operator_takes(document: Document) -> None:
    model = MONITORING[document["kind"]]
    read = model.model_validate(document).model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert read == document, "a field that it does not know is dropped"


@needs_kustomize
@each_overlay
def test_rendered_resources_are_what_kubernetes_takes(
    rendered: dict[str, list[Document]], overlay: str
) -> None:
    kinds = {document["kind"] for document in rendered[overlay]}
    assert kinds >= {"Secret", "StatefulSet", "NetworkPolicy", "Namespace", *MONITORING}
    for document in rendered[overlay]:
        check(document)
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "ssdkd"


@needs_kustomize
@needs_ray_schemas
@each_overlay
def test_rendered_ray_resources_are_what_kuberay_takes(
    rendered: dict[str, list[Document]], overlay: str
) -> None:
    (document,) = (each for each in rendered[overlay] if each["apiVersion"] == "ray.io/v1")
    check_ray(document)
    assert document["kind"] == {"job": "RayJob", "cluster": "RayCluster"}[overlay[4:]]


@needs_kustomize
@each_overlay
def test_an_overlay_takes_its_own_image_and_gpus(
    rendered: dict[str, list[Document]], overlay: str
) -> None:
    (document,) = (each for each in rendered[overlay] if each["apiVersion"] == "ray.io/v1")
    device = {"cpu": "cpu", "gpu": "cuda"}[overlay[:3]]
    assert {each["image"] for each in containers(document)} == {f"ssdkd:{__version__}-{device}"}
    *others, workers = pod_templates(document)
    limits = workers["spec"]["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == {"cpu": None, "gpu": "1"}[overlay[:3]]
    assert ("tolerations" in workers["spec"]) == overlay.startswith("gpu")
    for other in others:
        assert "nvidia.com/gpu" not in other["spec"]["containers"][0]["resources"]["limits"]


@needs_kustomize
@each_overlay
def test_kueue_is_told_its_queue_and_no_autoscaler_moves_what_it_admitted(
    rendered: dict[str, list[Document]], overlay: str
) -> None:
    (document,) = (each for each in rendered[overlay] if each["apiVersion"] == "ray.io/v1")
    assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "ssdkd"
    cluster = ray_cluster(document)
    assert cluster is not None
    assert cluster["enableInTreeAutoscaling"] is False


@needs_kustomize
@each_overlay
def test_what_is_mounted_or_read_exists(rendered: dict[str, list[Document]], overlay: str) -> None:
    there = {(d["kind"], d["metadata"]["name"]) for d in rendered[overlay]}
    for document in rendered[overlay]:
        if (cluster := ray_cluster(document)) is not None:
            assert ("Secret", cluster["authOptions"]["secretName"]) in there
        for template in pod_templates(document):
            for volume in template["spec"].get("volumes", []):
                if "secret" in volume:
                    assert ("Secret", volume["secret"]["secretName"]) in there
                if "configMap" in volume and not volume["configMap"].get("optional"):
                    assert ("ConfigMap", volume["configMap"]["name"]) in there
                if "persistentVolumeClaim" in volume:
                    claim = volume["persistentVolumeClaim"]["claimName"]
                    assert ("PersistentVolumeClaim", claim) in there
    assert (("ConfigMap", "run") in there) == overlay.endswith("job")


@needs_kustomize
@each_overlay
def test_every_dashboard_is_where_grafana_s_sidecar_finds_it(
    rendered: dict[str, list[Document]], overlay: str
) -> None:
    maps = [
        each
        for each in rendered[overlay]
        if each["metadata"].get("labels", {}).get("grafana_dashboard") == "1"
    ]
    assert {each["kind"] for each in maps} == {"ConfigMap"}
    files = {name: text for each in maps for name, text in each["data"].items()}
    assert files == {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    # What `kubectl apply` writes of a resource into an annotation of it must stay below 256 KiB.
    assert all(len(json.dumps(each)) < 200_000 for each in maps)


@needs_kustomize
@pytest.mark.parametrize("overlay", [each for each in OVERLAYS if each.endswith("job")])
def test_the_job_reads_the_configuration_that_is_mounted(
    rendered: dict[str, list[Document]], overlay: str
) -> None:
    (job,) = (each for each in rendered[overlay] if each["kind"] == "RayJob")
    (config,) = (each for each in rendered[overlay] if each["metadata"]["name"] == "run")
    assert config["data"].keys() == {"run.yaml"}
    (head,) = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    (mount,) = (each for each in head["volumeMounts"] if each["name"] == config["metadata"]["name"])
    words = job["spec"]["entrypoint"].split()
    assert words[1:] == ["-m", "deploy.pipeline", "--config", f"{mount['mountPath']}/run.yaml"]
    assert words[0].startswith("/")


@needs_kustomize
@pytest.mark.parametrize("overlay", [each for each in OVERLAYS if each.endswith("job")])
def test_the_job_is_found_by_the_name_of_the_run_that_is_mounted(
    rendered: dict[str, list[Document]], overlay: str
) -> None:
    (job,) = (each for each in rendered[overlay] if each["kind"] == "RayJob")
    name = load(KUBERNETES / "overlays" / overlay / "run.yaml").run.name
    assert job["spec"]["metadata"] == {RUN: name}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.parts[-3])
def test_mounted_configurations_are_valid_and_fit_the_workers(path: Path) -> None:
    config = load(path)
    assert config.run.folder.is_relative_to("/shared")
    for made_or_file in (config.teacher.weights, config.evaluation.data):
        assert re.fullmatch(r"/shared/.+|[\w.]+:\w+", str(made_or_file))
    (cluster,) = (each["spec"] for each in SOURCES if each["kind"] == "RayCluster")
    (workers,) = cluster["workerGroupSpecs"]
    needs = [config.synthesizer] * config.synthesizer.actors
    needs = [*needs, *[config.distiller] * config.distiller.workers]
    # Even without an autoscaler: one service with GPUs a node, else as many as its CPUs hold.
    on_gpus = path.parts[-3] == "gpu"
    assert all((each.gpus == 1) == on_gpus for each in needs)
    cpus = [each.cpus for each in needs]
    assert all(share is not None for share in cpus)
    room = workers["replicas"] * (1 if on_gpus else 2)
    assert len(needs) <= room if on_gpus else sum(share or 0 for share in cpus) <= room


def test_there_is_a_run_of_each_kind_of_machine() -> None:
    assert [path.parts[-3] for path in RUNS] == ["cpu", "gpu"]
