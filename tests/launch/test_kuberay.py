"""The manifests are what KubeRay takes, and give nobody more than training needs."""

import copy
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # has no types of its own
import pytest
import ray
import yaml
from tests.launch.kuberay import later, network

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "distributed/shoal_ray/launch/kuberay"
SCHEMAS = Path(__file__).parent / "kuberay/schemas.json.xz"


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    found = json.loads(lzma.decompress(SCHEMAS.read_bytes()))
    later.add_to(found)
    found["NetworkPolicy"] = network.SCHEMA
    return {kind: closed(schema) for kind, schema in found.items()}


def closed(schema: Any) -> Any:
    """Return a schema that refuses what it does not name, as ``kubectl apply --validate=strict`` does."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "allOf" not in schema:
        inner.setdefault("additionalProperties", False)
    return inner


def documents(name: str) -> list[dict[str, Any]]:
    return [dict(document) for document in yaml.safe_load_all((MANIFESTS / name).read_text())]


def of_kind(kind: str) -> dict[str, Any]:
    [found] = [each for name in ("raycluster.yaml", "rayjob.yaml") for each in documents(name) if each["kind"] == kind]
    return found


def clusters() -> list[dict[str, Any]]:
    return [of_kind("RayCluster")["spec"], of_kind("RayJob")["spec"]["rayClusterSpec"]]


def pods(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kubernetes_takes_it(name: str, schemas: dict[str, Any]) -> None:
    for document in documents(name):
        jsonschema.validate(document, schemas[document["kind"]])


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        (("spec",), "authOption", {"mode": "token"}),
        (("spec", "authOptions"), "mode", "tokens"),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0), "ressources", {}),
        (("spec", "headGroupSpec", "template", "spec", "securityContext"), "runAsUser", "1000"),
        (("spec", "workerGroupSpecs", 0), "minReplicas", "2"),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "volumes", 0), "persistentVolumeClaim", {"claim": "x"}),
        (("spec", "headGroupSpec", "rayStartParams"), "num-cpus", 0),
    ],
)
def test_a_slip_would_be_refused(place: tuple[str | int, ...], key: str, value: Any, schemas: dict[str, Any]) -> None:
    document = copy.deepcopy(of_kind("RayCluster"))
    part: Any = document
    for step in place:
        part = part[step]
    part[key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schemas["RayCluster"])


def test_every_pod_is_nobody_and_shows_its_token() -> None:
    for cluster in clusters():
        assert cluster["authOptions"]["mode"] == "token"
        assert cluster["rayVersion"] == ray.__version__
        assert cluster["headGroupSpec"].get("serviceType", "ClusterIP") == "ClusterIP"  # within the cluster only
        for pod in pods(cluster):
            assert pod["automountServiceAccountToken"] is False
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 1000
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            [container] = pod["containers"]
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert "@sha256:" in container["image"]
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]}


# Labels that KubeRay, or its chart and its kustomization, put on pods.
OF_KUBERAY = {"ray.io/is-ray-node": "yes", "ray.io/cluster": "shoal"}
OPERATORS = [
    {"app.kubernetes.io/component": "kuberay-operator", "app.kubernetes.io/name": name}
    for name in ("kuberay-operator", "kuberay")
]
OTHERS: list[dict[str, str]] = [{}, {"app": "x"}, {"ray.io/is-ray-node": "yes", "ray.io/cluster": "other"}]
PORTS = [6379, 8265, 8080, 10001, 52365, 40123]


def labels_of_pods(cluster: dict[str, Any], name: str) -> list[dict[str, str]]:
    return [
        OF_KUBERAY | {"ray.io/cluster": name} | group["template"].get("metadata", {}).get("labels", {})
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    ]


@pytest.mark.parametrize(("file", "kind"), [("raycluster.yaml", "RayCluster"), ("rayjob.yaml", "RayJob")])
def test_nobody_else_reaches_a_pod(file: str, kind: str) -> None:
    """PyTorch's ports ask for no token."""
    [policy] = [document for document in documents(file) if document["kind"] == "NetworkPolicy"]
    spec = of_kind(kind)["spec"]
    within = labels_of_pods(spec.get("rayClusterSpec", spec), {"RayCluster": "shoal", "RayJob": "shoal-x7k2p"}[kind])
    submitters = [spec["submitterPodTemplate"]["metadata"]["labels"]] if kind == "RayJob" else []
    for pod in within:
        assert network.selects(policy["spec"]["podSelector"], pod)
        for port in PORTS:
            assert all(network.reaches(policy, pod, sender, port) for sender in within)
            assert not any(network.reaches(policy, pod, sender, port, same_namespace=False) for sender in within)
            for sender in [*OPERATORS, *submitters]:
                assert network.reaches(policy, pod, sender, port) == (port == 8265)
            assert all(network.reaches(policy, pod, sender, 8265, same_namespace=False) for sender in OPERATORS)
            assert not any(network.reaches(policy, pod, sender, port) for sender in OTHERS)


def test_the_submitter_is_nobody_either() -> None:
    spec = of_kind("RayJob")["spec"]["submitterPodTemplate"]["spec"]
    head = of_kind("RayJob")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"] == head["securityContext"]
    [container], [of_head] = spec["containers"], head["containers"]
    assert container["securityContext"] == of_head["securityContext"]
    assert container["image"] == of_head["image"]


def test_no_secret_is_written_down() -> None:
    """A token comes from a Secret that the reader makes, or that KubeRay does."""
    for name in ("raycluster.yaml", "rayjob.yaml"):
        assert not [document for document in documents(name) if document["kind"] == "Secret"]
    for cluster in clusters():
        names = {variable["name"] for pod in pods(cluster) for variable in pod["containers"][0]["env"]}
        assert not {name for name in names if "TOKEN" in name or "KEY" in name or "PASS" in name}


def test_nodes_are_missed_as_quickly_as_those_of_cluster_yaml() -> None:
    launcher = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    expected = [word for word in launcher["worker_start_ray_commands"][-1].split() if word.startswith("RAY_health_")]
    for cluster in clusters():
        for pod in pods(cluster):
            environment = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
            assert [f"{name}={environment[name]}" for name in environment if name.startswith("RAY_health_")] == expected


def test_the_head_keeps_what_ray_knows_on_a_volume() -> None:
    head = of_kind("RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]
    environment = {variable["name"]: variable["value"] for variable in head["containers"][0]["env"]}
    assert environment["RAY_gcs_storage"] == "rocksdb"
    mounts = {mount["mountPath"]: mount["name"] for mount in head["containers"][0]["volumeMounts"]}
    path = Path(environment["RAY_gcs_storage_path"])
    [volume] = [each for each in head["volumes"] if each["name"] == mounts[str(path.parent)]]
    claims = {
        each["metadata"]["name"] for each in documents("raycluster.yaml") if each["kind"] == "PersistentVolumeClaim"
    }
    assert volume["persistentVolumeClaim"]["claimName"] in claims
