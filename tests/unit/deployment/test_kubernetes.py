"""The manifests fit Kubernetes' schemas, and what they name exists in the server."""

import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from starlette.testclient import TestClient

from cpt_serving import create_app, load_settings

KUBERNETES = Path(__file__).parents[3] / "deploy" / "kubernetes"
# Of kustomize, KEDA and KServe.
OTHERS = {"Kustomization", "ScaledObject", "ServingRuntime", "InferenceService"}
VARIABLE = re.compile(r"CPT_SERVE_(\w+)")


def documents(folder):
    """All objects in the files of a folder, by kind."""
    found = {}
    for path in sorted((KUBERNETES / folder).glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if "kind" in document:
                found[document["kind"]] = document
    return found


def objects():
    """Folder and kind of all objects that Kubernetes itself knows."""
    return [
        (folder.name, kind)
        for folder in sorted(KUBERNETES.iterdir())
        for kind in documents(folder.name)
        if kind not in OTHERS
    ]


def settings_of(folder, container):
    """The settings of the server in a container: its variables before the file of the base."""
    values = {entry["name"]: entry["value"] for entry in container["env"]}
    given = {VARIABLE.fullmatch(name)[1].lower(): value for name, value in values.items()}
    file = given.pop("config", None)
    if file is not None:
        given["config"] = KUBERNETES / folder / Path(file).name
    return load_settings(**{"bundle": "/models", "port": 8000, **given})


PODS = {
    "base": lambda: documents("base")["Deployment"]["spec"]["template"]["spec"],
    "kserve": lambda: {
        **documents("kserve")["ServingRuntime"]["spec"],
        **documents("kserve")["InferenceService"]["spec"]["predictor"],
    },
}


@pytest.fixture(params=PODS)
def pod(request):
    """A pod, its one container and the settings of its server."""
    specification = PODS[request.param]()
    container = specification["containers"][0]
    return specification, container, settings_of(request.param, container)


@pytest.mark.parametrize(("folder", "kind"), objects(), ids="-".join)
def test_objects_fit_the_schemas_of_kubernetes(folder, kind):
    kubernetes_validate.validate(documents(folder)[kind], "1.33", strict=True)


def test_the_schemas_would_notice_a_misspelt_field():
    deployment = documents("base")["Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.33", strict=True)


def test_probes_ask_routes_of_the_server_on_its_port(pod, shared_bundle):
    _, container, settings = pod
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert settings.port in ports.values()
    with TestClient(create_app(load_settings(bundle=shared_bundle.path))) as client:
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            ask = container[name]["httpGet"]
            assert ports.get(ask["port"], ask["port"]) == settings.port
            assert client.get(ask["path"]).status_code == 200
    assert "live" in container["livenessProbe"]["httpGet"]["path"]
    assert "ready" in container["readinessProbe"]["httpGet"]["path"]


def test_a_pod_has_time_to_end_in_order(pod):
    specification, container, settings = pod
    # Beyond its deadline it still exports spans, for a second, and writes two logs, for a second each.
    assert specification["terminationGracePeriodSeconds"] >= settings.drain_s + settings.shutdown_s + 5
    probe = container["readinessProbe"]
    assert settings.drain_s > probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]


def test_a_pod_has_no_rights_that_it_does_not_need(pod):
    specification, container, _ = pod
    rights = {**specification.get("securityContext", {}), **container["securityContext"]}
    assert rights["runAsNonRoot"]
    assert rights["readOnlyRootFilesystem"]
    assert not rights["allowPrivilegeEscalation"]
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert not specification["automountServiceAccountToken"]


def test_a_pod_has_a_place_for_temporary_files_that_does_not_count_as_memory(pod):
    specification, container, _ = pod
    assert container["securityContext"]["readOnlyRootFilesystem"]
    (name,) = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/tmp"]
    (volume,) = [volume for volume in specification["volumes"] if volume["name"] == name]
    assert "medium" not in volume["emptyDir"]


def test_a_pods_memory_holds_what_the_server_may_take(pod):
    _, container, settings = pod
    bounds = sum(getattr(settings, name, 0) for name in ("max_memory_bytes", "queue_bytes", "decode_bytes"))
    # With a small model, and the largest body of a request beside it: docs/how-to/deployment.md has what was measured.
    resident = 128 * 2**20
    limit = container["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    assert max(bounds, settings.max_body_bytes) + resident <= int(limit.removesuffix("Mi")) * 2**20


def test_no_service_of_the_cluster_turns_into_a_setting(pod):
    # A service called cpt-serve would set CPT_SERVE_PORT in every pod of its namespace.
    assert pod[0]["enableServiceLinks"] is False


def test_the_selectors_meet_the_pods():
    found = documents("base")
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    volumes = {volume["name"]: volume for volume in found["Deployment"]["spec"]["template"]["spec"]["volumes"]}
    assert volumes["models"]["persistentVolumeClaim"]["claimName"] == found["PersistentVolumeClaim"]["metadata"]["name"]
    generated = found["Kustomization"]["configMapGenerator"][0]
    assert volumes["config"]["configMap"]["name"] == generated["name"]


@pytest.mark.parametrize("folder", ["keda", "hpa", "kserve"])
def test_autoscaling_follows_metrics_that_the_server_has(folder, shared_bundle, png):
    with TestClient(create_app(load_settings(bundle=shared_bundle.path))) as client:
        assert client.post("/predict", content=png(), headers={"Content-Type": "image/png"}).status_code == 200
        exposed = client.get("/metrics").text
    files = [path.read_text(encoding="utf-8") for path in (KUBERNETES / folder).glob("*.yaml")]
    named = set(re.findall(r"cpt_serve_[a-z_]+", "\n".join(files)))
    assert any("queue" in name for name in named)
    for name in named:
        assert re.search(rf"^{name}(\{{| )", exposed, re.MULTILINE), name


def test_kserve_gets_the_same_signals_in_whole_numbers():
    # It reads target.value alone and cuts off what is behind the point.
    metrics = documents("kserve")["InferenceService"]["spec"]["predictor"]["autoScaling"]["metrics"]
    triggers = [trigger["metadata"] for trigger in documents("keda")["ScaledObject"]["spec"]["triggers"]]
    for metric, trigger in zip(metrics, triggers, strict=True):
        factor, _, query = metric["external"]["metric"]["query"].rpartition(" * ")
        assert query == trigger["query"]
        assert metric["external"]["target"]["type"] == "Value"
        assert int(metric["external"]["target"]["value"]) == int(factor or 1) * float(trigger["threshold"])


@pytest.mark.parametrize("folder", ["base", "keda", "hpa", "baked", "kserve"])
def test_kustomize_renders_each_variant(folder):
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl, whose kustomize puts the manifests together")
    done = subprocess.run(
        ["kubectl", "kustomize", KUBERNETES / folder], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    rendered = {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}
    for kind, document in rendered.items():
        if kind not in OTHERS:
            kubernetes_validate.validate(document, "1.33", strict=True)
    if folder != "kserve":
        deployment = rendered["Deployment"]["spec"]
        assert ("replicas" in deployment) == (folder in {"base", "baked"})
        (container,) = deployment["template"]["spec"]["containers"]
        own = "registry.example/digits:1" if folder == "baked" else "registry.example/cpt-deploy:0.1.0"
        assert container["image"] == own
        volumes = {volume["name"] for volume in deployment["template"]["spec"]["volumes"]}
        assert ("models" in volumes) == ("PersistentVolumeClaim" in rendered) == (folder != "baked")
