"""What every manifest has to keep: limits, probes, no privileges, no secrets, one version."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import yaml

from deploy import __version__
from deploy.config import MonitoringTable
from deploy.prometheus.for_kubernetes import resource
from tests.deploy.manifests import (
    COMPONENTS,
    KUBERNETES,
    OVERLAYS,
    Document,
    containers,
    dockerfile_arguments,
    each_ray,
    each_source,
    pod_templates,
    ray_cluster,
    sources,
)

SOURCES = sources()


@each_source
def test_every_container_is_limited_and_unprivileged(document: Document) -> None:
    for each in containers(document):
        limits, requests = each["resources"]["limits"], each["resources"]["requests"]
        assert limits.keys() >= {"cpu", "memory"} <= requests.keys()
        check_unprivileged(each["securityContext"])
    for template in pod_templates(document):
        context = template["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert template["spec"]["enableServiceLinks"] is False


def check_unprivileged(context: Document) -> None:
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["runAsNonRoot"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}


@each_source
def test_every_container_that_stays_is_probed(document: Document) -> None:
    for each in containers(document):
        if each["name"] != "submitter":
            assert each.keys() >= {"startupProbe", "readinessProbe", "livenessProbe"}


@each_source
def test_only_the_head_may_talk_to_the_api_server(document: Document) -> None:
    # KubeRay gives it a service account of its own, which the autoscaler needs.
    for template in pod_templates(document):
        is_head = template["spec"]["containers"][0]["name"] == "ray-head"
        assert is_head or template["spec"]["automountServiceAccountToken"] is False


@each_source
def test_no_secret_is_written_down(document: Document) -> None:
    assert document["kind"] != "Secret"
    for each in containers(document):
        for variable in each.get("env", []):
            secret = re.search("URL|TOKEN|PASSWORD|KEY", variable["name"])
            assert not secret or "secretKeyRef" in variable["valueFrom"]


@each_source
def test_every_image_is_pinned_and_ours_is_of_this_version(document: Document) -> None:
    for each in containers(document):
        name, _, tag = each["image"].partition(":")
        assert re.match(r"\d+\.\d+\.\d+", tag)
        assert name != "ssdkd" or tag == f"{__version__}-cpu"


@each_ray
def test_ray_asks_for_a_token_and_is_of_the_image_s_version(document: Document) -> None:
    cluster = ray_cluster(document)
    assert cluster is not None
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["rayVersion"] == dockerfile_arguments()["RAY_VERSION"]


@each_ray
def test_the_head_works_for_nobody_and_workers_follow_what_is_asked_for(document: Document) -> None:
    cluster = ray_cluster(document)
    assert cluster is not None
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["autoscalerOptions"]["resources"]["limits"].keys() == {"cpu", "memory"}
    check_unprivileged(cluster["autoscalerOptions"]["securityContext"])
    for group in cluster["workerGroupSpecs"]:
        assert 0 < group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (spread,) = group["template"]["spec"]["topologySpreadConstraints"]
        labels = group["template"]["metadata"]["labels"] | {"ray.io/node-type": "worker"}
        assert spread["labelSelector"]["matchLabels"].items() <= labels.items()


def test_the_job_and_the_cluster_are_of_one_specification() -> None:
    job, cluster = (
        [ray_cluster(each) for each in SOURCES if each["kind"] == kind]
        for kind in ("RayJob", "RayCluster")
    )
    assert job == cluster


def test_a_job_is_tried_again_and_leaves_no_cluster_behind() -> None:
    (job,) = (each["spec"] for each in SOURCES if each["kind"] == "RayJob")
    assert job["backoffLimit"] > 0
    assert job["preRunningDeadlineSeconds"] > 0
    assert job["shutdownAfterJobFinishes"] is True


def test_redis_is_outside_the_cluster_and_cannot_outgrow_its_pod() -> None:
    (redis,) = (each for each in SOURCES if each["kind"] == "StatefulSet")
    (container,) = containers(redis)
    command = container["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert command[command.index("--port") + 1] != "6379"
    share = int(command[command.index("--maxmemory") + 1].removesuffix("gb"))
    assert share < int(container["resources"]["limits"]["memory"].removesuffix("Gi"))


def test_who_may_connect_to_whom_is_said_in_labels_that_pods_have() -> None:
    policies = {d["metadata"]["name"]: d["spec"] for d in SOURCES if d["kind"] == "NetworkPolicy"}
    given = [
        template["metadata"].get("labels", {}) | {"ray.io/node-type": kind}
        for document in SOURCES
        for template, kind in zip(pod_templates(document), ("head", "worker"), strict=False)
        if document["kind"] in ("StatefulSet", "RayCluster")
    ]
    for policy in policies.values():
        wanted = policy["podSelector"].get("matchLabels", {})
        assert any(wanted.items() <= labels.items() for labels in given)
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    (rule,) = policies["redis-from-ray"]["ingress"]
    assert rule["from"] == [
        {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "ray"}}}
    ]
    assert "egress" not in policies["redis-from-ray"]


def test_the_monitor_scrapes_a_port_that_every_ray_pod_has() -> None:
    (monitor,) = (each["spec"] for each in SOURCES if each["kind"] == "PodMonitor")
    (cluster,) = (each for each in SOURCES if each["kind"] == "RayCluster")
    (endpoint,) = monitor["podMetricsEndpoints"]
    for template in pod_templates(cluster):
        labels = template["metadata"]["labels"]
        assert monitor["selector"]["matchLabels"].items() <= labels.items()
        ports = {each["name"] for each in template["spec"]["containers"][0]["ports"]}
        assert endpoint["port"] in ports


def test_prometheus_is_let_to_every_port_with_metrics_and_to_no_other() -> None:
    (policy,) = (each for each in SOURCES if each["metadata"]["name"] == "metrics-from-prometheus")
    (cluster,) = (each for each in SOURCES if each["kind"] == "RayCluster")
    head, worker = (
        {port["name"]: port["containerPort"] for port in each["spec"]["containers"][0]["ports"]}
        for each in pod_templates(cluster)
    )
    table = MonitoringTable()
    assert head["pipeline"] == table.port
    assert head["exporter"] == worker["exporter"] == table.node_port
    (rule,) = policy["spec"]["ingress"]
    allowed = {port["port"] for port in rule["ports"]}
    assert allowed == {head["metrics"], head["pipeline"], head["exporter"]}


def test_the_pipeline_is_found_by_a_name_that_stays() -> None:
    (service,) = (
        each
        for each in SOURCES
        if each["kind"] == "Service" and each["metadata"]["name"] == "pipeline"
    )
    (scrape,) = (each for each in SOURCES if each["kind"] == "ScrapeConfig")
    (discovery,) = scrape["spec"]["httpSDConfigs"]
    where = urlsplit(discovery["url"])
    assert where.hostname == f"pipeline.{service['metadata']['namespace']}.svc"
    assert where.path == "/targets"
    (port,) = service["spec"]["ports"]
    assert where.port == port["port"] == MonitoringTable().port
    (cluster,) = (each for each in SOURCES if each["kind"] == "RayCluster")
    head = next(pod_templates(cluster))
    labels = head["metadata"]["labels"] | {"ray.io/node-type": "head"}
    assert service["spec"]["selector"].items() <= labels.items()
    assert port["targetPort"] in {each["name"] for each in head["spec"]["containers"][0]["ports"]}


def test_kubernetes_has_the_rules_that_prometheus_has() -> None:
    committed = KUBERNETES / "components" / "monitoring" / "rules.yaml"
    assert committed.read_text() == resource(), "run `make docs` and commit the result"


def test_every_component_is_offered_by_every_overlay() -> None:
    for overlay in OVERLAYS:
        text = (KUBERNETES / "overlays" / overlay / "kustomization.yaml").read_text()
        assert all(f"../../../components/{name}" in text for name in COMPONENTS)
        assert isinstance(yaml.safe_load(text), dict)
